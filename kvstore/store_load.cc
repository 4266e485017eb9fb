// Planes on their way from a slower tier into DRAM.
//
// A load has the plane pinned and its extent, from StartLoad to Finish. It waits in a queue (what somebody waits for
// before what is read ahead) until few enough are under way at the tiers; until then it can be dropped. The tiers'
// threads hand in what came; threads of the store verify it.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "base/status.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {
namespace {

// Under way at the tiers: enough to keep disks busy, few enough that what is begun soon ends.
constexpr size_t kMostBegun = 64;
constexpr uint64_t kMostBytesBegun = uint64_t{128} << 20;
constexpr absl::Duration kRefusedWait = absl::Milliseconds(2);

}  // namespace

void Store::Core::StartLoad(EntryId id, Extent extent, bool ahead) {
  table[id].Set(kLoading);
  EnterDram(id, extent);
  Pin(id);
  loads[id].ahead = ahead;
  LoadQueue& queue = QueueOf(id);
  (ahead ? queue.ahead : queue.wanted).push_back(id);
}

void Store::Core::WaitFor(EntryId id, LoadWaiter* waiter) {
  LoadState& load = loads.at(id);
  if (load.ahead) {
    load.ahead = false;
    if (!load.begun) QueueOf(id).wanted.push_back(id);
  }
  load.waiters.push_back(waiter);
  ++waiter->left;
}

void Store::Core::GiveUp(std::span<const EntryId> ids, LoadWaiter* waiter) {
  for (const EntryId id : ids) {
    if (id == kNoEntry) continue;
    if (const auto it = loads.find(id); it != loads.end()) std::erase(it->second.waiters, waiter);
    Unpin(id);
    DropLoad(id);
  }
}

bool Store::Core::DropLoad(EntryId id) {
  const auto it = loads.find(id);
  // The load's own pin is the only one.
  if (it == loads.end() || it->second.begun || !it->second.waiters.empty() || table[id].pins > 1 ||
      table[id].Is(kHardPinned)) {
    return false;
  }
  loads.erase(it);
  ++stats.cancelled_reads;
  if (!table[id].Is(kDead)) LeaveDram(id, /*evicted=*/false);
  Unpin(id);
  return true;
}

bool Store::Core::LoadAhead(EntryId id) {
  if (table[id].Is(kInDram)) return false;
  const uint64_t bytes = table[id].payload_bytes, room = RoundUpToPage(bytes);
  const uint32_t account = dram_quotas.NumberOf(table.tenants().Name(table[id].tenant));
  if (slab.free_bytes() < room + LowBytes() || dram_quotas.MustGive(account, room) == account) return false;
  const std::optional<Extent> extent = slab.Allocate(bytes);
  if (!extent) return false;
  StartLoad(id, *extent, /*ahead=*/true);
  return true;
}

void Store::Core::BringPinned(EntryId id) {
  if (table[id].Is(kDead) || !table[id].Is(kHardPinned) || table[id].Is(kInDram)) return;
  const uint32_t account = dram_quotas.NumberOf(table.tenants().Name(table[id].tenant));
  Pin(id);  // Making room must not drop it.
  if (const std::optional<Extent> extent = AllocateExtent(table[id].payload_bytes, account)) {
    StartLoad(id, *extent, /*ahead=*/true);
  } else if (std::find(pinned_outside.begin(), pinned_outside.end(), id) == pinned_outside.end()) {
    pinned_outside.push_back(id);
  }
  Unpin(id);
}

void Store::Core::ReadAhead(EntryId distant) {
  uint64_t left = options.read_ahead_bytes;
  for (EntryId id = Next(distant); id != kNoEntry && table[id].payload_bytes <= left; id = Next(id)) {
    left -= table[id].payload_bytes;
    if (!table[id].Is(kInDram) && !LoadAhead(id)) return;
  }
}

