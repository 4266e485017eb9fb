#include "replay/store_run.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/file.h"
#include "base/status.h"
#include "kvstore/store.h"
#include "pod/plane_header.h"

namespace perigee::bench {
namespace {

using kvstore::PlaneId;
using kvstore::Store;
using kvstore::Tier;

constexpr absl::Duration kTtl = absl::Minutes(10);  // Of leases and reservations; nobody abandons one.

class Slab {
 public:
  static absl::StatusOr<Slab> Map(uint64_t bytes) {
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return ErrnoStatus("map", absl::StrCat(bytes, " bytes of memory"), errno);
    return Slab({static_cast<std::byte*>(memory), bytes});
  }
  Slab(Slab&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Slab& operator=(Slab&&) = delete;
  ~Slab() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  explicit Slab(std::span<std::byte> bytes) : bytes_(bytes) {}
  std::span<std::byte> bytes_;
};

class TemporaryFolder {
 public:
  static absl::StatusOr<TemporaryFolder> Below(const std::string& parent) {
    std::string name = absl::StrCat(parent, "/store_replay_XXXXXX");
    if (mkdtemp(name.data()) == nullptr) return ErrnoStatus("make a folder", name, errno);
    return TemporaryFolder(std::move(name));
  }
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TemporaryFolder& operator=(TemporaryFolder&&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

class Replayer {
 public:
  Replayer(const Trace& trace, const RealShape& shape, Store& store)
      : trace_(trace), shape_(shape), store_(store), expected_(shape.block_bytes) {
    for (const uint64_t hash_id : trace.hash_ids) keys_.push_back({Sha256(absl::StrCat("trace block ", hash_id))});
    header_.tenant = "trace";
    header_.shape = {.layers = 1, .kv_heads = 1, .head_dim = 64};
    header_.block_tokens = kTraceBlockTokens;
    header_.payload_bytes = shape.block_bytes;
    header_.sections.resize(1);
  }

  absl::StatusOr<StoreRun> Run() {
    const auto start = std::chrono::steady_clock::now();
    for (const TraceRequest& request : trace_.requests) {
      PERIGEE_ASSIGN_OR_RETURN(const size_t prefix, Read(request));
      PERIGEE_RETURN_IF_ERROR(Write(request, prefix));
      const kvstore::StoreStats stats = store_.Stats();
      const auto planes = [&stats](Tier tier) { return Stored(stats, tier).planes; };
      ReplayResult& r = run_.result;
      r.dram_peak_blocks = std::max(r.dram_peak_blocks, planes(Tier::kDram));
      r.ssd_peak_blocks = std::max(r.ssd_peak_blocks, planes(Tier::kSsd));
    }
    run_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const kvstore::StoreStats stats = store_.Stats();
    run_.result.dram_evictions = stats.dram_evictions;
    run_.result.ssd_evictions = stats.ssd_evictions;
    run_.ssd_written_bytes = stats.ssd.counters.written_bytes + stats.ssd.counters.compacted_bytes;
    run_.demoted_to_ssd = stats.demoted_to_ssd;
    return std::move(run_);
  }

 private:
  static kvstore::TierCount Stored(const kvstore::StoreStats& stats, Tier tier) {
    return stats.counts[static_cast<size_t>(tier) - 1][static_cast<size_t>(pod::PlaneKind::kDistant) - 1];
  }
  PlaneId IdOf(uint32_t block) const { return {keys_[block], pod::PlaneKind::kDistant}; }

  // Any block's bytes differ from any other's, and from their own at another place.
  void Fill(uint32_t block, std::span<std::byte> payload) const {
    uint64_t word;
    std::memcpy(&word, keys_[block].digest.data(), sizeof(word));
    for (size_t at = 0; at < payload.size(); at += sizeof(word), word += 0x9e3779b97f4a7c15u) {
      std::memcpy(&payload[at], &word, std::min(sizeof(word), payload.size() - at));
    }
  }

  // The request's prefix that was found and has been compared, in blocks.
  absl::StatusOr<size_t> Read(const TraceRequest& request) {
    std::vector<pod::BlockKey> keys;
    for (const uint32_t block : request.blocks) keys.push_back(keys_[block]);
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<kvstore::BlockInfo> infos,
                             store_.Lookup(keys, {}, kvstore::LookupMode::kPrefix));
    std::vector<PlaneId> ids;
    for (size_t i = 0; i < infos.size() && !infos[i].planes.empty(); ++i) ids.push_back(IdOf(request.blocks[i]));
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::Lease lease, store_.Acquire(ids, kTtl));
    ReplayResult& r = run_.result;
    uint64_t read_bytes = 0;
    size_t prefix = 0;
    for (size_t i = 0; i < lease.planes.size(); ++i) {
      const kvstore::LeasedPlane& plane = lease.planes[i];
      if (!plane.found) continue;
      read_bytes += plane.payload_bytes;
      run_.wrong_planes += !IsRight(request.blocks[i], plane);
      if (i != prefix) continue;  // Behind one that could not be brought into memory.
      ++prefix;
      (plane.tier == Tier::kDram ? r.dram_hit_tokens : r.ssd_hit_tokens) += request.TokensOf(i);
    }
    if (lease.id != 0) PERIGEE_RETURN_IF_ERROR(store_.Release(lease.id, 0, 0));
    run_.bytes_moved += read_bytes;
    r.blocks += request.blocks.size();
    r.hit_blocks += prefix;
    r.tokens += request.input_tokens;
    return prefix;
  }

