#include "transport/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "transport/context.h"

namespace perigee::transport {
namespace internal {
namespace {

absl::StatusOr<SocketAddress> Lookup(const std::string& host, uint16_t port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    const std::string message = absl::StrCat("resolve '", host, "': ", gai_strerror(error));
    return error == EAI_AGAIN ? absl::UnavailableError(message) : absl::InvalidArgumentError(message);
  }
  SocketAddress address;
  // IPv4 first: "localhost" often names ::1 first although servers listen on 127.0.0.1.
  const addrinfo* chosen = found;
  for (const addrinfo* it = found; it != nullptr; it = it->ai_next) {
    if (it->ai_family == AF_INET) {
      chosen = it;
      break;
    }
  }
  address.length = chosen->ai_addrlen;
  std::memcpy(&address.storage, chosen->ai_addr, chosen->ai_addrlen);
  freeaddrinfo(found);
  return address;
}

}  // namespace

absl::StatusOr<SocketAddress> ResolveAddress(const std::string& host, uint16_t port) { return Lookup(host, port, 0); }

absl::StatusOr<SocketAddress> ParseAddress(const std::string& host, uint16_t port) {
  return Lookup(host, port, AI_NUMERICHOST);
}

absl::StatusOr<std::string> DeviceAddress(const std::string& device) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return absl::UnavailableError("cannot list this machine's network devices");
  std::string v4, v6;
  for (const ifaddrs* it = list; it != nullptr; it = it->ifa_next) {
    if (it->ifa_addr == nullptr || device != it->ifa_name) continue;
    sockaddr_storage storage{};
    if (it->ifa_addr->sa_family == AF_INET) {
      std::memcpy(&storage, it->ifa_addr, sizeof(sockaddr_in));
      if (v4.empty()) v4 = AddressHost(storage);
    } else if (it->ifa_addr->sa_family == AF_INET6) {
      std::memcpy(&storage, it->ifa_addr, sizeof(sockaddr_in6));
      if (v6.empty()) v6 = AddressHost(storage);
    }
  }
  freeifaddrs(list);
  if (v4.empty() && v6.empty()) {
    return absl::NotFoundError(absl::StrCat("network device '", device, "' has no address; see ip addr"));
  }
  return v4.empty() ? v6 : v4;
}

std::string DefaultDevices() {
  if (std::getenv("UCX_NET_DEVICES") != nullptr || access("/sys/class/infiniband", F_OK) == 0) return "";
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return "";
  std::vector<std::string> devices, loopback;
  for (const ifaddrs* it = list; it != nullptr; it = it->ifa_next) {
    if (it->ifa_addr == nullptr || (it->ifa_flags & IFF_UP) == 0) continue;
    if (it->ifa_addr->sa_family != AF_INET && it->ifa_addr->sa_family != AF_INET6) continue;
    std::vector<std::string>& names = (it->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : devices;
    if (std::find(names.begin(), names.end(), it->ifa_name) == names.end()) names.push_back(it->ifa_name);
  }
  freeifaddrs(list);
  if (devices.size() < 2) return "";
  std::string chosen = devices[0];
  // Lines read "eth0  00000000  0102A8C0 ...": device, destination.
  const absl::StatusOr<std::string> routes = ReadFile("/proc/self/net/route", 1 << 20);
  for (absl::string_view line : absl::StrSplit(routes.value_or(""), '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar("\t "), absl::SkipEmpty());
    if (words.size() > 1 && words[1] == "00000000") {
      chosen = words[0];
      break;
    }
  }
  loopback.insert(loopback.begin(), chosen);
  return absl::StrJoin(loopback, ",");
}

std::string AddressHost(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "?";
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof(text));
  } else if (address.ss_family == AF_INET6) {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text, sizeof(text));
  }
  return text;
}

uint16_t AddressPort(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

std::string AddressText(const sockaddr_storage& address) {
  const std::string host = AddressHost(address);
  return absl::StrCat(address.ss_family == AF_INET6 ? absl::StrCat("[", host, "]") : host, ":", AddressPort(address));
}

}  // namespace internal

std::vector<std::string> LocalAddresses() {
  std::vector<std::string> out;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return out;
  for (const ifaddrs* it = list; it != nullptr; it = it->ifa_next) {
    if (it->ifa_addr == nullptr || (it->ifa_flags & IFF_LOOPBACK) != 0) continue;
    const bool v4 = it->ifa_addr->sa_family == AF_INET;
    if (!v4 && it->ifa_addr->sa_family != AF_INET6) continue;
    sockaddr_storage storage{};
    std::memcpy(&storage, it->ifa_addr, v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    out.push_back(internal::AddressHost(storage));
  }
  freeifaddrs(list);
  return out;
}

}  // namespace perigee::transport