std::vector<LoadJob> Store::Core::TakeLoads() {
  std::vector<LoadJob> jobs;
  if (stopping) return jobs;
  for (LoadQueue* const queue : {&from_ssd, &from_remote}) {
    for (std::deque<EntryId> LoadQueue::*const list : {&LoadQueue::wanted, &LoadQueue::ahead}) {
      std::deque<EntryId>& ids = queue->*list;
      while (!ids.empty() && queue->begun < kMostBegun && (queue->begun == 0 || queue->bytes_begun < kMostBytesBegun)) {
        const EntryId id = ids.front();
        ids.pop_front();
        const auto it = loads.find(id);
        if (it == loads.end() || it->second.begun) continue;
        LoadQueue& from = QueueOf(id);
        if (queue == &from_ssd && &from != queue) {  // Its SSD copy has gone.
          (from.*list).push_back(id);
          continue;
        }
        it->second.begun = true;
        const uint64_t bytes = table[id].payload_bytes;
        ++from.begun;
        from.bytes_begun += bytes;
        const std::optional<SsdRecord> record = &from == &from_ssd ? table.SsdRecordOf(id) : std::nullopt;
        const absl::Time now = absl::Now();
        (record ? ssd_rate : remote_rate).Begin(now);
        jobs.push_back({.entry = id,
                        .id = table[id].id,
                        .payload_bytes = bytes,
                        .padded = Memory(table.ExtentOf(id), RoundUpToPage(bytes)),
                        .record = record,
                        .deadline = now + options.remote_deadline});
      }
    }
  }
  return jobs;
}

void Store::Core::Begin(std::vector<LoadJob> jobs) {
  const auto hand_in = [this](LoadEnd end) {
    absl::MutexLock lock(&ends_mu);
    ends.push_back(std::move(end));
  };
  std::vector<SsdRead> reads;
  for (LoadJob& job : jobs) {
    if (job.record) {
      reads.push_back({job.id, *job.record, job.padded, [hand_in, job](absl::StatusOr<std::string> head) {
                         const absl::Status status = head.status();
                         hand_in(
                             {.job = job, .status = status, .head = head.ok() ? *std::move(head) : "", .record = {}});
                       }});
      continue;
    }
    if (!options.remote) {  // Its only copy went from the SSD before it could be read.
      hand_in({.job = job, .status = absl::NotFoundError("it has gone"), .head = {}, .record = {}});
      continue;
    }
    const auto begun =
        options.remote->Get({.id = job.id,
                             .payload_bytes = job.payload_bytes,
                             .offset_bytes = 0,
                             .destination = job.padded.first(job.payload_bytes)},
                            job.deadline, [hand_in, job](absl::StatusOr<RecordHead> record) {
                              const absl::Status status = record.status();
                              hand_in({.job = job,
                                       .status = status,
                                       .head = {},
                                       .record = record.ok() ? std::optional(*std::move(record)) : std::nullopt});
                            });
    absl::MutexLock lock(&mu);
    if (begun.ok()) {
      if (const auto it = loads.find(job.entry); it != loads.end()) it->second.operation = *begun;
      if (stopping) options.remote->Cancel(*begun);
      continue;
    }
    const bool again = absl::IsAborted(begun.status()) && !stopping && absl::Now() < job.deadline;
    absl::MutexLock ends_lock(&ends_mu);
    if (again) {
      refused.push_back(std::move(job));
    } else {
      ends.push_back({.job = job, .status = begun.status(), .head = {}, .record = {}});
    }
  }
  if (!reads.empty()) ssd->ReadAsync(std::move(reads));
}

void Store::Core::FinishLoads() {
  for (;;) {
    std::optional<LoadEnd> end;
    std::vector<LoadJob> again;
    {
      absl::MutexLock lock(&ends_mu);
      const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(ends_mu) { return !ends.empty() || no_more_ends; };
      const auto work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(ends_mu) {
        return !ends.empty() || no_more_ends || !refused.empty();
      };
      ends_mu.Await(absl::Condition(&work));
      if (!refused.empty()) {
        ends_mu.AwaitWithTimeout(absl::Condition(&some), kRefusedWait);
        again.swap(refused);
      }
      if (!ends.empty()) {
        end = std::move(ends.front());
        ends.pop_front();
      } else if (again.empty() && no_more_ends) {
        return;
      }
    }
    Begin(std::move(again));
    if (end) Finish(*std::move(end));
  }
}

