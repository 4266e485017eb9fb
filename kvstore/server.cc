#include "kvstore/server.h"

#include <grpcpp/impl/service_type.h>

#include <algorithm>
#include <limits>
#include <thread>

#include "absl/random/random.h"
#include "absl/synchronization/notification.h"
#include "base/status.h"
#include "kvstore/quick_calls.h"
#include "kvstore/service.h"
#include "proto/grpc_server.h"
#include "spdlog/spdlog.h"

namespace perigee::kvstore {

// In the order in which things must come up; they go down in the opposite one.
struct StoreServer::Parts {
  ServerOptions options;
  uint64_t epoch = 0;
  std::string address;
  std::unique_ptr<transport::Context> engine;
  transport::MemoryRegion slab;
  std::unique_ptr<Store> store;
  std::unique_ptr<SessionTable> sessions;
  transport::Listener listener;
  std::unique_ptr<Rebalancer> rebalancer;
  StoreService service;
  std::unique_ptr<GrpcServer> server;
  absl::Notification stop;
  std::thread reaper;
};

namespace {

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "::" || host == "[::]"; }

}  // namespace

absl::StatusOr<std::unique_ptr<StoreServer>> StoreServer::Start(const ServerOptions& options) {
  if (options.directory != nullptr && options.store_id.empty()) {
    return absl::InvalidArgumentError("a store that knows others needs a name among them: give it a store_id");
  }
  auto parts = std::make_unique<Parts>();
  Parts& p = *parts;
  p.options = options;
  p.epoch = absl::Uniform<uint64_t>(absl::BitGen(), 1, std::numeric_limits<uint64_t>::max());
  transport::Options transport = options.transport;
  transport.guarded = true;                              // Hello admits who may come.
  transport.spin_us = std::max(transport.spin_us, 100);  // its processors have little else to do
  PERIGEE_ASSIGN_OR_RETURN(p.engine, transport::Context::Create(transport));
  PERIGEE_ASSIGN_OR_RETURN(p.slab, p.engine->AllocateMemory(options.slab_bytes, transport::Sharing::kLeased));
  StoreOptions store = options.store;
  store.before_reclaim = [&p](std::span<const StoreOptions::Reclaimed> reclaimed) {
    std::vector<std::span<const std::byte>> ranges;
    for (const StoreOptions::Reclaimed& gone : reclaimed) {
      p.sessions->Revoke(gone.reservation_id);
      ranges.push_back(gone.memory);
    }
    const absl::Status status = p.engine->CutOffPuts(ranges);
    if (!status.ok()) spdlog::warn("store: overdue reservations: {}", std::string(status.message()));
    return status.ok();
  };
  store.sum_of_puts = [&p](std::span<const std::byte> bytes) { return p.slab.SumOfPuts(bytes); };
  PERIGEE_ASSIGN_OR_RETURN(p.store, Store::Open(std::move(store), p.slab.bytes()));
  p.sessions =
      std::make_unique<SessionTable>(options.credentials, &p.engine->grants(),
                                     [engine = p.engine.get()](const std::string& host) { engine->Dismiss(host); });
  PERIGEE_ASSIGN_OR_RETURN(p.listener, p.engine->Listen(options.host, options.data_port,
                                                        [sessions = p.sessions.get()](absl::string_view token,
                                                                                      absl::string_view context_id) {
                                                          return sessions->Authenticate(token, context_id);
                                                        }));

  if (options.directory != nullptr) {
    p.rebalancer = std::make_unique<Rebalancer>(p.store.get(), options.store_id, options.directory, p.engine.get(),
                                                options.rebalancer);
  }
  DataPlane data{.epoch = p.epoch,
                 .host = options.advertise_host,
                 .port = p.listener.port(),
                 .remote_key = p.slab.remote_key(),
                 .served_key = p.slab.served_key(),
                 .admit = [engine = p.engine.get()](const std::string& address) { return engine->Admit(address); },
                 .quiesce = [engine = p.engine.get()] { engine->Quiesce(); },
                 .forget_puts = [&p](std::span<const std::byte> bytes) { p.slab.ForgetPuts(bytes); },
                 .unsummed_bytes = [&p](std::span<const std::byte> bytes) { return p.slab.UnsummedBytes(bytes); },
                 .rebalance = [&p] { return p.rebalancer ? std::optional(p.rebalancer->Progress()) : std::nullopt; },
                 .slab_address = p.slab.address(),
                 .slab_bytes = p.slab.size_bytes()};
  p.service = MakeStoreService(p.store.get(), p.sessions.get(), data);
  p.engine->SetHandler(kQuickCallId, p.service.quick);

  std::vector<grpc::Service*> services = options.more_services;
  services.push_back(p.service.grpc.get());
  PERIGEE_ASSIGN_OR_RETURN(p.server, GrpcServer::Start(absl::StrCat(options.host, ":", options.port), services));
  p.reaper = std::thread([&p] {
    while (!p.stop.WaitForNotificationWithTimeout(absl::Milliseconds(200))) {
      p.store->ReapExpired();
      p.sessions->Reap(2 * p.store->max_ttl());
    }
  });
  const std::string& bound = p.server->address();
  p.address = IsWildcard(options.host) ? absl::StrCat("127.0.0.1", bound.substr(bound.rfind(':'))) : bound;
  return std::unique_ptr<StoreServer>(new StoreServer(std::move(parts)));
}

StoreServer::StoreServer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
StoreServer::~StoreServer() { Shutdown(); }

void StoreServer::Shutdown() {
  Parts& p = *parts_;
  if (p.server == nullptr) return;
  if (p.rebalancer) p.rebalancer->Stop();  // while what it reads and writes is there
  p.store->events().Close();               // nobody waits any more
  p.server->Stop(absl::Seconds(1));
  p.server.reset();
  p.stop.Notify();
  p.reaper.join();
  p.rebalancer.reset();
  p.listener = transport::Listener();
  p.engine.reset();  // Ends the peers' one-sided access before the memory goes.
  p.service = {};
  p.store.reset();
}

std::string StoreServer::address() const { return parts_->address; }
uint64_t StoreServer::epoch() const { return parts_->epoch; }
std::optional<RebalanceStats> StoreServer::rebalance() const {
  return parts_->rebalancer ? std::optional(parts_->rebalancer->Progress()) : std::nullopt;
}
Store& StoreServer::store() { return *parts_->store; }

}  // namespace perigee::kvstore
