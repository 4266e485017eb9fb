// A whole store in one object: slab, core, data plane and control plane.
#ifndef PERIGEE_KVSTORE_SERVER_H_
#define PERIGEE_KVSTORE_SERVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/placement.h"
#include "kvstore/rebalancer.h"
#include "kvstore/sessions.h"
#include "kvstore/store.h"
#include "transport/context.h"

namespace grpc {
class Service;
}

namespace perigee::kvstore {

struct ServerOptions {
  std::string host = "127.0.0.1";  // Of both planes; "0.0.0.0" for all addresses.
  uint16_t port = 7100;            // gRPC; 0 takes a free one.
  uint16_t data_port = 0;          // UCX; 0 takes a free one (clients learn it).
  std::string advertise_host;      // What clients connect to for data; empty: the host under which they reached gRPC.
  uint64_t slab_bytes = uint64_t{1} << 30;
  transport::Options transport;
  StoreOptions store;
  // Who may talk to this store. Empty: everybody, and nobody is trusted, so that all transfers go by messages.
  std::vector<Credential> credentials;
  // The stores among which planes are placed, and this one's name among them. Null: it knows no others, and moves
  // nothing.
  std::shared_ptr<const StoreDirectory> directory;
  std::string store_id;
  RebalancerOptions rebalancer;
  // Served beside the store's own. The caller's; they outlive the server.
  std::vector<grpc::Service*> more_services;
};

// Any thread may call. Destruction shuts down.
class StoreServer {
 public:
  // INVALID_ARGUMENT for a directory without a store_id, ALREADY_EXISTS when a port is taken, FAILED_PRECONDITION when
  // another process has the data folder, RESOURCE_EXHAUSTED when there is not that much memory.
  static absl::StatusOr<std::unique_ptr<StoreServer>> Start(const ServerOptions& options);
  ~StoreServer();

  // Ends the control plane (calls under way get a second), then the data plane. What was committed with SYNCED stays.
  void Shutdown();

  // "host:port" of the control plane, with the port in use; a wildcard host becomes 127.0.0.1. Stays after Shutdown.
  std::string address() const;
  uint64_t epoch() const;
  Store& store();  // Not after Shutdown.
  // nullopt without a directory.
  std::optional<RebalanceStats> rebalance() const;

 private:
  struct Parts;
  explicit StoreServer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SERVER_H_
