// Hands out page-aligned extents of one range of memory, in constant time: no search that grows with the number of
// extents, no allocation per extent. Knows offsets only and never touches the bytes, which peers may write.
//
// TLSF (Masmano, Ripoll, Crespo, Real: TLSF: a new dynamic memory allocator for real-time systems, 2004): a list of
// free extents per size class, bitmaps to find the next list that is not empty, immediate coalescing. Two things are
// different. The bookkeeping lies outside of the memory, in nodes of 24 bytes with 32-bit names. And there are 2048
// classes to an octave where TLSF has 32: up to 16 MiB a class is one exact size, so what is found is the best fit, and
// a freed plane's place fits the next plane of its size (with classes of several sizes it would be passed over); above,
// a class's sizes differ by 1/2048 at most. Costs 180 KB for 16 TiB.
//
// Small extents (up to kSmallBytes: summary planes, planes of small models) would, lying among large ones and living
// longer, cut the memory into pieces. They are cut from runs of kRunBytes instead that hold one size each, and runs are
// taken from the far end of the memory. A slab of less than kLeastForRuns has none.
//
// Fragmentation, bounded:
//   inside   internal_bytes(): an extent is its bytes rounded up to pages, no more; a run's end where no extent fits is
//            at most 3.6 % of it.
//   outside  two free neighbours are one. So a request for n pages is refused only where each of the at most
//            (extents + runs + 1) free pieces has fewer than n pages (above 16 MiB: than n + n / 2048).
//   in runs  free room in runs is for small extents of their size only: run_free_bytes(). An empty run goes back at
//            once. A small request for which no run can be had takes any free piece.
//
// Not thread-safe.
#ifndef PERIGEE_KVSTORE_DRAM_EXTENT_SLAB_H_
#define PERIGEE_KVSTORE_DRAM_EXTENT_SLAB_H_

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvstore/dram/bit_tree.h"
#include "kvstore/dram/chunked_array.h"
#include "kvstore/plane_id.h"

namespace perigee::kvstore {

// Where bytes lie, and the slab's name for it. Kept by whoever allocated it, and given back to Free.
struct Extent {
  static constexpr uint32_t kNone = ~uint32_t{0};
  uint32_t node = kNone;
  uint32_t page = 0;
  explicit operator bool() const { return node != kNone; }
  uint64_t offset() const { return page * kPageBytes; }
  friend bool operator==(const Extent&, const Extent&) = default;
};

class ExtentSlab {
 public:
  static constexpr uint64_t kSmallBytes = 16 * kPageBytes;
  static constexpr uint64_t kRunBytes = 256 * kPageBytes;
  static constexpr uint64_t kLeastForRuns = 64 * kRunBytes;

  // capacity_bytes is rounded down to whole pages. At most 16 TiB - 4 KiB are used.
  explicit ExtentSlab(uint64_t capacity_bytes);
  ExtentSlab(const ExtentSlab&) = delete;
  ExtentSlab& operator=(const ExtentSlab&) = delete;

  // nullopt when no free piece is large enough, or bytes is 0.
  std::optional<Extent> Allocate(uint64_t bytes);
  // extent: from Allocate, not freed since. False (and nothing happens) for anything else, as far as can be told: an
  // extent freed twice is not told from a new one at the same place.
  bool Free(Extent extent);

  uint64_t capacity_bytes() const { return capacity_pages_ * kPageBytes; }
  uint64_t used_bytes() const { return capacity_bytes() - free_bytes(); }  // Extents, in whole pages.
  uint64_t free_bytes() const { return (free_pages_ + run_free_pages_) * kPageBytes; }
  uint64_t run_free_bytes() const { return run_free_pages_ * kPageBytes; }  // Part of free_bytes().
  uint64_t internal_bytes() const { return internal_bytes_; }               // Used, beyond what was asked for.
  // What is sure to be given to one request. Exact up to 16 MiB, above at most 1/2048 too low.
  uint64_t largest_free_bytes() const;
  uint64_t free_pieces() const { return free_pieces_; }  // Outside of runs.
  uint64_t extents() const { return extents_; }
  uint64_t runs() const { return runs_; }
  // 1 - largest free piece / free bytes: 0 when all free memory is in one piece.
  double fragmentation() const;
  uint64_t MemoryBytes() const;  // Of the bookkeeping.

 private:
  using Handle = uint32_t;
  static constexpr Handle kNone = Extent::kNone;
  static constexpr uint32_t kClassBits = 11;
  static constexpr uint32_t kClassesPerOctave = 1 << kClassBits;
  static constexpr uint32_t kExactPages = 2 * kClassesPerOctave;  // Below this a class is one size.
  static constexpr uint32_t kSmallPages = kSmallBytes / kPageBytes;
  static constexpr uint32_t kRunPages = kRunBytes / kPageBytes;
  static constexpr int kLooks = 8;  // In a class whose extents may or may not be large enough.

  enum class Use : uint8_t { kUnused = 0, kTaken, kRun, kSmall, kFree };
  struct Node {  // 24 bytes
    uint32_t page = 0, pages = 0;
    Handle before = kNone, after = kNone;  // Neighbours in memory. kSmall: its run, its place there.
    // newer: kFree: of its class; else a mark above all handles, its use. older: kFree: of its class; kUnused: the
    // next; kRun: the run; kTaken, kSmall: bytes of its pages that were not asked for.
    uint32_t newer = kFirstMark, older = kNone;

    Use use() const { return newer < kFirstMark || newer == kNone ? Use::kFree : static_cast<Use>(newer - kFirstMark); }
    void SetUse(Use use) { newer = kFirstMark + static_cast<uint32_t>(use); }  // Not kFree.
  };
  static constexpr uint32_t kFirstMark = 0xfffffff0;
  static_assert(sizeof(Node) == 24);
  struct Run {  // 48 bytes
    std::array<uint64_t, kRunPages / 64> free_places{};
    Handle node = kNone;
    uint16_t pages = 0, live = 0;           // Per extent; extents.
    uint32_t newer = kNone, older = kNone;  // Of the runs with room for its size; `older` of an unused one: the next.
  };

  static uint32_t ClassOf(uint32_t pages);
  Handle NewNode();
  void DropNode(Handle h);
  void LinkFree(Handle h);
  void UnlinkFree(Handle h);
  // A free piece of at least `pages`, out of its list; kNone.
  Handle TakeFree(uint32_t pages);
  // Cut to `pages`, in use; kNone.
  Handle TakePages(uint32_t pages, Use use);
  void GivePages(Handle h);
  void LinkRun(uint32_t run);
  void UnlinkRun(uint32_t run);
  uint32_t NewRun(uint32_t pages);  // kNone: there is no room for one.
  Handle AllocateSmall(uint32_t pages);
  void FreeSmall(Handle h);

  uint64_t capacity_pages_;
  uint64_t free_pages_ = 0, run_free_pages_ = 0, internal_bytes_ = 0;
  uint64_t free_pieces_ = 0, extents_ = 0, runs_ = 0;
  ChunkedArray<Node, 1 << 12> nodes_;
  uint32_t nodes_end_ = 0;
  Handle unused_nodes_ = kNone;
  std::vector<Handle> newest_free_;  // By class.
  BitTree classes_;                  // Which are not empty.
  ChunkedArray<Run, 1 << 10> run_list_;
  uint32_t runs_end_ = 0, unused_runs_ = kNone;
  std::array<uint32_t, kSmallPages + 1> open_runs_;  // By pages per extent: the newest run with room.
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_EXTENT_SLAB_H_
