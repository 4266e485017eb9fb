// The store's own thread: planes whose time has passed, room ahead of demand, planes moved to slower tiers rather than
// dropped; and what a remote tier holds from earlier starts.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "base/status.h"
#include "kvstore/remote/batch.h"
#include "kvstore/ssd/aligned_buffer.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {
namespace {

constexpr absl::Duration kTidyEvery = absl::Milliseconds(200);
constexpr uint64_t kBatchBytes = uint64_t{32} << 20;  // Moved at a time, and pinned meanwhile.
constexpr size_t kBatchPlanes = 256;
// Of the SSD's capacity that records may fill: the rest lets segments be cleaned before they have to go as a whole.
constexpr double kSsdFull = 0.90, kSsdEnough = 0.87;
// Of the time that a write to a slower tier takes, what others lose by it.
constexpr double kWriteBusy = 0.1;
// One batch to the remote tier holds up the room that others wait for.
constexpr absl::Duration kDemotionDeadline = absl::Seconds(5);
constexpr int kMostPinnedWait = 256;  // Passes.
constexpr size_t kScanPlanes = 256;
constexpr absl::Duration kScanAgain = absl::Milliseconds(100), kScanAgainMost = absl::Seconds(5);

}  // namespace

void Store::Tidy() { core_->Tidy(); }

void Store::Core::TidyLoop() {
  for (;;) {
    {
      absl::MutexLock lock(&mu);
      const auto called = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return untidy || stopping; };
      mu.AwaitWithTimeout(absl::Condition(&called), kTidyEvery);
      if (stopping) return;
    }
    Tidy();
  }
}

void Store::Core::Tidy() {
  absl::MutexLock tidying(&tidy_mu);
  bool wants_room = false;
  {
    absl::MutexLock lock(&mu);
    untidy = false;
    wants_room = table.WantsRoom();
  }
  if (wants_room) {
    PlaneTable::Room room = PlaneTable::MakeRoom();
    absl::MutexLock lock(&mu);
    table.AddRoom(std::move(room));
  }
  ExpirePlanes();
  RemoveUnremoved();
  std::vector<LoadJob> jobs;
  {
    absl::MutexLock lock(&mu);
    // Ever more rarely: others are not to go again and again for what does not fit.
    if (!pinned_outside.empty() && pinned_passes++ >= pinned_wait) {
      for (const EntryId id : std::exchange(pinned_outside, {})) BringPinned(id);
      pinned_passes = 0;
      pinned_wait = pinned_outside.empty() ? 0 : std::min(2 * pinned_wait + 1, kMostPinnedWait);
    }
    jobs = TakeLoads();
  }
  Begin(std::move(jobs));
  FreeDram();
  while (FreeSsd()) {
  }
}

absl::Status Store::Core::RemoveFromSsd(std::span<const SsdStored> planes) {
  return planes.empty() ? absl::OkStatus() : ssd->Remove(planes);
}

absl::Status Store::Core::RemoveClaimedFromRemote(const std::vector<PlaneId>& names) {
  const absl::Status removed = DeleteAll(*options.remote, names, absl::Now() + options.remote_deadline);
  absl::MutexLock lock(&mu);
  Unclaim(names);
  if (removed_since_listed) removed_since_listed->insert(names.begin(), names.end());
  if (!removed.ok()) unremoved.insert(names.begin(), names.end());
  return removed;
}

void Store::Core::RemoveUnremoved() {
  std::vector<PlaneId> names;
  {
    absl::MutexLock lock(&mu);
    if (unremoved.empty() || stopping || !RemoteAnswers()) return;
    for (auto it = unremoved.begin(); it != unremoved.end() && names.size() < kBatchPlanes;) {
      const EntryId id = table.Find(*it);
      const bool stored_again = id != kNoEntry && table[id].Is(kOnRemote);
      if (stored_again || busy.insert(*it).second) {
        if (!stored_again) names.push_back(*it);
        unremoved.erase(it++);
      } else {
        ++it;
      }
    }
  }
  if (names.empty()) return;
  const absl::Status removed = RemoveClaimedFromRemote(names);
  if (!removed.ok()) spdlog::warn("planes to be removed from the remote tier: {}", std::string(removed.message()));
}

