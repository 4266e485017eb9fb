// Where planes belong: what moves when stores come and go, and how much each store has.
#include "kvstore/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace perigee::kvstore {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr size_t kGroups = 65536;

StoreMap MapOf(size_t stores) {
  StoreMap map;
  for (size_t i = 0; i < stores; ++i) {
    map.stores.push_back({.id = absl::StrCat("store-", i), .address = absl::StrCat("host-", i, ":7100")});
  }
  return map;
}

std::vector<std::string> Names(const StoreMap& map, const std::vector<size_t>& stores) {
  std::vector<std::string> names;
  for (const size_t i : stores) names.push_back(map.stores[i].id);
  return names;
}
std::vector<std::string> Owners(const StoreMap& map, size_t group, size_t replicas) {
  return Names(map, map.Owners(static_cast<PlacementGroup>(group), replicas));
}
std::vector<std::string> Readers(const StoreMap& map, size_t group, size_t serving) {
  return Names(map, map.Readers(static_cast<PlacementGroup>(group), serving));
}

// [store]: groups of which it is the first owner.
std::map<std::string, size_t> Shares(const StoreMap& map) {
  std::map<std::string, size_t> shares;
  for (size_t g = 0; g < kGroups; ++g) ++shares[Owners(map, g, 1)[0]];
  return shares;
}

TEST(Placement, AGroupIsTheDigestsFirstTwoBytesAndTheOrderOfStoresIsForEver) {
  pod::BlockKey root{};
  root.digest[0] = 0x34;
  root.digest[1] = 0x12;
  root.digest[2] = 0xFF;
  EXPECT_EQ(GroupOf(root), 0x1234);
  root.digest[0] = root.digest[1] = 0xFF;
  EXPECT_EQ(GroupOf(root), 0xFFFF);
  // From another implementation (Python), of what placement.h says. Another order would strand what is stored.
  const StoreMap map = MapOf(5);
  EXPECT_THAT(Owners(map, 0, 5), ElementsAre("store-4", "store-0", "store-3", "store-1", "store-2"));
  EXPECT_THAT(Owners(map, 1, 5), ElementsAre("store-1", "store-4", "store-2", "store-3", "store-0"));
  EXPECT_THAT(Owners(map, 65535, 5), ElementsAre("store-3", "store-2", "store-1", "store-0", "store-4"));
}

TEST(Placement, SharesFollowTheWeights) {
  StoreMap map = MapOf(4);
  for (const auto& [store, groups] : Shares(map)) {
    EXPECT_NEAR(static_cast<double>(groups), kGroups / 4.0, kGroups * 0.01) << store;
  }
  map.stores[2].weight = 3;
  map.stores[3].weight = 0.5;
  const std::map<std::string, size_t> shares = Shares(map);
  const double unit = kGroups / 5.5;
  EXPECT_NEAR(static_cast<double>(shares.at("store-0")), unit, kGroups * 0.01);
  EXPECT_NEAR(static_cast<double>(shares.at("store-2")), 3 * unit, kGroups * 0.01);
  EXPECT_NEAR(static_cast<double>(shares.at("store-3")), 0.5 * unit, kGroups * 0.01);
}

TEST(Placement, AStoreThatComesOrGoesMovesItsShareAndNothingElse) {
  const StoreMap with = MapOf(5);
  StoreMap without = with;
  without.stores.erase(without.stores.begin() + 2);
  size_t moved = 0;
  for (size_t g = 0; g < kGroups; ++g) {
    // Of two replicas: those of the others stay where they are, in their order.
    std::vector<std::string> before = Owners(with, g, 2);
    const std::vector<std::string> after = Owners(without, g, 2);
    if (std::erase(before, "store-2") == 0) {
      ASSERT_EQ(before, after) << g;
    } else {
      ++moved;
      ASSERT_EQ(std::count(after.begin(), after.end(), before[0]), 1) << g;
    }
  }
  EXPECT_NEAR(static_cast<double>(moved), kGroups * 2 / 5.0, kGroups * 0.01);
}

