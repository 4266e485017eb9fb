// A program that a test starts, speaks with by lines, pauses and kills. Killed with the object.
#ifndef PERIGEE_TESTS_TRANSPORT_CHILD_H_
#define PERIGEE_TESTS_TRANSPORT_CHILD_H_

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"

extern char** environ;

namespace perigee::transport {

class Child {
 public:
  explicit Child(std::vector<std::string> command) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) std::abort();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    // UCX's sockets are not closed on exec, and a connection must not outlive its process.
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) != 0) std::abort();
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    input_ = UniqueFd(in[1]);
    output_ = UniqueFd(out[0]);
    signal(SIGPIPE, SIG_IGN);
  }
  ~Child() { Kill(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  void Pause() {
    kill(pid_, SIGSTOP);
    waitpid(pid_, nullptr, WUNTRACED);  // a signal takes effect some time after kill returns
  }
  void Continue() { kill(pid_, SIGCONT); }

  // One line there and one back; "(gone)" when the program has ended, "(silent)" when it says nothing for so long.
  std::string Ask(const std::string& line, absl::Duration limit = absl::Seconds(40)) {
    Say(line);
    return Hear(limit);
  }
  void Say(const std::string& line) {
    const std::string text = line + "\n";
    [[maybe_unused]] const ssize_t written = write(input_.get(), text.data(), text.size());  // Hear tells if it is gone
  }
  std::string Hear(absl::Duration limit = absl::Seconds(40)) {
    const absl::Time until = absl::Now() + limit;
    while (true) {
      if (const size_t end = heard_.find('\n'); end != std::string::npos) {
        std::string line = heard_.substr(0, end);
        heard_.erase(0, end + 1);
        return line;
      }
      pollfd ready{output_.get(), POLLIN, 0};
      const int64_t left_ms = absl::ToInt64Milliseconds(until - absl::Now());
      if (left_ms < 0 || poll(&ready, 1, static_cast<int>(left_ms) + 1) == 0) return "(silent)";
      char buffer[4096];
      const ssize_t got = read(output_.get(), buffer, sizeof(buffer));
      if (got <= 0) return "(gone)";
      heard_.append(buffer, static_cast<size_t>(got));
    }
  }

 private:
  pid_t pid_ = -1;
  UniqueFd input_, output_;
  std::string heard_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TESTS_TRANSPORT_CHILD_H_
