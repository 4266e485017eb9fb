// Several stores, for tests of their common client.
#ifndef PERIGEE_TESTS_KVSTORE_STORE_CLUSTER_H_
#define PERIGEE_TESTS_KVSTORE_STORE_CLUSTER_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kvstore/server.h"
#include "kvstore/sharded_store.h"
#include "planes.h"

namespace perigee::kvstore {

inline std::unique_ptr<transport::Context> MakeEngine() {
  auto engine = transport::Context::Create({.transports = "tcp"});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

inline std::unique_ptr<StoreServer> StartServer(size_t slab_bytes = 32 << 20) {
  ServerOptions options;
  options.port = 0;
  options.slab_bytes = slab_bytes;
  options.transport.transports = "tcp";
  auto server = StoreServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

// Stores s0, s1, ... at these addresses.
inline StoreMap MapAt(const std::vector<std::string>& addresses, uint64_t epoch = 1) {
  StoreMap map{.epoch = epoch, .stores = {}};
  for (size_t i = 0; i < addresses.size(); ++i) {
    map.stores.push_back({.id = absl::StrCat("s", i), .address = addresses[i]});
  }
  return map;
}

// What a broken memory does to a stored plane.
inline void Damage(Store& store, const PlaneId& id, size_t at) {
  const auto held = store.Acquire({&id, 1}, absl::Seconds(60));
  ASSERT_TRUE(held.ok() && held->planes[0].found);
  *reinterpret_cast<char*>(held->planes[0].address + at) ^= 4;
  ASSERT_TRUE(store.Release(held->id, 0, 0).ok());
}

// A root whose stores come in this order, of those that the map has.
inline pod::BlockKey RootOf(const StoreMap& map, const std::vector<size_t>& order) {
  for (uint64_t n = 0; n < 100000; ++n) {
    const pod::BlockKey root = TestKey(1000000 + n);
    if (map.Readers(GroupOf(root), map.stores.size()) == order) return root;
  }
  ADD_FAILURE() << "no such root";
  return {};
}

inline std::vector<PlaneId> IdsOf(std::span<const TestPlane> planes) {
  std::vector<PlaneId> ids;
  for (const TestPlane& p : planes) ids.push_back(p.id);
  return ids;
}
inline std::vector<pod::BlockKey> KeysOf(std::span<const TestPlane> planes) {
  std::vector<pod::BlockKey> keys;
  for (const TestPlane& p : planes) keys.push_back(p.id.key);
  return keys;
}
inline std::vector<pod::PlaneHeader> HeadersOf(std::span<const TestPlane> planes) {
  std::vector<pod::PlaneHeader> headers;
  for (const TestPlane& p : planes) headers.push_back(p.header);
  return headers;
}
// n planes of one kind, of blocks from `first` on.
inline std::vector<TestPlane> Planes(uint64_t first, size_t n, size_t bytes,
                                     pod::PlaneKind kind = pod::PlaneKind::kDistant) {
  std::vector<TestPlane> planes;
  for (size_t i = 0; i < n; ++i) planes.push_back(MakePlane(first + i, bytes + i * 13, kind));
  return planes;
}

inline absl::StatusOr<ShardedBatch> ReserveAndPut(ShardedStore& store, const pod::BlockKey& root,
                                                  std::span<const TestPlane> planes, int replicas = 0) {
  std::vector<PlaneRequest> requests;
  for (const TestPlane& p : planes) requests.push_back(p.request());
  auto batch = store.Reserve(root, requests, replicas);
  if (!batch.ok()) return batch;
  for (size_t i = 0; i < planes.size(); ++i) {
    const absl::Status put = batch->Put(i, 0, planes[i].payload);
    if (!put.ok()) return put;
  }
  return batch;
}
inline absl::Status WriteAll(ShardedStore& store, const pod::BlockKey& root, std::span<const TestPlane> planes,
                             int replicas = 0) {
  auto batch = ReserveAndPut(store, root, planes, replicas);
  if (!batch.ok()) return batch.status();
  auto statuses = batch->Commit(HeadersOf(planes));
  if (!statuses.ok()) return statuses.status();
  absl::Status first;
  for (const absl::Status& status : *statuses) first.Update(status);
  return first;
}

// Destinations for whole planes, and what came into them.
struct Memory {
  explicit Memory(std::span<const TestPlane> of) : planes(of) {
    for (const TestPlane& p : planes) bytes.emplace_back(p.payload.size());
  }
  std::vector<FetchRequest> requests() {
    std::vector<FetchRequest> out;
    for (size_t i = 0; i < planes.size(); ++i) out.push_back({.plane = i, .destination = bytes[i]});
    return out;
  }
  // Group s is section s of every plane (of MakePlane's two).
  std::vector<std::vector<FetchRequest>> groups() {
    std::vector<std::vector<FetchRequest>> out(2);
    for (size_t i = 0; i < planes.size(); ++i) {
      const size_t first = planes[i].header.sections[0].bytes;
      out[0].push_back(
          {.plane = i, .destination = std::span(bytes[i]).first(first), .first_section = 0, .sections = 1});
      out[1].push_back(
          {.plane = i, .destination = std::span(bytes[i]).subspan(first), .first_section = 1, .sections = 1});
    }
    return out;
  }
  bool right() const {
    for (size_t i = 0; i < planes.size(); ++i) {
      if (bytes[i] != planes[i].payload) return false;
    }
    return true;
  }

  std::span<const TestPlane> planes;
  std::vector<std::vector<std::byte>> bytes;
};

inline absl::Status ReadAll(ShardedStore& store, const pod::BlockKey& root, std::span<const TestPlane> planes) {
  auto lease = store.Acquire(root, IdsOf(planes));
  if (!lease.ok()) return lease.status();
  Memory memory(planes);
  for (const absl::Status& status : lease->Fetch(memory.requests())) {
    if (!status.ok()) return status;
  }
  return memory.right() ? absl::OkStatus() : absl::DataLossError("other bytes than were written");
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_STORE_CLUSTER_H_
