// Scattered batches against a reference copy, however they are cut, packed and joined.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "base/crc32c.h"
#include "transport/context.h"

namespace perigee::transport {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

using Bytes = std::vector<std::byte>;

// By memcmp: byte by byte, a sanitizer's build takes minutes.
template <typename A, typename B>
bool Same(const A& a, const B& b) {
  return std::size(a) == std::size(b) && (std::empty(a) || std::memcmp(std::data(a), std::data(b), std::size(a)) == 0);
}

bool AllAre(std::span<const std::byte> bytes, std::byte value) {
  return bytes[0] == value && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

void Randomise(std::span<std::byte> bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, 8);
  }
  for (; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random());
}

// One extent: where it lies in the region and in the local buffer.
struct Piece {
  size_t region = 0;  // which
  size_t remote = 0;
  size_t local = 0;
  size_t size = 0;
};

struct Case {
  std::string name;
  std::string transports;
  bool allocated;
};

class BatchTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    server_ = Make();
    client_ = Make();
    auto listener = server_->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    auto endpoint = client_->Connect("127.0.0.1", listener_.port(), Soon());
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = *std::move(endpoint);
  }
  std::unique_ptr<Context> Make() {
    auto context = Context::Create({.transports = GetParam().transports});
    EXPECT_TRUE(context.ok()) << context.status();
    return *std::move(context);
  }
  void AddRegion(size_t bytes) {
    if (!GetParam().allocated) memory_.push_back(std::make_unique<Bytes>(bytes));
    auto region = GetParam().allocated ? server_->AllocateMemory(bytes) : server_->RegisterMemory(*memory_.back());
    ASSERT_TRUE(region.ok()) << region.status();
    regions_.push_back(*std::move(region));
    auto remote = endpoint_.UnpackRemoteKey(regions_.back().remote_key());
    ASSERT_TRUE(remote.ok()) << remote.status();
    remotes_.push_back(*std::move(remote));
  }

  std::vector<PutTransfer> Puts(const std::vector<Piece>& pieces, const Bytes& local) const {
    std::vector<PutTransfer> puts;
    for (const Piece& p : pieces) {
      puts.push_back(
          {std::span(local).subspan(p.local, p.size), regions_[p.region].address() + p.remote, &remotes_[p.region]});
    }
    return puts;
  }
  std::vector<GetTransfer> Gets(const std::vector<Piece>& pieces, Bytes& local) const {
    std::vector<GetTransfer> gets;
    for (const Piece& p : pieces) {
      gets.push_back(
          {std::span(local).subspan(p.local, p.size), regions_[p.region].address() + p.remote, &remotes_[p.region]});
    }
    return gets;
  }
  void ExpectSums(const TransferBatch& batch, const std::vector<Piece>& pieces, const Bytes& local) const {
    for (size_t i = 0; i < pieces.size(); ++i) {
      ASSERT_TRUE(batch.extent_done(i));
      ASSERT_EQ(batch.extent_crc32c(i), Crc32c(std::span(local).subspan(pieces[i].local, pieces[i].size)))
          << "extent " << i << " of " << pieces[i].size << " bytes";
    }
  }

  // Puts, compares with a reference that memcpy made, changes the owner's bytes, gets, compares again; sums both times.
  // `puts` may not overlap at the owner, and gets (`pieces`) not in the local buffer.
  void RoundTrip(const std::vector<Piece>& pieces, size_t local_bytes, bool put = true) {
    Bytes local(local_bytes);
    std::vector<Bytes> reference;
    for (size_t r = 0; r < regions_.size(); ++r) {
      Randomise(regions_[r].bytes(), ++seed_);
      reference.emplace_back(regions_[r].bytes().begin(), regions_[r].bytes().end());
    }
    if (put) {
      Randomise(local, ++seed_);
      for (const Piece& p : pieces) std::copy_n(local.data() + p.local, p.size, reference[p.region].data() + p.remote);
      auto batch = endpoint_.StartPut(Puts(pieces, local), {.deadline = Soon()});
      ASSERT_TRUE(batch.ok()) << batch.status();
      ASSERT_EQ(batch->size(), pieces.size());
      const absl::Status status = batch->Wait();
      ASSERT_TRUE(status.ok()) << status;
      for (size_t r = 0; r < regions_.size(); ++r) ASSERT_TRUE(Same(regions_[r].bytes(), reference[r]));
      ExpectSums(*batch, pieces, local);
      for (size_t r = 0; r < regions_.size(); ++r) {
        Randomise(regions_[r].bytes(), ++seed_);
        reference[r].assign(regions_[r].bytes().begin(), regions_[r].bytes().end());
      }
    }
    Randomise(local, ++seed_);
    Bytes expected = local;
    for (const Piece& p : pieces) std::copy_n(reference[p.region].data() + p.remote, p.size, expected.data() + p.local);
    auto batch = endpoint_.StartGet(Gets(pieces, local), {.deadline = Soon()});
    ASSERT_TRUE(batch.ok()) << batch.status();
    const absl::Status status = batch->Wait();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Same(local, expected));
    ExpectSums(*batch, pieces, local);
    for (size_t r = 0; r < regions_.size(); ++r) ASSERT_TRUE(Same(regions_[r].bytes(), reference[r]));
  }

  std::unique_ptr<Context> server_, client_;
  Listener listener_;
  Endpoint endpoint_;
  std::vector<std::unique_ptr<Bytes>> memory_;
  std::vector<MemoryRegion> regions_;
  std::vector<RemoteRegion> remotes_;
  uint64_t seed_ = 0;
};

