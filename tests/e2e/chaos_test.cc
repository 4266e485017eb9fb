// A whole cluster on network namespaces, while its nodes are killed, paused, started again and drained: every answer is
// the single process's, or a clean error that can be tried again, in time. Afterwards all is well by itself, and
// nothing is left of the failures.
//
// PERIGEE_CHAOS_S: how many seconds of failures (default 20); PERIGEE_CHAOS_SEED: which.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "chaos_schedule.h"
#include "chaos_workload.h"
#include "cluster/membership/open_membership.h"
#include "perigee/v1/decode.grpc.pb.h"
#include "perigee/v1/prefill.grpc.pb.h"
#include "topology.h"

namespace perigee {
namespace {

constexpr absl::Duration kRequestTime = absl::Seconds(30);
constexpr absl::Duration kHealingTime = absl::Seconds(20);

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  uint64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

void Print(const char* title, const Users::Tally& tally) {
  const auto count = [&](Verdict verdict) {
    const auto found = tally.verdicts.find(verdict);
    return found == tally.verdicts.end() ? 0 : found->second;
  };
  std::printf(
      "%s: %d requests: %d equal, %d given up by the user, %d errors, %d wrong, %d not clean, %d late; slowest %s\n",
      title, tally.requests, count(Verdict::kEqual), count(Verdict::kHungUp), count(Verdict::kError),
      count(Verdict::kWrong), count(Verdict::kNotClean), count(Verdict::kLate),
      absl::FormatDuration(absl::Trunc(tally.slowest, absl::Milliseconds(1))).c_str());
  for (const auto& [kind, errors] : tally.errors) std::printf("  errors %s: %d\n", kind.c_str(), errors);
  for (const auto& [reason, errors] : tally.reasons) std::printf("  %d x %s\n", errors, reason.c_str());
}

void ExpectNothingWrong(const Users::Tally& tally) {
  for (const std::string& wrong : tally.wrong) ADD_FAILURE() << wrong;
}

absl::StatusOr<v1::NodeInfo> InfoOf(const Topology::Node& node) {
  const auto channel = grpc::CreateChannel(node.address, grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(5)));
  v1::NodeInfo info;
  const grpc::Status status = node.role == "prefill"
                                  ? v1::PrefillNode::NewStub(channel)->Info(&context, v1::NodeInfoRequest(), &info)
                                  : v1::DecodeNode::NewStub(channel)->Info(&context, v1::NodeInfoRequest(), &info);
  if (!status.ok()) return absl::UnavailableError(status.error_message());
  return info;
}

absl::StatusOr<nlohmann::json> StatOf(const Topology& topology, const Topology::Node& store) {
  const auto text = topology.Script({"run", "g1", PERIGEE_PROGRAM, "store", "stat", "--json", "--store", store.address,
                                     "--store-secret-file", topology.secret_file()});
  if (!text.ok()) return text.status();
  return nlohmann::json::parse(*text);
}

class ChaosTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto reference = Reference::Load(std::string(PERIGEE_SOURCE_DIR) + "/models/podling");
    ASSERT_TRUE(reference.ok()) << reference.status();
    auto topology = Topology::Up({"--stores", "3", "--prefill", "2", "--decode", "2", "--replicas", "2"});
    if (absl::IsUnimplemented(topology.status())) GTEST_SKIP() << "NOT TESTED: " << topology.status().message();
    ASSERT_TRUE(topology.ok()) << topology.status();
    topology_ = *std::move(topology);
    gateway_ = topology_->NodesOf("gateway").at(0).address;
    auto workload = Workload::Create(**reference, 12, 4, seed_);
    ASSERT_TRUE(workload.ok()) << workload.status();
    workload_ = *std::move(workload);
    ASSERT_GE(workload_.size(), 20u) << "hardly any prompt has a reference that is beyond doubt";
  }
  void TearDown() override {
    if (!HasFailure() || topology_ == nullptr) return;
    for (const Topology::Node& node : topology_->Nodes()) {
      const std::string log = topology_->Log(node.name);
      std::printf("---- %s, %s; its log ends:\n%s\n", node.name.c_str(), node.state.c_str(),
                  log.substr(log.size() - std::min<size_t>(log.size(), 3000)).c_str());
    }
  }

  // So many questions, each as any user's; all must be answered.
  void ExpectAllAnswered(int questions) {
    std::mt19937_64 random(seed_ + 1);
    for (int i = 0; i < questions; ++i) {
      const Outcome outcome = Ask(gateway_, workload_.Draw(random), kRequestTime);
      EXPECT_LE(outcome.verdict, Verdict::kHungUp) << outcome.what;
    }
  }

  // What nobody should hold once nobody asks. Leases of readers that were killed end by themselves, after a minute.
  void ExpectNothingHeld() {
    for (const Topology::Node& store : topology_->NodesOf("store")) {
      nlohmann::json stat;
      EXPECT_TRUE(WaitFor(
          [&] {
            stat = StatOf(*topology_, store).value_or(nlohmann::json());
            return !stat.is_null() && stat["leases"]["open"] == 0 && stat["reservations"]["open"] == 0 &&
                   stat["dram"]["reserved_bytes"] == 0 && stat["dram"]["leased_bytes"] == 0;
          },
          absl::Seconds(75)))
          << store.name << ": " << stat.dump(1);
      if (stat.is_null()) continue;
      EXPECT_EQ(stat["checksum_failures"], 0) << store.name;
    }
    for (const std::string role : {"prefill", "decode"}) {
      for (const Topology::Node& node : topology_->NodesOf(role)) {
        absl::StatusOr<v1::NodeInfo> info;
        EXPECT_TRUE(WaitFor(
            [&] {
              info = InfoOf(node);
              // Kept planes are available, but for the ends of the runs that small ones are cut from (extent_slab.h).
              return info.ok() && info->load().running() == 0 && info->load().queued() == 0 &&
                     info->load().pool_available_bytes() + info->pool_used_bytes() / 50 + 32768 >= info->pool_bytes();
            },
            absl::Seconds(40)))
            << node.name << ": " << info.status() << " " << (info.ok() ? info->load().ShortDebugString() : "")
            << (info.ok() ? info->pool_used_bytes() : 0);
      }
    }
  }

  // The most of any node of a role.
  struct Used {
    int64_t rss_bytes = 0;
    int descriptors = 0, threads = 0;
  };
  std::map<std::string, Used> UsedByRole() const {
    std::map<std::string, Used> used;
    for (const Topology::Node& node : topology_->Nodes()) {
      EXPECT_EQ(node.state, "running") << node.name;
      Used& role = used[node.role];
      role.rss_bytes = std::max(role.rss_bytes, node.rss_bytes);
      role.descriptors = std::max(role.descriptors, node.descriptors);
      role.threads = std::max(role.threads, node.threads);
    }
    return used;
  }

  const uint64_t seed_ = FromEnvironment("PERIGEE_CHAOS_SEED", 1);
  std::unique_ptr<Topology> topology_;
  std::string gateway_;
  Workload workload_;
};

