// Stores and clients in processes of their own, for tests that kill or stall them.
#ifndef PERIGEE_TESTS_KVSTORE_SERVER_PROCESS_H_
#define PERIGEE_TESTS_KVSTORE_SERVER_PROCESS_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

extern char** environ;

namespace perigee::kvstore {

// A program in a process of its own; killed with the object.
class ChildProcess {
 public:
  // wait: until it has said its first line or has ended; else see Await.
  explicit ChildProcess(std::vector<std::string> words, bool wait = true) {
    int in[2], out[2];
    EXPECT_EQ(::pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    EXPECT_EQ(::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    input_ = in[1];
    output_ = out[0];
    if (wait) Await();
  }
  void Await() {
    pollfd ready{output_, POLLIN, 0};
    char byte;
    while (::poll(&ready, 1, 20000) == 1 && ::read(output_, &byte, 1) == 1 && byte != '\n') said_ += byte;
  }
  ~ChildProcess() {
    Kill();
    ::close(input_);
    ::close(output_);
  }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  void Stop() {
    ::kill(pid_, SIGSTOP);
    siginfo_t stopped;  // a signal takes effect some time after kill returns
    ::waitid(P_PID, static_cast<id_t>(pid_), &stopped, WSTOPPED | WEXITED | WNOWAIT);
  }
  void Continue() { ::kill(pid_, SIGCONT); }
  const std::string& said() const { return said_; }

 private:
  pid_t pid_ = 0;
  int input_ = -1, output_ = -1;
  std::string said_;
};

#ifdef TEST_SERVER
// kvstore_test_server: said() is its address, or "error ...".
class ServerProcess : public ChildProcess {
 public:
  // segment_bytes: of its SSD tier, 0 for the usual.
  ServerProcess(int port, size_t slab_bytes, const std::string& folder, uint64_t segment_bytes = 0, bool wait = true)
      : ChildProcess(Words(port, slab_bytes, folder, segment_bytes), wait) {}
  int port() const { return std::atoi(said().substr(said().rfind(':') + 1).c_str()); }

 private:
  static std::vector<std::string> Words(int port, size_t slab_bytes, const std::string& folder,
                                        uint64_t segment_bytes) {
    std::vector<std::string> words = {TEST_SERVER, absl::StrCat(port), absl::StrCat(slab_bytes)};
    if (!folder.empty()) words.push_back(folder);
    if (segment_bytes > 0) words.push_back(absl::StrCat(segment_bytes));
    return words;
  }
};
#endif

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_SERVER_PROCESS_H_
