#include "transport/context.h"

#include <sys/resource.h>

#include <cinttypes>
#include <cstdio>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "transport/address.h"
#include "transport/core.h"

namespace perigee::transport {
namespace {

using internal::Core;
using internal::Link;
using internal::Peer;
using internal::RailAddress;
using internal::Region;
using internal::Shared;
using internal::SocketAddress;

}  // namespace

internal::ListenerState::~ListenerState() {
  {
    std::lock_guard<std::mutex> lock(shared->mutex);
    if (authenticates != 0 && authenticates == shared->authenticators) shared->authenticator = nullptr;
  }
  for (size_t i = 0; i < handles.size(); ++i) {
    Core* rail = shared->rails[i].get();
    if (shared->stopped) continue;  // closed already
    rail->CloseDoors(sockets[i]);
    rail->Run([&] {
          rail->CloseListener(handles[i]);
          return absl::OkStatus();
        })
        .IgnoreError();
  }
}

Listener& Listener::operator=(Listener&& other) noexcept = default;
Listener::~Listener() = default;
uint16_t Listener::port() const { return state_ == nullptr ? 0 : state_->port; }

absl::StatusOr<std::unique_ptr<Context>> Context::Create(const Options& options) {
  if (options.spin_us < 0 || options.spin_us > 1000000) {
    return absl::InvalidArgumentError(absl::StrCat("spin_us is ", options.spin_us, "; use 0 to 1000000"));
  }
  if (options.keepalive < absl::Milliseconds(10)) {
    return absl::InvalidArgumentError(
        absl::StrCat("keepalive is ", absl::FormatDuration(options.keepalive), "; use 10ms or more"));
  }
  auto shared = std::make_shared<Shared>(options);
  const absl::Status status = shared->Init();
  std::unique_ptr<Context> context(new Context(std::move(shared)));
  PERIGEE_RETURN_IF_ERROR(status);
  // This machine's other processes may come from any of its addresses.
  if (options.guarded) {
    for (const std::string& address : LocalAddresses()) PERIGEE_RETURN_IF_ERROR(context->Admit(address));
  }
  return context;
}

Context::~Context() {
  shared_->stopped = true;
  for (const std::shared_ptr<Core>& rail : shared_->rails) rail->Shutdown();
}

absl::string_view Context::id() const {
  return {reinterpret_cast<const char*>(shared_->id.data()), shared_->id.size()};
}

absl::Status Context::Admit(const std::string& address) const {
  PERIGEE_ASSIGN_OR_RETURN(const SocketAddress parsed, internal::ParseAddress(address, 0));
  return shared_->guard.Admit(parsed.storage);
}

void Context::Dismiss(const std::string& address) const {
  const absl::StatusOr<SocketAddress> parsed = internal::ParseAddress(address, 0);
  if (parsed.ok()) shared_->guard.Dismiss(parsed->storage);
}

GrantTable& Context::grants() const { return shared_->grants; }

void Context::Quiesce() const {
  // Whoever gets the role is in nobody's middle.
  for (const std::shared_ptr<Core>& rail : shared_->rails) rail->Run([] { return absl::OkStatus(); }).IgnoreError();
}

Capabilities Context::GetCapabilities() const {
  Capabilities capabilities;
  capabilities.memory = {MemoryKind::kHost};
  for (const std::shared_ptr<Core>& rail : shared_->rails) {
    for (std::string& name : rail->TransportNames()) {
      capabilities.shared_memory |= absl::StartsWith(name, "posix/") || absl::StartsWith(name, "sysv/");
      capabilities.one_sided |= absl::StartsWith(name, "rc_") || absl::StartsWith(name, "dc_");
      capabilities.transports.push_back(std::move(name));
    }
  }
  if (shared_->options.device != nullptr) {
    capabilities.memory.push_back(MemoryKind::kPinnedHost);
    capabilities.memory.push_back(MemoryKind::kDevice);
    capabilities.device_direct = shared_->rails[0]->UcxKnowsDevices();
  }
  capabilities.max_registration_bytes = UINT64_MAX;
  rlimit limit{};
  if (capabilities.one_sided && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    capabilities.max_registration_bytes = limit.rlim_cur;
  }
  capabilities.protocol_min = internal::kProtocolMin;
  capabilities.protocol_max = internal::kProtocolMax;
  return capabilities;
}

// ---- Memory ----

namespace {

// Returns when no such transfer is under way any more; false when `until` comes first.
bool CutOff(const Shared& shared, absl::FunctionRef<bool(const internal::Serve&)> such, absl::string_view why,
            absl::Time until) {
  for (const std::shared_ptr<Core>& rail : shared.rails) {
    // A message handler cannot wait for what only its own thread can end: what is under way keeps the registration.
    const bool in_handler = rail->Driving();
    const auto cut = [&] { return rail->CutOff(such, why) ? absl::UnavailableError("busy") : absl::OkStatus(); };
    while (absl::IsUnavailable(rail->Run(cut)) && !in_handler) {
      if (absl::Now() > until) return false;
      // Ends when UCX has closed those connections: microseconds, mostly.
      rail->Drive([] { return false; }, absl::Now() + absl::Milliseconds(1));
      std::this_thread::yield();
    }
  }
  return true;
}

// What a MemoryRegion holds: when it goes, peers no longer find the region, and nothing is under way in it.
struct RegionOwner {
  std::shared_ptr<Region> region;