TEST_P(BatchTest, RandomExtentsOfEverySizeOverSeveralRegions) {
  for (const size_t bytes : {size_t{12} << 20, size_t{5} << 20, size_t{9} << 20}) AddRegion(bytes);
  std::mt19937 random(11);
  for (int round = 0; round < 6; ++round) {
    std::vector<Piece> pieces;
    size_t local = 0;
    for (size_t r = 0; r < regions_.size(); ++r) {
      size_t remote = random() % 1000;
      while (true) {
        // Each power of two about as often: 1 byte to 3 MiB. Now and then nothing at all.
        const size_t size =
            random() % 20 == 0 ? 0 : std::min<size_t>((size_t{1} << random() % 22) + random() % 999, 3 << 20);
        if (remote + size > regions_[r].size_bytes()) break;
        pieces.push_back({r, remote, local, size});
        // Neighbours there, here, on both sides, or on none.
        remote += size + (random() % 2 == 0 ? 0 : random() % 5000);
        local += size + (random() % 2 == 0 ? 0 : random() % 5000);
      }
    }
    if (round % 2 == 0) std::ranges::shuffle(pieces, random);
    SCOPED_TRACE(round);
    RoundTrip(pieces, local + 5000);
    if (HasFatalFailure()) return;
  }
}

TEST_P(BatchTest, ThousandsOfPages) {
  constexpr size_t kPages = 6000;  // more than the most pieces of one operation
  AddRegion(kPages * 5000);
  std::vector<Piece> pieces;
  for (size_t i = 0; i < kPages; ++i) pieces.push_back({0, (kPages - 1 - i) * 5000, i * 4096, 4096});
  RoundTrip(pieces, kPages * 4096);
}