TEST(Placement, AHeavierStoreTakesFromOthersAndGivesNothing) {
  const StoreMap before = MapOf(4);
  StoreMap after = before;
  after.stores[1].weight = 2;
  for (size_t g = 0; g < kGroups; ++g) {
    const std::string was = Owners(before, g, 1)[0], is = Owners(after, g, 1)[0];
    ASSERT_TRUE(is == was || is == "store-1") << g << ": " << was << " -> " << is;
  }
}

TEST(Placement, TheOrderOfEntriesAndTheAddressesDoNotMatter) {
  const StoreMap map = MapOf(6);
  StoreMap turned = map;
  std::reverse(turned.stores.begin(), turned.stores.end());
  std::swap(turned.stores[1], turned.stores[4]);
  for (StoreEntry& store : turned.stores) store.address = "elsewhere:1";
  for (size_t g = 0; g < kGroups; g += 7) {
    ASSERT_EQ(Owners(map, g, 6), Owners(turned, g, 6)) << g;
    ASSERT_EQ(Readers(map, g, 3), Readers(turned, g, 3)) << g;
  }
}

TEST(Placement, ADrainingStoreIsReadAtItsPlaceAndNotWrittenTo) {
  const StoreMap serving = MapOf(5);
  StoreMap map = serving;
  map.stores[3].state = StoreState::kDraining;
  size_t read = 0;
  for (size_t g = 0; g < kGroups; g += 3) {
    const std::vector<std::string> before = Owners(serving, g, 3);
    std::vector<std::string> owners = Owners(map, g, 2), readers = Readers(map, g, 2);
    ASSERT_EQ(std::count(owners.begin(), owners.end(), "store-3"), 0) << g;
    ASSERT_EQ(owners.size(), 2u);
    const auto place = std::find(before.begin(), before.begin() + 2, "store-3");
    if (place == before.begin() + 2) {
      // It never held anything of this group's two replicas.
      ASSERT_EQ(readers, owners) << g;
      continue;
    }
    ++read;
    ASSERT_EQ(readers, before) << g;
    std::erase(readers, "store-3");
    ASSERT_EQ(readers, owners) << g;
  }
  EXPECT_GT(read, 0u);
}

TEST(Placement, MoreReplicasThanStoresAreAllOfThemAndNoneAreNone) {
  const StoreMap three = MapOf(3);
  EXPECT_EQ(Owners(three, 9, 99).size(), 3u);
  EXPECT_EQ(Readers(three, 9, 99).size(), 3u);
  EXPECT_THAT(Owners(three, 9, 0), IsEmpty());
  EXPECT_THAT(Readers(three, 9, 0), IsEmpty());
  EXPECT_THAT(StoreMap{}.Owners(9, 2), IsEmpty());
  EXPECT_THAT(StoreMap{}.Readers(9, 2), IsEmpty());
  StoreMap draining = three;
  for (StoreEntry& store : draining.stores) store.state = StoreState::kDraining;
  EXPECT_THAT(Owners(draining, 9, 2), IsEmpty());
  EXPECT_EQ(Readers(draining, 9, 2).size(), 3u) << "nothing can be written, but all is still there";
}

TEST(StoreDirectory, TakesNewerMapsOnlyAndWakesThoseThatWait) {
  StoreDirectory directory(MapOf(2));
  EXPECT_EQ(directory.Get()->stores.size(), 2u);
  StoreMap map = MapOf(3);
  directory.Set(map);
  EXPECT_EQ(directory.Get()->stores.size(), 2u) << "epoch 0 is not newer than 0";
  const std::shared_ptr<const StoreMap> kept = directory.Get();
  EXPECT_FALSE(directory.AwaitNewer(0, absl::Now() + absl::Milliseconds(5)));
  std::thread waiting([&] { EXPECT_TRUE(directory.AwaitNewer(0, absl::Now() + absl::Seconds(20))); });
  map.epoch = 4;
  directory.Set(map);
  waiting.join();
  EXPECT_EQ(directory.Get()->stores.size(), 3u);
  EXPECT_EQ(kept->stores.size(), 2u) << "who has a map keeps it";
  map = MapOf(5);
  map.epoch = 3;
  directory.Set(map);
  EXPECT_EQ(directory.Get()->epoch, 4u);
  EXPECT_FALSE(directory.AwaitNewer(4, absl::Now()));
}

}  // namespace
}  // namespace perigee::kvstore
