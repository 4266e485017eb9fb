// The whole store, through its client, beside Redis on the loopback, in turns with it: planes of 1 to 32 MiB put and
// fetched, one at a time and eight.
//   store_bench [--json FILE] [--repetitions N] [--only TEXT]   (TEXT: part of a row's name)
//   store/{put,get}/{tcp,shm}/SIZE/{1,8}   payload per second
//   store/cpu/{put,get}/tcp/SIZE/{1,8}     CPU seconds, user and system of both processes, for a GiB of payload
// Ours: put is Reserve, Put and Commit of new planes, get is Acquire, Fetch and the lease's end; the store checks every
// checksum at Commit and the client every one at Fetch. Eight in flight are a batch of eight planes. Redis: SET and GET
// over one connection, eight in flight pipelined; it checks nothing. Both keep everything in memory, servers on one
// processor, clients on another. What one repetition stores is deleted before the next, which is not measured.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "command_line.h"
#include "peers/fail.h"
#include "peers/redis.h"
#include "report.h"
#include "store/store_pair.h"

namespace perigee::bench {
namespace {

constexpr size_t kSetBytes = size_t{512} << 20;  // stored in one repetition
constexpr double kGibibyte = 1 << 30;

// Of the repetitions of one direction.
struct Costs {
  std::vector<double> gigabytes_per_s, cpu_s_per_gib;
};
struct Both {
  Costs put, get;
};

void Measure(Costs* costs, bool keep, absl::FunctionRef<double()> cpu_seconds, absl::FunctionRef<void()> move) {
  const double cpu_before = cpu_seconds();
  const auto start = std::chrono::steady_clock::now();
  move();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!keep) return;
  costs->gigabytes_per_s.push_back(static_cast<double>(kSetBytes) / seconds / 1e9);
  costs->cpu_s_per_gib.push_back((cpu_seconds() - cpu_before) / (static_cast<double>(kSetBytes) / kGibibyte));
}

void RunOurs(StorePair& pair, Planes& planes, size_t depth, bool keep, Both* costs) {
  const std::vector<pod::PlaneHeader> headers = planes.New(kSetBytes / planes.bytes());
  const auto cpu = [&] { return pair.CpuSeconds(); };
  Measure(&costs->put, keep, cpu, [&] { pair.Put(headers, depth); });
  Measure(&costs->get, keep, cpu, [&] { pair.Get(headers, depth); });
  const auto last = pair.buffer((headers.size() - 1) % depth, planes.bytes());
  if (memcmp(last.data(), planes.payload().data(), planes.bytes()) != 0) Die("the store gave other bytes");
  pair.Delete(headers);
}

void RunRedis(Redis& redis, const Planes& planes, size_t depth, bool keep, Both* costs) {
  const absl::string_view value(reinterpret_cast<const char*>(planes.payload().data()), planes.bytes());
  std::vector<std::string> keys;
  for (size_t i = 0; i < kSetBytes / planes.bytes(); ++i) keys.push_back(absl::StrCat("plane:", i));
  const auto cpu = [&] { return redis.CpuSeconds(); };
  Measure(&costs->put, keep, cpu, [&] { Check(redis.Set(keys, value, depth), "redis SET"); });
  Measure(&costs->get, keep, cpu, [&] { Check(redis.Get(keys, value.size(), depth), "redis GET"); });
  if (redis.value((keys.size() - 1) % depth) != value) Die("redis gave other bytes");
  Check(redis.Delete(keys), "redis DEL");
}

void AddRows(Report& report, const std::string& transport, const std::string& what, const char* direction,
             const Costs& ours, const Costs& peer, const std::string& how) {
  const auto limit = [](const std::vector<double>& values) {
    return values.empty() ? std::optional<double>() : Median(values);
  };
  report.Add({.row = absl::StrCat("store/", direction, "/", what),
              .value = Median(ours.gigabytes_per_s),
              .unit = "GB/s",
              .limit = limit(peer.gigabytes_per_s),
              .better = Better::kMore,
              .target = transport == "tcp" ? ">=2.0" : ">=4.0",
              .command = how});
  if (transport != "tcp") return;
  report.Add({.row = absl::StrCat("store/cpu/", direction, "/", what),
              .value = Median(ours.cpu_s_per_gib),
              .unit = "CPU s/GiB",
              .limit = limit(peer.cpu_s_per_gib),
              .better = Better::kLess,
              .target = ">=2.0",
              .command = absl::StrCat("user and system of both sides; ", how)});
}

// Of the last minute; what a row measured while others used the machine says is not much.
double Load() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

int RunAll(const std::string& json, int repetitions, const std::string& only) {
  if (Load() > 0.5) {
    std::fprintf(stderr, "store_bench: the machine is busy (load %.1f on %ld processors); the ratios mean little\n",
                 Load(), sysconf(_SC_NPROCESSORS_ONLN));
  }
  PinnedProcessors();  // before anything is pinned
  const absl::StatusOr<std::unique_ptr<Redis>> redis = Redis::Start();
  if (!redis.ok()) {
    std::fprintf(stderr, "store_bench: SKIPPED everything of Redis: %s; the rows stand beside nothing\n",
                 std::string(redis.status().message()).c_str());
  }
  Report report;
  for (const std::string transport : {"tcp", "shm"}) {
    std::unique_ptr<StorePair> pair;
    for (const size_t mebibytes : {1, 4, 16, 32}) {
      std::unique_ptr<Planes> planes;
      for (const size_t depth : {size_t{1}, size_t{8}}) {
        const std::string what = absl::StrCat(transport, "/", mebibytes, "MiB/", depth);
        const std::string all =
            absl::StrCat("store/put/", what, " store/get/", what, " store/cpu/put/", what, " store/cpu/get/", what);
        if (all.find(only) == std::string::npos) continue;
        if (pair == nullptr) pair = std::make_unique<StorePair>("/proc/self/exe", transport);
        if (planes == nullptr) planes = std::make_unique<Planes>(mebibytes << 20);
        pair->SetPayload(planes->payload());
        Both ours, peer;
        for (int i = -1; i < repetitions; ++i) {  // the first touches memory that nobody has used: not counted
          RunOurs(*pair, *planes, depth, i >= 0, &ours);
          if (redis.ok()) RunRedis(**redis, *planes, depth, i >= 0, &peer);
        }
        const std::string how = absl::StrCat(
            redis.ok() ? absl::StrCat("beside Redis, ", depth == 1 ? "one command at a time" : "8 commands pipelined",
                                      " over one connection: ", Redis::ServerCommand())
                       : absl::StrCat("no peer: ", redis.status().message()),
            absl::StrFormat("; load %.1f", Load()));
        AddRows(report, transport, what, "put", ours.put, peer.put, how);
        AddRows(report, transport, what, "get", ours.get, peer.get, how);
      }
    }
  }
  Check(report.WriteJson(json), "report");
  return 0;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--serve") return perigee::bench::ServeStore(argv[2]);
  perigee::bench::CommandLine options{.repetitions = 5};
  if (!perigee::bench::ParseCommandLine(argc, argv, "store_bench", &options)) return 2;
  return perigee::bench::RunAll(options.json, options.repetitions, options.only);
}
