#include "kvstore/ssd_tier.h"

#include <rocksdb/db.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iterator>

#include "base/status.h"

namespace perigee::kvstore {
namespace {

rocksdb::Slice AsSlice(const std::string& s) { return rocksdb::Slice(s.data(), s.size()); }
absl::string_view AsAbsl(const rocksdb::Slice& s) { return absl::string_view(s.data(), s.size()); }

absl::Status FromRocks(const rocksdb::Status& s, absl::string_view what) {
  if (s.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", s.ToString());
  if (s.IsNoSpace()) return absl::ResourceExhaustedError(absl::StrCat(message, "; free space on the store's disk"));
  if (s.IsCorruption()) return absl::DataLossError(message);
  return absl::InternalError(message);
}

absl::Status MakeFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return ErrnoStatus("create folder", path, error.value());
  return absl::OkStatus();
}

}  // namespace

struct SsdTier::Index {
  std::unique_ptr<rocksdb::DB> db;
  bool failed = false;  // RocksDB refuses writes after an error until it is resumed.

  absl::Status Write(rocksdb::WriteBatch* batch) {
    if (failed) {
      PERIGEE_RETURN_IF_ERROR(FromRocks(db->Resume(), "the store's index cannot resume after a write error"));
      failed = false;
    }
    rocksdb::WriteOptions options;
    options.sync = true;
    const rocksdb::Status s = db->Write(options, batch);
    failed = !s.ok();
    return FromRocks(s, "the store's index cannot be written");
  }
};

SsdTier::SsdTier(const SsdOptions& options) : options_(options), index_(std::make_unique<Index>()) {}
SsdTier::~SsdTier() = default;

namespace {

// Segments without an index would look like garbage and be deleted. (An empty index beside a segment is a first commit
// that was cut off.)
absl::Status CheckIndexIsThere(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path + "/index/CURRENT", error)) return absl::OkStatus();
  for (std::filesystem::directory_iterator it(path + "/segments", error), end; !error && it != end;
       it.increment(error)) {
    if (!ParseSegmentFileName(it->path().filename().string())) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("the store's index ", path, "/index is missing, but there are segment files in ", path,
                     "/segments: put the index back, or move the segments away to start empty"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SsdTier>> SsdTier::Open(const SsdOptions& options,
                                                       const std::function<void(const IndexEntry&)>& found) {
  if (options.path.empty()) return absl::InvalidArgumentError("the SSD tier has no path");
  if (options.segment_bytes < kPageBytes) {
    return absl::InvalidArgumentError(absl::StrCat("segment_bytes is ", options.segment_bytes, ", below ", kPageBytes));
  }
  SsdOptions effective = options;
  if (options.capacity_bytes > 0) {
    // Eviction goes by whole segments, so there must be several.
    effective.segment_bytes = std::max(kPageBytes, std::min(options.segment_bytes, options.capacity_bytes / 4));
  }
  std::unique_ptr<SsdTier> tier(new SsdTier(effective));
  PERIGEE_RETURN_IF_ERROR(MakeFolder(options.path + "/segments"));

  rocksdb::Options db_options;
  db_options.create_if_missing = true;
  db_options.write_buffer_size = size_t{16} << 20;
  db_options.max_total_wal_size = uint64_t{64} << 20;
  db_options.keep_log_file_num = 2;
  db_options.info_log_level = rocksdb::WARN_LEVEL;
  db_options.allow_fallocate = false;  // Preallocated logs would be the first to fail on a nearly full disk.
  db_options.manifest_preallocation_size = size_t{64} << 10;
  PERIGEE_RETURN_IF_ERROR(CheckIndexIsThere(options.path));
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened = rocksdb::DB::Open(db_options, options.path + "/index", &db);
  if (opened.IsIOError() && opened.ToString().find("lock") != std::string::npos) {
    return absl::FailedPreconditionError(absl::StrCat("the store's folder ", options.path,
                                                      " is in use by another store; stop it or give this one its own (",
                                                      opened.ToString(), ")"));
  }
  PERIGEE_RETURN_IF_ERROR(FromRocks(opened, absl::StrCat("open the store's index ", options.path, "/index")));
  tier->index_->db.reset(db);
  PERIGEE_RETURN_IF_ERROR(tier->OpenSegments());
  PERIGEE_RETURN_IF_ERROR(tier->LoadIndex(found));
  return tier;
}

absl::Status SsdTier::OpenSegments() {
  absl::MutexLock allocate(&allocate_mu_);
  absl::MutexLock lock(&mu_);
  const std::string folder = options_.path + "/segments";
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const std::optional<uint64_t> number = ParseSegmentFileName(name);
    if (!number || *number == 0) {
      spdlog::warn("{}/{} is not a segment file; left alone", folder, name);
      continue;
    }
    PERIGEE_ASSIGN_OR_RETURN(SegmentFile file, SegmentFile::Open(it->path().string(), /*create=*/false));
    auto segment = std::make_shared<Segment>(std::move(file));
    PERIGEE_ASSIGN_OR_RETURN(segment->end_bytes, segment->file.SizeBytes());
    segments_.emplace(*number, std::move(segment));
    next_segment_ = std::max(next_segment_, *number + 1);
  }
  if (error) return ErrnoStatus("list", folder, error.value());
  return absl::OkStatus();
}

absl::Status SsdTier::LoadIndex(const std::function<void(const IndexEntry&)>& found) {
  rocksdb::WriteBatch drop;
  std::vector<SegmentPtr> unused;
  std::vector<IndexEntry> entries;  // `found` may take locks of its own, so it is called when ours are free.
  {
    absl::MutexLock allocate(&allocate_mu_);
    absl::MutexLock lock(&mu_);
    std::unique_ptr<rocksdb::Iterator> it(index_->db->NewIterator(rocksdb::ReadOptions()));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      const absl::StatusOr<IndexEntry> entry = DecodeIndexEntry(AsAbsl(it->key()), AsAbsl(it->value()));
      // Another version's entries are not damage: dropping them would delete what another program can still read.
      if (absl::IsFailedPrecondition(entry.status())) return entry.status();
      const auto segment = entry.ok() ? segments_.find(entry->location.segment) : segments_.end();
      if (segment == segments_.end() ||
          entry->location.offset + entry->location.record_bytes() > segment->second->end_bytes ||
          !segment->second->records.emplace(entry->location.offset, entry->id).second) {
        ++lost_at_start_;
        drop.Delete(it->key());
        continue;
      }
      Segment& s = *segment->second;
      s.live_bytes += entry->location.record_bytes();
      live_bytes_ += entry->location.record_bytes();
      current_.emplace(entry->id, entry->location);
      entries.push_back(*entry);
    }
    PERIGEE_RETURN_IF_ERROR(FromRocks(it->status(), "read the store's index"));
    if (lost_at_start_ > 0) {
      spdlog::error("{}: {} stored planes are lost: their segment is missing or too short", options_.path,
                    lost_at_start_);
    }
    for (auto segment = segments_.begin(); segment != segments_.end();) {
      if (segment->second->records.empty()) {
        unused.push_back(segment->second);
        segment = segments_.erase(segment);
      } else {
        ++segment;
      }
    }
    if (!segments_.empty()) {
      // What lies beyond the last indexed record was never acknowledged; appending goes on there.
      const auto& [number, last] = *segments_.rbegin();
      const auto& [offset, id] = *last->records.rbegin();
      const uint64_t end = offset + current_.at(id).record_bytes();
      if (end < last->end_bytes) PERIGEE_RETURN_IF_ERROR(last->file.Truncate(end));
      last->end_bytes = end;
      active_segment_ = number;
    }
    for (const auto& [number, segment] : segments_) used_bytes_ += segment->end_bytes;
  }
  if (drop.Count() > 0) {
    absl::MutexLock journal(&journal_mu_);
    PERIGEE_RETURN_IF_ERROR(index_->Write(&drop));
  }
  UnlinkAll(unused);
  for (const IndexEntry& entry : entries) found(entry);
  return absl::OkStatus();
}

absl::Status SsdTier::CheckDiskSpace(uint64_t bytes) const {
  if (options_.reserve_bytes == 0) return absl::OkStatus();
  struct statvfs info;
  if (::statvfs(options_.path.c_str(), &info) != 0) return ErrnoStatus("statvfs", options_.path, errno);
  const uint64_t available = uint64_t{info.f_bavail} * info.f_frsize;
  if (available < bytes + options_.reserve_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the disk of ", options_.path, " is full: ", bytes, " bytes wanted, ", available, " available, ",
                     options_.reserve_bytes, " kept for the index; free space or lower the store's SSD capacity"));
  }
  return absl::OkStatus();
}

