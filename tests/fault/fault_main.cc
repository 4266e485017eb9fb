#include <gtest/gtest.h>
#include <signal.h>

#include <cstdio>

#include "hosts.h"

namespace perigee::fault {
absl::Status hosts_status;
}

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  signal(SIGPIPE, SIG_IGN);  // peers are killed while they are spoken to
  perigee::fault::hosts_status = perigee::fault::PrepareHosts();
  const int result = RUN_ALL_TESTS();
  if (perigee::fault::hosts_status.ok() || result != 0) return result;
  std::fprintf(stderr, "SKIPPED: no test network here: %s\n", perigee::fault::hosts_status.ToString().c_str());
  return 77;  // ctest shows it as skipped
}
