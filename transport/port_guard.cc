#include "transport/port_guard.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "transport/address.h"

namespace perigee::transport::internal {
namespace {

constexpr unsigned kUserTimeoutMs = 30000;  // longer than the transport's own patience
constexpr uint32_t kAccept = 0xffffffff, kDrop = 0;

// Offsets of the network header, whatever the socket's packets begin with.
uint32_t Net(int offset) { return static_cast<uint32_t>(SKF_NET_OFF + offset); }

std::vector<sock_filter> Program(const std::map<uint32_t, int>& v4, const std::map<std::array<uint32_t, 4>, int>& v6) {
  std::vector<sock_filter> out;
  const auto load = [&](int offset) { out.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, Net(offset))); };
  const auto end = [&](uint32_t verdict) { out.push_back(BPF_STMT(BPF_RET | BPF_K, verdict)); };
  // IPv4's part: loads, loopback, the addresses.
  const uint32_t v4_length = static_cast<uint32_t>(5 + 2 * v4.size() + 1);
  out.push_back(BPF_STMT(BPF_LD | BPF_B | BPF_ABS, Net(0)));
  out.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xf0));
  out.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x40, 1, 0));
  out.push_back(BPF_STMT(BPF_JMP | BPF_JA, v4_length));
  load(12);
  out.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff000000));
  out.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x7f000000, 0, 1));
  end(kAccept);
  load(12);
  for (const auto& [address, times] : v4) {
    out.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, address, 0, 1));
    end(kAccept);
  }
  end(kDrop);
  // IPv6's: each address word by word.
  std::vector<std::array<uint32_t, 4>> addresses = {{0, 0, 0, 1}};
  for (const auto& [address, times] : v6) addresses.push_back(address);
  for (const std::array<uint32_t, 4>& address : addresses) {
    for (int i = 0; i < 4; ++i) {
      load(8 + 4 * i);
      const auto miss = static_cast<uint8_t>(2 * (3 - i) + 1);
      out.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, address[i], 0, miss));
    }
    end(kAccept);
  }
  end(kDrop);
  return out;
}

// fn(descriptor) for every TCP socket of this process.
template <typename Fn>
void ForEachSocket(Fn fn) {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    const int fd = std::atoi(entry->d_name);
    int type = 0, domain = 0;
    socklen_t length = sizeof(int);
    if (fd <= 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_STREAM) continue;
    length = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0) continue;
    if (domain == AF_INET || domain == AF_INET6) fn(fd);
  }
  closedir(folder);
}

uint16_t LocalPort(int socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  return getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) == 0 ? AddressPort(address) : uint16_t{0};
}

absl::Status AttachProgram(int socket, std::vector<sock_filter> program) {
  const sock_fprog filter = {static_cast<unsigned short>(program.size()), program.data()};
  if (setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) != 0) {
    return ErrnoStatus("attach a packet filter to", "a listening socket", errno);
  }
  return absl::OkStatus();
}

}  // namespace

std::set<int> PortGuard::ListeningSockets() {
  std::set<int> out;
  ForEachSocket([&](int fd) {
    int listens = 0;
    socklen_t length = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens != 0) out.insert(fd);
  });
  return out;
}

std::vector<uint16_t> PortGuard::Ports() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<uint16_t> ports;
  for (const int socket : sockets_) ports.push_back(LocalPort(socket));
  return ports;
}

void PortGuard::Harden(const std::string& peer_host, const std::vector<uint16_t>& peer_ports) const {
  const std::vector<uint16_t> own = Ports();
  const auto among = [](const std::vector<uint16_t>& ports, uint16_t port) {
    return port != 0 && std::find(ports.begin(), ports.end(), port) != ports.end();
  };
  ForEachSocket([&](int fd) {
    sockaddr_storage peer{};
    socklen_t length = sizeof(peer);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) return;
    if (!among(own, LocalPort(fd)) && !(among(peer_ports, AddressPort(peer)) && AddressHost(peer) == peer_host)) return;
    const linger reset = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof(kUserTimeoutMs));
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  });
}

absl::Status PortGuard::Adopt(const std::set<int>& before) {
  absl::Status status;
  const std::set<int> now = ListeningSockets();
  std::lock_guard<std::mutex> lock(mutex_);
  for (const int socket : now) {
    if (before.contains(socket) || !sockets_.insert(socket).second) continue;
    if (guarded_) status.Update(Attach(socket));
  }
  return status;
}

void PortGuard::Forget(const std::vector<int>& sockets) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const int socket : sockets) sockets_.erase(socket);
}

absl::Status PortGuard::Attach(int socket) const { return AttachProgram(socket, Program(v4_, v6_)); }

absl::Status PortGuard::Admit(const sockaddr_storage& address) {
  if (!guarded_) return absl::OkStatus();
  std::lock_guard<std::mutex> lock(mutex_);
  return Change(address, 1);
}

void PortGuard::Dismiss(const sockaddr_storage& address) {
  if (!guarded_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  Change(address, -1).IgnoreError();  // a smaller filter fits
}

absl::Status PortGuard::Change(const sockaddr_storage& address, int by) {
  auto v4 = v4_;
  auto v6 = v6_;
  const auto count = [by](auto& addresses, const auto& key) {
    const auto it = addresses.try_emplace(key, 0).first;
    it->second += by;
    if (it->second <= 0) addresses.erase(it);
  };
  if (address.ss_family == AF_INET) {
    count(v4, ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr));
  } else {
    std::array<uint32_t, 4> words{};
    std::memcpy(words.data(), &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, sizeof(words));
    for (uint32_t& word : words) word = ntohl(word);
    if (words[0] == 0 && words[1] == 0 && words[2] == 0xffff) {
      count(v4, words[3]);
    } else {
      count(v6, words);
    }
  }
  const bool same = v4.size() == v4_.size() && v6.size() == v6_.size();
  if (!same && Program(v4, v6).size() > BPF_MAXINSNS) {
    return absl::ResourceExhaustedError(absl::StrCat(v4.size() + v6.size(),
                                                     " addresses do not fit the filter of this "
                                                     "context's ports; let fewer hosts connect"));
  }
  v4_ = std::move(v4);
  v6_ = std::move(v6);
  absl::Status status;
  if (!same) {
    for (const int socket : sockets_) status.Update(Attach(socket));
  }
  return status;
}

void PortGuard::Close(const std::vector<int>& sockets) {
  for (const int socket : sockets) {
    // Without it, a connection that comes in the last moment is UCX's own risk.
    AttachProgram(socket, {BPF_STMT(BPF_RET | BPF_K, kDrop)}).IgnoreError();
  }
}

}  // namespace perigee::transport::internal