TEST_P(BatchTest, AdjacencyOnOneSideOnBothAndOfTinyPieces) {
  AddRegion(8 << 20);
  for (const size_t size : {size_t{1}, size_t{16}, size_t{4096}, size_t{100000}, size_t{300000}}) {
    const size_t count = std::min<size_t>(20000, (size_t{3} << 20) / size);
    for (const auto& [remote_step, local_step] : std::vector<std::pair<size_t, size_t>>{
             {size, size}, {size, size + 3}, {size + 3, size}, {size + 3, size + 3}}) {
      SCOPED_TRACE(testing::Message() << count << " of " << size << ", steps " << remote_step << " " << local_step);
      if (remote_step * count > (size_t{8} << 20)) continue;
      std::vector<Piece> pieces;
      for (size_t i = 0; i < count; ++i) pieces.push_back({0, i * remote_step, i * local_step, size});
      RoundTrip(pieces, count * local_step);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(BatchTest, GetsOfTheSameBytesManyTimesOver) {
  AddRegion(2 << 20);
  std::mt19937 random(5);
  std::vector<Piece> pieces;
  size_t local = 0;
  for (int i = 0; i < 300; ++i) {
    const size_t size = 1 + random() % 150000;
    pieces.push_back({0, random() % ((2 << 20) - size), local, size});
    local += size;
  }
  for (int i = 0; i < 20; ++i, local += 1 << 20) pieces.push_back({0, 77, local, 1 << 20});
  RoundTrip(pieces, local, /*put=*/false);
}

TEST_P(BatchTest, OneExtentOfSeventyMebibytes) {
  AddRegion(size_t{71} << 20);
  RoundTrip({{0, 12345, 1, size_t{70} << 20}}, (size_t{70} << 20) + 1);
}

TEST_P(BatchTest, MoreThanAThousandOperationsAtOnce) {
  AddRegion(16 << 20);
  Bytes source(16 << 20), back(size_t{16} << 20);
  Randomise(source, 1);
  std::vector<PutTransfer> puts;
  for (size_t at = 0; at < source.size(); at += size_t{256} << 10) {
    puts.push_back({std::span(source).subspan(at, size_t{256} << 10), regions_[0].address() + at, &remotes_[0]});
  }
  // 40 batches of 64 operations each, all writing the same bytes: 2560 operations, whose window is smaller.
  std::vector<TransferBatch> batches;
  std::mt19937 random(1);
  for (int i = 0; i < 40; ++i) {
    std::vector<PutTransfer> apart;  // no neighbours: every extent is an operation of its own
    for (size_t k = 0; k < puts.size(); k += 2) apart.push_back(puts[k]);
    for (size_t k = 1; k < puts.size(); k += 2) apart.push_back(puts[k]);
    auto batch = endpoint_.StartPut(apart, {.deadline = Soon()});
    ASSERT_TRUE(batch.ok());
    batches.push_back(*std::move(batch));
  }
  for (TransferBatch& batch : batches) {
    const absl::Status status = batch.Wait();
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_TRUE(Same(regions_[0].bytes(), source));
}

TEST_P(BatchTest, ManyPackedBatchesShareTheStagingBuffers) {
  AddRegion(32 << 20);
  constexpr size_t kBatches = 64, kPieces = 120, kBytes = 4000;
  std::vector<Bytes> sources(kBatches, Bytes(kPieces * kBytes)), backs(kBatches, Bytes(kPieces * kBytes));
  const auto pieces = [&](size_t b) {
    std::vector<Piece> list;
    for (size_t i = 0; i < kPieces; ++i) list.push_back({0, (b * kPieces + i) * 4200, i * kBytes, kBytes});
    return list;
  };
  std::vector<TransferBatch> batches;
  for (size_t b = 0; b < kBatches; ++b) {
    Randomise(sources[b], b);
    auto batch = endpoint_.StartPut(Puts(pieces(b), sources[b]), {.deadline = Soon()});
    ASSERT_TRUE(batch.ok());
    batches.push_back(*std::move(batch));
  }
  for (TransferBatch& batch : batches) ASSERT_TRUE(batch.Wait().ok());
  batches.clear();
  for (size_t b = 0; b < kBatches; ++b) {
    auto batch = endpoint_.StartGet(Gets(pieces(b), backs[b]), {.deadline = Soon()});
    ASSERT_TRUE(batch.ok());
    batches.push_back(*std::move(batch));
  }
  std::ranges::reverse(batches);  // waited for from the last
  for (TransferBatch& batch : batches) ASSERT_TRUE(batch.Wait().ok());
  EXPECT_TRUE(sources == backs);
}

TEST_P(BatchTest, ThreadsWithTheirOwnBatchesOnOneEndpoint) {
  constexpr size_t kThreads = 6, kShare = size_t{3} << 20;
  AddRegion(kThreads * kShare);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int round = 0; round < 8; ++round) {
        std::vector<Piece> pieces;
        size_t at = 0;
        while (true) {
          const size_t size = 1 + random() % (random() % 4 == 0 ? 600000 : 9000), gap = random() % 2 * 100;
          if (at + size + gap > kShare) break;
          pieces.push_back({0, t * kShare + at, at, size});
          at += size + gap;
        }
        std::ranges::shuffle(pieces, random);
        Bytes source(kShare), back(kShare);
        Randomise(source, t * 1000 + round);
        auto put = endpoint_.StartPut(Puts(pieces, source), {.deadline = Soon()});
        if (!put.ok() || !put->Wait().ok()) ++wrong;
        auto get = endpoint_.StartGet(Gets(pieces, back), {.deadline = Soon()});
        if (!get.ok()) {
          ++wrong;
          continue;
        }
        for (size_t i = 0; i < pieces.size(); i += 1 + random() % 5) {
          if (!get->WaitExtent(i, Soon()).ok() || !get->extent_done(i)) ++wrong;
          const auto sum = Crc32c(std::span(source).subspan(pieces[i].local, pieces[i].size));
          if (get->extent_crc32c(i) != sum) ++wrong;
          if (std::memcmp(back.data() + pieces[i].local, source.data() + pieces[i].local, pieces[i].size) != 0) ++wrong;
        }
        if (!get->Wait().ok()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(BatchTest, AFlippedByteAtTheOwnerChangesThatExtentsSumOnly) {
  AddRegion(4 << 20);
  std::vector<Piece> pieces;
  for (size_t i = 0; i < 100; ++i) pieces.push_back({0, i * 5000, i * 4096, 4096});
  pieces.push_back({0, 1 << 20, 1 << 20, size_t{5} << 19});  // over several operations
  Bytes local(4 << 20);
  Randomise(regions_[0].bytes(), 3);
  const auto sums = [&] {
    std::vector<uint32_t> result;
    auto batch = endpoint_.StartGet(Gets(pieces, local), {.deadline = Soon()});
    EXPECT_TRUE(batch.ok() && batch->Wait().ok());
    for (size_t i = 0; i < pieces.size(); ++i) result.push_back(batch->extent_crc32c(i));
    return result;
  };
  const std::vector<uint32_t> before = sums();
  regions_[0].base()[42 * 5000 + 4095] ^= std::byte{1};
  regions_[0].base()[(1 << 20) + (size_t{5} << 19) - 1] ^= std::byte{0x80};
  const std::vector<uint32_t> after = sums();
  for (size_t i = 0; i < pieces.size(); ++i) EXPECT_EQ(before[i] == after[i], i != 42 && i != 100) << i;
}

TEST_P(BatchTest, ExtentsAreWaitedForOneByOneAndEmptyOnesAreDone) {
  AddRegion(8 << 20);
  Bytes local(8 << 20);
  const std::vector<Piece> pieces = {
      {0, 0, 0, 4 << 20}, {0, 0, 0, 0}, {0, 4 << 20, 4 << 20, 100}, {0, 5 << 20, 5 << 20, 3 << 20}};
  Randomise(regions_[0].bytes(), 9);
  auto batch = endpoint_.StartGet(Gets(pieces, local), {.deadline = Soon()});
  ASSERT_TRUE(batch.ok());
  EXPECT_TRUE(batch->extent_done(1));
  EXPECT_EQ(batch->extent_crc32c(1), 0u);
  EXPECT_TRUE(absl::IsInvalidArgument(batch->WaitExtent(4)));
  for (const size_t i : {3, 0, 1, 2}) {
    const absl::Status status = batch->WaitExtent(i);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(batch->extent_done(i));
    const Piece& p = pieces[i];
    EXPECT_EQ(std::memcmp(local.data() + p.local, regions_[0].base() + p.remote, p.size), 0);
  }
  EXPECT_TRUE(batch->Wait().ok());
  EXPECT_TRUE(batch->done());
  TransferBatch empty;
  EXPECT_TRUE(empty.done());
  EXPECT_EQ(empty.size(), 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(empty.WaitExtent(0)));
  empty.Cancel();
}

TEST_P(BatchTest, ACancelledBatchEndsAndLeavesItsBuffersAlone) {
  AddRegion(size_t{48} << 20);
  std::mt19937 random(2);
  int cancelled = 0;
  for (int round = 0; round < 20; ++round) {
    Bytes local(size_t{48} << 20, std::byte{1});
    std::ranges::fill(regions_[0].bytes(), static_cast<std::byte>(round + 2));
    std::vector<Piece> pieces;
    const size_t step = round % 2 == 0 ? size_t{1} << 20 : 9000;  // direct and packed
    for (size_t at = 0; at + step <= local.size(); at += step) pieces.push_back({0, at, at, step - 100});
    auto batch = round % 3 == 0 ? endpoint_.StartPut(Puts(pieces, local), {.deadline = Soon()})
                                : endpoint_.StartGet(Gets(pieces, local), {.deadline = Soon()});
    ASSERT_TRUE(batch.ok());
    if (round % 4 != 0) batch->WaitExtent(random() % (pieces.size() / 4), Soon()).IgnoreError();
    batch->Cancel();
    const absl::Status status = batch->Wait();
    ASSERT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    cancelled += absl::IsCancelled(status) ? 1 : 0;
    // Now they are ours: a late write would be seen, here and at the owner, after the next operation has gone through.
    std::ranges::fill(local, std::byte{0});
    const std::byte owner{0xcc};
    std::ranges::fill(regions_[0].bytes(), owner);
    Bytes next(4096);
    const GetTransfer get{next, regions_[0].address(), &remotes_[0]};
    ASSERT_TRUE(endpoint_.Get({&get, 1}, Soon()).ok()) << "the connection is still good";
    ASSERT_TRUE(AllAre(next, owner));
    ASSERT_TRUE(AllAre(local, std::byte{0}));
    ASSERT_TRUE(AllAre(regions_[0].bytes(), owner));
  }
  EXPECT_GT(cancelled, 0);
  EXPECT_TRUE(endpoint_.connected());
}

TEST_P(BatchTest, WithoutChecksumsNothingIsSummed) {
  AddRegion(1 << 20);
  Bytes local(1 << 20);
  auto batch = endpoint_.StartGet(Gets({{0, 0, 0, 1 << 20}}, local), {.deadline = Soon(), .checksums = false});
  ASSERT_TRUE(batch.ok());
  ASSERT_TRUE(batch->Wait().ok());
  EXPECT_EQ(batch->extent_crc32c(0), 0u);
}

INSTANTIATE_TEST_SUITE_P(Transports, BatchTest,
                         testing::Values(Case{"TcpAllocated", "tcp", true}, Case{"TcpRegistered", "tcp", false},
                                         Case{"SharedMemoryAllocated", "shm,tcp", true},
                                         Case{"SharedMemoryRegistered", "shm,tcp", false}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace perigee::transport
