#include "peers/redis.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <initializer_list>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace perigee::bench {
namespace {

constexpr absl::Duration kServerStarts = absl::Seconds(5);

std::vector<std::string> ServerWords(int port) {
  // setpriv becomes redis-server, which then ends with this process however that ends.
  return {"setpriv",          "--pdeathsig", "KILL", "redis-server", "--bind", "127.0.0.1",  "--port",
          absl::StrCat(port), "--save",      "",     "--appendonly", "no",     "--loglevel", "warning"};
}

UniqueFd ConnectTo(int port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (!fd || connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return UniqueFd();
  const int one = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

}  // namespace

std::string Redis::ServerCommand() {
  return absl::StrCat("taskset -c ", PinnedProcessors().server, " redis-server --save '' --appendonly no");
}

absl::StatusOr<std::unique_ptr<Redis>> Redis::Start() {
  if (!Child({"redis-server", "--version"}, PinnedProcessors().server).started()) {
    return absl::NotFoundError("redis-server is not installed (scripts/setup.sh bench)");
  }
  const int port = 40000 + getpid() % 20000;
  std::unique_ptr<Redis> redis(new Redis(ServerWords(port), PinnedProcessors().server));
  if (!redis->server_.started()) return absl::NotFoundError("setpriv is not installed (Debian: util-linux)");
  for (const absl::Time limit = absl::Now() + kServerStarts; absl::Now() < limit;
       absl::SleepFor(absl::Milliseconds(20))) {
    redis->socket_ = ConnectTo(port);
    if (redis->socket_) return redis;
  }
  return absl::UnavailableError(
      absl::StrCat("nobody answers on port ", port, ": ", absl::StrJoin(ServerWords(port), " ")));
}

absl::Status Redis::Send(std::span<const absl::string_view> pieces) const {
  std::vector<iovec> left;
  for (const absl::string_view piece : pieces) left.push_back({const_cast<char*>(piece.data()), piece.size()});
  for (size_t first = 0; first < left.size();) {
    msghdr message{};
    message.msg_iov = left.data() + first;
    message.msg_iovlen = left.size() - first;
    ssize_t sent = sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (sent <= 0) return ErrnoStatus("sendmsg", "redis", errno);
    for (; first < left.size() && sent >= static_cast<ssize_t>(left[first].iov_len); ++first) {
      sent -= static_cast<ssize_t>(left[first].iov_len);
    }
    if (sent > 0) {
      left[first].iov_base = static_cast<char*>(left[first].iov_base) + sent;
      left[first].iov_len -= static_cast<size_t>(sent);
    }
  }
  return absl::OkStatus();
}

absl::Status Redis::Receive(std::span<char> to) const {
  while (!to.empty()) {
    const ssize_t received = recv(socket_.get(), to.data(), to.size(), 0);
    if (received <= 0) return ErrnoStatus("recv", "redis", received == 0 ? ECONNRESET : errno);
    to = to.subspan(static_cast<size_t>(received));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Redis::ReceiveLine() const {
  // A line is short: by single bytes, so that none of the next answer's is taken.
  std::string line;
  while (line.size() < 2 || line.substr(line.size() - 2) != "\r\n") {
    char byte;
    PERIGEE_RETURN_IF_ERROR(Receive({&byte, 1}));
    line.push_back(byte);
  }
  line.resize(line.size() - 2);
  return line;
}

absl::Status Redis::Set(std::span<const std::string> keys, absl::string_view value, size_t window) {
  constexpr absl::string_view kOk = "+OK\r\n";
  const auto receive = [&]() -> absl::Status {
    char answer[kOk.size()];
    PERIGEE_RETURN_IF_ERROR(Receive(answer));
    if (absl::string_view(answer, kOk.size()) == kOk) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("redis answered SET with ", absl::string_view(answer, kOk.size())));
  };
  size_t answered = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::string head =
        absl::StrCat("*3\r\n$3\r\nSET\r\n$", keys[i].size(), "\r\n", keys[i], "\r\n$", value.size(), "\r\n");
    PERIGEE_RETURN_IF_ERROR(Send(std::initializer_list<absl::string_view>{head, value, "\r\n"}));
    if (i + 1 - answered < window) continue;
    PERIGEE_RETURN_IF_ERROR(receive());
    ++answered;
  }
  for (; answered < keys.size(); ++answered) PERIGEE_RETURN_IF_ERROR(receive());
  return absl::OkStatus();
}

absl::Status Redis::Get(std::span<const std::string> keys, size_t bytes, size_t window) {
  // The whole answer has a known length: "$N CR LF", the value, CR LF. One recv loop for all of it.
  const std::string head = absl::StrCat("$", bytes, "\r\n");
  head_bytes_ = head.size();
  value_bytes_ = bytes;
  buffers_.resize(std::max(buffers_.size(), window));
  for (std::vector<char>& buffer : buffers_) buffer.resize(head.size() + bytes + 2);
  const auto ask = [&](const std::string& key) {
    return Send(absl::StrCat("*2\r\n$3\r\nGET\r\n$", key.size(), "\r\n", key, "\r\n"));
  };
  for (size_t i = 0; i < std::min(window, keys.size()); ++i) PERIGEE_RETURN_IF_ERROR(ask(keys[i]));
  for (size_t i = 0; i < keys.size(); ++i) {
    std::vector<char>& buffer = buffers_[i % window];
    PERIGEE_RETURN_IF_ERROR(Receive(buffer));
    const absl::string_view answer(buffer.data(), head.size());
    if (answer != head) return absl::InternalError(absl::StrCat("redis answered GET with ", answer));
    if (i + window < keys.size()) PERIGEE_RETURN_IF_ERROR(ask(keys[i + window]));
  }
  return absl::OkStatus();
}

absl::string_view Redis::value(size_t buffer) const {
  return absl::string_view(buffers_[buffer].data(), buffers_[buffer].size()).substr(head_bytes_, value_bytes_);
}

absl::Status Redis::Delete(std::span<const std::string> keys) {
  for (const std::string& key : keys) {
    PERIGEE_RETURN_IF_ERROR(Send(absl::StrCat("*2\r\n$3\r\nDEL\r\n$", key.size(), "\r\n", key, "\r\n")));
    PERIGEE_ASSIGN_OR_RETURN(const std::string answer, ReceiveLine());
    if (answer != ":1") return absl::InternalError(absl::StrCat("redis answered DEL with ", answer));
  }
  return absl::OkStatus();
}

}  // namespace perigee::bench
