// The longest unused goes first; copies before last copies.
#include "kvstore/policy/policies.h"

namespace perigee::kvstore {
namespace {

class LruPolicy : public EvictionPolicy {
 public:
  explicit LruPolicy(const PolicyOptions& options) : entries_(options.max_entries) {}
  absl::string_view name() const override { return "lru"; }

  void Inserted(EntryId id, const PlaneFacts& facts) override {
    entries_.Add(id, facts, QueueOf(facts.tenant, facts.last_copy));
    entries_[id].tick = ++clock_;
  }
  void Touched(EntryId id) override {
    auto& e = entries_[id];
    entries_.MoveToNewest(id, e.queue);
    e.tick = ++clock_;
    if (e.past.uses < UINT8_MAX) ++e.past.uses;
  }
  void Expect(std::span<const EntryId> ids) const override { entries_.Prefetch(ids); }
  void Unpinned(EntryId id) override { entries_.Return(id); }
  void CostChanged(EntryId id, uint64_t, double, bool last_copy) override {
    entries_.MoveAcross(id, QueueOf(entries_[id].queue / 2, last_copy));
  }
  void Evicted(EntryId id, uint64_t) override { Removed(id); }
  void Removed(EntryId id) override {
    const EntryId parent = entries_.Remove(id);
    if (parent != kNoEntry) entries_.Return(parent);
  }

  std::optional<EntryId> Victim(std::optional<uint32_t> tenant, Evictable evictable) override {
    for (const bool last_copy : {false, true}) {
      EntryId oldest = kNoEntry;
      for (uint32_t t = tenant.value_or(0); t < (tenant ? *tenant + 1 : tenants_); ++t) {
        const EntryId id = entries_.OldestFree(2 * t + last_copy, evictable);
        if (id != kNoEntry && (oldest == kNoEntry || Age(id) > Age(oldest))) oldest = id;
      }
      if (oldest != kNoEntry) return oldest;
    }
    return LastResort(entries_, 2, tenant, evictable);
  }
  bool Admit(const PlaneFacts&, double) override { return true; }
  Past PastOf(EntryId id) const override { return entries_[id].past; }
  size_t MemoryBytes() const override { return entries_.MemoryBytes(); }

 private:
  uint32_t Age(EntryId id) const { return clock_ - entries_[id].tick; }
  EntryQueues::Queue QueueOf(uint32_t tenant, bool last_copy) {
    tenants_ = std::max(tenants_, tenant + 1);
    return 2 * tenant + last_copy;
  }

  EntryQueues entries_;
  uint32_t clock_ = 0;  // Wraps after 2^32 calls: then two tenants' oldest may be compared wrongly, once.
  uint32_t tenants_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLruPolicy(const PolicyOptions& options) {
  return std::make_unique<LruPolicy>(options);
}

}  // namespace perigee::kvstore
