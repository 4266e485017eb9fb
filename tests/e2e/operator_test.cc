// The operator's verbs against a small cluster of real processes: two stores, a prefill node, a decode node, a gateway.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/stat.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_split.h"
#include "cluster/process.h"
#include "program.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
namespace fs = std::filesystem;
using Json = nlohmann::json;

const char* const kModel = PERIGEE_SOURCE_DIR "/models/podling";

constexpr int kUsage = 2, kNotFound = 3, kRefused = 4, kTimeout = 5, kWrongBytes = 6;

class OperatorTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    home_ = new TempFolder;
    Write("members.json", R"({"epoch": 1, "nodes": []})");
    Write("credentials", "[[credential]]\nsecret = \"operators-own-secret\"\ntrusted = true\n");
    Write("secret", "operators-own-secret\n");
    for (const char* id : {"s1", "s2"}) {
      Start(id, {"store", "--dram-mib", "32", "--ssd-mib", "256", "--data-dir", Path(id), "--scrub-mib-per-s", "0",
                 "--credentials", Path("credentials")});
    }
    Start("p1", {"prefill", "--model", kModel, "--pool-mib", "32"});
    Start("d1", {"decode", "--model", kModel, "--pool-mib", "32", "--max-sequences", "4"});
    Start("g1", {"gateway", "--model", kModel});
    Write("cluster.json", Json({{"admin", {"127.0.0.1:1", address_["s1"], address_["s2"]}},
                                {"store", address_["s1"]},
                                {"prefill", address_["p1"]},
                                {"decode", address_["d1"]},
                                {"store_secret_file", Path("secret")}})
                              .dump());
    for (const char* tenant : {"ada", "bob", "cid", "dot"}) Generate(tenant);
  }
  static void TearDownTestSuite() {
    processes_.clear();
    delete home_;
  }

  static std::string Path(const std::string& name) { return home_->path() + "/" + name; }
  static void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomically(Path(name), text).ok());
    ::chmod(Path(name).c_str(), 0600);
  }
  static void Start(const std::string& id, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "serve");
    for (const std::string& more :
         {std::string("--join"), "static:" + Path("members.json"), std::string("--id"), id,
          std::string("--store-secret-file"), Path("secret"), std::string("--listen"), std::string("127.0.0.1:0")}) {
      arguments.push_back(more);
    }
    auto process = cluster::ChildProcess::Start(PERIGEE_PROGRAM, arguments, Path(id + ".log"));
    ASSERT_TRUE(process.ok()) << process.status();
    const auto address = process->WaitReady(absl::Seconds(60));
    ASSERT_TRUE(address.ok()) << address.status();
    address_[id] = *address;
    processes_.emplace(id, *std::move(process));
  }

  static Ran Perigee(std::vector<std::string> arguments, absl::Duration deadline = absl::Seconds(90)) {
    return RunProgram(std::move(arguments), home_->path(), deadline);
  }
  static Json JsonOf(std::vector<std::string> arguments, int exit_code = 0) {
    arguments.push_back("--json");
    const Ran ran = Perigee(arguments);
    EXPECT_EQ(ran.exit_code, exit_code) << ::testing::PrintToString(arguments) << ran.out << ran.err;
    if (exit_code == 0) {
      EXPECT_EQ(ran.err, "");
    }  // Quiet in a pipe.
    const Json json = Json::parse(ran.out, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << ran.out;
    return json;
  }
  static void ExpectExit(int code, std::vector<std::string> arguments, const std::string& says = "") {
    const Ran ran = Perigee(arguments);
    EXPECT_EQ(ran.exit_code, code) << ::testing::PrintToString(arguments) << ran.out << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(says)) << ::testing::PrintToString(arguments);
  }
  static std::string Prose(const std::string& tenant) {
    std::string text;
    for (int i = 0; i < 12; ++i) absl::StrAppend(&text, tenant, " walked ", i, " miles to the river and came back. ");
    return text;
  }
  static void Generate(const std::string& tenant) {
    const Ran ran = Perigee({"generate", "--prompt", Prose(tenant), "--tenant", tenant, "--max-tokens", "2"});
    ASSERT_EQ(ran.exit_code, 0) << ran.err;
  }
  // "KEY/PLANE" of all that is stored anywhere.
  static std::set<std::string> Stored() {
    std::set<std::string> names;
    for (const Json& plane : JsonOf({"store", "ls"})) {
      names.insert(absl::StrCat(plane.at("key").get<std::string>(), "/", plane.at("plane").get<std::string>()));
    }
    return names;
  }
  // Every record of an exported folder, by its path in it; "created" is of the store that it came from.
  static std::map<std::string, std::string> Payloads(const std::string& folder) {
    std::map<std::string, std::string> payloads;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const std::string name = entry.path().filename();
      if (!entry.is_regular_file() || name == "manifest.json") continue;
      payloads[name] = ReadFile(entry.path().string()).value_or("").substr(4096);
    }
    return payloads;
  }

  static TempFolder* home_;
  static std::map<std::string, std::string> address_;
  static std::map<std::string, cluster::ChildProcess> processes_;
};
TempFolder* OperatorTest::home_ = nullptr;
std::map<std::string, std::string> OperatorTest::address_;
std::map<std::string, cluster::ChildProcess> OperatorTest::processes_;

