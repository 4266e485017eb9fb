#include "transport/context.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "transport/core.h"

namespace perigee::transport {
namespace {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

absl::StatusOr<SocketAddress> Resolve(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    const std::string message = absl::StrCat("resolve '", host, "': ", gai_strerror(error));
    return error == EAI_AGAIN ? absl::UnavailableError(message) : absl::InvalidArgumentError(message);
  }
  SocketAddress address;
  // IPv4 first: "localhost" often names ::1 first although servers listen on 127.0.0.1.
  const addrinfo* chosen = found;
  for (const addrinfo* it = found; it != nullptr; it = it->ai_next) {
    if (it->ai_family == AF_INET) {
      chosen = it;
      break;
    }
  }
  address.length = chosen->ai_addrlen;
  std::memcpy(&address.storage, chosen->ai_addr, chosen->ai_addrlen);
  freeaddrinfo(found);
  return address;
}

}  // namespace

void internal::ListenerState::Close() {
  if (handle == nullptr) return;
  auto close = [this] {
    core->CloseListener(handle);
    return absl::OkStatus();
  };
  core->Run(close).IgnoreError();  // after shutdown it is closed already
  handle = nullptr;
}

Listener& Listener::operator=(Listener&& other) noexcept {
  if (this != &other) {
    if (state_ != nullptr) state_->Close();
    state_ = std::move(other.state_);
  }
  return *this;
}

Listener::~Listener() {
  if (state_ != nullptr) state_->Close();
}

uint16_t Listener::port() const { return state_ == nullptr ? 0 : state_->port; }

absl::StatusOr<std::unique_ptr<Context>> Context::Create(const Options& options) {
  if (options.spin_us < 0 || options.spin_us > 1000000) {
    return absl::InvalidArgumentError(absl::StrCat("spin_us is ", options.spin_us, "; use 0 to 1000000"));
  }
  PERIGEE_ASSIGN_OR_RETURN(auto core, internal::Core::Create(options));
  return std::unique_ptr<Context>(new Context(std::move(core)));
}

Context::~Context() { core_->Shutdown(); }

absl::StatusOr<MemoryRegion> Context::RegisterMemory(std::span<std::byte> memory) {
  if (memory.empty()) return absl::InvalidArgumentError("cannot register an empty region");
  auto region = std::make_shared<internal::Region>();
  region->core = core_;
  region->base = memory.data();
  region->size = memory.size();
  PERIGEE_RETURN_IF_ERROR(core_->Run([&] { return core_->Map(region.get(), /*allocate=*/false); }));
  return MemoryRegion(std::move(region));
}

namespace {

// What /proc/meminfo calls MemAvailable.
uint64_t AvailableMemoryBytes() {
  uint64_t bytes = UINT64_MAX;
  if (const absl::StatusOr<std::string> info = ReadFile("/proc/meminfo"); info.ok()) {
    uint64_t kib = 0;
    const size_t at = info->find("MemAvailable:");
    if (at != std::string::npos && std::sscanf(info->c_str() + at, "MemAvailable: %" SCNu64, &kib) == 1)
      bytes = kib * 1024;
  }
  return bytes;
}

}  // namespace

absl::StatusOr<MemoryRegion> Context::AllocateMemory(size_t size_bytes) {
  if (size_bytes == 0) return absl::InvalidArgumentError("cannot allocate an empty region");
  // UCX takes shared memory page by page and finds out at the end that it does not suffice, with the machine's memory
  // gone and the segment left behind. So ask first.
  const uint64_t available_bytes = AvailableMemoryBytes();
  if (size_bytes > available_bytes / 10 * 9) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", size_bytes,
                                                     " bytes of transfer memory: ", available_bytes,
                                                     " bytes are available on this machine; ask for less"));
  }
  auto region = std::make_shared<internal::Region>();
  region->core = core_;
  region->size = size_bytes;
  PERIGEE_RETURN_IF_ERROR(core_->Run([&] { return core_->Map(region.get(), /*allocate=*/true); }));
  return MemoryRegion(std::move(region));
}

