// Prompts in which contexts stand: what is read from where, what is computed, and that computing everything again is
// the same as never having had a context.
#include "model/composition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "model/composition_pass.h"
#include "model/served_model.h"

namespace perigee::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Token = Composition::Token;

constexpr int kBlockTokens = 16;
constexpr int32_t kBos = 0;
const std::vector<int32_t> kOpening = {kBos};

std::vector<int32_t> Ids(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(n);
  for (int32_t& id : ids) id = static_cast<int32_t>(2 + rng() % 1000);
  return ids;
}

std::vector<int64_t> Positions(const std::vector<Token>& tokens) {
  std::vector<int64_t> positions;
  for (const Token& token : tokens) positions.push_back(token.position);
  return positions;
}

Repair RepairOf(absl::string_view text) { return *Repair::Parse(text); }

TEST(RepairTest, SaysWhatItReadsAndRefusesWhatItDoesNotUnderstand) {
  for (const char* text : {"none", "full", "prefix:32", "deviation:0.15", "parallel:0.9:0.8"}) {
    EXPECT_EQ(RepairOf(text).ToString(), text);
  }
  EXPECT_EQ(RepairOf(""), Repair{});
  EXPECT_EQ(RepairOf("prefix"), RepairOf("prefix:32"));
  EXPECT_EQ(RepairOf("deviation:0.12345678"), RepairOf(RepairOf("deviation:0.12345678").ToString()));
  EXPECT_EQ(RepairOf("deviation"), RepairOf("deviation:0.15"));
  for (const char* text : {"prefix:0", "prefix:x", "prefix:99999", "deviation:0", "deviation:1.1", "deviation:nan",
                           "parallel:1", "parallel:0:1", "parallel:inf:1", "none:1", "full:1", "perfect"}) {
    EXPECT_EQ(Repair::Parse(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(CompositionTest, RefusesContextsThatCannotBe) {
  const std::vector<int32_t> ids = Ids(20, 1);
  const auto refused = [&](std::vector<ContextRange> contexts) {
    return Composition::Create(ids, contexts, kOpening, {}).status();
  };
  EXPECT_THAT(std::string(refused({{5, 0}}).message()), HasSubstr("takes 0 tokens"));
  EXPECT_EQ(refused({{5, 3}, {7, 2}}).code(), absl::StatusCode::kInvalidArgument) << "overlap";
  EXPECT_EQ(refused({{9, 3}, {5, 2}}).code(), absl::StatusCode::kInvalidArgument) << "order";
  EXPECT_EQ(refused({{15, 6}}).code(), absl::StatusCode::kInvalidArgument) << "outside";
  EXPECT_EQ(refused({{-1, 6}}).code(), absl::StatusCode::kInvalidArgument) << "outside";
  EXPECT_EQ(refused({{2, INT64_MAX}}).code(), absl::StatusCode::kInvalidArgument) << "absurd";
  EXPECT_THAT(std::string(refused({{15, 5}}).message()), HasSubstr("ends with a context"));
  EXPECT_TRUE(refused({{0, 5}}).ok()) << "its opening stands in front of the prompt, hidden";
}

TEST(CompositionTest, WhatBeginsThePromptBehindTheSameOpeningIsItsOwnPrefix) {
  std::vector<int32_t> ids = Ids(20, 2);
  ids[0] = kBos;
  const ContextRange contexts[] = {{1, 9}, {12, 5}};
  const Composition c = *Composition::Create(ids, contexts, kOpening, RepairOf("prefix:2"));
  EXPECT_FALSE(c.contexts()[0].moved);
  EXPECT_EQ(c.contexts()[0].position, 0);
  EXPECT_EQ(c.contexts()[0].first, 0);
  EXPECT_TRUE(c.contexts()[1].moved);
  EXPECT_EQ(c.contexts()[1].position, 11);  // Its opening, hidden.
  EXPECT_EQ(c.contexts()[1].first, 1);
  EXPECT_THAT(Positions(c.computed()), ElementsAre(10, 11, 12, 13, 17, 18, 19));
  EXPECT_EQ(c.repaired_tokens(), 2);
  EXPECT_EQ(c.context_tokens(), 10 + 5);
  EXPECT_EQ(c.leading(), 2u);
}

TEST(CompositionTest, InFullAllIsText) {
  std::vector<int32_t> ids = Ids(20, 2);
  ids[0] = kBos;
  const ContextRange contexts[] = {{1, 9}, {12, 5}};
  const Composition c = *Composition::Create(ids, contexts, kOpening, RepairOf("full"));
  EXPECT_TRUE(c.contexts().empty());
  EXPECT_EQ(c.computed().size(), ids.size());
  EXPECT_EQ(c.context_tokens() + c.repaired_tokens(), 0);
  const ContextRange overlapping[] = {{5, 3}, {7, 2}};
  EXPECT_FALSE(Composition::Create(ids, overlapping, kOpening, RepairOf("full")).ok());
}

TEST(CompositionTest, SideBySideContextsStandWhereTheFirstOneDoesAndTextsBehindTheLongest) {
  std::vector<int32_t> ids = Ids(20, 3);
  ids[0] = kBos;
  const ContextRange contexts[] = {{2, 4}, {7, 6}};
  const Composition c = *Composition::Create(ids, contexts, kOpening, RepairOf("parallel"));
  EXPECT_EQ(c.contexts()[0].position, 1);
  EXPECT_EQ(c.contexts()[1].position, 1);
  EXPECT_THAT(Positions(c.computed()), ElementsAre(0, 1, 8, 9, 10, 11, 12, 13, 14, 15));
  for (const CachedBlock& block : c.Places(c.contexts()[1], kBlockTokens)) EXPECT_TRUE(block.context);
}

TEST(CompositionTest, PlacesHideTheOpeningOfWhatWasMoved) {
  std::vector<int32_t> ids = Ids(60, 4);
  const ContextRange contexts[] = {{10, 40}};
  const Composition c = *Composition::Create(ids, contexts, kOpening, {});
  const std::vector<CachedBlock> places = c.Places(c.contexts()[0], kBlockTokens);
  ASSERT_EQ(places.size(), 3u);
  EXPECT_EQ(places[0].position, 9);
  EXPECT_EQ(places[0].base_position, 0);
  EXPECT_EQ(places[0].hidden[0], 1u);
  EXPECT_EQ(places[2].position, 41);
  EXPECT_EQ(places[2].base_position, 32);
  EXPECT_EQ(places[2].tokens, 9);
  EXPECT_EQ(places[2].hidden[0], 0u);
}

TEST(CompositionTest, ASliceShowsOnlyItsTokensAndReadsOnlyItsBlocks) {
  const std::vector<int32_t> old = Ids(60, 6);
  std::vector<int32_t> ids = {kBos};  // Tokens 0..9 and 40..54 of it, and a question.
  ids.insert(ids.end(), old.begin(), old.begin() + 10);
  ids.insert(ids.end(), {900, 901});
  ids.insert(ids.end(), old.begin() + 40, old.begin() + 55);
  ids.push_back(902);
  const ContextRange contexts[] = {{1, 10, old, 0}, {13, 15, old, 40}};
  const Composition c = *Composition::Create(ids, contexts, kOpening, {});
  EXPECT_FALSE(c.contexts()[0].moved) << "what stands before a change stays a prefix";
  EXPECT_THAT(Positions(c.computed()), ElementsAre(11, 12, 28));
  const Composition::Context& tail = c.contexts()[1];
  EXPECT_EQ(tail.position, 13 - 41) << "its first ids would stand before the prompt";
  EXPECT_EQ(tail.first_block(kBlockTokens), 2u);
  const std::vector<CachedBlock> places = c.Places(tail, kBlockTokens);
  ASSERT_EQ(places.size(), 2u);  // Ids 41 to 55.
  EXPECT_EQ(places[0].position, 13 - 9);
  EXPECT_EQ(places[0].base_position, 32);
  EXPECT_EQ(places[0].tokens, 16);
  EXPECT_EQ(places[0].hidden[0], (1u << 9) - 1);
  EXPECT_EQ(places[1].tokens, 8);
  EXPECT_EQ(places[1].hidden[0], 0u);
}

TEST(CompositionTest, ASliceMustBeInItsSource) {
  const std::vector<int32_t> old = Ids(60, 7);
  std::vector<int32_t> ids(old.begin() + 20, old.begin() + 40);
  ids.push_back(5);
  for (const int64_t begin : {int64_t{21}, int64_t{-1}, int64_t{50}, INT64_MAX}) {
    const ContextRange contexts[] = {{0, 20, old, begin}};
    EXPECT_EQ(Composition::Create(ids, contexts, kOpening, {}).status().code(), absl::StatusCode::kInvalidArgument)
        << begin;
  }
}

class ComposedTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto served = ServedModel::Load({.folder = PERIGEE_SOURCE_DIR "/models/podling", .plan_file = "identity"});
    ASSERT_TRUE(served.ok()) << served.status();
    served_ = served->release();
  }
  const Transformer& transformer() const { return served_->transformer(); }

  static pod::Plan PlanOf(pod::Sharing sharing) {
    const pod::KvShape shape = served_->transformer().kv_shape();
    std::vector<pod::Slot> slots;
    for (int l = 0; l < shape.layers; ++l) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        pod::Slot slot{.role = l % 2 == 0 ? pod::Role::kLead : pod::Role::kFollower, .lead = {l - l % 2, h}};
        if (l + 1 == shape.layers && h + 1 == shape.kv_heads) slot = {.role = pod::Role::kNearOnly, .lead = {l, h}};
        slots.push_back(slot);
      }
    }
    return *pod::Plan::Create(shape, {.sink_tokens = 16, .recent_tokens = 48}, sharing, pod::Codec::kBf16, slots,
                              served_->fingerprint());
  }

  PlaneCache NewCache(const pod::Layout& layout) const {
    return PlaneCache(&layout, &transformer().rope(), transformer().config().q_heads, HeapPlanes());
  }

  std::vector<float> Whole(const pod::Layout& layout, const std::vector<int32_t>& ids) const {
    PlaneCache cache = NewCache(layout);
    std::vector<float> logits;
    EXPECT_TRUE(transformer().Forward(ids, cache, Logits::kLast, &logits).ok());
    return logits;
  }

  struct Outcome {
    std::vector<float> logits, next;  // Of the last token; of one more.
    int64_t repaired = 0;
  };
  // Contexts computed alone, then the prompt over them. Checks that their planes stay as they are.
  Outcome Composed(const pod::Layout& layout, const std::vector<int32_t>& ids, std::vector<ContextRange> contexts,
                   absl::string_view repair, int chunk = 512) const {
    Outcome out;
    auto composition = Composition::Create(ids, contexts, kOpening, RepairOf(repair));
    EXPECT_TRUE(composition.ok()) << composition.status();
    PlaneCache cache = NewCache(layout);
    std::vector<PlaneCache> alone;
    std::vector<std::vector<std::byte>> before;
    for (const Composition::Context& context : composition->contexts()) {
      alone.push_back(NewCache(layout));
      EXPECT_TRUE(transformer().Forward(context.ids, alone.back(), Logits::kNone, nullptr).ok());
      for (const CachedBlock& block : composition->Places(context, alone.back())) {
        EXPECT_TRUE(cache.Place(block).ok());
        before.emplace_back(block.distant.get(), block.distant.get() + layout.plane_bytes(pod::PlaneKind::kDistant));
      }
    }
    const CompositionPass pass{.transformer = &transformer(), .chunk_tokens = chunk, .run = [&](BatchItem item) {
                                 const absl::Status status = transformer().ForwardBatch(std::span(&item, 1));
                                 return status.ok() ? item.status : status;
                               }};
    const absl::Status status = RunComposition(pass, *composition, cache, &out.logits);
    EXPECT_TRUE(status.ok()) << status;
    out.repaired = composition->repaired_tokens();
    size_t i = 0;
    for (size_t c = 0; c < alone.size(); ++c) {
      for (const CachedBlock& block : composition->Places(composition->contexts()[c], alone[c])) {
        EXPECT_EQ(std::memcmp(before[i].data(), block.distant.get(), before[i].size()), 0) << "block " << i;
        ++i;
      }
    }
    const int32_t next = 77;
    EXPECT_TRUE(transformer().Forward(std::span(&next, 1), cache, Logits::kLast, &out.next).ok());
    return out;
  }

  static float MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    float most = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max(most, std::fabs(a[i] - b[i]));
    return most;
  }

  // BOS, text, context, text, context, question; all but multiples of the block size.
  std::vector<int32_t> prompt_ = [] {
    std::vector<int32_t> ids = Ids(301, 5);
    ids[0] = kBos;
    return ids;
  }();
  const std::vector<ContextRange> contexts_ = {{8, 101}, {113, 150}};
  const pod::Layout full_ = *pod::Layout::Create(served_->plan(), kBlockTokens);

  static ServedModel* served_;
};
ServedModel* ComposedTest::served_ = nullptr;

