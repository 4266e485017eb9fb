// Compaction, scrubbing, statistics: what the maintenance thread does.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/status.h"
#include "kvstore/ssd/ssd_volume.h"
#include "kvstore/ssd/volume_state.h"

namespace perigee::kvstore {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr absl::Duration kSaveEvery = absl::Seconds(10);
constexpr uint64_t kMoveBytes = uint64_t{8} << 20;  // Moved under one sync.

absl::Duration TimeFor(uint64_t bytes, uint64_t bytes_per_s) {
  return absl::Seconds(static_cast<double>(bytes) / static_cast<double>(std::max<uint64_t>(bytes_per_s, 1)));
}

}  // namespace

// A record that was read and is right.
struct SsdVolume::Checked {
  SsdStored plane;
  SsdLocation location;
  std::shared_ptr<AlignedBuffer> bytes;  // Head and padded payload.
  PlaneMeta meta;
};

void SsdVolume::StartMaintenance() {
  maintenance_ = std::thread([this] { Maintain(); });
}

void SsdVolume::Maintain() {
  for (;;) {
    std::optional<absl::Duration> wait;
    bool lost;
    {
      absl::MutexLock lock(&mu_);
      lost = lost_;
    }
    if (!lost) {
      TrimSealed();
      RetryRemoves();
      bool full;
      {
        absl::MutexLock lock(&health_mu_);
        full = health_ == SsdHealth::kFull;
      }
      uint64_t free_bytes = 0;
      if (full && options_.reserve_bytes > 0 && CheckDiskSpace(kMoveBytes, &free_bytes).ok()) {
        NoteWrite(absl::OkStatus());
      }
      if (CheckWritable().ok()) wait = CompactStep();
      if (!wait && (ScrubAsked() || Idle())) wait = ScrubStep();
      if (SteadyNow() > next_save_) {
        SaveStatistics(/*synced=*/false).IgnoreError();
        next_save_ = SteadyNow() + kSaveEvery;
      }
    }
    absl::MutexLock lock(&maintain_mu_);
    const auto called = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(maintain_mu_) { return stop_ || wake_; };
    maintain_mu_.AwaitWithTimeout(absl::Condition(&called), wait.value_or(kTick));
    if (stop_) return;
    wake_ = false;
  }
}

void SsdVolume::TrimSealed() {
  std::vector<SegmentPtr> ready;
  {
    absl::MutexLock lock(&mu_);
    std::erase_if(sealed_, [&](const SegmentPtr& segment) {
      if (segment->writers > 0) return false;
      if (segment->allocated_bytes > segment->end_bytes) ready.push_back(segment);
      return true;
    });
  }
  for (const SegmentPtr& segment : ready) {
    uint64_t end;
    {
      absl::MutexLock lock(&mu_);
      end = segment->end_bytes;
      segment->allocated_bytes = end;
    }
    const absl::Status cut = segment->file->Truncate(end);
    if (!cut.ok()) spdlog::warn("{}", std::string(cut.message()));
  }
}

void SsdVolume::RetryRemoves() {
  std::vector<SsdStored> again;
  {
    absl::MutexLock lock(&mu_);
    if (stale_.empty() || !CheckWritable().ok()) return;
    again.swap(stale_);
  }
  Remove(again).IgnoreError();  // Notes them again.
}

// Reclaiming a segment of which l is live writes l/(1 - l) bytes for every byte gained, so the bound on all writing
// bounds l, and the account of what was written bounds how fast.
SsdVolume::SegmentPtr SsdVolume::ChooseForCompaction() {
  const double extra = options_.max_write_amplification - 1;
  if (extra <= 0) return nullptr;
  const double allowed =
      extra * static_cast<double>(written_since_start_) + static_cast<double>(options_.segment_bytes);
  SegmentPtr best;
  double best_live = extra / options_.max_write_amplification;
  for (const auto& [number, segment] : segments_) {
    if (!segment->sealed || segment->writers > 0 || segment->left_alone || segment->end_bytes == 0) continue;
    if (static_cast<double>(compacted_since_start_ + segment->live_bytes) > allowed) continue;
    const double live = static_cast<double>(segment->live_bytes) / static_cast<double>(segment->end_bytes);
    if (live > best_live || (best != nullptr && live == best_live)) continue;
    best = segment;
    best_live = live;
  }
  return best;
}

