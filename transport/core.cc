// A rail's role, thread and clock. What it carries is in peer.cc, messages.cc, initiator.cc and serve.cc.
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

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/status.h"
#include "spdlog/spdlog.h"
#include "transport/address.h"

namespace perigee::transport::internal {
namespace {

constexpr absl::Duration kShutdownLimit = absl::Seconds(5);
constexpr absl::Duration kTimeCheckEvery = absl::Milliseconds(1);
constexpr absl::Duration kLongestSleep = absl::Milliseconds(100);
// How long a rail's thread leaves UCX to callers that drive in quick succession. Woken for every answer of theirs, it
// would take a processor from the peer.
constexpr int64_t kNapUs = 200, kLongestNapUs = 1600;          // of a rail's thread while callers drive
constexpr absl::Duration kStopped = absl::Milliseconds(50);    // a driver that is so late has been stopped
constexpr absl::Duration kClaimLimit = absl::Milliseconds(1);  // then the caller lets the thread do its work
constexpr absl::Duration kDoorstep = absl::Milliseconds(20);
constexpr size_t kSlots = 16;  // of operations, and as many of serves: 33 MiB per rail when all are in use

// UCX reads its environment when it is loaded, so a default set from here has to go through its table of options. Peers
// that die are reported by status; UCX's own lines about them would only be noise.
void SetUcxDefaults() {
  static const bool once = [] {
    if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_global_opts_set_value("LOG_LEVEL", "fatal");
    return true;
  }();
  (void)once;
}

// Settings that are out of ucp_config_modify's reach in UCX 1.13: a context reads them from the environment while it is
// made. They are put back, for others in this process who use UCX.
class TcpSettings {
 public:
  TcpSettings() {
    // A restarted server takes its port back although old connections linger in TIME_WAIT.
    Set("UCX_TCP_CM_REUSEADDR", "y");
    // UCX does not negotiate the size of segments: it would write behind its buffer if the sender's were larger.
    const std::string segment = absl::StrCat(kSegmentBytes);
    Set("UCX_TCP_TX_SEG_SIZE", segment);
    Set("UCX_TCP_RX_SEG_SIZE", segment);
  }
  ~TcpSettings() {
    for (const auto& [name, value] : before_) {
      value.has_value() ? setenv(name, value->c_str(), /*overwrite=*/1) : unsetenv(name);
    }
  }
  TcpSettings(const TcpSettings&) = delete;
  TcpSettings& operator=(const TcpSettings&) = delete;

 private:
  void Set(const char* name, const std::string& value) {
    const char* before = std::getenv(name);
    if (before != nullptr && value != before) {
      spdlog::warn("transport: {}={} is not used: all peers need {}", name, before, value);
    }
    before_.emplace_back(name, before == nullptr ? std::nullopt : std::optional<std::string>(before));
    setenv(name, value.c_str(), /*overwrite=*/1);
  }

