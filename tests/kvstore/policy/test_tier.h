// A tier for tests of policies: names, numbers and pins, no bytes.
#ifndef PERIGEE_TESTS_KVSTORE_POLICY_TEST_TIER_H_
#define PERIGEE_TESTS_KVSTORE_POLICY_TEST_TIER_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/policy/eviction_policy.h"

namespace perigee::kvstore {

inline constexpr uint64_t kNoKey = 0;

class TestTier {
 public:
  TestTier(const std::string& policy, PolicyOptions options) : TestTier(MakeEvictionPolicy(policy, options)) {}
  explicit TestTier(absl::StatusOr<std::unique_ptr<EvictionPolicy>> policy) : policy_(*std::move(policy)) {}

  EvictionPolicy& policy() { return *policy_; }
  size_t size() const { return ids_.size(); }
  bool Has(uint64_t key) const { return ids_.contains(key); }
  EntryId id(uint64_t key) const { return ids_.at(key); }

  // facts.parent and key_hash are filled in.
  void Insert(uint64_t key, uint64_t parent = kNoKey, PlaneFacts facts = DefaultFacts()) {
    EntryId id = static_cast<EntryId>(keys_.size());
    if (free_.empty()) {
      keys_.push_back(key);
    } else {
      id = free_.back();
      free_.pop_back();
      keys_[id] = key;
    }
    ids_[key] = id;
    facts.key_hash = Hash(key);
    facts.parent = Has(parent) ? ids_[parent] : kNoEntry;
    policy_->Inserted(id, facts);
  }
  void Touch(uint64_t key) { policy_->Touched(ids_.at(key)); }
  void Remove(uint64_t key) {
    policy_->Removed(ids_.at(key));
    Forget(key);
  }
  void Pin(uint64_t key) { pinned_.insert(key); }
  void Unpin(uint64_t key) {
    pinned_.erase(key);
    if (Has(key)) policy_->Unpinned(ids_.at(key));
  }
  bool Pinned(uint64_t key) const { return pinned_.contains(key); }

  // Evicts one; kNoKey where none may go.
  uint64_t Evict(std::optional<uint32_t> tenant = std::nullopt) {
    const auto victim = policy_->Victim(tenant, [this](EntryId id) { return !pinned_.contains(keys_[id]); });
    if (!victim) return kNoKey;
    const uint64_t key = keys_[*victim];
    EXPECT_TRUE(Has(key) && ids_[key] == *victim) << "a victim that is not there";
    EXPECT_FALSE(Pinned(key));
    policy_->Evicted(*victim, Hash(key));
    Forget(key);
    return key;
  }

  static PlaneFacts DefaultFacts() {
    PlaneFacts facts;
    facts.payload_bytes = 1 << 20;
    facts.cost_us = 1000;
    return facts;
  }
  static uint64_t Hash(uint64_t key) { return (key + 1) * 0xd1342543de82ef95u ^ key << 7; }

 private:
  void Forget(uint64_t key) {
    free_.push_back(ids_.at(key));
    ids_.erase(key);
  }

  std::unique_ptr<EvictionPolicy> policy_;
  std::map<uint64_t, EntryId> ids_;
  std::vector<uint64_t> keys_;
  std::vector<EntryId> free_;
  std::set<uint64_t> pinned_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_POLICY_TEST_TIER_H_
