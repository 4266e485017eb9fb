// Groups of ranks, each a process: results against double precision, bits against each other, and what every rank is
// told when one dies, stalls, or does something else than the others.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "transport/collective/ucx_collective.h"

extern char** environ;

namespace perigee::transport {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using testing::StartsWith;

// Far beyond what anything here takes; a rank that says nothing for so long hangs.
constexpr absl::Duration kPatience = absl::Seconds(60);

class RankProcess {
 public:
  explicit RankProcess(std::vector<std::string> arguments) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) std::abort();
    input_ = UniqueFd(in[1]);
    output_ = UniqueFd(out[0]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::string program = TRANSPORT_RANK;
    std::vector<char*> argv = {program.data()};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, TRANSPORT_RANK, &actions, nullptr, argv.data(), environ) != 0) std::abort();
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
  }
  ~RankProcess() { Kill(); }
  RankProcess(const RankProcess&) = delete;

  // The next line that it prints; "nothing more" when it ends or hangs.
  std::string Line() {
    const absl::Time deadline = absl::Now() + kPatience;
    while (true) {
      const size_t end = buffer_.find('\n');
      if (end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      pollfd ready{output_.get(), POLLIN, 0};
      const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
      char bytes[4096];
      if (left_ms <= 0 || poll(&ready, 1, static_cast<int>(left_ms)) <= 0) return "nothing more: it hangs";
      const ssize_t got = read(output_.get(), bytes, sizeof(bytes));
      if (got <= 0) return "nothing more: it has ended";
      buffer_.append(bytes, static_cast<size_t>(got));
    }
  }
  void Go() {
    if (write(input_.get(), "\n", 1) != 1) std::abort();
  }
  void Stall() {
    kill(pid_, SIGSTOP);
    waitpid(pid_, nullptr, WUNTRACED);  // a signal takes effect some time after kill returns
  }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd input_, output_;
  std::string buffer_;
};

std::vector<std::string> Arguments(int rank, int size, int port, const std::string& group,
                                   const std::string& transports, const std::vector<std::string>& steps) {
  std::vector<std::string> arguments = {absl::StrCat(rank), absl::StrCat(size), absl::StrCat(port), group, transports};
  arguments.insert(arguments.end(), steps.begin(), steps.end());
  return arguments;
}

int PortOf(RankProcess& rank0) {
  int port = 0;
  std::string line = rank0.Line();
  EXPECT_TRUE(absl::SimpleAtoi(absl::StripPrefix(line, "port "), &port)) << line;
  return port;
}

using Ranks = std::vector<std::unique_ptr<RankProcess>>;

// One process per list of steps, joined to one group.
Ranks Start(const std::string& transports, const std::vector<std::vector<std::string>>& steps) {
  Ranks ranks;
  const int size = static_cast<int>(steps.size());
  ranks.push_back(std::make_unique<RankProcess>(Arguments(0, size, 0, "group", transports, steps[0])));
  const int port = PortOf(*ranks[0]);
  for (int rank = 1; rank < size; ++rank) {
    ranks.push_back(std::make_unique<RankProcess>(Arguments(rank, size, port, "group", transports, steps[rank])));
  }
  for (const auto& rank : ranks) EXPECT_EQ(rank->Line(), "joined");
  return ranks;
}

Ranks Start(const std::string& transports, int size, const std::vector<std::string>& steps) {
  return Start(transports, std::vector<std::vector<std::string>>(size, steps));
}

struct Kind {
  std::string transports;
  int size;
};

class CollectiveTest : public testing::TestWithParam<Kind> {
 protected:
  Ranks StartAll(const std::vector<std::string>& steps) { return Start(GetParam().transports, GetParam().size, steps); }
  // All ranks print "ok" and the same bits for each of the steps.
  void ExpectEqualResults(const std::vector<std::string>& steps) {
    Ranks ranks = StartAll(steps);
    for (const std::string& step : steps) {
      const std::string first = ranks[0]->Line();
      EXPECT_THAT(first, StartsWith("ok ")) << step;
      for (size_t i = 1; i < ranks.size(); ++i) EXPECT_EQ(ranks[i]->Line(), first) << step << ", rank " << i;
    }
  }
};

TEST_P(CollectiveTest, SumsAreCloseToDoublePrecisionAndBitwiseEqualEverywhere) {
  // One step and two, sizes that the ranks do not divide, fewer values than ranks, several slices.
  ExpectEqualResults(
      {"sum:0", "sum:1", "sum:2", "sum:7", "sum:1000", "sum:16385", "sum:65537", "sum:262147", "sum:1048579", "sum:3"});
}

