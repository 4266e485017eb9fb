// Opening, reading, removing, health.
#include "kvstore/ssd/ssd_volume.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "kvstore/ssd/volume_state.h"

namespace perigee::kvstore {
namespace {

namespace fs = std::filesystem;

constexpr int kFailedReadsOfALostPath = 8;

// An errno may look like a refusal of ours (a read-only disk's does): this one is the disk's.
absl::Status AsDiskError(const absl::Status& status) {
  return status.ok() ? status : absl::UnavailableError(status.message());
}

absl::Status MakeFolder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (!error) return absl::OkStatus();
  const absl::Status status = ErrnoStatus("create folder", path, error.value());
  // No disk breaks like this: the path is wrong.
  if (absl::IsNotFound(status) || absl::IsPermissionDenied(status)) return absl::InvalidArgumentError(status.message());
  return AsDiskError(status);
}

// Before anything is touched: another version's folder stays as it is.
absl::Status CheckFolder(const std::string& path) {
  const std::string file = path + "/FORMAT";
  const absl::StatusOr<std::string> text = ReadFile(file, 4096);
  if (absl::IsNotFound(text.status())) {  // A new folder, or one from before there was the file: version 1 too.
    return AsDiskError(WriteFileAtomically(file, EncodeFormat()));
  }
  PERIGEE_RETURN_IF_ERROR(AsDiskError(text.status()));
  return CheckFormat(path, *text);
}

// Segments without an index would look like garbage and be deleted. (An empty index beside a segment is a first commit
// that was cut off.)
absl::Status CheckIndexIsThere(const std::string& path) {
  std::error_code error;
  if (fs::exists(path + "/index/CURRENT", error)) return absl::OkStatus();
  for (fs::directory_iterator it(path + "/segments", error), end; !error && it != end; it.increment(error)) {
    if (!ParseSegmentFileName(it->path().filename().string())) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("the store's index ", path, "/index is missing, but there are segment files in ", path,
                     "/segments: put the index back, or move the segments away to start empty"));
  }
  return absl::OkStatus();
}

}  // namespace

SsdVolume::SsdVolume(const SsdOptions& options, std::string path, uint64_t number)
    : options_(options), path_(std::move(path)), number_(number), last_busy_(SteadyNow()) {}

SsdVolume::~SsdVolume() {
  {
    absl::MutexLock lock(&maintain_mu_);
    stop_ = true;
  }
  if (maintenance_.joinable()) maintenance_.join();
  {
    const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(health_mu_) { return busy_.empty(); };
    absl::MutexLock lock(&health_mu_);
    health_mu_.Await(absl::Condition(&idle));
  }
  if (index_ == nullptr) return;
  {
    absl::MutexLock lock(&mu_);
    for (const SegmentPtr& active : {active_[0], active_[1]}) {
      if (active != nullptr) Seal(active);
    }
  }
  TrimSealed();
  RetryRemoves();
  const absl::Status saved = SaveStatistics(/*synced=*/true);
  const std::optional<uint64_t> sequence = index_->sequence();
  ClosedNote note;
  {
    absl::MutexLock lock(&mu_);
    // Of a path that is lost, or could not be told everything, nothing can be said.
    if (!saved.ok() || !sequence || lost_ || !stale_.empty()) return;
    note = {.sequence = *sequence, .planes = current_.size()};
  }
  const absl::Status noted = WriteClosedNote(path_, note);
  if (!noted.ok()) spdlog::warn("{}", std::string(noted.message()));
}

absl::StatusOr<std::unique_ptr<SsdVolume>> SsdVolume::Open(const SsdOptions& options, const std::string& path,
                                                           uint64_t number, const Found& found) {
  if (path.empty()) return absl::InvalidArgumentError("the SSD tier has no path");
  if (options.segment_bytes < kPageBytes) {
    return absl::InvalidArgumentError(absl::StrCat("segment_bytes is ", options.segment_bytes, ", below ", kPageBytes));
  }
  SsdOptions effective = options;
  if (options.capacity_bytes > 0) {
    // Eviction goes by whole segments, so there must be several.
    effective.segment_bytes = std::max(kPageBytes, std::min(options.segment_bytes, options.capacity_bytes / 4));
  }
  std::unique_ptr<SsdVolume> volume(new SsdVolume(effective, path, number));
  PERIGEE_RETURN_IF_ERROR(MakeFolder(path));
  PERIGEE_RETURN_IF_ERROR(CheckFolder(path));
  PERIGEE_RETURN_IF_ERROR(MakeFolder(path + "/segments"));
  PERIGEE_RETURN_IF_ERROR(CheckIndexIsThere(path));
  std::error_code error;
  const bool has_index = fs::exists(path + "/index/CURRENT", error);
  PERIGEE_ASSIGN_OR_RETURN(volume->index_, SsdIndex::Open(path));
  absl::Status loaded = AsDiskError(volume->OpenSegments());
  loaded.Update(volume->LoadStatistics());
  if (loaded.ok()) loaded = volume->LoadIndex(has_index ? ReadClosedNote(path) : std::nullopt, found);
  if (!loaded.ok()) {
    volume->index_ = nullptr;  // Nothing is written back.
    return loaded;
  }
  RemoveClosedNote(path);
  return volume;
}

