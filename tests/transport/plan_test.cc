// How a batch is cut into operations: no payload may be longer than what is sent eagerly and not longer than a segment
// of UCX's, see transport/long_payloads.cc.
#include <gtest/gtest.h>

#include <vector>

#include "absl/time/time.h"
#include "transport/transfer.h"
#include "transport/wire.h"

namespace perigee::transport::internal {
namespace {

std::byte* const kLocal = reinterpret_cast<std::byte*>(uintptr_t{1} << 32);
constexpr uint64_t kRemote = uint64_t{1} << 40;

Transfer PlanOf(std::vector<Extent> extents) {
  return Transfer(Direction::kGet, std::move(extents), {.deadline = absl::InfiniteFuture()});
}

void ExpectSoundCuts(const Transfer& transfer, uint64_t bytes) {
  uint64_t sum = 0;
  for (const Operation& operation : transfer.operations) {
    sum += operation.size;
    ASSERT_LE(operation.size, operation.direct ? kOpBytes : kPackedBytes) << "of " << bytes;
    ASSERT_TRUE(operation.size <= kEagerBytes || operation.size > kSegmentBytes) << operation.size << " of " << bytes;
  }
  ASSERT_EQ(sum, bytes);
}

TEST(PlanTest, NoRunOfAnyLengthLeavesAnOperationBetweenEagerAndSegment) {
  for (uint64_t bytes = 1; bytes <= (uint64_t{1} << 29); bytes += bytes < (uint64_t{4} << 20) ? 4093 : 1048573) {
    Extent extent;
    extent.local = kLocal;
    extent.remote = kRemote;
    extent.size = bytes;
    ExpectSoundCuts(PlanOf({extent}), bytes);
  }
  for (const uint64_t bytes : {uint64_t{168165376}, uint64_t{172339365}, uint64_t{20} << 30}) {
    Extent extent;
    extent.local = kLocal;
    extent.remote = kRemote;
    extent.size = bytes;
    ExpectSoundCuts(PlanOf({extent}), bytes);
  }
}

TEST(PlanTest, NeighboursOfManySmallExtentsAreCutAsOneRun) {
  for (const uint64_t each : {uint64_t{64}, uint64_t{88}, uint64_t{4096}, uint64_t{100000}}) {
    std::vector<Extent> extents(10000);
    for (size_t i = 0; i < extents.size(); ++i) {
      extents[i].local = kLocal + i * each;
      extents[i].remote = kRemote + i * each;
      extents[i].size = each;
    }
    ExpectSoundCuts(PlanOf(extents), each * extents.size());
  }
}

}  // namespace
}  // namespace perigee::transport::internal
