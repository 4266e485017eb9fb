#include "cluster/process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/time/clock.h"

namespace perigee::cluster {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kDeadline = absl::Seconds(20);

class ProcessTest : public ::testing::Test {
 protected:
  ProcessTest() {
    std::string name = testing::TempDir() + "/perigee_process_XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~ProcessTest() override { std::filesystem::remove_all(folder_); }

  // A child that runs a shell script; descriptor 3 is the ready one.
  absl::StatusOr<ChildProcess> Run(const std::string& script) {
    return ChildProcess::Start("/bin/sh", {"-c", script}, folder_ + "/worker.log");
  }
  std::string folder_;
};

// Neither running nor waiting to be reaped by somebody else.
bool IsGone(pid_t pid) {
  const absl::StatusOr<std::string> stat = ReadFile("/proc/" + std::to_string(pid) + "/stat");
  return !stat.ok() || absl::StrContains(*stat, ") Z ");
}

bool WaitUntilGone(pid_t pid) {
  for (const absl::Time end = absl::Now() + kDeadline; absl::Now() < end; absl::SleepFor(absl::Milliseconds(5))) {
    if (IsGone(pid)) return true;
  }
  return false;
}

TEST_F(ProcessTest, ReadyLineGivesTheAddress) {
  auto child = Run("echo 'ready 127.0.0.1:4711' >&3; exec sleep 60");
  ASSERT_TRUE(child.ok()) << child.status();
  const auto address = child->WaitReady(kDeadline);
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(*address, "127.0.0.1:4711");
  EXPECT_TRUE(child->Running());
}

TEST_F(ProcessTest, ReadyLineMayArriveInPieces) {
  auto child = Run("printf rea >&3; sleep 0.05; printf 'dy host:1' >&3; sleep 0.05; echo >&3; exec sleep 60");
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(child->WaitReady(kDeadline).value_or("-"), "host:1");
}

TEST_F(ProcessTest, ChildGetsTheReadyDescriptorsNumberAsItsLastArguments) {
  auto child =
      ChildProcess::Start("/bin/sh", {"-c", "echo \"ready $0=$1\" >&3; exec sleep 60"}, folder_ + "/worker.log");
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(child->WaitReady(kDeadline).value_or("-"), "--ready-fd=3");
}

TEST_F(ProcessTest, AChildThatDiesBeforeItIsReadyShowsTheEndOfItsLog) {
  auto child = Run("echo 'to standard output'; echo 'the disk is on fire' >&2; exit 3");
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::Time start = absl::Now();
  const absl::Status status = child->WaitReady(absl::Seconds(60)).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("worker"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the disk is on fire"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("to standard output"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
}

TEST_F(ProcessTest, ALongLogIsCutToItsEnd) {
  auto child = Run("i=0; while [ $i -lt 500 ]; do echo \"line $i of a long log\"; i=$((i+1)); done; exit 1");
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::Status status = child->WaitReady(kDeadline).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("line 499 of a long log"));
  EXPECT_LT(status.message().size(), 1000u);
}

TEST_F(ProcessTest, OnlyThisRunsPartOfTheLogIsShown) {
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/worker.log", "an old run's complaint\n").ok());
  auto child = Run("echo 'the new complaint'; exit 1");
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::Status status = child->WaitReady(kDeadline).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("the new complaint"));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("old run")));
}

TEST_F(ProcessTest, AProgramThatDoesNotExistIsNamed) {
  auto child = ChildProcess::Start("/nowhere/perigee", {}, folder_ + "/worker.log");
  const absl::Status status = child.ok() ? child->WaitReady(kDeadline).status() : child.status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/perigee"));
}

TEST_F(ProcessTest, ALogThatCannotBeWrittenIsAnError) {
  const auto child = ChildProcess::Start("/bin/sh", {"-c", "true"}, folder_ + "/no/such/folder.log");
  EXPECT_FALSE(child.ok());
  EXPECT_THAT(std::string(child.status().message()), HasSubstr("no/such/folder.log"));
}

TEST_F(ProcessTest, ASilentChildRunsIntoTheDeadline) {
  auto child = Run("exec sleep 60");
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::Status status = child->WaitReady(absl::Milliseconds(100)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_ + "/worker.log"));
}

