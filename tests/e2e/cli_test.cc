// The command line as users and scripts meet it: exit codes, messages, JSON, and stopping cleanly.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "cluster/client.h"
#include "program.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;
using Json = nlohmann::json;

const char* const kModel = PERIGEE_SOURCE_DIR "/models/podling";

class CliTest : public ::testing::Test {
 protected:
  Ran Perigee(std::vector<std::string> arguments, absl::Duration deadline = absl::Seconds(60)) {
    return RunProgram(std::move(arguments), home_.path(), deadline);
  }
  // Exit code 1, and one clear complaint.
  void ExpectFailure(const Ran& ran, const std::string& says) {
    EXPECT_EQ(ran.exit_code, 1) << ran.out << ran.err;
    EXPECT_THAT(ran.err, HasSubstr("perigee: "));
    EXPECT_THAT(ran.err, HasSubstr(says));
  }
  TempFolder home_;
};

TEST_F(CliTest, HelpOfEveryVerbExitsWithZero) {
  const char* const verbs[] = {"",
                               "up",
                               "generate",
                               "demo",
                               "why",
                               "trace",
                               "bench",
                               "completion",
                               "cluster",
                               "cluster status",
                               "cluster nodes",
                               "cluster join",
                               "cluster drain",
                               "cluster undrain",
                               "cluster remove",
                               "cluster placement",
                               "store",
                               "store ls",
                               "store stat",
                               "store top",
                               "store get",
                               "store put",
                               "store pin",
                               "store unpin",
                               "store rm",
                               "store evict",
                               "store verify",
                               "store scrub",
                               "store gc",
                               "store export",
                               "store import",
                               "context",
                               "context add",
                               "context ls",
                               "context show",
                               "context rm",
                               "context eval",
                               "model",
                               "model inspect",
                               "model fingerprint",
                               "model calibrate",
                               "config",
                               "config show",
                               "serve",
                               "serve store",
                               "serve prefill",
                               "serve decode",
                               "serve gateway"};
  for (const char* verb : verbs) {
    std::vector<std::string> arguments = absl::StrSplit(verb, ' ', absl::SkipEmpty());
    arguments.push_back("--help");
    const Ran ran = Perigee(arguments);
    EXPECT_EQ(ran.exit_code, 0) << verb << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("--help")) << verb;
    EXPECT_EQ(ran.err, "") << verb;
  }
  EXPECT_EQ(Perigee({"--version"}).exit_code, 0);
}

TEST_F(CliTest, AWrongCommandLineExitsWithTwo) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"frobnicate"},
      {"--frobnicate"},
      {"generate", "--frobnicate"},
      {"up", "--store-port", "99999"},
      {"up", "--store-port", "many"},
      {"generate", "--max-tokens", "0", "--prompt", "x"},
      {"generate", "--max-tokens", "-1", "--prompt", "x"},
      {"generate", "--timeout-s", "0", "--prompt", "x"},
      {"generate", "--prompt", "x", "--prompt-file", "y"},
      {"serve"},
      {"serve", "prefill"},
      {"serve", "prefill", "--store", "h:1", "--store-timeout-s", "0"},
      {"serve", "prefill", "--store", "h:1", "--pool-mib", "17592186044417"},
      {"serve", "store", "--dram-mib", "0"},
      {"serve", "store", "--dram-mib", "17592186044417"},
      {"up", "--dram-mib", "17592186044417"},
      {"up", "--pool-mib", "0"},
      {"store"},
      {"store", "ls", "--limit", "few"},
      {"demo"},
      {"generate"},
      {"why", "deadbeef"},
      {"why"},
      {"cluster", "placement", "zz"},
      {"store", "rm"},
      {"store", "gc", "--store", "s1"},
      {"model", "calibrate", kModel, "--method", "given"},
      {"context", "eval", "--repair", "perfect"},
      {"context", "eval", "--documents", "many"},
      {"context", "eval", "--cut", "1.5"},
      {"context", "eval", "--repair", "none", "--repair", "none"},
      {"serve", "gateway", "--context-repair", "perfect"},
      {"serve", "gateway", "--max-requests", "0"},
      {"serve", "gateway", "--max-body-mib", "0"}};
  for (const auto& arguments : wrong) {
    const Ran ran = Perigee(arguments);
    EXPECT_EQ(ran.exit_code, 2) << ::testing::PrintToString(arguments) << ran.out << ran.err;
    EXPECT_NE(ran.err, "") << ::testing::PrintToString(arguments);
  }
}

