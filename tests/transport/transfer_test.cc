// Puts and gets between two engines of one process, over tcp and over shared memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "transport/context.h"

namespace perigee::transport {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

std::vector<std::byte> Pattern(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

struct Case {
  std::string name;
  std::string transports;
  bool engine_allocated;
};

class TransferTest : public testing::TestWithParam<Case> {
 protected:
  static constexpr size_t kRegionBytes = 20 << 20;

  void SetUp() override {
    server_ = MakeContext();
    client_ = MakeContext();
    auto listener = server_->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    region_ = MakeRegion(*server_);
    connection_ = MakeConnection();
    remote_ = Unpack(connection_);
  }

  std::unique_ptr<Context> MakeContext() {
    auto engine = Context::Create({.transports = GetParam().transports});
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  MemoryRegion MakeRegion(Context& engine) {
    if (!GetParam().engine_allocated) memory_.resize(kRegionBytes);
    auto region = GetParam().engine_allocated ? engine.AllocateMemory(kRegionBytes) : engine.RegisterMemory(memory_);
    EXPECT_TRUE(region.ok()) << region.status();
    return *std::move(region);
  }
  Endpoint MakeConnection() {
    auto connection = client_->Connect("127.0.0.1", listener_.port(), Soon());
    EXPECT_TRUE(connection.ok()) << connection.status();
    return *std::move(connection);
  }
  RemoteRegion Unpack(const Endpoint& connection) {
    auto remote = connection.UnpackRemoteKey(region_.remote_key());
    EXPECT_TRUE(remote.ok()) << remote.status();
    return *std::move(remote);
  }
  absl::Status Put(std::span<const std::byte> local, uint64_t offset) {
    return connection_.Put(std::vector<PutTransfer>{{local, remote_.address() + offset, &remote_}}, Soon());
  }
  absl::Status Get(std::span<std::byte> local, uint64_t offset) {
    return connection_.Get(std::vector<GetTransfer>{{local, remote_.address() + offset, &remote_}}, Soon());
  }

  std::vector<std::byte> memory_;
  std::unique_ptr<Context> server_, client_;
  Listener listener_;
  MemoryRegion region_;
  Endpoint connection_;
  RemoteRegion remote_;
};

TEST_P(TransferTest, UsesTheTransportThatWasAskedFor) {
  const auto description = connection_.Describe();
  ASSERT_TRUE(description.ok()) << description.status();
  EXPECT_THAT(*description,
              HasSubstr("tcp/"));  // always the control path: shared memory does not notice a peer's death
  const bool shared = GetParam().transports == "shm,tcp" && GetParam().engine_allocated;
  EXPECT_EQ(remote_.path(), shared ? "shared memory" : "messages");
}

TEST_P(TransferTest, AnUnregisteredRegionIsNotReachedByMessages) {
  if (remote_.path() != "messages") GTEST_SKIP() << "one-sided: the owner is not asked";
  std::vector<std::byte> local(1 << 20);
  ASSERT_TRUE(Put(local, 0).ok());
  region_ = MemoryRegion();
  EXPECT_TRUE(absl::IsOutOfRange(Put(local, 0)));
  EXPECT_TRUE(absl::IsOutOfRange(Get(local, 0)));
  EXPECT_TRUE(connection_.connected());
}

TEST_P(TransferTest, UnregisteringInMidTransferEndsIt) {
  std::vector<std::byte> local(16 << 20);
  auto handle =
      connection_.StartPut(std::vector<PutTransfer>(64, {local, remote_.address(), &remote_}), {.deadline = Soon()});
  ASSERT_TRUE(handle.ok());
  if (remote_.path() == "messages") {
    region_ = MemoryRegion();
    memory_.clear();
    memory_.shrink_to_fit();  // a late write would be seen by the sanitizer
  }
  const absl::Status status = handle->Wait();
  EXPECT_TRUE(status.ok() || absl::IsUnavailable(status) || absl::IsOutOfRange(status)) << status;
}

TEST_P(TransferTest, PutAndGetMoveEverySize) {
  EXPECT_EQ(remote_.size_bytes(), kRegionBytes);
  EXPECT_EQ(remote_.address(), region_.address());
  if (GetParam().engine_allocated) {
    EXPECT_EQ(region_.address() % 4096, 0u);
  }
  uint64_t seed = 0, total = 0;
  for (const size_t size :
       {size_t{1}, size_t{7}, size_t{4096}, size_t{8191}, size_t{65537}, size_t{1000003}, size_t{8} << 20}) {
    SCOPED_TRACE(size);
    const uint64_t offset = size % 5;  // odd alignment too
    const auto sent = Pattern(size, ++seed);
    ASSERT_TRUE(Put(sent, offset).ok());
    // Remotely complete: visible to the owner without any further step.
    ASSERT_EQ(std::memcmp(region_.base() + offset, sent.data(), size), 0);
    const auto other = Pattern(size, ++seed);
    std::memcpy(region_.base() + offset, other.data(), size);
    std::vector<std::byte> received(size);
    const absl::Status status = Get(received, offset);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(received == other);
    total += size;
  }
  const ContextStats stats = client_->Stats();
  EXPECT_EQ(stats.put_bytes, total);
  EXPECT_EQ(stats.get_bytes, total);
  EXPECT_EQ(stats.put_transfers, 7u);
  EXPECT_EQ(stats.get_transfers, 7u);
  EXPECT_EQ(stats.failed_batches, 0u);
  EXPECT_EQ(stats.connections_opened, 1u);
  EXPECT_EQ(server_->Stats().connections_accepted, 1u);
}

TEST_P(TransferTest, ScatteredBatchOfAThousandLandsWhereItShould) {
  constexpr size_t kPieces = 1000, kSlot = 8192;
  const auto source = Pattern(kPieces * kSlot, 5);
  std::memset(region_.base(), 0, kRegionBytes);
  std::vector<PutTransfer> puts;
  std::vector<size_t> sizes;
  std::mt19937 random(9);
  for (size_t i = 0; i < kPieces; ++i) {
    sizes.push_back(random() % (kSlot - 1));  // zero is allowed
    // Reversed order of slots at the peer.
    puts.push_back(
        {std::span(source).subspan(i * kSlot, sizes[i]), remote_.address() + (kPieces - 1 - i) * kSlot, &remote_});
  }
  absl::Status status = connection_.Put(puts, Soon());
  ASSERT_TRUE(status.ok()) << status;
  std::vector<std::byte> back(kPieces * kSlot);
  std::vector<GetTransfer> gets;
  for (size_t i = 0; i < kPieces; ++i) {
    const std::byte* slot = region_.base() + (kPieces - 1 - i) * kSlot;
    ASSERT_EQ(std::memcmp(slot, source.data() + i * kSlot, sizes[i]), 0) << i;
    for (size_t j = sizes[i]; j < kSlot; ++j) ASSERT_EQ(slot[j], std::byte{0}) << "piece " << i << " spilled";
    gets.push_back(
        {std::span(back).subspan(i * kSlot, sizes[i]), remote_.address() + (kPieces - 1 - i) * kSlot, &remote_});
  }
  status = connection_.Get(gets, Soon());
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < kPieces; ++i) {
    ASSERT_EQ(std::memcmp(back.data() + i * kSlot, source.data() + i * kSlot, sizes[i]), 0) << i;
  }
}

TEST_P(TransferTest, ThreadsShareOneConnection) {
  constexpr int kThreads = 4, kRounds = 12;
  constexpr size_t kBytes = 300001;
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        const auto sent = Pattern(kBytes, t * 100 + round);
        std::vector<std::byte> received(kBytes);
        if (!Put(sent, t * (1 << 20)).ok() || !Get(received, t * (1 << 20)).ok() || received != sent) ++failures;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

TEST_P(TransferTest, HandlesOverlapAndDestructorsWait) {
  const auto a = Pattern(6 << 20, 1), b = Pattern(6 << 20, 2);
  {
    auto first = connection_.StartPut(std::vector<PutTransfer>{{a, remote_.address(), &remote_}}, {.deadline = Soon()});
    auto second = connection_.StartPut(std::vector<PutTransfer>{{b, remote_.address() + a.size(), &remote_}},
                                       {.deadline = Soon()});
    ASSERT_TRUE(first.ok() && second.ok());
    TransferBatch moved = *std::move(first);
    EXPECT_TRUE(second->Wait().ok());
    EXPECT_TRUE(second->done());
    // `moved` is not waited for: its destructor is.
  }
  EXPECT_EQ(std::memcmp(region_.base(), a.data(), a.size()), 0);
  EXPECT_EQ(std::memcmp(region_.base() + a.size(), b.data(), b.size()), 0);
  EXPECT_TRUE(connection_.connected());
  EXPECT_EQ(TransferBatch().Wait().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(TransferTest, RefusesTransfersOutsideTheRegion) {
  std::vector<std::byte> local(100);
  const uint64_t end = remote_.address() + remote_.size_bytes();
  auto code = [&](uint64_t address) {
    const absl::Status status = connection_.Put(std::vector<PutTransfer>{{local, address, &remote_}}, Soon());
    EXPECT_EQ(connection_.Get(std::vector<GetTransfer>{{local, address, &remote_}}, Soon()).code(), status.code());
    return status.code();
  };
  EXPECT_EQ(code(end - 100), absl::StatusCode::kOk);
  EXPECT_EQ(code(end - 99), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(code(end), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(code(remote_.address() - 1), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(code(~uint64_t{0} - 50), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(code(0), absl::StatusCode::kOutOfRange);
  // One bad piece stops the whole batch before it starts.
  const uint64_t before = client_->Stats().put_bytes;
  EXPECT_EQ(
      connection_.Put(std::vector<PutTransfer>{{local, remote_.address(), &remote_}, {local, end, &remote_}}, Soon())
          .code(),
      absl::StatusCode::kOutOfRange);
  EXPECT_EQ(client_->Stats().put_bytes, before);
  EXPECT_TRUE(connection_.connected());
}

TEST_P(TransferTest, RefusesDamagedAndForeignKeys) {
  const std::string key = region_.remote_key();
  for (size_t n = 0; n < key.size(); ++n) {
    EXPECT_TRUE(absl::IsInvalidArgument(connection_.UnpackRemoteKey(key.substr(0, n)).status()));
    std::string flipped = key;
    flipped[n] ^= 0x10;
    EXPECT_TRUE(absl::IsInvalidArgument(connection_.UnpackRemoteKey(flipped).status()));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(connection_.UnpackRemoteKey("garbage").status()));
  auto own = client_->AllocateMemory(4096);
  ASSERT_TRUE(own.ok());
  const absl::Status foreign = connection_.UnpackRemoteKey(own->remote_key()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(foreign));
  EXPECT_THAT(std::string(foreign.message()), HasSubstr("another context"));

  std::vector<std::byte> local(8);
  RemoteRegion empty;
  EXPECT_TRUE(absl::IsInvalidArgument(connection_.Put(std::vector<PutTransfer>{{local, 0, nullptr}}, Soon())));
  EXPECT_TRUE(absl::IsInvalidArgument(connection_.Put(std::vector<PutTransfer>{{local, 0, &empty}}, Soon())));
  const Endpoint second = MakeConnection();
  EXPECT_TRUE(
      absl::IsInvalidArgument(second.Put(std::vector<PutTransfer>{{local, remote_.address(), &remote_}}, Soon())));
  EXPECT_TRUE(connection_.connected());
}

TEST_P(TransferTest, APastDeadlineStartsNothingAndKeepsTheConnection) {
  std::vector<std::byte> local(8);
  const std::vector<PutTransfer> put = {{local, remote_.address(), &remote_}};
  EXPECT_TRUE(absl::IsDeadlineExceeded(connection_.Put(put, absl::Now() - absl::Seconds(1))));
  EXPECT_TRUE(connection_.connected());
  EXPECT_TRUE(connection_.Put(put, Soon()).ok());
  EXPECT_TRUE(connection_.Put({}, Soon()).ok());  // an empty batch is only a flush
}

TEST_P(TransferTest, ObjectsOutliveTheirContext) {
  std::vector<std::byte> local(6 << 20);
  auto handle =
      connection_.StartGet(std::vector<GetTransfer>{{local, remote_.address(), &remote_}}, {.deadline = Soon()});
  ASSERT_TRUE(handle.ok());
  client_.reset();
  EXPECT_TRUE(handle->done());  // OK or CANCELLED, but over
  EXPECT_FALSE(connection_.connected());
  EXPECT_TRUE(absl::IsFailedPrecondition(Put(local, 0)));
  listener_ = Listener();
  server_.reset();
  region_.base()[0] = std::byte{1};  // still mapped
}

TEST_P(TransferTest, ADestroyedConnectionCancelsItsTransfersAndTheNextOneWorks) {
  std::vector<std::byte> local(6 << 20);
  auto handle =
      connection_.StartGet(std::vector<GetTransfer>{{local, remote_.address(), &remote_}}, {.deadline = Soon()});
  ASSERT_TRUE(handle.ok());
  connection_ = Endpoint();
  const absl::Status status = handle->Wait();
  EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
  connection_ = MakeConnection();
  remote_ = Unpack(connection_);
  EXPECT_TRUE(Put(local, 0).ok());
}

INSTANTIATE_TEST_SUITE_P(Transports, TransferTest,
                         testing::Values(Case{"TcpAllocated", "tcp", true}, Case{"TcpRegistered", "tcp", false},
                                         Case{"SharedMemoryAllocated", "shm,tcp", true},
                                         Case{"SharedMemoryRegistered", "shm,tcp", false}),
                         [](const auto& info) { return info.param.name; });

TEST(ContextTest, AnUnknownTransportIsAnErrorThatNamesIt) {
  const auto engine = Context::Create({.transports = "carrier_pigeon"});
  ASSERT_FALSE(engine.ok());
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("carrier_pigeon"));
}

TEST(ContextTest, APortInUseIsAnErrorThatNamesIt) {
  auto a = Context::Create({.transports = "tcp"}), b = Context::Create({.transports = "tcp"});
  ASSERT_TRUE(a.ok() && b.ok());
  auto listener = (*a)->Listen("127.0.0.1", 0, TrustEveryone);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const absl::Status status = (*b)->Listen("127.0.0.1", listener->port(), TrustEveryone).status();
  EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(listener->port())));
  // Once free, the port can be taken.
  const uint16_t port = listener->port();
  *listener = Listener();
  EXPECT_TRUE((*b)->Listen("127.0.0.1", port, TrustEveryone).ok());
}

TEST(ContextTest, ConnectingToAClosedPortFailsFast) {
  auto engine = Context::Create({.transports = "tcp"});
  ASSERT_TRUE(engine.ok());
  uint16_t port = 0;
  {
    auto listener = (*engine)->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(listener.ok());
    port = listener->port();
  }
  const absl::Time start = absl::Now();
  const absl::Status status = (*engine)->Connect("127.0.0.1", port, start + absl::Seconds(20)).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_TRUE(absl::IsInvalidArgument((*engine)->Connect("no such host.", 1, Soon()).status()) ||
              absl::IsUnavailable((*engine)->Connect("no such host.", 1, Soon()).status()));
}

TEST(ContextTest, RefusesEmptyRegions) {
  auto engine = Context::Create({.transports = "tcp"});
  ASSERT_TRUE(engine.ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*engine)->RegisterMemory({}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*engine)->AllocateMemory(0).status()));
}

}  // namespace
}  // namespace perigee::transport