absl::StatusOr<Listener> Context::Listen(const std::string& host, uint16_t port) {
  PERIGEE_ASSIGN_OR_RETURN(const SocketAddress address, Resolve(host, port));
  auto state = std::make_shared<internal::ListenerState>();
  state->core = core_;
  absl::Status status = core_->Run([&]() -> absl::Status {
    ucp_listener_params_t params{};
    params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR;
    params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address.storage);
    params.sockaddr.addrlen = address.length;
    PERIGEE_ASSIGN_OR_RETURN(state->handle, core_->OpenListener(params));
    ucp_listener_attr_t attr{};
    attr.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
    const ucs_status_t query = ucp_listener_query(state->handle, &attr);
    if (query != UCS_OK) return internal::UcxError("ask for the listener's port", query);
    state->port = ntohs(attr.sockaddr.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(attr.sockaddr).sin6_port
                                                            : reinterpret_cast<sockaddr_in&>(attr.sockaddr).sin_port);
    return absl::OkStatus();
  });
  if (absl::IsAlreadyExists(status)) {
    return absl::AlreadyExistsError(absl::StrCat("port ", port, " on ", host,
                                                 " is in use; stop the other program or choose another port (0: any)"));
  }
  if (!status.ok()) {
    state->Close();
    return Annotate(status, absl::StrCat("listen on ", host, ":", port));
  }
  return Listener(std::move(state));
}

absl::StatusOr<Endpoint> Context::Connect(const std::string& host, uint16_t port, absl::Time deadline) {
  if (core_->OnThread()) return absl::FailedPreconditionError("Connect cannot be called from a message handler");
  if (port == 0) return absl::InvalidArgumentError(absl::StrCat("cannot connect to port 0 of ", host));
  PERIGEE_ASSIGN_OR_RETURN(const SocketAddress address, Resolve(host, port));
  std::shared_ptr<internal::Peer> endpoint;
  const std::string name = absl::StrCat(host, ":", port);
  PERIGEE_RETURN_IF_ERROR(core_->Run([&]() -> absl::Status {
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
    params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
    params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address.storage);
    params.sockaddr.addrlen = address.length;
    PERIGEE_ASSIGN_OR_RETURN(endpoint, core_->OpenEndpoint(params, name, /*accepted=*/false));
    return absl::OkStatus();
  }));
  Endpoint connection(endpoint);
  // UCX connects lazily; the first answer proves that an engine of ours listens, and tells which.
  const absl::StatusOr<std::string> hello = connection.Call(internal::kHelloId, "", "", deadline);
  PERIGEE_RETURN_IF_ERROR(Annotate(hello.status(), absl::StrCat("connect to ", name)));
  PERIGEE_RETURN_IF_ERROR(core_->Run([&] { return core_->LearnPeer(endpoint.get(), *hello); }));
  core_->counters.connections_opened++;
  return connection;
}

absl::Status Context::SetHandler(uint16_t id, MessageHandler handler) {
  if (id >= internal::kFirstReservedId) {
    return absl::InvalidArgumentError(
        absl::StrCat("message id ", id, " is reserved; use less than ", internal::kFirstReservedId));
  }
  return core_->Run([&] {
    core_->SetHandler(id, std::move(handler));
    return absl::OkStatus();
  });
}

ContextStats Context::Stats() const {
  const internal::Counters& counters = core_->counters;
  ContextStats stats;
  stats.put_bytes = counters.put_bytes;
  stats.get_bytes = counters.get_bytes;
  stats.put_transfers = counters.put_transfers;
  stats.get_transfers = counters.get_transfers;
  stats.messages_sent = counters.messages_sent;
  stats.messages_received = counters.messages_received;
  stats.failed_batches = counters.failed_batches;
  stats.connections_opened = counters.connections_opened;
  stats.connections_accepted = counters.connections_accepted;
  stats.connections_failed = counters.connections_failed;
  return stats;
}

}  // namespace perigee::transport
