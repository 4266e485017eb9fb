// The remote tier in RADOS, beside `rados bench` with objects of the same size and as many in flight, in turns with it:
// both against one Ceph of a single OSD that keeps its objects in memory, on one processor, the client on the other.
//   remote_bench [--json FILE] [--repetitions N] [--only TEXT]   (TEXT: part of a row's name)
// Ours sums and checks every byte, both ways; rados bench writes one buffer again and again, and is told not to look at
// what it reads. Without Ceph there is nothing to measure: it says so and reports no rows.
#include <stdlib.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "command_line.h"
#include "kvstore/remote/rados_tier.h"
#include "peers/children.h"
#include "peers/fail.h"
#include "report.h"

namespace perigee::bench {
namespace {

using kvstore::PlaneId;
using kvstore::RemoteTier;

constexpr const char* kPool = "kv";
constexpr int kRunSeconds = 2;

double MegabytesPerSecond(double bytes, absl::Duration time) { return bytes / absl::ToDoubleSeconds(time) / 1e6; }

// Planes of one size that differ in their key only.
class Planes {
 public:
  explicit Planes(size_t bytes) : payload_(bytes) {
    std::mt19937_64 random(bytes);
    for (size_t i = 0; i < bytes; i += 8) {
      const uint64_t word = random();
      std::memcpy(payload_.data() + i, &word, std::min<size_t>(8, bytes - i));
    }
    header_.kind = pod::PlaneKind::kDistant;
    header_.shape = {.layers = 32, .kv_heads = 8, .head_dim = 128};
    header_.block_tokens = header_.tokens = 64;
    header_.payload_bytes = bytes;
    constexpr size_t kSections = 256;
    for (size_t i = 0; i < kSections; ++i) {
      const auto section = std::span(payload_).subspan(i * bytes / kSections, bytes / kSections);
      header_.sections.push_back({static_cast<uint32_t>(section.size()), Crc32c(section)});
    }
  }
  static PlaneId Id(uint64_t n) { return {pod::BlockKey{Sha256(absl::StrCat("plane ", n))}, pod::PlaneKind::kDistant}; }
  kvstore::RemotePut Put(uint64_t n) {
    header_.key = header_.root = Id(n).key;
    return {.id = Id(n), .encoded_header = pod::EncodePlaneHeader(header_), .payload = payload_, .created_unix_us = 0};
  }
  size_t bytes() const { return payload_.size(); }

 private:
  std::vector<std::byte> payload_;
  pod::PlaneHeader header_;
};

// Keeps `depth` operations under way until the time is over or `most` were begun; how many there were and the time.
class Pump {
 public:
  Pump(size_t depth, uint64_t most) : depth_(depth), most_(most), free_slots_(depth) {
    for (size_t i = 0; i < depth; ++i) free_slots_[i] = i;
  }
  // begin(number, slot, done)
  template <typename Begin>
  double Run(size_t bytes, Begin begin) {
    const absl::Time start = absl::Now();
    for (; count_ < most_ && absl::Now() - start < absl::Seconds(kRunSeconds); ++count_) {
      const size_t slot = Take();
      begin(count_, slot, [this, slot](const absl::Status& status) {
        Check(status, "remote tier");
        absl::MutexLock lock(&mu_);
        free_slots_.push_back(slot);
      });
    }
    absl::MutexLock lock(&mu_);
    const auto all = [this] { return free_slots_.size() == depth_; };
    mu_.Await(absl::Condition(&all));
    return MegabytesPerSecond(static_cast<double>(bytes * count_), absl::Now() - start);
  }
  uint64_t count() const { return count_; }