absl::Status SsdVolume::OpenSegments() {
  absl::MutexLock allocate(&allocate_mu_);
  absl::MutexLock lock(&mu_);
  const std::string folder = FolderOfSegments();
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const std::optional<uint64_t> number = ParseSegmentFileName(name);
    if (!number || *number == 0) {
      spdlog::warn("{}/{} is not a segment file; left alone", folder, name);
      continue;
    }
    PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<File> file, files().Open(it->path().string(), /*create=*/false));
    auto segment = std::make_shared<Segment>(*number, std::move(file));
    PERIGEE_ASSIGN_OR_RETURN(segment->allocated_bytes, segment->file->SizeBytes());
    segment->sealed = true;
    segments_.emplace(*number, std::move(segment));
    next_segment_ = std::max(next_segment_, *number + 1);
  }
  if (error) return ErrnoStatus("list", folder, error.value());
  return absl::OkStatus();
}

absl::Status SsdVolume::LoadIndex(const std::optional<ClosedNote>& closed, const Found& found) {
  std::vector<SsdIndex::Change> drop;
  std::vector<SegmentPtr> unused;
  std::vector<std::pair<IndexEntry, SsdRecord>>
      entries;  // `found` may take locks of its own: called when ours are free.
  {
    absl::MutexLock lock(&mu_);
    PERIGEE_RETURN_IF_ERROR(index_->ForEach(
        [&](absl::string_view key, absl::string_view value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) -> absl::Status {
          if (IsOwnKey(key)) return absl::OkStatus();
          absl::StatusOr<IndexEntry> entry = DecodeIndexEntry(key, value);
          // Another version's entries are not damage: dropping them would delete what another program can still read.
          if (absl::IsFailedPrecondition(entry.status())) return entry.status();
          const auto segment = entry.ok() ? segments_.find(entry->location.segment) : segments_.end();
          if (segment == segments_.end() ||
              entry->location.offset + entry->location.record_bytes() > segment->second->allocated_bytes ||
              !segment->second->records.emplace(entry->location.offset, entry->id).second) {
            ++lost_at_start_;
            drop.push_back({std::string(key), std::nullopt});
            return absl::OkStatus();
          }
          Segment& s = *segment->second;
          const uint64_t bytes = entry->location.record_bytes();
          s.live_bytes += bytes;
          s.end_bytes = std::max(s.end_bytes, entry->location.offset + bytes);
          live_bytes_ += bytes;
          const SsdRecord record{(number_ << 56) | ++next_record_, entry->location.payload_bytes};
          current_.emplace(entry->id, Current{entry->location, record.number});
          entries.emplace_back(*std::move(entry), record);
          return absl::OkStatus();
        }));
    if (closed) {
      PERIGEE_RETURN_IF_ERROR(CheckClosedNote(
          path_, *closed, {.sequence = index_->sequence().value_or(0), .planes = current_.size() + lost_at_start_}));
    }
    if (lost_at_start_ > 0) {
      spdlog::error("{}: {} stored planes are lost: their segment is missing or too short", path_, lost_at_start_);
    }
    for (auto it = segments_.begin(); it != segments_.end();) {
      const SegmentPtr segment = it->second;
      if (segment->records.empty()) {
        unused.push_back(segment);
        it = segments_.erase(it);
        continue;
      }
      // What lies beyond the last indexed record was never acknowledged, or is preallocated.
      if (segment->end_bytes < segment->allocated_bytes && segment->file->Truncate(segment->end_bytes).ok()) {
        segment->allocated_bytes = segment->end_bytes;
      }
      used_bytes_ += segment->end_bytes;
      ++it;
    }
    if (!segments_.empty()) {  // Appending goes on there.
      const SegmentPtr last = segments_.rbegin()->second;
      last->sealed = false;
      active_[static_cast<size_t>(Stream::kCallers)] = last;
    }
  }
  if (!drop.empty()) {
    absl::MutexLock journal(&journal_mu_);
    const absl::Status dropped = index_->Write(drop, /*synced=*/true);
    if (!dropped.ok()) spdlog::warn("{}: {}", path_, std::string(dropped.message()));  // The next start does it.
  }
  UnlinkAll(unused);
  for (const auto& [entry, record] : entries) found(entry, record);
  return absl::OkStatus();
}

