// The command line of benchmark programs that measure rows in turns with a peer.
#ifndef PERIGEE_BENCH_COMMAND_LINE_H_
#define PERIGEE_BENCH_COMMAND_LINE_H_

#include <cstdio>
#include <cstdlib>
#include <string>

namespace perigee::bench {

struct CommandLine {
  std::string json = {};  // where the rows go as JSON; empty: nowhere
  std::string only = {};  // part of the names of the rows to measure
  int repetitions = 0;
};

// False, with the usage on standard error, for anything else. `repetitions` keeps its value where none are given.
inline bool ParseCommandLine(int argc, char** argv, const char* program, CommandLine* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--json" && i + 1 < argc) {
      options->json = argv[++i];
    } else if (argument == "--only" && i + 1 < argc) {
      options->only = argv[++i];
    } else if (argument == "--repetitions" && i + 1 < argc && std::atoi(argv[i + 1]) > 0) {
      options->repetitions = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: %s [--json FILE] [--repetitions N] [--only TEXT]\n", program);
      return false;
    }
  }
  return true;
}

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_COMMAND_LINE_H_