TEST_F(CliTest, ContextEvalMeasuresAndWritesTheDefaultBesideTheModel) {
  const std::string copy = home_.path() + "/podling";
  fs::copy(kModel, copy);
  fs::remove(copy + "/context_repair.json");
  const std::vector<std::string> arguments = {
      "context",     "eval", "--model",           copy,       "--questions",     "4",
      "--documents", "2-3",  "--document-tokens", "40-60",    "--cut",           "1",
      "--repair",    "none", "--repair",          "prefix:8", "--write-default", "--json"};
  const Ran ran = Perigee(arguments);
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("\"repair\": \"prefix:8\""));
  EXPECT_THAT(ran.out, HasSubstr("\"computed_share\""));
  EXPECT_TRUE(fs::exists(copy + "/context_repair.json"));
}

TEST_F(CliTest, WithoutAClusterTheMissingFileIsNamed) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"generate", "--prompt", "x"},
                                                    {"store", "ls"},
                                                    {"store", "stat", "--json"},
                                                    {"store", "rm", "--all"}}) {
    const Ran ran = Perigee(arguments);
    ExpectFailure(ran, home_.path() + "/cluster.json");
    EXPECT_THAT(ran.err, HasSubstr("perigee up"));
    EXPECT_EQ(ran.out, "");
  }
  ASSERT_TRUE(WriteFileAtomically(home_.path() + "/cluster.json", "{\"store\":").ok());
  ExpectFailure(Perigee({"generate", "--prompt", "x"}), "cluster.json");
  ExpectFailure(Perigee({"generate", "--prompt-file", "/no/such/prompt"}), "/no/such/prompt");
}

// A model folder like podling's, with one file changed.
class BadModelTest : public CliTest {
 protected:
  BadModelTest() {
    for (const char* file :
         {"config.json", "model.safetensors", "plan.json", "tokenizer.json", "tokenizer_config.json"}) {
      fs::copy_file(fs::path(kModel) / file, Path(file));
    }
  }
  std::string Path(const std::string& file) const { return home_.path() + "/" + file; }
  void Put(const std::string& file, const std::string& bytes) const {
    std::ofstream(Path(file), std::ios::binary) << bytes;
  }
  std::string Original(const std::string& file) const {
    return ReadFile(std::string(kModel) + "/" + file).value_or("");
  }
  void ExpectRefused(const std::string& file, const std::string& bytes, const std::string& says = "") {
    Put(file, bytes);
    SCOPED_TRACE(testing::Message() << file << " of " << bytes.size() << " bytes");
    const Ran ran = Perigee({"model", "inspect", home_.path()});
    ExpectFailure(ran, file);
    EXPECT_THAT(ran.err, HasSubstr(says));
    EXPECT_LT(ran.took, absl::Seconds(30));
    Put(file, Original(file));
  }
};

