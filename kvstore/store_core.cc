#include "kvstore/store_core.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace perigee::kvstore {
namespace {

constexpr double kSsdLatencyUs = 100, kRemoteLatencyUs = 1000;
constexpr size_t kPagesAheadMost = (uint64_t{1} << 30) / kPageBytes;  // Of free memory kept ready.
constexpr int kFinishers = 2;                                         // Threads that verify what was read.
constexpr uint64_t kLeastUsual = 4096;
constexpr uint32_t kLeastPlanes = 1 << 16, kMostPlanes = 1 << 26;
constexpr uint64_t kUsualPlaneBytes = 16 << 10;

uint64_t HashOf(const PlaneId& id) {
  uint64_t hash;
  std::memcpy(&hash, id.key.digest.data(), sizeof(hash));
  return hash + static_cast<uint64_t>(id.kind) * 0x9e3779b97f4a7c15u;
}

uint32_t MaxPlanes(const StoreOptions& options, uint64_t slab_bytes) {
  if (options.max_planes > 0) return options.max_planes;
  uint64_t bytes = slab_bytes;
  // A remote tier, and an SSD tier as large as its file systems, may hold any number.
  if (options.remote || (options.ssd && options.ssd->capacity_bytes == 0)) return kMostPlanes / 4;
  if (options.ssd) bytes += options.ssd->capacity_bytes;
  return static_cast<uint32_t>(std::clamp<uint64_t>(bytes / kUsualPlaneBytes, kLeastPlanes, kMostPlanes));
}

}  // namespace

const char* MissReasonName(MissReason reason) {
  switch (reason) {
    case MissReason::kNeverStored:
      return "never stored";
    case MissReason::kEvicted:
      return "evicted";
    case MissReason::kDeleted:
      return "deleted";
    case MissReason::kChecksum:
      return "dropped for a wrong checksum";
    case MissReason::kOtherTenant:
      return "another tenant's";
    case MissReason::kNoRoom:
      return "in a slower tier, but no room in memory";
    case MissReason::kDiskLost:
      return "lost with its disk";
    case MissReason::kExpired:
      return "its time to live has passed";
    case MissReason::kUnreachable:
      return "in a slower tier, which does not answer";
    case MissReason::kOverQuota:
      return "over the tenant's bandwidth";
    case MissReason::kMoved:
      return "moved to another store";
  }
  return "unknown";
}

Store::Store(std::unique_ptr<Core> core) : core_(std::move(core)) {}
Store::~Store() = default;

