// The slab, the header arena and the deadlines, each beside what one would take instead.
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/best_fit.h"
#include "index/rows.h"
#include "kvstore/dram/deadline_heap.h"
#include "kvstore/dram/extent_slab.h"
#include "kvstore/dram/header_arena.h"

namespace perigee::bench {
namespace {

using kvstore::Extent;
using kvstore::ExtentSlab;

constexpr uint64_t kSlabBytes = uint64_t{64} << 30;  // Only counted, never touched.

// Sizes of planes, as bytes.
struct Mix {
  const char* name;
  std::function<uint64_t(Random&)> size;
};
const std::vector<Mix>& Mixes() {
  static const std::vector<Mix> mixes = {
      {"one_size", [](Random&) { return uint64_t{1} << 20; }},
      // One model's blocks: distant, proximal and summary planes.
      {"one_model",
       [](Random& r) {
         return std::vector<uint64_t>{640 << 10, 1280 << 10, 8 << 10}[r.Below(3)];
       }},
      // Every scale as often, from 4 KiB to 4 MiB.
      {"all_sizes",
       [](Random& r) { return static_cast<uint64_t>(4096 * std::exp2(1e-3 * static_cast<double>(r.Below(10'000)))); }},
  };
  return mixes;
}

// Fills to 85 %, then frees one at random and allocates another, again and again: ns per pair of calls.
template <typename Allocate, typename Free>
double ChurnNs(const Mix& mix, Allocate allocate, Free free) {
  constexpr size_t kPairs = 400'000;
  Random random(3);
  uint64_t filled = 0;
  using Handle = decltype(allocate(uint64_t{1}));
  std::vector<Handle> live;
  while (filled < kSlabBytes / 100 * 85) {
    const uint64_t bytes = mix.size(random);
    filled += bytes;
    live.push_back(allocate(bytes));
  }
  std::vector<std::pair<uint32_t, uint64_t>> steps(kPairs);
  for (auto& [place, bytes] : steps) {
    place = static_cast<uint32_t>(random.Below(live.size()));
    bytes = mix.size(random);
  }
  const Stopwatch watch;
  for (const auto& [place, bytes] : steps) {
    free(live[place]);
    live[place] = allocate(bytes);
  }
  const double ns = 1e9 * watch.seconds() / kPairs;
  for (Handle& h : live) free(h);
  return ns;
}

// How much of a slab is used, in percent, when it refuses a request, as a mean over many refusals; room is made by
// freeing at random.
template <typename Allocate, typename Free, typename Used>
double UsedWhenRefused(const Mix& mix, Allocate allocate, Free free, Used used) {
  Random random(5);
  using Handle = decltype(*allocate(uint64_t{1}));
  std::vector<std::decay_t<Handle>> live;
  double sum = 0;
  size_t refusals = 0;
  for (size_t step = 0; step < 600'000; ++step) {
    const uint64_t bytes = mix.size(random);
    auto got = allocate(bytes);
    if (!got && step >= 300'000) {
      sum += used();
      ++refusals;
    }
    for (; !got; got = allocate(bytes)) {
      const size_t place = random.Below(live.size());
      free(live[place]);
      live[place] = live.back();
      live.pop_back();
    }
    live.push_back(*got);
  }
  return 100 * sum / static_cast<double>(refusals);
}

class Pieces {
 public:
  Pieces(const IndexBench& bench, Report& report) : bench_(bench), report_(report) {}

  void SlabRows() {
    for (const Mix& mix : Mixes()) {
      const std::string time = absl::StrCat("kvstore/slab/allocate_free/", mix.name);
      if (Wanted(time) || Wanted(time + "/malloc")) {
        std::vector<double> ours, trees, mallocs;
        for (int i = 0; i < bench_.repetitions; ++i) {
          ExtentSlab slab(kSlabBytes);
          ours.push_back(ChurnNs(
              mix, [&](uint64_t bytes) { return slab.Allocate(bytes).value_or(Extent{}); },
              [&](Extent e) { slab.Free(e); }));
          BestFit best_fit(kSlabBytes);
          constexpr uint64_t kRefused = ~uint64_t{0};
          trees.push_back(ChurnNs(
              mix, [&](uint64_t bytes) { return best_fit.Allocate(bytes).value_or(kRefused); },
              [&](uint64_t offset) {
                if (offset != kRefused) best_fit.Free(offset);
              }));
          // Sizes a 64th, so that malloc neither maps nor touches 64 GiB.
          mallocs.push_back(ChurnNs(
              mix, [](uint64_t bytes) { return std::malloc(bytes / 64); }, [](void* p) { std::free(p); }));
        }
        Add(time, Median(ours), "ns", Median(trees), "best fit over two btrees and a hash map; a Free and an Allocate");
        Add(time + "/malloc", Median(ours), "ns", Median(mallocs),
            "glibc's free and malloc of a 64th of the bytes, nothing mapped or trimmed on the way");
      }
      const std::string full = absl::StrCat("kvstore/slab/used_when_refused/", mix.name);
      if (Wanted(full)) {
        // A store of one model's planes: small enough that planes are a part of it that counts.
        constexpr uint64_t kBytes = uint64_t{4} << 30;
        ExtentSlab slab(kBytes);
        const double ours = UsedWhenRefused(
            mix, [&](uint64_t bytes) { return slab.Allocate(bytes); }, [&](Extent e) { slab.Free(e); },
            [&] { return static_cast<double>(slab.used_bytes() - slab.internal_bytes()) / kBytes; });
        BestFit best_fit(kBytes);
        const double theirs = UsedWhenRefused(
            mix, [&](uint64_t bytes) { return best_fit.Allocate(bytes); },
            [&](uint64_t offset) { best_fit.Free(offset); },
            [&] { return 1 - static_cast<double>(best_fit.free_bytes()) / kBytes; });
        Add(full, ours, "%", theirs, "best fit over trees; random eviction, 4 GiB; ours counts rounding as not used",
            Better::kMore);
      }
    }
  }

  void HeaderRows() {
    const std::string bytes_row = "kvstore/headers/bytes_per_header", time_row = "kvstore/headers/add_drop";
    if (!Wanted(bytes_row) && !Wanted(time_row)) return;
    constexpr size_t kHeaders = 1'000'000;
    const std::string source(kvstore::kMaxHeaderBytes, 'h');
    const auto size = [](Random& r) { return 250 + r.Below(400); };
    std::vector<double> ours, theirs;
    double bytes = 0, peer_bytes = 0;
    for (int i = 0; i < bench_.repetitions; ++i) {
      {
        kvstore::HeaderArena arena;
        Random random(1);
        std::vector<kvstore::HeaderArena::Handle> live(kHeaders);
        for (auto& h : live) h = arena.Add({source.data(), size(random)});
        bytes = static_cast<double>(arena.MemoryBytes()) / kHeaders;
        const Stopwatch watch;
        for (size_t k = 0; k < kHeaders; ++k) {
          auto& h = live[random.Below(kHeaders)];
          arena.Drop(h);
          h = arena.Add({source.data(), size(random)});
        }
        ours.push_back(1e9 * watch.seconds() / kHeaders);
      }
      {
        Random random(1);
        const uint64_t before = mallinfo2().uordblks;
        std::vector<std::string> live(kHeaders);
        for (auto& h : live) h = std::string(source.data(), size(random));
        peer_bytes = static_cast<double>(mallinfo2().uordblks - before) / kHeaders;
        const Stopwatch watch;
        for (size_t k = 0; k < kHeaders; ++k) {
          auto& h = live[random.Below(kHeaders)];
          h = std::string();
          h = std::string(source.data(), size(random));
        }
        theirs.push_back(1e9 * watch.seconds() / kHeaders);
      }
    }
    const char* const what = "std::string by malloc; headers of 250 to 650 bytes, a million of them";
    Add(bytes_row, bytes, "B", peer_bytes, what);
    Add(time_row, Median(ours), "ns", Median(theirs), what);
  }

  void DeadlineRow() {
    const std::string row = "kvstore/deadlines/add_cancel";
    if (!Wanted(row)) return;
    constexpr size_t kLive = 100'000, kPairs = 500'000;
    std::vector<double> ours, theirs;
    for (int i = 0; i < bench_.repetitions; ++i) {
      // Leases: added with about the same ttl, most of them cancelled before their time.
      {
        Random random(1);
        kvstore::DeadlineHeap heap;
        std::vector<kvstore::DeadlineHeap::Handle> live(kLive);
        int64_t now = 0;
        const auto when = [&] { return ++now * 1000 + static_cast<int64_t>(random.Below(50'000'000)); };
        for (auto& h : live) h = heap.Add(when(), 1);
        const Stopwatch watch;
        for (size_t k = 0; k < kPairs; ++k) {
          auto& h = live[random.Below(kLive)];
          heap.Cancel(h);
          h = heap.Add(when(), k);
        }
        ours.push_back(1e9 * watch.seconds() / kPairs);
      }
      {
        Random random(1);
        absl::btree_set<std::pair<int64_t, uint64_t>> ends;
        absl::flat_hash_map<uint64_t, int64_t> leases;  // id -> end
        std::vector<uint64_t> live(kLive);
        uint64_t next = 0;
        int64_t now = 0;
        const auto add = [&] {
          const int64_t when = ++now * 1000 + static_cast<int64_t>(random.Below(50'000'000));
          ends.insert({when, ++next});
          leases.emplace(next, when);
          return next;
        };
        for (auto& id : live) id = add();
        const Stopwatch watch;
        for (size_t k = 0; k < kPairs; ++k) {
          auto& id = live[random.Below(kLive)];
          const auto it = leases.find(id);
          ends.erase({it->second, id});
          leases.erase(it);
          id = add();
        }
        theirs.push_back(1e9 * watch.seconds() / kPairs);
      }
    }
    Add(row, Median(ours), "ns", Median(theirs),
        "absl::btree_set of ends and absl::flat_hash_map of ids; 100,000 live");
  }

 private:
  bool Wanted(const std::string& row) const { return absl::StrContains(row, bench_.only); }
  void Add(const std::string& row, double value, const char* unit, double limit, const std::string& command,
           Better better = Better::kLess) {
    if (!Wanted(row)) return;
    report_.Add(Row{
        .row = row, .value = value, .unit = unit, .limit = limit, .better = better, .target = "", .command = command});
  }
  const IndexBench& bench_;
  Report& report_;
};

}  // namespace

void PieceRows(const IndexBench& bench, Report& report) {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  Pieces pieces(bench, report);
  pieces.SlabRows();
  pieces.HeaderRows();
  pieces.DeadlineRow();
}

}  // namespace perigee::bench