TEST_F(OperatorTest, NodesAndStatusShowEveryProcess) {
  std::vector<std::string> seen;
  for (const Json& node : JsonOf({"cluster", "nodes"})) {
    seen.push_back(absl::StrCat(node.at("id").get<std::string>(), " ", node.at("role").get<std::string>()));
    EXPECT_EQ(node.at("answers"), true) << node;
    EXPECT_EQ(node.at("state"), "serving");
    if (node.at("id") == "g1") {
      EXPECT_EQ(node.at("http_address"), address_["g1"]);
    }
    if (node.at("id") == "s1") {
      EXPECT_GT(node.at("load").at("dram_used_bytes").get<uint64_t>(), 0u);
    }
  }
  EXPECT_THAT(seen, UnorderedElementsAre("s1 store", "s2 store", "p1 prefill", "d1 decode", "g1 gateway"));
  const Json status = JsonOf({"cluster", "status"});
  EXPECT_EQ(status.at("roles").at("store").at("answering"), 2);
  EXPECT_EQ(status.at("silent_nodes"), 0);
  EXPECT_EQ(status.at("member"), true);
  EXPECT_THAT(Perigee({"cluster", "nodes"}).out, HasSubstr("NODE "));
  // Any process knows all others, the gateway's too.
  std::string gateway;
  for (const Json& node : JsonOf({"cluster", "nodes"})) {
    if (node.at("id") == "g1") gateway = node.at("address");
  }
  EXPECT_EQ(JsonOf({"cluster", "nodes", "--admin", gateway, "--store-secret-file", Path("secret")}).size(), 5u);
}

TEST_F(OperatorTest, MoreAnswersThanANodeGivesAtOnceAreRefusedByTheGateway) {
  httplib::Client client("http://" + address_["g1"]);
  const auto ask = [&](int n) {
    const Json body = {{"model", "podling"}, {"prompt", "x"}, {"max_tokens", 1}, {"n", n}};
    return client.Post("/v1/completions", body.dump(), "application/json");
  };
  const auto few = ask(4), many = ask(5);
  ASSERT_TRUE(few && many);
  EXPECT_EQ(few->status, 200) << few->body;
  EXPECT_EQ(many->status, 400) << many->body;
  const Json error = Json::parse(many->body, nullptr, false).at("error");
  EXPECT_EQ(error.at("param"), "n");
  EXPECT_EQ(error.at("message"), "\"n\" is 5; a whole number from 1 to 4 is needed");
}

TEST_F(OperatorTest, WithoutTheSecretNobodyIsObeyed) {
  for (const char* id : {"s1", "p1"}) {
    ExpectExit(1, {"cluster", "drain", "s2", "--admin", address_[id]}, "secret");
  }
  EXPECT_EQ(JsonOf({"cluster", "status"}).at("roles").at("store").at("draining"), 0);
}

