// Put and Get between two processes, beside ucx_perftest moving blocks of the same size over the same transport, in
// turns.
//   transfer_bench [--json FILE] [--repetitions N] [--only TEXT]   (TEXT: part of a row's name)
// Both sides send the same block again and again: one buffer here, one there, as ucx_perftest does. A number is the
// median.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/file.h"
#include "report.h"
#include "transport/context.h"

extern char** environ;

namespace perigee::bench {
namespace {

constexpr size_t kRegionBytes = size_t{16} << 20;
constexpr double kMegabyte = 1 << 20;  // ucx_perftest's MB

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "transfer_bench: %s\n", message.c_str());
  std::exit(1);
}

template <typename T>
T Check(absl::StatusOr<T> value, const char* what) {
  if (!value.ok()) Die(absl::StrCat(what, ": ", value.status().ToString()));
  return *std::move(value);
}

// A child process with pipes, leader of its own group; the group is killed with the object.
class Child {
 public:
  Child(std::vector<std::string> command, const std::string& tls) {
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
    std::string setting = "UCX_TLS=" + tls;
    std::vector<char*> environment = {setting.data()};
    for (char** it = environ; *it != nullptr; ++it) {
      if (std::strncmp(*it, "UCX_TLS=", 8) != 0) environment.push_back(*it);
    }
    environment.push_back(nullptr);
    if (posix_spawnp(&pid_, argv[0], &actions, &attributes, argv.data(), environment.data()) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(in[0]);
    close(out[1]);
    output_ = fdopen(out[0], "r");
  }
  ~Child() {
    std::fclose(output_);
    if (pid_ <= 0) return;
    kill(-pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  bool started() const { return pid_ > 0; }
  std::string ReadLine() {
    std::string line;
    for (int c; (c = std::fgetc(output_)) != EOF && c != '\n';) line.push_back(static_cast<char>(c));
    return line;
  }
  std::string ReadAll() {
    std::string text;
    for (int c; (c = std::fgetc(output_)) != EOF;) text.push_back(static_cast<char>(c));
    return text;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd input_;
  FILE* output_ = nullptr;
};

int Serve(const std::string& transports) {
  auto engine = Check(transport::Context::Create({.transports = transports}), "create");
  auto region = Check(engine->AllocateMemory(kRegionBytes), "allocate");
  std::memset(region.base(), 1, kRegionBytes);
  auto listener = Check(engine->Listen("127.0.0.1", 0, transport::TrustEveryone), "listen");
  const std::string& key = region.remote_key();
  std::printf("%d %s\n", listener.port(), ToHex({reinterpret_cast<const uint8_t*>(key.data()), key.size()}).c_str());
  std::fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) {
  }
  return 0;
}

// MB/s.
double Ours(const transport::Endpoint& connection, const transport::RemoteRegion& remote,
            std::vector<std::byte>& local, bool get, size_t block, size_t count) {
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  const std::span<std::byte> bytes = std::span(local).first(block);
  const std::vector<transport::GetTransfer> gets(count, {bytes, remote.address(), &remote});
  const std::vector<transport::PutTransfer> puts(count, {bytes, remote.address(), &remote});
  const absl::Time start = absl::Now();
  const absl::Status status = get ? connection.Get(gets, deadline) : connection.Put(puts, deadline);
  if (!status.ok()) Die(status.ToString());
  return block * count / kMegabyte / absl::ToDoubleSeconds(absl::Now() - start);
}

// Under limits: a ucx_perftest whose other side is lost waits, and spins, for ever.
std::vector<std::string> Limited(std::vector<std::string> command) {
  std::vector<std::string> limited = {"timeout", "60", "prlimit", "--as=4294967296"};
  limited.insert(limited.end(), command.begin(), command.end());
  return limited;
}

// MB/s; 0 where ucx_perftest is missing or fails.
double Peers(const std::string& tls, const std::vector<std::string>& client, const std::string& port) {
  Child server(Limited({"ucx_perftest", "-p", port}), tls);
  if (!server.started()) return 0;
  // The server says nothing useful before a client comes, so the client tries until it is let in.
  for (int attempt = 0; attempt < 20; ++attempt) {
    Child run(Limited(client), tls);
    if (!run.started()) return 0;
    const std::vector<std::string> lines = absl::StrSplit(run.ReadAll(), '\n', absl::SkipWhitespace());
    if (!lines.empty()) {
      // iterations, latency (typical, average, overall), bandwidth in MB/s (average, overall), rate (average, overall)
      std::istringstream fields(lines.back());
      double iterations, typical, average, overall, bandwidth_average, bandwidth;
      if (fields >> iterations >> typical >> average >> overall >> bandwidth_average >> bandwidth) return bandwidth;
    }
    absl::SleepFor(absl::Milliseconds(100));
  }
  return 0;
}

int Run(const std::string& self, const std::string& json, int repetitions, const std::string& only) {
  double load = 0;
  if (getloadavg(&load, 1) == 1 && load > 0.5) {
    std::fprintf(stderr, "transfer_bench: the machine is busy (load %.1f on %ld processors); the ratios mean little\n",
                 load, sysconf(_SC_NPROCESSORS_ONLN));
  }
  Report report;
  int port = 20000 + getpid() % 20000;
  for (const std::string transports : {"tcp", "shm"}) {
    // Ours keeps tcp beside shared memory, to notice a peer's death; the payload goes through shared memory.
    const std::string ours_tls = transports == "tcp" ? "tcp" : "shm,tcp";
    Child server({self, "--serve", ours_tls}, ours_tls);
    const std::vector<std::string> hello = absl::StrSplit(server.ReadLine(), ' ');
    if (hello.size() != 2) Die("the serving process did not start");
    auto engine = Check(transport::Context::Create({.transports = ours_tls}), "create");
    auto connection = Check(engine->Connect("127.0.0.1", static_cast<uint16_t>(std::atoi(hello[0].c_str())),
                                            absl::Now() + absl::Seconds(20)),
                            "connect");
    auto remote = Check(connection.UnpackRemoteKey(Check(FromHex(hello[1]), "key")), "unpack");
    std::vector<std::byte> local(kRegionBytes);
    for (const bool get : {false, true}) {
      for (const size_t block : {size_t{64} << 10, size_t{1} << 20, size_t{16} << 20}) {
        Row row;
        row.row =
            absl::StrCat("transfer/", get ? "get" : "put", "/", transports, "/",
                         block >= (1 << 20) ? absl::StrCat(block >> 20, "MiB") : absl::StrCat(block >> 10, "KiB"));
        if (!absl::StrContains(row.row, only)) continue;
        const size_t total = transports == "tcp" ? size_t{512} << 20 : size_t{2} << 30;
        const size_t count = std::max<size_t>(total / block, 8);
        // How many sends ucx_perftest keeps outstanding decides its number, one way for puts, the other for gets: the
        // better one counts.
        const std::vector<std::vector<std::string>> variants = {{}, {"-O", "32"}};
        std::vector<double> ours;
        std::vector<std::vector<double>> peers(variants.size());
        std::vector<std::string> commands(variants.size());
        const std::string warm_up = absl::StrCat(std::max<size_t>(count / 10, 1));
        Ours(connection, remote, local, get, block, std::max<size_t>(count / 10, 1));  // as the peer has
        for (int i = 0; i < repetitions; ++i) {
          ours.push_back(Ours(connection, remote, local, get, block, count));
          for (size_t v = 0; v < variants.size(); ++v) {
            const std::string port_text = absl::StrCat(port++);
            std::vector<std::string> command = {"ucx_perftest",
                                                "127.0.0.1",
                                                "-p",
                                                port_text,
                                                "-t",
                                                get ? "ucp_get" : "ucp_put_bw",
                                                "-s",
                                                absl::StrCat(block),
                                                "-n",
                                                absl::StrCat(count),
                                                "-w",
                                                warm_up,
                                                "-f"};
            command.insert(command.end(), variants[v].begin(), variants[v].end());
            commands[v] = absl::StrCat("UCX_TLS=", transports, " ", absl::StrJoin(command, " "));
            const double peer = Peers(transports, command, port_text);
            if (peer > 0) peers[v].push_back(peer);
          }
        }
        row.value = Median(ours) * kMegabyte / 1e9;
        row.unit = "GB/s";
        for (size_t v = 0; v < variants.size(); ++v) {
          const double peer = peers[v].empty() ? 0 : Median(peers[v]) * kMegabyte / 1e9;
          if (peer <= row.limit.value_or(0)) continue;
          row.limit = peer;
          row.command = commands[v];
        }
        row.target = ">=0.90";
        report.Add(std::move(row));
      }
    }
  }
  const absl::Status status = report.WriteJson(json);
  if (!status.ok()) Die(status.ToString());
  return 0;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  std::string json, only;
  int repetitions = 5;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--serve" && i + 1 < argc) return perigee::bench::Serve(argv[i + 1]);
    if (argument == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else if (argument == "--only" && i + 1 < argc) {
      only = argv[++i];
    } else if (argument == "--repetitions" && i + 1 < argc && std::atoi(argv[i + 1]) > 0) {
      repetitions = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: transfer_bench [--json FILE] [--repetitions N] [--only TEXT]\n");
      return 2;
    }
  }
  return perigee::bench::Run("/proc/self/exe", json, repetitions, only);
}
