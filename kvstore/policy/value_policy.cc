// The cost-aware policy: who goes is who has the least value = (chance of use now) x (cost to have it back) / bytes.
//
// The chance comes from ReuseModel: per class of entries, falling with age. So within a class and a cost per byte the
// oldest has the least value, and a search compares the old ends of a few queues, one per class and half octave of cost
// per byte. There is nothing to sort and nothing to sample.
#include <array>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "kvstore/policy/ghost_history.h"
#include "kvstore/policy/policies.h"
#include "kvstore/policy/reuse_model.h"

namespace perigee::kvstore {
namespace {

// Cost per byte in half octaves from 2^-22 us (a copy in the same memory) to 2^9.5.
constexpr uint32_t kDensities = 64;
constexpr int kLeastDensity = -44;
// A summary whose distant plane has gone: worth nothing.
constexpr uint32_t kWorthless = ReuseModel::kClasses;
constexpr uint32_t kGroups = ReuseModel::kClasses + 1;
static_assert(ReuseModel::kClasses <= GhostHistory::kGroups);
constexpr size_t kSample = 1024;  // Entries looked at when learning from those present.
constexpr float kLongStay = 64;
constexpr uint32_t kQueuesPerTenant = kGroups * kDensities;

uint32_t DensityOf(uint64_t bytes, double cost_us) {
  if (!(cost_us > 0)) return 0;
  const double half_octaves = 2 * std::log2(cost_us / static_cast<double>(std::max<uint64_t>(bytes, 1)));
  return static_cast<uint32_t>(std::clamp(std::lround(half_octaves) - kLeastDensity, 0l, long{kDensities} - 1));
}
double CostPerByte(uint32_t density) { return std::exp2(0.5 * (static_cast<int>(density) + kLeastDensity)); }

class ValuePolicy : public EvictionPolicy {
 public:
  explicit ValuePolicy(const PolicyOptions& options)
      : calls_per_tick_(std::max<size_t>(UsualEntries(options) / 65536, 1)),
        entries_(options.max_entries),
        ghosts_(GhostEntries(options, 2 * UsualEntries(options))) {
    for (uint32_t d = 0; d < kDensities; ++d) cost_per_byte_[d] = CostPerByte(d);
  }
  absl::string_view name() const override { return "value"; }

  void Inserted(EntryId id, const PlaneFacts& facts) override {
    Called();
    if (facts.tenant >= occupied_.size()) occupied_.resize(facts.tenant + 1);
    PlaneFacts known = facts;
    if (const auto ghost = ghosts_.Take(facts.key_hash)) {
      ForgetGhost(*ghost);
      model_.Used(ghost->group);
      known.past.uses = std::max<uint8_t>(facts.past.uses, static_cast<uint8_t>(ghost->uses + 1));
    }
    const uint32_t group = ReuseModel::ClassOf(facts.kind, known.past.uses, facts.past.continued);
    entries_.Add(id, known, Occupy(facts.tenant, group, DensityOf(facts.payload_bytes, facts.cost_us)));
    auto& e = entries_[id];
    e.tick = now();
    if (e.parent != kNoEntry) entries_.MoveAcross(e.parent, QueueOf(e.parent));
  }
  void Touched(EntryId id) override {
    Called();
    auto& e = entries_[id];
    if (GroupOf(e) != kWorthless) {
      Watched(e);
      model_.Used(GroupOf(e));
    }
    if (e.past.uses < UINT8_MAX) ++e.past.uses;
    e.tick = now();
    entries_.MoveToNewest(id, QueueOf(id));
  }
  void Expect(std::span<const EntryId> ids) const override { entries_.Prefetch(ids); }
  void Unpinned(EntryId id) override {
    entries_.Return(id);
    // Its queue may have been empty meanwhile, and forgotten.
    const auto& e = entries_[id];
    occupied_[TenantOf(e)][GroupOf(e)] |= uint64_t{1} << e.queue % kDensities;
  }
  void CostChanged(EntryId id, uint64_t payload_bytes, double cost_us, bool) override {
    const auto& e = entries_[id];
    entries_.MoveAcross(id, Occupy(TenantOf(e), GroupOf(e), DensityOf(payload_bytes, cost_us)));
  }
  void Evicted(EntryId id, uint64_t key_hash) override {
    const auto& e = entries_[id];
    stay_ += (evicted_any_ ? 0.01f : 1.0f) * (Age(e) - stay_);
    evicted_any_ = true;
    if (GroupOf(e) != kWorthless) {
      const GhostHistory::Ghost ghost{.touched_tick = e.tick,
                                      .evicted_tick = now(),
                                      .group = static_cast<uint8_t>(GroupOf(e)),
                                      .uses = std::min(e.past.uses, GhostHistory::kMaxUses)};
      if (const auto gone = ghosts_.Add(key_hash, ghost, now())) ForgetGhost(*gone);
    }
    Removed(id);
  }
  void Removed(EntryId id) override {
    if (GroupOf(entries_[id]) != kWorthless) Watched(entries_[id]);
    const EntryId parent = entries_.Remove(id);
    if (parent == kNoEntry) return;
    entries_.MoveAcross(parent, QueueOf(parent));
    entries_.Return(parent);
  }

