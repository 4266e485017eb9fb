// The RADOS backend against a real Ceph of one node: what every backend must do, and what only Ceph does.
//
// Skipped, and loudly, where Ceph is not installed or does not start.
#include <gmock/gmock.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "conformance.h"
#include "kvstore/remote/rados_tier.h"
#include "kvstore/remote/remote_object.h"
#include "one_node_ceph.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<OneNodeCeph> ceph;

void Do(absl::string_view command) {
  const auto said = ceph->Do(command);
  ASSERT_TRUE(said.ok()) << command << ": " << said.status();
}

// Something done to a daemon, undone at the end of the scope at the latest: a test that fails leaves the others a sound
// cluster.
class Harm {
 public:
  Harm(std::string done, std::string undone) : undone_(std::move(undone)) { Do(done); }
  ~Harm() { Undo(); }
  Harm(const Harm&) = delete;
  Harm& operator=(const Harm&) = delete;
  void Undo() {
    if (!std::exchange(over_, true)) Do(undone_);
  }

 private:
  const std::string undone_;
  bool over_ = false;
};
struct OsdPaused : Harm {
  OsdPaused() : Harm("pause osd", "continue osd") {}
};
struct OsdKilled : Harm {
  OsdKilled() : Harm("kill osd", "start osd") {}
};
struct MonitorPaused : Harm {
  MonitorPaused() : Harm("pause mon", "continue mon") {}
};

// Ceph's side of a failure.
class ShowsLogsOfAFailedTest : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo& test) override {
    if (test.result()->Failed()) static_cast<void>(ceph->Do("show logs"));
  }
};

std::string NextPrefix() {
  static int n = 0;
  return absl::StrCat("test", ++n);
}

RadosOptions OptionsFor(const std::string& prefix) {
  RadosOptions options;
  options.config_path = ceph->config_path();
  options.pool = OneNodeCeph::pool();
  options.name_space = absl::StrCat("space-", prefix);
  options.prefix = prefix;
  options.max_object_bytes = kMaxObjectBytes;
  options.probe_interval = kProbeInterval;
  return options;
}

void Rados(const std::string& prefix, const std::string& arguments) {
  const std::string command = absl::StrCat("rados -c ", ceph->config_path(), " -p ", OneNodeCeph::pool(),
                                           " --namespace space-", prefix, " ", arguments, " >/dev/null 2>&1");
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

class RadosBackend : public TestBackend {
 public:
  absl::StatusOr<std::unique_ptr<RemoteTier>> Open(const RemoteLimits& limits) override {
    RadosOptions options = OptionsFor(prefix_);
    options.limits = limits;
    return OpenRadosTier(options);
  }
  void Edit(const PlaneId& id, const std::function<void(std::string&)>& change) override {
    const std::string name = RemoteObjectName(prefix_, id), file = folder_.path() + "/object";
    Rados(prefix_, absl::StrCat("get ", name, " ", file));
    std::ifstream in(file, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(in), {}};
    change(bytes);
    std::ofstream(file, std::ios::binary) << bytes;
    Rados(prefix_, absl::StrCat("rm ", name));
    Rados(prefix_, absl::StrCat(bytes.empty() ? "create " : "put ", name, bytes.empty() ? "" : " " + file));
  }
  void AddStranger(const std::string& name) override {
    Rados(prefix_, absl::StrCat("create ", absl::StrReplaceAll(name, {{"PREFIX", prefix_}})));
  }
  void Stall(const PlaneId&) override { paused_.emplace(); }
  void Resume() override { paused_.reset(); }
  void GoAway() override { killed_.emplace(); }
  void ComeBack() override { killed_.reset(); }

 private:
  const std::string prefix_ = NextPrefix();
  TempFolder folder_;
  std::optional<OsdPaused> paused_;
  std::optional<OsdKilled> killed_;
};

INSTANTIATE_TEST_SUITE_P(Rados, RemoteTierTest,
                         testing::Values(BackendParam{"rados", [] { return std::make_unique<RadosBackend>(); }}),
                         [](const auto&) { return "rados"; });

bool IsRetryable(const absl::Status& status) { return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status); }

