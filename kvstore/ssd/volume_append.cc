// Space in segments, writing, group commit.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "kvstore/ssd/ssd_volume.h"

namespace perigee::kvstore {
namespace {

// How far ahead of the records a segment's file is allocated, since writes inside a file do not wait for each other:
// all of it, or this much on a disk that is nearly full. Allocating waits for the writes under way, so it is better
// early.
constexpr uint64_t kPreallocateBytes = uint64_t{32} << 20;

}  // namespace

absl::Status SsdVolume::CheckDiskSpace(uint64_t bytes, uint64_t* free_bytes) const {
  PERIGEE_ASSIGN_OR_RETURN(*free_bytes, files().FreeBytes(path_));
  if (options_.reserve_bytes == 0 || *free_bytes >= bytes + options_.reserve_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the disk of ", path_, " is full: ", bytes, " bytes wanted, ", *free_bytes, " available, ",
                   options_.reserve_bytes, " kept for the index; free space or lower the store's SSD capacity"));
}

absl::Status SsdVolume::MakeRoom(uint64_t bytes, std::vector<SsdDropped>* dropped) {
  const uint64_t capacity = options_.capacity_bytes;
  if (capacity == 0) return absl::OkStatus();
  if (bytes > capacity) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a write of ", bytes, " bytes; the SSD tier's ", path_, " has ", capacity));
  }
  for (;;) {
    absl::MutexLock journal(&journal_mu_);  // So that the victim's planes stay the same.
    SegmentPtr victim;
    std::vector<SsdIndex::Change> changes;
    {
      absl::MutexLock lock(&mu_);
      if (used_bytes_ + bytes <= capacity) return absl::OkStatus();
      for (const auto& [number, segment] : segments_) {
        if (segment->writers == 0 && (victim == nullptr || segment->last_used < victim->last_used)) victim = segment;
      }
      if (victim == nullptr) {
        return absl::ResourceExhaustedError(
            absl::StrCat("the SSD tier's ", capacity, " bytes are taken by writes under way; try again"));
      }
      for (const auto& [offset, id] : victim->records) changes.push_back({EncodeIndexKey(id), std::nullopt});
    }
    const absl::Status unindexed = index_->Write(changes, /*synced=*/true);
    if (!unindexed.ok()) {
      NoteWrite(unindexed);
      return unindexed;
    }
    {
      absl::MutexLock lock(&mu_);
      for (const auto& [offset, id] : victim->records) {
        const auto it = current_.find(id);
        if (it == current_.end()) continue;
        dropped->push_back({id, {it->second.number, it->second.location.payload_bytes}, SsdDropReason::kEvicted});
        current_.erase(it);
      }
      live_bytes_ -= victim->live_bytes;
      victim->live_bytes = 0;
      victim->records.clear();
      Leave(victim);
    }
    UnlinkAll({&victim, 1});
  }
}

void SsdVolume::Seal(SegmentPtr segment) {  // By value: the caller may name active_ itself.
  if (segment->sealed) return;
  segment->sealed = true;
  for (SegmentPtr& active : active_) {
    if (active == segment) active.reset();
  }
  sealed_.push_back(std::move(segment));
}

absl::StatusOr<SsdVolume::SegmentPtr> SsdVolume::NewSegment(Stream stream) {
  const uint64_t number = next_segment_;
  PERIGEE_ASSIGN_OR_RETURN(
      std::unique_ptr<File> file,
      files().Open(absl::StrCat(FolderOfSegments(), "/", SegmentFileName(number)), /*create=*/true));
  ++next_segment_;
  auto segment = std::make_shared<Segment>(number, std::move(file));
  const absl::Status synced = files().SyncFolder(FolderOfSegments());
  if (!synced.ok()) {
    UnlinkAll({&segment, 1});
    return synced;
  }
  absl::MutexLock lock(&mu_);
  if (active_[static_cast<size_t>(stream)] != nullptr) Seal(active_[static_cast<size_t>(stream)]);
  segments_.emplace(number, segment);
  active_[static_cast<size_t>(stream)] = segment;
  return segment;
}

