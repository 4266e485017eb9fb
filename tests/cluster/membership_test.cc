// Records as JSON, the static membership, command-line specs, and the feeder of store directories.
#include "cluster/membership/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "cluster/membership/directory_feeder.h"
#include "cluster/membership/open_membership.h"
#include "cluster/membership/record.h"
#include "cluster/membership/static_membership.h"
#include "members.h"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

NodeRecord FullRecord() {
  NodeRecord node = MakeNode("decode-1.rack_7", Role::kDecode, 7301);
  node.metrics_address = "[::1]:9100";
  node.state = NodeState::kDraining;
  node.weight = 2.5;
  node.capacity = {.dram_bytes = UINT64_MAX, .ssd_bytes = 1, .pool_bytes = 1ull << 40, .max_sequences = UINT32_MAX};
  node.load = {.dram_used_bytes = 1, .ssd_used_bytes = 2, .pool_used_bytes = 3, .running = 4, .queued = 5};
  node.model_fingerprint = std::string(64, 'a');
  node.plan_id = std::string(64, '7');
  node.started_unix_us = 1700000000123456;
  node.incarnation = kMaxEpoch;
  return node;
}

TEST(Record, IsTheSameAfterJson) {
  for (const NodeRecord& node : {FullRecord(), MakeStore("s")}) {
    const auto again = RecordFromJson(RecordToJson(node));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, node);
  }
}

TEST(Record, IgnoresFieldsOfOtherVersionsAndFillsInTheRest) {
  const auto node = RecordFromJson(R"({"id":"s1","role":"store","address":"host:7100","shiny":{"new":[1,2]}})");
  ASSERT_TRUE(node.ok()) << node.status();
  NodeRecord expected = MakeStore("s1");
  expected.address = "host:7100";
  EXPECT_EQ(*node, expected);
}

