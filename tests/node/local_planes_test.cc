#include "node/local_planes.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "transport/context.h"

namespace perigee::node {
namespace {

constexpr size_t kPlane = 64 << 10;
constexpr size_t kRoom = 8;

kvstore::PlaneId Plane(uint8_t n) {
  kvstore::PlaneId id;
  id.key.digest.fill(n);
  id.kind = pod::PlaneKind::kDistant;
  return id;
}

class LocalPlanesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto engine = transport::Context::Create({});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    auto pool = kvstore::RegisteredPool::Create(engine_.get(), kRoom * kPlane);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    planes_ = std::make_unique<LocalPlanes>(pool_.get(), true);
  }
  model::PlaneBuffer Make() {
    auto buffer = planes_->Allocate(kPlane);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return buffer.ok() ? *buffer : nullptr;
  }
  // Kept, and used by nobody.
  void Keep(uint8_t n) { planes_->Keep(Plane(n), Make(), kPlane); }

  std::unique_ptr<transport::Context> engine_;
  std::unique_ptr<kvstore::RegisteredPool> pool_;
  std::unique_ptr<LocalPlanes> planes_;
};

TEST_F(LocalPlanesTest, WhatIsKeptIsFound) {
  const model::PlaneBuffer buffer = Make();
  planes_->Keep(Plane(1), buffer, kPlane);
  EXPECT_TRUE(planes_->Has(Plane(1)));
  EXPECT_EQ(planes_->Find(Plane(1)), buffer);
  EXPECT_FALSE(planes_->Has(Plane(2)));
  EXPECT_EQ(planes_->Find(Plane(2)), nullptr);
  EXPECT_EQ(planes_->stats().planes, 1u);
  EXPECT_EQ(planes_->stats().bytes, kPlane);
  EXPECT_EQ(planes_->stats().hits, 1u);
}

TEST_F(LocalPlanesTest, TheFirstOfTwoCopiesStays) {
  const model::PlaneBuffer first = Make();
  planes_->Keep(Plane(1), first, kPlane);
  planes_->Keep(Plane(1), Make(), kPlane);
  EXPECT_EQ(planes_->Find(Plane(1)), first);
  EXPECT_EQ(planes_->stats().bytes, kPlane);
  EXPECT_EQ(pool_->used_bytes(), kPlane);
}

TEST_F(LocalPlanesTest, TheLeastRecentlyUsedMakesRoom) {
  for (uint8_t n = 0; n < kRoom; ++n) Keep(n);
  EXPECT_EQ(planes_->available_bytes(), pool_->capacity_bytes());
  EXPECT_NE(planes_->Find(Plane(0)), nullptr);
  const model::PlaneBuffer fresh = Make();
  EXPECT_NE(fresh, nullptr);
  EXPECT_TRUE(planes_->Has(Plane(0)));
  EXPECT_FALSE(planes_->Has(Plane(1)));
  EXPECT_TRUE(planes_->Has(Plane(2)));
  EXPECT_EQ(planes_->stats().evictions, 1u);
}

TEST_F(LocalPlanesTest, WhatIsInUseStays) {
  std::vector<model::PlaneBuffer> held;
  for (uint8_t n = 0; n < kRoom; ++n) Keep(n);
  for (uint8_t n = 0; n < kRoom - 1; ++n) held.push_back(planes_->Find(Plane(n)));
  EXPECT_EQ(planes_->available_bytes(), kPlane);
  const model::PlaneBuffer fresh = Make();
  EXPECT_FALSE(planes_->Has(Plane(kRoom - 1)));
  const auto none = planes_->Allocate(kPlane);
  EXPECT_TRUE(absl::IsResourceExhausted(none.status())) << none.status();
  EXPECT_EQ(planes_->stats().planes, kRoom - 1);
  held.clear();
  EXPECT_TRUE(planes_->Allocate(kPlane).ok());
}

TEST_F(LocalPlanesTest, ALargePlaneMayCostManySmallOnes) {
  for (uint8_t n = 0; n < kRoom; ++n) Keep(n);
  EXPECT_TRUE(planes_->Allocate(kRoom * kPlane).ok());
  EXPECT_EQ(planes_->stats().planes, 0u);
  EXPECT_EQ(planes_->stats().bytes, 0u);
}

TEST_F(LocalPlanesTest, PlanesThatEndInsideAPageCountWholePages) {
  for (uint8_t n = 0; n < 3; ++n) {
    auto buffer = planes_->Allocate(kPlane - 1000);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    planes_->Keep(Plane(n), *std::move(buffer), kPlane - 1000);
  }
  EXPECT_EQ(planes_->available_bytes(), pool_->capacity_bytes());
}

TEST_F(LocalPlanesTest, NothingIsKeptWhereThatIsNotWanted) {
  LocalPlanes none(pool_.get(), false);
  none.Keep(Plane(1), Make(), kPlane);
  EXPECT_FALSE(none.Has(Plane(1)));
  EXPECT_EQ(pool_->used_bytes(), 0u);
}

TEST_F(LocalPlanesTest, ManyThreadsNeverGetTheSameMemory) {
  std::vector<std::thread> threads;
  for (uint8_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 2000; ++i) {
        const kvstore::PlaneId id = Plane(static_cast<uint8_t>((i * 7 + t) % 16));
        model::PlaneBuffer buffer = planes_->Find(id);
        if (buffer == nullptr) {
          auto fresh = planes_->Allocate(kPlane, kvstore::RegisteredPool::Contents::kUnspecified);
          if (!fresh.ok()) continue;
          std::fill_n(fresh->get(), 64, static_cast<std::byte>(id.key.digest[0]));
          buffer = *fresh;
          planes_->Keep(id, std::move(*fresh), kPlane);
        }
        for (int b = 0; b < 64; ++b) ASSERT_EQ(buffer[b], static_cast<std::byte>(id.key.digest[0]));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(planes_->available_bytes(), pool_->capacity_bytes());
}

}  // namespace
}  // namespace perigee::node
