#include "pod/block_key.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <vector>

#include "plans.h"

namespace perigee::pod {
namespace {

Identity TestIdentity() {
  Identity identity;
  identity.tenant = "acme";
  identity.salt = "pepper";
  identity.model_fingerprint = TestFingerprint();
  identity.plan_id = MixedPlan().id();
  identity.block_tokens = 64;
  return identity;
}

// 0, 3, 6, ...
std::vector<int32_t> Tokens(int n) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < n; ++i) tokens.push_back(3 * i);
  return tokens;
}

TEST(BlockKey, KeysAreTheOnesThatTheFormatsPageDefines) {
  auto golden = Golden();
  const std::vector<BlockKey> chain = DeriveChain(TestIdentity(), Tokens(104));
  ASSERT_EQ(chain.size(), 2u);
  EXPECT_EQ(chain[0].ToString(), golden["block_key.0"]);
  EXPECT_EQ(chain[1].ToString(), golden["block_key.1"]);
  Identity shard = TestIdentity();
  shard.shard = 7;
  EXPECT_EQ(DeriveBlockKey(shard, nullptr, Tokens(64)).ToString(), golden["block_key.0.shard7"]);
}

TEST(BlockKey, AChainIsEveryBlockUnderItsPredecessor) {
  const std::vector<int32_t> tokens = Tokens(64 * 3 + 10);
  const std::vector<BlockKey> chain = DeriveChain(TestIdentity(), tokens);
  ASSERT_EQ(chain.size(), 4u);
  const BlockKey* parent = nullptr;
  for (size_t i = 0; i < chain.size(); ++i) {
    const std::span<const int32_t> block = std::span(tokens).subspan(i * 64, i < 3 ? 64 : 10);
    EXPECT_EQ(chain[i], DeriveBlockKey(TestIdentity(), parent, block));
    parent = &chain[i];
  }
}

TEST(BlockKey, EqualPrefixesHaveEqualKeysAndAChangedTokenChangesAllThatFollow) {
  std::vector<int32_t> tokens = Tokens(64 * 4);
  const std::vector<BlockKey> chain = DeriveChain(TestIdentity(), tokens);
  ++tokens[64 + 5];
  const std::vector<BlockKey> changed = DeriveChain(TestIdentity(), tokens);
  EXPECT_EQ(chain[0], changed[0]);
  for (size_t i = 1; i < 4; ++i) EXPECT_NE(chain[i], changed[i]);
  tokens[64 + 5]--;
  tokens.resize(64 * 2);
  EXPECT_EQ(DeriveChain(TestIdentity(), tokens), std::vector<BlockKey>(chain.begin(), chain.begin() + 2));
}

TEST(BlockKey, TheSameTokensElsewhereInAPromptHaveAnotherKey) {
  std::vector<int32_t> tokens(128, 5);
  const std::vector<BlockKey> chain = DeriveChain(TestIdentity(), tokens);
  EXPECT_NE(chain[0], chain[1]);
}

TEST(BlockKey, APartialLastBlockHasItsOwnKey) {
  const std::vector<int32_t> tokens = Tokens(65);
  EXPECT_EQ(DeriveChain(TestIdentity(), {}).size(), 0u);
  std::set<BlockKey> keys;
  for (size_t n = 1; n <= 64; ++n) {
    const std::vector<BlockKey> chain = DeriveChain(TestIdentity(), std::span(tokens).first(n));
    ASSERT_EQ(chain.size(), 1u);
    keys.insert(chain[0]);
  }
  EXPECT_EQ(keys.size(), 64u);
  EXPECT_EQ(DeriveChain(TestIdentity(), tokens).size(), 2u);
}

TEST(BlockKey, EveryFieldOfTheIdentityChangesTheKey) {
  std::set<BlockKey> keys;
  const auto add = [&](auto change) {
    Identity identity = TestIdentity();
    change(identity);
    keys.insert(DeriveBlockKey(identity, nullptr, Tokens(16)));
  };
  add([](Identity& i) {});
  add([](Identity& i) { i.tenant = "acmf"; });
  add([](Identity& i) { i.tenant = ""; });
  add([](Identity& i) { i.salt = "paprika"; });
  add([](Identity& i) { i.salt = ""; });
  add([](Identity& i) { i.model_fingerprint[31] ^= 1; });
  add([](Identity& i) { i.plan_id[0] ^= 0x80; });
  add([](Identity& i) { i.block_tokens = 32; });
  add([](Identity& i) { i.shard = 1; });
  add([](Identity& i) { i.shard = 0x01000000; });
  EXPECT_EQ(keys.size(), 10u);
}

TEST(BlockKey, TenantAndSaltDoNotRunTogether) {
  Identity a = TestIdentity(), b = TestIdentity();
  a.tenant = "acme";
  a.salt = "pepper";
  b.tenant = "acmep";
  b.salt = "epper";
  EXPECT_NE(DeriveBlockKey(a, nullptr, Tokens(4)), DeriveBlockKey(b, nullptr, Tokens(4)));
  a.tenant = std::string("x\0", 2);
  a.salt = "y";
  b.tenant = "x";
  b.salt = std::string("\0y", 2);
  EXPECT_NE(DeriveBlockKey(a, nullptr, Tokens(4)), DeriveBlockKey(b, nullptr, Tokens(4)));
}

TEST(BlockKey, AParentOfZeroesIsNotTheRoot) {
  const BlockKey zero;
  EXPECT_NE(DeriveBlockKey(TestIdentity(), &zero, Tokens(4)), DeriveBlockKey(TestIdentity(), nullptr, Tokens(4)));
}

TEST(BlockKey, NegativeTokenIdsAreTokenIdsToo) {
  const std::vector<int32_t> a = {-1}, b = {1};
  EXPECT_NE(DeriveBlockKey(TestIdentity(), nullptr, a), DeriveBlockKey(TestIdentity(), nullptr, b));
}

TEST(BlockKey, ReadsBackFromItsBytes) {
  const BlockKey key = DeriveBlockKey(TestIdentity(), nullptr, Tokens(4));
  EXPECT_EQ(*BlockKeyFromBytes(AsView(key.digest)), key);
  for (size_t n : {0u, 31u, 33u, 64u}) EXPECT_FALSE(BlockKeyFromBytes(std::string(n, 'k')).ok());
}

TEST(BlockKey, IdentitiesAreBounded) {
  Identity identity = TestIdentity();
  EXPECT_TRUE(ValidateIdentity(identity).ok());
  identity.tenant = std::string(256, 't');
  EXPECT_TRUE(ValidateIdentity(identity).ok());
  identity.tenant += 't';
  EXPECT_FALSE(ValidateIdentity(identity).ok());
  identity = TestIdentity();
  identity.salt = std::string(257, 's');
  EXPECT_FALSE(ValidateIdentity(identity).ok());
  for (int block_tokens : {0, -1, INT32_MIN}) {
    identity = TestIdentity();
    identity.block_tokens = block_tokens;
    EXPECT_FALSE(ValidateIdentity(identity).ok());
    EXPECT_TRUE(DeriveChain(identity, Tokens(10)).empty());
  }
}

}  // namespace
}  // namespace perigee::pod