void Store::Core::ExpireDue() {
  if (plane_ends.size() == 0) return;
  const int64_t now = WallUs();
  for (auto due = plane_ends.Earliest(); due && due->when <= now; due = plane_ends.Earliest()) {
    const auto id = static_cast<EntryId>(due->what);
    const PlaneId name = table[id].id;
    if (const auto record = table.SsdRecordOf(id)) expired_on_ssd.push_back({name, *record});
    // Claimed, so that who stores it again does not find the old one there.
    if (table[id].Is(kOnRemote) && busy.insert(name).second) expired_on_remote.push_back(name);
    ++stats.expired_planes;
    Drop(id, MissReason::kExpired);
    untidy = true;
  }
}

void Store::Core::ExpirePlanes() {
  std::vector<SsdStored> stored;
  std::vector<PlaneId> remote;
  {
    absl::MutexLock lock(&mu);
    ExpireDue();
    stored.swap(expired_on_ssd);
    remote.swap(expired_on_remote);
  }
  // What could not be removed has its end written beside it: the next start removes it.
  if (const absl::Status removed = RemoveFromSsd(stored); !removed.ok()) {
    spdlog::warn("planes whose time has passed: {}", std::string(removed.message()));
  }
  if (remote.empty()) return;
  const absl::Status removed = RemoveClaimedFromRemote(remote);
  if (!removed.ok()) spdlog::warn("planes whose time has passed: {}", std::string(removed.message()));
}

void Store::Core::FreeDram() {
  // Once begun, until there is enough.
  for (bool begun = false;; begun = true) {
    std::vector<EntryId> moving;
    const bool remote = RemoteAnswers();
    {
      absl::MutexLock lock(&mu);
      if (stopping) return;
      const bool low = slab.free_bytes() < (begun ? HighBytes() : LowBytes());
      uint64_t moving_bytes = 0;
      while (moving_bytes < kBatchBytes) {
        const bool more_room = low && slab.free_bytes() + moving_bytes < HighBytes();
        const std::optional<uint32_t> gives = dram_quotas.MustGive(0, 0);  // A tenant over its quota, first.
        if (!more_room && (!gives || !moving.empty())) break;
        std::optional<EntryId> victim = DramVictim(gives);
        if (!victim && more_room) victim = DramVictim(std::nullopt);
        if (!victim) break;
        bool worth = false;
        if (LastCopy(*victim) && (ssd || remote)) {
          PlaneFacts facts = DramFacts(*victim);
          facts.past = dram_policy->PastOf(*victim);
          const uint64_t write_us = (ssd ? ssd_rate : remote_rate).EstimateUs(facts.payload_bytes);
          worth = (ssd ? ssd_policy : dram_policy)->Admit(facts, kWriteBusy * static_cast<double>(write_us)) &&
                  busy.insert(table[*victim].id).second;
        }
        if (!worth) {
          EvictFromDram(*victim);
          continue;
        }
        Pin(*victim);
        moving.push_back(*victim);
        moving_bytes += RoundUpToPage(table[*victim].payload_bytes);
      }
    }
    if (moving.empty()) return;
    MoveOut(moving);
  }
}

