// The SSD tier beside fio on the same file system. Rows, for planes of 1 and 8 MiB:
//
//   ssd/write/<size>   payload stored per second, synced and indexed, beside fio's direct writes (which sync nothing)
//   ssd/read/<size>    payload read and verified per second, cold, beside fio's direct reads
//
//   ssd/open/<GiB>     seconds to open a tier that holds so much in planes of 1 MiB, after its process closed it
//
//   ssd_bench --folder FOLDER [--json FILE] [--repetitions N] [--depth N] [--mib N] [--open-gib N] [--threads-engine]
//
// Ours and fio's samples alternate, all in new files in FOLDER (which must be on the disk in question, with some GiB
// free); a number is the median. Depth: operations at the disk at a time, for both. The tier's io_depth bounds ours;
// three writers commit batches of planes, as a store's commits do, so that one's sync does not leave the disk idle.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/crc32c.h"
#include "base/parallel.h"
#include "base/status.h"
#include "kvstore/ssd/aligned_buffer.h"
#include "kvstore/ssd/ssd_tier.h"
#include "report.h"

namespace perigee::bench {
namespace {

namespace fs = std::filesystem;
using kvstore::SsdRecord;
using kvstore::SsdTier;

struct Options {
  std::string folder;
  std::string json;
  int repetitions = 5;
  unsigned depth = 8;
  uint64_t mib = 1024;     // Of each sample.
  uint64_t open_gib = 10;  // 0: no such row.
  kvstore::IoEngineKind engine = kvstore::IoEngineKind::kAuto;
};

constexpr int kWriters = 3;

double Seconds(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

// Planes of random bytes with true headers; the payloads share a ring of memory, and memory to read as many into is
// beside it.
class Planes {
 public:
  Planes(uint64_t bytes, uint64_t count)
      : bytes_(bytes),
        ring_(std::min(count, std::max<uint64_t>((uint64_t{128} << 20) / bytes, 32))),
        memory_(2 * ring_ * bytes) {
    std::mt19937_64 random(1);
    for (size_t i = 0; i < memory_.span().size(); i += 8) {
      const uint64_t value = random();
      std::memcpy(memory_.span().data() + i, &value, 8);
    }
    for (uint64_t i = 0; i < count; ++i) {
      pod::PlaneHeader h;
      h.kind = pod::PlaneKind::kDistant;
      std::memcpy(h.key.digest.data(), &i, sizeof(i));
      h.key.digest.back() = 1;  // Zeros are no key.
      h.root = h.key;
      h.tenant = "bench";
      h.shape = {.layers = 2, .kv_heads = 2, .head_dim = 64};
      h.block_tokens = h.tokens = 64;
      h.payload_bytes = bytes;
      const std::span<std::byte> payload = memory_.span().subspan(i % ring_ * bytes, bytes);
      constexpr uint64_t kSection = 128 << 10;
      for (uint64_t at = 0; at < bytes; at += kSection) {
        const uint64_t length = std::min(kSection, bytes - at);
        h.sections.push_back({static_cast<uint32_t>(length), Crc32c(payload.subspan(at, length))});
      }
      const kvstore::PlaneId id{h.key, h.kind};
      writes.push_back({id, kvstore::MetaOf(h, 1), EncodeRecordHead(id, pod::EncodePlaneHeader(h), bytes, 1), payload});
    }
  }
  uint64_t bytes() const { return bytes_; }
  std::span<std::byte> memory() const { return memory_.span(); }
  std::span<std::byte> scratch() const { return memory_.span().subspan(ring_ * bytes_); }
  std::vector<kvstore::SsdWrite> writes;

 private:
  const uint64_t bytes_, ring_;
  const kvstore::AlignedBuffer memory_;
};

struct Sample {
  double write = 0, read = 0;  // GB/s
};

kvstore::SsdOptions TierOptions(const Options& o, const Planes& planes) {
  kvstore::SsdOptions options{.path = o.folder + "/tier"};
  options.engine = o.engine;
  options.io_depth = o.depth;
  options.scrub_bytes_per_s = 0;
  options.memory = planes.memory();  // As a store registers its slab.
  return options;
}

// Seconds of Open, with every plane told.
absl::StatusOr<double> OpenTime(const Options& o) {
  const Planes planes(1 << 20, o.open_gib << 10);
  const kvstore::SsdOptions options = TierOptions(o, planes);
  {
    PERIGEE_ASSIGN_OR_RETURN(const auto tier, SsdTier::Open(options, [](const auto&, const auto&) {}));
    for (size_t at = 0; at < planes.writes.size(); at += 64) {
      PERIGEE_RETURN_IF_ERROR(tier->Append(std::span(planes.writes).subspan(at, 64)).status());
    }
  }
  size_t found = 0;
  const absl::Time start = absl::Now();
  PERIGEE_ASSIGN_OR_RETURN(const auto tier, SsdTier::Open(options, [&](const auto&, const auto&) { ++found; }));
  const double seconds = Seconds(start);
  if (found != planes.writes.size()) return absl::InternalError("planes are missing");
  return seconds;
}

absl::StatusOr<Sample> Ours(const Options& o, const Planes& planes) {
  const kvstore::SsdOptions options = TierOptions(o, planes);
  const double total = 1e-9 * static_cast<double>(planes.bytes() * planes.writes.size());
  Sample sample;
  std::vector<SsdRecord> records(planes.writes.size());
  {
    PERIGEE_ASSIGN_OR_RETURN(const auto tier, SsdTier::Open(options, [](const auto&, const auto&) {}));
    // As many bytes as a busy writer commits together.
    const size_t batch = std::max<size_t>((uint64_t{64} << 20) / planes.bytes(), 1);
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    const auto write = [&] {
      for (size_t at; (at = next.fetch_add(batch)) < planes.writes.size();) {
        const size_t n = std::min(batch, planes.writes.size() - at);
        const auto stored = tier->Append(std::span(planes.writes).subspan(at, n));
        if (!stored.ok()) {
          std::fprintf(stderr, "ssd_bench: %s\n", stored.status().ToString().c_str());
          failed = true;
          return;
        }
        std::copy(stored->begin(), stored->end(), records.begin() + static_cast<std::ptrdiff_t>(at));
      }
    };
    const absl::Time start = absl::Now();
    std::vector<std::thread> writers;
    for (int i = 0; i < kWriters; ++i) writers.emplace_back(write);
    for (std::thread& writer : writers) writer.join();
    sample.write = total / Seconds(start);
    if (failed) return absl::InternalError("a write failed");
  }
  std::vector<std::pair<kvstore::PlaneId, SsdRecord>> found;
  PERIGEE_ASSIGN_OR_RETURN(const auto tier, SsdTier::Open(options, [&](const auto& entry, const auto& r) {
                             found.emplace_back(entry.id, r);
                           }));
  if (found.size() != planes.writes.size()) return absl::InternalError("planes are missing");
  std::shuffle(found.begin(), found.end(), std::mt19937_64(7));
  // Read in waves: while one is verified, the next is read.
  const size_t wave = planes.scratch().size() / planes.bytes() / 2;
  struct Wave {
    std::vector<absl::StatusOr<std::string>> heads;
    std::unique_ptr<absl::BlockingCounter> left;
  } waves[2];
  const auto place = [&](size_t i) {
    return planes.scratch().subspan(i % (2 * wave) * planes.bytes(), planes.bytes());
  };
  const auto start_wave = [&](size_t first) {
    Wave& w = waves[first / wave % 2];
    const size_t n = std::min(wave, found.size() - first);
    w.heads.assign(n, std::string());
    w.left = std::make_unique<absl::BlockingCounter>(static_cast<int>(n));
    std::vector<kvstore::SsdRead> reads;
    for (size_t i = 0; i < n; ++i) {
      const auto& [id, record] = found[first + i];
      reads.push_back({id, record, place(first + i), [&w, i](absl::StatusOr<std::string> head) {
                         w.heads[i] = std::move(head);
                         w.left->DecrementCount();
                       }});
    }
    tier->ReadAsync(std::move(reads));
  };
  std::atomic<bool> wrong{false};
  const absl::Time start = absl::Now();
  start_wave(0);
  for (size_t first = 0; first < found.size(); first += wave) {
    if (first + wave < found.size()) start_wave(first + wave);
    Wave& w = waves[first / wave % 2];
    w.left->Wait();
    for (size_t i = 0; i < w.heads.size(); ++i) {
      const auto& [id, record] = found[first + i];
      if (!w.heads[i].ok() || !VerifyRecord(*w.heads[i], place(first + i), id, record.payload_bytes).ok()) wrong = true;
    }
  }
  sample.read = total / Seconds(start);
  if (wrong) return absl::DataLossError("a plane came back wrong");
  return sample;
}

// fio's GB/s, or nothing where it cannot run.
std::optional<double> Fio(const Options& o, uint64_t bytes, const char* direction, std::string* command) {
  *command = absl::StrCat("fio --name=peer --filename=", "FOLDER/fio", " --rw=", direction, " --bs=", bytes,
                          " --iodepth=", o.depth, " --size=", o.mib, "M --direct=1 --ioengine=io_uring");
  const std::string run = absl::StrCat("fio --name=peer --filename='", o.folder, "/fio' --rw=", direction,
                                       " --bs=", bytes, " --iodepth=", o.depth, " --size=", o.mib,
                                       "M --direct=1 --ioengine=io_uring --output-format=json 2>/dev/null");
  std::string text;
  FILE* pipe = ::popen(run.c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) text.append(buffer, n);
  ::pclose(pipe);
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.contains("jobs")) return std::nullopt;
  const bool write = std::strstr(direction, "write") != nullptr;
  return 1e-9 * json["jobs"][0][write ? "write" : "read"]["bw_bytes"].get<double>();
}

void DropFiles(const Options& o) {
  fs::remove_all(o.folder + "/tier");
  fs::remove(o.folder + "/fio");
}

absl::Status Run(const Options& o) {
  Report report;
  for (const uint64_t mib : {1, 8}) {
    const Planes planes(mib << 20, o.mib / mib);
    std::vector<double> write, read, fio_write, fio_read;
    std::string write_command, read_command;
    for (int i = 0; i < o.repetitions; ++i) {
      DropFiles(o);
      PERIGEE_ASSIGN_OR_RETURN(const Sample sample, Ours(o, planes));
      write.push_back(sample.write);
      read.push_back(sample.read);
      DropFiles(o);
      if (const auto rate = Fio(o, mib << 20, "write", &write_command)) fio_write.push_back(*rate);
      // Random like ours: planes are not read in the order they were written.
      if (const auto rate = Fio(o, mib << 20, "randread", &read_command)) fio_read.push_back(*rate);
    }
    DropFiles(o);
    if (fio_read.empty())
      std::fprintf(stderr, "ssd_bench: no fio here (scripts/setup.sh bench): rows without a peer\n");
    const auto median = [](const std::vector<double>& v) {
      return v.empty() ? std::optional<double>() : std::optional<double>(Median(v));
    };
    report.Add({.row = absl::StrCat("ssd/write/", mib, "MiB"),
                .value = Median(write),
                .unit = "GB/s",
                .limit = median(fio_write),
                .target = ">=0.85",
                .command = write_command});
    report.Add({.row = absl::StrCat("ssd/read/", mib, "MiB"),
                .value = Median(read),
                .unit = "GB/s",
                .limit = median(fio_read),
                .target = ">=0.85",
                .command = read_command});
  }
  if (o.open_gib > 0) {
    std::vector<double> open;
    for (int i = 0; i < std::min(o.repetitions, 3); ++i) {
      DropFiles(o);
      PERIGEE_ASSIGN_OR_RETURN(const double seconds, OpenTime(o));
      open.push_back(seconds);
    }
    DropFiles(o);
    report.Add({.row = absl::StrCat("ssd/open/", o.open_gib, "GiB"),
                .value = Median(open),
                .unit = "s",
                .limit = std::nullopt,
                .better = Better::kLess,
                .target = "<2",
                .command = "SsdTier::Open of planes of 1 MiB"});
  }
  return report.WriteJson(o.json);
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  perigee::bench::Options o;
  bool wrong = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool more = i + 1 < argc;
    if (argument == "--json" && more) {
      o.json = argv[++i];
    } else if (argument == "--folder" && more) {
      o.folder = argv[++i];
    } else if (argument == "--repetitions" && more) {
      o.repetitions = std::atoi(argv[++i]);
    } else if (argument == "--depth" && more) {
      o.depth = static_cast<unsigned>(std::atoi(argv[++i]));
    } else if (argument == "--mib" && more) {
      o.mib = static_cast<uint64_t>(std::atoll(argv[++i]));
    } else if (argument == "--open-gib" && more) {
      o.open_gib = static_cast<uint64_t>(std::atoll(argv[++i]));
    } else if (argument == "--threads-engine") {
      o.engine = perigee::kvstore::IoEngineKind::kThreads;
    } else {
      wrong = true;
    }
  }
  if (wrong || o.folder.empty() || o.repetitions <= 0 || o.depth == 0 || o.mib < 64) {
    std::fprintf(stderr,
                 "usage: ssd_bench --folder FOLDER [--json FILE] [--repetitions N] [--depth N] [--mib N, at least 64] "
                 "[--open-gib N] [--threads-engine]\n");
    return 2;
  }
  std::filesystem::create_directories(o.folder);
  const absl::Status status = perigee::bench::Run(o);
  if (!status.ok()) std::fprintf(stderr, "ssd_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
