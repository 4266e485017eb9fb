// Membership in real etcd servers, which are killed, paused, wiped and cut off.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "cluster/membership/open_membership.h"
#include "cluster/membership/record.h"
#include "etcd_process.h"
#include "members.h"

namespace perigee::cluster {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr absl::Duration kTtl = absl::Seconds(2);

class EtcdTest : public FolderTest {
 protected:
  void SetUp() override {
    if (!HaveEtcd()) GTEST_SKIP() << "NOT TESTED: " << kEtcd << " is missing; install Debian's etcd-server";
    etcd_ = std::make_unique<EtcdServer>(EtcdServer::Alone(folder_));
    etcd_->Start();
    const absl::Status ready = etcd_->AwaitReady();
    ASSERT_TRUE(ready.ok()) << ready;
  }
  EtcdOptions Options(const std::string& endpoint = "") const {
    EtcdOptions options;
    options.endpoints = {endpoint.empty() ? etcd_->address() : endpoint};
    options.ttl = kTtl;
    options.call_deadline = absl::Seconds(1);
    options.load_interval = absl::Milliseconds(100);
    return options;
  }
  std::unique_ptr<Membership> Open(const EtcdOptions& options) const {
    auto membership = OpenEtcdMembership(options);
    EXPECT_TRUE(membership.ok()) << membership.status();
    return *std::move(membership);
  }
  std::unique_ptr<Membership> Open() const { return Open(Options()); }
  std::unique_ptr<Registration> Join(Membership& membership, const NodeRecord& node) const {
    auto registration = membership.Join(node);
    EXPECT_TRUE(registration.ok()) << registration.status();
    return registration.ok() ? *std::move(registration) : nullptr;
  }
  // A member in a process of its own.
  absl::StatusOr<ChildProcess> StartMember(const std::string& id, const std::string& address, int ttl_s) {
    auto child =
        ChildProcess::Start(TEST_MEMBER, {absl::StrCat("etcd:", etcd_->address()), id, address, absl::StrCat(ttl_s)},
                            folder_ + "/member.log");
    if (!child.ok()) return child.status();
    const auto ready = child->WaitReady(kDeadline);
    if (!ready.ok()) return ready.status();
    return child;
  }
  std::unique_ptr<EtcdClient> Client() const { return *EtcdClient::Create(Options()); }