  static inline std::mutex mutex_;
  std::lock_guard<std::mutex> lock_{mutex_};
  std::vector<std::pair<const char*, std::optional<std::string>>> before_;
};

// Two processes whose identities are equal run under one kernel and see the same shared memory. Empty when it cannot be
// told.
std::string MachineIdentity() {
  const absl::StatusOr<std::string> boot = ReadFile("/proc/sys/kernel/random/boot_id", 4096);
  char ipc_namespace[64];
  const ssize_t length = readlink("/proc/self/ns/ipc", ipc_namespace, sizeof(ipc_namespace));
  if (!boot.ok() || length <= 0) return "";
  return absl::StrCat(absl::StripAsciiWhitespace(*boot), absl::string_view(ipc_namespace, length));
}

// Not the wall clock's.
int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Sixteen mixed bits of every input bit: a counter's successor tells nothing to those who do not know the secret.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
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

absl::StatusOr<uint64_t> RandomNumber() {
  uint64_t number = 0;
  if (getrandom(&number, sizeof(number), 0) != sizeof(number)) return ErrnoStatus("getrandom", "transport", errno);
  return number;
}

absl::Status Shared::Init() {
  if (getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
    return ErrnoStatus("getrandom", "context id", errno);
  }
  machine = MachineIdentity();
  const std::vector<std::string> devices = options.devices.empty() ? std::vector<std::string>{""} : options.devices;
  for (size_t i = 0; i < devices.size(); ++i) {
    PERIGEE_ASSIGN_OR_RETURN(std::shared_ptr<Core> rail, Core::Create(this, i, devices[i]));
    rails.push_back(std::move(rail));
  }
  return absl::OkStatus();
}

std::shared_ptr<Region> Shared::FindRegion(uint64_t region) const {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = regions.find(region);
  return found == regions.end() ? nullptr : found->second.lock();
}

absl::StatusOr<PeerIdentity> Shared::Authenticate(const Hello& hello) const {
  Authenticator ask;
  {
    std::lock_guard<std::mutex> lock(mutex);
    ask = authenticator;
  }
  if (!ask) return absl::PermissionDeniedError("this context accepts no connections any more");
  return ask(hello.token, {reinterpret_cast<const char*>(hello.context_id.data()), hello.context_id.size()});
}

Core::Core(Shared* shared, size_t rail)
    : shared_(shared),
      rail_(rail),
      caller_patience_(absl::Microseconds(shared_->options.spin_us)),
      thread_patience_(absl::Microseconds(shared_->options.spin_us)),
      op_slots_(kSlots, shared_->options.device.get(), &shared_->device_mutex),
      serve_slots_(kSlots, shared_->options.device.get(), &shared_->device_mutex) {}

absl::StatusOr<std::shared_ptr<Core>> Core::Create(Shared* shared, size_t rail, const std::string& device) {
  std::shared_ptr<Core> core(new Core(shared, rail));
  PERIGEE_RETURN_IF_ERROR(core->Init(device));
  return core;
}

absl::Status Core::Init(const std::string& device) {
  SetUcxDefaults();
  PERIGEE_ASSIGN_OR_RETURN(op_secret_, RandomNumber());
  wake_fd_ = UniqueFd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake_fd_) return ErrnoStatus("eventfd", "progress thread", errno);

  const std::string& transports = shared_->options.transports;
  const std::string where = device.empty() ? "here" : absl::StrCat("on device '", device, "'");
  std::optional<TcpSettings> tcp_settings(std::in_place);
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return Annotate(UcxError("ucp_config_read", status), "check the UCX_* environment variables");
  if (!transports.empty()) status = ucp_config_modify(config, "TLS", transports.c_str());
  if (status == UCS_OK && !device.empty()) {
    status = ucp_config_modify(config, "NET_DEVICES", device.c_str());
  } else if (status == UCS_OK && !shared_->options.one_sided) {
    // Left alone, UCX connects every device of one side with every device of the other, numbered in an order that
    // differs between hosts, and often fails.
    if (const std::string chosen = DefaultDevices(); !chosen.empty()) {
      status = ucp_config_modify(config, "NET_DEVICES", chosen.c_str());
    }
  }
  // UCX 1.13 completes an eager message that was sent in part, from where it lies, twice when its connection is reset
  // before the rest has gone, and ends the process (uct_iface.h:884). A copy has no such end.
  if (status == UCS_OK && !shared_->options.one_sided) status = ucp_config_modify(config, "ZCOPY_THRESH", "inf");
  if (status == UCS_OK) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
    // Without UCP_FEATURE_RMA, UCX answers nobody's one-sided requests: over tcp it would serve them by software, at
    // any address.
    params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
    if (shared_->options.one_sided) params.features |= UCP_FEATURE_RMA;
    params.name = "perigee";
    status = ucp_init(&params, config, &context_);
  }
  ucp_config_release(config);
  if (status != UCS_OK) {
    return Annotate(UcxError("ucp_init", status),
                    absl::StrCat("UCX transports '", transports, "' are not available ", where, " (see ucx_info -d)"));
  }

  const std::set<int> listening = PortGuard::ListeningSockets();
  ucp_worker_params_t worker_params{};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // one thread at a time: the driver
  status = ucp_worker_create(context_, &worker_params, &worker_);
  if (status != UCS_OK) {
    return Annotate(UcxError("ucp_worker_create", status),
                    absl::StrCat("UCX transports '", transports, "' are not usable ", where, " (see ucx_info -d)"));
  }
  tcp_settings.reset();
  sockets_ = PortGuard::ListeningSockets();
  for (const int socket : listening) sockets_.erase(socket);
  PERIGEE_RETURN_IF_ERROR(shared_->guard.Adopt(listening));
  status = ucp_worker_get_efd(worker_, &ucx_fd_);
  if (status != UCS_OK) return UcxError("ucp_worker_get_efd", status);
  PERIGEE_RETURN_IF_ERROR(SetAmHandlers());
  last_check_ = absl::Now();
  thread_ = std::thread([this] { Loop(); });
  return absl::OkStatus();
}

