#include "prefill_node/computing.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace perigee::prefill_node {
namespace {

constexpr absl::Duration kAskEvery = absl::Milliseconds(50);

}  // namespace

Computing::Claim::Claim(Claim&& other) noexcept
    : computing_(std::exchange(other.computing_, nullptr)), keys_(std::move(other.keys_)) {}

Computing::Claim& Computing::Claim::operator=(Claim&& other) noexcept {
  std::swap(computing_, other.computing_);
  std::swap(keys_, other.keys_);
  return *this;
}

Computing::Claim::~Claim() {
  if (computing_ != nullptr) computing_->Release(keys_);
}

bool Computing::ClaimOrWait(std::span<const pod::BlockKey> keys, absl::Time deadline, Claim* claim,
                            const std::function<bool()>& cancelled) {
  if (keys.empty()) return true;
  absl::MutexLock lock(&mu_);
  const auto first = owners_.find(keys[0]);
  if (first == owners_.end()) {
    const uint64_t number = next_++;
    Claim mine;
    mine.computing_ = this;
    for (const pod::BlockKey& key : keys) {
      if (owners_.emplace(key, number).second) mine.keys_.push_back(key);
    }
    *claim = std::move(mine);
    return true;
  }
  // A block's key covers everything before it: what the two have in common is a beginning of both.
  const uint64_t owner = first->second;
  size_t common = 1;
  while (common < keys.size()) {
    const auto found = owners_.find(keys[common]);
    if (found == owners_.end() || found->second != owner) break;
    ++common;
  }
  const auto done = [this, owner, last = keys[common - 1]]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    const auto found = owners_.find(last);
    return found == owners_.end() || found->second != owner;
  };
  while (!mu_.AwaitWithDeadline(absl::Condition(&done), std::min(deadline, absl::Now() + kAskEvery))) {
    if (absl::Now() >= deadline || (cancelled != nullptr && cancelled())) break;
  }
  return false;
}

void Computing::Release(const std::vector<pod::BlockKey>& keys) {
  absl::MutexLock lock(&mu_);
  for (const pod::BlockKey& key : keys) owners_.erase(key);
}

}  // namespace perigee::prefill_node
