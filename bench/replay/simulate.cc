#include "replay/simulate.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kvstore/policy/eviction_policy.h"

namespace perigee::bench {
namespace {

using kvstore::EntryId;
using kvstore::kNoEntry;
using kvstore::PlaneFacts;

// Which blocks a tier holds, under which of its policy's numbers.
class Tier {
 public:
  Tier(std::unique_ptr<kvstore::EvictionPolicy> policy, uint64_t capacity, size_t blocks)
      : policy_(std::move(policy)), capacity_(capacity), entries_(blocks, kNoEntry) {}

  bool Has(uint32_t block) const { return entries_[block] != kNoEntry; }
  EntryId entry(uint32_t block) const { return entries_[block]; }
  kvstore::EvictionPolicy& policy() { return *policy_; }
  uint64_t used() const { return used_; }

  // The block that goes when another one comes; kNoBlock where there is room. Nothing: everything is pinned.
  template <typename Pinned>
  std::optional<uint32_t> MakeRoom(const Pinned& pinned) {
    if (used_ < capacity_) return kNoBlock;
    const auto victim = policy_->Victim(std::nullopt, [&](EntryId id) { return !pinned(blocks_[id]); });
    return victim ? std::optional(blocks_[*victim]) : std::nullopt;
  }
  void Insert(uint32_t block, PlaneFacts facts, uint32_t parent) {
    EntryId id;
    if (free_.empty()) {
      id = static_cast<EntryId>(blocks_.size());
      blocks_.push_back(block);
    } else {
      id = free_.back();
      free_.pop_back();
      blocks_[id] = block;
    }
    facts.parent = parent == kNoBlock ? kNoEntry : entries_[parent];
    entries_[block] = id;
    ++used_;
    policy_->Inserted(id, facts);
  }
  void Evict(uint32_t block, uint64_t key_hash) {
    const EntryId id = std::exchange(entries_[block], kNoEntry);
    --used_;
    free_.push_back(id);
    policy_->Evicted(id, key_hash);
  }

 private:
  const std::unique_ptr<kvstore::EvictionPolicy> policy_;
  const uint64_t capacity_;
  uint64_t used_ = 0;
  std::vector<EntryId> entries_;  // [block]
  std::vector<uint32_t> blocks_;  // [entry]
  std::vector<EntryId> free_;
};

class Simulation {
 public:
  Simulation(const Trace& trace, const StoreShape& shape, std::unique_ptr<kvstore::EvictionPolicy> dram_policy,
             std::unique_ptr<kvstore::EvictionPolicy> ssd_policy)
      : trace_(trace),
        shape_(shape),
        dram_(std::move(dram_policy), shape.dram_blocks, trace.parents.size()),
        tokens_(trace.parents.size(), kTraceBlockTokens),
        used_by_(trace.parents.size(), 0) {
    if (ssd_policy) ssd_.emplace(std::move(ssd_policy), shape.ssd_blocks, trace.parents.size());
  }

  ReplayResult Run() {
    for (const TraceRequest& request : trace_.requests) {
      ++request_;
      Serve(request);
    }
    return result_;
  }

 private:
  double ComputeUs(uint32_t block) const { return shape_.compute_us_per_token * tokens_[block]; }
  double TransferUs() const { return static_cast<double>(shape_.block_bytes) / shape_.ssd_bytes_per_us; }
  bool Pinned(uint32_t block) const { return used_by_[block] == request_; }
  // Of DRAM's copy, or of one that is about to go to the SSD.
  PlaneFacts FactsOf(uint32_t block, bool on_ssd) const {
    PlaneFacts facts;
    facts.key_hash = KeyHash(block);
    facts.payload_bytes = shape_.block_bytes;
    facts.cost_us = on_ssd ? TransferUs() : ComputeUs(block);
    facts.last_copy = !on_ssd;
    return facts;
  }
  static uint64_t KeyHash(uint32_t block) { return (block + uint64_t{1}) * 0xd1342543de82ef95u; }

  void Serve(const TraceRequest& request) {
    const auto& blocks = request.blocks;
    size_t prefix = 0;
    while (prefix < blocks.size() && (dram_.Has(blocks[prefix]) || (ssd_ && ssd_->Has(blocks[prefix])))) ++prefix;
    result_.blocks += blocks.size();
    result_.hit_blocks += prefix;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const uint32_t block = blocks[i];
      used_by_[block] = request_;
      tokens_[block] = request.TokensOf(i);
      result_.tokens += tokens_[block];
      if (i < prefix) (dram_.Has(block) ? result_.dram_hit_tokens : result_.ssd_hit_tokens) += tokens_[block];
    }
    for (const uint32_t block : blocks) {
      if (ssd_ && ssd_->Has(block)) ssd_->policy().Touched(ssd_->entry(block));
      if (dram_.Has(block)) {
        dram_.policy().Touched(dram_.entry(block));
      } else if (!Bring(block)) {
        break;
      }
    }
    for (const uint32_t block : blocks) {
      if (dram_.Has(block)) dram_.policy().Unpinned(dram_.entry(block));
      if (ssd_ && ssd_->Has(block)) ssd_->policy().Unpinned(ssd_->entry(block));
    }
  }