TEST_F(BadModelTest, TheUnchangedCopyIsFine) {
  const Ran ran = Perigee({"model", "inspect", home_.path(), "--json"});
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  const Json json = Json::parse(ran.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << ran.out;
  EXPECT_EQ(json["layers"], 8);
  EXPECT_EQ(json["followers"], 12);
}

TEST_F(BadModelTest, BrokenWeightsAreRefusedByName) {
  const std::string good = Original("model.safetensors");
  ExpectRefused("model.safetensors", good.substr(0, good.size() / 2));
  ExpectRefused("model.safetensors", good.substr(0, good.size() - 1));
  ExpectRefused("model.safetensors", good.substr(0, 5));
  ExpectRefused("model.safetensors", "");
  ExpectRefused("model.safetensors", "this is not a model");
  ExpectRefused("model.safetensors", std::string(8, '\xff') + good.substr(8));
  ExpectRefused("model.safetensors", std::string(good).replace(20, 4, "\x01\x02\x03\x04"));
}

TEST_F(BadModelTest, BrokenTokenizersAreRefusedByName) {
  const std::string good = Original("tokenizer.json");
  ExpectRefused("tokenizer.json", good.substr(0, good.size() / 2));
  ExpectRefused("tokenizer.json", "");
  ExpectRefused("tokenizer.json", "{}");
  ExpectRefused("tokenizer.json", std::string(100000, '['));
  ExpectRefused("tokenizer.json", "\xff\xfe\x01");
}

TEST_F(BadModelTest, BrokenConfigsAreRefusedByName) {
  const std::string good = Original("config.json");
  ExpectRefused("config.json", good.substr(0, good.size() / 2));
  ExpectRefused("config.json", "");
  ExpectRefused("config.json", "{}");
  ExpectRefused("config.json", "[1, 2]");
  ExpectRefused("config.json", absl::StrReplaceAll(good, {{"\"hidden_size\": 128", "\"hidden_size\": 0"}}),
                "hidden_size");
  ExpectRefused("config.json",
                absl::StrReplaceAll(good, {{"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"}}));
  ExpectRefused("config.json",
                absl::StrReplaceAll(good, {{"\"num_attention_heads\": 4", "\"num_attention_heads\": -4"}}));
}

TEST_F(BadModelTest, AConfigThatTheWeightsDoNotFitNamesTheTensor) {
  const std::string good = Original("config.json");
  for (const auto& [from, to] :
       {std::pair<const char*, const char*>{"\"num_hidden_layers\": 8", "\"num_hidden_layers\": 1000000000"},
        {"\"num_hidden_layers\": 8", "\"num_hidden_layers\": 9"},
        {"\"intermediate_size\": 384", "\"intermediate_size\": 385"},
        {"\"vocab_size\": 1024", "\"vocab_size\": 2000000000"}}) {
    Put("config.json", absl::StrReplaceAll(good, {{from, to}}));
    const Ran ran = Perigee({"model", "inspect", home_.path()});
    ExpectFailure(ran, "");
    EXPECT_LT(ran.took, absl::Seconds(30));
  }
}

TEST_F(BadModelTest, BrokenPlansAreRefusedByName) {
  const std::string good = Original("plan.json");
  ExpectRefused("plan.json", good.substr(0, good.size() / 2));
  ExpectRefused("plan.json", "");
  ExpectRefused("plan.json", "garbage");
  ExpectRefused("plan.json", "{}");
  ExpectRefused("plan.json", absl::StrReplaceAll(good, {{"\"recent_tokens\": 128", "\"recent_tokens\": 0"}}),
                "recent_tokens");
  ExpectRefused("plan.json", absl::StrReplaceAll(good, {{"\"sink_tokens\": 16", "\"sink_tokens\": -1"}}),
                "sink_tokens");
  ExpectRefused("plan.json", absl::StrReplaceAll(good, {{"\"version\": 1", "\"version\": 2"}}), "version");
  ExpectRefused("plan.json", absl::StrReplaceAll(good, {{"\"lead\":[2,0]", "\"lead\":[7,0]"}}));
}

TEST_F(BadModelTest, APlanOfAnotherModelIsRefusedAlsoByTheNodes) {
  const std::string other = absl::StrReplaceAll(Original("plan.json"), {{"392e457a", "00000000"}});
  ExpectRefused("plan.json", other, "392e457a");
  Put("plan.json", other);
  const Ran ran =
      Perigee({"up", "--state-dir", home_.path() + "/state", "--plan", Path("plan.json"), "--model", kModel});
  ExpectFailure(ran, "plan.json");
  EXPECT_THAT(ran.err, HasSubstr("392e457a"));
  EXPECT_FALSE(fs::exists(home_.path() + "/state/cluster.json"));
}

TEST_F(BadModelTest, MissingFilesAreNamed) {
  ExpectFailure(Perigee({"model", "inspect", "/no/such/model"}), "/no/such/model");
  ExpectFailure(Perigee({"model", "inspect", home_.path(), "--plan", "/no/such/plan.json"}), "/no/such/plan.json");
  for (const char* file : {"config.json", "model.safetensors", "tokenizer.json"}) {
    fs::remove(Path(file));
    ExpectFailure(Perigee({"model", "inspect", home_.path()}), file);
    Put(file, Original(file));
  }
  ExpectFailure(Perigee({"model", "inspect", home_.path(), "--block-tokens", "48"}), "48");
  ExpectFailure(Perigee({"up", "--state-dir", home_.path() + "/state", "--model", "/no/such/model"}), "/no/such/model");
}

TEST_F(CliTest, AStoreThatIsNotThereFailsWithinTheConnectDeadline) {
  for (const char* role : {"prefill", "decode"}) {
    const Ran ran =
        Perigee({"serve", role, "--store", "127.0.0.1:1", "--model", kModel, "--pool-mib", "8"}, absl::Seconds(30));
    ExpectFailure(ran, "127.0.0.1:1");
    EXPECT_LT(ran.took, absl::Seconds(20));
  }
  ExpectFailure(Perigee({"serve", "prefill", "--store", "nonsense", "--model", kModel, "--pool-mib", "8"}), "nonsense");
  ExpectFailure(Perigee({"store", "ls", "--store", "127.0.0.1:1"}), "127.0.0.1:1");
}

TEST_F(CliTest, BadServeOptionsAreNamed) {
  ExpectFailure(Perigee({"serve", "store", "--listen", "nowhere"}), "nowhere");
  ExpectFailure(Perigee({"serve", "store", "--listen", "127.0.0.1:99999"}), "127.0.0.1:99999");
  ExpectFailure(Perigee({"serve", "store", "--log-level", "loud"}), "loud");
  ExpectFailure(Perigee({"serve", "store", "--transports", "carrier-pigeon", "--dram-mib", "8"}), "carrier-pigeon");
  ExpectFailure(Perigee({"serve", "store", "--dram-mib", "8", "--data-dir", "/proc/no/such"}), "/proc/no/such");
}

TEST_F(CliTest, APortInUseIsAClearError) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(socket, 1), 0);
  socklen_t length = sizeof(address);
  ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length);
  const std::string port = absl::StrCat(ntohs(address.sin_port));
  for (const char* option : {"--store-port", "--decode-port"}) {
    const Ran ran = Perigee({"up", "--state-dir", home_.path() + "/state", "--model", kModel, option, port,
                             "--dram-mib", "16", "--pool-mib", "16"});
    ExpectFailure(ran, "in use");
    EXPECT_THAT(ran.err, HasSubstr(port));
  }
  ::close(socket);
}

