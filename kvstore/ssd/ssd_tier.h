// The SSD tier: one or several folders ("paths"), each on a disk of its own, each complete in itself:
//
//   <path>/FORMAT     the version of the folder
//   <path>/index/     RocksDB: index, journal, statistics; its LOCK file keeps a second process out
//   <path>/segments/  NNNNNNNN.seg: payload (segment_record.h has the bytes)
//
// A plane is stored once its index entry is synced, which happens after its segment was; concurrent Appends share both
// syncs. Removing is an index delete. Segments whose records are mostly dead are compacted in the background; when
// capacity_bytes would be passed, the segment that was not used for the longest time goes as a whole. A scrubber reads
// and verifies records in idle time.
//
// A path that is full, slow, read-only or failing takes no writes while that lasts, the others do; one that is lost at
// the start or whose reads keep failing is given up with its planes. When no path takes writes, Append says so and all
// else goes on.
//
// The tier does not verify what callers read: they use VerifyRecord. Any thread may call; reads never wait for writes.
#ifndef PERIGEE_KVSTORE_SSD_SSD_TIER_H_
#define PERIGEE_KVSTORE_SSD_SSD_TIER_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/ssd/ssd_types.h"

namespace perigee::kvstore {

class SsdVolume;

class SsdTier {
 public:
  using Found = std::function<void(const IndexEntry&, const SsdRecord&)>;

  // Creates the folders where they are missing and calls `found` for every stored plane. FAILED_PRECONDITION when
  // another process (or another SsdTier) has a path open, or a path is of another version; INVALID_ARGUMENT for a path
  // that cannot be made. One that cannot be opened for another reason is lost; with all of them lost the tier refuses
  // writes and holds nothing.
  static absl::StatusOr<std::unique_ptr<SsdTier>> Open(const SsdOptions& options, const Found& found);
  ~SsdTier();  // Waits for reads under way.

  // Stores all or none, synced before it returns: the records in the writes' order. A plane that is stored already is
  // replaced. RESOURCE_EXHAUSTED when the disks are full.
  absl::StatusOr<std::vector<SsdRecord>> Append(std::span<const SsdWrite> writes);

  // Forgets those that are still the same records; durable when it returns. After an error the rest is tried again in
  // the background, and may be back after a crash.
  absl::Status Remove(std::span<const SsdStored> planes);

  // How many stores are to have these planes, those that are still the same records; durable when it returns.
  absl::Status SetReplicas(std::span<const SsdStored> planes, uint8_t replicas);

  // What the index says of a plane, that of the same record. NOT_FOUND for one that is stored no more.
  absl::StatusOr<PlaneMeta> MetaOf(const SsdStored& plane) const;

  // Begins a pass of the scrubber over everything that is stored now, which does not wait for idle time; one that is
  // under way begins anew.
  void Scrub();

  // Before planes are deleted for good, known ones or not: a path that is absent now and returns at a later start loses
  // what it holds, so that it cannot bring them back.
  absl::Status NoteDeletion();

  // All at once, asynchronously, at most io_depth of them at a time at the disks.
  void ReadAsync(std::vector<SsdRead> reads);
  // One, waiting.
  absl::StatusOr<std::string> Read(const PlaneId& id, const SsdRecord& record, std::span<std::byte> padded_payload);

  // Marks a plane's segment as just used, for the choice of the next victim.
  void Touch(const PlaneId& id, const SsdRecord& record);

  SsdStats Stats() const;
  const SsdOptions& options() const { return options_; }
  const FileLayer& files() const { return *options_.files; }

 private:
  explicit SsdTier(SsdOptions options);
  SsdVolume* VolumeOf(const SsdRecord& record) const;
  // One call for each volume that has some of the planes; the first error of any.
  absl::Status ForEachVolume(
      std::span<const SsdStored> planes,
      absl::FunctionRef<absl::Status(SsdVolume& volume, std::span<const SsdStored> planes)> change);
  std::vector<size_t> Assign(size_t planes, const std::vector<bool>& excluded);

  SsdOptions options_;
  std::vector<std::unique_ptr<SsdVolume>> volumes_;  // By number; null: lost at the start.
  std::vector<std::string> lost_messages_;           // By number; of those.
  mutable absl::Mutex mu_;
  std::vector<double> shares_ ABSL_GUARDED_BY(mu_);  // Of weighted round robin.
  bool deletion_noted_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_SSD_TIER_H_
