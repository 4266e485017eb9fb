#include "store/store_pair.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "kvstore/server.h"
#include "peers/fail.h"

namespace perigee::bench {
namespace {

// By which the client is one of the operator's own nodes. Both processes are this program, and end with it.
constexpr char kSecret[] = "the store benchmark's own secret";

// tcp beside shared memory, to notice a peer's death.
std::string UcxTransports(const std::string& transport) { return transport == "shm" ? "shm,tcp" : transport; }

kvstore::PlaneId IdOf(const pod::PlaneHeader& header) { return {header.key, header.kind}; }

void CheckAll(const std::vector<absl::Status>& statuses, const char* what) {
  for (const absl::Status& status : statuses) Check(status, what);
}

}  // namespace

Planes::Planes(size_t bytes) : payload_(bytes) {
  constexpr int kHeads = 8, kHeadDim = 128, kBlockTokens = 64;
  constexpr size_t kLayerBytes = size_t{2} * kHeads * kHeadDim * kBlockTokens * 2;
  const pod::KvShape shape = {
      .layers = static_cast<int>(bytes / kLayerBytes), .kv_heads = kHeads, .head_dim = kHeadDim};
  const pod::Plan plan = Check(pod::Plan::Identity(shape, pod::Window{}, Digest{}), "plan");
  const pod::Layout layout = Check(pod::Layout::Create(plan, kBlockTokens), "layout");
  if (layout.plane_bytes(pod::PlaneKind::kDistant) != bytes) Die(absl::StrCat("no plane has ", bytes, " bytes"));
  std::mt19937_64 random(bytes);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t word = random();
    std::memcpy(payload_.data() + i, &word, 8);
  }
  identity_ = {.tenant = "bench", .salt = "", .plan_id = plan.id(), .block_tokens = kBlockTokens};
  header_.kind = pod::PlaneKind::kDistant;
  header_.tenant = identity_.tenant;
  header_.plan_id = plan.id();
  header_.shape = shape;
  header_.block_tokens = header_.tokens = kBlockTokens;
  header_.payload_bytes = bytes;
  header_.sections = pod::SumSections(layout, header_.kind, payload_);
}

std::vector<pod::PlaneHeader> Planes::New(size_t count) {
  static int32_t next_token = 0;  // of all sizes: equal keys would be equal planes
  std::vector<pod::PlaneHeader> headers(count, header_);
  for (pod::PlaneHeader& header : headers) {
    const int32_t token = next_token++;
    header.key = header.root = pod::DeriveBlockKey(identity_, nullptr, {&token, 1});
  }
  return headers;
}

int ServeStore(const std::string& transports) {
  Check(InitLogging("store", "warn"), "log");
  kvstore::ServerOptions options;
  options.port = 0;
  options.slab_bytes = StorePair::kStoreBytes;
  options.transport.transports = transports;
  options.credentials = {{.secret = kSecret, .tenant = "", .trusted = true}};
  const auto server = Check(kvstore::StoreServer::Start(options), "store");
  std::printf("%s\n", server->address().c_str());
  std::fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) {
  }
  return 0;
}

StorePair::StorePair(const std::string& self, const std::string& transport)
    : server_({self, "--serve", UcxTransports(transport)}, PinnedProcessors().server) {
  PinThisThread(PinnedProcessors().initiator);  // and the threads of gRPC and of the transport with it
  const std::string address = server_.ReadLine();
  if (address.empty()) Die("the store did not start");
  engine_ = Check(transport::Context::Create({.transports = UcxTransports(transport)}), "transport");
  kvstore::ClientOptions options;
  options.secret = kSecret;
  client_ = Check(kvstore::StoreClient::Connect(address, engine_.get(), options), "connect");
  pool_ = Check(kvstore::RegisteredPool::Create(engine_.get(), 2 * kMaxBatchBytes), "pool");
  source_ = Check(pool_->Allocate(kMaxBatchBytes, kvstore::RegisteredPool::Contents::kUnspecified), "pool");
  buffers_ = Check(pool_->Allocate(kMaxBatchBytes, kvstore::RegisteredPool::Contents::kUnspecified), "pool");
}

void StorePair::SetPayload(std::span<const std::byte> payload) {
  std::memcpy(source_.get(), payload.data(), payload.size());
}

void StorePair::Put(std::span<const pod::PlaneHeader> headers, size_t batch) {
  for (size_t begin = 0; begin < headers.size(); begin += batch) {
    const auto some = headers.subspan(begin, std::min(batch, headers.size() - begin));
    std::vector<kvstore::PlaneRequest> requests;
    std::vector<kvstore::PutRange> ranges;
    for (const pod::PlaneHeader& header : some) {
      ranges.push_back({requests.size(), 0, {source_.get(), header.payload_bytes}});
      requests.push_back({IdOf(header), header.payload_bytes});
    }
    kvstore::WriteBatch planes = Check(client_->Reserve(requests), "reserve");
    Check(planes.Put(ranges), "put");
    CheckAll(Check(planes.Commit(some), "commit"), "commit");
  }
}

void StorePair::Get(std::span<const pod::PlaneHeader> headers, size_t batch) {
  for (size_t begin = 0; begin < headers.size(); begin += batch) {
    const auto some = headers.subspan(begin, std::min(batch, headers.size() - begin));
    std::vector<kvstore::PlaneId> ids;
    std::vector<kvstore::FetchRequest> requests;
    for (const pod::PlaneHeader& header : some) {
      std::byte* const to = buffers_.get() + ids.size() * header.payload_bytes;
      requests.push_back({.plane = ids.size(), .destination = {to, header.payload_bytes}});
      ids.push_back(IdOf(header));
    }
    kvstore::ReadLease lease = Check(client_->Acquire(ids), "acquire");
    CheckAll(lease.Fetch(requests), "fetch");
  }
}

std::span<const std::byte> StorePair::buffer(size_t place, size_t bytes) const {
  return {buffers_.get() + place * bytes, bytes};
}

void StorePair::Delete(std::span<const pod::PlaneHeader> headers) {
  std::vector<pod::BlockKey> keys;
  for (const pod::PlaneHeader& header : headers) keys.push_back(header.key);
  if (Check(client_->Delete(keys), "delete") != keys.size()) Die("the store had lost planes");
}

}  // namespace perigee::bench
