#include "kvstore/dram/tenant_names.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

namespace perigee::kvstore {
namespace {

TEST(TenantNames, NamesKeepTheirNumbersWhileInUseAndNumbersAreUsedAgain) {
  TenantNames names;
  EXPECT_EQ(names.Use(""), 0u);
  EXPECT_EQ(names.Find(""), 0u);
  EXPECT_FALSE(names.Find("a"));
  const TenantId a = names.Use("a"), b = names.Use("b");
  EXPECT_NE(a, 0u);
  EXPECT_NE(a, b);
  EXPECT_EQ(names.Use("a"), a);
  EXPECT_EQ(names.Find("a"), a);
  names.Drop(a);
  EXPECT_EQ(names.Name(a), "a");
  names.Drop(a);
  EXPECT_FALSE(names.Find("a"));
  EXPECT_EQ(names.Use("c"), a) << "dense";
  EXPECT_EQ(names.Name(b), "b");
  names.Drop(0);
  EXPECT_EQ(names.Name(0), "");
}

TEST(TenantNames, RandomUseAgreesWithCounting) {
  std::mt19937 random(1);
  TenantNames names;
  std::map<std::string, std::pair<TenantId, uint64_t>> oracle;
  for (int step = 0; step < 20000; ++step) {
    // Short names and long ones (within the string and outside of it).
    const std::string name = std::string(1 + random() % 40, 'x') + std::to_string(random() % 5);
    const auto it = oracle.find(name);
    if (random() % 2 == 0) {
      const TenantId id = names.Use(name);
      if (it != oracle.end()) {
        ASSERT_EQ(id, it->second.first);
      }
      auto& [known, uses] = oracle[name];
      known = id;
      ++uses;
    } else if (it != oracle.end()) {
      names.Drop(it->second.first);
      if (--it->second.second == 0) oracle.erase(it);
    }
    ASSERT_EQ(names.size(), oracle.size());
    ASSERT_EQ(names.Find(name).has_value(), oracle.contains(name));
  }
  for (const auto& [name, known] : oracle) {
    ASSERT_EQ(names.Find(name), known.first);
    ASSERT_EQ(names.Name(known.first), name);
    ASSERT_EQ(names.Uses(known.first), known.second);
  }
}

}  // namespace
}  // namespace perigee::kvstore
