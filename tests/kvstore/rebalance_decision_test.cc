#include "kvstore/rebalance_decision.h"

#include <gtest/gtest.h>

namespace perigee::kvstore {
namespace {

using enum OwnersCopy;
using Ranks = std::vector<size_t>;

RebalanceDecision Decide(std::vector<OwnersCopy> copies, std::optional<size_t> rank = std::nullopt) {
  return DecideRebalance(copies, rank);
}

TEST(RebalanceDecision, OnlyTheBestOwnerThatHasAPlaneSendsItToTheOthers) {
  EXPECT_EQ(Decide({kThere, kMissing, kMissing}, 0).send_to, (Ranks{1, 2}));
  EXPECT_EQ(Decide({kThere, kThere, kMissing}, 1).send_to, Ranks{}) << "rank 0 does";
  EXPECT_EQ(Decide({kMissing, kThere, kMissing}, 1).send_to, (Ranks{0, 2}));
  EXPECT_EQ(Decide({kMissing, kMissing, kThere}, 2).send_to, (Ranks{0, 1}));
  EXPECT_EQ(Decide({kUnknown, kThere, kMissing}, 1).send_to, Ranks{}) << "rank 0 may have it";
  EXPECT_EQ(Decide({kThere, kUnknown, kMissing}, 0).send_to, Ranks{2});
}

TEST(RebalanceDecision, AnOwnerThatEvictedOrDeletedAPlaneIsNotSentItAgain) {
  EXPECT_EQ(Decide({kThere, kEvicted, kDeleted}, 0).send_to, Ranks{});
}

TEST(RebalanceDecision, AnOwnerGivesNothingUp) {
  EXPECT_FALSE(Decide({kThere, kThere}, 0).give_up);
  EXPECT_FALSE(Decide({kThere, kThere}, 1).give_up);
  EXPECT_FALSE(Decide({kThere, kDeleted}, 0).give_up);
}

TEST(RebalanceDecision, WhoIsNoOwnerSendsWhereNoOwnerHasItAndGivesUpWhenAllHaveIt) {
  EXPECT_EQ(Decide({kMissing, kMissing}).send_to, (Ranks{0, 1}));
  EXPECT_EQ(Decide({kEvicted}).send_to, Ranks{0}) << "better there than lost";
  EXPECT_EQ(Decide({kUnknown, kMissing}).send_to, Ranks{1});
  EXPECT_EQ(Decide({kThere, kMissing}).send_to, Ranks{}) << "the owner does";
  for (const OwnersCopy lacks : {kMissing, kUnknown}) {
    EXPECT_FALSE(Decide({kThere, lacks}).give_up);
    EXPECT_FALSE(Decide({lacks, kThere}).give_up);
    EXPECT_FALSE(Decide({lacks}).give_up);
  }
  EXPECT_FALSE(Decide({kEvicted}).give_up) << "the last copy";
  EXPECT_TRUE(Decide({kThere}).give_up);
  EXPECT_TRUE(Decide({kThere, kThere}).give_up);
  EXPECT_TRUE(Decide({kThere, kEvicted}).give_up);
  EXPECT_FALSE(Decide({}).give_up) << "nobody serves";
}

TEST(RebalanceDecision, WhatAnOwnerWasToldToDeleteIsNotBroughtBack) {
  EXPECT_EQ(Decide({kDeleted, kMissing}).send_to, Ranks{});
  EXPECT_TRUE(Decide({kDeleted}).give_up);
  EXPECT_FALSE(Decide({kDeleted, kUnknown}).give_up);
}

TEST(RebalanceDecision, AMissCountsOnlyWhenItIsNewerThanOurCopy) {
  EXPECT_EQ(CopyOf({MissReason::kDeleted, 100}, 99), kDeleted);
  EXPECT_EQ(CopyOf({MissReason::kDeleted, 100}, 100), kMissing);
  EXPECT_EQ(CopyOf({MissReason::kEvicted, 100}, 99), kEvicted);
  EXPECT_EQ(CopyOf({MissReason::kEvicted, 100}, 101), kMissing);
  for (const MissReason reason : {MissReason::kNeverStored, MissReason::kChecksum, MissReason::kDiskLost,
                                  MissReason::kExpired, MissReason::kMoved}) {
    EXPECT_EQ(CopyOf({reason, 100}, 1), kMissing);
  }
}

}  // namespace
}  // namespace perigee::kvstore
