#include "proxy.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

// After <netinet/in.h>, which it would clash with.
#include <linux/netfilter_ipv4.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <deque>
#include <future>
#include <list>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "base/status.h"

namespace perigee::fault {
namespace {

constexpr size_t kChunkBytes = 64 << 10;
constexpr size_t kMostHeldBytes = 4 << 20;  // per direction; then the sender has to wait

struct Faults {
  absl::Duration delay;
  bool stalled = false;
  std::optional<uint64_t> corrupt_at;
  std::string corrupt_after;
  uint64_t corrupt_one_in = 0;
};

struct Chunk {
  std::string bytes;
  size_t sent = 0;
  absl::Time due;
};

struct Direction {
  std::optional<uint64_t> corrupt_at;
  uint64_t offset = 0;  // in the stream
  std::string tail;     // the last bytes that went in, for a marker across two reads
  std::deque<Chunk> held;
  size_t held_bytes = 0;
  bool ended = false;   // the sender will send no more
  bool closed = false;  // and the receiver has been told
};

// ends[0] opened the connection; directions[i] carries what ends[i] sends.
struct Connection {
  UniqueFd ends[2];
  Direction directions[2];
  bool connecting = true;
  bool broken = false;
};

void Reset(UniqueFd& fd) {
  const linger abort{1, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
  fd.Reset();
}

}  // namespace

struct Proxy::State {
  UniqueFd listener;
  std::thread thread;
  std::atomic<bool> stop{false}, cut{false};
  std::atomic<uint64_t> connections{0}, bytes{0}, corrupted_bytes{0};
  mutable std::mutex mutex;
  Faults faults;           // guarded by mutex
  std::mt19937_64 random;  // guarded by mutex

  void Run() {
    std::list<Connection> open;
    while (!stop) {
      if (cut.exchange(false)) {
        for (Connection& c : open) Break(c);
      }
      open.remove_if(
          [](const Connection& c) { return c.broken || (c.directions[0].closed && c.directions[1].closed); });
      Turn(open);
    }
    for (Connection& c : open) Break(c);
  }

  static void Break(Connection& c) {
    c.broken = true;
    Reset(c.ends[0]);
    Reset(c.ends[1]);
  }

  Faults Now() const {
    std::lock_guard<std::mutex> lock(mutex);
    return faults;
  }

  void Turn(std::list<Connection>& open) {
    const bool stalled = Now().stalled;
    std::vector<pollfd> polled{{listener.get(), POLLIN, 0}};
    int timeout_ms = 20;
    const absl::Time now = absl::Now();
    for (Connection& c : open) {
      for (int i = 0; i < 2; ++i) {
        const Direction &from = c.directions[i], &to = c.directions[1 - i];
        short events = 0;
        if (!c.connecting && !stalled && !from.ended && from.held_bytes < kMostHeldBytes) events |= POLLIN;
        if (c.connecting && i == 1) events |= POLLOUT;
        if (!stalled && !to.held.empty()) {
          if (to.held.front().due <= now) {
            events |= POLLOUT;
          } else {
            const int64_t wait_us = absl::ToInt64Microseconds(to.held.front().due - now);
            timeout_ms = std::min(timeout_ms, static_cast<int>(wait_us / 1000 + 1));
          }
        }
        // With no interest at all a hang-up would only make poll return at once.
        polled.push_back({events == 0 ? -1 : c.ends[i].get(), events, 0});
      }
    }
    poll(polled.data(), polled.size(), timeout_ms);
    const Faults faults = Now();  // not those of before the wait: what a caller has set holds for what comes afterwards
    size_t at = 1;
    for (Connection& c : open) {
      for (int i = 0; i < 2; ++i, ++at) {
        if (c.broken || polled[at].revents == 0) continue;
        if (c.connecting) {
          int error = 0;
          socklen_t length = sizeof(error);
          getsockopt(c.ends[1].get(), SOL_SOCKET, SO_ERROR, &error, &length);
          if (error != 0) Break(c);
          c.connecting = false;
          continue;
        }
        if ((polled[at].events & POLLIN) != 0) Read(c, i, faults);
        if (!c.broken && (polled[at].events & POLLOUT) != 0) Write(c, 1 - i);
      }
      for (int i = 0; i < 2 && !c.broken; ++i) {
        Direction& d = c.directions[i];
        if (d.ended && !d.closed && d.held.empty()) {
          shutdown(c.ends[1 - i].get(), SHUT_WR);
          d.closed = true;
        }
      }
    }
    if ((polled[0].revents & POLLIN) != 0) Accept(open, faults);
  }

