// What etcd's keys say, as a view: the rules that real servers show only by chance.
#include "cluster/membership/etcd_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/membership/record.h"
#include "members.h"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const EtcdKeys kKeys{"/p/"};
const absl::Time kStart = absl::FromUnixSeconds(1000);

mvccpb::KeyValue Value(const std::string& key, const std::string& value, int64_t revision = 1) {
  mvccpb::KeyValue kv;
  kv.set_key(key);
  kv.set_value(value);
  kv.set_mod_revision(revision);
  return kv;
}
mvccpb::KeyValue NodeValue(const NodeRecord& node) { return Value(kKeys.Node(node.id), RecordToJson(node)); }
mvccpb::KeyValue PlacementValue(uint64_t epoch, std::vector<std::string> ids) {
  kvstore::StoreMap map{.epoch = epoch, .stores = {}};
  for (const std::string& id : ids) map.stores.push_back({.id = id, .address = "127.0.0.1:7100"});
  return Value(kKeys.Placement(), StoreMapToJson(map), static_cast<int64_t>(epoch));
}
mvccpb::Event Put(const mvccpb::KeyValue& kv) {
  mvccpb::Event event;
  *event.mutable_kv() = kv;
  return event;
}
mvccpb::Event Delete(const std::string& key) {
  mvccpb::Event event;
  event.set_type(mvccpb::Event::DELETE);
  event.mutable_kv()->set_key(key);
  return event;
}
std::vector<std::string> Ids(const EtcdState& state, absl::Time now) {
  std::vector<std::string> ids;
  for (const NodeRecord& node : state.Nodes(now)) ids.push_back(node.id);
  return ids;
}

TEST(EtcdState, StoresAreShownAsThePlacementHasThem) {
  EtcdState state("/p/");
  state.Apply(Put(NodeValue(MakeStore("s1"))), kStart);
  EXPECT_THAT(Ids(state, kStart), IsEmpty()) << "not placed on yet";
  const auto wanted = state.WantedPlacement(kStart);
  ASSERT_TRUE(wanted.has_value());
  EXPECT_EQ(wanted->epoch, 1u);
  state.Apply(Put(PlacementValue(1, {"s1"})), kStart);
  EXPECT_THAT(Ids(state, kStart), ElementsAre("s1"));
  EXPECT_EQ(state.placement_epoch(), 1u);
  EXPECT_FALSE(state.WantedPlacement(kStart).has_value());

  state.Apply(Put(Value(kKeys.State("s1"), StateToJson(NodeState::kDraining))), kStart);
  EXPECT_EQ(state.Nodes(kStart)[0].state, NodeState::kServing) << "the same epoch, the same store";
  EXPECT_EQ(state.WantedPlacement(kStart)->epoch, 2u);
  EXPECT_EQ(state.WantedPlacement(kStart)->stores[0].state, kvstore::StoreState::kDraining);
}

TEST(EtcdState, TheEpochNeverGoesBack) {
  for (const uint64_t written : {uint64_t{3}, uint64_t{41}}) {
    EtcdState state("/p/");
    state.Replace(std::vector{NodeValue(MakeStore("s1")), PlacementValue(41, {"s1"})}, kStart);
    ASSERT_FALSE(state.WantedPlacement(kStart).has_value());
    // etcd was set up anew, and somebody who knew nothing has written a placement.
    state.Replace(std::vector{NodeValue(MakeStore("s2")), PlacementValue(written, {"s2"})}, kStart);
    EXPECT_EQ(state.placement_epoch(), 41u);
    EXPECT_THAT(Ids(state, kStart), ElementsAre("s1")) << "41 stands for this one";
    const auto wanted = state.WantedPlacement(kStart);
    ASSERT_TRUE(wanted.has_value());
    EXPECT_EQ(wanted->epoch, 42u);
    EXPECT_EQ(wanted->stores.at(0).id, "s2");
    EXPECT_EQ(state.placement_revision(), static_cast<int64_t>(written));
  }
}

