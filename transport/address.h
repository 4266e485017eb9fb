// Inside of transport/: socket addresses as text and back.
#ifndef PERIGEE_TRANSPORT_ADDRESS_H_
#define PERIGEE_TRANSPORT_ADDRESS_H_

#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace perigee::transport::internal {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

// By name; may ask a name server. UNAVAILABLE when that does not answer, INVALID_ARGUMENT for unknown names.
absl::StatusOr<SocketAddress> ResolveAddress(const std::string& host, uint16_t port);
// A numeric address only.
absl::StatusOr<SocketAddress> ParseAddress(const std::string& host, uint16_t port);
// The first address of a network device, IPv4 before IPv6. NOT_FOUND.
absl::StatusOr<std::string> DeviceAddress(const std::string& device);

// Of several network devices the one with the default route, or else the first, and the loopback device, as a list for
// UCX, which wants a device named to connect over it. "" where there is no choice to make: fewer than two besides
// loopback, RDMA devices (UCX knows them better), or UCX_NET_DEVICES is set.
std::string DefaultDevices();

std::string AddressHost(const sockaddr_storage& address);
uint16_t AddressPort(const sockaddr_storage& address);
std::string AddressText(const sockaddr_storage& address);  // "host:port", "[host]:port"

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_ADDRESS_H_
