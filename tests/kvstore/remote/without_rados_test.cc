// A program built without librados says so, and what to install.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvstore/remote/rados_tier.h"

namespace perigee::kvstore {
namespace {

TEST(WithoutRados, OpeningTheTierSaysWhatToInstall) {
  const absl::Status status = OpenRadosTier(RadosOptions()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("libradospp-dev"));
}

}  // namespace
}  // namespace perigee::kvstore