TEST_P(CollectiveTest, GathersPutEveryRanksBytesInItsPlace) {
  ExpectEqualResults({"gather:0", "gather:1", "gather:7", "gather:4096", "gather:262144", "gather:1048579"});
}

TEST_P(CollectiveTest, BroadcastsReachAllFromAnyRoot) {
  std::vector<std::string> steps;
  for (const char* bytes : {"0", "1", "7", "262144", "1048579"}) {
    for (int root = 0; root < GetParam().size; ++root) {
      steps.push_back(absl::StrCat("broadcast:", bytes, ":", root));
      steps.push_back(absl::StrCat("string:", bytes, ":", root));
    }
  }
  ExpectEqualResults(steps);
}

TEST_P(CollectiveTest, NobodyLeavesABarrierBeforeTheLastHasEntered) {
  std::vector<std::vector<std::string>> steps(GetParam().size, {"barrier"});
  steps.back() = {"await", "barrier"};
  Ranks ranks = Start(GetParam().transports, steps);
  for (size_t i = 0; i + 1 < ranks.size(); ++i) EXPECT_THAT(ranks[i]->Line(), StartsWith("entering "));
  ranks.back()->Go();
  EXPECT_EQ(ranks.back()->Line(), "ok 0");
  int64_t last_entered = 0;
  const std::string entering = ranks.back()->Line();
  ASSERT_TRUE(absl::SimpleAtoi(absl::StripPrefix(entering, "entering "), &last_entered)) << entering;
  for (const auto& rank : ranks) {
    int64_t left = 0;
    const std::string line = rank->Line();
    ASSERT_TRUE(absl::SimpleAtoi(absl::StripPrefix(line, "ok "), &left)) << line;
    EXPECT_GT(left, last_entered);
  }
}

TEST_P(CollectiveTest, AKilledRankIsUnavailableForAllOthersAndTheGroupStaysBroken) {
  // In the middle of sums of several slices. Long before the deadline of 30 s.
  std::vector<std::string> steps = {"loop:600000", "barrier"};
  Ranks ranks = StartAll(steps);
  for (const auto& rank : ranks) ASSERT_EQ(rank->Line(), "looping");
  const absl::Time killed = absl::Now();
  ranks.back()->Kill();
  for (size_t i = 0; i + 1 < ranks.size(); ++i) {
    EXPECT_THAT(ranks[i]->Line(), StartsWith("fail UNAVAILABLE")) << i;
    EXPECT_THAT(ranks[i]->Line(), StartsWith("entering "));
    EXPECT_THAT(ranks[i]->Line(), StartsWith("fail FAILED_PRECONDITION the group is broken")) << i;
  }
  EXPECT_LT(absl::Now() - killed, absl::Seconds(25));
}

TEST_P(CollectiveTest, AStalledRankEndsTheOthersCallsByTheirDeadline) {
  std::vector<std::vector<std::string>> steps(GetParam().size, {"await", "deadline:1500", "barrier"});
  Ranks ranks = Start(GetParam().transports, steps);
  ranks.back()->Stall();
  const absl::Time start = absl::Now();
  for (size_t i = 0; i + 1 < ranks.size(); ++i) ranks[i]->Go();
  for (size_t i = 0; i + 1 < ranks.size(); ++i) {
    EXPECT_EQ(ranks[i]->Line(), "ok 0");
    EXPECT_THAT(ranks[i]->Line(), StartsWith("entering "));
    EXPECT_THAT(ranks[i]->Line(), AnyOf(StartsWith("fail DEADLINE_EXCEEDED"), StartsWith("fail UNAVAILABLE"))) << i;
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(1.5 + 0.2 + 3));  // the rest is the machine's
}

TEST_P(CollectiveTest, RanksInDifferentOperationsAreToldBoth) {
  std::vector<std::vector<std::string>> steps(GetParam().size, {"sum:5", "sum:100"});
  steps.back() = {"sum:5", "barrier"};
  Ranks ranks = Start(GetParam().transports, steps);
  for (const auto& rank : ranks) EXPECT_THAT(rank->Line(), StartsWith("ok "));
  EXPECT_THAT(ranks.back()->Line(), StartsWith("entering "));
  for (const auto& rank : ranks) {
    EXPECT_THAT(rank->Line(), AllOf(StartsWith("fail INTERNAL"), HasSubstr("operation 2, Barrier"),
                                    HasSubstr("operation 2, AllReduceSum of 400 bytes")));
  }
}