std::optional<absl::Duration> SsdVolume::CompactStep() {
  std::vector<SsdStored> planes;
  {
    absl::MutexLock lock(&mu_);
    if (lost_) return std::nullopt;
    if (victim_ == nullptr || victim_->records.empty() || victim_->left_alone) victim_ = ChooseForCompaction();
    if (victim_ == nullptr) return std::nullopt;
    uint64_t bytes = 0;
    for (const auto& [offset, id] : victim_->records) {
      const Current& current = current_.at(id);
      bytes += current.location.record_bytes();
      if (bytes > kMoveBytes && !planes.empty()) break;
      planes.push_back({id, {current.number, current.location.payload_bytes}});
    }
  }
  const std::vector<Checked> records = ReadAndCheck(victim_, planes);
  if (records.empty()) return kTick;
  Pending pending(nullptr);
  std::vector<SsdLocation> sizes;
  std::vector<Pieces> bytes;
  uint64_t moved_bytes = 0;
  for (const Checked& r : records) {
    sizes.push_back({.head_bytes = r.location.head_bytes, .payload_bytes = r.location.payload_bytes});
    bytes.push_back({r.bytes->span(), {}});
    pending.commit.items.push_back({.id = r.plane.id, .meta = r.meta, .moved = r.plane.record.number});
    moved_bytes += r.bytes->span().size();
  }
  absl::Status moved = Write(pending, sizes, bytes, Stream::kCompaction);
  if (moved.ok()) moved = CommitWritten(pending).status();
  if (!moved.ok()) {
    spdlog::warn("compaction of {}: {}", victim_->file->path(), std::string(moved.message()));
    NoteWrite(moved);
    return absl::Seconds(1);
  }
  return TimeFor(2 * moved_bytes, options_.compact_bytes_per_s);
}

std::vector<SsdVolume::Checked> SsdVolume::ReadAndCheck(const SegmentPtr& segment, std::span<const SsdStored> planes) {
  std::vector<Checked> reads;
  {
    absl::MutexLock lock(&mu_);
    for (const SsdStored& plane : planes) {
      const auto it = current_.find(plane.id);
      if (it == current_.end() || it->second.number != plane.record.number) continue;
      if (it->second.location.segment != segment->number) continue;
      reads.push_back({plane, it->second.location, nullptr, {}});
    }
  }
  std::vector<absl::Status> status(reads.size());
  {
    absl::BlockingCounter left(static_cast<int>(reads.size()));
    std::vector<FileTransfer> transfers;
    for (size_t i = 0; i < reads.size(); ++i) {
      reads[i].bytes = std::make_shared<AlignedBuffer>(reads[i].location.record_bytes());
      transfers.push_back({.file = segment->file.get(),
                           .kind = FileTransfer::Kind::kRead,
                           .offset_bytes = reads[i].location.offset,
                           .first = reads[i].bytes->span(),
                           .done = [&left, out = &status[i]](const absl::Status& s) {
                             *out = s;
                             left.DecrementCount();
                           }});
    }
    if (!transfers.empty()) files().Start(std::move(transfers));
    left.Wait();
  }
  std::vector<SsdDropped> dropped;
  std::vector<SsdStored> wrong;
  std::vector<Checked> good;
  for (size_t i = 0; i < reads.size(); ++i) {
    Checked& r = reads[i];
    if (!absl::IsDataLoss(status[i])) NoteRead(status[i]);
    if (status[i].ok()) {
      const std::span<std::byte> all = r.bytes->span();
      const absl::StatusOr<RecordHead> head =
          VerifyRecord({reinterpret_cast<const char*>(all.data()), r.location.head_bytes},
                       all.subspan(r.location.head_bytes), r.plane.id, r.location.payload_bytes);
      status[i] = head.status();
      if (head.ok()) r.meta = MetaOf(head->header, head->created_unix_us, head->ttl_s);
    }
    if (status[i].ok()) {
      good.push_back(std::move(r));
      continue;
    }
    // What the disk could not read may be read another time, and another version's records are not damage.
    const bool is_wrong = absl::IsDataLoss(status[i]);
    spdlog::error("{}: {}: {}", segment->file->path(), is_wrong ? "dropped" : "left alone",
                  std::string(status[i].message()));
    absl::MutexLock lock(&mu_);
    if (is_wrong) {
      wrong.push_back(r.plane);
      dropped.push_back({r.plane.id, r.plane.record, SsdDropReason::kWrong});
      ++counters_.wrong_records;
    } else {
      if (!absl::IsFailedPrecondition(status[i])) ++counters_.unreadable_records;
      segment->left_alone = true;
    }
  }
  if (!wrong.empty()) {
    const absl::Status removed = Remove(wrong);
    if (!removed.ok()) spdlog::warn("{}", std::string(removed.message()));
    Tell(dropped);
  }
  return good;
}

