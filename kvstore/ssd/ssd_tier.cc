#include "kvstore/ssd/ssd_tier.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "base/status.h"
#include "kvstore/ssd/ssd_volume.h"

namespace perigee::kvstore {

const char* SsdHealthName(SsdHealth health) {
  static constexpr const char* kNames[] = {"ok", "full", "slow", "read-only", "failing", "lost"};
  return kNames[static_cast<int>(health)];
}

const char* SsdDropReasonName(SsdDropReason reason) {
  static constexpr const char* kNames[] = {"evicted", "wrong bytes", "unreadable", "its disk is lost"};
  return kNames[static_cast<int>(reason)];
}

SsdTier::SsdTier(SsdOptions options) : options_(std::move(options)) {}
SsdTier::~SsdTier() = default;

absl::StatusOr<std::unique_ptr<SsdTier>> SsdTier::Open(const SsdOptions& options, const Found& found) {
  SsdOptions effective = options;
  if (effective.paths.empty()) effective.paths = {options.path};
  const size_t n = effective.paths.size();
  if (n > 200) return absl::InvalidArgumentError(absl::StrCat(n, " paths for the SSD tier; at most 200"));
  if (effective.files == nullptr) {
    PERIGEE_ASSIGN_OR_RETURN(
        std::unique_ptr<FileLayer> files,
        OpenRealFiles(
            {.engine = options.engine, .depth = options.io_depth, .direct = options.direct, .memory = options.memory}));
    effective.files = std::move(files);
  }
  std::unique_ptr<SsdTier> tier(new SsdTier(effective));
  tier->volumes_.resize(n);
  tier->lost_messages_.resize(n);
  SsdOptions share = effective;
  if (options.capacity_bytes > 0) share.capacity_bytes = std::max(options.capacity_bytes / n, 4 * kPageBytes);

  std::vector<std::vector<std::pair<IndexEntry, SsdRecord>>> entries(n);
  uint64_t absence = 0;
  for (size_t i = 0; i < n; ++i) {
    absl::StatusOr<std::unique_ptr<SsdVolume>> volume = SsdVolume::Open(
        share, effective.paths[i], i,
        [&](const IndexEntry& entry, const SsdRecord& record) { entries[i].emplace_back(entry, record); });
    if (volume.ok()) {
      tier->volumes_[i] = *std::move(volume);
      absence = std::max(absence, tier->volumes_[i]->absence());
      continue;
    }
    // In use, another version, nonsense: the operator's to decide, not a broken disk.
    if (absl::IsFailedPrecondition(volume.status()) || absl::IsInvalidArgument(volume.status())) {
      return volume.status();
    }
    tier->lost_messages_[i] = std::string(volume.status().message());
    spdlog::error("the SSD tier starts without {}: {}", effective.paths[i], tier->lost_messages_[i]);
  }
  {
    absl::MutexLock lock(&tier->mu_);
    tier->shares_.assign(n, 0.0);
  }
  absl::flat_hash_set<PlaneId> seen;
  for (size_t i = 0; i < n; ++i) {
    SsdVolume* volume = tier->volumes_[i].get();
    if (volume == nullptr) continue;
    if (volume->absence() < absence) {
      // It was away while planes were deleted: what it holds may be among them.
      if (!entries[i].empty()) {
        spdlog::error("{} was absent while planes were deleted: its {} planes are dropped", volume->path(),
                      entries[i].size());
      }
      PERIGEE_RETURN_IF_ERROR(volume->Forget());
      PERIGEE_RETURN_IF_ERROR(volume->SetAbsence(absence));
      entries[i].clear();
    }
    std::vector<SsdStored> twice;  // Stored again elsewhere, because this path could not be told to forget it.
    for (const auto& [entry, record] : entries[i]) {
      if (n == 1 || seen.insert(entry.id).second) {
        found(entry, record);
      } else {
        twice.push_back({entry.id, record});
      }
    }
    if (!twice.empty()) PERIGEE_RETURN_IF_ERROR(volume->Remove(twice));
    entries[i].clear();
    volume->StartMaintenance();
  }
  spdlog::debug("SSD tier: {}", effective.files->Describe());
  return tier;
}

SsdVolume* SsdTier::VolumeOf(const SsdRecord& record) const {
  const uint64_t number = record.number >> 56;
  return number < volumes_.size() ? volumes_[number].get() : nullptr;
}

// Smooth weighted round robin by the room that is left.
std::vector<size_t> SsdTier::Assign(size_t planes, const std::vector<bool>& excluded) {
  std::vector<double> weights(volumes_.size(), 0.0);
  double sum = 0;
  for (size_t i = 0; i < volumes_.size(); ++i) {
    if (volumes_[i] == nullptr || excluded[i]) continue;
    weights[i] = static_cast<double>(volumes_[i]->WritableBytes());
    sum += weights[i];
  }
  if (sum == 0) {  // They say themselves what is wrong.
    for (size_t i = 0; i < volumes_.size(); ++i) {
      if (volumes_[i] == nullptr || excluded[i]) continue;
      weights[i] = 1;
      sum += 1;
    }
  }
  std::vector<size_t> out;
  if (sum == 0) return out;
  absl::MutexLock lock(&mu_);
  for (size_t p = 0; p < planes; ++p) {
    size_t best = volumes_.size();
    for (size_t i = 0; i < volumes_.size(); ++i) {
      if (weights[i] == 0) continue;
      shares_[i] += weights[i] / sum;
      if (best == volumes_.size() || shares_[i] > shares_[best]) best = i;
    }
    shares_[best] -= 1;
    out.push_back(best);
  }
  return out;
}

absl::StatusOr<std::vector<SsdRecord>> SsdTier::Append(std::span<const SsdWrite> writes) {
  std::vector<SsdRecord> out(writes.size());
  std::vector<bool> excluded(volumes_.size(), false);
  std::vector<size_t> left(writes.size());
  for (size_t i = 0; i < writes.size(); ++i) left[i] = i;
  std::vector<SsdStored> stored;
  absl::Status failed;
  while (!left.empty()) {
    const std::vector<size_t> volume_of = Assign(left.size(), excluded);
    if (volume_of.empty()) {
      if (failed.ok()) failed = absl::UnavailableError("the SSD tier has no disk left");
      // All or none.
      Remove(stored).IgnoreError();  // Tried again in the background.
      return failed;
    }
    struct Part {
      size_t volume = 0;
      std::vector<size_t> places;
      absl::StatusOr<std::unique_ptr<SsdVolume::Pending>> pending;
    };
    std::vector<Part> parts;
    for (size_t v = 0; v < volumes_.size(); ++v) {
      std::vector<size_t> places;
      std::vector<const SsdWrite*> chosen;
      for (size_t i = 0; i < left.size(); ++i) {
        if (volume_of[i] != v) continue;
        places.push_back(left[i]);
        chosen.push_back(&writes[left[i]]);
      }
      if (places.empty()) continue;
      auto pending = volumes_[v]->Begin(chosen);
      parts.push_back({v, std::move(places), std::move(pending)});
    }
    left.clear();
    for (Part& part : parts) {
      const absl::StatusOr<std::vector<SsdRecord>> records =
          part.pending.ok() ? volumes_[part.volume]->Finish(*std::move(part.pending))
                            : absl::StatusOr<std::vector<SsdRecord>>(part.pending.status());
      for (size_t i = 0; i < part.places.size(); ++i) {
        const size_t place = part.places[i];
        if (records.ok()) {
          out[place] = (*records)[i];
          stored.push_back({writes[place].id, out[place]});
        } else {
          left.push_back(place);
        }
      }
      if (records.ok()) continue;
      excluded[part.volume] = true;
      failed.Update(records.status());
    }
  }
  // A volume replaces what it has itself; on the others the planes are there twice now.
  std::vector<SsdStored> replaced;
  for (size_t v = 0; v < volumes_.size() && volumes_.size() > 1; ++v) {
    for (const SsdStored& plane : stored) {
      if (volumes_[v] == nullptr || plane.record.number >> 56 == v) continue;
      if (const auto old = volumes_[v]->Find(plane.id)) replaced.push_back({plane.id, *old});
    }
  }
  Remove(replaced).IgnoreError();  // Tried again in the background; the next start would see to it too.
  return out;
}

absl::Status SsdTier::ForEachVolume(
    std::span<const SsdStored> planes,
    absl::FunctionRef<absl::Status(SsdVolume& volume, std::span<const SsdStored> planes)> change) {
  absl::Status status;
  for (size_t v = 0; v < volumes_.size(); ++v) {
    std::vector<SsdStored> here;
    for (const SsdStored& plane : planes) {
      if (plane.record.number >> 56 == v) here.push_back(plane);
    }
    if (!here.empty() && volumes_[v] != nullptr) status.Update(change(*volumes_[v], here));
  }
  return status;
}

absl::Status SsdTier::Remove(std::span<const SsdStored> planes) {
  return ForEachVolume(planes, [](SsdVolume& volume, auto here) { return volume.Remove(here); });
}

absl::Status SsdTier::SetReplicas(std::span<const SsdStored> planes, uint8_t replicas) {
  return ForEachVolume(planes, [replicas](SsdVolume& volume, auto here) { return volume.SetReplicas(here, replicas); });
}

absl::StatusOr<PlaneMeta> SsdTier::MetaOf(const SsdStored& plane) const {
  const SsdVolume* volume = VolumeOf(plane.record);
  if (volume == nullptr) return absl::NotFoundError(absl::StrCat(plane.id.ToString(), " is not on the SSD"));
  return volume->IndexedMeta(plane);
}

void SsdTier::Scrub() {
  for (const auto& volume : volumes_) {
    if (volume != nullptr) volume->Scrub();
  }
}

absl::Status SsdTier::NoteDeletion() {
  absl::MutexLock lock(&mu_);
  if (deletion_noted_) return absl::OkStatus();
  uint64_t absence = 0;
  std::vector<SsdVolume*> present;
  bool any_absent = false;
  for (const auto& volume : volumes_) {
    if (volume == nullptr || volume->Stats().health == SsdHealth::kLost) {
      any_absent = true;
    } else {
      absence = std::max(absence, volume->absence());
      present.push_back(volume.get());
    }
  }
  if (!any_absent) return absl::OkStatus();
  if (present.empty()) {
    return absl::UnavailableError(
        "all disks of the SSD tier are lost: what is deleted now is back if they return at a later start");
  }
  for (SsdVolume* volume : present) PERIGEE_RETURN_IF_ERROR(volume->SetAbsence(absence + 1));
  deletion_noted_ = true;
  return absl::OkStatus();
}

void SsdTier::ReadAsync(std::vector<SsdRead> reads) {
  std::vector<FileTransfer> transfers;
  for (SsdRead& read : reads) {
    if (SsdVolume* volume = VolumeOf(read.record)) {
      volume->PrepareRead(std::move(read), &transfers);
    } else {
      read.done(absl::NotFoundError(absl::StrCat(read.id.ToString(), " is not on the SSD")));
    }
  }
  if (!transfers.empty()) options_.files->Start(std::move(transfers));
}

absl::StatusOr<std::string> SsdTier::Read(const PlaneId& id, const SsdRecord& record,
                                          std::span<std::byte> padded_payload) {
  absl::Notification done;
  absl::StatusOr<std::string> head;
  std::vector<SsdRead> reads;
  reads.push_back({id, record, padded_payload, [&](absl::StatusOr<std::string> got) {
                     head = std::move(got);
                     done.Notify();
                   }});
  ReadAsync(std::move(reads));
  done.WaitForNotification();
  return head;
}

void SsdTier::Touch(const PlaneId& id, const SsdRecord& record) {
  if (SsdVolume* volume = VolumeOf(record)) volume->Touch(id, record);
}

SsdStats SsdTier::Stats() const {
  SsdStats s;
  std::vector<std::string> messages;
  for (size_t i = 0; i < volumes_.size(); ++i) {
    SsdPathStats path{.path = options_.paths[i], .health = SsdHealth::kLost, .message = lost_messages_[i]};
    if (volumes_[i] != nullptr) {
      path = volumes_[i]->Stats();
      s.lost_at_start += volumes_[i]->lost_at_start();
      const SsdCounters c = volumes_[i]->Counters();
      s.counters.written_bytes += c.written_bytes;
      s.counters.compacted_bytes += c.compacted_bytes;
      s.counters.scrubbed_bytes += c.scrubbed_bytes;
      s.counters.scrub_passes += c.scrub_passes;
      s.counters.wrong_records += c.wrong_records;
      s.counters.unreadable_records += c.unreadable_records;
    }
    s.used_bytes += path.used_bytes;
    s.live_bytes += path.live_bytes;
    s.segments += path.segments;
    s.health = std::max(s.health, path.health);
    if (path.health != SsdHealth::kOk) {
      messages.push_back(absl::StrCat(path.path, " is ", SsdHealthName(path.health), ": ", path.message));
    }
    s.paths.push_back(std::move(path));
  }
  s.message = absl::StrJoin(messages, "; ");
  return s;
}

}  // namespace perigee::kvstore