// Load of puts and gets while a Harm is done to the cluster and undone. Nothing is late, nothing is wrong, and what
// fails says that it may be tried again. There are threads enough for operations to wait in most PGs of the OSD.
template <typename SomeHarm>
void LoadDuring() {
  auto tier = OpenRadosTier(OptionsFor(NextPrefix()));
  ASSERT_TRUE(tier.ok()) << tier.status();
  constexpr absl::Duration kLimit = absl::Seconds(2);
  std::atomic<bool> stop = false;
  std::atomic<int> good = 0, failed = 0;
  std::vector<std::thread> threads;
  constexpr uint64_t kThreads = 16;
  std::atomic<uint64_t> acknowledged[kThreads] = {};
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; !stop; ++i) {
        const TestPlane plane = MakePlane(t * 100000 + i, 300000);
        const absl::Time begin = absl::Now();
        const auto put = Put(**tier, plane, kLimit);
        const absl::Status status = put.ok() ? GetAndCompare(**tier, plane, kLimit) : put.status();
        ASSERT_LT(absl::Now() - begin, 2 * (kLimit + kGrace));
        ASSERT_TRUE(status.ok() || IsRetryable(status)) << status;
        if (put.ok()) acknowledged[t] = i;
        if (!put.ok()) --i;  // The same again: putting twice is always right.
        ++(status.ok() ? good : failed);
      }
    });
  }
  EXPECT_TRUE(Eventually([&] { return good > 20; }));
  SomeHarm harm;
  EXPECT_TRUE(Eventually([&] { return failed > 3; }));
  harm.Undo();
  const int before = good;
  EXPECT_TRUE(Eventually([&] { return good > before + 20; }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (uint64_t t = 0; t < kThreads; ++t) {
    for (uint64_t i = 1; i <= acknowledged[t]; ++i) {
      ASSERT_EQ(GetAndCompare(**tier, MakePlane(t * 100000 + i, 300000)), absl::OkStatus()) << "acknowledged, and lost";
    }
  }
  EXPECT_TRUE(Eventually([&] { return (*tier)->health().operations == 0; }));
  EXPECT_TRUE(Eventually([&] { return (*tier)->health().reachable; }));
}

TEST(RadosTier, AnOsdKilledInTheMiddleLosesNothingAcknowledged) { LoadDuring<OsdKilled>(); }

TEST(RadosTier, AnOsdThatStandsStillInTheMiddleDelaysNobodyBeyondTheDeadline) { LoadDuring<OsdPaused>(); }

TEST(RadosTier, APutThatHungLeavesItsBufferAloneAndCanBePutAgain) {
  auto tier = OpenRadosTier(OptionsFor(NextPrefix()));
  ASSERT_TRUE(tier.ok());
  const TestPlane plane = MakePlane(1, 4 << 20);
  OsdPaused paused;
  {
    TestPlane short_lived = plane;
    EXPECT_EQ(Put(**tier, short_lived, absl::Milliseconds(200)).status().code(), absl::StatusCode::kDeadlineExceeded);
    // Freed with other bytes in it: what is still sent must not come from here.
    std::fill(short_lived.payload.begin(), short_lived.payload.end(), std::byte{0});
  }
  paused.Undo();
  const auto again = Put(**tier, plane);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(GetAndCompare(**tier, plane), absl::OkStatus());
}

TEST(RadosTier, MoreInFlightThanLibradosLikesBlocksNoCaller) {
  // librados' own bounds are 1024 operations and 100 MiB; over them it would block the thread that calls.
  RadosOptions options = OptionsFor(NextPrefix());
  options.limits = {.max_operations = 2000, .max_bytes = uint64_t{200} << 20};
  auto tier = OpenRadosTier(options);
  ASSERT_TRUE(tier.ok());
  const TestPlane plane = MakePlane(1, 16 << 20);
  OsdPaused paused;
  const absl::Time begin = absl::Now();
  std::vector<Begun<absl::StatusOr<PutOutcome>>> puts;
  for (int i = 0; i < 9; ++i) puts.push_back(BeginPut(**tier, PutOf(plane), absl::Seconds(20)));
  auto stats = std::make_shared<Pending<size_t>>();
  ASSERT_TRUE((*tier)
                  ->Stat(std::vector<PlaneId>(1500, plane.id), absl::Now() + absl::Seconds(20),
                         [stats](auto heads) { stats->Set(heads.size()); })
                  .ok());
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
  for (auto& put : puts) EXPECT_TRUE(put.id.ok());
  paused.Undo();
  for (auto& put : puts) EXPECT_TRUE(Wait(put).ok() || IsRetryable(Wait(put).status()));
  EXPECT_EQ(stats->Wait(), 1500u);
}

TEST(RadosTier, AMonitorThatDoesNotAnswerIsAnErrorThatNamesTheConfigAndWhatToDo) {
  RadosOptions options = OptionsFor(NextPrefix());
  options.connect_timeout = absl::Seconds(1);
  MonitorPaused paused;
  const absl::Time begin = absl::Now();
  const auto tier = OpenRadosTier(options);
  EXPECT_LT(absl::Now() - begin, options.connect_timeout + 2 * kGrace);
  EXPECT_EQ(tier.status().code(), absl::StatusCode::kUnavailable) << tier.status();
  EXPECT_THAT(std::string(tier.status().message()), HasSubstr(options.config_path));
  EXPECT_THAT(std::string(tier.status().message()), HasSubstr("mon host"));

  options.start_unconnected = true;
  auto later = OpenRadosTier(options);
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_FALSE((*later)->health().reachable);
  EXPECT_THAT((*later)->health().message, HasSubstr(options.config_path));
  const TestPlane plane = MakePlane(1, 5000);
  EXPECT_EQ(Put(**later, plane).status().code(), absl::StatusCode::kUnavailable);
  paused.Undo();
  EXPECT_TRUE(Eventually([&] { return (*later)->health().reachable; })) << "connects by itself";
  ASSERT_TRUE(Put(**later, plane).ok());
  EXPECT_EQ(GetAndCompare(**later, plane), absl::OkStatus());
}

TEST(RadosTier, AMonitorThatStandsStillLaterStopsNothingUnderWay) {
  auto tier = OpenRadosTier(OptionsFor(NextPrefix()));
  ASSERT_TRUE(tier.ok());
  MonitorPaused paused;
  for (uint64_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(Put(**tier, MakePlane(i, 50000)).ok());
    ASSERT_EQ(GetAndCompare(**tier, MakePlane(i, 50000)), absl::OkStatus());
  }
}

TEST(RadosTier, AWrongSetUpIsRefusedWithWhatToDo) {
  RadosOptions options = OptionsFor(NextPrefix());
  options.start_unconnected = true;  // These no waiting mends.
  const auto refused = [](const RadosOptions& wrong) { return OpenRadosTier(wrong).status(); };
  RadosOptions wrong = options;
  wrong.config_path = "/nowhere/ceph.conf";
  EXPECT_EQ(refused(wrong).code(), absl::StatusCode::kFailedPrecondition) << refused(wrong);
  EXPECT_THAT(std::string(refused(wrong).message()), HasSubstr("/nowhere/ceph.conf"));
  wrong = options;
  wrong.pool = "absent";
  EXPECT_EQ(refused(wrong).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused(wrong).message()), HasSubstr("ceph osd pool create absent"));
  wrong = options;
  wrong.pool = "";
  EXPECT_EQ(refused(wrong).code(), absl::StatusCode::kInvalidArgument);
  wrong = options;
  wrong.prefix = "a/b";
  EXPECT_EQ(refused(wrong).code(), absl::StatusCode::kInvalidArgument);
  wrong = options;
  wrong.client_name = "nonsense";
  EXPECT_EQ(refused(wrong).code(), absl::StatusCode::kInvalidArgument) << refused(wrong);
}

