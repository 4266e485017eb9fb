// What a gateway tells the cluster about itself: addresses at which others reach it, whatever it listens on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_split.h"
#include "cluster/process.h"
#include "program.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

const char* const kModel = PERIGEE_SOURCE_DIR "/models/podling";

class GatewayAddressTest : public ::testing::Test {
 protected:
  GatewayAddressTest() { EXPECT_TRUE(WriteFileAtomically(Members(), R"({"epoch": 1, "nodes": []})").ok()); }
  std::string Members() const { return home_.path() + "/members.json"; }
  std::vector<std::string> Serve(const std::vector<std::string>& flags) const {
    std::vector<std::string> arguments = {"serve", "gateway", "--model", kModel, "--id", "g1"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return arguments;
  }

  // The gateway's entry in the cluster, while it runs with these flags.
  Json Told(const std::vector<std::string>& flags) const {
    std::vector<std::string> arguments = Serve(flags);
    arguments.insert(arguments.end(), {"--join", "static:" + Members()});
    auto process = cluster::ChildProcess::Start(PERIGEE_PROGRAM, arguments, home_.path() + "/log");
    EXPECT_TRUE(process.ok()) << process.status();
    const auto ready = process->WaitReady(absl::Seconds(60));
    EXPECT_TRUE(ready.ok()) << ready.status();
    const Json file = Json::parse(ReadFile(Members()).value_or(""), nullptr, false);
    EXPECT_EQ(file.at("nodes").size(), 1u) << file;
    // Somebody answers there, where this machine can try.
    const std::string address = file.at("nodes")[0].at("address");
    if (absl::StartsWith(address, "127.")) {
      EXPECT_EQ(RunProgram({"cluster", "nodes", "--admin", address}, home_.path()).exit_code, 0) << address;
    }
    EXPECT_TRUE(process->Stop(absl::Seconds(60)).ok());
    return file.at("nodes")[0];
  }
  // Ends with an error that says so.
  void ExpectRefused(const std::vector<std::string>& flags, const std::string& says) const {
    const Ran ran = RunProgram(Serve(flags), home_.path());
    EXPECT_EQ(ran.exit_code, 1) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(says));
  }

  TempFolder home_;
};

TEST_F(GatewayAddressTest, OperatorsReachItWhereItsHttpListens) {
  const Json told = Told({"--listen", "127.0.0.2:0"});
  EXPECT_THAT(told.at("address").get<std::string>(), StartsWith("127.0.0.2:"));
  EXPECT_THAT(told.at("http_address").get<std::string>(), StartsWith("127.0.0.2:"));
  EXPECT_NE(told.at("address"), told.at("http_address"));
}

TEST_F(GatewayAddressTest, AWildcardIsToldUnderTheAdvertisedName) {
  const Json told =
      Told({"--listen", "0.0.0.0:0", "--admin-listen", "0.0.0.0:0", "--advertise", "gateway.example:7100"});
  EXPECT_EQ(told.at("address"), "gateway.example:7100");
  EXPECT_THAT(told.at("http_address").get<std::string>(), StartsWith("gateway.example:"));
  EXPECT_EQ(Told({"--listen", "0.0.0.0:0", "--admin-listen", "0.0.0.0:0", "--advertise", "gateway.example:7100",
                  "--advertise-http", "front.example:80"})
                .at("http_address"),
            "front.example:80");
}

TEST_F(GatewayAddressTest, TheAdvertisedPortIsTheOneThatItListensOn) {
  // A port that is free now; somebody else may take it, but hardly does.
  const std::string address = Told({"--listen", "127.0.0.1:0"}).at("address");
  EXPECT_EQ(Told({"--listen", "0.0.0.0:0", "--advertise", address}).at("address"), address);
}

TEST_F(GatewayAddressTest, WhatOthersCannotReachIsRefusedWithTheFlagThatHelps) {
  const std::string file = "static:" + Members();
  ExpectRefused({"--listen", "0.0.0.0:0", "--join", file}, "--advertise");
  ExpectRefused({"--listen", "[::]:0", "--join", file}, "--advertise");
  ExpectRefused({"--listen", "0.0.0.0:0", "--admin-listen", "127.0.0.1:0", "--join", file}, "--advertise-http");
  ExpectRefused({"--listen", "10.1.2.3:8080", "--admin-listen", "127.0.0.1:0", "--join", "etcd:127.0.0.1:1"},
                "--admin-listen");
}

}  // namespace
}  // namespace perigee
