#include "transfer/pair.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "peers/fail.h"

namespace perigee::bench {
namespace {

// Ours keeps tcp beside shared memory, to notice a peer's death; the payload goes through shared memory.
std::string UcxTransports(const std::string& transport) { return transport == "shm" ? "shm,tcp" : transport; }

absl::Time Deadline() { return absl::Now() + absl::Minutes(5); }

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

const char* Name(Direction direction) { return direction == Direction::kPut ? "put" : "get"; }

int Serve(const std::string& transports) {
  auto context =
      Check(transport::Context::Create({.transports = transports, .spin_us = 100}), "create");  // as the store
  context->SetHandler(kEchoId, [](absl::string_view, absl::string_view payload) { return std::string(payload); });
  auto region = Check(context->AllocateMemory(kRegionBytes), "allocate");
  std::memset(region.base(), 1, kRegionBytes);
  auto listener = Check(context->Listen("127.0.0.1", 0, transport::TrustEveryone), "listen");
  const std::string& key = region.remote_key();
  std::printf("%d %s\n", listener.port(), ToHex({reinterpret_cast<const uint8_t*>(key.data()), key.size()}).c_str());
  std::fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) {
  }
  return 0;
}

Pair::Pair(const std::string& self, const std::string& transport)
    : transport_(transport),
      ucx_transports_(UcxTransports(transport)),
      server_({self, "--serve", ucx_transports_}, PinnedProcessors().server) {
  PinThisThread(PinnedProcessors().initiator);
  const std::vector<std::string> hello = absl::StrSplit(server_.ReadLine(), ' ');
  if (hello.size() != 2) Die("the serving process did not start");
  context_ = Check(transport::Context::Create({.transports = ucx_transports_}), "create");
  endpoint_ = Check(context_->Connect("127.0.0.1", static_cast<uint16_t>(std::atoi(hello[0].c_str())),
                                      absl::Now() + absl::Seconds(20)),
                    "connect");
  remote_ = Check(endpoint_.UnpackRemoteKey(Check(FromHex(hello[1]), "key")), "unpack");
  local_ = Check(context_->AllocateMemory(kRegionBytes), "allocate");
  std::memset(local_.base(), 2, kRegionBytes);
}

double Pair::MoveBatches(Direction direction, const std::vector<Extent>& extents, size_t times, bool checksums) const {
  std::vector<transport::GetTransfer> gets;
  std::vector<transport::PutTransfer> puts;
  for (const Extent& extent : extents) {
    const std::span<std::byte> bytes = local_.bytes().subspan(extent.local, extent.bytes);
    gets.push_back({bytes, remote_.address() + extent.remote, &remote_});
    puts.push_back({bytes, remote_.address() + extent.remote, &remote_});
  }
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < times; ++i) {
    const transport::TransferOptions options{.deadline = Deadline(), .checksums = checksums};
    auto batch =
        Check(direction == Direction::kGet ? endpoint_.StartGet(gets, options) : endpoint_.StartPut(puts, options),
              "transfer");
    Check(batch.Wait(), "transfer");
  }
  return SecondsSince(start);
}

double Pair::MoveOneByOne(Direction direction, const std::vector<Extent>& extents, size_t times) const {
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < times; ++i) {
    for (const Extent& extent : extents) {
      const std::span<std::byte> bytes = local_.bytes().subspan(extent.local, extent.bytes);
      const uint64_t address = remote_.address() + extent.remote;
      const transport::GetTransfer get{bytes, address, &remote_};
      const transport::PutTransfer put{bytes, address, &remote_};
      Check(direction == Direction::kGet ? endpoint_.Get({&get, 1}, Deadline()) : endpoint_.Put({&put, 1}, Deadline()),
            "transfer");
    }
  }
  return SecondsSince(start);
}

}  // namespace perigee::bench