void Store::Core::MoveOut(std::span<const EntryId> planes) {
  struct Moving {
    PlaneId id;
    PlaneMeta meta;
    std::string header;
    Extent extent;
  };
  std::vector<Moving> all;
  {
    absl::MutexLock lock(&mu);
    for (const EntryId id : planes) {
      Moving m{table[id].id, table.MetaOf(id), std::string(headers.Get(table[id].header)), table.ExtentOf(id)};
      m.meta.ttl_s = TtlSeconds(id);
      all.push_back(std::move(m));
    }
  }
  absl::StatusOr<std::vector<SsdRecord>> records = absl::UnavailableError("no SSD");
  std::vector<absl::Status> put(all.size(), absl::UnavailableError("not tried"));
  if (ssd) {
    std::vector<SsdWrite> writes;
    for (Moving& m : all) {
      if (const auto header = pod::DecodePlaneHeader(m.header); header.ok() && header->has_parent) {
        m.meta.parent = header->parent;
      }
      writes.push_back(
          {.id = m.id,
           .meta = m.meta,
           .head = EncodeRecordHead(m.id, m.header, m.meta.payload_bytes, m.meta.created_unix_us, m.meta.ttl_s),
           .padded_payload = Memory(m.extent, RoundUpToPage(m.meta.payload_bytes))});
    }
    records = ssd->Append(writes);
    if (!records.ok()) spdlog::warn("demotion to the SSD: {}", std::string(records.status().message()));
  } else {
    std::vector<RemotePut> puts;
    for (const Moving& m : all) {
      puts.push_back({.id = m.id,
                      .encoded_header = m.header,
                      .payload = Memory(m.extent, m.meta.payload_bytes),
                      .created_unix_us = m.meta.created_unix_us,
                      .ttl_s = m.meta.ttl_s});
    }
    put = PutAll(*options.remote, std::move(puts), absl::Now() + std::min(options.remote_deadline, kDemotionDeadline));
    const auto failed = std::find_if(put.begin(), put.end(), [](const absl::Status& status) { return !status.ok(); });
    if (failed != put.end()) spdlog::warn("demotion to the remote tier: {}", std::string(failed->message()));
  }
  std::vector<SsdStored> unwanted;
  std::vector<PlaneId> unwanted_remote;
  {
    absl::MutexLock lock(&mu);
    for (size_t i = 0; i < planes.size(); ++i) {
      const EntryId id = planes[i];
      const bool dead = table[id].Is(kDead);  // Deleted meanwhile.
      if (records.ok()) {
        if (dead) {
          unwanted.push_back({all[i].id, (*records)[i]});
        } else {
          EnterSsd(id, (*records)[i]);
          ++stats.demoted_to_ssd;
        }
      } else if (put[i].ok()) {
        if (dead) {
          unwanted_remote.push_back(all[i].id);
        } else {
          SetOnRemote(id, true);
          ++stats.demoted_to_remote;
        }
      }
      if (!(dead && put[i].ok())) busy.erase(all[i].id);
      Unpin(id);
      if (!dead && EvictableBytes(id) > 0) EvictFromDram(id);
    }
  }
  absl::Status removed = RemoveFromSsd(unwanted);
  if (!unwanted_remote.empty()) removed.Update(RemoveClaimedFromRemote(unwanted_remote));
  if (!removed.ok()) spdlog::warn("planes deleted while they moved: {}", std::string(removed.message()));
}

std::optional<EntryId> Store::Core::SsdVictim(std::optional<uint32_t> account, bool soft_pinned) {
  return ssd_policy->Victim(account, [this, soft_pinned](EntryId id) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return table[id].pins == 0 && (soft_pinned || !table[id].Is(kSoftPinned)) && !table[id].Is(kHardPinned);
  });
}

bool Store::Core::FreeSsd() {
  if (!ssd) return false;
  std::vector<SsdStored> stored;
  std::vector<EntryId> copying;
  const bool remote = RemoteAnswers();
  {
    absl::MutexLock lock(&mu);
    if (stopping) return false;
    const auto capacity = static_cast<double>(options.ssd->capacity_bytes);
    const auto full = [&](double share) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return capacity > 0 && static_cast<double>(ssd_bytes) > share * capacity;
    };
    if (!full(kSsdFull) && !ssd_quotas.MustGive(0, 0)) return false;
    uint64_t copying_bytes = 0;
    while (stored.size() < kBatchPlanes && copying_bytes < kBatchBytes) {
      const auto gives = ssd_quotas.MustGive(0, 0);
      if (!gives && !full(kSsdEnough)) break;
      std::optional<EntryId> victim = SsdVictim(gives, /*soft_pinned=*/false);
      if (!victim && gives && full(kSsdEnough)) victim = SsdVictim(std::nullopt, /*soft_pinned=*/false);
      if (!victim) victim = SsdVictim(gives, /*soft_pinned=*/true);
      if (!victim && gives && full(kSsdEnough)) victim = SsdVictim(std::nullopt, /*soft_pinned=*/true);
      if (!victim) break;
      bool worth = false;
      if (remote && !table[*victim].Is(kOnRemote)) {
        PlaneFacts facts = SsdFacts(*victim);
        facts.past = ssd_policy->PastOf(*victim);
        const uint64_t write_us = remote_rate.EstimateUs(facts.payload_bytes);
        worth = ssd_policy->Admit(facts, kWriteBusy * static_cast<double>(write_us)) &&
                busy.insert(table[*victim].id).second;
      }
      if (worth) {
        Pin(*victim);  // And is no victim again.
        copying.push_back(*victim);
        copying_bytes += table[*victim].payload_bytes;
        if (copying.size() == kBatchPlanes) break;
        continue;
      }
      stored.push_back({table[*victim].id, *table.SsdRecordOf(*victim)});
      ++stats.ssd_evictions;
      LeaveSsd(*victim, /*evicted=*/true);
      DropIfNowhere(*victim, MissReason::kEvicted);
    }
  }
  if (!copying.empty()) CopyToRemote(copying);
  {
    absl::MutexLock lock(&mu);
    for (const EntryId id : copying) {
      if (const auto record = table.SsdRecordOf(id); record && !table[id].Is(kDead)) {
        stored.push_back({table[id].id, *record});
        ++stats.ssd_evictions;
        LeaveSsd(id, /*evicted=*/true);
      }
      busy.erase(table[id].id);
      Unpin(id);
    }
  }
  const absl::Status removed = RemoveFromSsd(stored);
  if (!removed.ok()) spdlog::warn("eviction from the SSD: {}", std::string(removed.message()));
  return removed.ok() && !stored.empty();
}

