#include "transport/core.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <ucs/config/global_opts.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "spdlog/spdlog.h"

namespace perigee::transport::internal {
namespace {

constexpr absl::Duration kShutdownLimit = absl::Seconds(5);
constexpr absl::Duration kDeadlineCheckEvery = absl::Milliseconds(1);
constexpr absl::Duration kLongestSleep = absl::Milliseconds(100);

// UCX reads its environment when it is loaded, so a default set from here has to go through its table of options. Peers
// that die are reported by status; UCX's own lines about them would only be noise.
void SetUcxDefaults() {
  static const bool once = [] {
    if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_global_opts_set_value("LOG_LEVEL", "fatal");
    // A restarted server takes its port back although old connections linger in TIME_WAIT. This option is out of
    // ucp_config_modify's reach in UCX 1.13; it is read when a context is made, so the environment still does.
    setenv("UCX_TCP_CM_REUSEADDR", "y", /*overwrite=*/0);
    return true;
  }();
  (void)once;
}

// Two processes whose identities are equal run under one kernel and see the same shared memory. Empty when it cannot be
// told.
std::string MachineIdentity() {
  const absl::StatusOr<std::string> boot = ReadFile("/proc/sys/kernel/random/boot_id", 4096);
  char ipc_namespace[64];
  const ssize_t length = readlink("/proc/self/ns/ipc", ipc_namespace, sizeof(ipc_namespace));
  if (!boot.ok() || length <= 0) return "";
  return absl::StrCat(*boot, absl::string_view(ipc_namespace, length));
}

}  // namespace

absl::Status UcxError(absl::string_view what, ucs_status_t status) {
  const std::string message = absl::StrCat(what, ": ", ucs_status_string(status));
  switch (status) {
    case UCS_OK:
    case UCS_INPROGRESS:
      return absl::OkStatus();
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_EXCEEDS_LIMIT:
    case UCS_ERR_NO_RESOURCE:
      return absl::ResourceExhaustedError(message);
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
      return absl::InvalidArgumentError(message);
    case UCS_ERR_BUSY:
    case UCS_ERR_ALREADY_EXISTS:
      return absl::AlreadyExistsError(message);
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_NOT_IMPLEMENTED:
      return absl::UnimplementedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<std::shared_ptr<Core>> Core::Create(const Options& options) {
  std::shared_ptr<Core> core(new Core(options));
  PERIGEE_RETURN_IF_ERROR(core->Init());
  return core;
}

absl::Status Core::Init() {
  SetUcxDefaults();
  if (getrandom(id_.data(), id_.size(), 0) != static_cast<ssize_t>(id_.size())) {
    return ErrnoStatus("getrandom", "engine id", errno);
  }
  machine_ = MachineIdentity();
  wake_fd_ = UniqueFd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake_fd_) return ErrnoStatus("eventfd", "progress thread", errno);

  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return Annotate(UcxError("ucp_config_read", status), "check the UCX_* environment variables");
  if (!options_.transports.empty()) status = ucp_config_modify(config, "TLS", options_.transports.c_str());
  if (status == UCS_OK) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
    params.features = UCP_FEATURE_RMA | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
    params.name = "perigee";
    status = ucp_init(&params, config, &context_);
  }
  ucp_config_release(config);
  if (status != UCS_OK) {
    return Annotate(UcxError("ucp_init", status), absl::StrCat("UCX transports '", options_.transports,
                                                               "' are not available here (see ucx_info -d)"));
  }

  ucp_worker_params_t worker_params{};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // created and destroyed outside of the thread, used inside
  status = ucp_worker_create(context_, &worker_params, &worker_);
  if (status != UCS_OK) {
    return Annotate(UcxError("ucp_worker_create", status),
                    absl::StrCat("UCX transports '", options_.transports, "' are not usable here (see ucx_info -d)"));
  }
  status = ucp_worker_get_efd(worker_, &ucx_fd_);
  if (status != UCS_OK) return UcxError("ucp_worker_get_efd", status);
  PERIGEE_RETURN_IF_ERROR(SetAmHandlers());
  handlers_[kHelloId] = [this](absl::string_view, absl::string_view) -> absl::StatusOr<std::string> {
    return std::string(reinterpret_cast<const char*>(id_.data()), id_.size()) + machine_;
  };
  // The thread waits for the lock, so that thread_id_ is set before anything runs on it.
  std::lock_guard<std::mutex> lock(mutex_);
  thread_ = std::thread([this] {
    { std::lock_guard<std::mutex> started(mutex_); }
    Loop();
  });
  thread_id_ = thread_.get_id();
  return absl::OkStatus();
}

Core::~Core() {
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

void Core::Shutdown() {
  Post([this] { stopping_ = true; });
  thread_.join();
}

bool Core::Post(std::function<void()> fn) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_) return false;
    posted_.push_back(std::move(fn));
    has_posted_.store(true);
  }
  if (sleeping_.exchange(false)) {
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t written = write(wake_fd_.get(), &one, sizeof(one));  // full means: already awake
  }
  return true;
}

