// The official openai package for Node.js as a client: openai_client/test.mjs, against the front door with a backend
// that counts (or any server named by PERIGEE_BASE_URL), and against a small cluster of real processes.
//
// The package comes from npm's registry into the build folder, once. Where Node.js or npm is missing, or the registry
// cannot be reached, the test is skipped and says so.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "cluster/local_cluster.h"
#include "cluster/process.h"
#include "program.h"

namespace perigee {
namespace {

// Runs a shell command with its output in a file: the exit code, 124 when it takes too long.
int Shell(const std::string& command, const std::string& log, int limit_s) {
  const int status =
      std::system(absl::StrCat("timeout ", limit_s, " sh -c '", command, "' > '", log, "' 2>&1").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

class OpenAiClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    if (Shell("node --version && npm --version", log_, 60) != 0) GTEST_SKIP() << "SKIPPED: no Node.js or no npm here";
    // Copied, so that npm writes nothing into the sources; fetched again when the versions change.
    const std::string source = PERIGEE_SOURCE_DIR "/tests/e2e/openai_client/";
    for (const char* file : {"package.json", "package-lock.json", "test.mjs"}) {
      std::filesystem::copy_file(source + file, folder_ + "/" + file,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    const std::string lock = *ReadFile(folder_ + "/package-lock.json");
    if (ReadFile(folder_ + "/installed.json").value_or("") != lock) {
      if (Shell("cd \"" + folder_ + "\" && npm ci --no-audit --no-fund", log_, 180) != 0) {
        GTEST_SKIP() << "SKIPPED: npm could not fetch the openai package:\n" << ReadFile(log_).value_or("");
      }
      ASSERT_TRUE(WriteFileAtomically(folder_ + "/installed.json", lock).ok());
    }
  }
  void ExpectServed(const std::string& base_url, bool counts) {
    const std::string settings =
        absl::StrCat("PERIGEE_BASE_URL=\"", base_url, "\" PERIGEE_FAKE_BACKEND=", counts ? "1" : "0");
    EXPECT_EQ(Shell(absl::StrCat("cd \"", folder_, "\" && ", settings, " node test.mjs"), log_, 240), 0)
        << ReadFile(log_).value_or("");
  }

  const std::string folder_ = PERIGEE_BINARY_DIR "/tests/e2e/openai_client";
  const std::string log_ = folder_ + "/log.txt";
};

TEST_F(OpenAiClientTest, TheFrontDoorServesTheOfficialClient) {
  if (const char* base_url = std::getenv("PERIGEE_BASE_URL")) {
    const char* counts = std::getenv("PERIGEE_FAKE_BACKEND");
    ExpectServed(base_url, counts != nullptr && std::string(counts) == "1");
    return;
  }
  auto server =
      cluster::ChildProcess::Start(PERIGEE_FAKE, {PERIGEE_SOURCE_DIR "/models/podling"}, folder_ + "/server.log");
  ASSERT_TRUE(server.ok()) << server.status();
  const auto address = server->WaitReady(absl::Seconds(30));
  ASSERT_TRUE(address.ok()) << address.status();
  ExpectServed(absl::StrCat("http://", *address, "/v1"), /*counts=*/true);
  const absl::Status stopped = server->Stop(absl::Seconds(20));
  EXPECT_TRUE(stopped.ok()) << stopped;  // Nothing was left running.
}

TEST_F(OpenAiClientTest, AWholeClusterServesTheOfficialClient) {
  const TempFolder home;
  cluster::LocalClusterOptions options;
  options.executable = PERIGEE_PROGRAM;
  options.model_folder = PERIGEE_SOURCE_DIR "/models/podling";
  options.state_folder = home.path();
  options.gateway = true;
  options.dram_mib = options.pool_mib = 64;
  options.ssd_mib = 256;
  auto started = cluster::LocalCluster::Start(options);
  ASSERT_TRUE(started.ok()) << started.status();
  const std::unique_ptr<cluster::LocalCluster> running = *std::move(started);
  ExpectServed(absl::StrCat("http://", running->addresses().gateway, "/v1"), /*counts=*/false);
  const absl::Status stopped = running->Stop();
  EXPECT_TRUE(stopped.ok()) << stopped;
}

}  // namespace
}  // namespace perigee
