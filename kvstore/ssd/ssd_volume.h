// Internal to the SSD tier: one path, with its index, its segments, its group commit and its maintenance thread. See
// ssd_tier.h.
//
// Source files: ssd_volume.cc (open, read, remove, state), volume_append.cc (space, writing, group commit),
// volume_maintenance.cc (compaction, scrubbing, statistics).
#ifndef PERIGEE_KVSTORE_SSD_SSD_VOLUME_H_
#define PERIGEE_KVSTORE_SSD_SSD_VOLUME_H_

#include <array>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/ssd/aligned_buffer.h"
#include "kvstore/ssd/closed_note.h"
#include "kvstore/ssd/ssd_index.h"
#include "kvstore/ssd/ssd_types.h"

namespace perigee::kvstore {

class SsdVolume {
 public:
  using Found = std::function<void(const IndexEntry&, const SsdRecord&)>;

  // options: the tier's, with this volume's share of the capacity, and with `files`. number: below 256.
  static absl::StatusOr<std::unique_ptr<SsdVolume>> Open(const SsdOptions& options, const std::string& path,
                                                         uint64_t number, const Found& found);
  ~SsdVolume();

  class Pending;  // An Append under way.
  // Takes space and starts writing. The writes' payloads stay unchanged until Finish has returned, which must be
  // called.
  absl::StatusOr<std::unique_ptr<Pending>> Begin(std::span<const SsdWrite* const> writes);
  // Waits for the writes, syncs and indexes them together with those of other callers.
  absl::StatusOr<std::vector<SsdRecord>> Finish(std::unique_ptr<Pending> pending);

  absl::Status Remove(std::span<const SsdStored> planes);
  absl::Status SetReplicas(std::span<const SsdStored> planes, uint8_t replicas);
  std::optional<SsdRecord> Find(const PlaneId& id) const;
  absl::StatusOr<PlaneMeta> IndexedMeta(const SsdStored& plane) const;
  void Scrub();
  // Adds the transfer that answers `read`, or answers it.
  void PrepareRead(SsdRead read, std::vector<FileTransfer>* transfers);
  void Touch(const PlaneId& id, const SsdRecord& record);

  // See SsdTier::NoteDeletion: the highest number of absence that this volume has seen.
  uint64_t absence() const;
  absl::Status SetAbsence(uint64_t absence);
  // Drops every plane.
  absl::Status Forget();

  void StartMaintenance();
  SsdPathStats Stats() const;
  SsdCounters Counters() const;
  uint64_t lost_at_start() const { return lost_at_start_; }
  // Where writes may go: the room left, 0 where they are refused now.
  uint64_t WritableBytes() const;
  const std::string& path() const { return path_; }

 private:
  struct Segment {
    Segment(uint64_t n, std::shared_ptr<File> f) : number(n), file(std::move(f)) {}
    const uint64_t number;
    const std::shared_ptr<File> file;
    // The rest: under mu_.
    uint64_t end_bytes = 0;
    uint64_t allocated_bytes = 0;  // The file's size: preallocated ahead while the segment is active.
    uint64_t live_bytes = 0;
    uint64_t last_used = 0;
    int writers = 0;          // Appends that have space here and are not in the index yet.
    bool sealed = false;      // Takes no more records.
    bool left_alone = false;  // By compaction: holds what cannot be read, or is of a version not known here.
    absl::btree_map<uint64_t, PlaneId> records;  // live: offset -> plane
  };
  using SegmentPtr = std::shared_ptr<Segment>;
  struct Current {
    SsdLocation location;
    uint64_t number = 0;
  };
  struct Place {
    SegmentPtr segment;
    SsdLocation location;
  };
  enum class Stream : uint8_t { kCallers = 0, kCompaction = 1 };
  // What a group commit makes of one Append: all or none.
  struct Commit;

  SsdVolume(const SsdOptions& options, std::string path, uint64_t number);
  std::string FolderOfSegments() const { return path_ + "/segments"; }
  FileLayer& files() const { return *options_.files; }

  // Open.
  absl::Status OpenSegments();
  absl::Status LoadIndex(const std::optional<ClosedNote>& closed, const Found& found);
  absl::Status LoadStatistics();

