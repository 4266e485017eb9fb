// A proxy in the router through which every TCP connection between the hosts goes: the way to delay, stall, cut and
// corrupt where the kernel has no means for it. Neither side is told: connections are redirected on their way, also
// those to ports that the two sides agree on among themselves (UCX's data connections).
//
// Threads: one of its own moves the bytes; any thread may call.
#ifndef PERIGEE_TESTS_FAULT_PROXY_H_
#define PERIGEE_TESTS_FAULT_PROXY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "hosts.h"

namespace perigee::fault {

struct ProxyStats {
  uint64_t connections = 0;
  uint64_t bytes = 0;            // passed on
  uint64_t corrupted_bytes = 0;  // of them
};

class Proxy {
 public:
  // Catches connections opened from now on. `network` outlives it.
  static absl::StatusOr<std::unique_ptr<Proxy>> Start(Network* network);
  // Ends the redirection and resets what goes through it.
  ~Proxy();

  // One way.
  void SetDelay(absl::Duration delay);
  // Passes nothing on; connections stay open.
  void SetStalled(bool on);
  // Resets every connection.
  void Cut();

  // Every change is one byte ^ 0xff.
  // In each direction of each connection that is opened from now on, the byte at this offset of its stream.
  void CorruptAt(uint64_t offset);
  // The byte that follows each occurrence of `marker`, so that payload is hit and not its transport's headers.
  void CorruptAfter(absl::string_view marker);
  // About one byte in so many, chosen by the seed.
  void CorruptRandomly(uint64_t one_in, uint64_t seed);
  void StopCorrupting();

  ProxyStats stats() const;

 private:
  struct State;
  Proxy(Network* network, std::unique_ptr<State> state);
  Network* network_;
  std::unique_ptr<State> state_;
};

}  // namespace perigee::fault

#endif  // PERIGEE_TESTS_FAULT_PROXY_H_