  bool Bring(uint32_t block) {
    const auto victim = dram_.MakeRoom([this](uint32_t b) { return Pinned(b); });
    if (!victim) return false;
    if (*victim != kNoBlock) Demote(*victim);
    dram_.Insert(block, FactsOf(block, ssd_ && ssd_->Has(block)), trace_.parents[block]);
    result_.dram_peak_blocks = std::max(result_.dram_peak_blocks, dram_.used());
    return true;
  }

  void Demote(uint32_t block) {
    ++result_.dram_evictions;
    PlaneFacts facts = FactsOf(block, false);
    facts.past = dram_.policy().PastOf(dram_.entry(block));
    dram_.Evict(block, facts.key_hash);
    if (!ssd_ || ssd_->Has(block) || !ssd_->policy().Admit(facts, shape_.ssd_busy * TransferUs())) return;
    const auto victim = ssd_->MakeRoom([this](uint32_t b) { return Pinned(b); });
    if (!victim) return;
    if (*victim != kNoBlock) {
      ++result_.ssd_evictions;
      ssd_->Evict(*victim, KeyHash(*victim));
      if (dram_.Has(*victim)) {
        dram_.policy().CostChanged(dram_.entry(*victim), shape_.block_bytes, ComputeUs(*victim), true);
      }
    }
    ssd_->Insert(block, facts, trace_.parents[block]);
    ++result_.ssd_written_blocks;
    result_.ssd_peak_blocks = std::max(result_.ssd_peak_blocks, ssd_->used());
  }

  const Trace& trace_;
  const StoreShape shape_;
  Tier dram_;
  std::optional<Tier> ssd_;
  std::vector<uint32_t> tokens_;   // [block], as last asked for
  std::vector<uint64_t> used_by_;  // [block]: the last request that asked for it
  uint64_t request_ = 0;
  ReplayResult result_;
};

absl::StatusOr<std::unique_ptr<kvstore::EvictionPolicy>> PolicyFor(absl::string_view name, uint64_t blocks) {
  return kvstore::MakeEvictionPolicy(name, {.max_entries = blocks});
}

}  // namespace

absl::StatusOr<ReplayResult> Replay(const Trace& trace, absl::string_view policy, const StoreShape& shape) {
  PERIGEE_ASSIGN_OR_RETURN(auto dram, PolicyFor(policy, shape.dram_blocks));
  std::unique_ptr<kvstore::EvictionPolicy> ssd;
  if (shape.ssd_blocks > 0) {
    PERIGEE_ASSIGN_OR_RETURN(ssd, PolicyFor(policy, shape.ssd_blocks));
  }
  return Simulation(trace, shape, std::move(dram), std::move(ssd)).Run();
}

ReplayResult Belady(const Trace& trace, uint64_t capacity_blocks) {
  constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
  ReplayResult result;
  for (const TraceRequest& r : trace.requests) result.blocks += r.blocks.size();
  std::vector<uint64_t> next_use(result.blocks), seen(trace.parents.size(), kNever);
  uint64_t at = result.blocks;
  for (auto r = trace.requests.rbegin(); r != trace.requests.rend(); ++r) {
    for (auto b = r->blocks.rbegin(); b != r->blocks.rend(); ++b) {
      next_use[--at] = seen[*b];
      seen[*b] = at;
    }
  }
  std::set<std::pair<uint64_t, uint32_t>> stored;  // next use, block
  for (const TraceRequest& r : trace.requests) {
    for (size_t i = 0; i < r.blocks.size(); ++i, ++at) {
      const uint32_t block = r.blocks[i];
      result.tokens += r.TokensOf(i);
      if (stored.erase({at, block}) > 0) {
        ++result.hit_blocks;
        result.dram_hit_tokens += r.TokensOf(i);
      }
      if (next_use[at] == kNever) continue;
      stored.emplace(next_use[at], block);
      if (stored.size() > capacity_blocks) {
        result.dram_evictions += std::prev(stored.end())->second != block;
        stored.erase(std::prev(stored.end()));
      }
      result.dram_peak_blocks = std::max<uint64_t>(result.dram_peak_blocks, stored.size());
    }
  }
  return result;
}

}  // namespace perigee::bench
