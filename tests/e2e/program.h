// The perigee program as a user starts it: a process with an exit code, what it printed, and a deadline.
#ifndef PERIGEE_TESTS_E2E_PROGRAM_H_
#define PERIGEE_TESTS_E2E_PROGRAM_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"

namespace perigee {

// A folder that goes with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = testing::TempDir() + "/perigee_e2e_XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// True once `condition` holds; false when it does not within the deadline.
template <typename Condition>
bool WaitFor(Condition condition, absl::Duration deadline = absl::Seconds(60)) {
  for (const absl::Time end = absl::Now() + deadline; absl::Now() < end; absl::SleepFor(absl::Milliseconds(10))) {
    if (condition()) return true;
  }
  return condition();
}

class Program {
 public:
  // $PERIGEE_HOME and both outputs' files are in `home`.
  Program(std::vector<std::string> arguments, const std::string& home) {
    static int count = 0;
    const std::string base = absl::StrCat(home, "/run", ++count);
    out_path_ = base + ".out";
    err_path_ = base + ".err";
    arguments.insert(arguments.begin(), PERIGEE_PROGRAM);
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    ::setenv("PERIGEE_HOME", home.c_str(), 1);
    const UniqueFd out(::open(out_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    const UniqueFd err(::open(err_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(out.get(), 1);
    ::dup2(err.get(), 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Program(const Program&) = delete;

  pid_t pid() const { return pid_; }
  std::string out() const { return ReadFile(out_path_).value_or(""); }
  std::string err() const { return ReadFile(err_path_).value_or(""); }
  void Signal(int signal) const { ::kill(pid_, signal); }

  // The exit code, 128 + n for death by signal n; -1, after a SIGKILL, when it runs past the deadline.
  int Wait(absl::Duration deadline) {
    int status = 0;
    const bool ended = WaitFor([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; }, deadline);
    if (!ended) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, &status, 0);
    }
    pid_ = -1;
    if (!ended) return -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }

 private:
  pid_t pid_ = -1;
  std::string out_path_, err_path_;
};

struct Ran {
  int exit_code = -1;
  std::string out, err;
  absl::Duration took;
};

inline Ran RunProgram(std::vector<std::string> arguments, const std::string& home,
                      absl::Duration deadline = absl::Seconds(60)) {
  const absl::Time start = absl::Now();
  Program program(std::move(arguments), home);
  Ran ran;
  ran.exit_code = program.Wait(deadline);
  ran.out = program.out();
  ran.err = program.err();
  ran.took = absl::Now() - start;
  return ran;
}

inline std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string status = ReadFile(entry.path().string() + "/status").value_or("");
    if (absl::StrContains(status, absl::StrCat("PPid:\t", parent, "\n"))) children.push_back(std::stoi(name));
  }
  return children;
}

inline bool IsGone(pid_t pid) {
  const std::string stat = ReadFile(absl::StrCat("/proc/", pid, "/stat")).value_or("");
  return stat.empty() || absl::StrContains(stat, ") Z ");
}

}  // namespace perigee

#endif  // PERIGEE_TESTS_E2E_PROGRAM_H_