  explicit RegionOwner(std::shared_ptr<Region> owned) : region(std::move(owned)) {}
  RegionOwner(const RegionOwner&) = delete;
  RegionOwner& operator=(const RegionOwner&) = delete;
  ~RegionOwner() {
    Shared& shared = *region->shared;
    {
      std::lock_guard<std::mutex> lock(shared.mutex);
      shared.regions.erase(region->id);
    }
    CutOff(
        shared, [this](const internal::Serve& serve) { return serve.region == region; }, "the region was unregistered",
        absl::InfiniteFuture());
  }
};

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

namespace internal {

// Registers with the first rail, where UCX needs that, and with all rails' table of regions.
absl::StatusOr<std::shared_ptr<Region>> MakeRegion(const std::shared_ptr<Shared>& shared, std::byte* base, size_t size,
                                                   MemoryKind kind, Sharing sharing) {
  auto region = std::make_shared<Region>();
  region->shared = shared;
  region->rail = shared->rails[0];
  region->base = base;
  region->size = size;
  region->kind = kind;
  region->sharing = sharing;
  PERIGEE_ASSIGN_OR_RETURN(region->id, RandomNumber());
  PackedKey key;
  key.context_id = shared->id;
  key.region_id = region->id;
  if (kind != MemoryKind::kDevice) {
    PERIGEE_RETURN_IF_ERROR(region->rail->Run([&]() -> absl::Status {
      PERIGEE_RETURN_IF_ERROR(region->rail->Map(region.get(), base == nullptr));
      return region->rail->PackKey(region.get(), &key.ucx_key);
    }));
  }
  if (sharing == Sharing::kLeased && kind != MemoryKind::kDevice) {
    region->sums = std::make_unique<PutSums>(std::span(region->base, region->size));
  }
  key.base = reinterpret_cast<uint64_t>(region->base);
  key.size_bytes = region->size;
  region->remote_key = EncodeRemoteKey(key);
  key.ucx_key.clear();
  region->served_key = EncodeRemoteKey(key);
  {
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->regions[region->id] = region;
  }
  auto owner = std::make_shared<RegionOwner>(region);
  return std::shared_ptr<Region>(owner, region.get());
}

}  // namespace internal

absl::StatusOr<MemoryRegion> Context::RegisterMemory(std::span<std::byte> memory, MemoryKind kind, Sharing sharing) {
  if (memory.empty()) return absl::InvalidArgumentError("cannot register an empty region");
  const bool device = shared_->IsDevice(memory.data());
  if (kind == MemoryKind::kDevice && !device) {
    return absl::InvalidArgumentError(shared_->options.device == nullptr
                                          ? "device memory needs a device: set Options::device"
                                          : "the memory is not the device's");
  }
  if (kind != MemoryKind::kDevice && device) {
    return absl::InvalidArgumentError("the memory is a device's; register it as MemoryKind::kDevice");
  }
  PERIGEE_ASSIGN_OR_RETURN(auto region, internal::MakeRegion(shared_, memory.data(), memory.size(), kind, sharing));
  return MemoryRegion(std::move(region));
}

absl::StatusOr<MemoryRegion> Context::AllocateMemory(size_t size_bytes, Sharing sharing) {
  if (size_bytes == 0) return absl::InvalidArgumentError("cannot allocate an empty region");
  // UCX takes shared memory page by page and finds out at the end that it does not suffice, with the machine's memory
  // gone and the segment left behind. So ask first.
  const uint64_t available_bytes = AvailableMemoryBytes();
  if (size_bytes > available_bytes / 10 * 9) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", size_bytes,
                                                     " bytes of transfer memory: ", available_bytes,
                                                     " bytes are available on this machine; ask for less"));
  }
  PERIGEE_ASSIGN_OR_RETURN(auto region, internal::MakeRegion(shared_, nullptr, size_bytes, MemoryKind::kHost, sharing));
  return MemoryRegion(std::move(region));
}

