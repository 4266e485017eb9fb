#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint_builder.h"
#include "model/tokenizer.h"
#include "sentencepiece_trainer.h"

namespace perigee::model {
namespace {

class SentencePiece : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::string error;
    model_ = new std::string(testing::TrainTinySentencePiece(&error));
    ASSERT_EQ(error, "");
    ASSERT_FALSE(model_->empty());
  }
  static void TearDownTestSuite() { delete model_; }
  void SetUp() override {
    auto tokenizer = ParseSentencePiece(*model_, "");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  static std::string* model_;
  std::unique_ptr<Tokenizer> tokenizer_;
};
std::string* SentencePiece::model_ = nullptr;

TEST_F(SentencePiece, IdsAndTextAreTheLibrarys) {
  for (const std::string text :
       {"the nearest block", "  two  spaces", "12 and 345", "unseen: Qx\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80",
        "line\nbreak\ttab", " leading", "x"}) {
    const auto ids = tokenizer_->Encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(std::vector<int>(ids->begin(), ids->end()), testing::ReferenceEncode(*model_, text));
    EXPECT_EQ(tokenizer_->Decode(*ids).value(), text);
    EXPECT_EQ(testing::ReferenceDecode(*model_, {ids->begin(), ids->end()}), text);
    StreamDecoder stream(*tokenizer_, /*at_text_start=*/true);
    std::string streamed;
    for (const int32_t id : *ids) streamed += stream.Push(id).value();
    EXPECT_EQ(streamed + stream.Finish(), text);
  }
}

TEST_F(SentencePiece, SpecialsAndDefaults) {
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_THAT(tokenizer_->eos_ids(), ::testing::ElementsAre(2));
  EXPECT_TRUE(tokenizer_->adds_bos_by_default());
  EXPECT_TRUE(tokenizer_->has_dummy_prefix());
  EXPECT_TRUE(tokenizer_->IsSpecial(1));
  EXPECT_EQ(tokenizer_->Encode("the", true).value()[0], 1);
  EXPECT_FALSE(ParseSentencePiece(*model_, R"({"add_bos_token":false})").value()->adds_bos_by_default());
  const auto plain = tokenizer_->Encode("</s>", false).value();
  for (const int32_t id : plain) EXPECT_FALSE(tokenizer_->IsSpecial(id));
  EXPECT_EQ(tokenizer_->Encode("the</s>", false, true).value().back(), 2);
}

TEST_F(SentencePiece, AContinuationKeepsItsFirstSpace) {
  const auto ids = tokenizer_->Encode("the store", false).value();
  EXPECT_EQ(tokenizer_->Decode(ids, true, /*at_text_start=*/false).value(), " the store");
}

TEST_F(SentencePiece, InvalidUtf8IsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(tokenizer_->Encode("a\xFF", false).status()));
}

TEST_F(SentencePiece, FoldersFallBackToTheModelFile) {
  testing::TempFolder folder;
  folder.Write("tokenizer.model", *model_);
  EXPECT_TRUE(LoadTokenizer(folder.path()).ok());
  // The imitation that converted models carry is refused for what it is, and the original used.
  folder.Write("tokenizer.json", R"({"model":{"type":"BPE","byte_fallback":true,"vocab":{},"merges":[]}})");
  const auto tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->has_dummy_prefix());
  folder.Write("tokenizer.json", "{");
  EXPECT_TRUE(absl::IsInvalidArgument(LoadTokenizer(folder.path()).status()));
}

TEST_F(SentencePiece, TruncatedModelsNeverCrash) {
  for (size_t n = 0; n < model_->size(); n += n < 200 ? 1 : 13) {
    if (const auto tokenizer = ParseSentencePiece(model_->substr(0, n), ""); tokenizer.ok())
      (void)(*tokenizer)->Encode("the block", false);
  }
  EXPECT_FALSE(ParseSentencePiece("", "").ok());
  EXPECT_FALSE(ParseSentencePiece("not a model", "").ok());
}

}  // namespace
}  // namespace perigee::model