TEST_F(ProcessTest, AChildThatSaysSomethingElseIsAnErrorAtOnce) {
  auto child = Run("echo 'hello there' >&3; exec sleep 60");
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::Time start = absl::Now();
  const absl::Status status = child->WaitReady(absl::Seconds(60)).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("hello there"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
}

TEST_F(ProcessTest, StopLetsTheChildEndByItself) {
  auto child = Run("trap 'echo bye; exit 0' TERM; echo 'ready a:1' >&3; while :; do sleep 0.01; done");
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_TRUE(child->WaitReady(kDeadline).ok());
  EXPECT_TRUE(child->Stop(kDeadline).ok());
  EXPECT_FALSE(child->Running());
  EXPECT_EQ(ReadFile(folder_ + "/worker.log").value_or(""), "bye\n");
}

TEST_F(ProcessTest, StopReportsAnExitCode) {
  auto child = Run("trap 'echo cannot save; exit 7' TERM; echo 'ready a:1' >&3; while :; do sleep 0.01; done");
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_TRUE(child->WaitReady(kDeadline).ok());
  const absl::Status status = child->Stop(kDeadline);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("exit code 7"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot save"));
}

TEST_F(ProcessTest, AChildThatWillNotStopIsKilledWhenTheTimeIsOver) {
  auto child = Run("trap '' TERM; echo 'ready a:1' >&3; while :; do sleep 0.01; done");
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_TRUE(child->WaitReady(kDeadline).ok());
  const pid_t pid = child->pid();
  const absl::Status status = child->Stop(absl::Milliseconds(100));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_TRUE(IsGone(pid));
}

TEST_F(ProcessTest, KillAndTheDestructorLeaveNothingBehind) {
  auto killed = Run("exec sleep 60");
  ASSERT_TRUE(killed.ok());
  const pid_t first = killed->pid();
  killed->Kill();
  EXPECT_TRUE(IsGone(first));
  EXPECT_FALSE(killed->Running());
  pid_t second;
  {
    auto child = Run("exec sleep 60");
    ASSERT_TRUE(child.ok());
    second = child->pid();
    EXPECT_FALSE(IsGone(second));
  }
  EXPECT_TRUE(IsGone(second));
}

TEST_F(ProcessTest, MoveAssignmentKillsTheOldChildAndKeepsTheNewOne) {
  auto a = Run("exec sleep 60");
  auto b = Run("exec sleep 60");
  ASSERT_TRUE(a.ok() && b.ok());
  const pid_t first = a->pid();
  const pid_t second = b->pid();
  *a = *std::move(b);
  EXPECT_TRUE(IsGone(first));
  EXPECT_EQ(a->pid(), second);
  EXPECT_TRUE(a->Running());
}

TEST_F(ProcessTest, ChildrenDieWithAKilledSupervisor) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  const pid_t supervisor = ::fork();
  ASSERT_GE(supervisor, 0);
  if (supervisor == 0) {
    auto child = Run("echo 'ready a:1' >&3; exec sleep 60");
    const pid_t pid = child.ok() && child->WaitReady(kDeadline).ok() ? child->pid() : -1;
    if (::write(pipe_fds[1], &pid, sizeof(pid)) != sizeof(pid)) ::_exit(1);
    for (;;) ::pause();
  }
  pid_t grandchild = -1;
  ASSERT_EQ(::read(pipe_fds[0], &grandchild, sizeof(grandchild)), static_cast<ssize_t>(sizeof(grandchild)));
  ASSERT_GT(grandchild, 0);
  EXPECT_FALSE(IsGone(grandchild));
  ::kill(supervisor, SIGKILL);
  ::waitpid(supervisor, nullptr, 0);
  EXPECT_TRUE(WaitUntilGone(grandchild));
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
}

TEST_F(ProcessTest, AnnounceReadyWritesOneLineAndCloses) {
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  AnnounceReady(pipe_fds[1], "h:9");
  char buffer[64];
  const ssize_t n = ::read(pipe_fds[0], buffer, sizeof(buffer));
  ASSERT_GT(n, 0);
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(n)), "ready h:9\n");
  EXPECT_EQ(::read(pipe_fds[0], buffer, sizeof(buffer)), 0);
  ::close(pipe_fds[0]);
  AnnounceReady(-1, "nothing happens");
}

TEST_F(ProcessTest, WaitForTerminationSeesASignalAndADeadline) {
  BlockTerminationSignals();
  EXPECT_FALSE(WaitForTermination(absl::Now() + absl::Milliseconds(20)));
  EXPECT_FALSE(WaitForTermination(absl::InfinitePast()));
  ::kill(::getpid(), SIGTERM);
  EXPECT_TRUE(WaitForTermination(absl::Now() + kDeadline));
  ::kill(::getpid(), SIGINT);
  EXPECT_TRUE(WaitForTermination());
}

TEST(DescriptorLimitTest, IsRaisedAsFarAsAllowed) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit low = {.rlim_cur = std::min<rlim_t>(256, before.rlim_max), .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  RaiseDescriptorLimit();
  rlimit raised{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &raised), 0);
  EXPECT_EQ(raised.rlim_cur, std::min<rlim_t>(65536, before.rlim_max));
  EXPECT_EQ(raised.rlim_max, before.rlim_max);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST(SelfExecutableTest, IsThisProgram) {
  const auto path = SelfExecutable();
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_THAT(*path, HasSubstr("cluster_process_test"));
}

}  // namespace
}  // namespace perigee::cluster