absl::Status Core::Run(absl::FunctionRef<absl::Status()> fn) {
  if (OnThread()) return fn();
  absl::Status result;
  Event done;
  if (!Post([&] {
        result = fn();
        done.Notify();
      })) {
    return absl::FailedPreconditionError("the transport engine has been destroyed");
  }
  done.Wait();
  return result;
}

absl::Status Core::Start(std::shared_ptr<Batch> batch) {
  if (OnThread()) {
    return absl::FailedPreconditionError("transfers and messages cannot be started from a message handler");
  }
  if (!Post([this, batch] {
        if (batch->kind == BatchKind::kCall) calls_[batch->call_id] = batch.get();
        active_.push_back(batch);
        dirty_ = true;
      })) {
    return absl::FailedPreconditionError("the transport engine has been destroyed");
  }
  return absl::OkStatus();
}

absl::Status Core::StartAndWait(std::shared_ptr<Batch> batch) {
  PERIGEE_RETURN_IF_ERROR(Start(batch));
  batch->done.Wait();
  return batch->result;
}

bool Core::RunPosted() {
  if (!has_posted_.load()) return false;
  std::vector<std::function<void()>> posted;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    posted.swap(posted_);
    has_posted_.store(false);
  }
  for (auto& fn : posted) fn();
  return !posted.empty();
}

void Core::Loop() {
  absl::Time last_movement = absl::Now();
  absl::Time last_check = last_movement;
  while (!stopping_) {
    bool moved = RunPosted();
    AdvanceAll();
    for (int i = 0; i < 16 && ucp_worker_progress(worker_) != 0; ++i) moved = true;
    CloseFailedEndpoints();
    if (dirty_) moved = true;
    const absl::Time now = absl::Now();
    if (now - last_check >= kDeadlineCheckEvery) {
      CheckDeadlines(now);
      last_check = now;
    }
    if (moved) {
      last_movement = now;
    } else if (now - last_movement >= absl::Microseconds(options_.spin_us)) {
      CheckDeadlines(now);
      if (!dirty_) Sleep();
      last_check = last_movement = absl::Now();
    } else {
      std::this_thread::yield();
    }
  }
  Stop();
}

void Core::Sleep() {
  const ucs_status_t armed = ucp_worker_arm(worker_);
  if (armed != UCS_OK) return;  // UCS_ERR_BUSY: events are waiting
  absl::Time wake_at = absl::Now() + kLongestSleep;
  for (const auto& batch : active_) wake_at = std::min(wake_at, batch->deadline);
  sleeping_.store(true);
  if (!has_posted_.load()) {
    pollfd fds[2] = {{ucx_fd_, POLLIN, 0}, {wake_fd_.get(), POLLIN, 0}};
    const int64_t timeout_ms = absl::ToInt64Milliseconds(wake_at - absl::Now()) + 1;
    poll(fds, 2, static_cast<int>(std::clamp<int64_t>(timeout_ms, 0, 1000)));
    if (fds[1].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] ssize_t got = read(wake_fd_.get(), &count, sizeof(count));
    }
  }
  sleeping_.store(false);
}

void Core::Stop() {
  for (ucp_listener_h listener : listeners_) ucp_listener_destroy(listener);
  listeners_.clear();
  bool last_round = false;
  const absl::Time limit = absl::Now() + kShutdownLimit;
  while (true) {
    RunPosted();
    for (auto& [raw, endpoint] : endpoints_) {
      FailEndpoint(raw, absl::CancelledError("the transport engine was destroyed"));
    }
    AdvanceAll();
    ucp_worker_progress(worker_);
    CloseFailedEndpoints();
    AdvanceAll();
    if ((active_.empty() && endpoints_.empty()) || absl::Now() > limit) {
      // Nothing may be posted after the last look at the queue.
      if (last_round) break;
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      last_round = true;
    }
  }
  if (!active_.empty() || !endpoints_.empty()) {
    // Destroying the worker takes the buffers from UCX in any case; only then may their owners be told.
    spdlog::warn("transport: {} batches and {} connections did not close within {}", active_.size(), endpoints_.size(),
                 absl::FormatDuration(kShutdownLimit));
  }
  for (ucp_rkey_h key : keys_) ucp_rkey_destroy(key);
  keys_.clear();
  ucp_worker_destroy(worker_);
  worker_ = nullptr;
  ops_.clear();
  while (!unmapping_.empty()) FinishUnmap(*unmapping_.begin());
  for (auto& batch : active_) {
    if (batch->error.ok()) batch->error = absl::CancelledError("the transport engine was destroyed");
    End(batch.get());
  }
  active_.clear();
  calls_.clear();
  for (auto& [raw, endpoint] : endpoints_) endpoint->connected = false;
  endpoints_.clear();
  by_handle_.clear();
  handlers_.clear();
}