TEST_F(ComposedTest, WithEverythingComputedAgainIsThePlainPrompt) {
  const std::vector<float> expected = Whole(full_, prompt_);
  std::vector<int32_t> longer = prompt_;
  longer.push_back(77);
  const std::vector<float> next = Whole(full_, longer);
  for (const char* repair : {"prefix:4096", "deviation:1"}) {
    for (const int chunk : {512, 64, 7}) {
      SCOPED_TRACE(absl::StrCat(repair, " in chunks of ", chunk));
      const Outcome outcome = Composed(full_, prompt_, contexts_, repair, chunk);
      EXPECT_EQ(outcome.repaired, 251);
      EXPECT_LT(MaxDifference(outcome.logits, expected), 0.02f);
      EXPECT_LT(MaxDifference(outcome.next, next), 0.02f);
    }
  }
}

TEST_F(ComposedTest, AContextAtThePromptsBeginningNeedsNoRepair) {
  const std::vector<float> expected = Whole(full_, prompt_);
  for (const char* repair : {"none", "prefix:8", "deviation:0.5"}) {
    SCOPED_TRACE(repair);
    const Outcome outcome = Composed(full_, prompt_, {{1, 250}}, repair);
    EXPECT_EQ(outcome.repaired, 0);
    EXPECT_LT(MaxDifference(outcome.logits, expected), 0.02f);
  }
}

