// The gRPC face of a Store: decodes, checks, calls, encodes. Thread-safe, as gRPC's threads call it.
#ifndef PERIGEE_KVSTORE_SERVICE_H_
#define PERIGEE_KVSTORE_SERVICE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kvstore/rebalance_stats.h"
#include "kvstore/sessions.h"
#include "kvstore/store.h"
#include "transport/context.h"

namespace grpc {
class Service;
}

namespace perigee::kvstore {

// Version 1 had no sessions.
inline constexpr uint32_t kProtocolVersionMin = 2;
inline constexpr uint32_t kProtocolVersion = 2;
// Where calls carry the session's token.
inline constexpr char kSessionMetadata[] = "perigee-session-bin";
// Of one control message, on both sides (proto/grpc_server.h has the same). A batch that would not fit must be split.
inline constexpr int kMaxMessageBytes = 64 << 20;

// What Hello tells.
struct DataPlane {
  uint64_t epoch = 0;
  std::string host;
  uint16_t port = 0;
  std::string remote_key;  // for trusted sessions
  std::string served_key;  // for the others
  // Opens the data plane's port to an address of a client that has been let in.
  std::function<absl::Status(const std::string& address)> admit = [](const std::string&) { return absl::OkStatus(); };
  std::function<void()> quiesce = [] {};  // see transport::Context::Quiesce
  // See transport::MemoryRegion.
  std::function<void(std::span<const std::byte>)> forget_puts = [](std::span<const std::byte>) {};
  std::function<size_t(std::span<const std::byte>)> unsummed_bytes = [](auto bytes) { return bytes.size(); };
  // What the store's mover is at, with the map of stores that it goes by; nullopt without one.
  std::function<std::optional<RebalanceStats>()> rebalance = [] { return std::nullopt; };
  uint64_t slab_address = 0;
  uint64_t slab_bytes = 0;
};

struct StoreService {
  std::unique_ptr<grpc::Service> grpc;
  // For messages with kQuickCallId (kvstore/quick_calls.h). Not after `grpc` is gone.
  transport::MessageHandler quick;
};

// store and sessions must outlive the service.
StoreService MakeStoreService(Store* store, SessionTable* sessions, const DataPlane& data_plane);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SERVICE_H_
