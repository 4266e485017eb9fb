#include "kvstore/placement.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/string_view.h"

namespace perigee::kvstore {
namespace {

// FNV-1a over the store's id, then splitmix64's finaliser over that and the group: the same on every machine, for ever.
uint64_t Mix(absl::string_view id, PlacementGroup group) {
  uint64_t h = 0xCBF29CE484222325;
  for (const char c : id) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  h += (uint64_t{group} + 1) * 0x9E3779B97F4A7C15;
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EB;
  return h ^ (h >> 31);
}

// Highest score wins with a probability proportional to the weight.
double Score(const StoreEntry& store, PlacementGroup group) {
  const double uniform = (static_cast<double>(Mix(store.id, group) >> 11) + 0.5) * 0x1p-53;
  return -store.weight / std::log(uniform);
}

std::vector<size_t> Ranked(const std::vector<StoreEntry>& stores, PlacementGroup group) {
  std::vector<std::pair<double, size_t>> scored;
  for (size_t i = 0; i < stores.size(); ++i) scored.emplace_back(Score(stores[i], group), i);
  std::sort(scored.begin(), scored.end(), [&](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : stores[a.second].id < stores[b.second].id;
  });
  std::vector<size_t> ranked;
  for (const auto& [score, index] : scored) ranked.push_back(index);
  return ranked;
}

}  // namespace

PlacementGroup GroupOf(const pod::BlockKey& root) {
  return static_cast<PlacementGroup>(root.digest[0] | root.digest[1] << 8);
}

std::vector<size_t> StoreMap::Owners(PlacementGroup group, size_t replicas) const {
  std::vector<size_t> owners;
  for (const size_t i : Ranked(stores, group)) {
    if (owners.size() == replicas) break;
    if (stores[i].state == StoreState::kServing) owners.push_back(i);
  }
  return owners;
}

std::vector<size_t> StoreMap::Readers(PlacementGroup group, size_t serving) const {
  std::vector<size_t> readers;
  size_t found = 0;
  for (const size_t i : Ranked(stores, group)) {
    const bool serves = stores[i].state == StoreState::kServing;
    // Below the last serving one that is looked at, a draining store never held anything of this group.
    if (found == serving) break;
    readers.push_back(i);
    if (serves) ++found;
  }
  return readers;
}

StoreDirectory::StoreDirectory(StoreMap map) : map_(std::make_shared<const StoreMap>(std::move(map))) {}

std::shared_ptr<const StoreMap> StoreDirectory::Get() const {
  absl::MutexLock lock(&mu_);
  return map_;
}

void StoreDirectory::Set(StoreMap map) {
  absl::MutexLock lock(&mu_);
  if (map.epoch > map_->epoch) map_ = std::make_shared<const StoreMap>(std::move(map));
}

bool StoreDirectory::AwaitNewer(uint64_t epoch, absl::Time deadline) const {
  absl::MutexLock lock(&mu_);
  const auto newer = [this, epoch]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return map_->epoch > epoch; };
  return mu_.AwaitWithDeadline(absl::Condition(&newer), deadline);
}

}  // namespace perigee::kvstore