TEST_F(ComposedTest, RepairsComeCloserToThePlainPromptThanNone) {
  const std::vector<float> expected = Whole(full_, prompt_);
  const auto divergence = [&](const char* repair) {
    const std::vector<float> logits = Composed(full_, prompt_, contexts_, repair).logits;
    double sum = 0;
    for (size_t i = 0; i < logits.size(); ++i) sum += std::pow(double{logits[i]} - expected[i], 2);
    return std::sqrt(sum / static_cast<double>(logits.size()));
  };
  const double none = divergence("none");
  EXPECT_GT(none, 0.01);
  EXPECT_LT(divergence("deviation:0.5"), none);
  EXPECT_LT(divergence("prefix:100"), none);
}

TEST_F(ComposedTest, TheDeviationRepairBeginsWithTheFirstTokensOfEveryContext) {
  const auto repaired = [&](const char* repair) {
    Composition composition = *Composition::Create(prompt_, contexts_, kOpening, RepairOf(repair));
    PlaneCache cache = NewCache(full_);
    for (const Composition::Context& context : composition.contexts()) {
      PlaneCache alone = NewCache(full_);
      EXPECT_TRUE(transformer().Forward(context.ids, alone, Logits::kNone, nullptr).ok());
      for (const CachedBlock& block : composition.Places(context, alone)) EXPECT_TRUE(cache.Place(block).ok());
    }
    const auto run = [&](BatchItem item) {
      const absl::Status status = transformer().ForwardBatch(std::span(&item, 1));
      return status.ok() ? item.status : status;
    };
    std::vector<float> logits;
    EXPECT_TRUE(RunComposition({.transformer = &transformer(), .run = run}, composition, cache, &logits).ok());
    std::vector<int64_t> positions;
    for (const Token& token : composition.computed()) {
      if (token.repaired) positions.push_back(token.position);
    }
    return positions;
  };
  EXPECT_THAT(repaired("deviation:0.016"), ElementsAre(8, 9, 113, 114));
  const std::vector<int64_t> more = repaired("deviation:0.1");
  EXPECT_EQ(more.size(), 25u);
  for (const int64_t first : {8, 113}) {
    for (int64_t t = 0; t < 8; ++t) EXPECT_THAT(more, ::testing::Contains(first + t));
  }
}

