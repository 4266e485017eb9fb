// One tensor-parallel rank's part of a block: which sections of the full planes are its kv heads', and where they lie
// in the rank's own, smaller planes.
//
// What is stored does not depend on the number of ranks: a block always has the whole model's planes. Rank r of n has
// kv heads [r * kv_heads / n, (r + 1) * kv_heads / n), computes with the plan of those heads alone (Plan::ForHeads) and
// the layout of that plan, and writes and reads its heads' sections only. A section of the local layout has the bytes
// of its section of the full layout, in the same order, so sections are moved and never re-laid; only their offsets
// differ. That is also why a prefill of one degree serves a decode of another.
//
// Immutable; any thread may read.
#ifndef PERIGEE_POD_HEAD_SHARD_H_
#define PERIGEE_POD_HEAD_SHARD_H_

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "pod/layout.h"

namespace perigee::pod {

// Sections [local, local + count) of the local plane are sections [full, full + count) of the full plane.
struct SectionRun {
  size_t local = 0;
  size_t full = 0;
  size_t count = 0;
};

// Bytes [local_offset, +bytes) of the local plane are bytes [full_offset, +bytes) of the full plane.
struct ShardExtent {
  size_t local_offset = 0;
  size_t full_offset = 0;
  size_t bytes = 0;
};

class HeadShard {
 public:
  // Ranks count from 0. INVALID_ARGUMENT where the kv heads do not divide by `size`, or a follower and its lead would
  // fall to two ranks, whichever these are: all ranks get the same answer. Every section is compared with its
  // counterpart, tile by tile; INTERNAL where they differ.
  static absl::StatusOr<HeadShard> Create(const Layout& full, int rank, int size);

  int rank() const { return rank_; }
  int size() const { return size_; }
  int heads() const { return local_.plan().shape().kv_heads; }
  int first_head() const { return rank_ * heads(); }
  const Layout& full() const { return full_; }
  const Layout& local() const { return local_; }

  // The rank that has section `section` of the full plane. Every section has exactly one.
  int owner(PlaneKind kind, size_t section) const { return owners_[Index(kind)][section]; }
  // All sections of the local plane, in order; runs as long as can be.
  const std::vector<SectionRun>& runs(PlaneKind kind) const { return runs_[Index(kind)]; }
  // The byte ranges of the local plane that layer `layer` writes (Layout::layer_ranges), with their places in the full
  // plane.
  const std::vector<ShardExtent>& layer_extents(PlaneKind kind, int layer) const {
    return layer_extents_[Index(kind)][static_cast<size_t>(layer)];
  }

 private:
  static size_t Index(PlaneKind kind) { return static_cast<size_t>(kind) - 1; }
  HeadShard(const Layout& full, Layout local, int rank, int size)
      : full_(full), local_(std::move(local)), rank_(rank), size_(size) {}
  Layout full_, local_;
  int rank_ = 0, size_ = 1;
  std::array<std::vector<int>, 3> owners_;
  std::array<std::vector<SectionRun>, 3> runs_;
  std::array<std::vector<std::vector<ShardExtent>>, 3> layer_extents_;
};

}  // namespace perigee::pod

#endif  // PERIGEE_POD_HEAD_SHARD_H_
