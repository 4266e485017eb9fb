#include "transport/patience.h"

#include <gtest/gtest.h>

namespace perigee::transport::internal {
namespace {

constexpr absl::Duration kStanding = absl::Microseconds(20);
const absl::Duration kBearable = Patience::kLong / 2;
const absl::Duration kTooLong = 20 * Patience::kLong;

TEST(Patience, IsShortUntilSilencesTurnOutToBeWorthWaitingFor) {
  Patience patience(kStanding);
  EXPECT_EQ(patience.limit(), kStanding);
  patience.Note(kStanding / 2);
  EXPECT_EQ(patience.limit(), kStanding) << "that one was waited for in any case";
  patience.Note(kBearable);
  EXPECT_EQ(patience.limit(), Patience::kLong);
}

TEST(Patience, EndsWhereEveryBurstIsFollowedByALongSilence) {
  Patience patience(kStanding);
  for (int i = 0; i < 10; ++i) {
    patience.Note(kBearable);
    patience.Note(kTooLong);
  }
  patience.Note(kBearable);
  EXPECT_EQ(patience.limit(), kStanding);
  for (int i = 0; i < 4; ++i) patience.Note(kBearable);
  EXPECT_EQ(patience.limit(), Patience::kLong) << "it can be won back";
}

TEST(Patience, IsNeverLessThanTheStandingOne) {
  Patience patience(2 * Patience::kLong);
  EXPECT_EQ(patience.limit(), 2 * Patience::kLong);
  patience.Note(kTooLong);
  EXPECT_EQ(patience.limit(), 2 * Patience::kLong);
}

}  // namespace
}  // namespace perigee::transport::internal