class RunningTest : public CliTest {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempFolder;
    StartUp();
  }
  static void StartUp() {
    up_ = new Program({"up", "--model", kModel, "--dram-mib", "32", "--pool-mib", "64"}, shared_->path());
    ASSERT_TRUE(WaitFor([] { return absl::StrContains(up_->out(), "ready:") || IsGone(up_->pid()); })) << up_->err();
    ASSERT_THAT(up_->out(), HasSubstr("ready:")) << up_->err();
  }
  static void TearDownTestSuite() {
    delete up_;
    delete shared_;
  }
  Ran Perigee(std::vector<std::string> arguments, absl::Duration deadline = absl::Seconds(60)) {
    return RunProgram(std::move(arguments), shared_->path(), deadline);
  }
  Json JsonOf(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const Ran ran = Perigee(arguments);
    EXPECT_EQ(ran.exit_code, 0) << ran.err;
    EXPECT_EQ(ran.err, "");  // Quiet in a pipe.
    const Json json = Json::parse(ran.out, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << ran.out;
    return json;
  }
  std::string Text(const std::string& name, const std::string& text) {
    const std::string path = shared_->path() + "/" + name;
    EXPECT_TRUE(WriteFileAtomically(path, text).ok());
    return path;
  }
  static std::string Prose(int sentences) {
    std::string text;
    for (int i = 0; i < sentences; ++i)
      absl::StrAppend(&text, "On day ", i, " the old man walked to the river and came back. ");
    return text;
  }
  static TempFolder* shared_;
  static Program* up_;
};
TempFolder* RunningTest::shared_ = nullptr;
Program* RunningTest::up_ = nullptr;