TEST_F(ComposedTest, SharedKeysAndNearOnlySlotsWorkOverContexts) {
  for (const pod::Sharing sharing : {pod::Sharing::kKey, pod::Sharing::kScore}) {
    const pod::Layout layout = *pod::Layout::Create(PlanOf(sharing), kBlockTokens);
    const std::vector<float> expected = Whole(layout, prompt_);
    // Windows are rounded to other borders than in the plain prompt, so it is not quite the same.
    const Outcome all = Composed(layout, prompt_, contexts_, "prefix:4096", 16);
    EXPECT_LT(MaxDifference(all.logits, expected), 2.0f);
    for (const char* repair : {"none", "prefix:16", "deviation:0.2", "parallel:0.9:0.9"}) {
      const Outcome outcome = Composed(layout, prompt_, contexts_, repair);
      for (const float logit : outcome.next) ASSERT_TRUE(std::isfinite(logit)) << repair;
    }
  }
}

TEST_F(ComposedTest, AnEditedDocumentComputesTheChangeAndRepairedWhollyIsThePlainPrompt) {
  const std::vector<int32_t> old = Ids(170, 12), change = Ids(9, 13), question = Ids(20, 14);
  for (const size_t at : {size_t{70}, size_t{0}}) {
    std::vector<int32_t> ids = {kBos};
    ids.insert(ids.end(), old.begin(), old.begin() + static_cast<std::ptrdiff_t>(at));
    ids.insert(ids.end(), change.begin(), change.end());
    ids.insert(ids.end(), old.begin() + static_cast<std::ptrdiff_t>(at) + 25, old.end());
    ids.insert(ids.end(), question.begin(), question.end());
    const int64_t tail = static_cast<int64_t>(old.size() - at) - 25,
                  begin = static_cast<int64_t>(1 + at + change.size());
    std::vector<ContextRange> contexts = {{begin, tail, old, static_cast<int64_t>(at) + 25}};
    if (at > 0) contexts.insert(contexts.begin(), {1, static_cast<int64_t>(at), old, 0});
    const Outcome all = Composed(full_, ids, contexts, "prefix:4096");
    EXPECT_EQ(all.repaired, tail);
    EXPECT_LT(MaxDifference(all.logits, Whole(full_, ids)), 0.02f) << at;
    EXPECT_EQ(Composed(full_, ids, contexts, "none").repaired, 0);
  }
}