TEST_P(CollectiveTest, RanksWithDifferentSizesAreToldBoth) {
  std::vector<std::vector<std::string>> steps(GetParam().size, {"sum:300000"});
  steps.back() = {"sum:300001"};
  Ranks ranks = Start(GetParam().transports, steps);
  for (const auto& rank : ranks) {
    EXPECT_THAT(rank->Line(),
                AllOf(StartsWith("fail INTERNAL"), HasSubstr("1200000 bytes"), HasSubstr("1200004 bytes")));
  }
}

TEST_P(CollectiveTest, RanksWithDifferentRootsAreToldBoth) {
  std::vector<std::vector<std::string>> steps(GetParam().size, {"broadcast:10:0"});
  steps.back() = {"broadcast:10:1"};
  Ranks ranks = Start(GetParam().transports, steps);
  for (const auto& rank : {ranks.front().get(), ranks.back().get()}) {
    EXPECT_THAT(rank->Line(), AllOf(StartsWith("fail INTERNAL"), HasSubstr("Broadcast from rank 0"),
                                    HasSubstr("Broadcast from rank 1")));
  }
  // The others agree with rank 0 and may have its bytes before the disagreement is found.
  for (size_t i = 1; i + 1 < ranks.size(); ++i) {
    EXPECT_THAT(ranks[i]->Line(), AnyOf(StartsWith("ok "), StartsWith("fail INTERNAL"))) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Groups, CollectiveTest,
                         testing::Values(Kind{"tcp", 2}, Kind{"tcp", 3}, Kind{"tcp", 4}, Kind{"shm,tcp", 2},
                                         Kind{"shm,tcp", 4}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.transports == "tcp" ? "Tcp" : "SharedMemory", "Of",
                                               info.param.size);
                         });

// ---- Who does not fit ----

TEST(RendezvousTest, TwoProcessesClaimingOneRankAreRefusedEverywhere) {
  RankProcess rank0(Arguments(0, 3, 0, "group", "tcp", {}));
  const int port = PortOf(rank0);
  RankProcess one(Arguments(1, 3, port, "group", "tcp", {}));
  RankProcess other(Arguments(1, 3, port, "group", "tcp", {}));
  for (RankProcess* rank : {&rank0, &one, &other}) {
    EXPECT_THAT(rank->Line(), AllOf(StartsWith("fail ALREADY_EXISTS"), HasSubstr("claims rank 1")));
  }
}

TEST(RendezvousTest, AnotherGroupSizeIsRefusedAtBoth) {
  RankProcess rank0(Arguments(0, 3, 0, "group", "tcp", {}));
  RankProcess misfit(Arguments(2, 4, PortOf(rank0), "group", "tcp", {}));
  for (RankProcess* rank : {&rank0, &misfit}) {
    EXPECT_THAT(rank->Line(),
                AllOf(StartsWith("fail FAILED_PRECONDITION"), HasSubstr("group of 4"), HasSubstr("group of 3")));
  }
}

TEST(RendezvousTest, AnotherGroupsNameIsRefusedAtBoth) {
  RankProcess rank0(Arguments(0, 2, 0, "one group", "tcp", {}));
  RankProcess misfit(Arguments(1, 2, PortOf(rank0), "another group", "tcp", {}));
  for (RankProcess* rank : {&rank0, &misfit}) {
    EXPECT_THAT(rank->Line(),
                AllOf(StartsWith("fail FAILED_PRECONDITION"), HasSubstr("'one group'"), HasSubstr("'another group'")));
  }
}

TEST(RendezvousTest, ALateComerIsRefusedAndTheGroupGoesOn) {
  RankProcess rank0(Arguments(0, 2, 0, "group", "tcp", {"await", "sum:100"}));
  const int port = PortOf(rank0);
  RankProcess rank1(Arguments(1, 2, port, "group", "tcp", {"await", "sum:100"}));
  EXPECT_EQ(rank0.Line(), "joined");
  EXPECT_EQ(rank1.Line(), "joined");
  RankProcess late(Arguments(1, 2, port, "group", "tcp", {}));
  EXPECT_THAT(late.Line(), StartsWith("fail ALREADY_EXISTS"));
  for (RankProcess* rank : {&rank0, &rank1}) {
    rank->Go();
    EXPECT_EQ(rank->Line(), "ok 0");
  }
  for (RankProcess* rank : {&rank0, &rank1}) EXPECT_THAT(rank->Line(), StartsWith("ok "));
}

