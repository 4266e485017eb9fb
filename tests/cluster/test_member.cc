// A store that is a member and nothing else, in a process of its own, for tests that kill it.
//
//   test_member SPEC ID ADDRESS TTL_S --ready-fd N
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cluster/membership/open_membership.h"
#include "cluster/process.h"

int main(int argc, char** argv) {
  using namespace perigee::cluster;
  if (argc != 7) return 2;
  BlockTerminationSignals();
  EtcdOptions options;
  options.ttl = absl::Seconds(std::atoi(argv[4]));
  const auto membership = OpenMembership(argv[1], options);
  if (!membership.ok()) {
    std::fprintf(stderr, "%s\n", membership.status().ToString().c_str());
    return 1;
  }
  NodeRecord node;
  node.id = argv[2];
  node.address = argv[3];
  const auto registration = (*membership)->Join(node);
  if (!registration.ok()) {
    std::fprintf(stderr, "%s\n", registration.status().ToString().c_str());
    return 1;
  }
  AnnounceReady(std::atoi(argv[6]), node.address);
  WaitForTermination(absl::Now() + absl::Minutes(5));
  return 0;
}