  std::unique_ptr<EtcdServer> etcd_;
};

bool AwaitStatus(const Registration& registration, absl::StatusCode code) {
  const absl::Time deadline = absl::Now() + kDeadline;
  while (registration.Status().code() != code && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
  return registration.Status().code() == code;
}

TEST_F(EtcdTest, FieldsOfTheApiMeanWhatTheyAreCalled) {
  const auto client = Client();
  const auto lease = client->Grant(absl::Seconds(77));
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->ttl, absl::Seconds(77));
  const int64_t before = client->Get("/a")->header().revision();
  const auto watch = client->Watch("/", before + 1);

  etcdserverpb::TxnRequest write;
  *write.add_compare() = Unchanged("/a", 0);
  *write.add_success() = PutOp("/a", "value", lease->id);
  *write.add_success() = PutOp("/b", "other", 0);
  *write.add_failure() = GetOp("/a");
  const auto first = client->Txn(write);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(first->succeeded());
  EXPECT_EQ(first->header().revision(), before + 1);
  const auto second = client->Txn(write);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_FALSE(second->succeeded()) << "the key exists by now";
  ASSERT_EQ(second->responses_size(), 1);
  ASSERT_EQ(second->responses(0).response_range().kvs_size(), 1);
  const mvccpb::KeyValue& kv = second->responses(0).response_range().kvs(0);
  EXPECT_EQ(kv.key(), "/a");
  EXPECT_EQ(kv.value(), "value");
  EXPECT_EQ(kv.lease(), lease->id);
  EXPECT_EQ(kv.mod_revision(), before + 1);

  etcdserverpb::TxnRequest remove;
  *remove.add_compare() = Unchanged("/b", before + 1);
  *remove.add_success() = DeleteOp("/b");
  EXPECT_TRUE(client->Txn(remove)->succeeded());
  EXPECT_EQ(*client->KeepAlive(lease->id), true);
  ASSERT_TRUE(client->Revoke(lease->id).ok());
  EXPECT_EQ(*client->KeepAlive(lease->id), false);
  EXPECT_EQ(client->GetPrefix("/")->kvs_size(), 0) << "one was deleted, the other's lease is gone";

  std::vector<std::string> events;
  while (events.size() < 4) {
    const auto got = watch->Next(kDeadline);
    ASSERT_TRUE(got.ok() && got->has_value());
    for (const mvccpb::Event& event : (*got)->events()) {
      events.push_back(absl::StrCat(mvccpb::Event::EventType_Name(event.type()), " ", event.kv().key(), " +",
                                    event.kv().mod_revision() - before));
    }
  }
  EXPECT_THAT(events, ElementsAre("PUT /a +1", "PUT /b +1", "DELETE /b +2", "DELETE /a +3"));
  watch->AskForProgress();
  const auto progress = watch->Next(kDeadline);
  ASSERT_TRUE(progress.ok() && progress->has_value());
  EXPECT_EQ((*progress)->header().revision(), before + 3);
}

TEST_F(EtcdTest, JoinLoadAndLeaveAreSeenByOthers) {
  const auto here = Open();
  const auto there = Open();
  EXPECT_THAT(Ids(*there->View()), IsEmpty());
  NodeRecord record = MakeStore("s1");
  record.capacity.dram_bytes = 5;
  record.weight = 2;
  auto store = Join(*here, record);
  auto decode = Join(*here, MakeNode("d1", Role::kDecode, 7300));
  EXPECT_THAT(AwaitIds(*there, {"d1", "s1"}), ElementsAre("d1", "s1"));
  const auto view = there->View();
  EXPECT_EQ(view->nodes[1].capacity.dram_bytes, 5u);
  EXPECT_EQ(StoresOf(*view).stores.size(), 1u);
  EXPECT_EQ(StoresOf(*view).stores[0].weight, 2);

  decode->SetLoad({.running = 3});
  const auto loaded =
      AwaitView(*there, [](const ClusterView& v) { return !v.nodes.empty() && v.nodes[0].load.running == 3; });
  EXPECT_EQ(loaded->nodes[0].load.running, 3u);
  EXPECT_EQ(loaded->placement_epoch, view->placement_epoch) << "load moves nothing";
  decode.reset();
  EXPECT_THAT(AwaitIds(*there, {"s1"}), ElementsAre("s1"));
  EXPECT_EQ(there->View()->placement_epoch, view->placement_epoch) << "a decode node is not placed on";
  store.reset();
  EXPECT_THAT(AwaitIds(*there, {}), IsEmpty());
  EXPECT_GT(there->View()->placement_epoch, view->placement_epoch);
}

TEST_F(EtcdTest, AKilledProcessIsOutWhenItsLeaseEnds) {
  const auto membership = Open();
  auto member = StartMember("s1", "127.0.0.1:7100", 1);
  ASSERT_TRUE(member.ok()) << member.status();
  EXPECT_THAT(AwaitIds(*membership, {"s1"}), ElementsAre("s1"));
  member->Kill();
  EXPECT_THAT(AwaitIds(*membership, {}), IsEmpty());
}

TEST_F(EtcdTest, AnIdBelongsToOneLivingProcessButARestartTakesItBackAtOnce) {
  const auto membership = Open();
  auto member = StartMember("s1", "127.0.0.1:7100", 60);  // Its lease ends long after this test.
  ASSERT_TRUE(member.ok()) << member.status();
  const auto view = AwaitView(*membership, [](const ClusterView& v) { return !v.nodes.empty(); });
  const absl::Status twice = membership->Join(MakeStore("s1", 7199)).status();
  EXPECT_EQ(twice.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(twice.message()), HasSubstr("127.0.0.1:7100"));

  member->Kill();
  auto again = StartMember("s1", "127.0.0.1:7100", 60);
  ASSERT_TRUE(again.ok()) << again.status();
  const uint64_t before = view->nodes.at(0).incarnation;
  const auto restarted = AwaitView(
      *membership, [&](const ClusterView& v) { return v.nodes.size() == 1 && v.nodes[0].incarnation != before; });
  EXPECT_NE(restarted->nodes.at(0).incarnation, before);
  EXPECT_EQ(restarted->placement_epoch, view->placement_epoch) << "the same store at the same place";
}

TEST_F(EtcdTest, AnIdWithADeadLeaseIsFree) {
  const auto membership = Open();
  auto member = StartMember("s1", "127.0.0.1:7100", 1);
  ASSERT_TRUE(member.ok()) << member.status();
  member->Kill();
  const absl::Time deadline = absl::Now() + kDeadline;
  absl::StatusOr<std::unique_ptr<Registration>> joined = absl::UnavailableError("not tried");
  while (!joined.ok() && absl::Now() < deadline) {
    joined = membership->Join(MakeStore("s1", 7199));
    if (joined.ok()) break;
    ASSERT_EQ(joined.status().code(), absl::StatusCode::kAlreadyExists) << joined.status();
  }
  EXPECT_TRUE(joined.ok()) << joined.status();
}

TEST_F(EtcdTest, ADrainSurvivesARestartOfTheNode) {
  const auto here = Open();
  const auto there = Open();
  auto store = Join(*here, MakeStore("s1"));
  ASSERT_THAT(AwaitIds(*there, {"s1"}), ElementsAre("s1"));
  const uint64_t epoch = there->View()->placement_epoch;
  ASSERT_TRUE(there->SetState("s1", NodeState::kDraining).ok());
  EXPECT_TRUE(AwaitState(*here, "s1", NodeState::kDraining));
  EXPECT_GT(here->View()->placement_epoch, epoch);
  EXPECT_EQ(StoresOf(*here->View()).stores.at(0).state, kvstore::StoreState::kDraining);

  store.reset();
  EXPECT_THAT(AwaitIds(*there, {}), IsEmpty());
  store = Join(*here, MakeStore("s1"));
  EXPECT_TRUE(AwaitState(*there, "s1", NodeState::kDraining));
  ASSERT_TRUE(there->SetState("s1", NodeState::kServing).ok());
  EXPECT_TRUE(AwaitState(*here, "s1", NodeState::kServing));
  EXPECT_EQ(there->SetState("s2", NodeState::kDraining).code(), absl::StatusCode::kNotFound);
}

TEST_F(EtcdTest, ARemovedNodeStaysOutUntilItIsStartedAgain) {
  const auto here = Open();
  const auto there = Open();
  auto store = Join(*here, MakeStore("s1"));
  ASSERT_THAT(AwaitIds(*there, {"s1"}), ElementsAre("s1"));
  ASSERT_TRUE(there->Remove("s1").ok());
  EXPECT_THAT(AwaitIds(*there, {}), IsEmpty());
  EXPECT_TRUE(AwaitStatus(*store, absl::StatusCode::kFailedPrecondition)) << store->Status();
  EXPECT_THAT(Ids(*there->View()), IsEmpty());
  EXPECT_EQ(there->Remove("s1").code(), absl::StatusCode::kNotFound);
  store.reset();
  store = Join(*here, MakeStore("s1"));
  EXPECT_THAT(AwaitIds(*there, {"s1"}), ElementsAre("s1"));
}

TEST_F(EtcdTest, AnOlderProcessGivesWayToItsSuccessor) {
  const auto membership = Open();
  const auto older = Join(*membership, MakeStore("s1"));
  const auto newer = Join(*membership, MakeStore("s1"));
  EXPECT_TRUE(AwaitStatus(*older, absl::StatusCode::kAlreadyExists)) << older->Status();
  EXPECT_TRUE(newer->Status().ok());
}

TEST_F(EtcdTest, TheSameEpochMeansTheSameStoresInEveryProcessAlsoInOneThatStartsLater) {
  std::vector<std::unique_ptr<Membership>> members;
  for (int i = 0; i < 3; ++i) members.push_back(Open());
  std::vector<std::unique_ptr<Registration>> stores;
  for (int i = 0; i < 4; ++i) stores.push_back(Join(*members[i % 3], MakeStore(absl::StrCat("s", i), 7100 + i)));
  for (const auto& member : members) AwaitIds(*member, {"s0", "s1", "s2", "s3"});
  ASSERT_TRUE(members[0]->SetState("s2", NodeState::kDraining).ok());
  stores[1].reset();
  ASSERT_TRUE(members[2]->Remove("s3").ok());
  std::vector<kvstore::StoreMap> seen;
  const auto is_final = [](const ClusterView& v) {
    return Ids(v) == std::vector<std::string>{"s0", "s2"} && v.nodes[1].state == NodeState::kDraining;
  };
  for (const auto& member : members) seen.push_back(StoresOf(*AwaitView(*member, is_final)));
  const auto late = Open();
  seen.push_back(StoresOf(*late->View()));
  for (const kvstore::StoreMap& map : seen) {
    EXPECT_EQ(map.epoch, seen[0].epoch);
    EXPECT_EQ(map.stores, seen[0].stores);
    EXPECT_EQ(map.stores.size(), 2u);
  }
}

class EtcdDownTest : public EtcdTest {
 protected:
  // While etcd is down for longer than the ttl, nothing changes; afterwards everything works.
  void TakeDownAndBack(const std::function<void()>& take_down, const std::function<void()>& bring_back) {
    const auto membership = Open();
    const auto store = Join(*membership, MakeStore("s1"));
    ASSERT_THAT(AwaitIds(*membership, {"s1"}), ElementsAre("s1"));
    const auto before = membership->View();
    take_down();
    const absl::Time began = absl::Now();
    EXPECT_EQ(membership->Join(MakeStore("s2")).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(membership->SetState("s1", NodeState::kDraining).code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(membership->Remove("s1").code(), absl::StatusCode::kUnavailable);
    EXPECT_LT(absl::Now() - began, 3 * Options().call_deadline + absl::Seconds(2));
    EXPECT_EQ(OpenEtcdMembership(Options()).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(AwaitStatus(*store, absl::StatusCode::kUnavailable)) << store->Status();
    EXPECT_FALSE(membership->AwaitNewer(before->version, absl::Now() + kTtl + absl::Seconds(1)));
    EXPECT_THAT(Ids(*membership->View()), ElementsAre("s1"));

    bring_back();
    ASSERT_TRUE(AwaitStatus(*store, absl::StatusCode::kOk)) << store->Status();
    const auto other = Join(*membership, MakeNode("p1", Role::kPrefill));
    const auto after = AwaitView(*membership, [](const ClusterView& v) {
      EXPECT_THAT(Ids(v), Contains("s1")) << "it was never missing";
      return v.nodes.size() == 2;
    });
    EXPECT_THAT(Ids(*after), ElementsAre("p1", "s1"));
    EXPECT_EQ(after->placement_epoch, before->placement_epoch) << "no plane had to move";
  }
};

TEST_F(EtcdDownTest, WhileEtcdIsKilledViewsStayAndChangesAreRefusedInTime) {
  TakeDownAndBack([&] { etcd_->Kill(); }, [&] { etcd_->Start(); });
}

TEST_F(EtcdDownTest, WhileEtcdIsSilentViewsStayAndChangesAreRefusedInTime) {
  TakeDownAndBack([&] { etcd_->Pause(); }, [&] { etcd_->Resume(); });
}

TEST_F(EtcdTest, AnEtcdThatHasLostItsDataIsFilledAgainUnderAHigherEpoch) {
  const auto membership = Open();
  const auto s1 = Join(*membership, MakeStore("s1"));
  const auto s2 = Join(*membership, MakeStore("s2", 7101));
  ASSERT_THAT(AwaitIds(*membership, {"s1", "s2"}), ElementsAre("s1", "s2"));
  const uint64_t epoch = membership->View()->placement_epoch;
  etcd_->Kill();
  etcd_->Wipe();
  etcd_->Start();
  const auto after = AwaitView(*membership, [&](const ClusterView& v) {
    EXPECT_THAT(Ids(v), ElementsAre("s1", "s2")) << "nobody was missing meanwhile";
    return v.placement_epoch > epoch;
  });
  EXPECT_GT(after->placement_epoch, epoch);
  EXPECT_TRUE(AwaitStatus(*s1, absl::StatusCode::kOk));
  EXPECT_TRUE(AwaitStatus(*s2, absl::StatusCode::kOk));
  const auto late = Open();
  const auto with_records = [](const ClusterView& v) {
    return v.nodes.size() == 2 && v.nodes[0].incarnation != 0 && v.nodes[1].incarnation != 0;
  };
  EXPECT_TRUE(with_records(*AwaitView(*late, with_records))) << "not only the placement: the nodes are there again";
  EXPECT_GE(late->View()->placement_epoch, after->placement_epoch);
}

TEST_F(EtcdTest, ANodeThatWasCutOffForLongerThanItsLeaseEntersItselfAgain) {
  Wire wire(etcd_->port());
  const auto cut_off = Open(Options(wire.address()));
  const auto other = Open();
  const auto store = Join(*cut_off, MakeStore("s1"));
  ASSERT_THAT(AwaitIds(*other, {"s1"}), ElementsAre("s1"));
  ASSERT_THAT(AwaitIds(*cut_off, {"s1"}), ElementsAre("s1"));
  const uint64_t epoch = other->View()->placement_epoch;
  wire.Cut();
  EXPECT_THAT(AwaitIds(*other, {}), IsEmpty()) << "its lease has ended";
  EXPECT_THAT(Ids(*cut_off->View()), ElementsAre("s1")) << "it sees what it saw";
  EXPECT_TRUE(AwaitStatus(*store, absl::StatusCode::kUnavailable));
  wire.Mend();
  EXPECT_THAT(AwaitIds(*other, {"s1"}), ElementsAre("s1"));
  EXPECT_TRUE(AwaitStatus(*store, absl::StatusCode::kOk));
  EXPECT_GT(other->View()->placement_epoch, epoch);
}

TEST_F(EtcdTest, AfterABreakMissingNodesAreKeptForOneTtlAndRemovedOnesAreNot) {
  Wire wire(etcd_->port());
  const auto here = Open();
  EtcdOptions patient = Options(wire.address());
  patient.ttl = absl::Seconds(3);
  const auto watching = Open(patient);
  auto left = Join(*here, MakeNode("left", Role::kDecode));
  const auto removed = Join(*here, MakeNode("removed", Role::kDecode));
  ASSERT_THAT(AwaitIds(*watching, {"left", "removed"}), ElementsAre("left", "removed"));
  wire.Cut();
  left.reset();
  ASSERT_TRUE(here->Remove("removed").ok());
  const absl::Time mended = absl::Now();
  wire.Mend();
  EXPECT_THAT(AwaitIds(*watching, {"left"}), ElementsAre("left"));
  EXPECT_THAT(AwaitIds(*watching, {}), IsEmpty());
  EXPECT_GE(absl::Now() - mended, patient.ttl) << "not kept for long enough";
}

TEST_F(EtcdTest, WhoWasCutOffWhileEtcdCompactedSeesTheClusterOfToday) {
  Wire wire(etcd_->port());
  const auto cut_off = Open(Options(wire.address()));
  const auto here = Open();
  const auto s1 = Join(*here, MakeStore("s1"));
  ASSERT_THAT(AwaitIds(*cut_off, {"s1"}), ElementsAre("s1"));
  wire.Cut();
  const auto s2 = Join(*here, MakeStore("s2", 7101));
  ASSERT_THAT(AwaitIds(*here, {"s1", "s2"}), ElementsAre("s1", "s2"));
  ASSERT_TRUE(here->SetState("s1", NodeState::kDraining).ok());
  ASSERT_TRUE(AwaitState(*here, "s1", NodeState::kDraining));
  ASSERT_TRUE(etcd_->Compact(Client()->Get("/")->header().revision()));
  wire.Mend();
  EXPECT_TRUE(AwaitState(*cut_off, "s1", NodeState::kDraining));
  EXPECT_THAT(AwaitIds(*cut_off, {"s1", "s2"}), ElementsAre("s1", "s2"));
  EXPECT_EQ(cut_off->View()->placement_epoch, here->View()->placement_epoch);
}

TEST_F(EtcdTest, AWatchOnForgottenRevisionsIsCancelledByEtcd) {
  const auto client = Client();
  for (int i = 0; i < 3; ++i) {
    etcdserverpb::TxnRequest write;
    *write.add_success() = PutOp("/k", absl::StrCat(i), 0);
    ASSERT_TRUE(client->Txn(write).ok());
  }
  const int64_t revision = client->Get("/k")->header().revision();
  ASSERT_TRUE(etcd_->Compact(revision));
  const auto watch = client->Watch("/", 1);
  for (;;) {
    const auto got = watch->Next(kDeadline);
    ASSERT_TRUE(got.ok() && got->has_value());
    if (!(*got)->canceled()) continue;
    EXPECT_EQ((*got)->compact_revision(), revision);
    break;
  }
}

TEST_F(EtcdTest, WhatCannotBeReadIsIgnoredAndMendedByTheNextGoodValue) {
  const auto membership = Open();
  const auto client = Client();
  const auto put = [&](const std::string& key, const std::string& value) {
    etcdserverpb::TxnRequest write;
    *write.add_success() = PutOp(Options().prefix + key, value, 0);
    return client->Txn(write).status();
  };
  ASSERT_TRUE(put("nodes/bad", "{").ok());
  ASSERT_TRUE(put("nodes/other", RecordToJson(MakeStore("name"))).ok());
  ASSERT_TRUE(put("placement", "[1]").ok());
  ASSERT_TRUE(put("load/good", "null").ok());
  ASSERT_TRUE(put("states/good", R"({"state":"odd"})").ok());
  ASSERT_TRUE(put("unknown/key", "?").ok());
  const auto store = Join(*membership, MakeStore("good"));
  EXPECT_THAT(AwaitIds(*membership, {"good"}), ElementsAre("good"));
  const auto late = Open();
  EXPECT_THAT(AwaitIds(*late, {"good"}), ElementsAre("good"));
}

TEST_F(EtcdTest, StoresThatLeftBeforeAProcessBeganToLookStayPlacedForOneTtl) {
  const auto client = Client();
  const kvstore::StoreMap placement{
      .epoch = 41, .stores = {{.id = "gone", .address = "h:1"}, {.id = "taken-out", .address = "h:2"}}};
  etcdserverpb::TxnRequest write;
  *write.add_success() = PutOp(Options().prefix + "placement", StoreMapToJson(placement), 0);
  ASSERT_TRUE(client->Txn(write).ok());
  const absl::Time opened = absl::Now();
  const auto membership = Open();
  EXPECT_EQ(membership->View()->placement_epoch, 41u);
  EXPECT_THAT(Ids(*membership->View()), ElementsAre("gone", "taken-out"));
  ASSERT_TRUE(membership->Remove("taken-out").ok());
  EXPECT_THAT(AwaitIds(*membership, {"gone"}), ElementsAre("gone"));
  EXPECT_LT(absl::Now() - opened, kTtl) << "an operator's word is not waited with";
  EXPECT_THAT(AwaitIds(*membership, {}), IsEmpty());
  EXPECT_GE(absl::Now() - opened, kTtl);
  EXPECT_EQ(membership->View()->placement_epoch, 43u);
}

TEST_F(EtcdTest, SpeaksTlsWithAClientCertificate) {
  const std::string key = folder_ + "/key.pem";
  const std::string certificate = folder_ + "/certificate.pem";
  const std::string make = absl::StrCat(
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test -addext "
      "subjectAltName=IP:127.0.0.1 -keyout ",
      key, " -out ", certificate, " 2>", folder_, "/openssl.log");
  ASSERT_EQ(std::system(make.c_str()), 0) << *ReadFile(folder_ + "/openssl.log");
  etcd_->Kill();
  etcd_->DemandTls(certificate, certificate, key);
  etcd_->Start();
  EtcdOptions options = Options();
  options.ca_path = certificate;
  options.certificate_path = certificate;
  options.key_path = key;
  const absl::Status ready = etcd_->AwaitReady(options);
  ASSERT_TRUE(ready.ok()) << ready;
  const auto membership = Open(options);
  const auto store = Join(*membership, MakeStore("s1"));
  EXPECT_THAT(AwaitIds(*membership, {"s1"}), ElementsAre("s1"));
  EXPECT_EQ(OpenEtcdMembership(Options()).status().code(), absl::StatusCode::kUnavailable) << "without TLS";
  options.certificate_path.clear();
  EXPECT_EQ(OpenEtcdMembership(options).status().code(), absl::StatusCode::kInvalidArgument) << "a key alone";
}

TEST_F(EtcdTest, ClustersOfOtherNamesAreOtherClusters) {
  const std::string base = absl::StrCat("etcd:", etcd_->address());
  const auto blue = OpenMembership(base + "/blue", Options());
  const auto blueish = OpenMembership(base + "/blue2", Options());
  ASSERT_TRUE(blue.ok() && blueish.ok());
  const auto store = Join(**blue, MakeStore("s1"));
  EXPECT_THAT(AwaitIds(**blue, {"s1"}), ElementsAre("s1"));
  EXPECT_THAT(Ids(*(*blueish)->View()), IsEmpty());
}

TEST_F(EtcdTest, AnyEndpointOfThreeMayDie) {
  etcd_->Kill();
  std::vector<EtcdServer::Place> places;
  for (const char* name : {"one", "two", "three"}) places.push_back({.name = name});
  const std::string cluster = absl::StrCat(places[0].peer(), ",", places[1].peer(), ",", places[2].peer());
  std::vector<EtcdServer> servers;
  for (const EtcdServer::Place& place : places) servers.emplace_back(folder_, place, cluster);
  for (EtcdServer& server : servers) server.Start();
  EtcdOptions options = Options();
  options.endpoints.clear();
  options.call_deadline = absl::Seconds(15);  // Long enough to choose a leader on a busy machine.
  for (const EtcdServer& server : servers) {
    ASSERT_TRUE(server.AwaitReady().ok());
    options.endpoints.push_back(server.address());
  }
  const auto here = Open(options);
  const auto there = Open(options);
  auto store = Join(*here, MakeStore("s1"));
  ASSERT_THAT(AwaitIds(*there, {"s1"}), ElementsAre("s1"));
  for (size_t i = 0; i < servers.size(); ++i) {
    if (i == 1) {
      servers[i].Pause();
    } else {
      servers[i].Kill();
    }
    const std::string id = absl::StrCat("d", i);
    auto joined = Join(*here, MakeNode(id, Role::kDecode));
    EXPECT_THAT(AwaitIds(*there, {id, "s1"}), ElementsAre(id, "s1"));
    joined.reset();
    EXPECT_THAT(AwaitIds(*there, {"s1"}), ElementsAre("s1"));
    if (i == 1) {
      servers[i].Resume();
    } else {
      servers[i].Start();
    }
    ASSERT_TRUE(servers[i].AwaitReady().ok());
  }
}

}  // namespace
}  // namespace perigee::cluster