TEST_F(OperatorTest, ExitCodesSayWhatHappened) {
  ExpectExit(2, {"cluster", "frobnicate"});
  ExpectExit(2, {"store", "pin", "--replicas", "99", "--all"});
  ExpectExit(kNotFound, {"cluster", "drain", "nobody"}, "s1, s2");
  ExpectExit(kNotFound, {"config", "show", "nobody"});
  ExpectExit(kNotFound, {"store", "rm", "0123456789abcdef", "--yes"}, "0123456789abcdef");
  ExpectExit(kNotFound, {"why", std::string(64, '0')});
  ExpectExit(kNotFound, {"context", "show", "nothing"}, "nothing");
  ExpectExit(kRefused, {"store", "rm", "--all"}, "--yes");
  ExpectExit(kRefused, {"cluster", "drain", "s1", "s2"}, "no serving store");
  ExpectExit(kRefused, {"cluster", "drain", "g1"}, "SIGTERM");
  ExpectExit(kRefused, {"cluster", "remove", "s1", "--yes"}, "only copies");
  EXPECT_FALSE(Stored().empty());
}

TEST_F(OperatorTest, WhatCannotBeMeantIsAWrongCommandLine) {
  const std::string too_long(65, 'a');
  ExpectExit(2, {"store", "get", "", "-o", Path("x")}, "empty");
  ExpectExit(2, {"store", "rm", "zz", "--yes"}, "64 hexadecimal digits");
  ExpectExit(2, {"store", "pin", too_long}, too_long);
  ExpectExit(2, {"store", "rm"}, "--all");
  ExpectExit(2, {"store", "rm", "--all", "00", "--yes"}, "--all");
  ExpectExit(2, {"store", "gc", "--store", "s1"}, "--store");
  ExpectExit(2, {"why", "deadbeef"}, "64 hexadecimal digits");
  ExpectExit(2, {"why"}, "--prompt");
  ExpectExit(2, {"cluster", "placement", "zz"}, "64 hexadecimal digits");
  ExpectExit(2, {"cluster", "placement"}, "--group");
  EXPECT_FALSE(Stored().empty());
}

TEST_F(OperatorTest, ConfigPlacementFingerprintAndCompletion) {
  const Json config = JsonOf({"config", "show", "s1"});
  EXPECT_EQ(config.at("s1")["dram-mib"].at("value"), "32");
  EXPECT_EQ(config.at("s1")["dram-mib"].at("given"), true);
  EXPECT_EQ(config.at("s1").at("policy").at("value"), "default");
  EXPECT_EQ(config.at("s1").at("policy").at("given"), false);
  const Json plane = JsonOf({"store", "ls", "--limit", "1"})[0];
  const Json placement = JsonOf({"cluster", "placement", plane.at("key")});
  EXPECT_EQ(placement.at("stored"), true);
  EXPECT_EQ(placement.at("owners"), Json::array({plane.at("store")}));
  EXPECT_EQ(placement.at("readers").size(), 2u);
  EXPECT_EQ(placement.at("group"), plane.at("group"));
  EXPECT_EQ(JsonOf({"model", "fingerprint", kModel}).at("fingerprint"),
            JsonOf({"cluster", "nodes"})[2].at("model_fingerprint"));
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Ran ran = Perigee({"completion", shell});
    EXPECT_EQ(ran.exit_code, 0);
    for (const char* word : {"cluster", "undrain", "dry-run", "replicas"}) EXPECT_THAT(ran.out, HasSubstr(word));
  }
  const std::string script = Path("completion.bash");
  ASSERT_TRUE(WriteFileAtomically(script, Perigee({"completion", "bash"}).out).ok());
  EXPECT_EQ(::system(absl::StrCat("bash -c 'source ", script,
                                  "; COMP_WORDS=(perigee store ex); COMP_CWORD=2; _perigee; "
                                  "[[ \"${COMPREPLY[*]}\" == export ]]'")
                         .c_str()),
            0);
}

TEST_F(OperatorTest, WhyFollowsAPromptAndSaysWhereItsPrefixEnds) {
  const Json known = JsonOf({"why", "--prompt", Prose("ada"), "--tenant", "ada"});
  EXPECT_EQ(known.at("stored_blocks"), known.at("blocks"));
  EXPECT_EQ(known.at("stored_tokens").get<int>() + 1, known.at("tokens").get<int>());
  const Json longer = JsonOf({"why", "--prompt", Prose("ada") + Prose("eve"), "--tenant", "ada"}, kNotFound);
  EXPECT_GT(longer.at("stored_blocks"), 0);
  EXPECT_LT(longer.at("stored_blocks"), longer.at("blocks"));
  EXPECT_EQ(longer.at("ends").at("reason"), "never stored");
  EXPECT_EQ(longer.at("ends").at("misses").size(), 2u);
  EXPECT_EQ(JsonOf({"why", "--prompt", Prose("ada"), "--tenant", "bob"}, kNotFound).at("stored_blocks"), 0);
  const Json rows = JsonOf({"why", known.at("root")});
  EXPECT_EQ(rows[0].at("stored"), true);
  EXPECT_EQ(rows[0].at("copies").size(), 1u);
}