void Store::Core::CopyToRemote(std::span<const EntryId> planes) {
  struct Copy {
    std::shared_ptr<AlignedBuffer> buffer;  // Where it is not in DRAM.
    std::optional<RemotePut> put;
  };
  std::vector<Copy> copies(planes.size());
  for (size_t i = 0; i < planes.size(); ++i) {
    PlaneId name;
    std::optional<SsdRecord> record;
    {
      absl::MutexLock lock(&mu);
      const EntryId id = planes[i];
      if (table[id].Is(kDead)) continue;
      name = table[id].id;
      record = table.SsdRecordOf(id);
      if (Resident(id)) {
        copies[i].put = {.id = name,
                         .encoded_header = std::string(headers.Get(table[id].header)),
                         .payload = Memory(table.ExtentOf(id), table[id].payload_bytes),
                         .created_unix_us = table.details(id).created_unix_us,
                         .ttl_s = TtlSeconds(id)};
        continue;
      }
    }
    if (!record) continue;
    copies[i].buffer = std::make_shared<AlignedBuffer>(RoundUpToPage(record->payload_bytes));
    const std::span<std::byte> memory = copies[i].buffer->span();
    const absl::StatusOr<std::string> head = ssd->Read(name, *record, memory);
    if (!head.ok()) continue;
    absl::StatusOr<RecordHead> checked = VerifyRecord(*head, memory, name, record->payload_bytes);
    if (!checked.ok()) continue;  // It goes now, in any case.
    copies[i].put = {.id = name,
                     .encoded_header = std::move(checked->encoded_header),
                     .payload = memory.first(record->payload_bytes),
                     .created_unix_us = checked->created_unix_us,
                     .ttl_s = checked->ttl_s};
  }
  std::vector<RemotePut> puts;
  std::vector<size_t> places;
  for (size_t i = 0; i < copies.size(); ++i) {
    if (!copies[i].put) continue;
    puts.push_back(*std::move(copies[i].put));
    places.push_back(i);
  }
  const std::vector<absl::Status> put =
      PutAll(*options.remote, std::move(puts), absl::Now() + std::min(options.remote_deadline, kDemotionDeadline));
  std::vector<PlaneId> unwanted;
  {
    absl::MutexLock lock(&mu);
    for (size_t i = 0; i < put.size(); ++i) {
      const EntryId id = planes[places[i]];
      if (!put[i].ok()) {
        spdlog::warn("demotion to the remote tier: {}", std::string(put[i].message()));
      } else if (table[id].Is(kDead)) {
        unwanted.push_back(table[id].id);
      } else {
        SetOnRemote(id, true);
        ++stats.demoted_to_remote;
      }
    }
  }
  if (unwanted.empty()) return;
  // Claimed until FreeSsd has done with them.
  const absl::Status removed = DeleteAll(*options.remote, unwanted, absl::Now() + options.remote_deadline);
  {
    absl::MutexLock lock(&mu);
    if (removed_since_listed) removed_since_listed->insert(unwanted.begin(), unwanted.end());
  }
  if (!removed.ok()) spdlog::warn("planes deleted while they moved: {}", std::string(removed.message()));
}

bool Store::Core::FreeEntry(std::vector<SsdStored>* stored) {
  std::optional<EntryId> victim;
  if (ssd) {
    victim = SsdVictim(std::nullopt, /*soft_pinned=*/false);
  }
  if (!victim) victim = DramVictim(std::nullopt);
  if (!victim) return false;
  stats.dram_evictions += table[*victim].Is(kInDram);
  if (const auto record = table.SsdRecordOf(*victim)) {
    stored->push_back({table[*victim].id, *record});
    ++stats.ssd_evictions;
  } else if (LastCopy(*victim)) {
    ++stats.dram_only_evictions;
  }
  Drop(*victim, MissReason::kEvicted);
  return true;
}

