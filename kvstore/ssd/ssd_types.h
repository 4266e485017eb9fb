// The words of the SSD tier that its callers use: options, records, what was dropped and why, health, counters.
#ifndef PERIGEE_KVSTORE_SSD_SSD_TYPES_H_
#define PERIGEE_KVSTORE_SSD_SSD_TYPES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/plane_id.h"
#include "kvstore/ssd/file_layer.h"
#include "kvstore/ssd/segment_record.h"

namespace perigee::kvstore {

// Names one stored record for as long as the process lives, also when compaction moves it. A plane that is stored again
// is another record.
struct SsdRecord {
  uint64_t number = 0;
  uint64_t payload_bytes = 0;
  friend bool operator==(const SsdRecord&, const SsdRecord&) = default;
};

enum class SsdDropReason : uint8_t {
  kEvicted,     // For room.
  kWrong,       // Its bytes do not match their checksums.
  kUnreadable,  // The disk said so.
  kPathLost,    // With its whole disk.
};
const char* SsdDropReasonName(SsdDropReason reason);

struct SsdDropped {
  PlaneId id;
  SsdRecord record;
  SsdDropReason reason{};
};

struct SsdOptions {
  std::string path{};                            // One folder, or
  std::vector<std::string> paths{};              // several, on a disk each: planes are striped over them.
  uint64_t segment_bytes = uint64_t{256} << 20;  // A new segment is begun when this would be passed.
  uint64_t capacity_bytes = 0;                   // Of all segment files, but for one of each path while it is
                                                 // compacted; 0: whatever the file systems hold.
  uint64_t reserve_bytes = uint64_t{64} << 20;   // Of each path, never used for payload: the index must be able to
                                                 // grow on a full disk. 0: no check.
  // Compaction may write so much that all bytes written stay below this multiple of what callers wrote. 1: never.
  double max_write_amplification = 1.5;
  uint64_t compact_bytes_per_s = uint64_t{128} << 20;  // Of each path.
  uint64_t scrub_bytes_per_s = uint64_t{8} << 20;      // Of each path, in idle time. 0: never.
  absl::Duration retry_after = absl::Seconds(10);      // Until a path that refused writes is tried again.
  absl::Duration slow_after = absl::Seconds(10);       // A call that takes longer makes its path slow.
  IoEngineKind engine = IoEngineKind::kAuto;
  unsigned io_depth = 32;
  bool direct = true;
  std::span<std::byte> memory{};       // Registered with io_uring; must outlive the tier.
  std::shared_ptr<FileLayer> files{};  // Null: the machine's own. Must outlive the tier.
  // Planes that the tier lost or gave up by itself, in no order. Called from any thread, no lock held, also from within
  // the tier's calls.
  std::function<void(std::span<const SsdDropped>)> dropped{};
};

// From best to worst.
enum class SsdHealth : uint8_t { kOk, kFull, kSlow, kReadOnly, kFailing, kLost };
const char* SsdHealthName(SsdHealth health);

struct SsdPathStats {
  std::string path;
  SsdHealth health = SsdHealth::kOk;
  std::string message;  // What is wrong, empty for kOk.
  uint64_t used_bytes = 0;
  uint64_t live_bytes = 0;
  uint64_t segments = 0;
  bool scrubbing = false;         // A pass that was asked for is under way.
  uint64_t scrub_pass_bytes = 0;  // Records looked at in the pass under way, whoever began it.
};

// Counted over all starts, per path kept in its index (some of it is lost with a crash).
struct SsdCounters {
  uint64_t written_bytes = 0;    // Records that callers stored.
  uint64_t compacted_bytes = 0;  // Records that compaction moved.
  uint64_t scrubbed_bytes = 0;
  uint64_t scrub_passes = 0;
  uint64_t wrong_records = 0;  // Found by the scrubber or by compaction, and dropped.
  uint64_t unreadable_records = 0;
};

struct SsdStats {
  uint64_t used_bytes = 0;  // Segment files, dead records included.
  uint64_t live_bytes = 0;  // Records that the index points to.
  uint64_t segments = 0;
  uint64_t lost_at_start = 0;         // Index entries dropped at Open: undecodable, or their segment missing or short.
  SsdHealth health = SsdHealth::kOk;  // The worst of its paths.
  std::string message{};              // Of all paths that are not well.
  SsdCounters counters{};
  std::vector<SsdPathStats> paths{};
};

struct SsdWrite {
  PlaneId id;
  PlaneMeta meta;
  std::string head;                           // From EncodeRecordHead.
  std::span<const std::byte> padded_payload;  // Whole pages, page-aligned; unchanged until Append returns.
};

struct SsdStored {
  PlaneId id;
  SsdRecord record;
};

struct SsdRead {
  PlaneId id;
  SsdRecord record;
  std::span<std::byte> padded_payload;  // RoundUpToPage(record.payload_bytes) bytes, page-aligned.
  // The record's head, or NOT_FOUND when it is not stored any more, UNAVAILABLE when the disk failed, DATA_LOSS when
  // the file is too short. Called once, from a thread of the file layer or from within the call, no lock held; must not
  // block for long.
  std::function<void(absl::StatusOr<std::string>)> done;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_SSD_TYPES_H_
