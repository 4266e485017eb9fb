// The other process of failure_test: an engine that listens and serves one region until it is killed or its standard input ends.
//   transport_peer TRANSPORTS BYTES   prints "PORT HEX_KEY"
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/bytes.h"
#include "transport/engine.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  auto engine = perigee::transport::Engine::Create({.transports = argv[1]});
  if (!engine.ok()) return 3;
  auto region = (*engine)->AllocateMemory(std::strtoull(argv[2], nullptr, 10));
  auto listener = (*engine)->Listen("127.0.0.1", 0);
  if (!region.ok() || !listener.ok()) return 4;
  const std::string& key = region->remote_key();
  const std::string hex = perigee::ToHex({reinterpret_cast<const uint8_t*>(key.data()), key.size()});
  std::printf("%d %s\n", listener->port(), hex.c_str());
  std::fflush(stdout);
  char byte = 0;
  while (read(0, &byte, 1) > 0) {
  }
  return 0;
}