TEST(EtcdState, AfterABreakMissingNodesAreKeptUntilTheTimeIsOverOrTheyAreRemoved) {
  NodeRecord decode = MakeNode("d1", Role::kDecode);
  decode.incarnation = 7;
  const absl::Time until = kStart + absl::Seconds(10);
  const auto after_break = [&] {
    EtcdState state("/p/");
    state.Replace(std::vector{NodeValue(decode), NodeValue(MakeStore("s1")), PlacementValue(1, {"s1"})}, kStart);
    state.HoldUntil(until);
    state.Replace(std::vector{PlacementValue(1, {"s1"})}, kStart);
    return state;
  };
  EtcdState state = after_break();
  EXPECT_THAT(Ids(state, kStart), ElementsAre("d1", "s1"));
  EXPECT_FALSE(state.WantedPlacement(kStart).has_value());
  EXPECT_THAT(Ids(state, until), ElementsAre("s1")) << "until the placement is written";
  EXPECT_THAT(state.WantedPlacement(until)->stores, IsEmpty());

  state.Apply(Put(Value(kKeys.Removed("d1"), RemovalToJson(6))), kStart);
  EXPECT_THAT(Ids(state, kStart), ElementsAre("d1", "s1")) << "an earlier start of it was removed";
  state.Apply(Put(Value(kKeys.Removed("d1"), RemovalToJson(7))), kStart);
  EXPECT_THAT(Ids(state, kStart), ElementsAre("s1"));

  EtcdState later = after_break();
  later.Apply(Put(NodeValue(decode)), kStart);
  EXPECT_THAT(Ids(later, until), ElementsAre("d1", "s1")) << "it has come back";
  later.Apply(Delete(kKeys.Node("d1")), until);
  EXPECT_THAT(Ids(later, until), ElementsAre("s1")) << "without a break it is gone at once";
}

TEST(EtcdState, AStoreThatOthersHaveDroppedMeanwhileIsNotPutBack) {
  EtcdState state("/p/");
  state.Replace(std::vector{NodeValue(MakeStore("s1")), PlacementValue(1, {"s1"})}, kStart);
  state.HoldUntil(kStart + absl::Seconds(10));
  state.Replace(std::vector{PlacementValue(2, {})}, kStart);
  EXPECT_THAT(Ids(state, kStart), IsEmpty());
  EXPECT_FALSE(state.WantedPlacement(kStart).has_value()) << "else this process and the others would write in turns";
}

TEST(EtcdState, ADeletedPlacementIsWrittenAgainUnderAHigherEpoch) {
  EtcdState state("/p/");
  state.Replace(std::vector{NodeValue(MakeStore("s1")), PlacementValue(5, {"s1"})}, kStart);
  state.Apply(Delete(kKeys.Placement()), kStart);
  EXPECT_THAT(Ids(state, kStart), ElementsAre("s1"));
  EXPECT_EQ(state.placement_revision(), 0);
  EXPECT_EQ(state.WantedPlacement(kStart)->epoch, 6u);
}

TEST(EtcdState, AnIdThatStopsBeingAStoreStandsOnlyOnce) {
  EtcdState state("/p/");
  state.Replace(std::vector{NodeValue(MakeStore("n")), PlacementValue(5, {"n"})}, kStart);
  state.Apply(Put(NodeValue(MakeNode("n", Role::kDecode))), kStart);
  EXPECT_EQ(state.Nodes(kStart).size(), 1u);
  EXPECT_EQ(state.Nodes(kStart)[0].role, Role::kStore) << "planes are still placed on it";
  EXPECT_THAT(state.WantedPlacement(kStart)->stores, IsEmpty());
  state.Apply(Put(PlacementValue(6, {})), kStart);
  EXPECT_EQ(state.Nodes(kStart).at(0).role, Role::kDecode);
}

}  // namespace
}  // namespace perigee::cluster
