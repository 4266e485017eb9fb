#include "cluster/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/time/clock.h"
#include "base/file.h"
#include "proto/grpc_server.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AddressesTest : public ::testing::Test {
 protected:
  AddressesTest() {
    std::string name = testing::TempDir() + "/perigee_client_XXXXXX";
    folder_ = ::mkdtemp(name.data());
    path_ = folder_ + "/cluster.json";
  }
  ~AddressesTest() override { std::filesystem::remove_all(folder_); }
  absl::Status ReadText(absl::string_view text) {
    std::ofstream(path_, std::ios::binary) << text;
    return ClusterAddresses::Read(path_).status();
  }
  std::string folder_, path_;
};

TEST_F(AddressesTest, WhatIsWrittenIsRead) {
  ASSERT_TRUE((ClusterAddresses{.store = "a:1", .prefill = "b:2", .decode = "[::1]:3"}.Write(path_).ok()));
  const auto read = ClusterAddresses::Read(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->store, "a:1");
  EXPECT_EQ(read->prefill, "b:2");
  EXPECT_EQ(read->decode, "[::1]:3");
}

TEST_F(AddressesTest, AMissingFileIsNamedWithTheWayOut) {
  const absl::Status status = ClusterAddresses::Read(path_).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("perigee up"));
}

TEST_F(AddressesTest, GarbageIsAClearErrorThatNamesTheFile) {
  const std::string good = R"({"store":"a:1","prefill":"b:2","decode":"c:3"})";
  ASSERT_TRUE(ReadText(good).ok());
  std::vector<std::string> texts = {"null",
                                    "[]",
                                    "7",
                                    R"("store")",
                                    R"({"store":1,"prefill":"b","decode":"c"})",
                                    R"({"store":"a","prefill":null,"decode":"c"})",
                                    R"({"store":"a","prefill":"b"})",
                                    std::string("\0\xff\xfe", 3),
                                    std::string(100000, '[')};
  for (size_t n = 0; n < good.size(); ++n) texts.push_back(good.substr(0, n));
  for (const std::string& text : texts) {
    const absl::Status status = ReadText(text);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text.substr(0, 80) << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }
}

TEST_F(AddressesTest, FlippedBitsNeverCrash) {
  const std::string good = R"({"store":"a:1","prefill":"b:2","decode":"c:3"})";
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string text = good;
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << (bit % 8)));
    const absl::Status status = ReadText(text);
    EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
  }
}

// A cluster of two scripted services in this process.
class FakePrefill final : public v1::PrefillNode::Service {
 public:
  grpc::Status Prefill(grpc::ServerContext*, const v1::PrefillRequest* request,
                       v1::PrefillResponse* response) override {
    ++calls;
    last = *request;
    for (int32_t id : {5, 6, 7}) response->add_token_ids(id);
    response->set_prefilled_tokens(2);
    return ToGrpc(result);
  }
  int calls = 0;
  absl::Status result;
  v1::PrefillRequest last;
};

class FakeDecode final : public v1::DecodeNode::Service {
 public:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateEvent>* writer) override {
    ++calls;
    last = *request;
    v1::GenerateEvent event;
    event.mutable_started()->set_fetched_tokens(2);
    if (calls <= failures_before_start) return ToGrpc(failure);
    writer->Write(event);
    for (int i = 0; i < 2; ++i) {
      event.mutable_token()->set_id(100 + i);
      event.mutable_token()->set_text(i == 0 ? "he" : "llo");
      writer->Write(event);
      if (calls <= failures_after_token) return ToGrpc(failure);
    }
    while (hang && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    event.mutable_finished()->set_reason("length");
    event.mutable_finished()->set_text("!");
    event.mutable_finished()->set_tokens(2);
    writer->Write(event);
    return grpc::Status::OK;
  }
  int calls = 0;
  int failures_before_start = 0;
  int failures_after_token = 0;
  bool hang = false;
  absl::Status failure = absl::NotFoundError("block 3 of 9: evicted");
  v1::GenerateRequest last;
};

class ClusterClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto prefill = GrpcServer::Start("127.0.0.1:0", {&prefill_});
    auto decode = GrpcServer::Start("127.0.0.1:0", {&decode_});
    ASSERT_TRUE(prefill.ok() && decode.ok());
    prefill_server_ = *std::move(prefill);
    decode_server_ = *std::move(decode);
    client_ = std::make_unique<ClusterClient>(
        ClusterAddresses{.store = "", .prefill = prefill_server_->address(), .decode = decode_server_->address()});
    options_.segments = {"a context", "a question"};
    options_.timeout = absl::Seconds(20);
  }
  FakePrefill prefill_;
  FakeDecode decode_;
  std::unique_ptr<GrpcServer> prefill_server_, decode_server_;
  std::unique_ptr<ClusterClient> client_;
  GenerateOptions options_;
};

