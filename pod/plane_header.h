// The header of one stored plane: what it is, how to read it, and checksums of every section (docs/formats.md section
// 4).
//
// It repeats the fields that the block key hashes, so that a reader can refuse a plane that is not what it asked for,
// and can say why.
#ifndef PERIGEE_POD_PLANE_HEADER_H_
#define PERIGEE_POD_PLANE_HEADER_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "pod/block_key.h"
#include "pod/layout.h"

namespace perigee::pod {

struct SectionSum {
  uint32_t bytes = 0;
  uint32_t crc32c = 0;
  friend bool operator==(const SectionSum&, const SectionSum&) = default;
};

struct PlaneHeader {
  PlaneKind kind = PlaneKind::kDistant;
  BlockKey key;
  bool has_parent = false;
  BlockKey parent;  // Zero bytes where has_parent is false.
  // Key of the chain's first block: its own where has_parent is false. Zero bytes where it is not known, as of all
  // headers of version 1.
  BlockKey root;
  std::string tenant;
  Digest model_fingerprint{};
  Digest plan_id{};
  KvShape shape;
  Codec near_codec = Codec::kBf16;
  int32_t block_tokens = 0;
  int32_t tokens = 0;  // 1..block_tokens: how many token places are filled.
  uint32_t shard = 0;
  int64_t base_position = 0;  // RoPE position of the first token's keys.
  uint64_t payload_bytes = 0;
  std::vector<SectionSum> sections;  // In order, without gaps: their bytes add up to payload_bytes.

  bool has_root() const { return root != BlockKey{}; }
  friend bool operator==(const PlaneHeader&, const PlaneHeader&) = default;
};

// Version 2, or 1 where the root is not known.
std::string EncodePlaneHeader(const PlaneHeader& header);

// Refuses other magic or version (FAILED_PRECONDITION), truncation, impossible values and a wrong checksum (DATA_LOSS).
// Trailing bytes after the header are allowed (a record pads it to 4 KiB); *encoded_bytes, where not null, is the
// header's own length.
absl::StatusOr<PlaneHeader> DecodePlaneHeader(absl::string_view bytes, size_t* encoded_bytes = nullptr);

// FAILED_PRECONDITION, naming the field, unless the header is of `key`'s plane under this layout and identity. root:
// the chain's first block; null where the caller does not know it, and not compared where the header does not.
absl::Status CheckPlaneHeader(const PlaneHeader& header, const Layout& layout, const Identity& identity,
                              const BlockKey& key, PlaneKind kind, const BlockKey* root = nullptr);

// Length and CRC32C of every section of a plane's payload, in order. The payload has layout.plane_bytes(kind) bytes.
std::vector<SectionSum> SumSections(const Layout& layout, PlaneKind kind, std::span<const std::byte> payload);

// DATA_LOSS, naming the first wrong section, unless the payload matches the header's sums. Needs no layout, so a store
// can check too.
absl::Status VerifyPayload(const PlaneHeader& header, std::span<const std::byte> payload);
// The same by sums that somebody else has: `sum` gives the CRC32C of a part of the payload.
absl::Status VerifyPayload(const PlaneHeader& header, std::span<const std::byte> payload,
                           absl::FunctionRef<uint32_t(std::span<const std::byte>)> sum);

}  // namespace perigee::pod

#endif  // PERIGEE_POD_PLANE_HEADER_H_
