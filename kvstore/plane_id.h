// What the store calls one stored object: a block's plane.
#ifndef PERIGEE_KVSTORE_PLANE_ID_H_
#define PERIGEE_KVSTORE_PLANE_ID_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pod/block_key.h"
#include "pod/layout.h"

namespace perigee::kvstore {

struct PlaneId {
  pod::BlockKey key;
  pod::PlaneKind kind = pod::PlaneKind::kDistant;

  std::string ToString() const { return absl::StrCat(key.ToString(), "/", pod::PlaneKindName(kind)); }
  friend auto operator<=>(const PlaneId&, const PlaneId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const PlaneId& id) {
    return H::combine(std::move(h), id.key, id.kind);
  }
};

// Everything in memory and on disk is cut in units of this, so that direct I/O stays possible.
inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t RoundUpToPage(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

// Above this a plane header is refused before it is looked at.
inline constexpr size_t kMaxHeaderBytes = size_t{1} << 20;

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_PLANE_ID_H_