TEST(Record, RefusesWhatCannotBeAndNamesIt) {
  const std::string good = R"({"id":"s1","role":"store","address":"host:7100","weight":1.0,"state":"serving"})";
  ASSERT_TRUE(RecordFromJson(good).ok());
  const std::vector<std::pair<std::string, std::string>> changes = {
      {R"("s1")", R"("a/b")"},
      {R"("s1")", R"("")"},
      {R"("s1")", "7"},
      {R"("store")", R"("storage")"},
      {R"("store")", "null"},
      {R"("host:7100")", R"("host")"},
      {R"("host:7100")", R"("host:0")"},
      {R"("host:7100")", R"("host:65536")"},
      {R"("host:7100")", R"(":7100")"},
      {R"("host:7100")", R"("a b:1")"},
      {"1.0", "0"},
      {"1.0", "-1"},
      {"1.0", "1e300"},
      {"1.0", R"("1")"},
      {R"("serving")", R"("tired")"},
      {"1.0", R"(1,"load":7)"},
      {"1.0", R"(1,"load":{"running":-1})"},
      {"1.0", R"(1,"capacity":{"dram_bytes":1.5})"},
      {"1.0", R"(1,"capacity":{"max_sequences":4294967296})"},
      {"1.0", R"(1,"plan_id":"xyz")"},
      {"1.0", R"(1,"incarnation":9007199254740992)"},
      {"1.0", R"(1,"started_unix_us":-5)"}};
  for (const auto& [from, to] : changes) {
    const std::string bad = absl::StrReplaceAll(good, {{from, to}});
    ASSERT_NE(bad, good);
    const absl::Status status = RecordFromJson(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("\"")) << bad << " should be told with the field's name";
  }
  for (const std::string missing : {R"("id":"s1",)", R"("role":"store",)", R"("address":"host:7100",)"}) {
    EXPECT_FALSE(RecordFromJson(absl::StrReplaceAll(good, {{missing, ""}})).ok()) << missing;
  }
  EXPECT_THAT(std::string(RecordFromJson("{\n\"id\": s1}").status().message()), HasSubstr("line 2"));
  for (const char* text : {"", "[]", "7", "{", "{\"id\":\"\xFF\"}", "null"}) {
    EXPECT_EQ(RecordFromJson(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_FALSE(RecordFromJson(std::string(100000, '[')).ok());
}

TEST(MembershipFile, IsTheSameAfterJsonAndRefusesDoubles) {
  const MembershipFile file{.epoch = 7, .nodes = {FullRecord(), MakeStore("s1")}};
  const auto again = FileFromJson(FileToJson(file));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->epoch, 7u);
  EXPECT_EQ(again->nodes, file.nodes);

  const MembershipFile twice{.epoch = 7, .nodes = {MakeStore("s1"), MakeStore("s1", 7101)}};
  EXPECT_THAT(std::string(FileFromJson(FileToJson(twice)).status().message()), HasSubstr("'s1' stands twice"));
  for (const char* text : {R"({"nodes":[]})", R"({"epoch":0,"nodes":[]})", R"({"epoch":1})",
                           R"({"epoch":1,"nodes":{}})", R"({"epoch":1,"nodes":[3]})", R"({"epoch":1.5,"nodes":[]})"}) {
    EXPECT_EQ(FileFromJson(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_THAT(
      std::string(FileFromJson(R"({"epoch":1,"nodes":[{"id":"s1","role":"x","address":"h:1"}]})").status().message()),
      HasSubstr("nodes[0]: node s1: \"role\""));
}

TEST(MembershipFile, RefusesListsOfAnyDepth) {
  const std::string deep = std::string(300000, '[') + std::string(300000, ']');
  for (const std::string& text : {deep, absl::StrCat(R"({"epoch":1,"nodes":)", deep, "}"),
                                  absl::StrCat(R"({"epoch":)", deep, R"(,"nodes":[]})")}) {
    EXPECT_EQ(FileFromJson(text).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(StoreMap, IsTheSameAfterJson) {
  const kvstore::StoreMap map{.epoch = 12,
                              .stores = {{.id = "a", .address = "h:1", .weight = 0.5},
                                         {.id = "b", .address = "h:2", .state = kvstore::StoreState::kDraining}}};
  const auto again = StoreMapFromJson(StoreMapToJson(map));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->epoch, 12u);
  EXPECT_EQ(again->stores, map.stores);
  EXPECT_FALSE(StoreMapFromJson(R"({"epoch":1,"stores":[{"id":"a","address":"h:1","weight":0}]})").ok());
}

TEST(StoresOf, TakesStoresOnlyWithTheirState) {
  ClusterView view{.placement_epoch = 5, .nodes = {MakeNode("d", Role::kDecode), MakeStore("s")}, .as_of = {}};
  view.nodes[1].state = NodeState::kDraining;
  view.nodes[1].weight = 3;
  const kvstore::StoreMap map = StoresOf(view);
  EXPECT_EQ(map.epoch, 5u);
  EXPECT_THAT(map.stores,
              ElementsAre(kvstore::StoreEntry{
                  .id = "s", .address = "127.0.0.1:7100", .weight = 3, .state = kvstore::StoreState::kDraining}));
}

class StaticTest : public FolderTest {
 protected:
  StaticTest() : path_(folder_ + "/cluster.json") {}
  void Write(const std::string& text) { ASSERT_TRUE(WriteFileAtomically(path_, text).ok()); }
  void Write(const MembershipFile& file) { Write(FileToJson(file)); }
  std::unique_ptr<StaticMembership> Open() {
    auto membership = StaticMembership::Open(path_, {.poll_interval = absl::Milliseconds(5)});
    EXPECT_TRUE(membership.ok()) << membership.status();
    return *std::move(membership);
  }
  std::string path_;
};

TEST_F(StaticTest, OpensOnlyAFileThatIsThereAndRight) {
  EXPECT_EQ(StaticMembership::Open(path_).status().code(), absl::StatusCode::kNotFound);
  Write("{]");
  const absl::Status wrong = StaticMembership::Open(path_).status();
  EXPECT_EQ(wrong.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(wrong.message()), HasSubstr(path_));
}

TEST_F(StaticTest, OthersSeeJoinDrainAndRemovalWithGrowingEpochs) {
  Write(MembershipFile{});
  const auto here = Open();
  const auto there = Open();
  EXPECT_EQ(here->View()->placement_epoch, 1u);
  const auto store = here->Join(MakeStore("s1"));
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE((*store)->Status().ok());
  EXPECT_THAT(Ids(*here->View()), ElementsAre("s1")) << "the own change is seen at once";
  EXPECT_THAT(AwaitIds(*there, {"s1"}), ElementsAre("s1"));
  EXPECT_EQ(there->View()->placement_epoch, 2u);
  EXPECT_NE(there->View()->nodes[0].incarnation, 0u);

  ASSERT_TRUE(there->Join(MakeNode("d1", Role::kDecode)).ok());
  EXPECT_THAT(AwaitIds(*here, {"d1", "s1"}), ElementsAre("d1", "s1"));
  EXPECT_EQ(here->View()->placement_epoch, 2u) << "a decode node is not placed on";

  ASSERT_TRUE(there->SetState("s1", NodeState::kDraining).ok());
  EXPECT_TRUE(AwaitState(*here, "s1", NodeState::kDraining));
  EXPECT_EQ(here->View()->placement_epoch, 3u);
  ASSERT_TRUE(here->Remove("s1").ok());
  EXPECT_THAT(AwaitIds(*there, {"d1"}), ElementsAre("d1"));
  EXPECT_EQ(there->View()->placement_epoch, 4u);
  EXPECT_EQ(here->Remove("s1").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(here->SetState("s1", NodeState::kServing).code(), absl::StatusCode::kNotFound);
}

TEST_F(StaticTest, ANodeThatRestartsStaysAMemberAndStaysDrained) {
  Write(MembershipFile{});
  const auto membership = Open();
  ASSERT_TRUE(membership->Join(MakeStore("s1")).ok());
  EXPECT_THAT(Ids(*membership->View()), ElementsAre("s1")) << "the registration is gone, the node is not";
  ASSERT_TRUE(membership->SetState("s1", NodeState::kDraining).ok());
  const uint64_t epoch = membership->View()->placement_epoch;
  ASSERT_TRUE(membership->Join(MakeStore("s1")).ok());
  EXPECT_EQ(membership->View()->nodes[0].state, NodeState::kDraining);
  EXPECT_EQ(membership->View()->placement_epoch, epoch) << "the same store at the same place";
  ASSERT_TRUE(membership->Join(MakeStore("s1", 7199)).ok());
  EXPECT_EQ(membership->View()->placement_epoch, epoch + 1) << "another address";
}

TEST_F(StaticTest, JoinRefusesARecordThatCouldNotBeReadAgain) {
  Write(MembershipFile{});
  NodeRecord node = MakeStore("s1");
  node.address = "nowhere";
  EXPECT_EQ(Open()->Join(node).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(StaticTest, WritersAtTheSameTimeLoseNothing) {
  Write(MembershipFile{});
  constexpr int kWriters = 4;
  constexpr int kEach = 10;
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([this, w] {
      const auto membership = StaticMembership::Open(path_, {.lock_deadline = kDeadline});
      ASSERT_TRUE(membership.ok()) << membership.status();
      for (int i = 0; i < kEach; ++i) {
        const auto joined = (*membership)->Join(MakeStore(absl::StrCat("s", w, "-", i)));
        EXPECT_TRUE(joined.ok()) << joined.status();
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  const auto file = FileFromJson(*ReadFile(path_));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->nodes.size(), size_t{kWriters * kEach});
  EXPECT_EQ(file->epoch, uint64_t{1 + kWriters * kEach});
}

TEST_F(StaticTest, AWrongOrMissingFileKeepsTheLastView) {
  Write(MembershipFile{.epoch = 4, .nodes = {MakeStore("s1")}});
  const auto membership = Open();
  const uint64_t version = membership->View()->version;
  for (const char* bad : {"", "{", "[]", R"({"epoch":9,"nodes":[{"id":"s1"}]})"}) {
    Write(bad);
    // A change is refused for the same reason, so the file was looked at.
    EXPECT_EQ(membership->Remove("s1").code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_FALSE(membership->AwaitNewer(version, absl::Now() + absl::Milliseconds(30))) << bad;
    EXPECT_THAT(Ids(*membership->View()), ElementsAre("s1"));
  }
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  EXPECT_FALSE(membership->AwaitNewer(version, absl::Now() + absl::Milliseconds(30)));
  EXPECT_EQ(membership->View()->placement_epoch, 4u);
  Write(MembershipFile{.epoch = 5, .nodes = {MakeStore("s1"), MakeStore("s2")}});
  EXPECT_THAT(AwaitIds(*membership, {"s1", "s2"}), ElementsAre("s1", "s2"));
}

TEST_F(StaticTest, StoresChangedByHandUnderAKnownEpochGetAHigherOne) {
  Write(MembershipFile{.epoch = 4, .nodes = {MakeStore("s1")}});
  const auto membership = Open();
  for (const uint64_t epoch : {4, 2}) {
    const uint64_t before = membership->View()->placement_epoch;
    Write(MembershipFile{.epoch = epoch, .nodes = {MakeStore("s1", static_cast<int>(8000 + epoch))}});
    const auto moved = AwaitView(*membership, [&](const ClusterView& v) { return v.placement_epoch > before; });
    EXPECT_EQ(moved->placement_epoch, before + 1);
    EXPECT_EQ(moved->nodes[0].address, absl::StrCat("127.0.0.1:", 8000 + epoch));
    EXPECT_EQ(FileFromJson(*ReadFile(path_))->epoch, before + 1) << "others read the same";
  }
}

TEST_F(StaticTest, LookingAtAnUnchangedFileRenewsAsOfButNotTheVersion) {
  Write(MembershipFile{.epoch = 1, .nodes = {MakeStore("s1")}});
  const auto membership = Open();
  const absl::Time heard = membership->View()->as_of;
  const uint64_t version = membership->View()->version;
  const absl::Time end = absl::Now() + kDeadline;
  while (membership->View()->as_of == heard && absl::Now() < end) std::this_thread::yield();
  EXPECT_GT(membership->View()->as_of, heard);
  EXPECT_EQ(membership->View()->version, version) << "nothing has changed";
}

TEST(InMemory, ChangesWithoutAFile) {
  const auto membership = StaticMembership::InMemory({.epoch = 3, .nodes = {MakeStore("s1")}});
  ASSERT_TRUE(membership->Join(MakeStore("s2", 7101)).ok());
  ASSERT_TRUE(membership->SetState("s1", NodeState::kDraining).ok());
  ASSERT_TRUE(membership->Remove("s2").ok());
  EXPECT_EQ(membership->View()->placement_epoch, 6u);
  EXPECT_THAT(Ids(*membership->View()), ElementsAre("s1"));
}

TEST(DirectoryFeeder, TakesEachChangeOfStoresToTheDirectory) {
  const auto membership = StaticMembership::InMemory({.epoch = 3, .nodes = {MakeStore("s1")}});
  kvstore::StoreDirectory directory;
  const DirectoryFeeder feeder(membership.get(), &directory);
  EXPECT_EQ(directory.Get()->epoch, 3u) << "there from the beginning";
  ASSERT_TRUE(membership->Join(MakeStore("s2", 7101)).ok());
  ASSERT_TRUE(directory.AwaitNewer(3, absl::Now() + kDeadline));
  EXPECT_EQ(directory.Get()->stores.size(), 2u);
  ASSERT_TRUE(membership->SetState("s1", NodeState::kDraining).ok());
  ASSERT_TRUE(directory.AwaitNewer(4, absl::Now() + kDeadline));
  EXPECT_EQ(directory.Get()->stores[0].state, kvstore::StoreState::kDraining);
}

TEST(MembershipSpec, NamesAFileOrEtcd) {
  EXPECT_EQ(ParseMembershipSpec("static:/a/b.json")->static_path, "/a/b.json");
  const auto one = ParseMembershipSpec("etcd:localhost:2379");
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_THAT(one->etcd.endpoints, ElementsAre("localhost:2379"));
  EXPECT_EQ(one->etcd.prefix, "/perigee/default/");
  EtcdOptions tls;
  tls.ca_path = "ca.pem";
  const auto three = ParseMembershipSpec("etcd:a:1,[::1]:2,c:3/blue", tls);
  ASSERT_TRUE(three.ok()) << three.status();
  EXPECT_THAT(three->etcd.endpoints, ElementsAre("a:1", "[::1]:2", "c:3"));
  EXPECT_EQ(three->etcd.prefix, "/perigee/blue/");
  EXPECT_EQ(three->etcd.ca_path, "ca.pem");
  for (const char* bad :
       {"", "static:", "etcd:", "etcd:host", "etcd:a:1,", "etcd:a:1/", "etcd:a:1/b/c", "zookeeper:a:1"}) {
    const absl::Status status = ParseMembershipSpec(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("static:PATH")) << bad;
  }
}

}  // namespace
}  // namespace perigee::cluster
