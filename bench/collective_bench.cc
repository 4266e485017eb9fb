// AllReduceSum between processes of this machine, beside what its bytes take as plain messages from one process to
// another over the same transport: each rank's bytes sent one piece after the other, nobody adding.
//   collective_bench [--json FILE] [--repetitions N] [--only TEXT]   (TEXT: part of a row's name)
// A number is the median of the rank that measures (rank 0). More processes than processors make the ratio smaller.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "report.h"
#include "transport/collective/ucx_collective.h"

namespace perigee::bench {
namespace {

using transport::Context;
using transport::Group;
using transport::Rendezvous;
using transport::UcxCollective;

constexpr uint16_t kMessageId = 1;
constexpr size_t kPieceBytes = size_t{256} << 10;

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "collective_bench: %s\n", message.c_str());
  std::exit(1);
}

template <typename T>
T Check(absl::StatusOr<T> value, const char* what) {
  if (!value.ok()) Die(absl::StrCat(what, ": ", value.status().ToString()));
  return *std::move(value);
}

void Check(const absl::Status& status, const char* what) {
  if (!status.ok()) Die(absl::StrCat(what, ": ", status.ToString()));
}

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

// Processes forked before this one has any thread; killed with the object.
class Children {
 public:
  ~Children() {
    for (const pid_t pid : pids_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }
  template <typename Main>
  void Start(Main main) {
    const pid_t pid = fork();
    if (pid < 0) Die("fork failed");
    if (pid == 0) {
      main();
      _exit(0);
    }
    pids_.push_back(pid);
  }
  void Join() {
    for (const pid_t pid : pids_) waitpid(pid, nullptr, 0);
    pids_.clear();
  }

 private:
  std::vector<pid_t> pids_;
};

struct Pipe {
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) Die("pipe2 failed");
  }
  ~Pipe() {
    close(ends[0]);
    close(ends[1]);
  }
  void Tell(uint16_t port) const {
    if (write(ends[1], &port, sizeof(port)) != sizeof(port)) Die("write failed");
  }
  uint16_t Hear() const {
    uint16_t port = 0;
    if (read(ends[0], &port, sizeof(port)) != sizeof(port)) Die("read failed");
    return port;
  }
  int ends[2];
};

// Microseconds to send `bytes` from one process to another, for each of the sizes.
std::vector<double> MessageTimes(const std::string& transports, const std::vector<size_t>& sizes, int repetitions) {
  Pipe pipe;
  Children children;
  children.Start([&] {
    const auto context = Check(Context::Create({.transports = transports}), "make a context");
    context->SetHandler(kMessageId, [](absl::string_view, absl::string_view) { return std::string(); });
    const auto listener = Check(context->Listen("127.0.0.1", 0, transport::TrustEveryone), "listen");
    pipe.Tell(listener.port());
    pause();
  });
  const uint16_t port = pipe.Hear();
  const auto context = Check(Context::Create({.transports = transports}), "make a context");
  const auto endpoint = Check(context->Connect("127.0.0.1", port, Soon()), "connect");
  const std::string piece(kPieceBytes, 'x');
  std::vector<double> medians;
  for (const size_t size : sizes) {
    std::vector<double> times;
    for (int i = 0; i < repetitions + 1; ++i) {
      const absl::Time start = absl::Now();
      size_t sent = 0;
      do {
        const size_t bytes = std::min(kPieceBytes, size - sent);
        Check(endpoint.Send(kMessageId, "", absl::string_view(piece).substr(0, bytes), Soon()), "send");
        sent += bytes;
      } while (sent < size);
      if (i > 0) times.push_back(absl::ToDoubleMicroseconds(absl::Now() - start));
    }
    medians.push_back(Median(times));
  }
  return medians;
}

// Every rank's part: the same operations in the same order. What each took this rank.
std::vector<double> Reduce(UcxCollective& group, const std::vector<size_t>& sizes, int repetitions) {
  std::vector<double> medians;
  for (const size_t size : sizes) {
    std::vector<float> values(size / sizeof(float), 0.0f);
    std::vector<double> times;
    for (int i = 0; i < repetitions + 1; ++i) {
      Check(group.Barrier(Soon()), "barrier");
      const absl::Time start = absl::Now();
      Check(group.AllReduceSum(values, Soon()), "sum");
      if (i > 0) times.push_back(absl::ToDoubleMicroseconds(absl::Now() - start));
    }
    medians.push_back(Median(times));
  }
  return medians;
}

std::vector<double> ReduceTimes(const std::string& transports, int ranks, const std::vector<size_t>& sizes,
                                int repetitions) {
  const auto options = [&](int rank, uint16_t port) {
    transport::GroupOptions options;
    options.group_name = "bench";
    options.rank = rank;
    options.size = ranks;
    options.rendezvous_port = port;
    options.transport.transports = transports;
    return options;
  };
  Pipe pipe;
  Children children;
  for (int rank = 1; rank < ranks; ++rank) {
    children.Start([&, rank] {
      const auto group = Check(UcxCollective::Create(options(rank, pipe.Hear()), Soon()), "join");
      Reduce(*group, sizes, repetitions);
    });
  }
  const auto rendezvous = Check(Rendezvous::Open(options(0, 0)), "open a rendezvous");
  for (int rank = 1; rank < ranks; ++rank) pipe.Tell(rendezvous->port());
  UcxCollective group(Check(rendezvous->Join(Soon()), "join"));
  std::vector<double> medians = Reduce(group, sizes, repetitions);
  children.Join();
  return medians;
}

std::string SizeName(size_t bytes) {
  return bytes >= (1 << 20) ? absl::StrCat(bytes >> 20, "MiB") : absl::StrCat(bytes >> 10, "KiB");
}

int Main(int argc, char** argv) {
  std::string json, only;
  int repetitions = 30;
  for (int i = 1; i + 1 < argc; i += 2) {
    const absl::string_view flag = argv[i];
    if (flag == "--json") {
      json = argv[i + 1];
    } else if (flag == "--only") {
      only = argv[i + 1];
    } else if (flag == "--repetitions") {
      repetitions = std::max(1, std::atoi(argv[i + 1]));
    } else {
      Die(absl::StrCat("unknown option ", flag, "; there are --json, --repetitions and --only"));
    }
  }
  Report report;
  const std::vector<size_t> sizes = {4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20};
  for (const std::string& transports : {std::string("tcp"), std::string("shm,tcp")}) {
    const std::string name = transports == "tcp" ? "tcp" : "shm";
    for (const int ranks : {2, 4}) {
      const auto row = [&](size_t bytes) {
        return absl::StrCat("collective/all_reduce/", name, "/", ranks, "x", SizeName(bytes));
      };
      std::vector<size_t> wanted, moved;
      for (const size_t size : sizes) {
        if (!absl::StrContains(row(size), only)) continue;
        wanted.push_back(size);
        moved.push_back(size * 2 * (ranks - 1) / ranks);  // the fewest bytes that a rank can send
      }
      if (wanted.empty()) continue;
      const std::vector<double> limits = MessageTimes(transports, moved, repetitions);
      const std::vector<double> times = ReduceTimes(transports, ranks, wanted, repetitions);
      for (size_t i = 0; i < wanted.size(); ++i) {
        report.Add({row(wanted[i]), times[i], "us", limits[i], Better::kLess, "",
                    absl::StrCat("Endpoint::Send of ", moved[i], " bytes in pieces of ", kPieceBytes)});
      }
    }
  }
  const absl::Status written = report.WriteJson(json);
  if (!written.ok()) Die(written.ToString());
  return 0;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) { return perigee::bench::Main(argc, argv); }
