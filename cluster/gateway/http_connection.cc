#include "cluster/gateway/http_connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/gateway/openai.h"

namespace perigee::cluster {
namespace {

constexpr size_t kReadBytes = size_t{16} << 10;
constexpr size_t kMaxTargetBytes = 2048;
constexpr size_t kMaxHeaders = 100;

int PollTimeout(absl::Time until) {
  if (until == absl::InfiniteFuture()) return -1;
  const int64_t left_ms = absl::ToInt64Milliseconds(absl::Ceil(until - absl::Now(), absl::Milliseconds(1)));
  return static_cast<int>(std::clamp<int64_t>(left_ms, 0, 1 << 30));
}

// poll() that signals do not end. 0: the time is over.
int Poll(pollfd* fds, nfds_t count, absl::Time until) {
  for (;;) {
    const int ready = ::poll(fds, count, PollTimeout(until));
    if (ready > 0) return ready;
    if (ready < 0 && errno != EINTR) return -1;
    if (ready == 0 && absl::Now() >= until) return 0;
  }
}

bool IsTokenCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::string_view("!#$%&'*+-.^_`|~").find(c) != absl::string_view::npos;
}

bool IsValueCharacter(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte == '\t' || (byte >= 0x20 && byte != 0x7F);
}

}  // namespace

HttpConnection::HttpConnection(UniqueFd socket, SSL_CTX* tls, int wake_fd, const HttpConnectionLimits& limits)
    : socket_(std::move(socket)), wake_fd_(wake_fd), limits_(limits) {
  if (tls == nullptr) return;
  ssl_ = ::SSL_new(tls);
  if (ssl_ != nullptr) ::SSL_set_fd(ssl_, socket_.get());
  failed_ = ssl_ == nullptr;
}

HttpConnection::~HttpConnection() {
  if (ssl_ != nullptr) ::SSL_free(ssl_);
}

absl::Status HttpConnection::Handshake() {
  if (failed_) return absl::ResourceExhaustedError("no memory for a TLS session");
  if (ssl_ == nullptr) return absl::OkStatus();
  const absl::Time deadline = absl::Now() + limits_.read_timeout;
  for (;;) {
    const int accepted = ::SSL_accept(ssl_);
    if (accepted == 1) return absl::OkStatus();
    const int error = ::SSL_get_error(ssl_, accepted);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) break;
    pollfd fds[] = {{socket_.get(), static_cast<short>(error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT), 0},
                    {wake_fd_, POLLIN, 0}};
    if (Poll(fds, 2, deadline) <= 0 || fds[1].revents != 0) break;
  }
  failed_ = true;
  return absl::CancelledError("the TLS handshake failed");
}

ssize_t HttpConnection::TryRead(char* data, size_t bytes, short* wanted) {
  *wanted = POLLIN;
  if (ssl_ == nullptr) {
    const ssize_t got = ::recv(socket_.get(), data, bytes, 0);
    if (got >= 0) return got;
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) *wanted = 0;
    return -1;
  }
  const int got = ::SSL_read(ssl_, data, static_cast<int>(bytes));
  if (got > 0) return got;
  const int error = ::SSL_get_error(ssl_, got);
  if (error == SSL_ERROR_ZERO_RETURN) return 0;
  *wanted = error == SSL_ERROR_WANT_READ ? POLLIN : error == SSL_ERROR_WANT_WRITE ? POLLOUT : 0;
  return -1;
}

ssize_t HttpConnection::TryWrite(const char* data, size_t bytes, short* wanted) {
  *wanted = POLLOUT;
  if (ssl_ == nullptr) {
    const ssize_t sent = ::send(socket_.get(), data, bytes, MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) *wanted = 0;
    return -1;
  }
  const int sent = ::SSL_write(ssl_, data, static_cast<int>(std::min<size_t>(bytes, 1 << 20)));
  if (sent > 0) return sent;
  const int error = ::SSL_get_error(ssl_, sent);
  *wanted = error == SSL_ERROR_WANT_READ ? POLLIN : error == SSL_ERROR_WANT_WRITE ? POLLOUT : 0;
  return -1;
}

