// Inside of transport/: keeps strangers away from UCX's listening sockets.
//
// UCX 1.13 believes whoever connects: seventeen zero bytes on its listener's port, or a known magic number and junk on
// the port that every tcp device of a worker opens, end the process in an assertion. So a guarded context puts a packet
// filter (classic BPF, SO_ATTACH_FILTER; needs no rights) on those sockets: the kernel answers no address but this
// machine's own loopback and the admitted ones. Who is admitted has been authenticated before, over the control plane;
// on one host, addresses tell nobody apart.
#ifndef PERIGEE_TRANSPORT_PORT_GUARD_H_
#define PERIGEE_TRANSPORT_PORT_GUARD_H_

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace perigee::transport::internal {

// Any thread.
class PortGuard {
 public:
  // guarded: false lets everybody in until Close.
  explicit PortGuard(bool guarded) : guarded_(guarded) {}

  // This process's listening sockets. What UCX opens is the difference of before and after; no other thread should open
  // listening sockets meanwhile.
  static std::set<int> ListeningSockets();
  // Guards those that listen now and did not `before`.
  absl::Status Adopt(const std::set<int>& before);
  // Before UCX closes them: the numbers may be another's afterwards.
  void Forget(const std::vector<int>& sockets);

  // An address that is admitted n times stays until it was dismissed n times; connections that exist stay in any case.
  absl::Status Admit(const sockaddr_storage& address);
  void Dismiss(const sockaddr_storage& address);
  // The ports of the guarded sockets.
  std::vector<uint16_t> Ports() const;
  // Connections that came in through them, and those that went out to `peer_ports` of `peer_host`, shall close by a
  // reset, not wait for ever for an acknowledgement, and not be inherited by child processes. A reset, because UCX 1.13
  // asserts when an orderly end (FIN) meets data that it was about to send: a reader that gives up in the middle of a
  // get would take the store with it.
  void Harden(const std::string& peer_host, const std::vector<uint16_t>& peer_ports) const;

  // Nobody connects any more, admitted or not.
  void Close(const std::vector<int>& sockets);

 private:
  // mutex_ held:
  absl::Status Attach(int socket) const;
  absl::Status Change(const sockaddr_storage& address, int by);

  const bool guarded_;
  mutable std::mutex mutex_;
  std::set<int> sockets_;
  // Address, host byte order -> how often it is admitted.
  std::map<uint32_t, int> v4_;
  std::map<std::array<uint32_t, 4>, int> v6_;
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_PORT_GUARD_H_
