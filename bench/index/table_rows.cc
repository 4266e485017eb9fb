// One table of millions of planes beside a plain hash map.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/rows.h"
#include "kvstore/dram/plane_table.h"
#include "kvstore/policy/eviction_policy.h"

namespace perigee::bench {
namespace {

using kvstore::EntryId;
using kvstore::kNoEntry;
using kvstore::PlaneId;
using kvstore::PlaneTable;

constexpr size_t kBatch = 64;
constexpr size_t kBatches = 16384;  // A million planes per sample: far more than the caches hold.

// What somebody would write down who has not counted bytes.
struct PeerEntry {
  uint64_t payload_bytes = 0;
  int64_t created_unix_us = 0, last_used_unix_us = 0, base_position = 0;
  uint64_t ssd_number = 0;
  kvstore::Extent extent;
  uint32_t header = 0, tenant = 0, pins = 0;
  int32_t tokens = 0;
  uint32_t previous = 0, next = 0;
  uint8_t flags = 0;
};
using Peer = absl::flat_hash_map<PlaneId, PeerEntry>;

PlaneId NameOf(uint64_t n) {
  PlaneId name;
  Random random(n * 4);
  for (size_t i = 0; i < 4; ++i) {
    const uint64_t word = random();
    std::memcpy(name.key.digest.data() + 8 * i, &word, 8);
  }
  return name;
}

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

struct Fill {
  double seconds = 0, longest_us = 0;
  uint64_t resident_bytes = 0;
};
// Every insert is timed, in processor time: a busy machine must not make a long one. What the clock costs is not
// counted. prepare: what is done outside of the lock that a store would hold.
template <typename Prepare, typename Insert>
Fill FillWith(uint32_t planes, Prepare prepare, Insert insert) {
  constexpr int kReads = 1'000'000;
  const double clock_start = CpuSeconds();
  for (int i = 0; i < kReads; ++i) Keep(CpuSeconds());
  const double clock_seconds = (CpuSeconds() - clock_start) / kReads;
  Fill fill;
  const uint64_t before = ResidentBytes();
  for (uint64_t n = 0; n < planes; ++n) {
    prepare();
    const double start = CpuSeconds();
    insert(n);
    const double seconds = CpuSeconds() - start - clock_seconds;
    fill.seconds += seconds;
    fill.longest_us = std::max(fill.longest_us, 1e6 * seconds);
  }
  fill.resident_bytes = ResidentBytes() - before;
  return fill;
}

kvstore::PlaneMeta MetaFor(uint64_t n) {
  return {.payload_bytes = (n % 8 + 1) << 18,
          .created_unix_us = 1'790'000'000'000'000,
          .ttl_s = 0,
          .base_position = static_cast<int64_t>(n),
          .tokens = 64,
          .tenant = "tenant",
          .parent = std::nullopt};
}

class TableBench {
 public:
  TableBench(const IndexBench& bench, Report& report) : bench_(bench), report_(report), table_(bench.planes) {}

  void Run() {
    const auto make_room = [&] {
      if (table_.WantsRoom()) table_.AddRoom(PlaneTable::MakeRoom());
    };
    const auto nothing = [] {};
    const Fill ours = FillWith(bench_.planes, make_room, [&](uint64_t n) {
      const EntryId id = table_.Insert(NameOf(n), MetaFor(n)).id;
      table_.SetExtent(id, {static_cast<uint32_t>(n), static_cast<uint32_t>(n)});
    });
    const Fill theirs = FillWith(bench_.planes, nothing, [&](uint64_t n) {
      const kvstore::PlaneMeta meta = MetaFor(n);
      PeerEntry& e = peer_[NameOf(n)];
      e.payload_bytes = meta.payload_bytes;
      e.created_unix_us = e.last_used_unix_us = meta.created_unix_us;
      e.base_position = meta.base_position;
      e.tokens = meta.tokens;
      e.tenant = 1;
      e.extent = {static_cast<uint32_t>(n), static_cast<uint32_t>(n)};
      e.flags = kvstore::kInDram;
    });
    BytesRows(ours, theirs);
    const double million = 1e-6 * bench_.planes;
    Add("insert", million / ours.seconds, "M/s", million / theirs.seconds, Better::kMore, "",
        "absl::flat_hash_map<PlaneId, Entry>, not reserved; processor time");
    Add("insert_longest", ours.longest_us, "us", theirs.longest_us, Better::kLess, "",
        "processor time of the longest single insert: the flat_hash_map grows as a whole; ours has room made by "
        "MakeRoom, which needs no lock, and is not in it");
    AcquireRows();
  }