TEST_F(ChaosTest, EveryAnswerIsTheReferencesOrACleanErrorWhileNodesFail) {
  {
    Users users(workload_, gateway_, 4, kRequestTime, absl::Milliseconds(20), seed_ + 7);
    WaitFor([&] { return users.Now().requests >= 40; });
    const Users::Tally tally = users.Stop();
    Print("before", tally);
    ExpectNothingWrong(tally);
    EXPECT_TRUE(tally.errors.empty());
  }
  const std::map<std::string, Used> before = UsedByRole();

  ChaosSchedule schedule(*topology_, seed_);
  Users users(workload_, gateway_, 4, kRequestTime, absl::Milliseconds(50), seed_);
  const absl::Time end = absl::Now() + absl::Seconds(FromEnvironment("PERIGEE_CHAOS_S", 20));
  for (const std::string& unexpected : schedule.Run(end)) ADD_FAILURE() << unexpected;
  WaitFor([&] { return users.Now().requests >= 200; });
  const Users::Tally tally = users.Stop();
  std::printf("%d kills, %d pauses\n", schedule.kills(), schedule.pauses());
  Print("under failures", tally);
  ExpectNothingWrong(tally);
  EXPECT_GE(tally.requests, 200);

  // All is well again, by itself.
  std::mt19937_64 random(seed_);
  EXPECT_TRUE(WaitFor([&] { return Ask(gateway_, workload_.Draw(random), kRequestTime).verdict <= Verdict::kHungUp; },
                      kHealingTime));
  ExpectAllAnswered(30);
  ExpectNothingHeld();

  for (const auto& [role, used] : UsedByRole()) {
    const Used& was = before.at(role);
    std::printf("%-8s %4ld MiB (before: %ld), %d descriptors (%d), %d threads (%d)\n", role.c_str(),
                static_cast<long>(used.rss_bytes >> 20), static_cast<long>(was.rss_bytes >> 20), used.descriptors,
                was.descriptors, used.threads, was.threads);
    // Pools and slabs fill; connections to both lives of a node may be open for a while.
    EXPECT_LT(used.rss_bytes, was.rss_bytes + (int64_t{160} << 20)) << role;
    EXPECT_LT(used.descriptors, was.descriptors + 40) << role;
    EXPECT_LT(used.threads, was.threads + 40) << role;
  }
}