void Store::Core::NoteSsdDrops(std::span<const SsdDropped> dropped) {
  if (dropped.empty()) return;
  absl::MutexLock lock(&mu);
  for (const SsdDropped& gone : dropped) {
    const bool evicted = gone.reason == SsdDropReason::kEvicted;
    const bool wrong = gone.reason == SsdDropReason::kWrong;
    if (evicted) ++stats.ssd_evictions;
    const EntryId id = table.Find(gone.id);
    if (id == kNoEntry || table.SsdRecordOf(id) != gone.record) continue;
    if (wrong) ++stats.checksum_failures;
    LeaveSsd(id, evicted);
    // Where DRAM has it, or is just getting it, it stays for now.
    DropIfNowhere(id, evicted ? MissReason::kEvicted : wrong ? MissReason::kChecksum : MissReason::kDiskLost);
  }
}

void Store::Core::AwaitIdle(std::span<const PlaneId> names) {
  for (;;) {
    const auto first =
        std::find_if(names.begin(), names.end(),
                     [this](const PlaneId& name) ABSL_NO_THREAD_SAFETY_ANALYSIS { return busy.contains(name); });
    if (first == names.end()) return;
    const auto idle = [this, &first]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return !busy.contains(*first); };
    mu.Await(absl::Condition(&idle));
  }
}

void Store::Core::Claim(std::span<const PlaneId> names) {
  AwaitIdle(names);
  busy.insert(names.begin(), names.end());
}

void Store::Core::Unclaim(std::span<const PlaneId> names) {
  for (const PlaneId& name : names) busy.erase(name);
}

void Store::Core::ScanRemote() {
  std::string token;
  absl::Duration again = kScanAgain;
  for (;;) {
    {
      absl::MutexLock lock(&mu);
      removed_since_listed.emplace();
    }
    const absl::Time deadline = absl::Now() + options.remote_deadline;
    absl::Status status;
    absl::StatusOr<RemoteListPage> page = ListNow(*options.remote, token, kScanPlanes, deadline);
    if (page.ok() && !page->planes.empty()) {
      const auto heads = StatNow(*options.remote, page->planes, deadline);
      status = heads.status();
      if (heads.ok()) {
        absl::MutexLock lock(&mu);
        for (size_t i = 0; i < heads->size() && !stopping; ++i) {
          const absl::StatusOr<RecordHead>& head = (*heads)[i];
          if (!head.ok()) {
            // Gone, or wrong: not ours to judge before somebody wants it. Else it may be there another time.
            const bool judged = absl::IsNotFound(head.status()) || absl::IsDataLoss(head.status()) ||
                                absl::IsFailedPrecondition(head.status());
            if (!judged) status = head.status();
            continue;
          }
          if (busy.contains(page->planes[i]) || removed_since_listed->contains(page->planes[i])) continue;
          const bool is_new = table.Find(page->planes[i]) == kNoEntry;
          const EntryId id = Insert(page->planes[i], MetaOf(head->header, head->created_unix_us, head->ttl_s));
          if (id == kNoEntry) {
            spdlog::error("the remote tier holds more planes than the store's index: the others stay unknown");
            removed_since_listed.reset();
            return;
          }
          SetOnRemote(id, true);
          if (is_new) events.Stored(page->planes[i], head->header.payload_bytes, head->header.tenant, WallUs());
        }
      }
    }
    if (page.ok() && status.ok()) {
      token = page->next_page_token;
      again = kScanAgain;
    } else {
      spdlog::warn("the remote tier's planes cannot be listed yet: {}",
                   std::string((page.ok() ? status : page.status()).message()));
    }
    absl::MutexLock lock(&mu);
    removed_since_listed.reset();
    if (page.ok() && status.ok()) {
      if (token.empty()) remote_listed = true;
      if (stopping || token.empty()) return;
      continue;
    }
    const auto called = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return stopping; };
    if (mu.AwaitWithTimeout(absl::Condition(&called), again)) return;
    again = std::min(2 * again, kScanAgainMost);
  }
}

}  // namespace perigee::kvstore
