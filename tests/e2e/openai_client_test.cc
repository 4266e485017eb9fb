// The official openai package for Node.js as a client: openai_client/test.mjs, against the front door with a backend
// that counts, or against any server named by PERIGEE_BASE_URL.
//
// The package comes from npm's registry into the build folder, once. Where Node.js or npm is missing, or the registry
// cannot be reached, the test is skipped and says so.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/file.h"
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

TEST(OpenAiClientTest, TheOfficialClientIsServed) {
  const std::string folder = PERIGEE_BINARY_DIR "/tests/e2e/openai_client";
  const std::string log = folder + "/log.txt";
  std::filesystem::create_directories(folder);
  if (Shell("node --version && npm --version", log, 60) != 0) GTEST_SKIP() << "SKIPPED: no Node.js or no npm here";
  // Copied, so that npm writes nothing into the sources; fetched again when the versions change.
  const std::string source = PERIGEE_SOURCE_DIR "/tests/e2e/openai_client/";
  for (const char* file : {"package.json", "package-lock.json", "test.mjs"}) {
    std::filesystem::copy_file(source + file, folder + "/" + file, std::filesystem::copy_options::overwrite_existing);
  }
  const std::string lock = *ReadFile(folder + "/package-lock.json");
  if (ReadFile(folder + "/installed.json").value_or("") != lock) {
    if (Shell("cd \"" + folder + "\" && npm ci --no-audit --no-fund", log, 180) != 0) {
      GTEST_SKIP() << "SKIPPED: npm could not fetch the openai package:\n" << ReadFile(log).value_or("");
    }
    ASSERT_TRUE(WriteFileAtomically(folder + "/installed.json", lock).ok());
  }
  std::optional<cluster::ChildProcess> server;
  if (std::getenv("PERIGEE_BASE_URL") == nullptr) {
    auto started =
        cluster::ChildProcess::Start(PERIGEE_PROGRAM, {PERIGEE_SOURCE_DIR "/models/podling"}, folder + "/server.log");
    ASSERT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
    const auto address = server->WaitReady(absl::Seconds(30));
    ASSERT_TRUE(address.ok()) << address.status();
    ::setenv("PERIGEE_BASE_URL", absl::StrCat("http://", *address, "/v1").c_str(), 1);
    ::setenv("PERIGEE_FAKE_BACKEND", "1", 1);
  }
  EXPECT_EQ(Shell("cd \"" + folder + "\" && node test.mjs", log, 240), 0) << ReadFile(log).value_or("");
  if (server) {
    const absl::Status stopped = server->Stop(absl::Seconds(20));
    EXPECT_TRUE(stopped.ok()) << stopped;  // Nothing was left running.
  }
}

}  // namespace
}  // namespace perigee