void SsdVolume::PreallocateFor(const SegmentPtr& segment, uint64_t free_bytes) {
  uint64_t target;
  {
    absl::MutexLock lock(&mu_);
    if (segment->end_bytes <= segment->allocated_bytes || segment->sealed) return;
    const bool plenty = free_bytes / 8 > options_.segment_bytes + options_.reserve_bytes;
    target = plenty ? options_.segment_bytes : std::min(options_.segment_bytes, segment->end_bytes + kPreallocateBytes);
    target = std::max(segment->end_bytes, target);
    if (free_bytes < target - segment->allocated_bytes + options_.reserve_bytes + kPreallocateBytes) return;
    segment->allocated_bytes = target;
  }
  // A refusal costs speed only.
  segment->file->Preallocate(target).IgnoreError();
}

absl::StatusOr<std::vector<SsdVolume::Place>> SsdVolume::AllocateSpace(std::span<const SsdLocation> sizes,
                                                                       Stream stream) {
  std::vector<SsdDropped> dropped;
  std::vector<Place> places;
  const auto allocate = [&]() -> absl::Status {
    absl::MutexLock lock_allocation(&allocate_mu_);
    uint64_t total = 0;
    for (const SsdLocation& size : sizes) total += size.record_bytes();
    // Compaction gives back more than it takes, so it may pass the capacity for a moment.
    if (stream == Stream::kCallers) PERIGEE_RETURN_IF_ERROR(MakeRoom(total, &dropped));
    uint64_t free_bytes = 0;
    const absl::Status space = CheckDiskSpace(total, &free_bytes);
    if (!space.ok()) {
      NoteWrite(space);
      return space;
    }
    for (SsdLocation location : sizes) {
      const uint64_t bytes = location.record_bytes();
      SegmentPtr segment;
      {
        absl::MutexLock lock(&mu_);
        if (lost_) return absl::UnavailableError(absl::StrCat(path_, " is lost"));
        segment = active_[static_cast<size_t>(stream)];
        if (segment != nullptr && segment->end_bytes > 0 && segment->end_bytes + bytes > options_.segment_bytes) {
          segment = nullptr;
        }
      }
      if (segment == nullptr) {
        absl::StatusOr<SegmentPtr> made = NewSegment(stream);
        if (!made.ok()) {
          ReturnSpace(places, /*reuse=*/true);
          NoteWrite(made.status());
          return made.status();
        }
        segment = *std::move(made);
      }
      {
        absl::MutexLock lock(&mu_);
        location.segment = segment->number;
        location.offset = segment->end_bytes;
        segment->end_bytes += bytes;
        segment->last_used = ++clock_;
        ++segment->writers;
        used_bytes_ += bytes;
      }
      PreallocateFor(segment, free_bytes);
      places.push_back({segment, location});
    }
    return absl::OkStatus();
  };
  const absl::Status allocated = allocate();
  Tell(dropped);
  PERIGEE_RETURN_IF_ERROR(allocated);
  return places;
}

void SsdVolume::ReturnSpace(std::span<const Place> places, bool reuse) {
  std::vector<SegmentPtr> empty, cut;
  {
    absl::MutexLock lock(&mu_);
    for (auto place = places.rbegin(); place != places.rend(); ++place) {
      Segment& s = *place->segment;
      --s.writers;
      if (reuse && s.end_bytes == place->location.offset + place->location.record_bytes()) {
        s.end_bytes = place->location.offset;
        if (!lost_) used_bytes_ -= place->location.record_bytes();
        cut.push_back(place->segment);
      }
      if (active_[0] != place->segment && active_[1] != place->segment) DropIfEmpty(place->segment, &empty);
    }
  }
  // Gives the disk its blocks back before anybody else gets these bytes: allocate_mu_ is held.
  for (size_t i = 0; i < cut.size(); ++i) {
    if (std::find(cut.begin() + static_cast<std::ptrdiff_t>(i) + 1, cut.end(), cut[i]) != cut.end()) continue;
    uint64_t end;
    {
      absl::MutexLock lock(&mu_);
      end = cut[i]->end_bytes;
      cut[i]->allocated_bytes = end;
    }
    const absl::Status truncated = cut[i]->file->Truncate(end);
    if (!truncated.ok()) spdlog::warn("{}", std::string(truncated.message()));
  }
  UnlinkAll(empty);
}