absl::Status Context::CutOffPuts(std::span<const std::span<const std::byte>> ranges) const {
  const auto overlaps = [&](const internal::WirePiece& piece) {
    return std::any_of(ranges.begin(), ranges.end(), [&](std::span<const std::byte> range) {
      const uint64_t begin = reinterpret_cast<uint64_t>(range.data());
      return piece.address < begin + range.size() && begin < piece.address + piece.size;
    });
  };
  const auto such = [&](const internal::Serve& serve) {
    return serve.put && serve.region != nullptr && serve.slot == nullptr &&
           std::any_of(serve.pieces.begin(), serve.pieces.end(), overlaps);
  };
  constexpr absl::Duration kLimit = absl::Seconds(5);
  if (CutOff(*shared_, such, "its put took longer than its reservation", absl::Now() + kLimit)) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("a put was not let go of within ", absl::FormatDuration(kLimit), "; try again"));
}

// ---- Connections ----

absl::StatusOr<Listener> Context::Listen(const std::string& host, uint16_t port, Authenticator authenticator) {
  if (!authenticator) return absl::InvalidArgumentError("a listener needs an authenticator");
  PERIGEE_ASSIGN_OR_RETURN(const SocketAddress address, internal::ResolveAddress(host, port));
  auto state = std::make_shared<internal::ListenerState>();
  state->shared = shared_;
  std::vector<RailAddress> further;
  for (size_t i = 0; i < shared_->rails.size(); ++i) {
    Core* rail = shared_->rails[i].get();
    SocketAddress bind = address;
    if (i > 0) {
      PERIGEE_ASSIGN_OR_RETURN(const std::string device_host, internal::DeviceAddress(shared_->options.devices[i]));
      PERIGEE_ASSIGN_OR_RETURN(bind, internal::ParseAddress(device_host, 0));
    }
    RailAddress bound;
    const absl::Status status = rail->Run([&]() -> absl::Status {
      const std::set<int> before = internal::PortGuard::ListeningSockets();
      PERIGEE_ASSIGN_OR_RETURN(ucp_listener_h handle, rail->OpenListener(bind.get(), bind.length, &bound));
      state->handles.push_back(handle);
      state->sockets.push_back(internal::PortGuard::ListeningSockets());
      for (const int socket : before) state->sockets.back().erase(socket);
      return shared_->guard.Adopt(before);
    });
    if (absl::IsAlreadyExists(status)) {
      return absl::AlreadyExistsError(absl::StrCat(
          "port ", port, " on ", host, " is in use; stop the other program or choose another port (0: any)"));
    }
    PERIGEE_RETURN_IF_ERROR(Annotate(status, absl::StrCat("listen on ", host, ":", port, ", rail ", i)));
    i == 0 ? void(state->port = bound.port) : further.push_back(bound);
  }
  std::lock_guard<std::mutex> lock(shared_->mutex);
  shared_->authenticator = std::move(authenticator);
  state->authenticates = ++shared_->authenticators;
  shared_->rail_addresses = std::move(further);
  return Listener(std::move(state));
}

