// Redis as the peer of a Get: a server on the loopback and a client of ours that reads each answer straight into one
// buffer, which costs the client less than any library would.
#ifndef PERIGEE_BENCH_TRANSFER_REDIS_H_
#define PERIGEE_BENCH_TRANSFER_REDIS_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file.h"
#include "transfer/children.h"

namespace perigee::bench {

class Redis {
 public:
  // Starts redis-server, pinned like every server here, without persistence. NOT_FOUND where it is not installed.
  static absl::StatusOr<std::unique_ptr<Redis>> Start();
  static std::string ServerCommand();

  absl::Status Set(size_t bytes);                // a value of so many bytes under one key
  absl::Status Get(size_t bytes, size_t times);  // fetches it, one answer after another, into one buffer
  double CpuSeconds() const { return OwnCpuSeconds() + server_.CpuSeconds(); }

 private:
  Redis(const std::vector<std::string>& command, int processor) : server_(command, processor) {}
  absl::Status Send(absl::string_view bytes) const;
  absl::Status Receive(size_t bytes);         // exactly so many, into buffer_
  absl::StatusOr<std::string> ReceiveLine();  // without its CR LF

  Child server_;
  UniqueFd socket_;
  std::vector<char> buffer_;
};

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_TRANSFER_REDIS_H_
