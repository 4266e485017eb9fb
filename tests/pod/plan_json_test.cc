#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_replace.h"
#include "plans.h"
#include "pod/plan.h"

namespace perigee::pod {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

std::string Refusal(absl::string_view json) {
  const absl::StatusOr<Plan> plan = Plan::Parse(json);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument) << json.substr(0, 200);
  return std::string(plan.status().message());
}

// The mixed plan's file with one passage replaced.
std::string Edited(absl::string_view from, absl::string_view to) {
  const std::string json = MixedPlan().ToJson();
  EXPECT_THAT(json, HasSubstr(std::string(from)));
  return absl::StrReplaceAll(json, {{from, to}});
}

bool Same(const Plan& a, const Plan& b) {
  if (a.id() != b.id() || a.model_fingerprint() != b.model_fingerprint()) return false;
  for (int l = 0; l < a.shape().layers; ++l) {
    for (int h = 0; h < a.shape().kv_heads; ++h) {
      if (a.slot(l, h) != b.slot(l, h)) return false;
    }
  }
  return a.shape() == b.shape() && a.window() == b.window() && a.sharing() == b.sharing() &&
         a.near_codec() == b.near_codec();
}

TEST(PlanJson, WhatIsWrittenIsReadBack) {
  std::mt19937 rng(1);
  for (int i = 0; i < 200; ++i) {
    const Plan plan = RandomPlan(rng);
    const absl::StatusOr<Plan> read = Plan::Parse(plan.ToJson());
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(Same(*read, plan));
    EXPECT_EQ(read->ToJson(), plan.ToJson());
  }
}

TEST(PlanJson, TheTextIsOneLayerALine) {
  EXPECT_EQ(MixedPlan().ToJson(), R"({
  "format": "perigee.plan",
  "version": 1,
  "model_fingerprint": "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
  "layers": 3,
  "kv_heads": 2,
  "head_dim": 32,
  "sink_tokens": 16,
  "recent_tokens": 128,
  "sharing": "key",
  "near_codec": "bf16",
  "slots": [
    [{"role":"lead","far_codec":"bf16"},{"role":"near-only"}],
    [{"role":"follower","lead":[0,0],"far_codec":"bf16"},{"role":"lead","far_codec":"fp16"}],
    [{"role":"follower","lead":[1,1],"far_codec":"fp16"},{"role":"follower","lead":[0,0],"far_codec":"bf16"}]
  ]
}
)");
}

TEST(PlanJson, OrderAndSpaceDoNotMatter) {
  const std::string json = MixedPlan().ToJson();
  const size_t slots = json.find("\"slots\"");
  const std::string turned =
      "{" + json.substr(slots, json.rfind('}') - slots) + "," + json.substr(1, json.rfind(',', slots) - 1) + "}";
  const absl::StatusOr<Plan> plan = Plan::Parse(absl::StrReplaceAll(turned, {{"\n", "\t \r\n"}}));
  ASSERT_TRUE(plan.ok()) << plan.status() << turned;
  EXPECT_TRUE(Same(*plan, MixedPlan()));
}

TEST(PlanJson, RefusesWhatItDoesNotKnow) {
  EXPECT_THAT(Refusal(Edited("\"layers\"", "\"note\": 1, \"layers\"")), HasSubstr("unknown field 'note'"));
  EXPECT_THAT(Refusal(Edited("{\"role\":\"lead\"", "{\"x\":1,\"role\":\"lead\"")),
              AllOf(HasSubstr("'x'"), HasSubstr("layer 0")));
  EXPECT_THAT(Refusal(Edited("\"version\": 1", "\"version\": 2")), HasSubstr("version 2"));
  EXPECT_THAT(Refusal(Edited("\"version\": 1", "\"version\": 0")), HasSubstr("version 0"));
  EXPECT_THAT(Refusal(Edited("\"version\": 1", "\"version\": \"1\"")), HasSubstr("'version'"));
  EXPECT_THAT(Refusal(Edited("\"version\": 1", "\"version\": 1.0")), HasSubstr("'version'"));
  EXPECT_THAT(Refusal(Edited("perigee.plan", "perigee.plane")), HasSubstr("perigee.plane"));
  EXPECT_THAT(Refusal(Edited("\"near_codec\": \"bf16\"", "\"near_codec\": \"int8\"")), HasSubstr("int8"));
  EXPECT_THAT(Refusal(Edited("\"sharing\": \"key\"", "\"sharing\": \"keys\"")), HasSubstr("keys"));
  EXPECT_THAT(Refusal(Edited("near-only", "far-only")), AllOf(HasSubstr("far-only"), HasSubstr("slot 1 of layer 0")));
}