void SsdVolume::PrepareRead(SsdRead read, std::vector<FileTransfer>* transfers) {
  Place place;
  {
    absl::MutexLock lock(&mu_);
    const auto it = current_.find(read.id);
    const auto segment = it == current_.end() || it->second.number != read.record.number
                             ? segments_.end()
                             : segments_.find(it->second.location.segment);
    if (segment != segments_.end()) {
      place = {segment->second, it->second.location};
      place.segment->last_used = ++clock_;
    }
  }
  absl::Status refused;
  if (place.segment == nullptr) {
    refused = absl::NotFoundError(absl::StrCat(read.id.ToString(), " is not on the SSD any more"));
  } else if (read.padded_payload.size() != RoundUpToPage(place.location.payload_bytes)) {
    refused = absl::InvalidArgumentError(
        absl::StrCat(read.padded_payload.size(), " bytes of memory for a payload of ", place.location.payload_bytes));
  }
  if (!refused.ok()) {
    read.done(std::move(refused));
    return;
  }
  // Until the callback has returned: the segment's file, the head's memory, and that this volume is in use.
  auto busy = std::make_shared<Busy>(this);
  auto head = std::make_shared<AlignedBuffer>(place.location.head_bytes);
  FileTransfer transfer{.file = place.segment->file.get(),
                        .kind = FileTransfer::Kind::kRead,
                        .offset_bytes = place.location.offset,
                        .first = head->span(),
                        .second = read.padded_payload};
  transfer.done = [this, busy, head, segment = place.segment, done = std::move(read.done)](const absl::Status& status) {
    NoteRead(status);
    if (status.ok()) {
      done(std::string(reinterpret_cast<const char*>(head->span().data()), head->span().size()));
    } else if (absl::IsDataLoss(status)) {
      done(status);
    } else {
      done(absl::UnavailableError(status.message()));
    }
  };
  transfers->push_back(std::move(transfer));
}

void SsdVolume::Touch(const PlaneId& id, const SsdRecord& record) {
  absl::MutexLock lock(&mu_);
  const auto it = current_.find(id);
  if (it == current_.end() || it->second.number != record.number) return;
  const auto segment = segments_.find(it->second.location.segment);
  if (segment != segments_.end()) segment->second->last_used = ++clock_;
}

absl::Status SsdVolume::Remove(std::span<const SsdStored> planes) {
  std::vector<SegmentPtr> empty;
  absl::Status written;
  {
    absl::MutexLock journal(&journal_mu_);
    std::vector<SsdIndex::Change> changes;
    std::vector<SsdStored> removed;
    {
      absl::MutexLock lock(&mu_);
      for (const SsdStored& plane : planes) {
        const auto it = current_.find(plane.id);
        if (it == current_.end() || it->second.number != plane.record.number) continue;
        changes.push_back({EncodeIndexKey(plane.id), std::nullopt});
        removed.push_back(plane);
      }
    }
    if (!changes.empty()) written = index_->Write(changes, /*synced=*/true);
    absl::MutexLock lock(&mu_);
    if (!written.ok()) stale_.insert(stale_.end(), removed.begin(), removed.end());
    for (const SsdStored& plane : removed) {
      const auto it = current_.find(plane.id);
      if (!written.ok() || it == current_.end()) continue;  // A plane may be named twice.
      const SsdLocation location = it->second.location;
      current_.erase(it);
      ForgetRecord(location, &empty);
    }
  }
  UnlinkAll(empty);
  if (!written.ok()) NoteWrite(written);
  return written;
}

absl::StatusOr<IndexEntry> SsdVolume::EntryOf(const PlaneId& id) {
  const std::string key = EncodeIndexKey(id);
  PERIGEE_ASSIGN_OR_RETURN(const std::string value, index_->Get(key));
  return DecodeIndexEntry(key, value);
}