TEST(RendezvousTest, TheMissingRankIsNamedAtTheDeadline) {
  RankProcess rank0(Arguments(0, 3, 0, "group", "tcp", {"deadline:1000"}));
  RankProcess rank1(Arguments(1, 3, PortOf(rank0), "group", "tcp", {"deadline:20000"}));
  EXPECT_THAT(rank0.Line(), AllOf(StartsWith("fail DEADLINE_EXCEEDED"), HasSubstr("rank 2 of 3")));
  EXPECT_THAT(rank1.Line(), AllOf(StartsWith("fail UNAVAILABLE"), HasSubstr("rank 2 of 3")));
}

TEST(RendezvousTest, RankZerosDeathEndsItByTheDeadline) {
  RankProcess rank0(Arguments(0, 3, 0, "group", "tcp", {}));
  RankProcess rank1(Arguments(1, 3, PortOf(rank0), "group", "tcp", {"deadline:3000"}));
  rank0.Kill();
  // The latter when rank 0 was dead before rank 1 had reached it.
  EXPECT_THAT(rank1.Line(), AnyOf(StartsWith("fail UNAVAILABLE"), StartsWith("fail DEADLINE_EXCEEDED")));
}

TEST(RendezvousTest, RanksMayStartBeforeRankZeroListens) {
  // A port that was free a moment ago.
  int port = 0;
  {
    auto context = Context::Create({.transports = "tcp"});
    ASSERT_TRUE(context.ok()) << context.status();
    auto listener = (*context)->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(listener.ok()) << listener.status();
    port = listener->port();
  }
  RankProcess rank1(Arguments(1, 2, port, "group", "tcp", {"barrier"}));
  RankProcess rank0(Arguments(0, 2, port, "group", "tcp", {"barrier"}));
  EXPECT_EQ(PortOf(rank0), port);
  EXPECT_EQ(rank0.Line(), "joined");
  EXPECT_EQ(rank1.Line(), "joined");
}

TEST(RendezvousTest, ImpossibleOptionsAreRefused) {
  const auto refused = [](GroupOptions options) { return absl::IsInvalidArgument(Rendezvous::Open(options).status()); };
  EXPECT_TRUE(refused({.group_name = "g", .rank = 0, .size = 0}));
  EXPECT_TRUE(refused({.group_name = "g", .rank = 2, .size = 2, .rendezvous_port = 1}));
  EXPECT_TRUE(refused({.group_name = "g", .rank = -1, .size = 2, .rendezvous_port = 1}));
  EXPECT_TRUE(refused({.group_name = "g", .rank = 0, .size = kMaxGroupSize + 1}));
  EXPECT_TRUE(refused({.group_name = "", .rank = 0, .size = 1}));
  EXPECT_TRUE(refused({.group_name = "g", .rank = 1, .size = 2}));
  EXPECT_TRUE(refused({.group_name = "g", .rank = 0, .size = 1, .blob = std::string(129, 'x')}));
}

TEST(CollectiveOfOneTest, EveryOperationIsItsOwnResult) {
  auto group = UcxCollective::Create({.group_name = "g", .transport = {.transports = "tcp"}}, absl::Now() + kPatience);
  ASSERT_TRUE(group.ok()) << group.status();
  const absl::Time deadline = absl::Now() + kPatience;
  std::vector<float> values = {1.5f, -2.0f};
  EXPECT_TRUE((*group)->AllReduceSum(values, deadline).ok());
  EXPECT_THAT(values, testing::ElementsAre(1.5f, -2.0f));
  std::vector<std::byte> mine = {std::byte{1}, std::byte{2}}, all(2), wrong(3);
  EXPECT_TRUE((*group)->AllGather(mine, all, deadline).ok());
  EXPECT_EQ(all, mine);
  EXPECT_TRUE(absl::IsInvalidArgument((*group)->AllGather(mine, wrong, deadline)));
  EXPECT_TRUE((*group)->Broadcast(mine, 0, deadline).ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*group)->Broadcast(mine, 1, deadline)));
  EXPECT_TRUE(absl::IsInvalidArgument((*group)->Broadcast(mine, -1, deadline)));
  std::string text = "text";
  EXPECT_TRUE((*group)->BroadcastString(&text, 0, deadline).ok());
  EXPECT_EQ(text, "text");
  EXPECT_TRUE((*group)->Barrier(deadline).ok());
}

}  // namespace
}  // namespace perigee::transport
