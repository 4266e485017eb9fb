// One client's connection as the HTTP library reads and writes it, plain or TLS: with deadlines, with bounds on what is
// read, and with an eye on whether the client is still there.
//
// The head of every request is read and checked here before the library sees it: its size, its lines, that its length
// is said exactly one way. What comes behind a request stays in the buffer for the next one. Internal to
// cluster/gateway.
#ifndef PERIGEE_CLUSTER_GATEWAY_HTTP_CONNECTION_H_
#define PERIGEE_CLUSTER_GATEWAY_HTTP_CONNECTION_H_

#include <httplib.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/file.h"

namespace perigee::cluster {

struct HttpConnectionLimits {
  size_t max_head_bytes = size_t{16} << 10;
  size_t max_body_bytes = size_t{8} << 20;
  absl::Duration read_timeout = absl::Seconds(30);   // For a request's head and body together.
  absl::Duration write_timeout = absl::Seconds(30);  // Without any byte going out.
  absl::Duration idle_timeout = absl::Seconds(75);   // Between requests.
};

// Used by its connection's thread, except for what is said below. Closes the socket when it goes.
class HttpConnection final : public httplib::Stream {
 public:
  // `tls`: null for plain HTTP. `wake_fd` becomes readable, for good, when idle connections are to end.
  HttpConnection(UniqueFd socket, SSL_CTX* tls, int wake_fd, const HttpConnectionLimits& limits);
  ~HttpConnection() override;

  // The TLS handshake; nothing for plain HTTP.
  absl::Status Handshake();

  // Waits for a request's head. CANCELLED: the connection has ended or is to end, with nothing to answer; otherwise an
  // error to be answered (see HttpError), after which the connection cannot go on.
  absl::Status ReadHead();
  // Of the last head.
  bool has_body() const { return has_body_; }

  // Whether the client has closed its side, which is taken for having gone.
  bool PeerGone() const;
  // Waits until `event_fd` is readable (true), the client has gone or the time has come (false).
  bool WaitFor(int event_fd, absl::Time until) const;

  // Any thread: ends all reading and writing.
  void Abort();

  // Says that no more comes, and takes in what is still on its way for so long, so that the client can read the answer.
  void Finish(absl::Duration patience = absl::Seconds(1));

  // For the library.
  bool is_readable() const override { return true; }
  bool is_writable() const override { return !failed_ && !PeerGone(); }
  ssize_t read(char* data, size_t bytes) override;
  ssize_t write(const char* data, size_t bytes) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return -1; }  // It would refuse large ones, for a select() that is not used.

 private:
  // More into the buffer: the bytes, 0 at the end, negative on errors and when the time is over.
  ssize_t Fill(absl::Time deadline, bool idle);
  ssize_t TryRead(char* data, size_t bytes, short* wanted);
  ssize_t TryWrite(const char* data, size_t bytes, short* wanted);
  absl::Status CheckHead(absl::string_view head);

  const UniqueFd socket_;
  const int wake_fd_;
  const HttpConnectionLimits limits_;
  SSL* ssl_ = nullptr;
  std::string head_;  // Checked, for the library to read first.
  size_t head_at_ = 0;
  std::string buffer_;  // Read from the socket, not yet used.
  size_t buffer_at_ = 0;
  absl::Time read_deadline_ = absl::InfiniteFuture();
  bool has_body_ = false;
  bool failed_ = false;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_HTTP_CONNECTION_H_