 private:
  void Add(const std::string& name, double value, const char* unit, std::optional<double> limit, Better better,
           const char* target, const std::string& command) {
    const std::string row = absl::StrCat("kvstore/index/", name);
    if (!absl::StrContains(row, bench_.only)) return;
    report_.Add(Row{.row = row,
                    .value = value,
                    .unit = unit,
                    .limit = limit,
                    .better = better,
                    .target = target,
                    .command = absl::StrCat(command, "; ", bench_.planes, " planes")});
  }

  void BytesRows(const Fill& ours, const Fill& theirs) {
    const double planes = bench_.planes;
    const double peer_bytes = static_cast<double>(peer_.capacity() * (sizeof(Peer::value_type) + 1)) / planes;
    const auto parts = table_.MemoryByPart();
    const double bytes = static_cast<double>(table_.MemoryBytes()) / planes;
    Add("bytes_per_plane", bytes, "B", peer_bytes, Better::kLess, "<=200",
        absl::StrCat("slots and control bytes of the flat_hash_map; ours: entries ", parts.entries, ", details ",
                     parts.details, ", index ", parts.index, ", other ", parts.other));
    Add("bytes_per_plane/resident", static_cast<double>(ours.resident_bytes) / planes, "B",
        static_cast<double>(theirs.resident_bytes) / planes, Better::kLess, "<=200",
        "growth of the process' resident memory while filling (/proc/self/statm)");
    // With the other things that a store keeps per plane: the policy's order, and where its bytes lie.
    policy_ = *kvstore::MakeEvictionPolicy("default", {.max_entries = bench_.planes});
    kvstore::ExtentSlab slab(uint64_t{bench_.planes} * (68 << 10));
    for (EntryId id = 0; id < bench_.planes; ++id) {
      kvstore::PlaneFacts facts;
      facts.key_hash = id * uint64_t{0x9e3779b97f4a7c15};
      facts.payload_bytes = table_[id].payload_bytes;
      facts.cost_us = 1000;
      policy_->Inserted(id, facts);
      Keep(slab.Allocate(68 << 10).has_value());
    }
    const double policy_bytes = static_cast<double>(policy_->MemoryBytes()) / planes;
    const double slab_bytes = static_cast<double>(slab.MemoryBytes()) / planes;
    Add("bytes_per_plane/with_policy_and_slab", bytes + policy_bytes + slab_bytes, "B", std::nullopt, Better::kLess,
        "<=200",
        absl::StrCat("table, default eviction policy with its memory of evicted planes (", policy_bytes,
                     " B per plane), slab nodes (", slab_bytes, " B), all planes in DRAM, none small"));
  }

  // Draws the planes of one sample: other ones every time.
  void Draw(std::vector<PlaneId>& names) {
    names.resize(kBatch * kBatches);
    for (PlaneId& name : names) name = NameOf(random_.Below(bench_.planes));
  }

  // One Acquire's part that is the index's: whether each is there, whose, and where; held.
  void Acquired(EntryId id, uint32_t tenant, int64_t now_us, uint64_t& address) {
    kvstore::PlaneEntry& e = table_[id];
    if (e.tenant != tenant || !e.Is(kvstore::kInDram) || e.Is(kvstore::kLoading)) return;
    ++e.pins;
    e.SetLastUsed(now_us);
    address = kSlabStart + e.extent_offset();
  }

