// Redis as a peer: a server on the loopback and a client of ours that writes each value from where it lies and reads
// each answer straight into a buffer of its own, which costs the client less than any library would.
#ifndef PERIGEE_BENCH_PEERS_REDIS_H_
#define PERIGEE_BENCH_PEERS_REDIS_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/file.h"
#include "peers/children.h"

namespace perigee::bench {

// One connection. Not thread-safe.
class Redis {
 public:
  // Starts redis-server, pinned like every server here, without persistence. NOT_FOUND where it is not installed.
  static absl::StatusOr<std::unique_ptr<Redis>> Start();
  static std::string ServerCommand();

  // `value` under every key, in order; at most `window` commands wait for their answer (pipelined where it is more than
  // one).
  absl::Status Set(std::span<const std::string> keys, absl::string_view value, size_t window);
  // Fetches the keys, whose values all have so many bytes, in order, `window` of them asked for at any time. Answer i
  // is read into buffer i % window.
  absl::Status Get(std::span<const std::string> keys, size_t bytes, size_t window);
  // The value that Get read last into a buffer.
  absl::string_view value(size_t buffer) const;
  absl::Status Delete(std::span<const std::string> keys);
  double CpuSeconds() const { return OwnCpuSeconds() + server_.CpuSeconds(); }

 private:
  Redis(const std::vector<std::string>& command, int processor) : server_(command, processor) {}
  absl::Status Send(std::span<const absl::string_view> pieces) const;  // as one stream
  absl::Status Send(absl::string_view bytes) const { return Send({&bytes, 1}); }
  absl::Status Receive(std::span<char> to) const;   // exactly so many bytes
  absl::StatusOr<std::string> ReceiveLine() const;  // without its CR LF

  Child server_;
  UniqueFd socket_;
  std::vector<std::vector<char>> buffers_;  // whole answers: "$BYTES CR LF", the value, CR LF
  size_t head_bytes_ = 0, value_bytes_ = 0;
};

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_PEERS_REDIS_H_