void Store::Core::Finish(LoadEnd end) {
  const LoadJob& job = end.job;
  absl::StatusOr<RecordHead> record = absl::UnknownError("");
  if (!end.status.ok()) {
    record = end.status;
  } else if (end.record) {
    record = *std::move(end.record);
  } else {
    record = VerifyRecord(end.head, job.padded, job.id, job.payload_bytes);
  }
  std::vector<LoadJob> next;
  std::optional<SsdStored> wrong;
  bool wrong_on_remote = false, again = false;
  {
    absl::MutexLock lock(&mu);
    const EntryId id = job.entry;
    LoadQueue& from = job.record ? from_ssd : from_remote;
    --from.begun;
    from.bytes_begun -= job.payload_bytes;
    (job.record ? ssd_rate : remote_rate).End(record.ok() ? job.payload_bytes : 0, absl::Now());
    PlaneEntry& e = table[id];
    LoadState& load = loads.at(id);
    HeaderArena::Handle header = HeaderArena::kNone;
    if (record.ok()) header = headers.Add(record->encoded_header);
    if (header != HeaderArena::kNone) {
      e.header = header;
      e.Set(kLoading, false);
      if (load.ahead) ++stats.promoted_ahead;
      if (ssd && table.details(id).ssd_number != 0 && !e.Is(kDead)) ssd_policy->Unpinned(id);
    } else if (job.record) {
      // Bytes that are wrong or unreadable must never be served. (NOT_FOUND: its segment was evicted meanwhile.)
      const bool evicted = absl::IsNotFound(record.status());
      const bool unreadable = absl::IsUnavailable(record.status());
      const bool known = !e.Is(kDead) && table.SsdRecordOf(id) == job.record;  // Else somebody else was first.
      if (unreadable) {  // It may be read another time; the disk tier gives up disks that stay so.
        spdlog::error("not read: {}", std::string(record.status().message()));
      } else if (!evicted) {
        if (known) ++stats.checksum_failures;
        wrong = {e.id, *job.record};
        spdlog::error("quarantined: {}", std::string(record.status().message()));
      }
      if (known && !unreadable) LeaveSsd(id, evicted);
      if (!e.Is(kDead) && e.Is(kOnRemote)) {  // There is another copy: nobody need know.
        again = true;
        load.begun = false;
        load.past_ssd = true;
        from_remote.wanted.push_front(id);
      } else if (!e.Is(kDead)) {
        LeaveDram(id, /*evicted=*/false);
        DropIfNowhere(id, evicted ? MissReason::kEvicted : unreadable ? MissReason::kDiskLost : MissReason::kChecksum);
      }
    } else if (!e.Is(kDead)) {
      const bool gone = absl::IsNotFound(record.status());
      wrong_on_remote = absl::IsDataLoss(record.status()) || absl::IsFailedPrecondition(record.status());
      if (wrong_on_remote) ++stats.checksum_failures;
      spdlog::warn("remote tier: {}: {}", e.id.ToString(), record.status().ToString());
      LeaveDram(id, /*evicted=*/false);
      if (gone || wrong_on_remote) {
        if (wrong_on_remote) unremoved.insert(e.id);
        SetOnRemote(id, false);
        DropIfNowhere(id, gone ? MissReason::kDiskLost : MissReason::kChecksum);
      }
    }
    if (header == HeaderArena::kNone && e.Is(kDead)) {  // Nobody is to take it for resident.
      slab.Free(table.ExtentOf(id));
      table.SetExtent(id, Extent{});
      e.Set(kLoading, false);
    }
    if (!again) {
      for (LoadWaiter* const w : load.waiters) --w->left;
      loads.erase(id);
      Unpin(id);
    }
    next = TakeLoads();
  }
  Begin(std::move(next));
  if (wrong) {
    const absl::Status removed = RemoveFromSsd({&*wrong, 1});
    if (!removed.ok()) spdlog::warn("quarantine: {}", std::string(removed.message()));
  }
}

absl::StatusOr<uint32_t> Store::Promote(std::span<const PlaneId> planes, absl::string_view tenant) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(planes.size()));
  std::vector<LoadJob> jobs;
  uint32_t on_their_way = 0;
  {
    absl::MutexLock lock(&c.mu);
    c.ExpireDue();
    std::vector<EntryId> entries(planes.size());
    c.table.FindAll(planes, entries);
    for (const EntryId id : entries) {
      if (id == kNoEntry || c.IsOthers(id, tenant)) continue;
      if (c.LoadAhead(id) || c.table[id].Is(kLoading)) ++on_their_way;
    }
    jobs = c.TakeLoads();
  }
  c.Begin(std::move(jobs));
  return on_their_way;
}

uint32_t Store::DropPromotions(std::span<const PlaneId> planes, absl::string_view tenant) {
  Core& c = *core_;
  absl::MutexLock lock(&c.mu);
  uint32_t dropped = 0;
  for (const PlaneId& plane : planes) {
    const EntryId id = c.table.Find(plane);
    if (id != kNoEntry && !c.IsOthers(id, tenant) && c.DropLoad(id)) ++dropped;
  }
  return dropped;
}

}  // namespace perigee::kvstore
