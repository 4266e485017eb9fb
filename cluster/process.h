// Child processes: start one, wait until it says that it is ready, stop it within a deadline.
//
// A server process started with --ready-fd N writes one line, "ready ADDRESS\n", to that descriptor once it serves.
// Children ask the kernel to be killed when their parent dies, so that nothing is left behind by a killed supervisor.
#ifndef PERIGEE_CLUSTER_PROCESS_H_
#define PERIGEE_CLUSTER_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/file.h"

namespace perigee::cluster {

// Owns a child process; kills it on destruction. Move-only, one thread at a time.
class ChildProcess {
 public:
  // Runs `executable` with `arguments` (argv[1..]) plus --ready-fd. Standard error goes to `log_path` (appended),
  // standard output too.
  static absl::StatusOr<ChildProcess> Start(const std::string& executable, std::vector<std::string> arguments,
                                            const std::string& log_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  // The address the child printed. UNAVAILABLE with the end of its log when it ended first; DEADLINE_EXCEEDED when it
  // did neither.
  absl::StatusOr<std::string> WaitReady(absl::Duration timeout);

  // SIGTERM, then SIGKILL once the time is over. OK when it ended by itself with exit code 0.
  absl::Status Stop(absl::Duration timeout);

  // SIGKILL, and waits.
  void Kill();

  // True until the child has ended; reaps it when it has.
  bool Running();

  pid_t pid() const { return pid_; }

 private:
  ChildProcess() = default;
  pid_t pid_ = -1;
  int exit_status_ = 0;
  UniqueFd ready_;
  std::string name_;
  std::string log_path_;
  size_t log_begin_ = 0;  // Of this run's lines.
};

// This program's own file, for starting it again.
absl::StatusOr<std::string> SelfExecutable();

// Server side: writes the "ready" line and closes the descriptor. Negative: does nothing.
void AnnounceReady(int ready_fd, const std::string& address);

// Lets this process open as many files as it may, where it was started with fewer (1024 for select()'s sake, which
// nothing here uses): for servers with many connections.
void RaiseDescriptorLimit();

// Blocks SIGINT and SIGTERM in this thread and those it starts later; call before any other thread exists.
void BlockTerminationSignals();
// Waits until one of the two arrives, or until `until` (true: a signal came).
bool WaitForTermination(absl::Time until = absl::InfiniteFuture());

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_PROCESS_H_