absl::Status Core::Map(Region* region, bool allocate) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.address = region->base;
  params.length = region->size;
  params.flags = allocate ? UCP_MEM_MAP_ALLOCATE : 0;
  ucs_status_t status = ucp_mem_map(context_, &params, &region->handle);
  if (status != UCS_OK) {
    region->handle = nullptr;
    return UcxError(absl::StrCat(allocate ? "allocate " : "register ", region->size, " bytes"), status);
  }
  if (allocate) {
    ucp_mem_attr_t attr{};
    attr.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
    status = ucp_mem_query(region->handle, &attr);
    if (status != UCS_OK) return UcxError("ask for the address of allocated memory", status);
    region->base = static_cast<std::byte*>(attr.address);
  }
  void* packed = nullptr;
  size_t packed_bytes = 0;
  status = ucp_rkey_pack(context_, region->handle, &packed, &packed_bytes);
  if (status != UCS_OK) return UcxError("pack the remote key", status);
  if (getrandom(&region->id, sizeof(region->id), 0) != sizeof(region->id))
    return ErrnoStatus("getrandom", "region id", errno);
  regions_[region->id] = region;
  PackedKey key;
  key.engine_id = id_;
  key.region_id = region->id;
  key.base = reinterpret_cast<uint64_t>(region->base);
  key.size_bytes = region->size;
  key.ucx_key.assign(static_cast<const char*>(packed), packed_bytes);
  ucp_rkey_buffer_release(packed);
  region->remote_key = EncodeRemoteKey(key);
  return absl::OkStatus();
}

void Core::SetHandler(uint16_t id, MessageHandler handler) {
  if (handler) {
    handlers_[id] = std::move(handler);
  } else {
    handlers_.erase(id);
  }
}

absl::Status Core::LearnPeer(Peer* endpoint, absl::string_view hello) {
  if (hello.size() < endpoint->peer_id.size()) {
    return absl::UnavailableError(absl::StrCat("the peer at ", endpoint->peer_name, " answers in another protocol"));
  }
  std::copy(hello.begin(), hello.begin() + endpoint->peer_id.size(), endpoint->peer_id.begin());
  endpoint->same_machine = !machine_.empty() && hello.substr(endpoint->peer_id.size()) == machine_;
  PERIGEE_ASSIGN_OR_RETURN(const std::string lanes, Describe(endpoint));
  endpoint->one_sided = absl::StrContains(lanes, ":rc_") || absl::StrContains(lanes, ":dc_");
  return absl::OkStatus();
}

absl::StatusOr<std::string> Core::Describe(Peer* endpoint) {
  if (endpoint->failed) return endpoint->failure;
  char* buffer = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&buffer, &size);
  if (stream == nullptr) return absl::ResourceExhaustedError("no memory to describe the connection");
  ucp_ep_print_info(endpoint->handle, stream);
  std::fclose(stream);
  std::string text(buffer, size);
  std::free(buffer);
  return text;
}

absl::Status Core::UnpackKey(RemoteKey* key, const void* ucx_key) {
  Peer* endpoint = key->endpoint.get();
  if (endpoint->failed) return endpoint->failure;
  const ucs_status_t status = ucp_ep_rkey_unpack(endpoint->handle, ucx_key, &key->handle);
  if (status != UCS_OK) {
    key->handle = nullptr;
    return UcxError(absl::StrCat("unpack a remote key from ", endpoint->peer_name), status);
  }
  keys_.insert(key->handle);
  void* mapped = nullptr;
  // Not on another machine, where a shared-memory id may by chance name something else.
  if (endpoint->same_machine && ucp_rkey_ptr(key->handle, key->base, &mapped) == UCS_OK) {
    key->path = Path::kMapped;
    key->mapped = static_cast<std::byte*>(mapped);
  } else if (endpoint->one_sided) {
    key->path = Path::kOneSided;
  }
  return absl::OkStatus();
}

void Core::DestroyKey(ucp_rkey_h key) {
  if (keys_.erase(key) == 1) ucp_rkey_destroy(key);
}

absl::StatusOr<ucp_listener_h> Core::OpenListener(const ucp_listener_params_t& base_params) {
  ucp_listener_params_t params = base_params;
  params.field_mask |= UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.conn_handler.cb = &Core::OnConnectionRequest;
  params.conn_handler.arg = this;
  ucp_listener_h listener = nullptr;
  const ucs_status_t status = ucp_listener_create(worker_, &params, &listener);
  if (status != UCS_OK) return UcxError("listen", status);
  listeners_.insert(listener);
  return listener;
}

void Core::CloseListener(ucp_listener_h listener) {
  if (listeners_.erase(listener) == 1) ucp_listener_destroy(listener);
}

}  // namespace perigee::transport::internal
