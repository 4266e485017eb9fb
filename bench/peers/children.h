// The processes on the two ends of a measurement, and the processors they run on.
//
// Left alone, the scheduler moves two busy processes onto one processor for some of the runs, which halves the figure.
// So every serving process, ours or a peer's, is pinned to one processor and every initiating one to another.
#ifndef PERIGEE_BENCH_PEERS_CHILDREN_H_
#define PERIGEE_BENCH_PEERS_CHILDREN_H_

#include <sys/types.h>

#include <cstdio>
#include <string>
#include <vector>

#include "base/file.h"

namespace perigee::bench {

// The first two processors that this process may use; twice the same one where there is no second.
struct Processors {
  int server = 0;
  int initiator = 0;
};
const Processors& PinnedProcessors();

// Pins the calling thread; those that it starts later inherit it.
void PinThisThread(int processor);

// CPU seconds, user and system, of all threads, finished ones included.
double OwnCpuSeconds();

// A child process with pipes to its standard input and output, pinned, leader of its own group; the group is killed
// with the object. Not thread-safe. The constructor moves the calling thread onto `processor` for a moment.
class Child {
 public:
  // `environment`: "NAME=value", in place of this process's own values.
  Child(std::vector<std::string> command, int processor, const std::vector<std::string>& environment = {});
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  bool started() const { return pid_ > 0; }  // false where there is no such program
  std::string ReadLine();
  std::string ReadAll();
  double CpuSeconds() const;  // of the child itself, not of its children

 private:
  pid_t pid_ = -1;
  UniqueFd input_;
  FILE* output_ = nullptr;
};

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_PEERS_CHILDREN_H_
