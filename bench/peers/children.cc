#include "peers/children.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "peers/fail.h"

extern char** environ;

namespace perigee::bench {
namespace {

double CpuSecondsOf(clockid_t clock) {
  timespec time{};
  if (clock_gettime(clock, &time) != 0) Die("clock_gettime failed for a process's CPU time");
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

}  // namespace

const Processors& PinnedProcessors() {
  static const Processors processors = [] {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) Die("sched_getaffinity failed");
    std::vector<int> found;
    for (int i = 0; i < CPU_SETSIZE && found.size() < 2; ++i) {
      if (CPU_ISSET(i, &allowed)) found.push_back(i);
    }
    return Processors{found.front(), found.back()};
  }();
  return processors;
}

void PinThisThread(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  if (sched_setaffinity(0, sizeof(set), &set) != 0) Die(absl::StrCat("cannot run on processor ", processor));
}

double OwnCpuSeconds() { return CpuSecondsOf(CLOCK_PROCESS_CPUTIME_ID); }

Child::Child(std::vector<std::string> command, int processor, const std::vector<std::string>& environment) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) Die("pipe2 failed");
  input_ = UniqueFd(in[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::vector<std::string> settings = environment;
  std::vector<char*> envp;
  for (std::string& setting : settings) envp.push_back(setting.data());
  for (char** it = environ; *it != nullptr; ++it) {
    const bool replaced = std::any_of(settings.begin(), settings.end(), [&](absl::string_view setting) {
      return absl::StartsWith(*it, setting.substr(0, setting.find('=') + 1));
    });
    if (!replaced) envp.push_back(*it);
  }
  envp.push_back(nullptr);

  cpu_set_t before;
  CPU_ZERO(&before);
  sched_getaffinity(0, sizeof(before), &before);
  PinThisThread(processor);
  if (posix_spawnp(&pid_, argv[0], &actions, &attributes, argv.data(), envp.data()) != 0) pid_ = -1;
  sched_setaffinity(0, sizeof(before), &before);

  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(in[0]);
  close(out[1]);
  output_ = fdopen(out[0], "r");
}

Child::~Child() {
  std::fclose(output_);
  if (pid_ <= 0) return;
  kill(-pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::string Child::ReadLine() {
  std::string line;
  for (int c; (c = std::fgetc(output_)) != EOF && c != '\n';) line.push_back(static_cast<char>(c));
  return line;
}

std::string Child::ReadAll() {
  std::string text;
  for (int c; (c = std::fgetc(output_)) != EOF;) text.push_back(static_cast<char>(c));
  return text;
}

double Child::CpuSeconds() const {
  clockid_t clock;
  if (clock_getcpuclockid(pid_, &clock) != 0) Die("the serving process is gone");
  return CpuSecondsOf(clock);
}

}  // namespace perigee::bench