Core::~Core() {
  if (thread_.joinable()) Shutdown();  // a context whose later rails could not be made
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

void Core::Shutdown() {
  Post([this] { stopping_ = true; });
  thread_.join();
}

uint64_t Core::NewId() { return Mix(op_secret_ ^ Mix(next_op_++)); }

// ---- The role ----

bool Core::TryTake() {
  if (!role_.try_lock()) return false;
  driver_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  return true;
}

// For callers: they drive for themselves, so the rail's own thread gives way.
bool Core::Claim() {
  bool taken = TryTake();
  if (!taken && !thread_drives_.load()) return false;  // another caller does
  claims_++;
  for (const absl::Time until = absl::Now() + kClaimLimit; !taken && absl::Now() < until;) {
    std::this_thread::yield();  // both may be on one processor
    taken = TryTake();
  }
  claims_--;
  if (taken) handed_over_.store(false);  // this caller does what is left, or leaves it again
  return taken;
}

void Core::Release() {
  driver_.store(std::thread::id());
  thread_drives_.store(false);
  role_.unlock();
  // Who found the role taken has posted before looking for a driver to wake.
  if (has_posted_.load()) Wake();
}

void Core::Wake() {
  if (sleeping_.exchange(false)) {
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t written = write(wake_fd_.get(), &one, sizeof(one));  // full means: already awake
  }
}

bool Core::Post(std::function<void()> fn) {
  {
    std::lock_guard<std::mutex> lock(posted_mutex_);
    if (stopped_) return false;
    posted_.push_back(std::move(fn));
    has_posted_.store(true);
  }
  // A driver looks at the queue after letting go; the rail's thread is woken in any case where there is none.
  if (driver_.load() == std::thread::id()) Wake();
  return true;
}

absl::Status Core::Run(absl::FunctionRef<absl::Status()> fn, Then then) {
  if (Driving()) return fn();
  const absl::Status gone = absl::FailedPreconditionError("the transport context has been destroyed");
  if (Claim()) {
    if (worker_ == nullptr) {
      Release();
      return gone;
    }
    absl::Status result = fn();
    AdvanceAll();
    last_driven_us_.store(NowUs(), std::memory_order_relaxed);
    HandOver(then == Then::kWait);
    return result;
  }
  absl::Status result;
  Event done;
  if (!Post([&] {
        result = fn();
        done.Notify();
      })) {
    return gone;
  }
  done.Wait();
  return result;
}

// *moved_at: when something moved last, or this began.
bool Core::Drive(absl::FunctionRef<bool()> done, absl::Time until, absl::Time* moved_at) {
  *moved_at = absl::Now();
  if (Driving() || !Claim()) return done();
  const absl::Duration patience = caller_patience_.limit();
  bool is_done = done();
  while (!is_done && worker_ != nullptr && !stopping_) {
    const bool moved = Step();
    is_done = done();
    const absl::Time now = absl::Now();
    if (moved) {
      caller_patience_.Note(now - *moved_at);
      *moved_at = now;
    }
    if (is_done || now >= until || now - *moved_at >= patience) break;
    if (now - *moved_at > caller_patience_.standing()) std::this_thread::yield();  // the peer may be on this processor
  }
  if (is_done) last_driven_us_.store(NowUs(), std::memory_order_relaxed);
  HandOver(false);
  return is_done;
}

// What is left to do is the rail's thread's, unless the caller comes back for it.
void Core::HandOver(bool caller_returns) {
  const bool busy = dirty_ || any_failed_ || slot_freed_ || !transfers_.empty() || !messages_.empty() ||
                    !copying_serves_.empty() || stopping_;
  if (busy && !caller_returns) handed_over_.store(true);
  Release();
  if (busy && !caller_returns) Wake();
}

bool Core::Wait(const Event& event, absl::Time until) {
  absl::Time moved_at;
  if (!Drive([&] { return event.Happened(); }, until, &moved_at)) {
    handed_over_.store(true);
    Wake();
    if (!event.Wait(until)) return false;
    caller_patience_.Note(absl::Now() - moved_at);
    return true;
  }
  return event.Wait();  // at once; the notifier may still be inside
}

// ---- The thread ----

void Core::Loop() {
  int64_t nap_us = kNapUs;
  absl::Time moved_at = absl::Now();
  while (true) {
    // What wakes this thread while callers drive is most likely their answer.
    const bool callers = !handed_over_.load() && !has_posted_.load() &&
                         NowUs() - last_driven_us_.load(std::memory_order_relaxed) < kNapUs;
    if (callers || claims_.load() > 0 || !TryTake()) {
      Nap(nap_us);
      if (callers) nap_us = std::min(nap_us * 2, kLongestNapUs);
      moved_at = absl::Now();
      continue;
    }
    nap_us = kNapUs;
    thread_drives_.store(true);
    if (stopping_) break;
    const bool moved = Step();
    if (transfers_.empty() && messages_.empty()) handed_over_.store(false);
    const absl::Time now = absl::Now();
    if (moved) {
      thread_patience_.Note(now - moved_at);
      moved_at = now;
    }
    if (moved || now - moved_at < thread_patience_.limit()) {
      Release();
      if (!moved) std::this_thread::yield();
      continue;
    }
    if (dirty_) {
      Release();
      continue;
    }
    Sleep();  // releases
  }
  Stop();
  Release();
}

bool Core::Step() {
  const absl::Time start = absl::Now();
  if (start - std::max(last_step_, planned_wake_) > kStopped && (!serves_.empty() || !transfers_.empty())) {
    for (auto& [raw, peer] : peers_) peer->served = start;  // the stall was not theirs
  }
  last_step_ = start;
  planned_wake_ = absl::InfinitePast();
  bool moved = RunPosted();
  AdvanceAll();
  for (int i = 0; i < 16 && Progress(); ++i) {
    moved = true;
    if (dirty_) AdvanceAll();
  }
  if (!copying_serves_.empty() || slot_freed_) PollServes(absl::Now());
  if (!copying_ops_.empty()) PollOps();
  CloseFailedPeers();
  if (dirty_) moved = true;
  const absl::Time now = absl::Now();
  if (now - last_check_ >= kTimeCheckEvery) CheckTime(now);
  return moved;
}

bool Core::RunPosted() {
  if (!has_posted_.load()) return false;
  std::vector<std::function<void()>> posted;
  {
    std::lock_guard<std::mutex> lock(posted_mutex_);
    posted.swap(posted_);
    has_posted_.store(false);
  }
  for (auto& fn : posted) fn();
  return !posted.empty();
}

void Core::AdvanceAll() {
  if (!dirty_) return;
  dirty_ = false;
  for (auto it = messages_.begin(); it != messages_.end();) {
    it = AdvanceMessage(it->get()) ? messages_.erase(it) : std::next(it);
  }
  for (auto it = transfers_.begin(); it != transfers_.end();) {
    it = AdvanceTransfer(it->get()) ? transfers_.erase(it) : std::next(it);
  }
}

void Core::CheckTime(absl::Time now) {
  last_check_ = now;
  for (const auto& message : messages_) {
    if (now >= message->deadline && !message->done.Happened()) dirty_ = true;  // AdvanceMessage looks
  }
  for (const auto& rail : transfers_) {
    if (now < rail->transfer->deadline) continue;
    Peer* peer = rail->peer.get();
    rail->transfer->Fail(absl::DeadlineExceededError(
        absl::StrCat("transfer with ", peer->name, " missed its deadline; its connection was closed, connect again")));
    if (!rail->idle() || rail->unanswered > 0) {
      FailPeer(peer, absl::UnavailableError(absl::StrCat("connection to ", peer->name,
                                                         " was closed because a transfer missed its deadline")));
    }
    dirty_ = true;
  }
  KeepAlive(now);
  RetryRails(now);
  if (!serves_.empty()) PollServes(now);
}

void Core::Nap(int64_t nap_us) {
  sleeping_.store(true);
  if (!has_posted_.load() && !handed_over_.load()) {
    pollfd fd = {wake_fd_.get(), POLLIN, 0};
    const timespec timeout = {0, nap_us * 1000};
    ppoll(&fd, 1, &timeout, nullptr);
  }
  sleeping_.store(false);
  uint64_t count = 0;
  [[maybe_unused]] ssize_t got = read(wake_fd_.get(), &count, sizeof(count));
}

void Core::Sleep() {
  if (ucp_worker_arm(worker_) != UCS_OK) {  // UCS_ERR_BUSY: events are waiting
    Release();
    return;
  }
  const absl::Time now = absl::Now();
  absl::Time wake_at = now + kLongestSleep;
  // Those that are over stay until UCX lets go of them; nothing is due then.
  for (const auto& rail : transfers_) {
    if (!rail->transfer->failed()) wake_at = std::min(wake_at, rail->transfer->deadline);
  }
  for (const auto& message : messages_) {
    if (!message->done.Happened()) wake_at = std::min(wake_at, message->deadline);
  }
  if (!copying_ops_.empty() || !copying_serves_.empty()) wake_at = now;  // a device's end of copy wakes nobody
  const int64_t wanted_ms = wake_at == now ? 0 : absl::ToInt64Milliseconds(wake_at - now) + 1;
  const int timeout_ms = static_cast<int>(std::clamp<int64_t>(wanted_ms, 0, 1000));
  planned_wake_ = now + absl::Milliseconds(timeout_ms);
  sleeping_.store(true);
  Release();
  if (!has_posted_.load()) {
    pollfd fds[2] = {{ucx_fd_, POLLIN, 0}, {wake_fd_.get(), POLLIN, 0}};
    poll(fds, 2, timeout_ms);
  }
  sleeping_.store(false);
  uint64_t count = 0;
  [[maybe_unused]] ssize_t got = read(wake_fd_.get(), &count, sizeof(count));
}

void Core::CloseDoors(const std::set<int>& sockets) {
  const std::vector<int> list(sockets.begin(), sockets.end());
  shared_->guard.Close(list);
  const absl::Time until = absl::Now() + kDoorstep;
  while (absl::Now() < until) {
    if (!Drive([] { return false; }, until)) absl::SleepFor(absl::Milliseconds(1));
  }
  shared_->guard.Forget(list);
}

void Core::Stop() {
  if (!listeners_.empty()) {
    shared_->guard.Close({sockets_.begin(), sockets_.end()});
    const absl::Time until = absl::Now() + kDoorstep;
    while (absl::Now() < until) Progress();
  }
  for (ucp_listener_h listener : listeners_) ucp_listener_destroy(listener);
  listeners_.clear();
  bool last_round = false;
  const absl::Time limit = absl::Now() + kShutdownLimit;
  while (true) {
    RunPosted();
    for (auto& [raw, peer] : peers_) FailPeer(raw, absl::CancelledError("the transport context was destroyed"));
    lost_rails_.clear();
    dirty_ = true;
    AdvanceAll();
    Progress();
    PollServes(absl::Now());
    PollOps();
    CloseFailedPeers();
    AdvanceAll();
    const bool empty = transfers_.empty() && messages_.empty() && peers_.empty() && serves_.empty();
    if (empty || absl::Now() > limit) {
      // Nothing may be posted after the last look at the queue.
      if (last_round) break;
      std::lock_guard<std::mutex> lock(posted_mutex_);
      stopped_ = true;
      last_round = true;
    }
  }
  if (!transfers_.empty() || !peers_.empty() || !serves_.empty()) {
    // Destroying the worker takes the buffers from UCX in any case; only then may their owners be told.
    spdlog::warn("transport: {} transfers and {} connections did not close within {}", transfers_.size(), peers_.size(),
                 absl::FormatDuration(kShutdownLimit));
  }
  for (ucp_rkey_h key : keys_) ucp_rkey_destroy(key);
  keys_.clear();
  shared_->guard.Forget({sockets_.begin(), sockets_.end()});
  ucp_worker_destroy(worker_);
  worker_ = nullptr;
  const absl::Status cancelled = absl::CancelledError("the transport context was destroyed");
  serves_.clear();
  waiting_serves_.clear();
  copying_serves_.clear();
  for (auto& rail : transfers_) {
    std::vector<uint32_t> unfinished;
    for (auto& [id, op] : rail->ops) unfinished.push_back(op->op);
    rail->transfer->Fail(cancelled);
    rail->transfer->Detach(unfinished, cancelled);
  }
  transfers_.clear();
  for (auto& message : messages_) EndMessage(message.get(), cancelled);
  messages_.clear();
  calls_.clear();
  ops_.clear();
  copying_ops_.clear();
  for (auto& [raw, peer] : peers_) {
    peer->ready = false;
    HelloEnded(raw, cancelled);
  }
  peers_.clear();
  channels_.clear();
  by_handle_.clear();
}

}  // namespace perigee::transport::internal
