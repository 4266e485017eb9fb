// The whole store in this process: Acquire and Release as a server's threads call them.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "index/rows.h"
#include "kvstore/store.h"

namespace perigee::bench {
namespace {

using kvstore::PlaneId;

constexpr size_t kBatch = 64, kBatches = 4096, kCommit = 4096;

PlaneId NameOf(uint64_t n) {
  PlaneId name;
  Random random(n);
  for (size_t i = 0; i < name.key.digest.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(&name.key.digest[i], &word, 8);
  }
  return name;
}

// Pages of zeros that are never written: their memory is one page of the kernel's.
struct Zeros {
  explicit Zeros(size_t n)
      : bytes(n),
        memory(mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Zeros() { munmap(memory, bytes); }
  Zeros(const Zeros&) = delete;
  size_t bytes;
  void* memory;
};

absl::Status Fill(kvstore::Store& store, uint64_t planes) {
  pod::PlaneHeader header;
  header.tenant = "tenant";
  header.shape = {.layers = 2, .kv_heads = 2, .head_dim = 64};
  header.block_tokens = header.tokens = 64;
  header.payload_bytes = kvstore::kPageBytes;
  const std::vector<std::byte> page(kvstore::kPageBytes);
  header.sections = {{static_cast<uint32_t>(page.size()), Crc32c(page)}};
  for (uint64_t n = 0; n < planes; n += kCommit) {
    std::vector<kvstore::PlaneRequest> requests;
    for (uint64_t i = n; i < std::min(n + kCommit, planes); ++i) requests.push_back({NameOf(i), page.size()});
    auto reserved = store.Reserve(requests, absl::Seconds(60));
    if (!reserved.ok()) return reserved.status();
    std::vector<kvstore::CommitItem> items;
    for (size_t i = 0; i < requests.size(); ++i) {
      header.key = header.root = requests[i].id.key;
      header.base_position = static_cast<int64_t>((n + i) % 512 * 64);
      items.push_back({(*reserved)[i].id, pod::EncodePlaneHeader(header), 0});
    }
    auto committed = store.Commit(items, kvstore::Durability::kDram);
    if (!committed.ok()) return committed.status();
    for (const absl::Status& status : *committed) {
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

void StoreRows(const IndexBench& bench, Report& report) {
  const auto wanted = [&](const char* row) {
    return absl::StrContains(absl::StrCat("kvstore/store/", row), bench.only);
  };
  if (!wanted("acquire64") && !wanted("acquire64_and_release") && !wanted("index_bytes_per_plane")) return;
  const Zeros slab(uint64_t{bench.planes} * kvstore::kPageBytes);
  kvstore::StoreOptions options;
  options.max_planes = bench.planes;
  options.free_low = options.free_high = 0;
  auto store = kvstore::Store::Open(options, {static_cast<std::byte*>(slab.memory), slab.bytes});
  const absl::Status filled = store.ok() ? Fill(**store, bench.planes) : store.status();
  if (!filled.ok()) {
    std::fprintf(stderr, "index_bench: %s\n", filled.ToString().c_str());
    return;
  }
  const auto add = [&](const char* name, double value, const char* unit, Better better, const char* target,
                       const char* what) {
    if (!wanted(name)) return;
    report.Add(Row{.row = absl::StrCat("kvstore/store/", name),
                   .value = value,
                   .unit = unit,
                   .limit = std::nullopt,
                   .better = better,
                   .target = target,
                   .command = absl::StrCat(what, "; ", bench.planes, " planes")});
  };
  add("index_bytes_per_plane", static_cast<double>((*store)->Stats().index_bytes) / bench.planes, "B", Better::kLess,
      "", "all of the store's bookkeeping, encoded plane headers included");

  Random random(11);
  std::vector<PlaneId> names(kBatch * kBatches);
  std::vector<double> acquire, both;
  for (int i = 0; i < bench.repetitions; ++i) {
    for (PlaneId& name : names) name = NameOf(random.Below(bench.planes));
    double acquiring = 0;
    size_t found = 0;
    const Stopwatch watch;
    for (size_t b = 0; b < kBatches; ++b) {
      const Stopwatch one;
      const auto lease =
          (*store)->Acquire(std::span(&names[b * kBatch], kBatch), absl::Seconds(60), {.tenant = "tenant"});
      acquiring += one.seconds();
      for (const kvstore::LeasedPlane& plane : lease->planes) found += plane.found;
      Keep((*store)->Release(lease->id, 0, 0).ok());
    }
    const double seconds = watch.seconds(), millions = 1e-6 * static_cast<double>(found);
    acquire.push_back(millions / acquiring);
    both.push_back(millions / seconds);
  }
  add("acquire64", Median(acquire), "M/s", Better::kMore, ">=1",
      "Store::Acquire of 64 planes drawn at random, headers copied out; processor time of one core");
  add("acquire64_and_release", Median(both), "M/s", Better::kMore, "", "with their Release");
}

}  // namespace perigee::bench