TEST(PlanJson, RefusesAFieldThatStandsTwice) {
  EXPECT_THAT(Refusal(Edited("\"layers\": 3", "\"layers\": 3, \"layers\": 3")), HasSubstr("'layers' stands twice"));
  EXPECT_THAT(Refusal(Edited("{\"role\":\"near-only\"", "{\"role\":\"near-only\",\"role\":\"near-only\"")),
              HasSubstr("'role' stands twice"));
}

TEST(PlanJson, RefusesMissingFields) {
  for (const char* field : {"format", "version", "model_fingerprint", "layers", "kv_heads", "head_dim", "sink_tokens",
                            "recent_tokens", "sharing", "near_codec", "slots"}) {
    std::string json = MixedPlan().ToJson();
    const size_t begin = json.find(absl::StrCat("\"", field, "\""));
    const size_t end = std::string(field) == "slots" ? json.rfind('}') : json.find(",\n", begin) + 2;
    json.erase(begin, end - begin);
    if (std::string(field) == "slots") json.erase(json.rfind(','), 1);
    EXPECT_THAT(Refusal(json), HasSubstr(field));
  }
}

TEST(PlanJson, RefusesSlotsThatContradictThemselves) {
  EXPECT_THAT(Refusal(Edited("{\"role\":\"near-only\"", "{\"far_codec\":\"bf16\",\"role\":\"near-only\"")),
              HasSubstr("near-only"));
  EXPECT_THAT(Refusal(Edited("{\"role\":\"lead\"", "{\"lead\":[0,0],\"role\":\"lead\"")), HasSubstr("no other lead"));
  for (const char* lead :
       {"[0]", "[0,0,0]", "[0,-1]", "[0,0.5]", "[0,1024]", "[0,99999999999999999999]", "0", "null", "{}", "\"00\""}) {
    EXPECT_THAT(Refusal(Edited("[0,0]", lead)), HasSubstr("[layer, kv head]"));
  }
  EXPECT_THAT(Refusal(Edited("[0,0]", "[2,1]")), HasSubstr("lower layer"));
  EXPECT_THAT(Refusal(Edited("{\"role\":\"near-only\"}", "7")), HasSubstr("not a JSON object"));
  EXPECT_THAT(Refusal(Edited(",{\"role\":\"near-only\"}", "")), HasSubstr("not a list of 2 slots"));
  EXPECT_THAT(Refusal(Edited("\"layers\": 3", "\"layers\": 4")), HasSubstr("not a list of 4 layers"));
  EXPECT_THAT(Refusal(Edited("\"layers\": 3", "\"layers\": 1024")), HasSubstr("1024 layers"));
}

TEST(PlanJson, RefusesNumbersThatAreNone) {
  for (const char* number :
       {"0", "-1", "1e3", "3.0", "1e400", "-1e400", "9223372036854775808", "-9223372036854775809", "4294967299",
        "123456789012345678901234567890", "true", "null", "[]", "{}", "03", "0x3", "NaN", "+3"}) {
    Refusal(Edited("\"layers\": 3", absl::StrCat("\"layers\": ", number)));
    // 0 sinks are none, which is allowed.
    if (std::string(number) != "0") Refusal(Edited("\"sink_tokens\": 16", absl::StrCat("\"sink_tokens\": ", number)));
  }
  Refusal(Edited("\"recent_tokens\": 128", "\"recent_tokens\": 0"));
  Refusal(Edited("\"recent_tokens\": 128", "\"recent_tokens\": 2147483648"));
  Refusal(Edited("\"head_dim\": 32", "\"head_dim\": 33"));
}

TEST(PlanJson, RefusesAFingerprintThatIsNone) {
  EXPECT_THAT(Refusal(Edited("00010203", "0001020")), HasSubstr("model_fingerprint"));
  EXPECT_THAT(Refusal(Edited("00010203", "000102zz")), HasSubstr("model_fingerprint"));
  EXPECT_THAT(Refusal(Edited("1c1d1e1f", "")), HasSubstr("model_fingerprint"));
}

TEST(PlanJson, RefusesEveryTruncation) {
  const std::string json = MixedPlan().ToJson();
  for (size_t n = 0; n + 2 <= json.size(); ++n) Refusal(json.substr(0, n));  // The last byte is a line end.
}

TEST(PlanJson, RefusesWhatFollowsThePlan) {
  Refusal(MixedPlan().ToJson() + "{}");
  Refusal(MixedPlan().ToJson() + MixedPlan().ToJson());
  Refusal(MixedPlan().ToJson() + std::string(1, '\0'));
  Refusal(MixedPlan().ToJson() + std::string(1, '\0') + "{}");
}