TEST(RadosTier, PrefixesAndNamespacesKeepStoresApart) {
  const RadosOptions one = OptionsFor(NextPrefix());
  RadosOptions other_prefix = one, other_space = one;
  other_prefix.prefix = one.prefix + "x";
  other_space.name_space = "elsewhere";
  auto a = OpenRadosTier(one), b = OpenRadosTier(other_prefix), c = OpenRadosTier(other_space);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Put(**a, plane).ok());
  for (auto* tier : {&b, &c}) {
    EXPECT_EQ(GetAndCompare(***tier, plane).code(), absl::StatusCode::kNotFound);
    EXPECT_TRUE(List(***tier, "", 100)->planes.empty());
  }
}

TEST(RadosTier, AFullClusterRefusesPutsAtOnceServesReadsAndDeletesAndRecovers) {
  auto tier = OpenRadosTier(OptionsFor(NextPrefix()));
  ASSERT_TRUE(tier.ok());
  const TestPlane plane = MakePlane(1, 50000), doomed = MakePlane(2, 50000), refused = MakePlane(3, 50000);
  ASSERT_TRUE(Put(**tier, plane).ok());
  ASSERT_TRUE(Put(**tier, doomed).ok());
  const auto call_full_at = [](const char* ratio) {
    Do(absl::StrCat("ceph osd set-nearfull-ratio ", ratio));
    Do(absl::StrCat("ceph osd set-backfillfull-ratio ", ratio));
    Do(absl::StrCat("ceph osd set-full-ratio ", ratio));
  };
  call_full_at("0.0001");  // Less than an empty OSD uses.
  absl::Status status;
  EXPECT_TRUE(Eventually([&] {  // Until the OSD has looked at its disk and the monitor has told everybody.
    status = Put(**tier, refused).status();
    Delete(**tier, {refused.id});
    return !status.ok();
  }));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE((*tier)->health().full);
  EXPECT_THAT((*tier)->health().message, HasSubstr("full"));
  EXPECT_EQ(GetAndCompare(**tier, plane), absl::OkStatus());
  EXPECT_EQ(Delete(**tier, {doomed.id})[0], absl::OkStatus());
  call_full_at("0.95");
  EXPECT_TRUE(Eventually([&] { return Put(**tier, refused).ok(); }));
  EXPECT_FALSE((*tier)->health().full);
}

