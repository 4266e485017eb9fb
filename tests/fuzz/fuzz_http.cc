// Whatever bytes a client sends, the front door answers HTTP or hangs up, and serves the next client.
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "cluster/gateway/http_connection.h"

namespace {

using namespace perigee;

// The library as the server uses it, with one route that takes a body.
class Library final : public httplib::Server {
 public:
  Library() {
    svr_sock_ = 0;
    Post("/v1/completions",
         [](const httplib::Request&, httplib::Response& response, const httplib::ContentReader& content) {
           size_t bytes = 0;
           content([&](const char*, size_t more) { return (bytes += more) <= 4096; });
           response.set_content(std::to_string(bytes), "text/plain");
         });
    Get("/health",
        [](const httplib::Request&, httplib::Response& response) { response.set_content("ok", "text/plain"); });
  }
  using httplib::Server::process_request;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto* const library = new Library;
  if (size > 32768) return 0;  // What the sockets' buffers hold.
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  const UniqueFd client(fds[0]);
  if (::send(client.get(), data, size, MSG_NOSIGNAL) != static_cast<ssize_t>(size)) std::abort();
  ::shutdown(client.get(), SHUT_WR);
  cluster::HttpConnection connection(UniqueFd(fds[1]), nullptr, -1,
                                     {.max_head_bytes = 8192,
                                      .max_body_bytes = 16384,
                                      .read_timeout = absl::Seconds(5),
                                      .write_timeout = absl::ZeroDuration(),
                                      .idle_timeout = absl::Seconds(5)});
  while (connection.ReadHead().ok()) {
    bool closed = false;
    if (!library->process_request(connection, false, closed, nullptr) || closed) break;
  }
  char answer[4096];
  const ssize_t got = ::recv(client.get(), answer, sizeof(answer), 0);
  if (got >= 5 && absl::string_view(answer, 5) != "HTTP/") std::abort();
  return 0;
}
