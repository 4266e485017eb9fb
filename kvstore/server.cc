#include "kvstore/server.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <limits>
#include <thread>

#include "absl/random/random.h"
#include "absl/synchronization/notification.h"
#include "base/status.h"
#include "kvstore/service.h"

namespace perigee::kvstore {

// In the order in which things must come up; they go down in the opposite one.
struct StoreServer::Parts {
  ServerOptions options;
  uint64_t epoch = 0;
  int port = 0;
  std::unique_ptr<transport::Engine> engine;
  transport::MemoryRegion slab;
  std::unique_ptr<Store> store;
  transport::Listener listener;
  std::unique_ptr<grpc::Service> service;
  std::unique_ptr<grpc::Server> server;
  absl::Notification stop;
  std::thread reaper;
};

namespace {

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "::" || host == "[::]"; }

}  // namespace

absl::StatusOr<std::unique_ptr<StoreServer>> StoreServer::Start(const ServerOptions& options) {
  auto parts = std::make_unique<Parts>();
  Parts& p = *parts;
  p.options = options;
  p.epoch = absl::Uniform<uint64_t>(absl::BitGen(), 1, std::numeric_limits<uint64_t>::max());
  PERIGEE_ASSIGN_OR_RETURN(p.engine, transport::Engine::Create(options.transport));
  PERIGEE_ASSIGN_OR_RETURN(p.slab, p.engine->AllocateMemory(options.slab_bytes));
  PERIGEE_ASSIGN_OR_RETURN(p.store, Store::Open(options.store, p.slab.bytes()));
  PERIGEE_ASSIGN_OR_RETURN(p.listener, p.engine->Listen(options.host, options.data_port));

  DataPlane data{.epoch = p.epoch,
                 .host = options.advertise_host,
                 .port = p.listener.port(),
                 .remote_key = p.slab.remote_key(),
                 .slab_address = p.slab.address(),
                 .slab_bytes = p.slab.size_bytes()};
  p.service = MakeStoreService(p.store.get(), data);

  const std::string address = absl::StrCat(options.host, ":", options.port);
  grpc::ServerBuilder builder;
  // gRPC would let two processes share a port, and each client would reach one of them by chance.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &p.port);
  builder.RegisterService(p.service.get());
  p.server = builder.BuildAndStart();
  if (p.server == nullptr || p.port == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on ", address, ": the port is taken or the host is not this machine's; choose another"));
  }
  p.reaper = std::thread([&p] {
    while (!p.stop.WaitForNotificationWithTimeout(absl::Milliseconds(200))) p.store->ReapExpired();
  });
  return std::unique_ptr<StoreServer>(new StoreServer(std::move(parts)));
}

StoreServer::StoreServer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
StoreServer::~StoreServer() { Shutdown(); }

void StoreServer::Shutdown() {
  Parts& p = *parts_;
  if (p.server == nullptr) return;
  p.server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  p.server->Wait();
  p.server.reset();
  p.stop.Notify();
  p.reaper.join();
  p.listener = transport::Listener();
  p.engine.reset();  // Ends the peers' one-sided access before the memory goes.
  p.service.reset();
  p.store.reset();
}

std::string StoreServer::address() const {
  const Parts& p = *parts_;
  return absl::StrCat(IsWildcard(p.options.host) ? "127.0.0.1" : p.options.host, ":", p.port);
}
uint16_t StoreServer::port() const { return static_cast<uint16_t>(parts_->port); }
uint64_t StoreServer::epoch() const { return parts_->epoch; }
Store& StoreServer::store() { return *parts_->store; }

}  // namespace perigee::kvstore
