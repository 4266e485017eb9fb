// The other process of failure_test: an engine that listens and serves one region until it is killed or its standard
// input ends.
//   transport_peer TRANSPORTS BYTES            serves; prints "PORT HEX_KEY"
//   transport_peer TRANSPORTS BYTES HOST DEVICES KEEPALIVE_MS   the same there, on these network devices ("a,b")
//   transport_peer TRANSPORTS PORT HEX_KEY get|put   moves the whole region in a loop; prints "0 ok" after the first
//   round
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "transport/context.h"

namespace {

int Hammer(perigee::transport::Context& engine, uint16_t port, absl::string_view hex_key, bool get) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  const auto key = perigee::FromHex(hex_key);
  const auto connection = engine.Connect("127.0.0.1", port, deadline);
  if (!key.ok() || !connection.ok()) return 5;
  const auto region = connection->UnpackRemoteKey(*key);
  if (!region.ok()) return 6;
  std::vector<std::byte> local(region->size_bytes());
  for (bool first = true;; first = false) {
    const perigee::transport::GetTransfer g{local, region->address(), &*region};
    const perigee::transport::PutTransfer p{local, region->address(), &*region};
    if (!(get ? connection->Get({&g, 1}, deadline) : connection->Put({&p, 1}, deadline)).ok()) return 7;
    if (first) {
      std::printf("0 ok\n");
      std::fflush(stdout);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 5 && argc != 6) return 2;
  perigee::transport::Options options{.transports = argv[1]};
  if (argc == 6) {
    options.devices = absl::StrSplit(argv[4], ',');
    options.keepalive = absl::Milliseconds(std::atoi(argv[5]));
  }
  auto engine = perigee::transport::Context::Create(options);
  if (!engine.ok()) return 3;
  if (argc == 5) {
    return Hammer(**engine, static_cast<uint16_t>(std::atoi(argv[2])), argv[3], absl::string_view(argv[4]) == "get");
  }
  auto region = (*engine)->AllocateMemory(std::strtoull(argv[2], nullptr, 10));
  auto listener = (*engine)->Listen(argc == 6 ? argv[3] : "127.0.0.1", 0, perigee::transport::TrustEveryone);
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
