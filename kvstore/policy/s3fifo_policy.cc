// S3-FIFO (Yang et al., SOSP'23): newcomers pass through a small queue, a tenth of the entries; who was used there more
// than once, or comes back soon after, gets into the main queue, where every use is forgiven one round, three at most.
// Two queues per tenant and kind of copy; copies go before last copies.
#include <vector>

#include "kvstore/policy/ghost_history.h"
#include "kvstore/policy/policies.h"

namespace perigee::kvstore {
namespace {

constexpr uint32_t kQueuesPerTenant = 4;

class S3FifoPolicy : public EvictionPolicy {
 public:
  explicit S3FifoPolicy(const PolicyOptions& options)
      : entries_(options.max_entries),
        frequency_(options.max_entries),
        ghosts_(GhostEntries(options, UsualEntries(options))) {}
  absl::string_view name() const override { return "s3fifo"; }

  void Inserted(EntryId id, const PlaneFacts& facts) override {
    if (facts.tenant >= tenants_) {
      tenants_ = facts.tenant + 1;
      counts_.resize(size_t{tenants_} * kQueuesPerTenant);
    }
    const auto ghost = ghosts_.Take(facts.key_hash);
    const EntryQueues::Queue q = facts.tenant * kQueuesPerTenant + 2 * facts.last_copy + (ghost ? 1 : 0);
    entries_.Add(id, facts, q);
    ++counts_[q];
    frequency_[id] = 0;
    entries_[id].tick = ++clock_;
  }
  void Touched(EntryId id) override {
    auto& e = entries_[id];
    frequency_[id] = std::min(frequency_[id] + 1, 3);
    if (e.past.uses < UINT8_MAX) ++e.past.uses;
  }
  void Unpinned(EntryId id) override { entries_.Return(id); }
  void CostChanged(EntryId id, uint64_t, double, bool last_copy) override {
    const EntryQueues::Queue q = entries_[id].queue;
    const EntryQueues::Queue wanted = q / kQueuesPerTenant * kQueuesPerTenant + 2 * last_copy + q % 2;
    Count(id, wanted);
    entries_.MoveAcross(id, wanted);
  }
  void Evicted(EntryId id, uint64_t key_hash) override {
    if (entries_[id].queue % 2 == 0) ghosts_.Add(key_hash, {.evicted_tick = clock_}, clock_);
    Removed(id);
  }
  void Removed(EntryId id) override {
    --counts_[entries_[id].queue];
    const EntryId parent = entries_.Remove(id);
    if (parent != kNoEntry) entries_.Return(parent);
  }

  std::optional<EntryId> Victim(std::optional<uint32_t> tenant, Evictable evictable) override {
    for (const bool last_copy : {false, true}) {
      EntryId first = kNoEntry;
      for (uint32_t t = tenant.value_or(0); t < (tenant ? *tenant + 1 : tenants_); ++t) {
        const EntryId id = Search(t * kQueuesPerTenant + 2 * last_copy, evictable);
        if (id != kNoEntry && (first == kNoEntry || clock_ - entries_[id].tick > clock_ - entries_[first].tick))
          first = id;
      }
      if (first != kNoEntry) return first;
    }
    return LastResort(entries_, kQueuesPerTenant, tenant, evictable);
  }
  bool Admit(const PlaneFacts& facts, double) override {
    if (facts.past.uses > 0 || ghosts_.Contains(facts.key_hash)) return true;
    // Seen once: the next time it comes by, it gets in.
    ghosts_.Add(facts.key_hash, {.evicted_tick = clock_}, clock_);
    return false;
  }
  Past PastOf(EntryId id) const override { return entries_[id].past; }
  size_t MemoryBytes() const override {
    return entries_.MemoryBytes() + frequency_.capacity() + counts_.capacity() * sizeof(uint64_t) +
           ghosts_.MemoryBytes();
  }

 private:
  void Count(EntryId id, EntryQueues::Queue to) {
    --counts_[entries_[id].queue];
    ++counts_[to];
  }
  EntryId Search(EntryQueues::Queue small, Evictable evictable) {
    if (small >= counts_.size()) return kNoEntry;
    const EntryQueues::Queue main = small + 1;
    for (;;) {
      const bool from_small =
          !entries_.empty(small) && (entries_.empty(main) || counts_[small] * 10 >= counts_[small] + counts_[main]);
      const EntryId id = entries_.oldest(from_small ? small : main);
      if (id == kNoEntry) return kNoEntry;
      if (from_small && frequency_[id] > 1) {
        frequency_[id] = 0;
        Count(id, main);
        entries_.MoveToNewest(id, main);
      } else if (!from_small && frequency_[id] > 0) {
        --frequency_[id];
        entries_.MoveToNewest(id, main);
      } else if (entries_.FreeOrAside(id, evictable)) {
        return id;
      }
    }
  }

  EntryQueues entries_;
  std::vector<uint8_t> frequency_;
  std::vector<uint64_t> counts_;  // by queue, those aside included
  GhostHistory ghosts_;
  uint32_t clock_ = 0;
  uint32_t tenants_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeS3FifoPolicy(const PolicyOptions& options) {
  return std::make_unique<S3FifoPolicy>(options);
}

}  // namespace perigee::kvstore