absl::StatusOr<std::unique_ptr<Store>> Store::Open(StoreOptions options, std::span<std::byte> slab) {
  if (slab.size() < kPageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the slab has ", slab.size(), " bytes; it needs at least ", kPageBytes));
  }
  if (reinterpret_cast<uintptr_t>(slab.data()) % kPageBytes != 0) {
    return absl::InvalidArgumentError("the slab does not start on a page");
  }
  if (!(options.free_low >= 0 && options.free_low <= options.free_high && options.free_high <= 0.5)) {
    return absl::InvalidArgumentError(absl::StrCat("watermarks of ", options.free_low, " and ", options.free_high,
                                                   " free: 0 <= low <= high <= 0.5 is allowed"));
  }
  if (!(options.max_hard_pinned >= 0 && options.max_hard_pinned <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.max_hard_pinned, " of the slab may be pinned hard: 0 to 1 is allowed"));
  }
  if (!options.now) options.now = SteadyNow;
  if (!options.wall) options.wall = absl::Now;
  if (!options.sum_of_puts) options.sum_of_puts = [](std::span<const std::byte> bytes) { return Crc32c(bytes); };
  const uint32_t max_planes = MaxPlanes(options, slab.size());
  const auto policy = [&](uint64_t bytes) {
    const uint64_t usual = std::max<uint64_t>(bytes / kUsualPlaneBytes, kLeastUsual);
    return MakeEvictionPolicy(options.policy,
                              {.max_entries = max_planes, .usual_entries = std::min<uint64_t>(usual, max_planes)});
  };
  PERIGEE_ASSIGN_OR_RETURN(auto dram, policy(slab.size()));
  std::unique_ptr<EvictionPolicy> on_ssd;
  if (options.ssd) {
    const uint64_t capacity = options.ssd->capacity_bytes;
    PERIGEE_ASSIGN_OR_RETURN(on_ssd, policy(capacity == 0 ? uint64_t{1} << 40 : capacity));
  }
  auto core = std::make_unique<Core>(std::move(options), slab, max_planes, std::move(dram), std::move(on_ssd));
  PERIGEE_RETURN_IF_ERROR(core->SetQuotas());
  if (core->options.ssd) {
    Core* const c = core.get();
    if (c->options.ssd->memory.empty()) c->options.ssd->memory = slab;
    c->options.ssd->dropped = [c](std::span<const SsdDropped> dropped) { c->NoteSsdDrops(dropped); };
    std::vector<std::pair<IndexEntry, SsdRecord>> found;
    const auto note = [&found](const IndexEntry& entry, const SsdRecord& record) { found.emplace_back(entry, record); };
    PERIGEE_ASSIGN_OR_RETURN(c->ssd, SsdTier::Open(*c->options.ssd, note));
    // As they came, so that chains are in order.
    const auto place = [](const IndexEntry& e) {
      return std::pair(e.meta.created_unix_us, PlaceInChain(e.id, e.meta.base_position));
    };
    std::sort(found.begin(), found.end(),
              [&](const auto& a, const auto& b) { return place(a.first) < place(b.first); });
    absl::MutexLock lock(&c->mu);
    for (const auto& [entry, record] : found) {
      const EntryId id = c->Insert(entry.id, entry.meta);
      if (id == kNoEntry) {
        return absl::ResourceExhaustedError(absl::StrCat("the disks hold ", found.size(), " planes, the index up to ",
                                                         max_planes, ": allow more planes"));
      }
      c->EnterSsd(id, record);
    }
  }
  core->Start();
  return std::unique_ptr<Store>(new Store(std::move(core)));
}

EventLog& Store::events() { return core_->events; }
bool Store::has_ssd() const { return core_->ssd != nullptr; }
bool Store::has_remote() const { return core_->options.remote != nullptr; }
absl::Duration Store::max_ttl() const { return core_->options.max_ttl; }

void Store::ReapExpired() {
  Core& c = *core_;
  std::vector<uint64_t> overdue;
  std::vector<StoreOptions::Reclaimed> reclaimed;
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    if (!c.options.before_reclaim) return;
    overdue = c.OverdueReservations();
    for (uint64_t id : overdue) {
      const ReservationState& r = c.reservations.at(id);
      reclaimed.push_back({id, c.Memory(r.extent, r.payload_bytes)});
    }
  }
  if (overdue.empty()) return;
  // What is overdue cannot be committed meanwhile.
  if (!c.options.before_reclaim(reclaimed)) return;
  absl::MutexLock lock(&c.mu);
  c.EndReservations(overdue);
}

Store::Core::Core(StoreOptions o, std::span<std::byte> memory, uint32_t max_planes,
                  std::unique_ptr<EvictionPolicy> dram, std::unique_ptr<EvictionPolicy> on_ssd)
    : options(std::move(o)),
      slab_memory(memory),
      events(options.event_log_events),
      table(max_planes),
      slab(memory.size()),
      dram_policy(std::move(dram)),
      ssd_policy(std::move(on_ssd)),
      history(options.history_planes) {}

Store::Core::~Core() {
  {
    absl::MutexLock lock(&mu);
    stopping = true;
    for (const auto& [id, load] : loads) {
      if (load.operation != 0) options.remote->Cancel(load.operation);
    }
    const auto ended = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return from_ssd.begun + from_remote.begun == 0; };
    mu.Await(absl::Condition(&ended));
  }
  {
    absl::MutexLock lock(&ends_mu);
    no_more_ends = true;
  }
  for (std::thread& thread : threads) thread.join();
}

void Store::Core::Start() {
  threads.emplace_back([this] { TidyLoop(); });
  if (!ssd && !options.remote) return;
  for (int i = 0; i < kFinishers; ++i) threads.emplace_back([this] { FinishLoads(); });
  if (options.remote) threads.emplace_back([this] { ScanRemote(); });
}

