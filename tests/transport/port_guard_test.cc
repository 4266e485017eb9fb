// How many addresses a context lets in; that it keeps the others out is tests/fault/garbage_test.cc's.
#include "transport/port_guard.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "transport/address.h"

namespace perigee::transport::internal {
namespace {

sockaddr_storage Address(int i) {
  return ParseAddress(absl::StrCat("10.", i / 65536, ".", i / 256 % 256, ".", i % 256), 0)->storage;
}

TEST(PortGuardTest, AFullFilterTakesNewAddressesAgainWhenOthersWereDismissed) {
  PortGuard guard(/*guarded=*/true);
  int most = 0;
  absl::Status status;
  while (most < 5000 && (status = guard.Admit(Address(most))).ok()) ++most;
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_GT(most, 1000);
  EXPECT_TRUE(guard.Admit(Address(0)).ok()) << "known already";
  guard.Dismiss(Address(0));
  EXPECT_FALSE(guard.Admit(Address(most)).ok()) << "the first admission of the other still counts";
  guard.Dismiss(Address(0));
  EXPECT_TRUE(guard.Admit(Address(most)).ok());
  EXPECT_FALSE(guard.Admit(Address(most + 1)).ok());
  guard.Dismiss(Address(4999));  // never admitted: nothing
  EXPECT_FALSE(guard.Admit(Address(most + 1)).ok());
}

}  // namespace
}  // namespace perigee::transport::internal
