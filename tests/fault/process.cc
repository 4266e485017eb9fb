#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status.h"

namespace perigee::fault {
namespace {

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("pipe2", "program in a host", errno);
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// Between fork and exec only system calls: other threads may have held locks. 127: the program could not be started.
absl::StatusOr<pid_t> Spawn(int netns_fd, std::vector<std::string> command, int in, int out, bool errors_to_out,
                            bool own_sys, const Limits& limits) {
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return ErrnoStatus("fork", command[0], errno);
  if (pid > 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  if (setns(netns_fd, CLONE_NEWNET) != 0) _exit(126);
  // Programs look for network devices in /sys, which shows those of the namespace in which it was mounted. EBUSY: the
  // test is in this host itself and has mounted it.
  if (own_sys && unshare(CLONE_NEWNS) != 0) _exit(126);
  if (own_sys && mount("sysfs", "/sys", "sysfs", 0, nullptr) != 0 && errno != EBUSY) _exit(126);
  dup2(in, 0);
  dup2(out, 1);
  if (errors_to_out) dup2(out, 2);
  const rlimit space{limits.address_space_bytes, limits.address_space_bytes};
  const rlimit locked{limits.locked_bytes, limits.locked_bytes};
  if (limits.locked_bytes != 0) setrlimit(RLIMIT_MEMLOCK, &locked);
  if (limits.address_space_bytes != 0) setrlimit(RLIMIT_AS, &space);
  signal(SIGPIPE, SIG_DFL);
  close_range(3, ~0U, 0);  // UCX's sockets are not closed on exec, and a connection must not outlive its process
  execvp(argv[0], argv.data());
  _exit(127);
}

std::string EndText(int status) {
  if (WIFSIGNALED(status)) return absl::StrCat("killed by signal ", WTERMSIG(status));
  return absl::StrCat("exit status ", WEXITSTATUS(status));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(const Network& network, Place place,
                                                        std::vector<std::string> command, const Limits& limits) {
  PERIGEE_ASSIGN_OR_RETURN(Pipe in, MakePipe());
  PERIGEE_ASSIGN_OR_RETURN(Pipe out, MakePipe());
  std::unique_ptr<Process> process(new Process);
  PERIGEE_ASSIGN_OR_RETURN(process->pid_,
                           Spawn(network.namespace_fd(place), std::move(command), in.read.get(), out.write.get(),
                                 /*errors_to_out=*/false, /*own_sys=*/true, limits));
  process->input_ = std::move(in.write);
  process->output_ = std::move(out.read);
  return process;
}

Process::~Process() { Kill(); }

void Process::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  waitpid(pid_, &status, 0);
  end_ = EndText(status);
  pid_ = 0;
}

void Process::Pause() {
  ::kill(pid_, SIGSTOP);
  siginfo_t stopped;  // a signal takes effect some time after kill returns
  ::waitid(P_PID, static_cast<id_t>(pid_), &stopped, WSTOPPED | WEXITED | WNOWAIT);
}
void Process::Continue() { ::kill(pid_, SIGCONT); }

bool Process::Alive() {
  if (pid_ <= 0) return false;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) == 0) return true;
  end_ = EndText(status);
  pid_ = 0;
  return false;
}

void Process::Say(absl::string_view line) {
  const std::string text = absl::StrCat(line, "\n");
  [[maybe_unused]] const ssize_t written = write(input_.get(), text.data(), text.size());  // Hear tells if it is gone
}

absl::StatusOr<std::string> Process::Hear(absl::Duration limit) {
  const absl::Time until = absl::Now() + limit;
  for (;;) {
    if (const size_t end = heard_.find('\n'); end != std::string::npos) {
      std::string line = heard_.substr(0, end);
      heard_.erase(0, end + 1);
      return line;
    }
    const int64_t left_ms = absl::ToInt64Milliseconds(until - absl::Now());
    pollfd ready{output_.get(), POLLIN, 0};
    if (left_ms < 0 || poll(&ready, 1, static_cast<int>(left_ms) + 1) == 0) {
      return absl::DeadlineExceededError(absl::StrCat("no word from the process within ", absl::FormatDuration(limit)));
    }
    char buffer[4096];
    const ssize_t got = read(output_.get(), buffer, sizeof(buffer));
    if (got > 0) {
      heard_.append(buffer, static_cast<size_t>(got));
    } else if (got == 0 || errno != EINTR) {
      // Its output is closed: it is ending.
      while (Alive() && absl::Now() < until) absl::SleepFor(absl::Milliseconds(1));
      return absl::UnavailableError(absl::StrCat("the process has ended: ", end_));
    }
  }
}

absl::StatusOr<std::string> Process::Ask(absl::string_view line, absl::Duration limit) {
  Say(line);
  return Hear(limit);
}

absl::Status RunCommand(int netns_fd, const std::vector<std::string>& command, absl::string_view input) {
  PERIGEE_ASSIGN_OR_RETURN(Pipe in, MakePipe());
  PERIGEE_ASSIGN_OR_RETURN(Pipe out, MakePipe());
  PERIGEE_ASSIGN_OR_RETURN(const pid_t pid, Spawn(netns_fd, command, in.read.get(), out.write.get(),
                                                  /*errors_to_out=*/true, /*own_sys=*/false, {}));
  in.read.Reset();
  out.write.Reset();
  // Less than a pipe holds.
  [[maybe_unused]] const ssize_t written = write(in.write.get(), input.data(), input.size());
  in.write.Reset();
  std::string said;
  char buffer[4096];
  for (ssize_t got; (got = read(out.read.get(), buffer, sizeof(buffer))) > 0;) said.append(buffer, got);
  int status = 0;
  waitpid(pid, &status, 0);
  if (status == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("'", absl::StrJoin(command, " "), "' failed (", EndText(status), "): ", said));
}

size_t ResidentBytes(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/statm"));
  size_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

size_t OpenFiles(pid_t pid) {
  std::error_code ignored;
  const std::filesystem::directory_iterator files(absl::StrCat("/proc/", pid, "/fd"), ignored);
  return static_cast<size_t>(std::distance(begin(files), end(files)));
}

}  // namespace perigee::fault