  void Accept(std::list<Connection>& open, const Faults& faults) {
    Connection c;
    c.ends[0] = UniqueFd(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    sockaddr_in wanted{};
    socklen_t length = sizeof(wanted);
    if (!c.ends[0] || getsockopt(c.ends[0].get(), SOL_IP, SO_ORIGINAL_DST, &wanted, &length) != 0) return;
    c.ends[1] = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int on = 1;
    for (UniqueFd& end : c.ends) setsockopt(end.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(c.ends[1].get(), reinterpret_cast<sockaddr*>(&wanted), sizeof(wanted)) != 0 && errno != EINPROGRESS) {
      Reset(c.ends[0]);
      return;
    }
    c.directions[0].corrupt_at = c.directions[1].corrupt_at = faults.corrupt_at;
    ++connections;
    open.push_back(std::move(c));
  }

  void Read(Connection& c, int i, const Faults& faults) {
    Direction& d = c.directions[i];
    Chunk chunk;
    chunk.bytes.resize(kChunkBytes);
    const ssize_t got = recv(c.ends[i].get(), chunk.bytes.data(), chunk.bytes.size(), 0);
    if (got < 0) {
      if (errno != EAGAIN && errno != EINTR) Break(c);
      return;
    }
    if (got == 0) {
      d.ended = true;
      return;
    }
    chunk.bytes.resize(static_cast<size_t>(got));
    chunk.due = absl::Now() + faults.delay;
    Corrupt(d, faults, chunk.bytes);
    d.offset += chunk.bytes.size();
    d.held_bytes += chunk.bytes.size();
    d.held.push_back(std::move(chunk));
  }

  void Corrupt(Direction& d, const Faults& faults, std::string& bytes) {
    auto flip = [&](size_t at) {
      bytes[at] = static_cast<char>(bytes[at] ^ 0xff);
      ++corrupted_bytes;
    };
    if (d.corrupt_at && *d.corrupt_at >= d.offset && *d.corrupt_at - d.offset < bytes.size()) {
      flip(static_cast<size_t>(*d.corrupt_at - d.offset));
    }
    if (!faults.corrupt_after.empty()) {
      const std::string& marker = faults.corrupt_after;
      const std::string all = d.tail + bytes;
      for (size_t found = all.find(marker); found != std::string::npos; found = all.find(marker, found + 1)) {
        const size_t target = found + marker.size();
        if (target >= d.tail.size() && target < all.size()) flip(target - d.tail.size());
      }
      // One byte more than the marker's start needs: a marker that ended with the last read has its byte in this one.
      d.tail = all.substr(all.size() - std::min(all.size(), marker.size()));
    }
    if (faults.corrupt_one_in != 0) {
      std::lock_guard<std::mutex> lock(mutex);
      std::geometric_distribution<uint64_t> gap(1.0 / static_cast<double>(faults.corrupt_one_in));
      for (uint64_t at = gap(random); at < bytes.size(); at += 1 + gap(random)) flip(static_cast<size_t>(at));
    }
  }

  void Write(Connection& c, int i) {
    Direction& d = c.directions[i];
    while (!d.held.empty() && d.held.front().due <= absl::Now()) {
      Chunk& chunk = d.held.front();
      const ssize_t sent =
          send(c.ends[1 - i].get(), chunk.bytes.data() + chunk.sent, chunk.bytes.size() - chunk.sent, MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR) Break(c);
        return;
      }
      bytes += static_cast<uint64_t>(sent);
      chunk.sent += static_cast<size_t>(sent);
      if (chunk.sent < chunk.bytes.size()) return;
      d.held_bytes -= chunk.bytes.size();
      d.held.pop_front();
    }
  }
};

absl::StatusOr<std::unique_ptr<Proxy>> Proxy::Start(Network* network) {
  auto state = std::make_unique<State>();
  std::promise<absl::StatusOr<uint16_t>> started;
  // Its sockets are the router's because the thread is there.
  state->thread = std::thread([&started, network, s = state.get()] {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    socklen_t length = sizeof(address);
    if (setns(network->namespace_fd(Place::kRouter), CLONE_NEWNET) != 0) {
      started.set_value(ErrnoStatus("setns", "router", errno));
      return;
    }
    s->listener = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!s->listener || bind(s->listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(s->listener.get(), 1024) != 0 ||
        getsockname(s->listener.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      started.set_value(ErrnoStatus("listen", "proxy", errno));
      return;
    }
    started.set_value(ntohs(address.sin_port));
    s->Run();
  });
  std::unique_ptr<Proxy> proxy(new Proxy(network, std::move(state)));
  PERIGEE_ASSIGN_OR_RETURN(const uint16_t port, started.get_future().get());
  PERIGEE_RETURN_IF_ERROR(network->Redirect(port));
  return proxy;
}

Proxy::Proxy(Network* network, std::unique_ptr<State> state) : network_(network), state_(std::move(state)) {}

Proxy::~Proxy() {
  network_->Redirect(0).IgnoreError();
  state_->stop = true;
  state_->thread.join();
}

void Proxy::SetDelay(absl::Duration delay) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->faults.delay = delay;
}
void Proxy::SetStalled(bool on) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->faults.stalled = on;
}
void Proxy::Cut() { state_->cut = true; }
void Proxy::CorruptAt(uint64_t offset) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->faults.corrupt_at = offset;
}
void Proxy::CorruptAfter(absl::string_view marker) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->faults.corrupt_after = std::string(marker);
}
void Proxy::CorruptRandomly(uint64_t one_in, uint64_t seed) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->faults.corrupt_one_in = one_in;
  state_->random.seed(seed);
}
void Proxy::StopCorrupting() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->faults.corrupt_at.reset();
  state_->faults.corrupt_after.clear();
  state_->faults.corrupt_one_in = 0;
}
ProxyStats Proxy::stats() const { return {state_->connections, state_->bytes, state_->corrupted_bytes}; }

}  // namespace perigee::fault