  // Appending.
  absl::Status CheckDiskSpace(uint64_t bytes, uint64_t* free_bytes) const;
  absl::Status CheckWritable() ABSL_LOCKS_EXCLUDED(health_mu_);
  absl::Status MakeRoom(uint64_t bytes, std::vector<SsdDropped>* dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(allocate_mu_);
  absl::StatusOr<std::vector<Place>> AllocateSpace(std::span<const SsdLocation> sizes, Stream stream);
  absl::StatusOr<SegmentPtr> NewSegment(Stream stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(allocate_mu_);
  void PreallocateFor(const SegmentPtr& segment, uint64_t free_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(allocate_mu_);
  // reuse: nothing in the index can point there, so the space may be handed out again where it is a segment's tail.
  void ReturnSpace(std::span<const Place> places, bool reuse) ABSL_EXCLUSIVE_LOCKS_REQUIRED(allocate_mu_);
  using Pieces = std::array<std::span<std::byte>, 2>;
  absl::Status Write(Pending& pending, std::span<const SsdLocation> sizes, std::span<const Pieces> bytes,
                     Stream stream);
  absl::StatusOr<std::vector<SsdRecord>> CommitWritten(Pending& pending);
  void CommitGroup(std::span<Commit* const> group);
  void Seal(SegmentPtr segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Forgetting.
  void ForgetRecord(const SsdLocation& location, std::vector<SegmentPtr>* empty) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropIfEmpty(const SegmentPtr& segment, std::vector<SegmentPtr>* empty) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Leave(const SegmentPtr& segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UnlinkAll(std::span<const SegmentPtr> segments);
  void Tell(std::span<const SsdDropped> dropped) const;
  void Lose(const absl::Status& why);

  // Health.
  void NoteWrite(const absl::Status& status) ABSL_LOCKS_EXCLUDED(health_mu_);
  void NoteRead(const absl::Status& status) ABSL_LOCKS_EXCLUDED(health_mu_);
  class Busy;  // A caller's operation under way, for slowness and idleness.

  // Maintenance. The steps return how long to wait before the next one.
  void Maintain();
  std::optional<absl::Duration> CompactStep();
  std::optional<absl::Duration> ScrubStep();
  SegmentPtr ChooseForCompaction() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  struct Checked;
  // Reads and verifies; what is wrong or unreadable is dropped from the tier and left out.
  // As its index entry says; what holds journal_mu_ keeps it so.
  absl::StatusOr<IndexEntry> EntryOf(const PlaneId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(journal_mu_);
  std::vector<Checked> ReadAndCheck(const SegmentPtr& segment, std::span<const SsdStored> planes);
  bool Idle() const;
  bool ScrubAsked() const;
  void TrimSealed();
  void RetryRemoves();
  absl::Status SaveStatistics(bool synced);

  const SsdOptions options_;
  const std::string path_;
  const uint64_t number_;
  std::unique_ptr<SsdIndex> index_;
  uint64_t lost_at_start_ = 0;

  // Locks, to be taken in this order. mu_ guards memory only and is not held across I/O; the first two are held across
  // I/O and only writers take them.
  absl::Mutex allocate_mu_;  // who gets which bytes of which segment; creation of segments
  absl::Mutex journal_mu_;   // writes to RocksDB together with the change of current_ that they mean
  mutable absl::Mutex mu_;
  uint64_t next_segment_ ABSL_GUARDED_BY(allocate_mu_) = 1;
  SegmentPtr active_[2] ABSL_GUARDED_BY(mu_);  // By Stream.
  absl::btree_map<uint64_t, SegmentPtr> segments_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<PlaneId, Current> current_ ABSL_GUARDED_BY(mu_);  // What RocksDB holds.
  uint64_t next_record_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t used_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t live_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t clock_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<SegmentPtr> sealed_ ABSL_GUARDED_BY(mu_);  // To be cut to their length.
  std::vector<SsdStored> stale_ ABSL_GUARDED_BY(mu_);    // Removed, but the index could not be told.
  bool lost_ ABSL_GUARDED_BY(mu_) = false;
  SsdCounters counters_ ABSL_GUARDED_BY(mu_);
  uint64_t written_since_start_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t compacted_since_start_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t absence_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t scrub_segment_ ABSL_GUARDED_BY(mu_) = 0, scrub_offset_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t scrub_pass_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool scrub_asked_ ABSL_GUARDED_BY(mu_) = false;  // Until a pass has ended.

  absl::Mutex commit_mu_;
  bool leading_ ABSL_GUARDED_BY(commit_mu_) = false;
  std::vector<Commit*> commits_ ABSL_GUARDED_BY(commit_mu_);

  mutable absl::Mutex health_mu_;
  SsdHealth health_ ABSL_GUARDED_BY(health_mu_) = SsdHealth::kOk;
  std::string message_ ABSL_GUARDED_BY(health_mu_);
  absl::Time refused_until_ ABSL_GUARDED_BY(health_mu_) = absl::InfinitePast();
  int failed_reads_ ABSL_GUARDED_BY(health_mu_) = 0;  // In a row.
  std::multiset<absl::Time> busy_ ABSL_GUARDED_BY(health_mu_);
  absl::Time last_busy_ ABSL_GUARDED_BY(health_mu_);

  absl::Mutex maintain_mu_;
  bool stop_ ABSL_GUARDED_BY(maintain_mu_) = false;
  bool wake_ ABSL_GUARDED_BY(maintain_mu_) = false;  // Look again at once.
  std::thread maintenance_;
  // Of the maintenance thread alone.
  SegmentPtr victim_;
  absl::Time next_save_ = absl::InfinitePast();
};

class SsdVolume::Busy {
 public:
  explicit Busy(SsdVolume* volume);  // Null: nothing.
  ~Busy();
  Busy(const Busy&) = delete;

 private:
  SsdVolume* const volume_;
  std::multiset<absl::Time>::iterator at_;
};

struct SsdVolume::Commit {
  struct Item {
    PlaneId id;
    PlaneMeta meta;
    uint64_t moved = 0;   // Not 0: a compaction's copy of this record, void unless the record is still current.
    uint64_t number = 0;  // Of the record that it became.
    bool stored = false;
  };
  std::vector<Item> items;
  std::vector<Place> places;
  absl::Status status;
  bool done = false;
};

class SsdVolume::Pending {
 public:
  explicit Pending(SsdVolume* volume) : busy(volume) {}
  Busy busy;
  Commit commit;
  AlignedBuffer heads{0};
  std::unique_ptr<absl::BlockingCounter> left;
  absl::Mutex mu;
  absl::Status written ABSL_GUARDED_BY(mu);
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_SSD_VOLUME_H_