void SsdVolume::Scrub() {
  {
    absl::MutexLock lock(&mu_);
    scrub_asked_ = true;
    scrub_segment_ = scrub_offset_ = scrub_pass_bytes_ = 0;
  }
  absl::MutexLock lock(&maintain_mu_);
  wake_ = true;
}

bool SsdVolume::ScrubAsked() const {
  absl::MutexLock lock(&mu_);
  return scrub_asked_;
}

std::optional<absl::Duration> SsdVolume::ScrubStep() {
  const bool asked = ScrubAsked();
  if (options_.scrub_bytes_per_s == 0 && !asked) return std::nullopt;
  SegmentPtr segment;
  SsdStored plane;
  uint64_t bytes = 0;
  {
    absl::MutexLock lock(&mu_);
    for (auto it = segments_.lower_bound(scrub_segment_); it != segments_.end(); ++it) {
      if (it->first != scrub_segment_) scrub_offset_ = 0;
      scrub_segment_ = it->first;
      const auto record = it->second->records.lower_bound(scrub_offset_);
      if (record == it->second->records.end()) {
        ++scrub_segment_;
        scrub_offset_ = 0;
        continue;
      }
      const Current& current = current_.at(record->second);
      segment = it->second;
      plane = {record->second, {current.number, current.location.payload_bytes}};
      bytes = current.location.record_bytes();
      scrub_offset_ = record->first + bytes;
      break;
    }
    if (segment == nullptr) {
      if (!segments_.empty()) ++counters_.scrub_passes;
      scrub_segment_ = scrub_offset_ = scrub_pass_bytes_ = 0;
      scrub_asked_ = false;
      return std::nullopt;
    }
  }
  ReadAndCheck(segment, {&plane, 1});
  absl::MutexLock lock(&mu_);
  counters_.scrubbed_bytes += bytes;
  scrub_pass_bytes_ += bytes;
  return TimeFor(bytes, asked ? options_.compact_bytes_per_s : options_.scrub_bytes_per_s);
}

// --- statistics

absl::Status SsdVolume::SaveStatistics(bool synced) {
  const std::string value = EncodeStatistics(Counters());
  absl::MutexLock journal(&journal_mu_);
  const SsdIndex::Change change{std::string(kStatisticsKey), value};
  const absl::Status saved = index_->Write({&change, 1}, synced);
  if (!saved.ok()) spdlog::warn("{}: statistics: {}", path_, std::string(saved.message()));
  return saved;
}

absl::Status SsdVolume::LoadStatistics() {
  absl::StatusOr<std::string> absence = index_->Get(kAbsenceKey);
  absl::StatusOr<std::string> value = index_->Get(kStatisticsKey);
  absl::MutexLock lock(&mu_);
  if (absence.ok()) absence_ = DecodeAbsence(*absence).value_or(0);
  if (absl::IsNotFound(value.status())) return absl::OkStatus();
  PERIGEE_RETURN_IF_ERROR(value.status());
  const std::optional<SsdCounters> counters = DecodeStatistics(*value);
  if (counters) {
    counters_ = *counters;
  } else {  // No reason not to start.
    spdlog::warn("{}: the statistics in the index cannot be read; they start at 0", path_);
  }
  return absl::OkStatus();
}

}  // namespace perigee::kvstore
