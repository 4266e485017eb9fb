#include "pod/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "plans.h"

namespace perigee::pod {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string ErrorOf(const absl::StatusOr<Plan>& plan) {
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(plan.status().message());
}

TEST(Plan, KeepsWhatItWasMadeOf) {
  const Plan plan = MixedPlan();
  EXPECT_EQ(plan.shape(), kMixedShape);
  EXPECT_EQ(plan.window(), (Window{16, 128}));
  EXPECT_EQ(plan.sharing(), Sharing::kKey);
  EXPECT_EQ(plan.near_codec(), Codec::kBf16);
  EXPECT_EQ(plan.model_fingerprint(), TestFingerprint());
  EXPECT_EQ(plan.slot(2, 0), Follows(1, 1, Codec::kFp16));
  EXPECT_EQ(plan.CountRole(Role::kLead), 2);
  EXPECT_EQ(plan.CountRole(Role::kFollower), 3);
  EXPECT_EQ(plan.CountRole(Role::kNearOnly), 1);
}

TEST(Plan, ALeadLeadsItself) {
  const Plan plan = MixedPlan();
  EXPECT_EQ(plan.slot(1, 1).lead, (SlotId{1, 1}));
}

TEST(Plan, RefusesShapesThatNoModelHas) {
  for (const KvShape& shape : {KvShape{0, 1, 2},
                               {1025, 1, 2},
                               {1, 0, 2},
                               {1, 1025, 2},
                               {1, 1, 0},
                               {1, 1, 3},
                               {1, 1, 1026},
                               {-1, -1, 2},
                               {INT32_MAX, INT32_MAX, INT32_MAX}}) {
    EXPECT_FALSE(ValidateShape(shape).ok());
    EXPECT_FALSE(Plan::Identity(shape, {}, {}).ok());
    EXPECT_FALSE(TryPlan(shape, {}).ok());
  }
  EXPECT_TRUE(ValidateShape({1024, 1024, 1024}).ok());
}

TEST(Plan, RefusesAWindowThatSeesNothing) { EXPECT_FALSE(Plan::Identity({1, 1, 2}, {16, 0}, {}).ok()); }

TEST(Plan, RefusesAWrongSlotCountAndNamesBoth) {
  EXPECT_THAT(ErrorOf(TryPlan({2, 2, 4}, {Lead(), Lead(), Lead()})),
              AllOf(HasSubstr("has 4 slots"), HasSubstr("this has 3")));
  EXPECT_FALSE(TryPlan({2, 2, 4}, std::vector<Slot>(5, Lead())).ok());
}

TEST(Plan, RefusesALeadAboveItsFollower) {
  EXPECT_THAT(ErrorOf(TryPlan({2, 1, 4}, {Follows(1, 0), Lead()})), HasSubstr("same or a lower layer"));
}

TEST(Plan, RefusesALeadOutsideTheModel) {
  for (const SlotId lead :
       {SlotId{-1, 0}, {0, -1}, {0, 2}, {2, 0}, {INT32_MAX, 0}, {0, INT32_MAX}, {INT32_MIN, INT32_MIN}}) {
    EXPECT_FALSE(TryPlan({2, 2, 4}, {Lead(), Lead(), Lead(), Follows(lead.layer, lead.kv_head)}).ok())
        << lead.layer << "," << lead.kv_head;
  }
}

TEST(Plan, RefusesALeadThatIsNoLead) {
  EXPECT_THAT(ErrorOf(TryPlan({3, 1, 4}, {Lead(), Follows(0, 0), Follows(1, 0)})),
              AllOf(HasSubstr("layer 2"), HasSubstr("layer 1"), HasSubstr("not a lead")));
  EXPECT_THAT(ErrorOf(TryPlan({2, 1, 4}, {NearOnly(), Follows(0, 0)})), HasSubstr("not a lead"));
}

TEST(Plan, RefusesAFollowerOfItself) { EXPECT_FALSE(TryPlan({1, 2, 4}, {Lead(), Follows(0, 1)}).ok()); }

TEST(Plan, AcceptsSameLayerLeadsOnEitherSide) {
  EXPECT_TRUE(TryPlan({1, 3, 4}, {Follows(0, 1), Lead(), Follows(0, 1)}).ok());
}

TEST(Plan, OnlyFollowersNameALead) {
  std::vector<Slot> spelled = MixedSlots();
  spelled[0].lead = {2, 1};
  spelled[1].lead = {0, 0};
  EXPECT_EQ(TryPlan(kMixedShape, spelled)->id(), MixedPlan().id());
}

TEST(Plan, WhatANearOnlySlotWouldBeWrittenInDoesNotMatter) {
  std::vector<Slot> spelled = MixedSlots();
  spelled[1].far_codec = Codec::kFp16;
  EXPECT_EQ(TryPlan(kMixedShape, spelled)->id(), MixedPlan().id());
}

TEST(Plan, TheIdIsTheOneThatTheFormatsPageDefines) { EXPECT_EQ(ToHex(MixedPlan().id()), Golden()["plan_id"]); }

TEST(Plan, EveryFieldChangesTheIdAndTheFingerprintDoesNot) {
  const auto make = [](KvShape shape, Window window, Sharing sharing, Codec near_codec, std::vector<Slot> slots) {
    return Plan::Create(shape, window, sharing, near_codec, std::move(slots), {})->id();
  };
  const auto changed = [](size_t i, Slot slot) {
    std::vector<Slot> slots = MixedSlots();
    slots[i] = slot;
    return slots;
  };
  std::vector<Slot> reshaped = {Lead(), NearOnly(), Lead(), Lead(), NearOnly(), Lead()};
  const std::vector<Digest> ids = {
      MixedPlan().id(),
      make({3, 2, 34}, {16, 128}, Sharing::kKey, Codec::kBf16, MixedSlots()),
      make({3, 2, 32}, {17, 128}, Sharing::kKey, Codec::kBf16, MixedSlots()),
      make({3, 2, 32}, {16, 129}, Sharing::kKey, Codec::kBf16, MixedSlots()),
      make({3, 2, 32}, {16, 128}, Sharing::kScore, Codec::kBf16, MixedSlots()),
      make({3, 2, 32}, {16, 128}, Sharing::kKey, Codec::kFp16, MixedSlots()),
      make({3, 2, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, changed(0, Lead(Codec::kFp16))),
      make({3, 2, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, changed(5, Lead())),
      make({3, 2, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, changed(5, NearOnly())),
      make({3, 2, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, changed(5, Follows(1, 1))),
      make({3, 2, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, reshaped),
      make({2, 3, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, reshaped),
      make({6, 1, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, reshaped),
  };
  EXPECT_EQ(std::set<Digest>(ids.begin(), ids.end()).size(), ids.size());
  // A lead of the same layer but another head.
  EXPECT_NE(TryPlan({2, 2, 4}, {Lead(), Lead(), Follows(0, 0), Lead()})->id(),
            TryPlan({2, 2, 4}, {Lead(), Lead(), Follows(0, 1), Lead()})->id());
  EXPECT_EQ(make({3, 2, 32}, {16, 128}, Sharing::kKey, Codec::kBf16, MixedSlots()), MixedPlan().id());
}

TEST(Plan, IdentitySharesNothing) {
  const Plan plan = *Plan::Identity({4, 2, 8}, {}, TestFingerprint(), Codec::kFp16);
  EXPECT_EQ(plan.CountRole(Role::kLead), 8);
  EXPECT_EQ(plan.near_codec(), Codec::kFp16);
  EXPECT_EQ(plan.slot(3, 1).far_codec, Codec::kFp16);
}

TEST(Plan, CheckModelNamesWhatDiffers) {
  const Plan plan = MixedPlan();
  EXPECT_TRUE(plan.CheckModel(kMixedShape, TestFingerprint()).ok());
  const absl::Status shape = plan.CheckModel({3, 2, 64}, TestFingerprint());
  EXPECT_EQ(shape.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(shape.message()), AllOf(HasSubstr("32 dims"), HasSubstr("3 x 2 x 64")));
  const absl::Status model = plan.CheckModel(kMixedShape, Digest{0xab});
  EXPECT_EQ(model.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(model.message()), AllOf(HasSubstr("0001020304050607"), HasSubstr("ab00000000000000")));
}

}  // namespace
}  // namespace perigee::pod
