// The other host's store in the fault tests, and a user of it.
//   fault_store serve ADDRESS PORT SLAB_BYTES   prints "HOST:PORT" or "failed ..."
//   fault_store use HOST:PORT                   prints "ok" or "failed ..."; then, a line of answer per line:
//     write FIRST COUNT BYTES                   planes FIRST...: "ok" or "failed STATUS"
//     read FIRST COUNT BYTES                    the same; "wrong COUNT" if a plane that is OK has other bytes
// Either ends when its standard input does.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include "kvstore/server.h"
#include "store_use.h"

namespace perigee::fault {
namespace {

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}
std::string Verdict(const absl::Status& status) {
  return status.ok() ? "ok" : absl::StrCat("failed ", status.ToString());
}

transport::Options Tcp() {
  transport::Options options;
  options.transports = "tcp";
  return options;
}

int ServeStore(char** argv) {
  kvstore::ServerOptions options;
  options.host = argv[2];
  options.port = static_cast<uint16_t>(std::atoi(argv[3]));
  options.slab_bytes = std::strtoull(argv[4], nullptr, 10);
  options.transport = Tcp();
  const auto server = kvstore::StoreServer::Start(options);
  Say(server.ok() ? (*server)->address() : Verdict(server.status()));
  for (std::string line; server.ok() && std::getline(std::cin, line);) {
  }
  return server.ok() ? 0 : 1;
}

int UseStore(const std::string& address) {
  const auto context = transport::Context::Create(Tcp());
  if (!context.ok()) return 3;
  const auto client = kvstore::StoreClient::Connect(address, context->get(), QuickOptions());
  Say(Verdict(client.status()));
  if (!client.ok()) return 1;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string what;
    uint64_t first = 0, count = 0, bytes = 0;
    words >> what >> first >> count >> bytes;
    std::vector<kvstore::TestPlane> planes;
    for (uint64_t i = 0; i < count; ++i) planes.push_back(kvstore::MakePlane(first + i, bytes));
    size_t wrong = 0;
    const absl::Status status = what == "write" ? Write(**client, planes) : Read(**client, planes, &wrong);
    Say(wrong != 0 ? absl::StrCat("wrong ", wrong) : Verdict(status));
  }
  return 0;
}

}  // namespace
}  // namespace perigee::fault

int main(int argc, char** argv) {
  if (argc == 5 && std::string(argv[1]) == "serve") return perigee::fault::ServeStore(argv);
  if (argc == 3 && std::string(argv[1]) == "use") return perigee::fault::UseStore(argv[2]);
  return 2;
}
