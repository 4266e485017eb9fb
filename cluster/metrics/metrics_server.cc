#include "cluster/metrics/metrics_server.h"

#include <httplib.h>

#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace perigee::cluster {
namespace {

// One scraper, probes, and somebody who looks: a slow one must not keep the others waiting.
constexpr size_t kThreads = 4;
constexpr time_t kPatience_s = 2;

}  // namespace

class MetricsServer::Impl {
 public:
  explicit Impl(Sources sources) : sources_(std::move(sources)) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_read_timeout(kPatience_s);
    server_.set_write_timeout(kPatience_s);
    server_.set_keep_alive_max_count(1);  // A connection that is kept would keep a thread.
    server_.set_payload_max_length(4096);
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      MetricFamilies families;
      CollectProcess(sources_.process, sources_.version, families);
      sources_.collect(families);
      response.set_content(families.Text(), "text/plain; version=0.0.4; charset=utf-8");
    });
    server_.Get("/health", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server_.Get("/ready", [this](const httplib::Request&, httplib::Response& response) {
      const absl::Status ready = sources_.ready();
      response.status = ready.ok() ? 200 : 503;
      response.set_content(ready.ok() ? "ok\n" : absl::StrCat(ready.message(), "\n"), "text/plain");
    });
  }
  ~Impl() {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const std::string& listen) {
    const size_t colon = listen.rfind(':');
    int port = -1;
    if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(listen.substr(colon + 1), &port) || port < 0 ||
        port > 65535) {
      return absl::InvalidArgumentError(absl::StrCat("metrics address '", listen, "' is not host:port"));
    }
    const std::string host = listen.substr(0, colon);
    const std::string bare = host.size() > 2 && host.front() == '[' ? host.substr(1, host.size() - 2) : host;
    // The library's own option would let two processes share a port.
    server_.set_socket_options([](socket_t socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    const bool bound =
        port == 0 ? (port = server_.bind_to_any_port(bare.c_str())) > 0 : server_.bind_to_port(bare.c_str(), port);
    if (!bound) {
      return absl::AlreadyExistsError(absl::StrCat("cannot serve metrics on ", listen,
                                                   ": the port is in use or the address is not of this machine; "
                                                   "choose another"));
    }
    address_ = absl::StrCat(host, ":", port);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // Stopping a server that has not begun would do nothing.
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (!server_.is_running()) {
      if (absl::Now() > deadline) return absl::DeadlineExceededError("the metrics' server does not start");
      std::this_thread::yield();
    }
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }

 private:
  const Sources sources_;
  httplib::Server server_;
  std::string address_;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& listen, Sources sources) {
  auto impl = std::make_unique<Impl>(std::move(sources));
  const absl::Status listening = impl->Listen(listen);
  if (!listening.ok()) return listening;
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsServer::~MetricsServer() = default;
const std::string& MetricsServer::address() const { return impl_->address(); }

}  // namespace perigee::cluster