TEST(PlanJson, ABitFlipGivesAnErrorOrAValidPlan) {
  const std::string json = MixedPlan().ToJson();
  for (size_t bit = 0; bit < json.size() * 8; ++bit) {
    std::string flipped = json;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    const absl::StatusOr<Plan> plan = Plan::Parse(flipped);
    if (plan.ok()) {
      EXPECT_TRUE(Same(*Plan::Parse(plan->ToJson()), *plan));
    } else {
      EXPECT_FALSE(plan.status().message().empty());
    }
  }
}

TEST(PlanJson, RandomDamageGivesAnErrorOrAValidPlan) {
  std::mt19937 rng(7);
  const std::string json = MixedPlan().ToJson();
  const std::vector<std::string> pieces = {"{", "}", "[",   "]",    ",",        ":",     "\"",  "\\",
                                           "0", "-", "1e9", "null", "\"lead\"", "[0,0]", "\x80"};
  for (int round = 0; round < 5000; ++round) {
    std::string damaged = json;
    for (unsigned edits = 1 + rng() % 4; edits > 0; --edits) {
      const size_t at = rng() % damaged.size();
      switch (rng() % 3) {
        case 0:
          damaged[at] = static_cast<char>(rng());
          break;
        case 1:
          damaged.erase(at, 1 + rng() % 20);
          break;
        case 2:
          damaged.insert(at, pieces[rng() % pieces.size()]);
          break;
      }
      if (damaged.empty()) damaged = "x";
    }
    const absl::StatusOr<Plan> plan = Plan::Parse(damaged);
    if (plan.ok()) {
      EXPECT_TRUE(Same(*Plan::Parse(plan->ToJson()), *plan));
    }
  }
}

TEST(PlanJson, DeepNestingCostsNoStackAndNoMemory) {
  EXPECT_THAT(Refusal(std::string(size_t{20} << 20, '[')), HasSubstr("nested"));
  std::string objects;
  for (int i = 0; i < 1000000; ++i) objects += "{\"a\":";
  EXPECT_THAT(Refusal(objects), HasSubstr("nested"));
  EXPECT_THAT(Refusal(Edited("[0,0]", "[[0],0]")), HasSubstr("nested"));
  // Brackets in strings do not nest.
  EXPECT_THAT(Refusal(Edited("perigee.plan", "[[[[[[[[\\\"[[")), HasSubstr("'format'"));
}

TEST(PlanJson, ManyFieldsTakeNoQuadraticTime) {
  std::string json = "{";
  for (int i = 0; i < 300000; ++i) absl::StrAppend(&json, i == 0 ? "" : ",", "\"k", i, "\":0");
  EXPECT_THAT(Refusal(json + "}"), HasSubstr("unknown field"));
}

TEST(PlanJson, AHostileTextDoesNotFillTheLog) {
  const std::string longer(1 << 20, 'x');
  EXPECT_THAT(Refusal(Edited("perigee.plan", longer)), SizeIs(testing::Lt(300u)));
  EXPECT_THAT(Refusal(Edited("\"layers\"", absl::StrCat("\"", longer, "\""))), SizeIs(testing::Lt(300u)));
  EXPECT_THAT(Refusal(Edited("\"key\"", absl::StrCat("\"", longer, "\""))), SizeIs(testing::Lt(300u)));
  EXPECT_THAT(Refusal(Edited("near-only", longer)), SizeIs(testing::Lt(300u)));
  EXPECT_THAT(Refusal(Edited("fp16", longer)), SizeIs(testing::Lt(300u)));
}

TEST(PlanJson, RefusesFilesLargerThanAnyPlan) {
  EXPECT_THAT(Refusal(std::string((size_t{64} << 20) + 1, ' ')), HasSubstr("no plan is that large"));
}

TEST(PlanJson, RefusesOtherTopLevelValuesAndInvalidUtf8) {
  for (const char* json : {"", " ", "null", "[]", "1", "\"plan\"", "{}", "// x\n{}"}) Refusal(json);
  Refusal(Edited("perigee.plan", "perigee.\xff\xfe"));
}

TEST(PlanJson, ThePlanOfTheSmallModelIsValid) {
  std::ifstream in(std::string(PERIGEE_SOURCE_DIR) + "/models/podling/plan.json");
  const std::string json{std::istreambuf_iterator<char>(in), {}};
  const absl::StatusOr<Plan> plan = Plan::Parse(json);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->id(), PodlingPlan().id());
  EXPECT_EQ(plan->ToJson(), json);
}

}  // namespace
}  // namespace perigee::pod
