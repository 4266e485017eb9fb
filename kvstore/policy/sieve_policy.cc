// SIEVE (Zhang et al., NSDI'24): one queue in order of arrival and a hand that walks from old to new, forgives who was
// used since it last came by, and evicts the first who was not. One queue and hand per tenant, and per kind of copy:
// copies go before last copies.
#include <vector>

#include "kvstore/policy/policies.h"

namespace perigee::kvstore {
namespace {

class SievePolicy : public EvictionPolicy {
 public:
  explicit SievePolicy(const PolicyOptions& options) : entries_(options.max_entries) {}
  absl::string_view name() const override { return "sieve"; }

  void Inserted(EntryId id, const PlaneFacts& facts) override {
    entries_.Add(id, facts, QueueOf(facts.tenant, facts.last_copy));
    entries_[id].tick = ++clock_;
    entries_[id].uses = facts.uses;
  }
  void Touched(EntryId id) override {
    auto& e = entries_[id];
    e.mark = true;
    if (e.uses < UINT8_MAX) ++e.uses;
  }
  void Unpinned(EntryId id) override { Return(id); }
  void CostChanged(EntryId id, uint64_t, double, bool last_copy) override {
    LeaveHand(id);
    entries_.MoveAcross(id, QueueOf(entries_[id].queue / 2, last_copy));
  }
  void Evicted(EntryId id, uint64_t) override { Removed(id); }
  void Removed(EntryId id) override {
    LeaveHand(id);
    const EntryId parent = entries_.Remove(id);
    if (parent != kNoEntry) Return(parent);
  }

  std::optional<EntryId> Victim(std::optional<uint32_t> tenant, Evictable evictable) override {
    for (const bool last_copy : {false, true}) {
      EntryId first = kNoEntry;
      for (uint32_t t = tenant.value_or(0); t < (tenant ? *tenant + 1 : static_cast<uint32_t>(hands_.size() / 2)); ++t) {
        const EntryId id = Walk(2 * t + last_copy, evictable);
        if (id != kNoEntry && (first == kNoEntry || clock_ - entries_[id].tick > clock_ - entries_[first].tick)) first = id;
      }
      if (first != kNoEntry) return first;
    }
    return LastResort(entries_, 2, tenant, evictable);
  }
  bool Admit(const PlaneFacts&, double) override { return true; }
  uint8_t Uses(EntryId id) const override { return entries_[id].uses; }
  size_t MemoryBytes() const override { return entries_.MemoryBytes(); }

 private:
  EntryQueues::Queue QueueOf(uint32_t tenant, bool last_copy) {
    if (hands_.size() < 2 * size_t{tenant} + 2) hands_.resize(2 * size_t{tenant} + 2, kNoEntry);
    return 2 * tenant + last_copy;
  }
  // The hand goes on before an entry leaves its place.
  void LeaveHand(EntryId id) {
    EntryId& hand = hands_[entries_[id].queue];
    if (hand == id) hand = entries_[id].newer;
  }
  // Back to where the hand looks next.
  void Return(EntryId id) {
    if (!entries_.Returns(id)) return;
    EntryId& hand = hands_[entries_[id].queue];
    if (hand == kNoEntry) {
      entries_.MoveToOldest(id, entries_[id].queue);
    } else {
      entries_.MoveBefore(id, hand);
    }
    hand = id;
  }
  // Twice around at most: the first time forgives all.
  EntryId Walk(EntryQueues::Queue q, Evictable evictable) {
    if (q >= hands_.size()) return kNoEntry;
    EntryId& hand = hands_[q];
    for (;;) {
      if (hand == kNoEntry) hand = entries_.oldest(q);
      if (hand == kNoEntry) return kNoEntry;
      const EntryId id = hand;
      if (entries_[id].mark) {
        entries_[id].mark = false;
        hand = entries_[id].newer;
        continue;
      }
      const EntryId newer = entries_[id].newer;
      if (entries_.FreeOrAside(id, evictable)) return id;
      hand = newer;
    }
  }

  EntryQueues entries_;
  std::vector<EntryId> hands_;
  uint32_t clock_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeSievePolicy(const PolicyOptions& options) {
  return std::make_unique<SievePolicy>(options);
}

}  // namespace perigee::kvstore