// Others have what it has: nobody waits for a transfer's deadline (--store-timeout-s), which is 20 s.
TEST_F(ChaosTest, AStoreThatHangsHoldsRequestsForSecondsOnly) {
  Users users(workload_, gateway_, 4, kRequestTime, absl::Milliseconds(20), seed_);
  EXPECT_TRUE(WaitFor([&] { return users.Now().requests >= 40; }));
  ASSERT_TRUE(topology_->Kill("s1", "-STOP").ok());
  const absl::Time paused = absl::Now();
  WaitFor([&] { return absl::Now() - paused > absl::Seconds(15); });
  ASSERT_TRUE(topology_->Kill("s1", "-CONT").ok());
  const Users::Tally tally = users.Stop();
  Print("while a store hangs", tally);
  ExpectNothingWrong(tally);
  EXPECT_TRUE(tally.errors.empty());
  EXPECT_LT(tally.slowest, absl::Seconds(12));
}

TEST_F(ChaosTest, DrainingADecodeNodeAndAStoreLosesNoRequest) {
  const auto etcd = topology_->NodesOf("etcd").at(0).address;
  const auto membership = cluster::OpenMembership(absl::StrCat("etcd:", etcd));
  ASSERT_TRUE(membership.ok()) << membership.status();
  Users users(workload_, gateway_, 4, kRequestTime, absl::Milliseconds(20), seed_);
  EXPECT_TRUE(WaitFor([&] { return users.Now().requests >= 30; }));

  // A decode node: what it answers it finishes, then it is gone.
  ASSERT_TRUE(topology_->Kill("d1", "-TERM").ok());
  const auto is_gone = [&](const std::string& name) {
    for (const Topology::Node& node : topology_->Nodes()) {
      if (node.name == name) return node.state == "gone";
    }
    return false;
  };
  EXPECT_TRUE(WaitFor([&] { return is_gone("d1"); }, absl::Seconds(40)));

  // A store: its planes move to the others, then it may go.
  ASSERT_TRUE((*membership)->SetState("s2", cluster::NodeState::kDraining).ok());
  nlohmann::json stat;
  EXPECT_TRUE(WaitFor(
      [&] {
        for (const Topology::Node& store : topology_->NodesOf("store")) {
          if (store.name == "s2") stat = StatOf(*topology_, store).value_or(nlohmann::json());
        }
        return !stat.is_null() && stat["planes"]["dram"]["distant"]["planes"] == 0 &&
               stat["planes"]["ssd"]["distant"]["planes"] == 0;
      },
      absl::Seconds(60)))
      << stat.dump(1);
  ASSERT_TRUE(topology_->Kill("s2", "-TERM").ok());
  EXPECT_TRUE(WaitFor([&] { return is_gone("s2"); }, absl::Seconds(40)));

  const int requests = users.Now().requests;
  EXPECT_TRUE(WaitFor([&] { return users.Now().requests >= requests + 30; }));
  const Users::Tally tally = users.Stop();
  Print("while draining", tally);
  ExpectNothingWrong(tally);
  EXPECT_TRUE(tally.errors.empty());
}

}  // namespace
}  // namespace perigee