TEST_F(RunningTest, GeneratePrintsTheAnswerAndNothingElse) {
  const Ran text = Perigee({"generate", "--prompt", "In the beginning", "--max-tokens", "12"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(text.err, "");
  const Json json = JsonOf({"generate", "--prompt", "In the beginning", "--max-tokens", "12"});
  EXPECT_EQ(json["text"].get<std::string>() + "\n", text.out);
  EXPECT_LE(json["token_ids"].size(), 12u);
  EXPECT_EQ(json["prefilled_tokens"], 0);  // The first call stored it.
  for (const char* field : {"finish_reason", "prompt_tokens", "reused_tokens", "fetched_tokens", "bytes_full",
                            "bytes_stored", "bytes_fetched", "ttft_ms", "decode_tokens_per_s", "attempts"}) {
    EXPECT_TRUE(json.contains(field)) << field;
  }
}

TEST_F(RunningTest, AContextFileIsReusedByTheNextQuestion) {
  const std::string context = Text("context.txt", Prose(30));
  const Json first =
      JsonOf({"generate", "--context-file", context, "--prompt", " What did he do?", "--max-tokens", "4"});
  const std::string question = Text("question.txt", " Where did he walk?");
  const Json second = JsonOf({"generate", "--context-file", context, "--prompt-file", question, "--max-tokens", "4"});
  EXPECT_EQ(first["reused_tokens"], 0);
  EXPECT_GT(second["reused_tokens"].get<int>(), 300);
  EXPECT_LT(second["prefilled_tokens"].get<int>(), 64 + 20);
  const Json other =
      JsonOf({"generate", "--context-file", context, "--prompt", " Why?", "--max-tokens", "4", "--salt", "other"});
  EXPECT_EQ(other["reused_tokens"], 0);
}

TEST_F(RunningTest, BadRequestsAreRefusedWithTheReason) {
  ExpectFailure(Perigee({"generate", "--prompt-file", Text("long.txt", Prose(600))}), "4096");
  ExpectFailure(Perigee({"generate", "--prompt", "x", "--max-tokens", "4096"}), "4096");
  ExpectFailure(Perigee({"generate", "--prompt", "x", "--temperature", "-1"}), "temperature");
  ExpectFailure(Perigee({"generate", "--prompt", "x", "--top-p", "7"}), "top_p");
  ExpectFailure(Perigee({"generate", "--prompt", "x", "--tenant", std::string(300, 't')}), "tenant");
  ExpectFailure(Perigee({"generate", "--prompt", "broken \xff\xfe"}), "UTF-8");
  EXPECT_EQ(Perigee({"generate", "--prompt", "still alive", "--max-tokens", "2"}).exit_code, 0);
}

TEST_F(RunningTest, AnswersAreValidUtf8WhateverTheModelSays) {
  for (int seed = 1; seed < 4; ++seed) {
    JsonOf({"generate", "--prompt", "x", "--temperature", "100", "--seed", absl::StrCat(seed), "--max-tokens", "40",
            "--ignore-eos"});
  }
}

TEST_F(RunningTest, StoreVerbsListCountAndRemove) {
  JsonOf({"generate", "--prompt", Prose(10), "--max-tokens", "2", "--tenant", "librarian"});
  const Json planes = JsonOf({"store", "ls", "--tenant", "librarian"});
  ASSERT_TRUE(planes.is_array());
  ASSERT_GE(planes.size(), 3u);
  for (const Json& plane : planes) {
    EXPECT_EQ(plane["tenant"], "librarian");
    EXPECT_EQ(plane["key"].get<std::string>().size(), 64u);
    EXPECT_GT(plane["payload_bytes"].get<int>(), 0);
  }
  EXPECT_EQ(JsonOf({"store", "ls", "--limit", "2"}).size(), 2u);
  EXPECT_THAT(Perigee({"store", "ls"}).out, HasSubstr(planes[0]["key"].get<std::string>()));

  const Json stat = JsonOf({"store", "stat"});
  EXPECT_GT(stat["payload"]["committed_bytes"].get<uint64_t>(), 0u);
  EXPECT_GT(stat["planes"]["dram"]["distant"]["planes"].get<uint64_t>(), 0u);
  EXPECT_EQ(stat["checksum_failures"], 0);
  EXPECT_EQ(Perigee({"store", "stat"}).exit_code, 0);

  const std::string key = planes[0]["key"].get<std::string>();
  const Json removed = JsonOf({"store", "rm", key.substr(0, 20), "--yes"});
  EXPECT_EQ(removed["blocks"], 1);
  EXPECT_GE(removed["planes"].get<int>(), 2);
  for (const Json& plane : JsonOf({"store", "ls", "--tenant", "librarian"})) EXPECT_NE(plane["key"], key);
  const Ran gone = Perigee({"store", "rm", key.substr(0, 20), "--yes"});
  EXPECT_EQ(gone.exit_code, 3);
  EXPECT_THAT(gone.err, HasSubstr(key.substr(0, 20)));
  const Ran asked = Perigee({"why", key, planes[0]["key"] == key ? planes.back()["key"] : planes[0]["key"], "--json"});
  EXPECT_EQ(asked.exit_code, 3) << "one is not stored";
  const Json why = Json::parse(asked.out, nullptr, false);
  ASSERT_EQ(why.size(), 6u);
  EXPECT_EQ(why[0]["stored"], false);
  EXPECT_EQ(why[0]["reason"], "deleted");
  EXPECT_GT(why[0]["when_unix_us"], 0);
  EXPECT_EQ(why[3]["stored"], true);
  EXPECT_EQ(Perigee({"store", "rm", "--all"}).exit_code, 4) << "nobody to ask";
  EXPECT_EQ(Perigee({"store", "rm", "--all", "--tenant", "librarian", "--yes"}).exit_code, 0);
  EXPECT_TRUE(JsonOf({"store", "ls", "--tenant", "librarian"}).empty());
}

TEST_F(RunningTest, ASecondStoreOnTheSameDataIsRefused) {
  const std::string data = shared_->path() + "/store";
  ASSERT_TRUE(fs::exists(data));
  const Ran ran = Perigee({"serve", "store", "--data-dir", data, "--dram-mib", "8"}, absl::Seconds(30));
  ExpectFailure(ran, data);
  const Ran up = Perigee({"up", "--model", kModel, "--dram-mib", "16", "--pool-mib", "16"}, absl::Seconds(60));
  ExpectFailure(up, shared_->path());
  // The first one is unharmed, and so is its address file.
  EXPECT_EQ(Perigee({"generate", "--prompt", "still alive", "--max-tokens", "2"}).exit_code, 0);
}

TEST_F(RunningTest, InterruptStopsEverythingAndTheNextUpFindsWhatWasStored) {
  for (int signal : {SIGINT, SIGTERM}) {
    JsonOf({"generate", "--prompt", Prose(12), "--max-tokens", "2", "--tenant", "restart"});
    const std::vector<pid_t> children = ChildrenOf(up_->pid());
    EXPECT_EQ(children.size(), 4u);
    up_->Signal(signal);
    EXPECT_EQ(up_->Wait(absl::Seconds(40)), 0) << up_->err();
    EXPECT_THAT(up_->out(), HasSubstr("stopped"));
    for (pid_t child : children) EXPECT_TRUE(IsGone(child));
    EXPECT_FALSE(fs::exists(shared_->path() + "/cluster.json"));
    delete up_;
    up_ = nullptr;
    StartUp();
    const Json again = JsonOf({"generate", "--prompt", Prose(12), "--max-tokens", "2", "--tenant", "restart"});
    EXPECT_EQ(again["prefilled_tokens"], 0);
  }
}

TEST_F(RunningTest, AProcessThatDiesEndsTheWholeWithItsName) {
  const std::vector<pid_t> children = ChildrenOf(up_->pid());
  pid_t decode = -1;
  for (pid_t child : children) {
    const std::string cmdline = ReadFile(absl::StrCat("/proc/", child, "/cmdline")).value_or("");
    if (absl::StrContains(cmdline, std::string("serve\0decode", 12))) decode = child;
  }
  ASSERT_GT(decode, 0);
  ::kill(decode, SIGKILL);
  EXPECT_EQ(up_->Wait(absl::Seconds(40)), 1);
  EXPECT_THAT(up_->err(), HasSubstr("decode"));
  EXPECT_THAT(up_->err(), HasSubstr("decode.log"));
  for (pid_t child : children) EXPECT_TRUE(IsGone(child));
  delete up_;
  up_ = nullptr;
  StartUp();
}

TEST_F(RunningTest, AKilledUpTakesItsProcessesWithIt) {
  const std::vector<pid_t> children = ChildrenOf(up_->pid());
  EXPECT_EQ(children.size(), 4u);
  up_->Signal(SIGKILL);
  EXPECT_EQ(up_->Wait(absl::Seconds(20)), 128 + SIGKILL);
  EXPECT_TRUE(WaitFor([&] { return std::all_of(children.begin(), children.end(), IsGone); }, absl::Seconds(20)));
  // The address file that it left names nobody: a clear error, soon.
  const Ran ran = Perigee({"generate", "--prompt", "x", "--timeout-s", "5"}, absl::Seconds(30));
  ExpectFailure(ran, "prefill node");
  delete up_;
  up_ = nullptr;
  StartUp();
}

}  // namespace
}  // namespace perigee
