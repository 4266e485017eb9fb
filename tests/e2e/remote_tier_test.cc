// A store whose planes outlive it: committed to a shared folder, found again by another store with nothing of its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <regex>

#include "program.h"

namespace perigee {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kStart = absl::Seconds(60);

// One `perigee serve ...` process.
class Served {
 public:
  Served(std::vector<std::string> arguments, const std::string& home) {
    arguments.insert(arguments.begin(), "serve");
    program_ = std::make_unique<Program>(std::move(arguments), home);
    const auto serving = [this] {
      const std::string text = program_->out() + program_->err();
      std::smatch match;
      if (!std::regex_search(text, match, std::regex("serving on ([0-9.]+:[0-9]+)"))) return false;
      address_ = match[1];
      return true;
    };
    EXPECT_TRUE(WaitFor(serving, kStart)) << program_->err();
  }
  const std::string& address() const { return address_; }
  void Kill() {
    program_->Signal(SIGKILL);
    EXPECT_EQ(program_->Wait(absl::Seconds(10)), 128 + SIGKILL);
  }

 private:
  std::unique_ptr<Program> program_;
  std::string address_;
};

class RemoteTierTest : public ::testing::Test {
 protected:
  std::vector<std::string> StoreArguments(const std::string& listen) {
    return {"store",           "--listen",      listen,      "--dram-mib", "64", "--remote", "folder:" + home_.path(),
            "--remote-create", "--credentials", credentials_};
  }
  std::vector<std::string> NodeArguments(const std::string& role, const std::string& store) {
    return {role,
            "--store",
            store,
            "--store-secret-file",
            secret_,
            "--model",
            PERIGEE_SOURCE_DIR "/models/podling",
            "--no-keep-planes",
            "--pool-mib",
            "64"};
  }
  Json Generate(const std::string& store, const std::string& prefill, const std::string& decode) {
    const std::string file = home_.path() + "/cluster.json";
    EXPECT_TRUE(
        WriteFileAtomically(
            file,
            Json{{"store", store}, {"prefill", prefill}, {"decode", decode}, {"store_secret_file", secret_}}.dump())
            .ok());
    std::string prompt = "Once upon a time";
    for (int i = 0; i < 40; ++i) prompt += " there was a small store that forgot nothing,";
    const Ran ran =
        RunProgram({"generate", "--cluster", file, "--prompt", prompt, "--max-tokens", "8", "--json"}, home_.path());
    EXPECT_EQ(ran.exit_code, 0) << ran.err;
    return Json::parse(ran.out, nullptr, false);
  }
  Json Stat(const std::string& store) {
    const Ran ran =
        RunProgram({"store", "stat", "--store", store, "--store-secret-file", secret_, "--json"}, home_.path());
    EXPECT_EQ(ran.exit_code, 0) << ran.err;
    return Json::parse(ran.out, nullptr, false);
  }
  void SetUp() override {
    secret_ = home_.path() + "/secret";
    credentials_ = home_.path() + "/credentials.toml";
    const std::string secret(40, 's');
    ASSERT_TRUE(WriteFileAtomically(secret_, secret).ok());
    ASSERT_TRUE(
        WriteFileAtomically(credentials_, "[[credential]]\nsecret = \"" + secret + "\"\ntrusted = true\n").ok());
    ASSERT_EQ(::chmod(secret_.c_str(), 0600), 0);
    ASSERT_EQ(::chmod(credentials_.c_str(), 0600), 0);
  }

  TempFolder home_;
  std::string secret_, credentials_;
};

TEST_F(RemoteTierTest, WhatWasCommittedReplicatedIsReusedAfterTheStoreAndItsMemoryAreGone) {
  auto store = std::make_unique<Served>(StoreArguments("127.0.0.1:0"), home_.path());
  std::vector<std::string> arguments = NodeArguments("prefill", store->address());
  arguments.insert(arguments.end(), {"--durability", "replicated"});
  const Served prefill(arguments, home_.path());
  const Served decode(NodeArguments("decode", store->address()), home_.path());
  const Json first = Generate(store->address(), prefill.address(), decode.address());
  EXPECT_EQ(first["reused_tokens"], 0) << first;
  const Json before = Stat(store->address());
  const uint64_t planes = before["planes"]["remote"]["distant"]["planes"];
  EXPECT_GT(planes, 4u);

  const std::string address = store->address();
  store->Kill();
  store = std::make_unique<Served>(StoreArguments(address), home_.path());
  EXPECT_TRUE(WaitFor([&] { return Stat(address)["planes"]["remote"]["distant"]["planes"] == planes; }));
  const Json again = Generate(address, prefill.address(), decode.address());
  EXPECT_EQ(again["text"], first["text"]);
  EXPECT_GT(again["reused_tokens"], 0) << again;
  const Json after = Stat(address);
  // Read from there for the nodes, or by the store itself, which promotes what was looked up before it is acquired.
  const uint64_t remote_reads =
      after["hits"]["remote"].get<uint64_t>() + after["moved"]["promoted_ahead"].get<uint64_t>();
  EXPECT_GE(remote_reads, planes) << after;
  EXPECT_EQ(after["checksum_failures"], 0);
}

}  // namespace
}  // namespace perigee
