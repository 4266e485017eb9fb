// A store of ours in a process of its own and a client of it, as a node and its store are: trusted, memory only,
// checksums on. What the store rows measure.
#ifndef PERIGEE_BENCH_STORE_STORE_PAIR_H_
#define PERIGEE_BENCH_STORE_STORE_PAIR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvstore/client.h"
#include "kvstore/registered_pool.h"
#include "peers/children.h"
#include "pod/layout.h"
#include "pod/plane_header.h"

namespace perigee::bench {

// Distant planes of one size, with true headers: 64 tokens, 8 kv heads of 128 elements, bf16, and as many layers as
// make up the size. They differ in their keys; the payload is one.
class Planes {
 public:
  explicit Planes(size_t bytes);  // a multiple of 256 KiB
  size_t bytes() const { return payload_.size(); }
  std::span<const std::byte> payload() const { return payload_; }
  // So many that nobody has seen before.
  std::vector<pod::PlaneHeader> New(size_t count);

 private:
  std::vector<std::byte> payload_;
  pod::PlaneHeader header_;
  pod::Identity identity_;
};

// The serving process's main: a store on the given UCX transports; ends with its standard input.
int ServeStore(const std::string& transports);

// Not thread-safe. Ends the program where the store fails.
class StorePair {
 public:
  static constexpr size_t kStoreBytes = size_t{1} << 30;
  static constexpr size_t kMaxBatchBytes = size_t{256} << 20;  // of one batch's planes together

  // `self`: this program, which calls ServeStore for "--serve TRANSPORTS". transport: "tcp" or "shm". The calling
  // thread is pinned from now on.
  StorePair(const std::string& self, const std::string& transport);

  // What Put stores under every key from now on: a copy in registered memory, as a node's planes are.
  void SetPayload(std::span<const std::byte> payload);
  // Stores all, `batch` planes with each Reserve and Commit, one batch after another.
  void Put(std::span<const pod::PlaneHeader> headers, size_t batch);
  // Fetches all into memory of this process, checked, `batch` planes with each Acquire; place i of a batch lands in
  // buffer i.
  void Get(std::span<const pod::PlaneHeader> headers, size_t batch);
  std::span<const std::byte> buffer(size_t place, size_t bytes) const;
  void Delete(std::span<const pod::PlaneHeader> headers);
  // CPU seconds of both processes so far.
  double CpuSeconds() const { return OwnCpuSeconds() + server_.CpuSeconds(); }

 private:
  Child server_;
  std::unique_ptr<transport::Context> engine_;
  std::unique_ptr<kvstore::StoreClient> client_;
  std::unique_ptr<kvstore::RegisteredPool> pool_;
  std::shared_ptr<std::byte[]> source_, buffers_;
};

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_STORE_STORE_PAIR_H_
