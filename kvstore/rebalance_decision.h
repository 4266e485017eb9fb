// What a store does about one of its planes, once it knows what the plane's owners have. Pure.
#ifndef PERIGEE_KVSTORE_REBALANCE_DECISION_H_
#define PERIGEE_KVSTORE_REBALANCE_DECISION_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvstore/miss_history.h"

namespace perigee::kvstore {

// A plane in one of the stores that own it.
enum class OwnersCopy : uint8_t {
  kThere,
  kMissing,
  kEvicted,  // It was there later than ours came, and had to go: to send it again would only make others go.
  kDeleted,  // Somebody deleted it there, later than ours came: ours was overlooked.
  kUnknown,  // The store does not answer.
};

// created_unix_us: when the asking store's copy came.
inline OwnersCopy CopyOf(const Miss& miss, int64_t created_unix_us) {
  if (miss.when_unix_us <= created_unix_us) return OwnersCopy::kMissing;
  if (miss.reason == MissReason::kDeleted) return OwnersCopy::kDeleted;
  return miss.reason == MissReason::kEvicted ? OwnersCopy::kEvicted : OwnersCopy::kMissing;
}

struct RebalanceDecision {
  std::vector<size_t> send_to;  // Owners, by rank.
  bool give_up = false;         // Our copy is not needed.
};

// copies: one per owner, best first. rank: our own place among them (its copy is there), nullopt where the plane does
// not belong to us. Of several stores that have it only the best owner sends it to the others; who is no owner sends it
// only where no owner has it.
inline RebalanceDecision DecideRebalance(std::span<const OwnersCopy> copies, std::optional<size_t> rank) {
  const auto any = [&](OwnersCopy wanted, std::span<const OwnersCopy> among) {
    return std::find(among.begin(), among.end(), wanted) != among.end();
  };
  RebalanceDecision decision;
  const auto send_where = [&](auto wanted) {
    for (size_t i = 0; i < copies.size(); ++i) {
      if (wanted(copies[i])) decision.send_to.push_back(i);
    }
  };
  if (rank) {
    const std::span<const OwnersCopy> better = copies.first(*rank);
    if (any(OwnersCopy::kThere, better) || any(OwnersCopy::kUnknown, better)) return decision;
    send_where([](OwnersCopy copy) { return copy == OwnersCopy::kMissing; });
    return decision;
  }
  if (any(OwnersCopy::kThere, copies)) {
    decision.give_up = !any(OwnersCopy::kMissing, copies) && !any(OwnersCopy::kUnknown, copies);
  } else if (any(OwnersCopy::kDeleted, copies)) {
    decision.give_up = !any(OwnersCopy::kUnknown, copies);
  } else {
    send_where([](OwnersCopy copy) { return copy == OwnersCopy::kMissing || copy == OwnersCopy::kEvicted; });
  }
  return decision;
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REBALANCE_DECISION_H_