TEST_F(ClusterClientTest, CarriesTheWholeRequestAndAnswer) {
  options_.tenant = "t";
  options_.salt = "s";
  options_.max_tokens = 9;
  options_.temperature = 0.5;
  options_.top_p = 0.25;
  options_.top_k = 3;
  options_.seed = 77;
  options_.stop = {"x"};
  options_.ignore_eos = true;
  std::vector<std::string> pieces;
  const auto result = client_->Generate(options_, [&](absl::string_view piece) { pieces.emplace_back(piece); });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->text, "hello!");
  EXPECT_THAT(pieces, ElementsAre("he", "llo", "!"));
  EXPECT_THAT(result->token_ids, ElementsAre(100, 101));
  EXPECT_EQ(result->attempts, 1);
  EXPECT_GT(result->time_to_first_token, absl::ZeroDuration());
  EXPECT_EQ(prefill_.last.segments_size(), 2);
  EXPECT_EQ(prefill_.last.segments(1).text(), "a question");
  EXPECT_EQ(decode_.last.scope().tenant(), "t");
  EXPECT_EQ(decode_.last.scope().salt(), "s");
  EXPECT_THAT(decode_.last.token_ids(), ElementsAre(5, 6, 7));
  EXPECT_EQ(decode_.last.max_tokens(), 9u);
  EXPECT_FLOAT_EQ(decode_.last.temperature(), 0.5f);
  EXPECT_FLOAT_EQ(decode_.last.top_p(), 0.25f);
  EXPECT_EQ(decode_.last.top_k(), 3u);
  EXPECT_EQ(decode_.last.seed(), 77u);
  EXPECT_TRUE(decode_.last.ignore_eos());
  EXPECT_THAT(decode_.last.stop(), ElementsAre("x"));
}

TEST_F(ClusterClientTest, MissingPlanesArePrefilledAgain) {
  decode_.failures_before_start = 2;
  const auto result = client_->Generate(options_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->attempts, 3);
  EXPECT_EQ(prefill_.calls, 3);
  EXPECT_EQ(result->text, "hello!");
}

TEST_F(ClusterClientTest, GivesUpAfterThreeAttemptsAndSaysWhy) {
  decode_.failures_before_start = 100;
  const absl::Status status = client_->Generate(options_).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(decode_.calls, 3);
  EXPECT_THAT(std::string(status.message()), HasSubstr("block 3 of 9: evicted"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(decode_server_->address()));
}

TEST_F(ClusterClientTest, NeverRetriesOnceTextWasShown) {
  decode_.failures_after_token = 100;
  std::string shown;
  const absl::Status status =
      client_->Generate(options_, [&](absl::string_view piece) { shown += std::string(piece); }).status();
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(decode_.calls, 1);
  EXPECT_EQ(shown, "he");
}

TEST_F(ClusterClientTest, OtherErrorsAreNotRetried) {
  decode_.failures_before_start = 100;
  decode_.failure = absl::InvalidArgumentError("temperature is -1");
  const absl::Status status = client_->Generate(options_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(decode_.calls, 1);
  prefill_.result = absl::ResourceExhaustedError("the store is full");
  const absl::Status full = client_->Generate(options_).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(std::string(full.message()), HasSubstr(prefill_server_->address()));
  EXPECT_EQ(decode_.calls, 1);
}

TEST_F(ClusterClientTest, TimeoutHoldsForAHangingNode) {
  decode_.hang = true;
  options_.timeout = absl::Milliseconds(300);
  const absl::Time start = absl::Now();
  const absl::Status status = client_->Generate(options_).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST_F(ClusterClientTest, NobodyThereIsUnavailableAndNamesTheNode) {
  const std::string address = prefill_server_->address();
  prefill_server_->Stop(absl::ZeroDuration());
  prefill_server_.reset();
  const absl::Status status = client_->Generate(options_).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(address));
  EXPECT_TRUE(absl::IsUnavailable(client_->PrefillInfo(absl::Seconds(5)).status()));
}

TEST_F(ClusterClientTest, TextThatIsNotUtf8IsRefusedBeforeItIsSent) {
  options_.segments = {"fine", "broken \xff\xfe"};
  const absl::Status status = client_->Generate(options_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("UTF-8"));
  options_.segments = {"fine"};
  options_.stop = {"\xc3"};
  EXPECT_TRUE(absl::IsInvalidArgument(client_->Generate(options_).status()));
  options_.stop = {};
  options_.salt = "\x80";
  EXPECT_TRUE(absl::IsInvalidArgument(client_->Generate(options_).status()));
  options_.salt = "";
  // Overlong, surrogate, above U+10FFFF, cut off; and the borders that are right.
  for (const char* bad : {"\xc0\xaf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
                          "\xf5\x80\x80\x80", "\xe2\x82"}) {
    options_.segments = {bad};
    EXPECT_TRUE(absl::IsInvalidArgument(client_->Generate(options_).status()))
        << ::testing::PrintToString(std::string(bad));
  }
  for (const char* good :
       {"\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    options_.segments = {good};
    const absl::Status status = client_->Generate(options_).status();
    EXPECT_TRUE(status.ok()) << ::testing::PrintToString(std::string(good)) << status;
  }
}

}  // namespace
}  // namespace perigee::cluster