TEST(RadosTier, ABlocklistedClientConnectsAgainByItself) {
  auto tier = OpenRadosTier(OptionsFor(NextPrefix()));
  ASSERT_TRUE(tier.ok());
  const TestPlane plane = MakePlane(1, 50000);
  ASSERT_TRUE(Put(**tier, plane).ok());
  // The address of this client: everything on the loopback, for two seconds.
  const auto before = ceph->Do("ceph osd blocklist add 127.0.0.1:0/0 3");
  ASSERT_TRUE(before.ok()) << before.status();
  absl::Status status;
  EXPECT_TRUE(Eventually([&] {
    status = GetAndCompare(**tier, plane, absl::Seconds(2));
    return !status.ok();
  }));
  EXPECT_TRUE(IsRetryable(status)) << status;
  EXPECT_TRUE(Eventually([&] { return GetAndCompare(**tier, plane, absl::Seconds(2)).ok(); }));
  EXPECT_TRUE((*tier)->health().reachable);
}

TEST(RadosTier, APoolMadeAnewIsFoundAgain) {
  Do("ceph osd pool create passing 8");
  RadosOptions options = OptionsFor(NextPrefix());
  options.pool = "passing";
  auto tier = OpenRadosTier(options);
  ASSERT_TRUE(tier.ok()) << tier.status();
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Put(**tier, plane).ok());
  Do("ceph tell mon.* injectargs --mon_allow_pool_delete=true");
  Do("ceph osd pool delete passing passing --yes-i-really-really-mean-it");
  EXPECT_TRUE(Eventually([&] { return !(*tier)->health().reachable; }));
  EXPECT_THAT((*tier)->health().message, HasSubstr("passing"));
  Do("ceph osd pool create passing 8");
  EXPECT_TRUE(Eventually([&] { return Put(**tier, plane, absl::Seconds(5)).ok(); }));
  EXPECT_EQ(GetAndCompare(**tier, plane), absl::OkStatus());
}

}  // namespace
}  // namespace perigee::kvstore

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto started = perigee::kvstore::OneNodeCeph::Start(ONE_NODE_CEPH, "bluestore");
  if (!started.ok()) {
    std::cout << "LOUD: no Ceph here (" << started.status() << "); the RADOS backend is NOT tested\n";
    return 77;
  }
  perigee::kvstore::ceph = *std::move(started);
  testing::UnitTest::GetInstance()->listeners().Append(new perigee::kvstore::ShowsLogsOfAFailedTest);
  const int result = RUN_ALL_TESTS();
  perigee::kvstore::ceph.reset();
  return result;
}