TEST_F(OperatorTest, APlaneGoesThroughAFileAndComesBackAsItWas) {
  Generate("file");
  const Json plane = JsonOf({"store", "ls", "--tenant", "file"})[0];
  const std::string key = plane.at("key"), file = Path("one.plane"), again = Path("again.plane");
  const std::string kind = plane.at("plane");
  const Json got = JsonOf({"store", "get", key, "--plane", kind, "-o", file});
  EXPECT_EQ(got.at("payload_bytes"), plane.at("payload_bytes"));
  JsonOf({"store", "rm", key, "--yes"});
  ExpectExit(kNotFound, {"store", "get", key, "--plane", kind, "-o", again});
  EXPECT_EQ(JsonOf({"store", "put", file}).at("stored"), true);
  EXPECT_EQ(JsonOf({"store", "put", file}).at("stored"), false);
  JsonOf({"store", "get", key, "--plane", kind, "-o", again});
  EXPECT_EQ(ReadFile(file).value_or("").substr(4096), ReadFile(again).value_or("other").substr(4096));
  std::string bytes = ReadFile(file).value_or("");
  bytes[5000] ^= 1;
  ASSERT_TRUE(WriteFileAtomically(file, bytes).ok());
  ExpectExit(kWrongBytes, {"store", "put", file}, file);
  JsonOf({"store", "rm", "--all", "--tenant", "file", "--yes"});
}

TEST_F(OperatorTest, PinsEvictionAndGarbage) {
  Generate("pins");
  const Json planes = JsonOf({"store", "ls", "--tenant", "pins"});
  const std::string root = JsonOf({"why", "--prompt", Prose("pins"), "--tenant", "pins"}).at("root");
  EXPECT_GT(JsonOf({"store", "pin", root, "--hard"}).at("planes"), 0);
  const Json dry = JsonOf({"store", "evict", "--tenant", "pins", "--dry-run"});
  EXPECT_GT(dry.at("planes"), 0);
  EXPECT_LT(dry.at("planes").get<size_t>(), planes.size());
  EXPECT_EQ(JsonOf({"store", "evict", "--tenant", "pins", "--idle-s", "3000"}).at("planes"), 0);
  EXPECT_EQ(JsonOf({"store", "evict", "--tenant", "pins"}).at("planes"), dry.at("planes"));
  for (const Json& plane : JsonOf({"store", "ls", "--tenant", "pins"})) {
    EXPECT_EQ(plane.at("tier"), plane.at("key") == root ? "dram" : "ssd");
    EXPECT_EQ(plane.at("pin"), plane.at("key") == root ? "hard" : "none");
  }
  JsonOf({"store", "unpin", root});

  EXPECT_EQ(JsonOf({"store", "gc", "--dry-run"}).at("unreachable_blocks"), 0);
  JsonOf({"store", "rm", root, "--yes"});
  const Json garbage = JsonOf({"store", "gc", "--dry-run"});
  EXPECT_EQ(garbage.at("unknown_blocks"), 0);
  EXPECT_GT(garbage.at("unreachable_planes"), 0);
  EXPECT_FALSE(JsonOf({"store", "ls", "--tenant", "pins"}).empty());
  ExpectExit(kRefused, {"store", "gc"}, "--yes");
  EXPECT_EQ(JsonOf({"store", "gc", "--yes"}).at("removed_planes"), garbage.at("unreachable_planes"));
  EXPECT_TRUE(JsonOf({"store", "ls", "--tenant", "pins"}).empty());
}