absl::StatusOr<std::unique_ptr<SsdVolume::Pending>> SsdVolume::Begin(std::span<const SsdWrite* const> writes) {
  PERIGEE_RETURN_IF_ERROR(CheckWritable());
  auto pending = std::make_unique<Pending>(this);
  std::vector<SsdLocation> sizes;
  size_t head_bytes = 0;
  for (const SsdWrite* w : writes) {
    sizes.push_back({.head_bytes = static_cast<uint32_t>(w->head.size()), .payload_bytes = w->meta.payload_bytes});
    pending->commit.items.push_back({.id = w->id, .meta = w->meta});
    head_bytes += w->head.size();
  }
  pending->heads = AlignedBuffer(head_bytes);
  std::vector<Pieces> bytes;
  size_t at = 0;
  for (const SsdWrite* w : writes) {
    const std::span<std::byte> head = pending->heads.span().subspan(at, w->head.size());
    std::memcpy(head.data(), w->head.data(), w->head.size());
    at += w->head.size();
    bytes.push_back({head, {const_cast<std::byte*>(w->padded_payload.data()), w->padded_payload.size()}});
  }
  PERIGEE_RETURN_IF_ERROR(Write(*pending, sizes, bytes, Stream::kCallers));
  return pending;
}

absl::Status SsdVolume::Write(Pending& pending, std::span<const SsdLocation> sizes, std::span<const Pieces> bytes,
                              Stream stream) {
  PERIGEE_ASSIGN_OR_RETURN(pending.commit.places, AllocateSpace(sizes, stream));
  pending.left = std::make_unique<absl::BlockingCounter>(static_cast<int>(bytes.size()));
  std::vector<FileTransfer> transfers;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const Place& place = pending.commit.places[i];
    transfers.push_back({.file = place.segment->file.get(),
                         .kind = FileTransfer::Kind::kWrite,
                         .offset_bytes = place.location.offset,
                         .first = bytes[i][0],
                         .second = bytes[i][1],
                         .done = [&pending](const absl::Status& status) {
                           if (!status.ok()) {
                             absl::MutexLock lock(&pending.mu);
                             pending.written.Update(status);
                           }
                           pending.left->DecrementCount();
                         }});
  }
  files().Start(std::move(transfers));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SsdRecord>> SsdVolume::Finish(std::unique_ptr<Pending> pending) {
  absl::StatusOr<std::vector<SsdRecord>> records = CommitWritten(*pending);
  NoteWrite(records.status());
  return records;
}

absl::StatusOr<std::vector<SsdRecord>> SsdVolume::CommitWritten(Pending& pending) {
  Commit& commit = pending.commit;
  pending.left->Wait();
  {
    absl::MutexLock lock(&pending.mu);
    commit.status = pending.written;
  }
  if (!commit.status.ok()) {
    absl::MutexLock allocate(&allocate_mu_);
    if (!absl::IsResourceExhausted(commit.status)) {
      absl::MutexLock lock(&mu_);
      for (const Place& place : commit.places) Seal(place.segment);  // The next try goes elsewhere on the disk.
    }
    ReturnSpace(commit.places, /*reuse=*/true);
    return commit.status;
  }
  std::vector<Commit*> group;
  {
    absl::MutexLock lock(&commit_mu_);
    commits_.push_back(&commit);
    const auto turn = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(commit_mu_) { return commit.done || !leading_; };
    commit_mu_.Await(absl::Condition(&turn));
    if (!commit.done) {
      leading_ = true;
      group.swap(commits_);
    }
  }
  if (!group.empty()) {
    CommitGroup(group);
    absl::MutexLock lock(&commit_mu_);
    leading_ = false;
    for (Commit* member : group) member->done = true;
  }
  PERIGEE_RETURN_IF_ERROR(commit.status);
  std::vector<SsdRecord> records;
  for (const Commit::Item& item : commit.items) records.push_back({item.number, item.meta.payload_bytes});
  return records;
}

