// kvstore_test_server PORT SLAB_BYTES [DATA_FOLDER [SEGMENT_BYTES]]: a store in a process of its own. Prints its
// address and lives until standard input closes (a clean shutdown) or somebody kills it.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "kvstore/server.h"

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  perigee::kvstore::ServerOptions options;
  options.port = static_cast<uint16_t>(std::atoi(argv[1]));
  options.slab_bytes = std::strtoull(argv[2], nullptr, 10);
  options.transport.transports = "tcp";
  if (argc > 3) {
    const uint64_t segment_bytes = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 4 << 20;
    options.store.ssd =
        perigee::kvstore::SsdOptions{.path = argv[3], .segment_bytes = segment_bytes, .reserve_bytes = 0};
  }
  auto server = perigee::kvstore::StoreServer::Start(options);
  if (!server.ok()) {
    std::printf("error %s\n", server.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", (*server)->address().c_str());
  std::fflush(stdout);
  char byte;
  while (::read(STDIN_FILENO, &byte, 1) > 0) {
  }
  return 0;
}