TEST_F(OperatorTest, ExportedPlanesComeBackBitForBit) {
  const std::set<std::string> before = Stored();
  const std::string first = Path("export1"), second = Path("export2");
  const Json exported = JsonOf({"store", "export", first});
  EXPECT_EQ(exported.at("planes"), before.size());
  EXPECT_EQ(JsonOf({"store", "export", first}).at("written"), 0) << "what is there is not written again";
  JsonOf({"store", "rm", "--all", "--yes"});
  EXPECT_TRUE(Stored().empty());
  EXPECT_EQ(JsonOf({"store", "import", first}).at("stored"), before.size());
  EXPECT_EQ(JsonOf({"store", "import", first}).at("stored"), 0);
  EXPECT_EQ(Stored(), before);
  JsonOf({"store", "export", second});
  EXPECT_EQ(Payloads(first), Payloads(second));
  EXPECT_EQ(
      JsonOf({"generate", "--prompt", Prose("ada"), "--tenant", "ada", "--max-tokens", "2"}).at("prefilled_tokens"), 0);

  // A wrong file is found, and named; the others come in.
  const std::string victim = fs::recursive_directory_iterator(first)->path();
  fs::remove(first + "/manifest.json");
  ExpectExit(1, {"store", "import", first}, "not finished");
}

TEST_F(OperatorTest, VerifyAndScrubFindAFlippedByte) {
  Generate("flip");
  EXPECT_EQ(JsonOf({"store", "verify"}).at("wrong"), 0);
  const Json planes = JsonOf({"store", "ls", "--tenant", "flip"});
  std::vector<std::string> flipped;
  for (const Json& plane : {planes.front(), planes.back()}) {
    const std::string file = Path("flip.plane");
    JsonOf({"store", "get", plane.at("key"), "--plane", plane.at("plane"), "-o", file});
    // All of it: early layers' keys of other prompts, and of removed records, begin alike.
    const std::string payload = ReadFile(file).value_or("").substr(4096, plane.at("payload_bytes").get<size_t>());
    JsonOf({"store", "evict"});  // What is read from now on comes from the disks.
    size_t found = 0;
    for (const auto& entry : fs::directory_iterator(Path(plane.at("store")) + "/segments")) {
      const std::string bytes = ReadFile(entry.path().string()).value_or("");
      const size_t at = bytes.find(payload);
      if (at == std::string::npos) continue;
      std::fstream segment(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      segment.seekp(static_cast<std::streamoff>(at + 17));
      segment.put(static_cast<char>(bytes[at + 17] ^ 4));
      ++found;
    }
    EXPECT_EQ(found, 1u);
    flipped.push_back(absl::StrCat(plane.at("key").get<std::string>(), "/", plane.at("plane").get<std::string>()));
    if (flipped.size() == 2) break;
    const Json wrong = JsonOf({"store", "verify"}, kWrongBytes);
    ASSERT_EQ(wrong.at("wrong"), 1) << wrong;
    EXPECT_THAT(wrong.at("wrong_planes")[0].get<std::string>(), HasSubstr(flipped[0]));
    EXPECT_EQ(JsonOf({"store", "verify"}).at("wrong"), 0) << "it is dropped";
  }
  const Json scrubbed = JsonOf({"store", "scrub", "--start"}, kWrongBytes);
  uint64_t wrong_records = 0;
  for (const Json& store : scrubbed) wrong_records += store.at("wrong_records").get<uint64_t>();
  EXPECT_EQ(wrong_records, 1u) << scrubbed;
  EXPECT_EQ(JsonOf({"store", "scrub", "--start"}).size(), 2u);
}

TEST_F(OperatorTest, ContextsAreRegisteredComputedUsedAndForgotten) {
  Write("river.txt", Prose("context"));
  Write("lake.md", Prose("another"));
  const std::vector<std::string> lib = {"--tenant", "lib"};
  const auto with = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), lib.begin(), lib.end());
    return arguments;
  };
  const Json added = JsonOf(with({"context", "add", Path("river.txt"), Path("lake.md"), "--wait"}));
  ASSERT_EQ(added.size(), 2u);
  EXPECT_EQ(added[0].at("id"), "river");
  EXPECT_EQ(added[1].at("id"), "lake");
  EXPECT_EQ(added[1].at("state"), "ready");
  EXPECT_EQ(added[0].at("new"), true);
  EXPECT_GT(added[0].at("tokens"), 64);
  EXPECT_GT(JsonOf({"store", "ls", "--tenant", "lib"}).size(), 0u) << "they were computed ahead";
  EXPECT_EQ(JsonOf(with({"context", "add", Path("river.txt"), "--wait"}))[0].at("version"), 1);
  const Json renamed = JsonOf(with({"context", "add", Path("lake.md"), "--id", "river", "--wait"}));
  EXPECT_EQ(renamed[0].at("version"), 2);
  EXPECT_EQ(renamed[0].at("new"), false);
  const Json listed = JsonOf(with({"context", "ls"}));
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].at("id"), "lake");
  EXPECT_THAT(Perigee(with({"context", "ls"})).out, HasSubstr("ready"));
  EXPECT_TRUE(JsonOf({"context", "ls"}).empty()) << "another tenant's";
  EXPECT_EQ(JsonOf(with({"context", "show", "river"})).at("version"), 2);
  ExpectExit(kNotFound, {"context", "show", "river"}, "there is no context \"river\"");
  ExpectExit(kUsage, with({"context", "add", Path("river.txt"), Path("lake.md"), "--id", "x"}), "--id is for one");
  ExpectExit(kUsage, with({"context", "add", Path("river.txt"), Path("river.txt")}), "two files");
  ExpectExit(kRefused, with({"context", "rm", "river"}), "--yes");
  ExpectExit(kNotFound, with({"context", "rm", "lake", "nothing", "--yes"}));
  JsonOf(with({"context", "rm", "river", "lake", "--yes"}));
  EXPECT_TRUE(JsonOf(with({"context", "ls"})).empty());
}

