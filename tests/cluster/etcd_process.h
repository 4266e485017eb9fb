// Real etcd servers on free ports of this machine, for tests that stop, pause and wipe them, and a wire to be cut.
#ifndef PERIGEE_TESTS_CLUSTER_ETCD_PROCESS_H_
#define PERIGEE_TESTS_CLUSTER_ETCD_PROCESS_H_

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "cluster/membership/etcd_client.h"
#include "cluster/process.h"

namespace perigee::cluster {

inline constexpr char kEtcd[] = "/usr/bin/etcd";
inline bool HaveEtcd() { return ::access(kEtcd, X_OK) == 0; }

// A socket on 127.0.0.1 that listens, and its port. Port 0: any.
inline std::pair<UniqueFd, int> ListenLocally(int port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::listen(fd.get(), 64), 0);
  socklen_t size = sizeof(address);
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return {std::move(fd), ntohs(address.sin_port)};
}
inline int FreePort() { return ListenLocally(0).second; }

class EtcdServer {
 public:
  struct Place {
    std::string name;
    int client_port = FreePort();
    int peer_port = FreePort();
    std::string peer() const { return absl::StrCat(name, "=http://127.0.0.1:", peer_port); }
  };
  EtcdServer(const std::string& folder, Place place, std::string initial_cluster)
      : folder_(folder), place_(std::move(place)), initial_cluster_(std::move(initial_cluster)) {}
  static EtcdServer Alone(const std::string& folder) {
    Place place{.name = "alone"};
    std::string cluster = place.peer();
    return EtcdServer(folder, std::move(place), std::move(cluster));
  }

  // From now on clients must speak TLS and show a certificate of this authority.
  void DemandTls(const std::string& ca, const std::string& certificate, const std::string& key) {
    tls_arguments_ =
        absl::StrCat(" --client-cert-auth --trusted-ca-file ", ca, " --cert-file ", certificate, " --key-file ", key);
  }

  void Start() {
    const std::string client =
        absl::StrCat(tls_arguments_.empty() ? "http" : "https", "://127.0.0.1:", place_.client_port);
    const std::string peer = absl::StrCat("http://127.0.0.1:", place_.peer_port);
    // Through a shell, which does not mind the arguments that ChildProcess adds.
    auto process = ChildProcess::Start(
        "/bin/sh",
        {"-c",
         absl::StrCat("exec ", kEtcd, " --name ", place_.name, " --data-dir ", data(), " --listen-client-urls ", client,
                      " --advertise-client-urls ", client, " --listen-peer-urls ", peer,
                      " --initial-advertise-peer-urls ", peer, " --initial-cluster ", initial_cluster_,
                      " --heartbeat-interval 50 --election-timeout 500 --logger zap --log-level warn", tls_arguments_)},
        absl::StrCat(folder_, "/", place_.name, ".log"));
    ASSERT_TRUE(process.ok()) << process.status();
    process_.emplace(*std::move(process));
  }
  void Kill() { process_.reset(); }
  void Wipe() { std::filesystem::remove_all(data()); }
  void Pause() { ::kill(process_->pid(), SIGSTOP); }
  void Resume() { ::kill(process_->pid(), SIGCONT); }
  int port() const { return place_.client_port; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port()); }

  // Has it forget what is older than `revision`.
  bool Compact(int64_t revision) const {
    const auto kv = etcdserverpb::KV::NewStub(grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(20)));
    etcdserverpb::CompactionRequest request;
    request.set_revision(revision);
    etcdserverpb::CompactionResponse response;
    return kv->Compact(&context, request, &response).ok();
  }

  // Until it answers; else why it does not.
  absl::Status AwaitReady(EtcdOptions options = {}) const {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    options.endpoints = {address()};
    options.call_deadline = absl::Seconds(1);
    const auto client = EtcdClient::Create(options);
    for (;;) {
      const absl::Status status = (*client)->Get("/").status();
      if (status.ok() || absl::Now() > deadline) return status;
      absl::SleepFor(absl::Milliseconds(20));
    }
  }

 private:
  std::string data() const { return absl::StrCat(folder_, "/", place_.name); }
  std::string folder_;
  Place place_;
  std::string initial_cluster_;
  std::string tls_arguments_;
  std::optional<ChildProcess> process_;
};

// Passes connections on to a port, until it is cut.
class Wire {
 public:
  explicit Wire(int target_port) : target_port_(target_port), port_(FreePort()) { Mend(); }
  ~Wire() { Cut(); }
  // Ends all connections, and refuses new ones.
  void Cut() {
    if (!thread_.joinable()) return;
    stopping_ = true;
    thread_.join();
  }
  void Mend() {
    stopping_ = false;
    thread_ = std::thread([this, listener = ListenLocally(port_).first]() mutable { Run(std::move(listener)); });
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  void Run(UniqueFd listener) {
    std::vector<UniqueFd> ends;  // Each connection's two, side by side.
    while (!stopping_) {
      std::vector<pollfd> wait = {{listener.get(), POLLIN, 0}};
      for (const UniqueFd& end : ends) wait.push_back({end.get(), POLLIN, 0});
      if (::poll(wait.data(), wait.size(), 10) <= 0) continue;
      std::vector<UniqueFd> left;
      for (size_t i = 0; i < ends.size(); i += 2) {
        const bool open = Pump(wait[i + 1], ends[i + 1].get()) && Pump(wait[i + 2], ends[i].get());
        if (!open) continue;
        left.push_back(std::move(ends[i]));
        left.push_back(std::move(ends[i + 1]));
      }
      ends = std::move(left);
      if ((wait[0].revents & POLLIN) == 0) continue;
      UniqueFd in(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      UniqueFd out(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      address.sin_port = htons(static_cast<uint16_t>(target_port_));
      if (::connect(out.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) continue;
      ends.push_back(std::move(in));
      ends.push_back(std::move(out));
    }
  }
  // False: the connection has ended.
  static bool Pump(const pollfd& from, int to) {
    if (from.revents == 0) return true;
    char buffer[1 << 16];
    const ssize_t n = ::read(from.fd, buffer, sizeof(buffer));
    return n > 0 && ::send(to, buffer, static_cast<size_t>(n), MSG_NOSIGNAL) == n;
  }

  const int target_port_;
  const int port_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_TESTS_CLUSTER_ETCD_PROCESS_H_
