// Transfers from and to device memory, staged through pinned host memory, with a device that is only played: its memory
// cannot be touched by the processor, and its copies move their bytes late.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "child.h"
#include "fake_device.h"
#include "transport/context.h"

namespace perigee::transport {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(40); }

constexpr size_t kBytes = size_t{24} << 20;

// By memcmp: byte by byte, a sanitizer's build takes minutes.
template <typename A, typename B>
bool Same(const A& a, const B& b) {
  return std::size(a) == std::size(b) && (std::empty(a) || std::memcmp(std::data(a), std::data(b), std::size(a)) == 0);
}

void Randomise(std::span<std::byte> bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, 8);
  }
}

// Each side has a device and host memory; a test chooses.
struct Side {
  std::shared_ptr<FakeDevice> device = std::make_shared<FakeDevice>(kBytes);
  std::vector<std::byte> host = std::vector<std::byte>(kBytes);
  std::unique_ptr<Context> context;

  explicit Side(const std::string& transports) {
    auto made = Context::Create({.transports = transports, .device = device});
    EXPECT_TRUE(made.ok()) << made.status();
    context = *std::move(made);
  }
  std::span<std::byte> Memory(bool on_device) { return on_device ? device->memory() : std::span<std::byte>(host); }
  std::span<std::byte> Contents(bool on_device) { return on_device ? device->contents() : std::span<std::byte>(host); }
};

class StagingTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto listener = owner_.context->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(listener.ok());
    listener_ = *std::move(listener);
    auto device = owner_.context->RegisterMemory(owner_.device->memory(), MemoryKind::kDevice);
    auto host = owner_.context->RegisterMemory(owner_.host);
    ASSERT_TRUE(device.ok() && host.ok()) << device.status() << host.status();
    regions_[1] = *std::move(device);
    regions_[0] = *std::move(host);
    Open();
  }
  void Open() {
    auto endpoint = user_.context->Connect("127.0.0.1", listener_.port(), Soon());
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = *std::move(endpoint);
    for (int i = 0; i < 2; ++i) {
      auto remote = endpoint_.UnpackRemoteKey(regions_[i].remote_key());
      ASSERT_TRUE(remote.ok()) << remote.status();
      remotes_[i] = *std::move(remote);
    }
  }
  // Extents large and small, in random order.
  struct Extent {
    size_t offset, size;
  };
  std::vector<Extent> Extents(uint64_t seed) {
    std::mt19937 random(seed);
    std::vector<Extent> extents;
    for (size_t at = 0; at < kBytes;) {
      const size_t size = std::min(kBytes - at, 1 + random() % (random() % 3 == 0 ? size_t{3} << 20 : size_t{20000}));
      extents.push_back({at, size});
      at += size + random() % 2 * (random() % 5000);
    }
    std::ranges::shuffle(extents, random);
    return extents;
  }
  TransferBatch Start(bool put, bool local_device, bool remote_device, const std::vector<Extent>& extents,
                      absl::Time deadline = Soon()) {
    const RemoteRegion& remote = remotes_[remote_device];
    const std::span<std::byte> local = user_.Memory(local_device);
    std::vector<PutTransfer> puts;
    std::vector<GetTransfer> gets;
    for (const Extent& e : extents) {
      puts.push_back({local.subspan(e.offset, e.size), remote.address() + e.offset, &remote});
      gets.push_back({local.subspan(e.offset, e.size), remote.address() + e.offset, &remote});
    }
    auto batch =
        put ? endpoint_.StartPut(puts, {.deadline = deadline}) : endpoint_.StartGet(gets, {.deadline = deadline});
    EXPECT_TRUE(batch.ok()) << batch.status();
    return batch.ok() ? *std::move(batch) : TransferBatch();
  }
  void ExpectMoves(bool put, bool local_device, bool remote_device, uint64_t seed) {
    SCOPED_TRACE(
        absl::StrCat(put ? "put" : "get", local_device ? " device" : " host", remote_device ? " device" : " host"));
    const std::span<std::byte> local = user_.Contents(local_device), remote = owner_.Contents(remote_device);
    Randomise(local, seed * 2);
    Randomise(remote, seed * 2 + 1);
    const std::vector<Extent> extents = Extents(seed);
    std::vector<std::byte> expected_local(local.begin(), local.end()), expected_remote(remote.begin(), remote.end());
    for (const Extent& e : extents) {
      put ? std::copy_n(local.data() + e.offset, e.size, expected_remote.data() + e.offset)
          : std::copy_n(remote.data() + e.offset, e.size, expected_local.data() + e.offset);
    }
    TransferBatch batch = Start(put, local_device, remote_device, extents);
    const absl::Status status = batch.Wait();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Same(local, expected_local));
    EXPECT_TRUE(Same(remote, expected_remote));
    for (size_t i = 0; i < extents.size(); ++i) {
      ASSERT_EQ(batch.extent_crc32c(i), Crc32c(local.subspan(extents[i].offset, extents[i].size))) << i;
    }
  }

  Side owner_{GetParam()}, user_{GetParam()};
  Listener listener_;
  MemoryRegion regions_[2];  // host, device
  Endpoint endpoint_;
  RemoteRegion remotes_[2];
};

