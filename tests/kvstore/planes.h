// Planes for the store's tests: any payload, cut in sections, with a true header.
#ifndef PERIGEE_TESTS_KVSTORE_PLANES_H_
#define PERIGEE_TESTS_KVSTORE_PLANES_H_

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "kvstore/store.h"
#include "pod/plane_header.h"

namespace perigee::kvstore {

struct TestPlane {
  PlaneId id;
  pod::PlaneHeader header;
  std::vector<std::byte> payload;

  std::string encoded() const { return pod::EncodePlaneHeader(header); }
  PlaneRequest request() const { return {id, payload.size()}; }
};

inline pod::BlockKey TestKey(uint64_t n) { return pod::BlockKey{Sha256(absl::StrCat("test block ", n))}; }

inline TestPlane MakePlane(uint64_t n, size_t bytes, pod::PlaneKind kind = pod::PlaneKind::kDistant,
                           const std::string& tenant = "tenant-a") {
  TestPlane p;
  p.id = {TestKey(n), kind};
  p.payload.resize(bytes);
  std::mt19937_64 random(n * 4 + static_cast<uint64_t>(kind));
  for (std::byte& b : p.payload) b = static_cast<std::byte>(random());
  pod::PlaneHeader& h = p.header;
  h.kind = kind;
  h.key = h.root = p.id.key;
  h.tenant = tenant;
  h.shape = {.layers = 2, .kv_heads = 2, .head_dim = 64};
  h.block_tokens = 64;
  h.tokens = 64;
  h.base_position = static_cast<int64_t>(n) * 64;
  h.payload_bytes = bytes;
  const size_t first = bytes / 3;
  for (const auto& [begin, end] : {std::pair<size_t, size_t>{0, first}, {first, bytes}}) {
    const std::span<const std::byte> section = std::span(p.payload).subspan(begin, end - begin);
    h.sections.push_back({static_cast<uint32_t>(section.size()), Crc32c(section)});
  }
  return p;
}

// Makes it the plane of the chain's block n, which follows block n - 1.
inline void Follow(TestPlane& plane, uint64_t n) {
  plane.header.has_parent = n > 0;
  if (n > 0) plane.header.parent = TestKey(n - 1);
  plane.header.root = TestKey(0);
}

// A folder that goes with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = testing::TempDir() + "/perigee_kvstore_XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Page-aligned memory in the role of the registered slab.
class FakeSlab {
 public:
  explicit FakeSlab(size_t bytes) : bytes_(bytes), memory_(static_cast<std::byte*>(std::aligned_alloc(4096, bytes))) {
    std::memset(memory_, 0xAB, bytes);  // Never zero by luck.
  }
  ~FakeSlab() { std::free(memory_); }
  FakeSlab(const FakeSlab&) = delete;
  std::span<std::byte> span() { return {memory_, bytes_}; }

 private:
  size_t bytes_;
  std::byte* memory_;
};

// What a writer's one-sided PUT does.
inline void Poke(uint64_t address, std::span<const std::byte> bytes) {
  std::memcpy(reinterpret_cast<void*>(address), bytes.data(), bytes.size());
}
inline std::vector<std::byte> Peek(const LeasedPlane& plane) {
  const auto* begin = reinterpret_cast<const std::byte*>(plane.address);
  return {begin, begin + plane.payload_bytes};
}

// Reserve, write, commit.
inline absl::Status Write(Store& store, std::span<const TestPlane> planes, Durability durability = Durability::kBest) {
  std::vector<PlaneRequest> requests;
  for (const TestPlane& p : planes) requests.push_back(p.request());
  auto reserved = store.Reserve(requests, absl::Seconds(60));
  if (!reserved.ok()) return reserved.status();
  std::vector<CommitItem> items;
  std::vector<uint64_t> ids;
  for (size_t i = 0; i < planes.size(); ++i) {
    if ((*reserved)[i].already_committed) continue;
    Poke((*reserved)[i].address, planes[i].payload);
    items.push_back({(*reserved)[i].id, planes[i].encoded()});
    ids.push_back((*reserved)[i].id);
  }
  auto statuses = store.Commit(items, durability);
  if (!statuses.ok()) return statuses.status();
  for (const absl::Status& status : *statuses) {
    if (status.ok()) continue;
    store.Abort(ids, false);
    return status;
  }
  return absl::OkStatus();
}
inline absl::Status Write(Store& store, const TestPlane& plane, Durability durability = Durability::kBest) {
  return Write(store, std::span(&plane, 1), durability);
}

// Acquire, compare, release. NotFound with the miss's reason; DataLoss when other bytes came.
inline absl::Status ReadAndCompare(Store& store, const TestPlane& plane) {
  auto lease = store.Acquire({&plane.id, 1}, absl::Seconds(60));
  if (!lease.ok()) return lease.status();
  const LeasedPlane& got = lease->planes[0];
  if (!got.found) return absl::NotFoundError(MissReasonName(got.miss.reason));
  const bool same = Peek(got) == plane.payload && got.header == plane.encoded();
  const absl::Status released = store.Release(lease->id, 0, 0);
  if (!released.ok()) return released;
  return same ? absl::OkStatus() : absl::DataLossError("other bytes");
}

inline std::unique_ptr<Store> OpenStore(FakeSlab& slab, const std::string& ssd_path, uint64_t capacity = 0,
                                        uint64_t segment_bytes = 1 << 20) {
  StoreOptions options;
  if (!ssd_path.empty()) {
    options.ssd =
        SsdOptions{.path = ssd_path, .segment_bytes = segment_bytes, .capacity_bytes = capacity, .reserve_bytes = 0};
  }
  auto store = Store::Open(options, slab.span());
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_PLANES_H_
