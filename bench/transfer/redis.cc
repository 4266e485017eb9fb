#include "transfer/redis.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

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

absl::Status Redis::Send(absl::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t sent = send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return ErrnoStatus("send", "redis", errno);
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return absl::OkStatus();
}

absl::Status Redis::Receive(size_t bytes) {
  buffer_.resize(std::max(buffer_.size(), bytes));
  for (size_t got = 0; got < bytes;) {
    const ssize_t received = recv(socket_.get(), buffer_.data() + got, bytes - got, 0);
    if (received <= 0) return ErrnoStatus("recv", "redis", received == 0 ? ECONNRESET : errno);
    got += static_cast<size_t>(received);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Redis::ReceiveLine() {
  // A line is short: by single bytes, so that none of the value's is taken.
  std::string line;
  while (line.size() < 2 || line.substr(line.size() - 2) != "\r\n") {
    char byte;
    if (recv(socket_.get(), &byte, 1, 0) != 1) return ErrnoStatus("recv", "redis", errno);
    line.push_back(byte);
  }
  line.resize(line.size() - 2);
  return line;
}

absl::Status Redis::Set(size_t bytes) {
  PERIGEE_RETURN_IF_ERROR(Send(absl::StrCat("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$", bytes, "\r\n")));
  PERIGEE_RETURN_IF_ERROR(Send(std::string(bytes, 'v')));
  PERIGEE_RETURN_IF_ERROR(Send("\r\n"));
  PERIGEE_ASSIGN_OR_RETURN(const std::string answer, ReceiveLine());
  return answer == "+OK" ? absl::OkStatus() : absl::InternalError(absl::StrCat("redis answered SET with ", answer));
}

absl::Status Redis::Get(size_t bytes, size_t times) {
  // The whole answer has a known length: "$N CR LF", the value, CR LF. One recv loop for all of it.
  const std::string head = absl::StrCat("$", bytes, "\r\n");
  for (size_t i = 0; i < times; ++i) {
    PERIGEE_RETURN_IF_ERROR(Send("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"));
    PERIGEE_RETURN_IF_ERROR(Receive(head.size() + bytes + 2));
    const absl::string_view answer(buffer_.data(), head.size());
    if (answer != head) return absl::InternalError(absl::StrCat("redis answered GET with ", answer));
  }
  return absl::OkStatus();
}

}  // namespace perigee::bench