  void AcquireRows() {
    std::vector<double> ours, single, with_policy, theirs, our_release, their_release;
    std::vector<PlaneId> names;
    std::vector<EntryId> held(kBatch * kBatches);
    std::vector<PeerEntry*> peer_held(kBatch * kBatches);
    std::vector<uint64_t> addresses(kBatch);
    const uint32_t tenant = *table_.tenants().Find("tenant");
    const double millions = 1e-6 * kBatch * kBatches;
    const auto release = [&] {
      const Stopwatch watch;
      for (EntryId id : held) --table_[id].pins;
      return millions / watch.seconds();
    };
    for (int i = 0; i < bench_.repetitions; ++i) {
      for (int side = 0; side < 4; ++side) {
        Draw(names);
        uint64_t sum = 0;
        const Stopwatch watch;
        for (size_t b = 0; b < kBatches; ++b) {
          const std::span batch(&names[b * kBatch], kBatch);
          const std::span found(&held[b * kBatch], kBatch);
          const int64_t now = 1'790'000'100'000'000 + static_cast<int64_t>(b);
          if (side < 2) {
            table_.FindAll(batch, found);
            for (size_t k = 0; k < kBatch; ++k) Acquired(found[k], tenant, now, addresses[k]);
            if (side == 1) {
              for (EntryId id : found) policy_->Touched(id);
            }
          } else if (side == 2) {
            for (size_t k = 0; k < kBatch; ++k) Acquired(found[k] = table_.Find(batch[k]), tenant, now, addresses[k]);
          } else {
            for (size_t k = 0; k < kBatch; ++k) {
              PeerEntry& e = peer_.find(batch[k])->second;
              peer_held[b * kBatch + k] = &e;
              if (e.tenant != 1 || (e.flags & kvstore::kInDram) == 0 || (e.flags & kvstore::kLoading) != 0) continue;
              ++e.pins;
              e.last_used_unix_us = now;
              addresses[k] = kSlabStart + e.extent.offset();
            }
          }
          for (uint64_t address : addresses) sum += address;
        }
        const double rate = millions / watch.seconds();
        Keep(sum);
        if (side == 3) {
          theirs.push_back(rate);
          const Stopwatch releasing;
          for (PeerEntry* e : peer_held) --e->pins;
          their_release.push_back(millions / releasing.seconds());
        } else {
          (side == 0 ? ours : side == 1 ? with_policy : single).push_back(rate);
          const double released = release();
          if (side == 0) our_release.push_back(released);
        }
      }
    }
    const char* const peer = "absl::flat_hash_map<PlaneId, Entry>, one find after another";
    Add("acquire64", Median(ours), "M/s", Median(theirs), Better::kMore, ">=1", peer);
    Add("acquire64/with_policy", Median(with_policy), "M/s", Median(theirs), Better::kMore, ">=1",
        absl::StrCat("ours also tells the default eviction policy of every plane; ", peer, " and no policy"));
    Add("acquire64/one_by_one", Median(single), "M/s", Median(theirs), Better::kMore, ">=1",
        absl::StrCat("ours with Find instead of FindAll; ", peer));
    Add("release64", Median(our_release), "M/s", Median(their_release), Better::kMore, "",
        "by number, peer: by pointer");
  }

  static constexpr uint64_t kSlabStart = uint64_t{1} << 40;
  const IndexBench& bench_;
  Report& report_;
  PlaneTable table_;
  Peer peer_;
  std::unique_ptr<kvstore::EvictionPolicy> policy_;
  Random random_{7};
};

}  // namespace

void TableRows(const IndexBench& bench, Report& report) {
  for (const char* row :
       {"bytes_per_plane", "bytes_per_plane/resident", "bytes_per_plane/with_policy_and_slab", "insert",
        "insert_longest", "acquire64", "acquire64/with_policy", "acquire64/one_by_one", "release64"}) {
    if (absl::StrContains(absl::StrCat("kvstore/index/", row), bench.only)) return TableBench(bench, report).Run();
  }
}

}  // namespace perigee::bench
