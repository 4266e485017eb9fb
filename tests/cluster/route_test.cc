// Which nodes a request goes to, case by case.
#include "cluster/scheduler/route.h"

#include <gtest/gtest.h>

#include <string>

namespace perigee::cluster {
namespace {

// Computes a token in a millisecond, answers one in ten.
NodeFigures Node() { return {.max_running = 8, .compute = {.token_s = 1e-3}, .answer_token_s = 1e-2}; }
NodeFigures With(void (*change)(NodeFigures&)) {
  NodeFigures node = Node();
  change(node);
  return node;
}

struct Case {
  std::string name;
  PromptFigures prompt;
  std::vector<NodeFigures> prefill, decode;
  size_t wanted_decode = 0;
  std::optional<size_t> wanted_prefill;
};

PromptFigures Prompt(int64_t tokens, int64_t stored) {
  return {.tokens = tokens, .stored_tokens = stored, .fetch = absl::Microseconds(stored), .fetch_token_s = 1e-6};
}

const Case kCases[] = {
    {"a long new prompt goes through a prefill node", Prompt(4000, 0), {Node()}, {Node()}, 0, 0},
    {"a stored prompt needs none", Prompt(4000, 4000), {Node()}, {Node()}, 0, std::nullopt},
    {"nor does a short tail", Prompt(4000, 3900), {Node()}, {Node()}, 0, std::nullopt},
    {"unless what a pass costs anyhow is more than the tail",
     Prompt(4000, 3900),
     {With([](NodeFigures& n) { n.compute = {.pass_s = 5e-3, .token_s = 1e-4}; })},
     {With([](NodeFigures& n) { n.compute = {.token_s = 2e-4}; })},
     0,
     std::nullopt},
    {"a long tail does", Prompt(4000, 3000), {Node()}, {Node()}, 0, 0},
    {"a short new prompt does not", Prompt(100, 0), {Node()}, {Node()}, 0, std::nullopt},
    {"a prompt of one token", Prompt(0, 0), {Node()}, {Node()}, 0, std::nullopt},
    {"without prefill nodes the decode node does it all", Prompt(4000, 0), {}, {Node()}, 0, std::nullopt},
    {"the emptier of two decode nodes",
     Prompt(100, 100),
     {},
     {With([](NodeFigures& n) { n.running = 3; }), With([](NodeFigures& n) { n.running = 1; })},
     1,
     std::nullopt},
    {"not the one that is full",
     Prompt(4000, 4000),
     {Node()},
     {With([](NodeFigures& n) { n.running = 8; }), With([](NodeFigures& n) { n.running = 7; })},
     1,
     std::nullopt},
    {"a full one of which nothing was measured is full too",
     Prompt(100, 100),
     {},
     {With([](NodeFigures& n) { n.running = 8, n.answer_token_s = 0; }),
      With([](NodeFigures& n) { n.running = 7, n.answer_token_s = 0; })},
     1,
     std::nullopt},
    {"the one that has the conversation in its memory",
     Prompt(4000, 4000),
     {Node()},
     {Node(), With([](NodeFigures& n) { n.local_tokens = 4000; })},
     1,
     std::nullopt},
    {"even where the store has nothing of it",
     Prompt(4000, 0),
     {Node()},
     {Node(), With([](NodeFigures& n) { n.local_tokens = 3950; })},
     1,
     std::nullopt},
    {"but not if its queue is longer than computing it again",
     Prompt(1000, 0),
     {Node()},
     {Node(), With([](NodeFigures& n) { n.local_tokens = 1000, n.running = 8, n.queued = 80; })},
     0,
     0},
    {"the prefill node with less before it",
     Prompt(4000, 0),
     {With([](NodeFigures& n) { n.tokens_ahead = 8000; }), With([](NodeFigures& n) { n.tokens_ahead = 2000; })},
     {Node()},
     0,
     1},
    {"many short prompts are before it sooner than a long one of as many tokens",
     Prompt(4000, 0),
     {With([](NodeFigures& n) { n.tokens_ahead = 8000, n.running = 1, n.compute.position_s = 1e-6; }),
      With([](NodeFigures& n) { n.tokens_ahead = 8100, n.running = 20, n.compute.position_s = 1e-6; })},
     {Node()},
     0,
     1},
    {"the faster one, although more waits there",
     Prompt(4000, 0),
     {With([](NodeFigures& n) { n.tokens_ahead = 1000; }),
      With([](NodeFigures& n) { n.tokens_ahead = 2000, n.compute.token_s = 1e-4; })},
     {Node()},
     0,
     1},
    {"a short tail goes to a prefill node if the decode node computes slowly",
     Prompt(4000, 3800),
     {With([](NodeFigures& n) { n.compute.token_s = 1e-5; })},
     {With([](NodeFigures& n) { n.compute.token_s = 1e-2; })},
     0,
     0},
    {"and stays where the prefill node has much to do",
     Prompt(4000, 3800),
     {With([](NodeFigures& n) { n.tokens_ahead = 100000; })},
     {Node()},
     0,
     std::nullopt},
};

TEST(RouteTest, EachCaseGoesWhereItsFirstTokenIsEarliest) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const std::optional<Route> route = ChooseRoute(c.prompt, c.prefill, c.decode, {});
    ASSERT_TRUE(route.has_value());
    EXPECT_EQ(route->decode, c.wanted_decode);
    EXPECT_EQ(route->prefill, c.wanted_prefill);
    EXPECT_GE(route->time_to_first_token, absl::ZeroDuration());
  }
}

TEST(RouteTest, WithoutDecodeNodesThereIsNone) {
  EXPECT_FALSE(ChooseRoute(Prompt(100, 0), {Node()}, {}, {}).has_value());
}

TEST(RouteTest, WhatMustBePrefilledIs) {
  // As after a decode node that lacked what it was thought to have.
  RouteOptions options;
  options.max_direct_tokens = -1;
  EXPECT_EQ(ChooseRoute(Prompt(10, 0), {Node()}, {Node()}, options)->prefill, std::optional<size_t>(0));
  EXPECT_EQ(ChooseRoute(Prompt(10, 0), {}, {Node()}, options)->prefill, std::nullopt);
}

TEST(RouteTest, FartherIntoAPromptComputingTakesLonger) {
  NodeFigures node = Node();
  node.compute.position_s = 1e-6;
  const auto time = [&](int64_t tokens, int64_t stored) {
    return absl::ToDoubleSeconds(ChooseRoute(Prompt(tokens, stored), {}, {node}, {})->time_to_first_token);
  };
  EXPECT_NEAR(time(1000, 0), 1 + 1e-6 * 999 * 1000 / 2, 1e-3);
  EXPECT_GT(time(9000, 8000), 8 * time(1000, 0) / 2);
}

}  // namespace
}  // namespace perigee::cluster