  bool IsRight(uint32_t block, const kvstore::LeasedPlane& plane) {
    const auto header = pod::DecodePlaneHeader(plane.header);
    if (!header.ok() || header->key != keys_[block] || plane.payload_bytes != expected_.size()) return false;
    Fill(block, expected_);
    return std::memcmp(reinterpret_cast<const void*>(plane.address), expected_.data(), expected_.size()) == 0;
  }

  // Stores the blocks from `first` on, as many as there is room for.
  absl::Status Write(const TraceRequest& request, size_t first) {
    std::vector<kvstore::PlaneRequest> wanted;
    for (size_t i = first; i < request.blocks.size(); ++i) {
      wanted.push_back({IdOf(request.blocks[i]), shape_.block_bytes});
    }
    std::vector<kvstore::Reservation> reserved;
    for (size_t n = std::min<size_t>(wanted.size(), shape_.dram_blocks); n > 0; n /= 2) {
      auto some = store_.Reserve(std::span(wanted).first(n), kTtl);
      if (some.ok()) reserved = *std::move(some);
      if (!absl::IsResourceExhausted(some.status())) {
        PERIGEE_RETURN_IF_ERROR(some.status());
        break;
      }
    }
    run_.refused_blocks += wanted.size() - reserved.size();
    std::vector<kvstore::CommitItem> items;
    for (size_t i = 0; i < reserved.size(); ++i) {
      if (reserved[i].already_committed) continue;
      const std::span payload(reinterpret_cast<std::byte*>(reserved[i].address), shape_.block_bytes);
      Fill(request.blocks[first + i], payload);
      run_.bytes_moved += payload.size();
      items.push_back({.reservation_id = reserved[i].id, .header = HeaderOf(request, first + i, payload)});
    }
    PERIGEE_ASSIGN_OR_RETURN(
        const std::vector<absl::Status> committed,
        store_.Commit(items, shape_.ssd_blocks > 0 ? kvstore::Durability::kBest : kvstore::Durability::kDram));
    for (const absl::Status& status : committed) PERIGEE_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  std::string HeaderOf(const TraceRequest& request, size_t i, std::span<const std::byte> payload) {
    const uint32_t block = request.blocks[i], parent = trace_.parents[block];
    header_.key = keys_[block];
    header_.has_parent = parent != kNoBlock;
    header_.parent = header_.has_parent ? keys_[parent] : pod::BlockKey{};
    header_.root = keys_[header_.has_parent ? request.blocks[0] : block];
    header_.tokens = static_cast<int32_t>(request.TokensOf(i));
    header_.base_position = static_cast<int64_t>(i) * kTraceBlockTokens;
    header_.sections[0] = {static_cast<uint32_t>(payload.size()), Crc32c(payload)};
    return pod::EncodePlaneHeader(header_);
  }

  const Trace& trace_;
  const RealShape& shape_;
  Store& store_;
  std::vector<pod::BlockKey> keys_;  // [block]
  pod::PlaneHeader header_;          // What all have in common, and the last one's rest.
  std::vector<std::byte> expected_;
  StoreRun run_;
};

}  // namespace

absl::StatusOr<StoreRun> ReplayThroughStore(const Trace& trace, absl::string_view policy, const RealShape& shape) {
  const uint64_t room = kvstore::RoundUpToPage(shape.block_bytes);
  kvstore::StoreOptions options;
  options.policy = std::string(policy);
  std::optional<TemporaryFolder> folder;
  if (shape.ssd_blocks > 0) {
    PERIGEE_ASSIGN_OR_RETURN(TemporaryFolder made, TemporaryFolder::Below(shape.ssd_path));
    folder.emplace(std::move(made));
    const uint64_t capacity = shape.ssd_blocks * (room + kvstore::kPageBytes);  // A record has a head.
    options.ssd = kvstore::SsdOptions{.path = folder->path(), .capacity_bytes = capacity};
    options.ssd->segment_bytes = std::clamp<uint64_t>(capacity / 16, 1 << 20, options.ssd->segment_bytes);
  } else {
    options.free_low = options.free_high = 0;
  }
  options.max_planes = static_cast<uint32_t>(shape.dram_blocks + shape.ssd_blocks);
  PERIGEE_ASSIGN_OR_RETURN(const Slab slab, Slab::Map(shape.dram_blocks * room));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(std::move(options), slab.bytes()));
  return Replayer(trace, shape, *store).Run();
}

}  // namespace perigee::bench