ssize_t HttpConnection::Fill(absl::Time deadline, bool idle) {
  if (buffer_at_ == buffer_.size()) {
    buffer_.clear();
    buffer_at_ = 0;
  }
  const size_t old_bytes = buffer_.size();
  for (;;) {
    short wanted = 0;
    buffer_.resize(old_bytes + kReadBytes);
    const ssize_t got = TryRead(buffer_.data() + old_bytes, kReadBytes, &wanted);
    buffer_.resize(old_bytes + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got >= 0) return got;
    if (wanted == 0) return -1;
    pollfd fds[] = {{socket_.get(), wanted, 0}, {wake_fd_, POLLIN, 0}};
    if (Poll(fds, idle ? 2 : 1, deadline) <= 0) return -1;
    if (fds[0].revents == 0) return -1;  // Woken: idle connections are to end.
  }
}

absl::Status HttpConnection::ReadHead() {
  const absl::Status gone = absl::CancelledError("the connection has ended");
  if (failed_) return gone;
  buffer_.erase(0, buffer_at_);
  buffer_at_ = 0;
  has_body_ = false;
  read_deadline_ = absl::Now() + limits_.idle_timeout;
  bool idle = true;
  for (;;) {
    // Empty lines may stand before a request.
    size_t begin = 0;
    while (absl::StartsWith(absl::string_view(buffer_).substr(begin), "\r\n")) begin += 2;
    buffer_.erase(0, begin);
    if (idle && !buffer_.empty()) {
      idle = false;
      read_deadline_ = absl::Now() + limits_.read_timeout;
    }
    const size_t end = buffer_.find("\r\n\r\n");
    if (end != std::string::npos && end <= limits_.max_head_bytes) {
      const std::string head = buffer_.substr(0, end + 2);
      buffer_at_ = end + 4;
      return CheckHead(head);
    }
    if (buffer_.size() > limits_.max_head_bytes) {
      return HttpError(431,
                       absl::StrCat("the request's head has more than the ", limits_.max_head_bytes, " bytes allowed"));
    }
    const ssize_t got = Fill(read_deadline_, idle);
    if (got > 0) continue;
    if (!idle && got < 0 && absl::Now() >= read_deadline_) return HttpError(408, "the request did not arrive in time");
    return gone;
  }
}

// What goes on to the library: the lines without those that it should not act on.
absl::Status HttpConnection::CheckHead(absl::string_view head) {
  const absl::Status bad = HttpError(400, "the request is no valid HTTP");
  std::vector<absl::string_view> lines = absl::StrSplit(absl::StripSuffix(head, "\r\n"), "\r\n");
  const std::vector<absl::string_view> words = absl::StrSplit(lines[0], ' ');
  if (words.size() != 3 || words[0].empty() || words[1].empty() ||
      !std::all_of(words[0].begin(), words[0].end(), IsTokenCharacter) ||
      !std::all_of(words[1].begin(), words[1].end(), [](unsigned char c) { return absl::ascii_isgraph(c); })) {
    return bad;
  }
  if (words[1].size() > kMaxTargetBytes) return HttpError(414, "the request's path is too long");
  if (words[2] != "HTTP/1.1" && words[2] != "HTTP/1.0")
    return HttpError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
  if (lines.size() > kMaxHeaders) return HttpError(431, absl::StrCat("more than ", kMaxHeaders, " header lines"));
  head_ = absl::StrCat(lines[0], "\r\n");
  head_at_ = 0;
  bool has_length = false, chunked = false;
  for (size_t i = 1; i < lines.size(); ++i) {
    const size_t colon = lines[i].find(':');
    if (colon == absl::string_view::npos || colon == 0) return bad;
    const absl::string_view name = lines[i].substr(0, colon);
    absl::string_view value = absl::StripAsciiWhitespace(lines[i].substr(colon + 1));
    if (!std::all_of(name.begin(), name.end(), IsTokenCharacter) ||
        !std::all_of(value.begin(), value.end(), IsValueCharacter)) {
      return bad;
    }
    if (absl::EqualsIgnoreCase(name, "Content-Length")) {
      uint64_t length = 0;
      if (has_length || value.empty() ||
          !std::all_of(value.begin(), value.end(), [](unsigned char c) { return absl::ascii_isdigit(c); }) ||
          !absl::SimpleAtoi(value, &length)) {
        return bad;
      }
      has_length = true;
      if (length > limits_.max_body_bytes) {
        return HttpError(
            413, absl::StrCat("the body has ", length, " bytes; at most ", limits_.max_body_bytes, " are allowed"));
      }
      has_body_ = length > 0;
    } else if (absl::EqualsIgnoreCase(name, "Transfer-Encoding")) {
      if (chunked || !absl::EqualsIgnoreCase(value, "chunked")) return bad;
      chunked = true;
      value = "chunked";
    } else if (absl::EqualsIgnoreCase(name, "Connection")) {
      if (absl::StrContains(absl::AsciiStrToLower(value), "close")) value = "close";
      if (absl::EqualsIgnoreCase(value, "keep-alive")) value = "Keep-Alive";
    } else if (absl::EqualsIgnoreCase(name, "Expect")) {
      if (!absl::EqualsIgnoreCase(value, "100-continue"))
        return HttpError(417, "only Expect: 100-continue is understood");
      value = "100-continue";
    } else if (absl::EqualsIgnoreCase(name, "Range") || absl::EqualsIgnoreCase(name, "Accept-Encoding")) {
      continue;  // Answers are whole and plain.
    }
    absl::StrAppend(&head_, name, ": ", value, "\r\n");
  }
  if (has_length && chunked) return bad;
  has_body_ = has_body_ || chunked;
  const bool sends = words[0] == "POST" || words[0] == "PUT" || words[0] == "PATCH";
  if (sends && !has_length && !chunked) return HttpError(411, "the request has no Content-Length");
  head_ += "\r\n";
  return absl::OkStatus();
}

