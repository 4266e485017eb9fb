// kvstore_test_client ADDRESS LEASE_MS FIRST COUNT: a reader in a process of its own. Takes one lease on planes
// FIRST... (planes.h's, distant), prints how many it got, and holds it until standard input closes or somebody kills
// it.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kvstore/client.h"
#include "planes.h"

int main(int argc, char** argv) {
  namespace kv = perigee::kvstore;
  if (argc != 5) return 2;
  perigee::transport::Options tcp;
  tcp.transports = "tcp";
  const auto engine = perigee::transport::Context::Create(tcp);
  if (!engine.ok()) return 3;
  kv::ClientOptions options;
  options.lease_ttl = absl::Milliseconds(std::atoi(argv[2]));
  const auto client = kv::StoreClient::Connect(argv[1], engine->get(), options);
  if (!client.ok()) return 4;
  std::vector<kv::PlaneId> ids;
  for (int i = 0; i < std::atoi(argv[4]); ++i) {
    ids.push_back({kv::TestKey(std::strtoull(argv[3], nullptr, 10) + static_cast<uint64_t>(i))});
  }
  const auto lease = (*client)->Acquire(ids);
  if (!lease.ok()) return 5;
  int found = 0;
  for (const kv::HeldPlane& plane : lease->planes()) found += plane.found;
  std::printf("%d\n", found);
  std::fflush(stdout);
  char byte;
  while (::read(STDIN_FILENO, &byte, 1) > 0) {
  }
  return 0;
}