absl::Status Store::Core::SetQuotas() {
  absl::MutexLock lock(&mu);
  for (const TenantQuota& quota : options.quotas) {
    if (quota.tenant.empty()) return absl::InvalidArgumentError("a quota without a tenant");
    if (quota.dram_bytes > 0) {
      PERIGEE_RETURN_IF_ERROR(dram_quotas.SetQuota(quota.tenant, quota.dram_bytes).status());
    }
    if (quota.ssd_bytes > 0) PERIGEE_RETURN_IF_ERROR(ssd_quotas.SetQuota(quota.tenant, quota.ssd_bytes).status());
    if (quota.bytes_per_s > 0) bandwidth.Set(quota.tenant, quota.bytes_per_s, options.now());
  }
  return absl::OkStatus();
}

absl::Status CheckReplicas(uint32_t replicas) {
  if (replicas <= kMaxReplicas) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(replicas, " replicas; at most ", kMaxReplicas, " are possible"));
}

absl::Status Store::Core::CheckBatch(size_t n) const {
  if (n > options.max_batch_planes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a batch of ", n, "; at most ", options.max_batch_planes, " are allowed in one call"));
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Duration> Store::Core::CheckTtl(absl::Duration ttl) const {
  if (ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("a ttl of ", absl::FormatDuration(ttl), "; it must be positive"));
  }
  return std::min(ttl, options.max_ttl);
}

uint64_t Store::Core::NewId() {
  // Random, so that an id of an earlier start (or a guess) does not name something of this one.
  for (;;) {
    const uint64_t id = absl::Uniform<uint64_t>(absl::IntervalClosed, random, 1, std::numeric_limits<uint64_t>::max());
    if (!reservations.contains(id) && !leases.contains(id)) return id;
  }
}

// ---- Facts ----

Tier Store::Core::FastestTier(EntryId id) const {
  return Resident(id) ? Tier::kDram : table.details(id).ssd_number != 0 ? Tier::kSsd : Tier::kRemote;
}

double Store::Core::RecomputeUs(EntryId id) const {
  const PlaneDetails& d = table.details(id);
  // Attention over what came before makes later tokens dearer.
  return options.recompute_us_per_token * d.tokens * (1 + static_cast<double>(d.base_position) / 32768);
}

double Store::Core::CostUs(EntryId id) const {
  const uint64_t bytes = table[id].payload_bytes;
  if (table.details(id).ssd_number != 0) return kSsdLatencyUs + static_cast<double>(ssd_rate.EstimateUs(bytes));
  if (table[id].Is(kOnRemote)) return kRemoteLatencyUs + static_cast<double>(remote_rate.EstimateUs(bytes));
  return RecomputeUs(id);
}

EntryId Store::Core::Previous(EntryId id) const {
  const EntryId previous = table.details(id).previous;
  if (previous == kNoEntry || table[previous].Is(kDead)) return kNoEntry;
  // Its number may be another plane's by now; one in the same place of another chain does no harm.
  const PlaneDetails& d = table.details(previous);
  return table[previous].id.kind == pod::PlaneKind::kDistant && table[previous].tenant == table[id].tenant &&
                 d.base_position + d.tokens == table.details(id).base_position
             ? previous
             : kNoEntry;
}

EntryId Store::Core::Next(EntryId distant) const {
  const EntryId next = table.details(distant).next;
  return next != kNoEntry && !table[next].Is(kDead) && table.details(next).previous == distant &&
                 table[next].tenant == table[distant].tenant && table[next].id.kind == pod::PlaneKind::kDistant
             ? next
             : kNoEntry;
}

namespace {

// What a plane is worthless without, of what a tier has; see eviction_policy.h.
template <typename InTier>
EntryId ParentOf(const PlaneTable& table, EntryId id, EntryId previous, InTier in_tier) {
  const auto beside = [&](pod::PlaneKind kind) {
    const EntryId other = table.Find({table[id].id.key, kind});
    return other != kNoEntry && in_tier(other) ? other : kNoEntry;
  };
  EntryId parent = kNoEntry;
  if (table[id].id.kind == pod::PlaneKind::kProximal) parent = beside(pod::PlaneKind::kDistant);
  if (parent == kNoEntry && table[id].id.kind != pod::PlaneKind::kSummary) parent = beside(pod::PlaneKind::kSummary);
  if (parent == kNoEntry && previous != kNoEntry && in_tier(previous)) parent = previous;
  return parent;
}

}  // namespace

PlaneFacts Store::Core::DramFacts(EntryId id) const {
  const PlaneEntry& e = table[id];
  const bool on_ssd = table.details(id).ssd_number != 0;
  return {.key_hash = HashOf(e.id),
          .kind = e.id.kind,
          .parent = ParentOf(table, id, Previous(id), [this](EntryId p) { return table[p].Is(kInDram); }),
          .tenant = dram_quotas.NumberOf(table.tenants().Name(e.tenant)),
          .payload_bytes = RoundUpToPage(e.payload_bytes),
          .cost_us = CostUs(id),
          .last_copy = LastCopy(id),
          .past = on_ssd ? ssd_policy->PastOf(id) : Past{}};
}

PlaneFacts Store::Core::SsdFacts(EntryId id) const {
  const PlaneEntry& e = table[id];
  const auto on_ssd = [this](EntryId p) { return table.details(p).ssd_number != 0; };
  return {.key_hash = HashOf(e.id),
          .kind = e.id.kind,
          .parent = ParentOf(table, id, Previous(id), on_ssd),
          .tenant = ssd_quotas.NumberOf(table.tenants().Name(e.tenant)),
          .payload_bytes = RoundUpToPage(e.payload_bytes),
          .cost_us = e.Is(kOnRemote) ? kRemoteLatencyUs + static_cast<double>(remote_rate.EstimateUs(e.payload_bytes))
                                     : RecomputeUs(id),
          .last_copy = !e.Is(kOnRemote),
          .past = e.Is(kInDram) ? dram_policy->PastOf(id) : Past{}};
}

// ---- Coming and going ----

EntryId Store::Core::Insert(const PlaneId& name, const PlaneMeta& meta) {
  const PlaneTable::Inserted inserted = table.Insert(name, meta);
  if (inserted.id == kNoEntry || !inserted.is_new) return inserted.id;
  Link(inserted.id, meta.parent);
  if (meta.ttl_s > 0) {
    plane_end_of[inserted.id] = plane_ends.Add(meta.created_unix_us + int64_t{meta.ttl_s} * 1000000, inserted.id);
  }
  return inserted.id;
}

void Store::Core::Link(EntryId id, const std::optional<pod::BlockKey>& parent) {
  if (!parent) return;
  const EntryId previous = table.Find({*parent, pod::PlaneKind::kDistant});
  if (previous == kNoEntry || table[previous].tenant != table[id].tenant) return;
  table.details(id).previous = previous;
  if (table[id].id.kind == pod::PlaneKind::kDistant) table.details(previous).next = id;
}

uint32_t Store::Core::TtlSeconds(EntryId id) const {
  const auto it = plane_end_of.find(id);
  if (it == plane_end_of.end()) return 0;
  return static_cast<uint32_t>((plane_ends.When(it->second) - table.details(id).created_unix_us) / 1000000);
}

uint64_t Store::Core::EvictableBytes(EntryId id) const {
  const PlaneEntry& e = table[id];
  constexpr uint8_t kFlags = kInDram | kLoading | kDead | kHardPinned;
  return e.pins == 0 && (e.flags & kFlags) == kInDram ? RoundUpToPage(e.payload_bytes) : 0;
}

namespace {

TierCount& CountOf(StoreStats& stats, Tier tier, pod::PlaneKind kind) {
  return stats.counts[static_cast<size_t>(tier) - 1][static_cast<size_t>(kind) - 1];
}
void Count(StoreStats& stats, Tier tier, const PlaneEntry& e, bool more) {
  TierCount& count = CountOf(stats, tier, e.id.kind);
  more ? ++count.planes : --count.planes;
  count.payload_bytes += more ? e.payload_bytes : 0 - e.payload_bytes;
}

}  // namespace

void Store::Core::EnterDram(EntryId id, Extent extent) {
  table.SetExtent(id, extent);
  const PlaneFacts facts = DramFacts(id);
  dram_policy->Inserted(id, facts);
  dram_quotas.Add(facts.tenant, facts.payload_bytes);
  Count(stats, Tier::kDram, table[id], true);
  evictable_bytes += EvictableBytes(id);
  if (slab.free_bytes() < LowBytes() || dram_quotas.MustGive(0, 0)) untidy = true;
}

void Store::Core::LeaveDram(EntryId id, bool evicted) {
  PlaneEntry& e = table[id];
  evictable_bytes -= EvictableBytes(id);
  evicted ? dram_policy->Evicted(id, HashOf(e.id)) : dram_policy->Removed(id);
  dram_quotas.Subtract(dram_quotas.NumberOf(table.tenants().Name(e.tenant)), RoundUpToPage(e.payload_bytes));
  Count(stats, Tier::kDram, e, false);
  slab.Free(table.ExtentOf(id));
  table.SetExtent(id, Extent{});
  if (e.header != HeaderArena::kNone) headers.Drop(e.header);
  e.header = HeaderArena::kNone;
  e.Set(kPassing, false);
  e.Set(kLoading, false);
}

void Store::Core::EnterSsd(EntryId id, SsdRecord record) {
  const PlaneFacts facts = SsdFacts(id);
  table.SetSsdRecord(id, record);
  ssd_policy->Inserted(id, facts);
  ssd_quotas.Add(facts.tenant, facts.payload_bytes);
  ssd_bytes += facts.payload_bytes + kPageBytes;
  Count(stats, Tier::kSsd, table[id], true);
  if (table[id].Is(kInDram)) dram_policy->CostChanged(id, facts.payload_bytes, CostUs(id), LastCopy(id));
}

void Store::Core::LeaveSsd(EntryId id, bool evicted) {
  PlaneEntry& e = table[id];
  if (table.details(id).ssd_number == 0) return;
  evicted ? ssd_policy->Evicted(id, HashOf(e.id)) : ssd_policy->Removed(id);
  ssd_quotas.Subtract(ssd_quotas.NumberOf(table.tenants().Name(e.tenant)), RoundUpToPage(e.payload_bytes));
  ssd_bytes -= RoundUpToPage(e.payload_bytes) + kPageBytes;
  Count(stats, Tier::kSsd, e, false);
  table.SetSsdRecord(id, std::nullopt);
  if (e.Is(kInDram)) dram_policy->CostChanged(id, RoundUpToPage(e.payload_bytes), CostUs(id), LastCopy(id));
}

void Store::Core::SetOnRemote(EntryId id, bool on) {
  PlaneEntry& e = table[id];
  if (e.Is(kOnRemote) == on) return;
  e.Set(kOnRemote, on);
  Count(stats, Tier::kRemote, e, on);
  const uint64_t bytes = RoundUpToPage(e.payload_bytes);
  if (e.Is(kInDram)) dram_policy->CostChanged(id, bytes, CostUs(id), LastCopy(id));
  if (table.details(id).ssd_number != 0) {
    const PlaneFacts facts = SsdFacts(id);
    ssd_policy->CostChanged(id, bytes, facts.cost_us, facts.last_copy);
  }
}

void Store::Core::Drop(EntryId id, MissReason reason) {
  PlaneEntry& e = table[id];
  if (e.Is(kDead)) return;
  const int64_t now = WallUs();
  history.Record(e.id, reason, now);
  events.Removed(e.id, reason, std::string(table.tenants().Name(e.tenant)), now);
  SetPinMode(id, PinMode::kNone);
  const bool evicted = reason == MissReason::kEvicted;
  LeaveSsd(id, evicted);
  if (e.Is(kOnRemote)) Count(stats, Tier::kRemote, e, false);
  e.Set(kOnRemote, false);
  if (const auto it = plane_end_of.find(id); it != plane_end_of.end()) {
    plane_ends.Cancel(it->second);
    plane_end_of.erase(it);
  }
  if (e.Is(kInDram) && e.pins == 0) {
    LeaveDram(id, evicted);
  } else if (e.Is(kInDram)) {
    // The bytes stay for those who have it pinned; nobody else will find it.
    evicted ? dram_policy->Evicted(id, HashOf(e.id)) : dram_policy->Removed(id);
    dram_quotas.Subtract(dram_quotas.NumberOf(table.tenants().Name(e.tenant)), RoundUpToPage(e.payload_bytes));
    Count(stats, Tier::kDram, e, false);
  }
  table.Unlink(id);
  if (e.pins == 0) table.Free(id);
}

void Store::Core::DropIfNowhere(EntryId id, MissReason reason) {
  if (!table[id].Is(kDead) && !table[id].Is(kInDram) && LastCopy(id)) Drop(id, reason);
}

void Store::Core::EvictFromDram(EntryId id) {
  ++stats.dram_evictions;
  if (LastCopy(id)) ++stats.dram_only_evictions;
  LeaveDram(id, /*evicted=*/true);
  DropIfNowhere(id, MissReason::kEvicted);
}

void Store::Core::Pin(EntryId id) {
  const uint64_t evictable = EvictableBytes(id);
  if (table[id].pins++ > 0) return;
  evictable_bytes -= evictable;
  stats.leased_bytes += RoundUpToPage(table[id].payload_bytes);
}

void Store::Core::Unpin(EntryId id) {
  PlaneEntry& e = table[id];
  if (--e.pins > 0) return;
  stats.leased_bytes -= RoundUpToPage(e.payload_bytes);
  if (e.Is(kDead)) {
    if (e.Is(kInDram)) slab.Free(table.ExtentOf(id));
    if (e.header != HeaderArena::kNone) headers.Drop(e.header);
    e.header = HeaderArena::kNone;
    table.Free(id);
    return;
  }
  if (!e.Is(kInDram) && LastCopy(id)) {
    Drop(id, MissReason::kEvicted);
    return;
  }
  if (table.details(id).ssd_number != 0) ssd_policy->Unpinned(id);
  if (!e.Is(kInDram)) return;
  evictable_bytes += EvictableBytes(id);
  if (e.Is(kPassing) && !LastCopy(id)) {
    EvictFromDram(id);
  } else {
    dram_policy->Unpinned(id);
  }
}

void Store::Core::SetPinMode(EntryId id, PinMode mode) {
  PlaneEntry& e = table[id];
  const uint64_t bytes = RoundUpToPage(e.payload_bytes);
  const uint64_t evictable = EvictableBytes(id);
  if (e.Is(kHardPinned)) stats.hard_pinned_bytes -= bytes;
  e.Set(kSoftPinned, mode == PinMode::kSoft);
  e.Set(kHardPinned, mode == PinMode::kHard);
  if (e.Is(kHardPinned)) stats.hard_pinned_bytes += bytes;
  if (mode != PinMode::kNone) e.Set(kPassing, false);
  evictable_bytes += EvictableBytes(id) - evictable;
  // Policies that have set it aside look again.
  if (e.Is(kInDram)) dram_policy->Unpinned(id);
  if (table.details(id).ssd_number != 0) ssd_policy->Unpinned(id);
}

void Store::Core::Prefetch(std::span<const EntryId> ids) const {
  for (const EntryId id : ids) {
    if (id == kNoEntry) continue;
    __builtin_prefetch(&table.details(id));
    headers.Prefetch(table[id].header);
  }
  dram_policy->Expect(ids);
}

void Store::Core::Touch(EntryId id, int64_t now_unix_us) {
  table[id].SetLastUsed(now_unix_us);
  if (table[id].Is(kInDram)) dram_policy->Touched(id);
  if (const std::optional<SsdRecord> record = table.SsdRecordOf(id)) {
    ssd_policy->Touched(id);
    ssd->Touch(table[id].id, *record);
  }
}

// ---- Room ----

uint64_t Store::Core::LowBytes() const {
  const auto pages = static_cast<uint64_t>(options.free_low * static_cast<double>(slab.capacity_bytes() / kPageBytes));
  return std::min<uint64_t>(pages, kPagesAheadMost) * kPageBytes;
}
uint64_t Store::Core::HighBytes() const {
  const auto pages = static_cast<uint64_t>(options.free_high * static_cast<double>(slab.capacity_bytes() / kPageBytes));
  return std::min<uint64_t>(pages, 2 * kPagesAheadMost) * kPageBytes;
}

std::optional<EntryId> Store::Core::DramVictim(std::optional<uint32_t> account) {
  const auto evictable = [this](EntryId id) ABSL_NO_THREAD_SAFETY_ANALYSIS { return EvictableBytes(id) > 0; };
  const auto first = [&](EntryId id)
                         ABSL_NO_THREAD_SAFETY_ANALYSIS { return evictable(id) && !table[id].Is(kSoftPinned); };
  if (const std::optional<EntryId> victim = dram_policy->Victim(account, first)) return victim;
  return evictable_bytes > 0 ? dram_policy->Victim(account, evictable) : std::nullopt;
}

std::optional<Extent> Store::Core::AllocateExtent(uint64_t bytes, uint32_t account) {
  const uint64_t room = RoundUpToPage(bytes);
  const uint64_t quota = dram_quotas.QuotaBytes(account);
  if (bytes > slab.capacity_bytes() || room > slab.free_bytes() + evictable_bytes || room > quota) return std::nullopt;
  bool others_give = true;
  for (;;) {
    std::optional<uint32_t> gives = dram_quotas.MustGive(account, room);
    if (gives && *gives != account && !others_give) {
      gives = dram_quotas.UsedBytes(account) + room > quota ? std::optional(account) : std::nullopt;
    }
    if (gives) {
      if (const std::optional<EntryId> victim = DramVictim(*gives)) {
        EvictFromDram(*victim);
      } else if (*gives == account) {
        return std::nullopt;
      } else {
        others_give = false;
      }
      continue;
    }
    if (const std::optional<Extent> extent = slab.Allocate(bytes)) {
      if (slab.free_bytes() < LowBytes()) untidy = true;
      return extent;
    }
    const std::optional<EntryId> victim = DramVictim(std::nullopt);
    if (!victim) return std::nullopt;
    EvictFromDram(*victim);
  }
}

// ---- Ends ----

namespace {
int64_t Nanos(absl::Time t) { return absl::ToUnixNanos(t); }
}  // namespace

void Store::Core::EndReservation(uint64_t id) {
  const auto it = reservations.find(id);
  if (it == reservations.end()) return;
  const ReservationState& r = it->second;
  slab.Free(r.extent);
  stats.reserved_bytes -= RoundUpToPage(r.payload_bytes);
  dram_quotas.Subtract(r.account, RoundUpToPage(r.payload_bytes));
  reservation_ends.Cancel(r.end);
  reservations.erase(it);
}

void Store::Core::EndLease(uint64_t id) {
  const auto it = leases.find(id);
  if (it == leases.end()) return;
  for (const EntryId plane : it->second.planes) Unpin(plane);
  lease_ends.Cancel(it->second.end);
  leases.erase(it);
}

void Store::Core::Reap() {
  ExpireDue();
  const int64_t now = Nanos(options.now());
  for (auto due = lease_ends.Earliest(); due && due->when <= now; due = lease_ends.Earliest()) {
    EndLease(due->what);
    ++stats.expired_leases;
  }
  if (!options.before_reclaim) EndReservations(OverdueReservations());
}

std::vector<uint64_t> Store::Core::OverdueReservations() {
  const int64_t now = Nanos(options.now());
  std::vector<uint64_t> overdue;
  while (const auto due = reservation_ends.Take(now)) overdue.push_back(due->what);
  // Looked at again until they have ended.
  for (const uint64_t id : overdue) reservations.at(id).end = reservation_ends.Add(now, id);
  std::erase_if(overdue, [this](uint64_t id) ABSL_NO_THREAD_SAFETY_ANALYSIS { return reservations.at(id).committing; });
  return overdue;
}

void Store::Core::EndReservations(std::span<const uint64_t> ids) {
  for (uint64_t id : ids) {
    const auto it = reservations.find(id);
    if (it == reservations.end()) continue;
    if (!it->second.ended) ++stats.expired_reservations;
    EndReservation(id);
  }
}

}  // namespace perigee::kvstore
