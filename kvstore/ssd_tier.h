// The SSD tier: a RocksDB index (also the journal) and payload in append-only segment files (segment_record.h has the
// bytes).
//
//   <path>/index/     RocksDB; its LOCK file keeps a second process out
//   <path>/segments/  NNNNNNNN.seg
//
// A plane is stored once its index entry is synced, which happens after its segment was. Removing is an index delete; a
// segment without live records is unlinked, once that delete is durable. When capacity_bytes would be passed, the
// segment that was not used for the longest time goes as a whole, live records and all.
//
// The tier does not verify what it reads: callers use VerifyRecord. Any thread may call; Read never waits for a write.
#ifndef PERIGEE_KVSTORE_SSD_TIER_H_
#define PERIGEE_KVSTORE_SSD_TIER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/plane_id.h"
#include "kvstore/segment_file.h"
#include "kvstore/segment_record.h"

namespace perigee::kvstore {

struct SsdOptions {
  std::string path;
  uint64_t segment_bytes = uint64_t{256} << 20;  // A new segment is begun when this would be passed.
  uint64_t capacity_bytes = 0;                   // Of all segment files; 0: whatever the file system holds.
  uint64_t reserve_bytes =
      uint64_t{64} << 20;  // Never used for payload: the index must be able to grow on a full disk. 0: no check.
};

struct SsdStats {
  uint64_t used_bytes = 0;  // Segment files, dead records included.
  uint64_t live_bytes = 0;  // Records that the index points to.
  uint64_t segments = 0;
  uint64_t lost_at_start = 0;  // Index entries dropped at Open: undecodable, or their segment missing or too short.
};

class SsdTier {
 public:
  // Creates the folders where they are missing and calls `found` for every stored plane, in key order.
  // FAILED_PRECONDITION when another process (or another SsdTier) has the path open.
  static absl::StatusOr<std::unique_ptr<SsdTier>> Open(const SsdOptions& options,
                                                       const std::function<void(const IndexEntry&)>& found);
  ~SsdTier();

  struct Write {
    PlaneId id;
    PlaneMeta meta;
    std::string head;                           // From EncodeRecordHead.
    std::span<const std::byte> padded_payload;  // Whole pages; unchanged until Append returns.
  };
  struct Stored {
    PlaneId id;
    SsdLocation location;
  };
  // Stores all or none, synced before it returns: the locations in the writes' order. An id stored before is replaced.
  // What had to go to make room is added to *evicted, also when the call fails. RESOURCE_EXHAUSTED when the disk is
  // full.
  absl::StatusOr<std::vector<SsdLocation>> Append(std::span<const Write> writes, std::vector<Stored>* evicted);

  // Forgets those that are still at that location; durable when it returns.
  absl::Status Remove(std::span<const Stored> planes);

  // The record's head; payload and padding go to padded_payload (RoundUpToPage(location.payload_bytes) bytes).
  // NOT_FOUND when the segment is gone by now.
  absl::StatusOr<std::string> Read(const SsdLocation& location, std::span<std::byte> padded_payload);

  // Marks a segment as just used, for the choice of the next victim.
  void Touch(uint64_t segment);

  SsdStats Stats() const;
  const SsdOptions& options() const { return options_; }

 private:
  struct Segment {
    explicit Segment(SegmentFile f) : file(std::move(f)) {}
    const SegmentFile file;
    // The rest: under mu_.
    uint64_t end_bytes = 0;
    uint64_t live_bytes = 0;
    uint64_t last_used = 0;
    int writers = 0;                             // Appends that have space here and are not in the index yet.
    absl::btree_map<uint64_t, PlaneId> records;  // live: offset -> plane
  };
  using SegmentPtr = std::shared_ptr<Segment>;
  struct Index;  // Hides RocksDB.

  explicit SsdTier(const SsdOptions& options);
  absl::Status LoadIndex(const std::function<void(const IndexEntry&)>& found);
  absl::Status OpenSegments();
  absl::Status CheckDiskSpace(uint64_t bytes) const;
  absl::Status MakeRoom(uint64_t bytes, std::vector<Stored>* evicted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(allocate_mu_);
  absl::StatusOr<std::vector<SsdLocation>> AllocateSpace(std::span<const Write> writes, std::vector<Stored>* evicted);
  void ReturnSpace(std::span<const SsdLocation> locations, bool reuse);
  absl::Status WriteAndSync(std::span<const Write> writes, std::span<const SsdLocation> locations);
  absl::Status DropFromIndex(std::span<const Stored> planes, bool only_if_current)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(journal_mu_);
  void ForgetRecord(const SsdLocation& location, std::vector<SegmentPtr>* empty) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UnlinkAll(std::span<const SegmentPtr> segments);

  const SsdOptions options_;
  std::unique_ptr<Index> index_;

  // Locks, to be taken in this order. mu_ guards memory only and is not held across I/O (but for the truncation after a
  // failed write); the other two are held across I/O and only writers take them.
  absl::Mutex allocate_mu_;  // who gets which bytes of which segment; creation of segments
  absl::Mutex journal_mu_;   // writes to RocksDB together with the change of current_ that they mean
  mutable absl::Mutex mu_;
  uint64_t next_segment_ ABSL_GUARDED_BY(allocate_mu_) = 1;
  uint64_t active_segment_ ABSL_GUARDED_BY(mu_) = 0;  // 0: none
  absl::btree_map<uint64_t, SegmentPtr> segments_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<PlaneId, SsdLocation> current_ ABSL_GUARDED_BY(mu_);  // What RocksDB holds.
  uint64_t used_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t live_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t clock_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t lost_at_start_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_TIER_H_