absl::Status SsdTier::MakeRoom(uint64_t bytes, std::vector<Stored>* evicted) {
  if (options_.capacity_bytes == 0) return absl::OkStatus();
  if (bytes > options_.capacity_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(bytes, " bytes in one batch; the SSD tier's capacity is ", options_.capacity_bytes));
  }
  std::vector<Stored> dropped;
  std::vector<SegmentPtr> victims;
  bool enough = false;
  {
    absl::MutexLock lock(&mu_);
    for (;;) {
      enough = used_bytes_ + bytes <= options_.capacity_bytes;
      if (enough) break;
      auto victim = segments_.end();
      for (auto it = segments_.begin(); it != segments_.end(); ++it) {
        if (it->second->writers > 0) continue;
        if (victim == segments_.end() || it->second->last_used < victim->second->last_used) victim = it;
      }
      if (victim == segments_.end()) break;
      const uint64_t number = victim->first;
      const SegmentPtr segment = victim->second;
      for (const auto& [offset, id] : segment->records) {
        dropped.push_back({id, current_.at(id)});
        current_.erase(id);
      }
      used_bytes_ -= segment->end_bytes;
      live_bytes_ -= segment->live_bytes;
      segment->records.clear();
      segments_.erase(victim);
      if (active_segment_ == number) active_segment_ = 0;
      victims.push_back(segment);
    }
  }
  evicted->insert(evicted->end(), dropped.begin(), dropped.end());
  if (!victims.empty()) {
    absl::MutexLock journal(&journal_mu_);
    const absl::Status unindexed = DropFromIndex(dropped, /*only_if_current=*/false);
    // Nobody knows these files any more: they go even if the index keeps naming them; the next start drops such
    // entries.
    UnlinkAll(victims);
    PERIGEE_RETURN_IF_ERROR(unindexed);
  }
  if (!enough) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the SSD tier's ", options_.capacity_bytes, " bytes are taken by writes under way; try again"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SsdLocation>> SsdTier::AllocateSpace(std::span<const Write> writes,
                                                                std::vector<Stored>* evicted) {
  absl::MutexLock allocate(&allocate_mu_);
  uint64_t total = 0;
  for (const Write& w : writes) total += w.head.size() + w.padded_payload.size();
  PERIGEE_RETURN_IF_ERROR(MakeRoom(total, evicted));
  PERIGEE_RETURN_IF_ERROR(CheckDiskSpace(total));
  std::vector<SsdLocation> out;
  for (const Write& w : writes) {
    SsdLocation location{.head_bytes = static_cast<uint32_t>(w.head.size()), .payload_bytes = w.meta.payload_bytes};
    const uint64_t bytes = location.record_bytes();
    const auto take = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      const auto it = segments_.find(active_segment_);
      if (it == segments_.end()) return false;
      Segment& s = *it->second;
      if (s.end_bytes > 0 && s.end_bytes + bytes > options_.segment_bytes) return false;
      location.segment = it->first;
      location.offset = s.end_bytes;
      s.end_bytes += bytes;
      s.last_used = ++clock_;
      ++s.writers;
      used_bytes_ += bytes;
      return true;
    };
    bool taken;
    {
      absl::MutexLock lock(&mu_);
      taken = take();
    }
    if (!taken) {
      const uint64_t number = next_segment_;
      absl::StatusOr<SegmentFile> file =
          SegmentFile::Open(absl::StrCat(options_.path, "/segments/", SegmentFileName(number)), /*create=*/true);
      absl::Status made = file.status();
      if (made.ok()) {
        ++next_segment_;
        made = SyncDirectory(options_.path + "/segments");
      }
      if (!made.ok()) {
        ReturnSpace(out, /*reuse=*/true);
        return made;
      }
      absl::MutexLock lock(&mu_);
      segments_.emplace(number, std::make_shared<Segment>(*std::move(file)));
      active_segment_ = number;
      take();
    }
    out.push_back(location);
  }
  return out;
}