ssize_t HttpConnection::read(char* data, size_t bytes) {
  for (auto [text, at] : {std::pair(&head_, &head_at_), std::pair(&buffer_, &buffer_at_)}) {
    if (*at == text->size()) continue;
    const size_t part = std::min(bytes, text->size() - *at);
    std::memcpy(data, text->data() + *at, part);
    *at += part;
    return static_cast<ssize_t>(part);
  }
  if (failed_ || bytes == 0) return -1;
  const ssize_t got = Fill(read_deadline_, /*idle=*/false);
  if (got <= 0) return got;
  const size_t part = std::min(bytes, static_cast<size_t>(got));
  std::memcpy(data, buffer_.data() + buffer_at_, part);
  buffer_at_ += part;
  return static_cast<ssize_t>(part);
}

ssize_t HttpConnection::write(const char* data, size_t bytes) {
  if (failed_) return -1;
  const absl::Time deadline = absl::Now() + limits_.write_timeout;
  for (;;) {
    short wanted = 0;
    const ssize_t sent = TryWrite(data, bytes, &wanted);
    if (sent >= 0) return sent;
    pollfd fd = {socket_.get(), wanted, 0};
    if (wanted == 0 || Poll(&fd, 1, deadline) <= 0) break;
  }
  failed_ = true;
  return -1;
}

bool HttpConnection::PeerGone() const {
  pollfd fd = {socket_.get(), POLLRDHUP, 0};
  return ::poll(&fd, 1, 0) > 0;
}

bool HttpConnection::WaitFor(int event_fd, absl::Time until) const {
  pollfd fds[] = {{event_fd, POLLIN, 0}, {socket_.get(), POLLRDHUP, 0}};
  return Poll(fds, 2, until) > 0 && fds[1].revents == 0 && absl::Now() < until;
}

void HttpConnection::Abort() { ::shutdown(socket_.get(), SHUT_RDWR); }

void HttpConnection::Finish(absl::Duration patience) {
  if (!failed_ && ssl_ != nullptr) ::SSL_shutdown(ssl_);
  ::shutdown(socket_.get(), SHUT_WR);
  const absl::Time deadline = absl::Now() + patience;
  char ignored[4096];
  do {
    const ssize_t got = ::recv(socket_.get(), ignored, sizeof(ignored), 0);
    if (got > 0) continue;
    pollfd fds[] = {{socket_.get(), POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    if (got == 0 || errno != EAGAIN || Poll(fds, 2, deadline) <= 0 || fds[1].revents != 0) return;
  } while (absl::Now() < deadline);
}

namespace {
void Describe(const sockaddr_storage& address, std::string& ip, int& port) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    port = ntohs(v4.sin_port);
  } else if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    port = ntohs(v6.sin6_port);
  }
  ip = text;
}
}  // namespace

void HttpConnection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t bytes = sizeof(address);
  if (::getpeername(socket_.get(), reinterpret_cast<sockaddr*>(&address), &bytes) == 0) Describe(address, ip, port);
}

void HttpConnection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t bytes = sizeof(address);
  if (::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &bytes) == 0) Describe(address, ip, port);
}

}  // namespace perigee::cluster