 private:
  size_t Take() {
    absl::MutexLock lock(&mu_);
    const auto some = [this] { return !free_slots_.empty(); };
    mu_.Await(absl::Condition(&some));
    const size_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }
  const size_t depth_;
  const uint64_t most_;
  uint64_t count_ = 0;
  absl::Mutex mu_;
  std::vector<size_t> free_slots_;
};

struct Rates {
  std::vector<double> put, get;
};

void RunOurs(RemoteTier& tier, Planes& planes, size_t depth, Rates* rates) {
  const auto deadline = [] { return absl::Now() + absl::Seconds(30); };
  Pump puts(depth, ~uint64_t{0});
  rates->put.push_back(puts.Run(planes.bytes(), [&](uint64_t n, size_t, auto done) {
    Check(tier.Put(planes.Put(n), deadline(), [done](auto outcome) { done(outcome.status()); }).status(), "put");
  }));
  std::vector<std::vector<std::byte>> destinations(depth, std::vector<std::byte>(planes.bytes()));
  Pump gets(depth, puts.count());
  rates->get.push_back(gets.Run(planes.bytes(), [&](uint64_t n, size_t slot, auto done) {
    Check(tier.Get({Planes::Id(n), planes.bytes(), 0, destinations[slot]}, deadline(),
                   [done](auto head) { done(head.status()); })
              .status(),
          "get");
  }));
  Pump deletes(16, puts.count());
  deletes.Run(0, [&](uint64_t n, size_t, auto done) {
    Check(tier.Delete({Planes::Id(n)}, deadline(), [done](auto statuses) { done(statuses[0]); }).status(), "delete");
  });
  for (uint64_t n = deletes.count(); n < puts.count(); ++n) Die("deleting took too long");
}

std::vector<std::string> RadosBench(const std::string& config, const std::string& run, size_t bytes, size_t depth,
                                    bool put) {
  std::vector<std::string> words = {"rados", "-c", config, "-p", kPool, "bench", absl::StrCat(kRunSeconds)};
  if (put) {
    for (const std::string& word : {std::string("write"), std::string("-b"), absl::StrCat(bytes)})
      words.push_back(word);
    words.push_back("--no-cleanup");
  } else {
    words.push_back("seq");
    words.push_back("--no-verify");
  }
  for (const std::string& word : {std::string("-t"), absl::StrCat(depth), std::string("--run-name"), run}) {
    words.push_back(word);
  }
  return words;
}

double Bandwidth(const std::vector<std::string>& command) {
  Child rados(command, PinnedProcessors().initiator);
  if (!rados.started()) Die("rados is not installed (scripts/setup.sh ceph)");
  const std::string said = rados.ReadAll();
  for (const absl::string_view line : absl::StrSplit(said, '\n')) {
    double mebibytes = 0;
    if (absl::StartsWith(line, "Bandwidth (MB/sec):") &&
        absl::SimpleAtod(line.substr(line.find(':') + 1), &mebibytes)) {
      return mebibytes * (1 << 20) / 1e6;  // Its MB are MiB.
    }
  }
  Die(absl::StrCat("no bandwidth in what rados bench says: ", said));
}

void RunPeer(const std::string& config, size_t bytes, size_t depth, Rates* rates) {
  rates->put.push_back(Bandwidth(RadosBench(config, "peer", bytes, depth, true)));
  rates->get.push_back(Bandwidth(RadosBench(config, "peer", bytes, depth, false)));
  Child({"rados", "-c", config, "-p", kPool, "cleanup", "--run-name", "peer"}, PinnedProcessors().initiator).ReadAll();
}

int RunAll(const std::string& json, int repetitions, const std::string& only) {
  double load = 0;
  if (getloadavg(&load, 1) == 1 && load > 0.5) {
    std::fprintf(stderr, "remote_bench: the machine is busy (load %.1f); the ratios mean little\n", load);
  }
  Report report;
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "perigee_remote_bench_XXXXXX";
  std::string path = folder.string();
  if (mkdtemp(path.data()) == nullptr) Die("no temporary folder");
  struct Remove {
    const std::string path;
    ~Remove() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } remove{path};
  Child ceph({"setpriv", "--pdeathsig", "TERM", ONE_NODE_CEPH, path, "memstore"}, PinnedProcessors().server);
  const std::string ready = ceph.ReadLine();
  if (!absl::StartsWith(ready, "ready ")) {
    std::fprintf(stderr, "remote_bench: no Ceph here (%s); the remote tier is NOT measured\n", ready.c_str());
    Check(report.WriteJson(json), "report");
    return 0;
  }
  kvstore::RadosOptions options;
  options.config_path = ready.substr(6);
  options.pool = kPool;
  options.prefix = "bench";
  PinThisThread(PinnedProcessors().initiator);  // and librados' threads with it
  absl::StatusOr<std::unique_ptr<RemoteTier>> opened = kvstore::OpenRadosTier(options);
  if (absl::IsUnimplemented(opened.status())) {
    std::fprintf(stderr, "remote_bench: %s; the remote tier is NOT measured\n", opened.status().ToString().c_str());
    Check(report.WriteJson(json), "report");
    return 0;
  }
  const std::unique_ptr<RemoteTier> tier = Check(std::move(opened), "remote tier");
  for (const size_t mebibytes : {1, 4, 16}) {
    Planes planes(mebibytes << 20);
    for (const size_t depth : {size_t{1}, size_t{8}}) {
      const std::string what = absl::StrCat(mebibytes, "MiB/x", depth);
      const std::string put = absl::StrCat("kvstore/remote/put/", what),
                        get = absl::StrCat("kvstore/remote/get/", what);
      if (!absl::StrContains(put, only) && !absl::StrContains(get, only)) continue;
      Rates ours, peer;
      for (int i = 0; i < repetitions; ++i) {
        // Whoever comes second finds the OSD's memory warm: by turns.
        if (i % 2 == 0) RunOurs(*tier, planes, depth, &ours);
        RunPeer(options.config_path, planes.bytes(), depth, &peer);
        if (i % 2 == 1) RunOurs(*tier, planes, depth, &ours);
      }
      const auto add = [&](const std::string& row, const std::vector<double>& our_rates,
                           const std::vector<double>& peer_rates, const char* command) {
        report.Add(Row{.row = row,
                       .value = Median(our_rates),
                       .unit = "MB/s",
                       .limit = Median(peer_rates),
                       .better = Better::kMore,
                       .target = "",
                       .command = absl::StrCat(command, ", ", mebibytes, " MiB, -t ", depth,
                                               "; one OSD in memory on a processor of its own")});
      };
      add(put, ours.put, peer.put, "rados bench 2 write");
      add(get, ours.get, peer.get, "rados bench 2 seq --no-verify");
    }
  }
  Check(report.WriteJson(json), "report");
  return 0;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  perigee::bench::CommandLine options{.repetitions = 4};
  if (!perigee::bench::ParseCommandLine(argc, argv, "remote_bench", &options)) return 2;
  return perigee::bench::RunAll(options.json, options.repetitions, options.only);
}