absl::StatusOr<PlaneMeta> SsdVolume::IndexedMeta(const SsdStored& plane) const {
  if (Find(plane.id) != plane.record) {
    return absl::NotFoundError(absl::StrCat(plane.id.ToString(), " is not on the SSD"));
  }
  const std::string key = EncodeIndexKey(plane.id);
  PERIGEE_ASSIGN_OR_RETURN(const std::string value, index_->Get(key));
  PERIGEE_ASSIGN_OR_RETURN(IndexEntry entry, DecodeIndexEntry(key, value));
  return std::move(entry.meta);
}

absl::Status SsdVolume::SetReplicas(std::span<const SsdStored> planes, uint8_t replicas) {
  absl::MutexLock journal(&journal_mu_);
  std::vector<SsdIndex::Change> changes;
  for (const SsdStored& plane : planes) {
    if (Find(plane.id) != plane.record) continue;
    PERIGEE_ASSIGN_OR_RETURN(IndexEntry entry, EntryOf(plane.id));
    if (entry.meta.replicas == replicas) continue;
    entry.meta.replicas = replicas;
    changes.push_back({EncodeIndexKey(plane.id), EncodeIndexValue(plane.id, entry.location, entry.meta)});
  }
  return changes.empty() ? absl::OkStatus() : index_->Write(changes, /*synced=*/true);
}

std::optional<SsdRecord> SsdVolume::Find(const PlaneId& id) const {
  absl::MutexLock lock(&mu_);
  const auto it = current_.find(id);
  if (it == current_.end()) return std::nullopt;
  return SsdRecord{it->second.number, it->second.location.payload_bytes};
}

void SsdVolume::ForgetRecord(const SsdLocation& location, std::vector<SegmentPtr>* empty) {
  const auto it = segments_.find(location.segment);
  if (it == segments_.end()) return;
  const SegmentPtr segment = it->second;
  if (segment->records.erase(location.offset) == 0) return;
  segment->live_bytes -= location.record_bytes();
  live_bytes_ -= location.record_bytes();
  DropIfEmpty(segment, empty);
}

void SsdVolume::DropIfEmpty(const SegmentPtr& segment, std::vector<SegmentPtr>* empty) {
  if (!segment->records.empty() || segment->writers > 0) return;
  const auto it = segments_.find(segment->number);
  if (it == segments_.end() || it->second != segment) return;
  empty->push_back(segment);
  Leave(segment);
}

void SsdVolume::Leave(const SegmentPtr& segment) {
  used_bytes_ -= segment->end_bytes;
  for (SegmentPtr& active : active_) {
    if (active == segment) active.reset();
  }
  segment->sealed = true;
  segments_.erase(segment->number);
}

void SsdVolume::UnlinkAll(std::span<const SegmentPtr> segments) {
  for (const SegmentPtr& segment : segments) {
    const absl::Status unlinked = files().Unlink(segment->file->path());
    if (!unlinked.ok()) spdlog::warn("{}", std::string(unlinked.message()));
  }
}

void SsdVolume::Tell(std::span<const SsdDropped> dropped) const {
  if (!dropped.empty() && options_.dropped) options_.dropped(dropped);
}

uint64_t SsdVolume::absence() const {
  absl::MutexLock lock(&mu_);
  return absence_;
}

absl::Status SsdVolume::SetAbsence(uint64_t absence) {
  {
    absl::MutexLock journal(&journal_mu_);
    const SsdIndex::Change change{std::string(kAbsenceKey), EncodeAbsence(absence)};
    PERIGEE_RETURN_IF_ERROR(index_->Write({&change, 1}, /*synced=*/true));
  }
  absl::MutexLock lock(&mu_);
  absence_ = absence;
  return absl::OkStatus();
}

absl::Status SsdVolume::Forget() {
  std::vector<SsdStored> all;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [id, current] : current_) all.push_back({id, {current.number, current.location.payload_bytes}});
  }
  return Remove(all);
}

// --- health

SsdVolume::Busy::Busy(SsdVolume* volume) : volume_(volume) {
  if (volume_ == nullptr) return;
  absl::MutexLock lock(&volume_->health_mu_);
  at_ = volume_->busy_.insert(SteadyNow());
}

SsdVolume::Busy::~Busy() {
  if (volume_ == nullptr) return;
  absl::MutexLock lock(&volume_->health_mu_);
  volume_->busy_.erase(at_);
  volume_->last_busy_ = SteadyNow();
}

bool SsdVolume::Idle() const {
  absl::MutexLock lock(&health_mu_);
  return busy_.empty() && SteadyNow() - last_busy_ > absl::Milliseconds(100);
}

