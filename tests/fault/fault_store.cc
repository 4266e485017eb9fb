// The other host's store in the fault tests.
//   fault_store ADDRESS PORT SLAB_BYTES    prints "HOST:PORT" or "failed ..."; ends when its standard input does
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "kvstore/server.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  perigee::kvstore::ServerOptions options;
  options.host = argv[1];
  options.port = static_cast<uint16_t>(std::atoi(argv[2]));
  options.slab_bytes = std::strtoull(argv[3], nullptr, 10);
  options.transport.transports = "tcp";
  auto server = perigee::kvstore::StoreServer::Start(options);
  std::printf("%s\n", server.ok() ? (*server)->address().c_str() : ("failed " + server.status().ToString()).c_str());
  std::fflush(stdout);
  if (!server.ok()) return 1;
  char byte = 0;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  return 0;
}