TEST_P(StagingTest, DeviceMemoryOnEitherSideOrBoth) {
  uint64_t seed = 0;
  for (const bool put : {true, false}) {
    for (const bool local : {false, true}) {
      for (const bool remote : {false, true}) ExpectMoves(put, local, remote, ++seed);
    }
  }
  EXPECT_EQ(user_.device->copies_under_way(), 0u);
  EXPECT_EQ(owner_.device->copies_under_way(), 0u);
}

TEST_P(StagingTest, ABatchMayMixHostAndDevice) {
  Randomise(owner_.device->contents(), 1);
  Randomise(owner_.host, 2);
  std::vector<GetTransfer> gets;
  std::vector<std::pair<std::span<std::byte>, std::span<std::byte>>> pairs;  // where it should be, what it should be
  for (size_t i = 0; i < 200; ++i) {
    const bool local = i % 2 == 0, remote = i % 3 == 0;
    const size_t offset = i * 100000, size = i % 5 == 0 ? 100000 : 3000;
    gets.push_back({user_.Memory(local).subspan(offset, size), remotes_[remote].address() + offset, &remotes_[remote]});
    pairs.push_back({user_.Contents(local).subspan(offset, size), owner_.Contents(remote).subspan(offset, size)});
  }
  auto batch = endpoint_.StartGet(gets, {.deadline = Soon()});
  ASSERT_TRUE(batch.ok()) << batch.status();
  const absl::Status status = batch->Wait();
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < pairs.size(); ++i) {
    ASSERT_TRUE(Same(pairs[i].first, pairs[i].second)) << i;
    ASSERT_EQ(batch->extent_crc32c(i), Crc32c(pairs[i].second)) << i;
  }
}

TEST_P(StagingTest, RegisteringTheWrongKindIsRefused) {
  Context& context = *user_.context;
  EXPECT_TRUE(absl::IsInvalidArgument(context.RegisterMemory(user_.device->memory()).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(context.RegisterMemory(user_.host, MemoryKind::kDevice).status()));
  auto without = Context::Create({.transports = "tcp"});
  ASSERT_TRUE(without.ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*without)->RegisterMemory(user_.host, MemoryKind::kDevice).status()));
}