TEST_F(OperatorTest, ContextsOfTheCommandLineAreThoseOfHttp) {
  Write("key.txt", "The pass key for Torvek is 4711.");
  JsonOf({"context", "add", Path("key.txt"), "--wait"});
  httplib::Client client("http://" + address_["g1"]);
  client.set_read_timeout(60);
  const auto shown = client.Get("/v1/contexts/key");
  ASSERT_TRUE(shown);
  EXPECT_EQ(Json::parse(shown->body).at("state"), "ready");
  const Json body = {{"model", "podling"},
                     {"max_tokens", 4},
                     {"temperature", 0},
                     {"segments", {{{"context", "key"}}, {{"text", " What is the pass key for Torvek? "}}}}};
  const auto answer = client.Post("/v1/completions", body.dump(), "application/json");
  ASSERT_TRUE(answer);
  ASSERT_EQ(answer->status, 200) << answer->body;
  EXPECT_TRUE(Json::parse(answer->body).at("usage").at("prompt_tokens_details").contains("context_tokens"));
  ASSERT_EQ(client.Delete("/v1/contexts/key")->status, 200);
  EXPECT_TRUE(JsonOf({"context", "ls"}).empty());
  EXPECT_EQ(client.Post("/v1/completions", body.dump(), "application/json")->status, 404);
}

TEST_F(OperatorTest, AskingAStoreNeedsItsControlPlaneOnly) {
  // Its data port is where nobody listens.
  auto store = cluster::ChildProcess::Start(
      PERIGEE_PROGRAM,
      {"serve", "store", "--dram-mib", "8", "--listen", "127.0.0.1:0", "--advertise-host", "127.0.0.9"},
      Path("mute.log"));
  ASSERT_TRUE(store.ok()) << store.status();
  const auto address = store->WaitReady(absl::Seconds(60));
  ASSERT_TRUE(address.ok()) << address.status();
  const auto at = [&](std::vector<std::string> verb) {
    verb.insert(verb.end(), {"--store", *address});
    return verb;
  };
  EXPECT_EQ(JsonOf(at({"store", "stat"})).at("stores")[0].at("answers"), true);
  EXPECT_TRUE(JsonOf(at({"store", "ls"})).empty());
  EXPECT_EQ(JsonOf(at({"store", "top", "--once", "--interval-s", "0.1"}))[0].at("answers"), true);
  JsonOf(at({"store", "rm", "--all", "--yes"}));
  JsonOf(at({"store", "pin", "--all"}));
  JsonOf(at({"store", "unpin", "--all"}));
  JsonOf(at({"store", "evict"}));
  ExpectExit(kNotFound, at({"why", std::string(64, '0')}));
  ExpectExit(kRefused, at({"store", "scrub"}), "disk tier");
  ExpectExit(1, at({"store", "verify"}), "data plane");
}