absl::StatusOr<Endpoint> Context::Connect(const std::string& host, uint16_t port, absl::Time deadline,
                                          absl::string_view token) {
  for (const std::shared_ptr<Core>& rail : shared_->rails) {
    if (rail->Driving()) return absl::FailedPreconditionError("Connect cannot be called from a message handler");
  }
  if (port == 0) return absl::InvalidArgumentError(absl::StrCat("cannot connect to port 0 of ", host));
  PERIGEE_ASSIGN_OR_RETURN(const SocketAddress address, internal::ResolveAddress(host, port));
  PERIGEE_RETURN_IF_ERROR(shared_->guard.Admit(address.storage));
  auto link = std::make_shared<Link>();
  link->shared = shared_;
  link->name = absl::StrCat(host, ":", port);
  link->token = std::string(token);
  link->addresses.push_back({internal::AddressHost(address.storage), port});
  Endpoint endpoint(link);  // closes what was opened if the rest fails

  // UCX connects lazily; the answer to the hello proves that a context of ours listens.
  const auto greet = [&](size_t i, const SocketAddress& to, absl::Time until) -> absl::Status {
    Core* rail = shared_->rails[i].get();
    std::shared_ptr<Peer> peer;
    PERIGEE_RETURN_IF_ERROR(rail->Run([&]() -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(peer, rail->Greet(link, to.get(), to.length, link->name));
      return absl::OkStatus();
    }));
    if (rail->Wait(peer->hello_done, until)) return peer->hello_status;
    const absl::Status late = absl::DeadlineExceededError("no answer by the deadline");
    rail->Run([&] {
          rail->FailPeer(peer.get(), late);
          return absl::OkStatus();
        })
        .IgnoreError();
    return late;
  };
  PERIGEE_RETURN_IF_ERROR(Annotate(greet(0, address, deadline), absl::StrCat("connect to ", link->name)));
  // A further rail that is down is tried again in the background.
  const size_t rails = std::min(shared_->rails.size(), link->addresses.size());
  for (size_t i = 1; i < rails; ++i) {
    const absl::StatusOr<SocketAddress> to = internal::ParseAddress(link->addresses[i].host, link->addresses[i].port);
    const absl::Time until = std::min(deadline, absl::Now() + absl::Seconds(2));
    if (to.ok() && shared_->guard.Admit(to->storage).ok()) greet(i, *to, until).IgnoreError();
  }
  shared_->counters.connections_opened++;
  return endpoint;
}

bool Context::Drive(absl::FunctionRef<bool()> done, absl::Time until) const {
  return shared_->rails[0]->Drive(done, until);
}

void Context::SetHandler(uint16_t id, MessageHandler handler) {
  std::lock_guard<std::shared_mutex> lock(shared_->handlers_mutex);
  if (handler) {
    shared_->handlers[id] = std::move(handler);
  } else {
    shared_->handlers.erase(id);
  }
}

ContextStats Context::Stats() const {
  const internal::Counters& counters = shared_->counters;
  ContextStats stats;
  stats.put_bytes = counters.put_bytes;
  stats.get_bytes = counters.get_bytes;
  stats.put_transfers = counters.put_transfers;
  stats.get_transfers = counters.get_transfers;
  stats.served_bytes = counters.served_bytes;
  stats.refused_serves = counters.refused_serves;
  stats.refused_peers = counters.refused_peers;
  stats.messages_sent = counters.messages_sent;
  stats.messages_received = counters.messages_received;
  stats.failed_batches = counters.failed_batches;
  stats.connections_opened = counters.connections_opened;
  stats.connections_accepted = counters.connections_accepted;
  stats.connections_failed = counters.connections_failed;
  return stats;
}

}  // namespace perigee::transport
