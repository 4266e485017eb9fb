// Programs that run in a host of the test network.
#ifndef PERIGEE_TESTS_FAULT_PROCESS_H_
#define PERIGEE_TESTS_FAULT_PROCESS_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "hosts.h"

namespace perigee::fault {

// 0: as here.
struct Limits {
  uint64_t address_space_bytes = 0;  // RLIMIT_AS
  uint64_t locked_bytes = 0;         // RLIMIT_MEMLOCK
};

// A program that runs in a host. Its output comes here by lines, its errors go where the test's go. Killed with the
// object, and when the thread that started it ends: start it from the main thread.
class Process {
 public:
  static absl::StatusOr<std::unique_ptr<Process>> Start(const Network& network, Place place,
                                                        std::vector<std::string> command, const Limits& limits = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Kill();      // SIGKILL, and waits for its end
  void Pause();     // SIGSTOP
  void Continue();  // SIGCONT
  // False when it has ended by itself; end() says how.
  bool Alive();
  const std::string& end() const { return end_; }

  // One line to its standard input.
  void Say(absl::string_view line);
  // Its next line. UNAVAILABLE when it has ended, DEADLINE_EXCEEDED when it says nothing for so long.
  absl::StatusOr<std::string> Hear(absl::Duration limit = absl::Seconds(20));
  // Say, then Hear.
  absl::StatusOr<std::string> Ask(absl::string_view line, absl::Duration limit = absl::Seconds(20));

 private:
  Process() = default;
  pid_t pid_ = 0;
  UniqueFd input_, output_;
  std::string heard_, end_;
};

// Runs a command to its end in the namespace `netns_fd`, with `input` as its standard input. Its output is in the
// error.
absl::Status RunCommand(int netns_fd, const std::vector<std::string>& command, absl::string_view input);

size_t ResidentBytes(pid_t pid);
size_t OpenFiles(pid_t pid);

}  // namespace perigee::fault

#endif  // PERIGEE_TESTS_FAULT_PROCESS_H_
