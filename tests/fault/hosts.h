// Network namespaces as hosts: a test network of two hosts, A and B, and a router between them, on one machine.
//
//   A v1 --- router --- v1 B        rail 0: A has 10.77.0.2, B has 10.77.1.2
//     v2 --- router --- v2          rail 1: A has 10.77.2.2, B has 10.77.3.2; and so on
//
// Every packet between the hosts crosses the router, where it can be lost, held back or caught by a proxy (proxy.h).
// The namespaces have no names: they end with this process and those that it started, so nothing is left behind,
// however a test ends.
//
// Needs the right to make namespaces (root, or user namespaces that anyone may make), ip and tc (iproute2) and nft
// (nftables). PrepareHosts() finds out; without them the tests skip and say why.
//
// Threads: the main one. Errors of the setting-up are Status, with the tool's own
// words.
#ifndef PERIGEE_TESTS_FAULT_HOSTS_H_
#define PERIGEE_TESTS_FAULT_HOSTS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file.h"

namespace perigee::fault {

// Once, first thing in main, before there are threads. Not OK: why no test network can be made here.
absl::Status PrepareHosts();
// What it said; set by fault_main.cc.
extern absl::Status hosts_status;

enum class Place { kHostA = 0, kHostB = 1, kRouter = 2 };

class Network {
 public:
  static absl::StatusOr<std::unique_ptr<Network>> Create(int rails = 1);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // Of A or B.
  static std::string Address(Place host, int rail = 0);
  // The router's end of that link.
  static std::string Gateway(Place host, int rail = 0);
  // Of A and B alike: "v1" for rail 0.
  static std::string Device(int rail = 0);

  // Moves the main thread into the place, until this object goes; threads that it starts from then on are there too.
  // The whole process sees the place's devices in /sys.
  absl::Status Enter(Place place);
  // Runs fn on a thread in the place and waits for it.
  void RunIn(Place place, const std::function<void()>& fn) const;
  // A namespace to setns into, valid as long as this object.
  int namespace_fd(Place place) const { return places_[static_cast<int>(place)].get(); }

  // ip link set down, up; up puts the route back, as a host's network configuration does.
  absl::Status SetLink(Place host, int rail, bool up);
  // The router drops everything between the hosts, without a word to either: no reset, no ICMP.
  absl::Status SetBlackHole(bool on);
  // The router loses this share of the packets.
  absl::Status SetLoss(int percent);
  // Both directions of the rail, by a token bucket.
  absl::Status LimitRate(int rail, int megabits_per_s);
  // Every TCP connection between the hosts that is opened from now on ends at this port of the router; 0: no longer.
  absl::Status Redirect(uint16_t port);

 private:
  Network() = default;
  absl::Status Build(int rails);
  absl::Status Filter();
  absl::Status Command(Place place, const std::string& command) const;

  bool sys_mounted_ = false;
  UniqueFd home_;
  UniqueFd places_[3];
  bool black_hole_ = false;
  int loss_percent_ = 0;
  uint16_t redirect_port_ = 0;
};

// The TCP ports on which anything in the place listens.
std::vector<uint16_t> ListeningPorts(const Network& network, Place place);

}  // namespace perigee::fault

#endif  // PERIGEE_TESTS_FAULT_HOSTS_H_
