// The CRC-32C beside what it must not slow down. Rows, for 64 KiB (source and destination in the second-level cache),
// 1 MiB and 16 MiB:
//
//   base/crc32c/copy/<size>   bytes copied and summed by Crc32cCopy per second, beside memcpy of the same buffers
//   base/crc32c/sum/<size>    bytes summed by Crc32c per second, beside ISA-L's crc32_iscsi
//
//   crc32c_bench [--json FILE] [--repetitions N]
// Ours and the peer's samples alternate; a number is the median. A sample is some hundred microseconds of the thread's
// processor time, so that a busy machine's other processes cost few of them anything.
#include <isa-l/crc.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "report.h"

namespace perigee::bench {
namespace {

constexpr size_t kSampleBytes = size_t{16} << 20;

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// GB/s of one sample.
template <typename Body>
double Sample(size_t bytes, const Body& body) {
  const size_t rounds = std::max<size_t>(kSampleBytes / bytes, 1);
  const double start = ThreadSeconds();
  for (size_t i = 0; i < rounds; ++i) body();
  return 1e-9 * static_cast<double>(rounds * bytes) / (ThreadSeconds() - start);
}

template <typename Ours, typename Peer>
Row Compare(std::string name, size_t bytes, int repetitions, const Ours& ours, const Peer& peer, std::string command) {
  std::vector<double> our_samples, peer_samples;
  ours();
  peer();
  for (int i = 0; i < repetitions; ++i) {
    our_samples.push_back(Sample(bytes, ours));
    peer_samples.push_back(Sample(bytes, peer));
  }
  return {.row = std::move(name),
          .value = Median(our_samples),
          .unit = "GB/s",
          .limit = Median(peer_samples),
          .target = ">=0.95",
          .command = std::move(command)};
}

int Run(const std::string& json, int repetitions) {
  Report report;
  for (const bool copy : {true, false}) {
    for (const size_t bytes : {size_t{64} << 10, size_t{1} << 20, size_t{16} << 20}) {
      std::vector<std::byte> source(bytes), destination(bytes);
      for (size_t i = 0; i < bytes; ++i) source[i] = static_cast<std::byte>(i * 2654435761u >> 24);
      uint32_t ours_crc = 0, peer_crc = 0;
      const std::string name =
          absl::StrCat("base/crc32c/", copy ? "copy/" : "sum/",
                       bytes >= (1 << 20) ? absl::StrCat(bytes >> 20, "MiB") : absl::StrCat(bytes >> 10, "KiB"));
      if (copy) {
        report.Add(Compare(
            name, bytes, repetitions, [&] { ours_crc = Crc32cCopy(destination.data(), source); },
            [&] {
              std::memcpy(destination.data(), source.data(), bytes);
              asm volatile("" ::"r"(destination.data()) : "memory");  // Not to be left out.
            },
            "memcpy of the same buffers, in turns"));
        peer_crc = Crc32c(destination);
      } else {
        auto* data = reinterpret_cast<unsigned char*>(source.data());
        report.Add(Compare(
            name, bytes, repetitions, [&] { ours_crc = Crc32c(source); },
            [&] { peer_crc = ~crc32_iscsi(data, static_cast<int>(bytes), ~0u); },
            "ISA-L's crc32_iscsi of the same buffer, in turns"));
      }
      if (ours_crc != peer_crc) {
        std::fprintf(stderr, "crc32c_bench: %s: CRC32C %08x, expected %08x\n", name.c_str(), ours_crc, peer_crc);
        return 1;
      }
    }
  }
  const absl::Status status = report.WriteJson(json);
  if (!status.ok()) std::fprintf(stderr, "crc32c_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  std::string json;
  int repetitions = 101;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else if (argument == "--repetitions" && i + 1 < argc && std::atoi(argv[i + 1]) > 0) {
      repetitions = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: crc32c_bench [--json FILE] [--repetitions N]\n");
      return 2;
    }
  }
  return perigee::bench::Run(json, repetitions);
}