// Wherever a copy fails, at its start or later, here or at the owner: an error arrives, and what comes later works.
TEST_P(StagingTest, ACopyThatFailsEndsItsBatchAndNoOther) {
  uint64_t seed = 50;
  for (const bool put : {true, false}) {
    for (const bool at_owner : {false, true}) {
      for (const bool at_start : {false, true}) {
        for (const int after : {0, 3, 17}) {
          SCOPED_TRACE(absl::StrCat(put ? "put" : "get", at_owner ? ", owner" : ", user",
                                    at_start ? ", start " : ", copy ", after));
          FakeDevice& device = at_owner ? *owner_.device : *user_.device;
          at_start ? device.FailStartAfter(after) : device.FailCopyAfter(after);
          {
            TransferBatch batch = Start(put, !at_owner, at_owner, Extents(++seed));
            const absl::Status status = batch.Wait();
            EXPECT_FALSE(status.ok());
            EXPECT_FALSE(absl::IsDeadlineExceeded(status)) << status;
            if (!at_owner) {
              EXPECT_THAT(std::string(status.message()), HasSubstr("fake device"));
            }
          }
          if (!endpoint_.connected()) Open();
          ExpectMoves(put, !at_owner, at_owner, ++seed);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(StagingTest, ADeviceThatStallsEndsByTheDeadline) {
  for (const bool put : {true, false}) {
    user_.device->Stall(true);
    const absl::Time start = absl::Now();
    TransferBatch batch = Start(put, true, false, Extents(1), start + absl::Milliseconds(500));
    // Not before the device lets go of the buffers: they are the copies'.
    EXPECT_TRUE(absl::IsDeadlineExceeded(batch.Wait(start + absl::Seconds(2))));
    EXPECT_FALSE(batch.done());
    user_.device->Stall(false);
    const absl::Status status = batch.Wait();
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_EQ(user_.device->copies_under_way(), 0u);
    if (!endpoint_.connected()) Open();
    ExpectMoves(put, true, false, 3);
  }
}

TEST_P(StagingTest, NoPinnedMemoryIsAnErrorThatSaysSo) {
  user_.device->FailPinnedAllocations(true);
  const absl::Status status = Start(true, true, false, {{0, 100000}}).Wait();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  user_.device->FailPinnedAllocations(false);
  if (!endpoint_.connected()) Open();
  ExpectMoves(true, true, false, 1);
}

// The owner has none either: its side of the transfer waits for a buffer that never comes.
TEST_P(StagingTest, NoPinnedMemoryAtTheOwnerEndsByTheDeadline) {
  owner_.device->FailPinnedAllocations(true);
  const absl::Time start = absl::Now();
  const absl::Status status = Start(false, false, true, {{0, 100000}}, start + absl::Seconds(1)).Wait();
  EXPECT_FALSE(status.ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  owner_.device->FailPinnedAllocations(false);
  if (!endpoint_.connected()) Open();
  ExpectMoves(false, false, true, 1);
}

TEST_P(StagingTest, CancellingEndsWithTheCopies) {
  for (int round = 0; round < 10; ++round) {
    TransferBatch batch = Start(round % 2 == 0, true, round % 3 == 0, Extents(round));
    if (round > 4) batch.WaitExtent(round).IgnoreError();
    batch.Cancel();
    const absl::Status status = batch.Wait();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    EXPECT_EQ(user_.device->copies_under_way(), 0u);
  }
  EXPECT_TRUE(endpoint_.connected());
  ExpectMoves(true, true, true, 77);
}

TEST_P(StagingTest, APeerThatDiesWhileCopiesRun) {
  for (const bool put : {true, false}) {
    Child peer({TRANSPORT_PEER, GetParam(), absl::StrCat(kBytes)});
    const std::string said = peer.Hear();
    int port = 0;
    std::vector<char> hex(8192);
    ASSERT_EQ(std::sscanf(said.c_str(), "%d %8191s", &port, hex.data()), 2) << said;
    auto endpoint = user_.context->Connect("127.0.0.1", static_cast<uint16_t>(port), Soon());
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    auto remote = endpoint->UnpackRemoteKey(*FromHex(hex.data()));
    ASSERT_TRUE(remote.ok());
    std::vector<PutTransfer> puts;
    std::vector<GetTransfer> gets;
    for (const Extent& e : Extents(4)) {
      for (int i = 0; i < 8; ++i) {
        puts.push_back({user_.device->memory().subspan(e.offset, e.size), remote->address() + e.offset, &*remote});
        gets.push_back({user_.device->memory().subspan(e.offset, e.size), remote->address() + e.offset, &*remote});
      }
    }
    auto batch = put ? endpoint->StartPut(puts, {.deadline = Soon()}) : endpoint->StartGet(gets, {.deadline = Soon()});
    ASSERT_TRUE(batch.ok());
    ASSERT_TRUE(batch->WaitExtent(0, Soon()).ok());
    peer.Kill();
    const absl::Status status = batch->Wait();
    EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
    EXPECT_EQ(user_.device->copies_under_way(), 0u);
    ExpectMoves(put, true, true, 5);
  }
}

TEST_P(StagingTest, AContextThatEndsWaitsForItsCopies) {
  TransferBatch batch = Start(true, true, true, Extents(6));
  user_.context.reset();
  EXPECT_TRUE(batch.done());
  EXPECT_EQ(user_.device->copies_under_way(), 0u);
  const absl::Status status = batch.Wait();
  EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
}

INSTANTIATE_TEST_SUITE_P(Transports, StagingTest, testing::Values("tcp", "shm,tcp"),
                         [](const auto& info) { return info.index == 0 ? "Tcp" : "SharedMemory"; });

}  // namespace
}  // namespace perigee::transport