absl::Status SsdVolume::CheckWritable() {
  absl::MutexLock lock(&health_mu_);
  const absl::Time now = SteadyNow();
  if (health_ == SsdHealth::kLost || refused_until_ > now) {
    return absl::UnavailableError(absl::StrCat(path_, " takes no writes now: ", message_));
  }
  if (!busy_.empty() && now - *busy_.begin() > options_.slow_after) {
    return absl::UnavailableError(
        absl::StrCat(path_, " is slow: an operation takes ", absl::FormatDuration(now - *busy_.begin())));
  }
  return absl::OkStatus();
}

void SsdVolume::NoteWrite(const absl::Status& status) {
  absl::MutexLock lock(&health_mu_);
  if (health_ == SsdHealth::kLost) return;
  const SsdHealth before = health_;
  if (status.ok()) {
    health_ = SsdHealth::kOk;
    message_.clear();
    refused_until_ = absl::InfinitePast();
    if (before != SsdHealth::kOk) spdlog::info("{} takes writes again", path_);
    return;
  }
  message_ = std::string(status.message());
  if (absl::IsResourceExhausted(status)) {
    health_ = SsdHealth::kFull;  // Not refused: every write looks at the free space first.
  } else {
    health_ = absl::IsFailedPrecondition(status) || absl::IsPermissionDenied(status) ? SsdHealth::kReadOnly
                                                                                     : SsdHealth::kFailing;
    refused_until_ = SteadyNow() + options_.retry_after;
  }
  if (health_ != before) spdlog::error("{} is {}: {}", path_, SsdHealthName(health_), message_);
}

void SsdVolume::NoteRead(const absl::Status& status) {
  {
    absl::MutexLock lock(&health_mu_);
    if (status.ok() || absl::IsDataLoss(status)) {
      failed_reads_ = 0;
      return;
    }
    message_ = std::string(status.message());
    if (health_ == SsdHealth::kOk) health_ = SsdHealth::kFailing;
    if (++failed_reads_ != kFailedReadsOfALostPath || health_ == SsdHealth::kLost) return;
  }
  Lose(status);
}

void SsdVolume::Lose(const absl::Status& why) {
  std::vector<SsdDropped> dropped;
  {
    absl::MutexLock lock(&mu_);
    lost_ = true;
    for (const auto& [id, current] : current_) {
      dropped.push_back({id, {current.number, current.location.payload_bytes}, SsdDropReason::kPathLost});
    }
    current_.clear();
    segments_.clear();
    stale_.clear();
    active_[0].reset();
    active_[1].reset();
    used_bytes_ = live_bytes_ = 0;
  }
  {
    absl::MutexLock lock(&health_mu_);
    health_ = SsdHealth::kLost;
    message_ = std::string(why.message());
  }
  spdlog::error("{} is lost, with {} planes: {}", path_, dropped.size(), std::string(why.message()));
  Tell(dropped);
}

uint64_t SsdVolume::WritableBytes() const {
  const absl::StatusOr<uint64_t> free_bytes = files().FreeBytes(path_);
  {
    absl::MutexLock lock(&health_mu_);
    const absl::Time now = SteadyNow();
    if (health_ == SsdHealth::kLost || refused_until_ > now) return 0;
    if (!busy_.empty() && now - *busy_.begin() > options_.slow_after) return 0;
  }
  if (!free_bytes.ok() || *free_bytes <= options_.reserve_bytes) return 0;
  return *free_bytes - options_.reserve_bytes;
}

SsdPathStats SsdVolume::Stats() const {
  SsdPathStats s;
  s.path = path_;
  {
    absl::MutexLock lock(&mu_);
    s.used_bytes = used_bytes_;
    s.live_bytes = live_bytes_;
    s.segments = segments_.size();
    s.scrubbing = scrub_asked_;
    s.scrub_pass_bytes = scrub_pass_bytes_;
  }
  absl::MutexLock lock(&health_mu_);
  s.health = health_;
  s.message = message_;
  if (health_ == SsdHealth::kOk && !busy_.empty()) {
    const absl::Duration age = SteadyNow() - *busy_.begin();
    if (age > options_.slow_after) {
      s.health = SsdHealth::kSlow;
      s.message = absl::StrCat("an operation takes ", absl::FormatDuration(age));
    }
  }
  return s;
}

SsdCounters SsdVolume::Counters() const {
  absl::MutexLock lock(&mu_);
  return counters_;
}

}  // namespace perigee::kvstore