// reuse: nothing in the index can point there, so the space may be handed out again where it is a segment's tail.
void SsdTier::ReturnSpace(std::span<const SsdLocation> locations, bool reuse) {
  std::vector<SegmentPtr> empty;
  {
    absl::MutexLock lock(&mu_);
    for (auto location = locations.rbegin(); location != locations.rend(); ++location) {
      const auto it = segments_.find(location->segment);
      if (it == segments_.end()) continue;
      Segment& s = *it->second;
      --s.writers;
      if (reuse && s.end_bytes == location->offset + location->record_bytes()) {
        s.end_bytes = location->offset;
        used_bytes_ -= location->record_bytes();
        // Cheap and rare (a failed write); gives the disk its blocks back before anybody else gets these bytes.
        const absl::Status truncated = s.file.Truncate(s.end_bytes);
        if (!truncated.ok()) spdlog::warn("{}", std::string(truncated.message()));
      }
      if (s.writers == 0 && s.records.empty() && it->first != active_segment_) {
        used_bytes_ -= s.end_bytes;
        empty.push_back(it->second);
        segments_.erase(it);
      }
    }
  }
  UnlinkAll(empty);
}

absl::Status SsdTier::WriteAndSync(std::span<const Write> writes, std::span<const SsdLocation> locations) {
  std::vector<std::pair<uint64_t, SegmentPtr>> touched;
  for (size_t i = 0; i < writes.size(); ++i) {
    if (touched.empty() || touched.back().first != locations[i].segment) {
      absl::MutexLock lock(&mu_);
      touched.emplace_back(locations[i].segment, segments_.at(locations[i].segment));
    }
    PERIGEE_RETURN_IF_ERROR(
        touched.back().second->file.Write(locations[i].offset, writes[i].head, writes[i].padded_payload));
  }
  for (const auto& [number, segment] : touched) PERIGEE_RETURN_IF_ERROR(segment->file.Sync());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SsdLocation>> SsdTier::Append(std::span<const Write> writes, std::vector<Stored>* evicted) {
  PERIGEE_ASSIGN_OR_RETURN(std::vector<SsdLocation> locations, AllocateSpace(writes, evicted));
  const absl::Status written = WriteAndSync(writes, locations);
  if (!written.ok()) {
    absl::MutexLock allocate(&allocate_mu_);
    ReturnSpace(locations, /*reuse=*/true);
    return written;
  }
  rocksdb::WriteBatch batch;
  for (size_t i = 0; i < writes.size(); ++i) {
    batch.Put(AsSlice(EncodeIndexKey(writes[i].id)),
              AsSlice(EncodeIndexValue(writes[i].id, locations[i], writes[i].meta)));
  }
  std::vector<SegmentPtr> empty;
  absl::MutexLock journal(&journal_mu_);
  const absl::Status journalled = index_->Write(&batch);
  if (!journalled.ok()) {
    ReturnSpace(locations, /*reuse=*/false);  // The entries may have reached the disk.
    return journalled;
  }
  {
    absl::MutexLock lock(&mu_);
    for (size_t i = 0; i < writes.size(); ++i) {
      const auto [it, inserted] = current_.emplace(writes[i].id, locations[i]);
      if (!inserted) {
        ForgetRecord(it->second, &empty);
        it->second = locations[i];
      }
      Segment& s = *segments_.at(locations[i].segment);
      s.records.emplace(locations[i].offset, writes[i].id);
      s.live_bytes += locations[i].record_bytes();
      live_bytes_ += locations[i].record_bytes();
      --s.writers;
    }
  }
  UnlinkAll(empty);
  return locations;
}

void SsdTier::ForgetRecord(const SsdLocation& location, std::vector<SegmentPtr>* empty) {
  const auto it = segments_.find(location.segment);
  if (it == segments_.end()) return;
  Segment& s = *it->second;
  if (s.records.erase(location.offset) == 0) return;
  s.live_bytes -= location.record_bytes();
  live_bytes_ -= location.record_bytes();
  if (s.records.empty() && s.writers == 0) {
    used_bytes_ -= s.end_bytes;
    if (active_segment_ == it->first) active_segment_ = 0;
    empty->push_back(it->second);
    segments_.erase(it);
  }
}

absl::Status SsdTier::DropFromIndex(std::span<const Stored> planes, bool only_if_current) {
  rocksdb::WriteBatch batch;
  {
    absl::MutexLock lock(&mu_);
    for (const Stored& plane : planes) {
      const auto it = current_.find(plane.id);
      // Evicted planes have left current_ already: an entry there is a newer record, which must stay.
      const bool drop = only_if_current ? it != current_.end() && it->second == plane.location : it == current_.end();
      if (drop) batch.Delete(AsSlice(EncodeIndexKey(plane.id)));
    }
  }
  if (batch.Count() == 0) return absl::OkStatus();
  return index_->Write(&batch);
}

absl::Status SsdTier::Remove(std::span<const Stored> planes) {
  if (planes.empty()) return absl::OkStatus();
  std::vector<SegmentPtr> empty;
  absl::MutexLock journal(&journal_mu_);
  PERIGEE_RETURN_IF_ERROR(DropFromIndex(planes, /*only_if_current=*/true));
  {
    absl::MutexLock lock(&mu_);
    for (const Stored& plane : planes) {
      const auto it = current_.find(plane.id);
      if (it == current_.end() || it->second != plane.location) continue;
      current_.erase(it);
      ForgetRecord(plane.location, &empty);
    }
  }
  UnlinkAll(empty);
  return absl::OkStatus();
}

void SsdTier::UnlinkAll(std::span<const SegmentPtr> segments) {
  for (const SegmentPtr& segment : segments) {
    const absl::Status unlinked = segment->file.Unlink();
    if (!unlinked.ok()) spdlog::warn("{}", std::string(unlinked.message()));
  }
}

absl::StatusOr<std::string> SsdTier::Read(const SsdLocation& location, std::span<std::byte> padded_payload) {
  SegmentPtr segment;
  {
    absl::MutexLock lock(&mu_);
    const auto it = segments_.find(location.segment);
    if (it == segments_.end()) return absl::NotFoundError(absl::StrCat("segment ", location.segment, " is gone"));
    segment = it->second;
    segment->last_used = ++clock_;
  }
  std::string head(location.head_bytes, '\0');
  PERIGEE_RETURN_IF_ERROR(
      segment->file.Read(location.offset, {reinterpret_cast<std::byte*>(head.data()), head.size()}, padded_payload));
  return head;
}

void SsdTier::Touch(uint64_t segment) {
  absl::MutexLock lock(&mu_);
  const auto it = segments_.find(segment);
  if (it != segments_.end()) it->second->last_used = ++clock_;
}

SsdStats SsdTier::Stats() const {
  absl::MutexLock lock(&mu_);
  return SsdStats{.used_bytes = used_bytes_,
                  .live_bytes = live_bytes_,
                  .segments = segments_.size(),
                  .lost_at_start = lost_at_start_};
}

}  // namespace perigee::kvstore