TEST_F(ComposedTest, AContextMayBeginThePromptWithoutItsOpening) {
  std::vector<int32_t> ids(prompt_.begin() + 1, prompt_.end());
  const Outcome all = Composed(full_, ids, {{0, 200}}, "prefix:4096");
  EXPECT_LT(MaxDifference(all.logits, Whole(full_, ids)), 0.02f);
}

TEST_F(ComposedTest, AForkGoesOnByItself) {
  Composition composition = *Composition::Create(prompt_, contexts_, kOpening, RepairOf("prefix:8"));
  PlaneCache cache = NewCache(full_);
  for (const Composition::Context& context : composition.contexts()) {
    PlaneCache alone = NewCache(full_);
    ASSERT_TRUE(transformer().Forward(context.ids, alone, Logits::kNone, nullptr).ok());
    for (const CachedBlock& block : composition.Places(context, alone)) ASSERT_TRUE(cache.Place(block).ok());
  }
  const CompositionPass pass{.transformer = &transformer(), .run = [&](BatchItem item) {
                               const absl::Status status = transformer().ForwardBatch(std::span(&item, 1));
                               return status.ok() ? item.status : status;
                             }};
  std::vector<float> logits, a, b, c;
  ASSERT_TRUE(RunComposition(pass, composition, cache, &logits).ok());
  auto fork = cache.Fork();
  ASSERT_TRUE(fork.ok()) << fork.status();
  const std::vector<int32_t> one = Ids(40, 8), other = Ids(40, 9);
  ASSERT_TRUE(transformer().Forward(one, cache, Logits::kLast, &a).ok());
  ASSERT_TRUE(transformer().Forward(other, *fork, Logits::kLast, &b).ok());
  const Outcome again = Composed(full_, prompt_, contexts_, "prefix:8");
  PlaneCache fresh = NewCache(full_);
  EXPECT_NE(a, b);
  EXPECT_EQ(logits, again.logits);
}

TEST_F(ComposedTest, RefusesToComputeWhatIsPlacedAndNotHidden) {
  Composition composition = *Composition::Create(prompt_, contexts_, kOpening, {});
  PlaneCache alone = NewCache(full_), cache = NewCache(full_);
  const Composition::Context& context = composition.contexts()[0];
  ASSERT_TRUE(transformer().Forward(context.ids, alone, Logits::kNone, nullptr).ok());
  for (const CachedBlock& block : composition.Places(context, alone)) ASSERT_TRUE(cache.Place(block).ok());
  const int64_t inside[] = {20}, outside[] = {200};
  BatchItem item{.tokens = std::span(prompt_).first(1), .positions = inside, .cache = &cache};
  ASSERT_TRUE(transformer().ForwardBatch(std::span(&item, 1)).ok());
  EXPECT_EQ(item.status.code(), absl::StatusCode::kInvalidArgument) << item.status;
  EXPECT_EQ(cache.Hide(outside).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace perigee::model
