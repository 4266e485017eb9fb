#include "cluster/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

// The end of what was written from `begin` on: older runs' lines are not this child's last words.
std::string LogTail(const std::string& path, size_t begin) {
  absl::StatusOr<std::string> log = ReadFile(path);
  if (!log.ok() || log->size() <= begin) return "(its log is empty)";
  constexpr size_t kTail = 600;
  if (log->size() - begin <= kTail) return log->substr(begin);
  return absl::StrCat("...", log->substr(log->size() - kTail));
}

std::string HowItEnded(int exit_status) {
  return WIFSIGNALED(exit_status) ? absl::StrCat("by signal ", WTERMSIG(exit_status))
                                  : absl::StrCat("with exit code ", WEXITSTATUS(exit_status));
}

}  // namespace

absl::StatusOr<ChildProcess> ChildProcess::Start(const std::string& executable, std::vector<std::string> arguments,
                                                 const std::string& log_path) {
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoStatus("pipe", executable, errno);
  UniqueFd read_end(pipe_fds[0]);
  UniqueFd write_end(pipe_fds[1]);
  UniqueFd log(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!log) return ErrnoStatus("open", log_path, errno);
  struct stat log_stat {};
  const size_t log_begin = ::fstat(log.get(), &log_stat) == 0 ? static_cast<size_t>(log_stat.st_size) : 0;
  UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));

  // Everything that allocates happens before fork: another thread may hold the allocator's lock in the child's copy.
  constexpr int kReadyFd = 3;
  arguments.insert(arguments.begin(), executable);
  arguments.push_back("--ready-fd");
  arguments.push_back(absl::StrCat(kReadyFd));
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  const std::string cannot_run = absl::StrCat("cannot run ", executable, "\n");
  const pid_t parent = ::getpid();

  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus("fork for", executable, errno);
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    ::setpgid(0, 0);  // A terminal's Ctrl-C reaches the supervisor alone, which stops its children in order.
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    ::dup2(null.get(), 0);
    ::dup2(log.get(), 1);
    ::dup2(log.get(), 2);
    if (write_end.get() == kReadyFd) {
      ::fcntl(kReadyFd, F_SETFD, 0);
    } else {
      ::dup2(write_end.get(), kReadyFd);
    }
    ::execv(argv[0], argv.data());
    [[maybe_unused]] const ssize_t written = ::write(2, cannot_run.data(), cannot_run.size());
    ::_exit(127);
  }
  ChildProcess child;
  child.pid_ = pid;
  child.ready_ = std::move(read_end);
  child.name_ = std::filesystem::path(log_path).stem().string();
  child.log_path_ = log_path;
  child.log_begin_ = log_begin;
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      exit_status_(other.exit_status_),
      ready_(std::move(other.ready_)),
      name_(std::move(other.name_)),
      log_path_(std::move(other.log_path_)),
      log_begin_(other.log_begin_) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    Kill();
    pid_ = std::exchange(other.pid_, -1);
    exit_status_ = other.exit_status_;
    ready_ = std::move(other.ready_);
    name_ = std::move(other.name_);
    log_path_ = std::move(other.log_path_);
    log_begin_ = other.log_begin_;
  }
  return *this;
}

ChildProcess::~ChildProcess() { Kill(); }

bool ChildProcess::Running() {
  if (pid_ < 0) return false;
  int status = 0;
  pid_t reaped;
  do {
    reaped = ::waitpid(pid_, &status, WNOHANG);
  } while (reaped < 0 && errno == EINTR);
  if (reaped == 0) return true;
  if (reaped == pid_) exit_status_ = status;
  pid_ = -1;
  return false;
}

absl::StatusOr<std::string> ChildProcess::WaitReady(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  std::string line;
  for (;;) {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left_ms <= 0) {
      return absl::DeadlineExceededError(absl::StrCat("the ", name_, " process was not ready within ",
                                                      absl::FormatDuration(timeout), "; its log is ", log_path_));
    }
    pollfd p{ready_.get(), POLLIN, 0};
    const int ready = ::poll(&p, 1, static_cast<int>(std::min<int64_t>(left_ms, 60000)));
    if (ready < 0 && errno != EINTR) return ErrnoStatus("poll for", name_, errno);
    if (ready <= 0) continue;
    char buffer[512];
    const ssize_t n = ::read(ready_.get(), buffer, sizeof(buffer));
    if (n > 0) {
      line.append(buffer, static_cast<size_t>(n));
      if (line.back() != '\n') continue;
      absl::string_view address = absl::StripAsciiWhitespace(line);
      if (!absl::ConsumePrefix(&address, "ready ")) {
        return absl::InternalError(
            absl::StrCat("the ", name_, " process said '", address, "' instead of 'ready ADDRESS'"));
      }
      ready_.Reset();
      return std::string(address);
    }
    if (n == 0) break;
    if (errno != EINTR) return ErrnoStatus("read from", name_, errno);
  }
  // The descriptor closed without a line: the child is ending.
  while (Running() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
  return absl::UnavailableError(
      absl::StrCat("the ", name_, " process ended before it was ready:\n", LogTail(log_path_, log_begin_)));
}

absl::Status ChildProcess::Stop(absl::Duration timeout) {
  if (pid_ >= 0) {
    ::kill(pid_, SIGTERM);
    const absl::Time deadline = absl::Now() + timeout;
    while (Running()) {
      if (absl::Now() >= deadline) {
        Kill();
        return absl::DeadlineExceededError(absl::StrCat("the ", name_, " process did not stop within ",
                                                        absl::FormatDuration(timeout), " and was killed"));
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  if (WIFEXITED(exit_status_) && WEXITSTATUS(exit_status_) == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the ", name_, " process ended ", HowItEnded(exit_status_), ":\n", LogTail(log_path_, log_begin_)));
}

void ChildProcess::Kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, &exit_status_, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

absl::StatusOr<std::string> SelfExecutable() {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::InternalError(absl::StrCat("/proc/self/exe: ", error.message()));
  return path.string();
}

void AnnounceReady(int ready_fd, const std::string& address) {
  if (ready_fd < 0) return;
  const std::string line = absl::StrCat("ready ", address, "\n");
  // A supervisor that is gone is no error of ours: the write may fail.
  [[maybe_unused]] const ssize_t written = ::write(ready_fd, line.data(), line.size());
  ::close(ready_fd);
}

namespace {
sigset_t TerminationSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}
}  // namespace

void RaiseDescriptorLimit() {
  constexpr rlim_t kEnough = 65536;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= kEnough) return;
  limit.rlim_cur = std::min(limit.rlim_max, kEnough);
  (void)::setrlimit(RLIMIT_NOFILE, &limit);  // As before, then; who connects too late waits.
}

void BlockTerminationSignals() {
  const sigset_t set = TerminationSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

bool WaitForTermination(absl::Time until) {
  const sigset_t set = TerminationSet();
  for (;;) {
    absl::Duration left = until - absl::Now();
    if (left > absl::Hours(1)) left = absl::Hours(1);
    if (left < absl::ZeroDuration()) left = absl::ZeroDuration();
    const timespec time = absl::ToTimespec(left);
    const int signal = ::sigtimedwait(&set, nullptr, &time);
    if (signal > 0) return true;
    if (errno == EAGAIN && absl::Now() >= until) return false;
  }
}

}  // namespace perigee::cluster