  std::optional<EntryId> Victim(std::optional<uint32_t> tenant, Evictable evictable) override {
    ends_.clear();
    const size_t last = tenant ? std::min<size_t>(*tenant + 1, occupied_.size()) : occupied_.size();
    for (size_t t = tenant.value_or(0); t < last; ++t) {
      for (uint32_t group = 0; group < kGroups; ++group) {
        for (uint64_t left = occupied_[t][group]; left != 0; left &= left - 1) {
          const uint32_t density = std::countr_zero(left);
          const auto q = static_cast<EntryQueues::Queue>((t * kGroups + group) * kDensities + density);
          if (entries_.empty(q)) {
            occupied_[t][group] &= ~(uint64_t{1} << density);
          } else {
            ends_.push_back({ValueOf(entries_.oldest(q)), q});
          }
        }
      }
    }
    // In order of value over all queues, so that who is set aside was of the least value there is.
    while (!ends_.empty()) {
      const auto least = std::min_element(ends_.begin(), ends_.end());
      const EntryId id = entries_.oldest(least->second);
      if (entries_.FreeOrAside(id, evictable)) return id;
      if (entries_.empty(least->second)) {
        *least = ends_.back();
        ends_.pop_back();
      } else {
        least->first = ValueOf(entries_.oldest(least->second));
      }
    }
    return LastResort(entries_, kQueuesPerTenant, tenant, evictable);
  }

  // By value: what it is expected to save while it stays against what the write takes.
  bool Admit(const PlaneFacts& facts, double write_us) override {
    uint8_t uses = facts.past.uses;
    if (ghosts_.Contains(facts.key_hash) && uses < UINT8_MAX) ++uses;
    // Nobody has had to go yet: it stays for long.
    const float stay = evicted_any_ ? std::max(stay_, Span(1)) : kLongStay * model_.scale();
    return model_.ProbabilityBefore(ReuseModel::ClassOf(facts.kind, uses, facts.past.continued), stay) * facts.cost_us >
           write_us;
  }
  Past PastOf(EntryId id) const override { return entries_[id].past; }
  size_t MemoryBytes() const override {
    return entries_.MemoryBytes() + ghosts_.MemoryBytes() + occupied_.capacity() * sizeof(occupied_[0]);
  }

 private:
  using Entry = EntryQueues::Entry;

  uint32_t now() const { return static_cast<uint32_t>(calls_ / calls_per_tick_); }
  float Span(uint32_t ticks) const { return static_cast<float>(ticks) * static_cast<float>(calls_per_tick_); }
  float Age(const Entry& e) const { return Span(now() - e.tick); }
  static uint32_t GroupOf(const Entry& e) { return e.queue / kDensities % kGroups; }
  static uint32_t TenantOf(const Entry& e) { return e.queue / kQueuesPerTenant; }

  double ValueOf(EntryId id) const {
    const Entry& e = entries_[id];
    if (GroupOf(e) == kWorthless) return 0;
    return model_.RateAt(GroupOf(e), Age(e)) * cost_per_byte_[e.queue % kDensities];
  }

  void Called() {
    ++calls_;
    if (calls_ < next_update_) return;
    WatchPresent();
    model_.Update(entries_.size());
    next_update_ = calls_ + 64 + entries_.size() / 4;
  }
  // Without those present, classes whose entries lie idle and are not evicted would look too good.
  void WatchPresent() {
    const size_t ids = entries_.id_end();
    if (ids == 0) return;
    const size_t looks = std::min<size_t>(ids, kSample);
    const double times = static_cast<double>(ids) / static_cast<double>(looks);
    for (size_t i = 0; i < looks; ++i) {
      const Entry& e = entries_[static_cast<EntryId>(i * ids / looks)];
      if (e.present && GroupOf(e) != kWorthless) model_.StillWatched(GroupOf(e), Age(e), times);
    }
  }
  void Watched(const Entry& e) { model_.Watched(GroupOf(e), 0, Age(e)); }
  void ForgetGhost(const GhostHistory::Ghost& g) {
    model_.Watched(g.group, Span(g.evicted_tick - g.touched_tick), Span(now() - g.touched_tick));
  }
  EntryQueues::Queue Occupy(uint32_t tenant, uint32_t group, uint32_t density) {
    occupied_[tenant][group] |= uint64_t{1} << density;
    return (tenant * kGroups + group) * kDensities + density;
  }
  // Where an entry belongs, as it is now.
  EntryQueues::Queue QueueOf(EntryId id) {
    const Entry& e = entries_[id];
    const auto kind = static_cast<pod::PlaneKind>(e.kind);
    const bool left_alone = kind == pod::PlaneKind::kSummary && e.past.continued && e.children == 0;
    return Occupy(TenantOf(e), left_alone ? kWorthless : ReuseModel::ClassOf(kind, e.past.uses, e.past.continued),
                  e.queue % kDensities);
  }

  // Ticks are 32 bits wide and wrap after as many calls as 2^16 times the usual entries (at least 2^32); a plane that
  // lay untouched for longer looks young for a while.
  const size_t calls_per_tick_;
  EntryQueues entries_;
  GhostHistory ghosts_;
  ReuseModel model_;
  std::array<double, kDensities> cost_per_byte_;
  std::vector<std::array<uint64_t, kGroups>> occupied_;      // by tenant and group, a bit per density: may be non-empty
  std::vector<std::pair<double, EntryQueues::Queue>> ends_;  // Victim's: the value of each queue's oldest.
  uint64_t calls_ = 0, next_update_ = 0;
  float stay_ = 0;  // Moving average of the age at which entries are evicted.
  bool evicted_any_ = false;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeValuePolicy(const PolicyOptions& options) {
  return std::make_unique<ValuePolicy>(options);
}

}  // namespace perigee::kvstore