void SsdVolume::CommitGroup(std::span<Commit* const> group) {
  // Compaction's first: where a caller stores the same plane anew, his record wins.
  std::vector<Commit*> commits(group.begin(), group.end());
  std::stable_partition(commits.begin(), commits.end(),
                        [](const Commit* c) { return !c->items.empty() && c->items[0].moved != 0; });

  absl::flat_hash_map<Segment*, absl::Status> synced;
  for (const Commit* c : commits) {
    for (const Place& place : c->places) synced.try_emplace(place.segment.get());
  }
  {
    absl::BlockingCounter left(static_cast<int>(synced.size()));
    std::vector<FileTransfer> transfers;
    for (auto& [segment, status] : synced) {
      transfers.push_back({.file = segment->file.get(),
                           .kind = FileTransfer::Kind::kSync,
                           .done = [&left, out = &status](const absl::Status& s) {
                             *out = s;
                             left.DecrementCount();
                           }});
    }
    files().Start(std::move(transfers));
    left.Wait();
  }
  std::vector<Commit*> good, unsynced, unindexed;
  for (Commit* c : commits) {
    for (const Place& place : c->places) c->status.Update(synced.at(place.segment.get()));
    (c->status.ok() ? good : unsynced).push_back(c);
  }

  std::vector<SegmentPtr> empty;
  {
    absl::MutexLock journal(&journal_mu_);
    std::vector<SsdIndex::Change> changes;
    for (Commit* c : good) {
      for (Commit::Item& item : c->items) {
        if (item.moved == 0) continue;
        // The record that compaction has read does not say it. Gone meanwhile: the copy is void.
        if (const absl::StatusOr<IndexEntry> entry = EntryOf(item.id); entry.ok()) {
          item.meta.replicas = entry->meta.replicas;
        }
      }
    }
    {
      absl::MutexLock lock(&mu_);
      for (Commit* c : good) {
        if (lost_) c->status = absl::UnavailableError(absl::StrCat(path_, " is lost"));
        for (size_t i = 0; i < c->items.size() && !lost_; ++i) {
          Commit::Item& item = c->items[i];
          if (item.moved != 0) {
            const auto it = current_.find(item.id);
            if (it == current_.end() || it->second.number != item.moved) continue;  // Gone or replaced meanwhile.
          }
          item.stored = true;
          changes.push_back({EncodeIndexKey(item.id), EncodeIndexValue(item.id, c->places[i].location, item.meta)});
        }
      }
    }
    absl::Status written;
    if (!changes.empty()) written = index_->Write(changes, /*synced=*/true);
    absl::MutexLock lock(&mu_);
    if (lost_) written.Update(absl::UnavailableError(absl::StrCat(path_, " is lost")));
    for (Commit* c : good) {
      c->status.Update(written);
      if (!c->status.ok()) {
        unindexed.push_back(c);
        continue;
      }
      for (size_t i = 0; i < c->items.size(); ++i) {
        Commit::Item& item = c->items[i];
        const auto& [segment, location] = c->places[i];
        --segment->writers;
        if (!item.stored) {
          if (active_[0] != segment && active_[1] != segment) DropIfEmpty(segment, &empty);
          continue;
        }
        const auto [it, inserted] = current_.try_emplace(item.id);
        segment->records.emplace(location.offset, item.id);
        segment->live_bytes += location.record_bytes();
        live_bytes_ += location.record_bytes();
        if (!inserted) ForgetRecord(it->second.location, &empty);
        if (item.moved == 0) it->second.number = (number_ << 56) | ++next_record_;
        item.number = it->second.number;
        it->second.location = location;
        if (item.moved == 0) {
          counters_.written_bytes += location.record_bytes();
          written_since_start_ += location.record_bytes();
        } else {
          counters_.compacted_bytes += location.record_bytes();
          compacted_since_start_ += location.record_bytes();
        }
      }
    }
  }
  UnlinkAll(empty);
  if (unsynced.empty() && unindexed.empty()) return;
  absl::MutexLock allocate(&allocate_mu_);
  for (const Commit* c : unsynced) {
    {
      absl::MutexLock lock(&mu_);
      for (const Place& place : c->places) Seal(place.segment);  // What a failed sync did is unknown.
    }
    ReturnSpace(c->places, /*reuse=*/true);
  }
  // The entries may have reached the disk.
  for (const Commit* c : unindexed) ReturnSpace(c->places, /*reuse=*/false);
}

}  // namespace perigee::kvstore