TEST_F(OperatorTest, TopAndStatCountAllStores) {
  const Json stat = JsonOf({"store", "stat"});
  ASSERT_EQ(stat.at("stores").size(), 2u);
  EXPECT_EQ(stat.at("dram").at("capacity_bytes"),
            2 * stat.at("stores")[0].at("dram").at("capacity_bytes").get<uint64_t>());
  EXPECT_EQ(JsonOf({"store", "stat", "--store", "s2"}).at("stores").size(), 1u);
  const Json top = JsonOf({"store", "top", "--once", "--interval-s", "0.2"});
  ASSERT_EQ(top.size(), 2u);
  EXPECT_EQ(top[0].at("answers"), true);
}

// The last one: a store goes.
TEST_F(OperatorTest, ZDrainingAStoreLosesNothing) {
  const std::set<std::string> before = Stored();
  ASSERT_FALSE(before.empty());
  uint64_t there = 0;
  for (const Json& plane : JsonOf({"store", "ls", "--store", "s2"})) there += plane.at("payload_bytes").get<uint64_t>();
  const Json dry = JsonOf({"cluster", "drain", "s2", "--dry-run"});
  EXPECT_EQ(dry[0].at("payload_bytes"), there);
  EXPECT_EQ(JsonOf({"cluster", "status"}).at("roles").at("store").at("draining"), 0);
  ExpectExit(kTimeout, {"cluster", "drain", "s2", "--timeout-s", "0.01"}, "s2");
  EXPECT_EQ(JsonOf({"cluster", "undrain", "s2"}).at("serving")[0], "s2");

  EXPECT_EQ(JsonOf({"cluster", "drain", "s2"}).at("drained"), true);
  EXPECT_TRUE(JsonOf({"store", "ls", "--store", "s2"}).empty());
  EXPECT_EQ(Stored(), before);
  EXPECT_EQ(JsonOf({"store", "verify"}).at("wrong"), 0);
  EXPECT_EQ(JsonOf({"cluster", "drain", "p1"}).at("drained"), true);
  JsonOf({"cluster", "undrain", "p1"});
  ExpectExit(kRefused, {"cluster", "remove", "s2"}, "--yes");
  EXPECT_EQ(JsonOf({"cluster", "remove", "s2", "--yes"}).at("removed")[0], "s2");
  EXPECT_EQ(JsonOf({"cluster", "nodes"}).size(), 4u);
  JsonOf({"cluster", "join", "s9", "--address", "127.0.0.1:1"});
  const Json status = JsonOf({"cluster", "status"}, 1);
  EXPECT_EQ(status.at("silent_nodes"), 1);
  ExpectExit(kRefused, {"cluster", "remove", "s9", "--yes"}, "--force");
  JsonOf({"cluster", "remove", "s9", "--yes", "--force"});
}

// After the last one: the only store left would have to give its planes to one that is not there.
TEST_F(OperatorTest, ZzDrainingStopsWaitingWhenMovesOnlyFail) {
  const std::set<std::string> before = Stored();
  ASSERT_FALSE(before.empty());
  JsonOf({"cluster", "join", "s9", "--address", "127.0.0.1:1"});
  const Ran ran = Perigee({"cluster", "drain", "s1", "--give-up-s", "2", "--json"});
  EXPECT_EQ(ran.exit_code, 1) << ran.out << ran.err;
  EXPECT_THAT(ran.err, HasSubstr("s1 cannot give up its planes"));
  EXPECT_THAT(ran.err, HasSubstr("store s9 at 127.0.0.1:1"));
  const Json json = Json::parse(ran.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << ran.out;
  EXPECT_EQ(json.at("drained"), false);
  EXPECT_EQ(json.at("stores")[0].at("planes_to_move"), before.size());
  EXPECT_GT(json.at("stores")[0].at("failures"), 0);
  EXPECT_THAT(json.at("stores")[0].at("last_failure").get<std::string>(), HasSubstr("s9"));
  JsonOf({"cluster", "undrain", "s1"});
  JsonOf({"cluster", "remove", "s9", "--yes", "--force"});
  EXPECT_EQ(Stored(), before);
}

}  // namespace
}  // namespace perigee
