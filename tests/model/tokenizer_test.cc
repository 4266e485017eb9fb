#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <random>

#include "checkpoint_builder.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_pretokenize.h"
#include "model/utf8.h"

namespace perigee::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
const std::string kPodling = PERIGEE_SOURCE_DIR "/models/podling";

// GPT-2's character for a byte, from the published rule, for making vocabularies here.
std::string Mapped(int byte) {
  int extra = 0, point = -1;
  for (int b = 0; b <= byte; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    point = printable ? b : 256 + extra;
    if (!printable) ++extra;
  }
  if (point < 128) return std::string(1, static_cast<char>(point));
  return {static_cast<char>(0xC0 | point >> 6), static_cast<char>(0x80 | (point & 63))};
}

// ids: 0..255 the bytes, then the joins in order, then <s> and </s> (special), <think> (not special).
Json MakeTokenizer(const std::vector<std::pair<std::string, std::string>>& merges = {
                       {"a", "b"}, {"ab", "c"}, {"h", "e"}}) {
  Json vocab = Json::object(), list = Json::array();
  for (int b = 0; b < 256; ++b) vocab[Mapped(b)] = b;
  int id = 256;
  for (const auto& [left, right] : merges) {
    if (!vocab.contains(left + right)) vocab[left + right] = id++;
    list.push_back(left + " " + right);
  }
  const auto added = [&](const char* text, bool special) {
    return Json{{"id", id++},           {"content", text}, {"special", special},
                {"single_word", false}, {"lstrip", false}, {"rstrip", false}};
  };
  Json json = {{"version", "1.0"},
               {"normalizer", nullptr},
               {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
               {"post_processor", nullptr},
               {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
  json["added_tokens"] = Json::array({added("<s>", true), added("</s>", true), added("<think>", false)});
  return json;
}

std::unique_ptr<Tokenizer> Make(const Json& json, const std::string& config = "") {
  auto tokenizer = ParseTokenizerJson(json.dump(), config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<std::string> Words(const std::string& pattern, const std::string& text) {
  const auto splitter = RegexSplitter::Compile(pattern, false);
  EXPECT_TRUE(splitter.ok()) << splitter.status();
  std::vector<absl::string_view> words;
  EXPECT_TRUE(splitter->Split(text, words).ok());
  std::vector<std::string> out;
  for (const auto word : words) out.emplace_back(word.data(), word.size());
  return out;
}

TEST(Podling, VectorsAreExact) {
  const auto tokenizer = LoadTokenizer(kPodling);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Json vectors = Json::parse(ReadAll(PERIGEE_SOURCE_DIR "/tests/model/testdata/podling_tokenizer_vectors.json"));
  ASSERT_EQ(vectors.size(), 4U);
  for (const Json& vector : vectors) {
    const std::string text = vector["text"];
    const auto ids = (*tokenizer)->Encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, vector["ids"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ((*tokenizer)->Decode(*ids).value(), text);
  }
  EXPECT_EQ((*tokenizer)->vocab_size(), 1024);
  EXPECT_EQ((*tokenizer)->bos_id(), 0);
  EXPECT_THAT((*tokenizer)->eos_ids(), ElementsAre(0));
  EXPECT_FALSE((*tokenizer)->adds_bos_by_default());
  EXPECT_EQ((*tokenizer)->Encode("a", true).value()[0], 0);
}

TEST(Podling, AnyBytesComeBack) {
  const auto tokenizer = LoadTokenizer(kPodling).value();
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::string text(random() % 200, '\0');
    for (char& c : text)
      c = static_cast<char>(round % 3 == 0   ? random() % 256
                            : round % 3 == 1 ? " the\xE4\xB8\xAD\n"[random() % 8]
                                             : random() % 128);
    const auto ids = tokenizer->Encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(tokenizer->Decode(*ids).value(), text);
  }
}

TEST(PreTokenize, Gpt2PatternOnHandComputedCases) {
  EXPECT_THAT(Words(kGpt2Pattern, "Hello world's  12th  \n x"),
              ElementsAre("Hello", " world", "'s", " ", " 12", "th", "  \n", " x"));
  EXPECT_THAT(Words(kGpt2Pattern, "I'LL we'll don't!!"), ElementsAre("I", "'", "LL", " we", "'ll", " don", "'t", "!!"));
  EXPECT_THAT(Words(kGpt2Pattern, "na\xC3\xAFve \xD0\xBC\xD0\xB8\xD1\x80 \xD9\xA1\xD9\xA2"),
              ElementsAre("na\xC3\xAFve", " \xD0\xBC\xD0\xB8\xD1\x80", " \xD9\xA1\xD9\xA2"));
  EXPECT_THAT(Words(kGpt2Pattern,
                    "a\xC2\xA0"
                    "b   "),
              ElementsAre("a", "\xC2\xA0", "b", "   "));  // no-break space is white space
}

constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

TEST(PreTokenize, Llama3PatternOnHandComputedCases) {
  EXPECT_THAT(Words(kLlama3Pattern, "Hello world's  12345th  \n x"),
              ElementsAre("Hello", " world", "'s", " ", " ", "123", "45", "th", "  \n", " x"));
  EXPECT_THAT(Words(kLlama3Pattern, "I'LL (foo)\n\n  bar"), ElementsAre("I", "'LL", " (", "foo", ")\n\n", " ", " bar"));
  EXPECT_THAT(Words(kLlama3Pattern, "\t\tx=1;\r\n"), ElementsAre("\t", "\tx", "=", "1", ";\r\n"));
  EXPECT_THAT(Words(kLlama3Pattern, "\xE4\xB8\xAD\xE6\x96\x87\xEF\xBC\x8C\xF0\x9F\x98\x80"),
              ElementsAre("\xE4\xB8\xAD\xE6\x96\x87", "\xEF\xBC\x8C\xF0\x9F\x98\x80"));
}

TEST(PreTokenize, Qwen2PatternTakesDigitsOneByOne) {
  EXPECT_THAT(Words(kQwen2Pattern, "in 1999, we'Re"), ElementsAre("in", " ", "1", "9", "9", "9", ",", " we", "'Re"));
}

TEST(PreTokenize, LongRunsAreLinearEnough) {
  // Quadratic behaviour would take minutes.
  for (const char c : {' ', 'x', '\n', '!', '7'}) {
    const std::string text(1 << 20, c);
    size_t total = 0;
    for (const std::string& word : Words(kLlama3Pattern, text)) total += word.size();
    EXPECT_EQ(total, text.size());
  }
}

TEST(PreTokenize, RunawayPatternsEndWithAnError) {
  const auto splitter = RegexSplitter::Compile(R"((x+x+)+[yz])", false);
  ASSERT_TRUE(splitter.ok());
  std::vector<absl::string_view> words;
  EXPECT_TRUE(absl::IsResourceExhausted(splitter->Split(std::string(64, 'x'), words)));
  EXPECT_FALSE(RegexSplitter::Compile("(", false).ok());
  EXPECT_FALSE(RegexSplitter::Compile("", false).ok());
  EXPECT_FALSE(RegexSplitter::Compile(std::string(1 << 20, 'a'), false).ok());
  EXPECT_FALSE(RegexSplitter::Compile("\\C", false).ok());
}

// The definition, in the simplest words: the oracle for the heap.
std::vector<int32_t> NaiveBpe(const std::string& word,
                              const std::map<std::pair<int32_t, int32_t>, std::pair<int32_t, int32_t>>& merges) {
  std::vector<int32_t> ids(word.begin(), word.end());
  for (;;) {
    int best = -1, best_rank = 1 << 30;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = merges.find({ids[i], ids[i + 1]});
      if (it != merges.end() && it->second.first < best_rank) {
        best = static_cast<int>(i);
        best_rank = it->second.first;
      }
    }
    if (best < 0) return ids;
    ids[static_cast<size_t>(best)] =
        merges.at({ids[static_cast<size_t>(best)], ids[static_cast<size_t>(best) + 1]}).second;
    ids.erase(ids.begin() + best + 1);
  }
}

TEST(Bpe, HeapEqualsTheNaiveDefinition) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    BpeModel bpe;
    std::array<int32_t, 256> bytes;
    for (int i = 0; i < 256; ++i) bytes[static_cast<size_t>(i)] = i;
    bpe.SetByteIds(bytes);
    std::map<std::pair<int32_t, int32_t>, std::pair<int32_t, int32_t>> merges;
    std::vector<int32_t> symbols = {'a', 'b', 'c'};
    for (int32_t rank = 0; rank < 20; ++rank) {
      const std::pair<int32_t, int32_t> pair = {symbols[random() % symbols.size()], symbols[random() % symbols.size()]};
      if (merges.contains(pair)) continue;
      merges[pair] = {rank, 1000 + rank};
      bpe.AddMerge(pair.first, pair.second, rank, 1000 + rank);
      symbols.push_back(1000 + rank);
    }
    std::string word;
    for (int i = 0; i < 60; ++i) word.push_back("abc"[random() % 3]);
    std::vector<int32_t> ids;
    bpe.Encode(word, ids);
    EXPECT_EQ(ids, NaiveBpe(word, merges));
  }
}

TEST(Bpe, AMillionByteWordIsQuick) {
  const auto tokenizer = LoadTokenizer(kPodling).value();
  const auto start = std::chrono::steady_clock::now();
  std::string text;
  while (text.size() < (1 << 20)) text += "theandingerestion";
  const auto ids = tokenizer->Encode(text, false);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(tokenizer->Decode(*ids).value(), text);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));  // quadratic would be hours
}

TEST(TokenizerJson, MergesMayBeStringsOrPairs) {
  Json json = MakeTokenizer();
  const auto strings = Make(json);
  Json pairs = Json::array();
  for (const Json& merge : json["model"]["merges"]) {
    const std::string text = merge;
    pairs.push_back({text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)});
  }
  json["model"]["merges"] = pairs;
  const auto arrays = Make(json);
  EXPECT_THAT(strings->Encode("abcab he", false).value(), ElementsAre(257, 256, 32, 258));
  EXPECT_EQ(arrays->Encode("abcab he", false).value(), strings->Encode("abcab he", false).value());
}

TEST(TokenizerJson, SpecialTextIsPlainTextUnlessAsked) {
  const auto tokenizer = Make(MakeTokenizer());
  EXPECT_EQ(tokenizer->Encode("<s>", false).value().size(), 3U);
  EXPECT_THAT(tokenizer->Encode("ab</s>ab", false, true).value(), ElementsAre(256, 260, 256));
  EXPECT_THAT(tokenizer->Encode("ab<think>", false).value(), ElementsAre(256, 261));  // added, not special: always
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{259, 256, 260}).value(), "ab");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{259, 256, 260}, false).value(), "<s>ab</s>");
  EXPECT_EQ(tokenizer->FindAddedToken("</s>"), 260);
  EXPECT_EQ(tokenizer->FindAddedToken("ab"), std::nullopt);
}

TEST(TokenizerJson, TheLongestAddedTokenWins) {
  Json json = MakeTokenizer();
  json["added_tokens"].push_back({{"id", 300}, {"content", "<s>x"}, {"special", true}});
  EXPECT_THAT(Make(json)->Encode("<s>x<s>y", false, true).value(), ElementsAre(300, 259, 'y'));
}

TEST(TokenizerJson, IgnoreMergesTakesWholeWords) {
  Json json = MakeTokenizer();
  json["model"]["vocab"]["xyz"] = 400;
  EXPECT_EQ(Make(json)->Encode("xyz", false).value().size(), 3U);
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(Make(json)->Encode("xyz", false).value(), ElementsAre(400));
}

TEST(TokenizerJson, PrefixSpaceAndNfcAreApplied) {
  Json json = MakeTokenizer();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_THAT(Make(json)->Encode("ab", false).value(), ElementsAre(32, 256));
  EXPECT_THAT(Make(json)->Encode(" ab", false).value(), ElementsAre(32, 256));
  json = MakeTokenizer();
  json["normalizer"] = {{"type", "NFC"}};
  const auto nfc = Make(json);
  EXPECT_THAT(nfc->Encode("e\xCC\x81", false).value(), ElementsAre(0xC3, 0xA9));  // e + combining acute = U+00E9
  EXPECT_THAT(nfc->Encode("\xFF"
                          "e\xCC\x81\xCC",
                          false)
                  .value(),
              ElementsAre(0xFF, 0xC3, 0xA9, 0xCC));
}

TEST(TokenizerJson, BosComesFromTheTemplateOrTheTokenizerConfig) {
  Json json = MakeTokenizer();
  EXPECT_EQ(Make(json)->bos_id(), std::nullopt);
  EXPECT_TRUE(absl::IsFailedPrecondition(Make(json)->Encode("a", true).status()));
  auto tokenizer = Make(json, R"({"bos_token":{"content":"<s>"},"eos_token":"</s>","add_bos_token":true})");
  EXPECT_EQ(tokenizer->bos_id(), 259);
  EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(260));
  EXPECT_TRUE(tokenizer->adds_bos_by_default());
  json["post_processor"] = {{"type", "Sequence"},
                            {"processors",
                             {{{"type", "ByteLevel"}},
                              {{"type", "TemplateProcessing"},
                               {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}}}}};
  tokenizer = Make(json);
  EXPECT_EQ(tokenizer->bos_id(), 259);
  EXPECT_TRUE(tokenizer->adds_bos_by_default());
  EXPECT_THAT(tokenizer->Encode("ab", true).value(), ElementsAre(259, 256));
  EXPECT_FALSE(ParseTokenizerJson(json.dump(), R"({"bos_token":"<nope>"})").ok());
}

TEST(TokenizerJson, WhatIsNotImplementedIsRefusedByName) {
  const auto refused = [](const Json& patch, const std::string& name) {
    Json json = MakeTokenizer();
    json.merge_patch(patch);
    const auto status = ParseTokenizerJson(json.dump(), "").status();
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  };
  refused({{"normalizer", {{"type", "Lowercase"}}}}, "Lowercase");
  refused({{"normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFKC"}}}}}}}, "NFKC");
  refused({{"pre_tokenizer", {{"type", "Metaspace"}}}}, "Metaspace");
  refused(
      {{"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Split"}, {"behavior", "Removed"}}}}}}},
      "Removed");
  refused({{"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array()}}}}, "ByteLevel");
  refused({{"model", {{"type", "Unigram"}}}}, "Unigram");
  refused({{"model", {{"type", "WordPiece"}}}}, "WordPiece");
  refused({{"model", {{"byte_fallback", true}}}}, "byte_fallback");
  refused({{"model", {{"dropout", 0.1}}}}, "dropout");
  refused({{"model", {{"end_of_word_suffix", "</w>"}}}}, "end_of_word_suffix");
  refused({{"post_processor", {{"type", "BertProcessing"}}}}, "BertProcessing");
  refused({{"added_tokens", {{{"id", 500}, {"content", "<x>"}, {"rstrip", true}}}}}, "rstrip");
}

TEST(TokenizerJson, DamagedFilesAreRefusedByName) {
  const auto refused = [](const std::function<void(Json&)>& change, const std::string& name) {
    Json json = MakeTokenizer();
    change(json);
    const auto status = ParseTokenizerJson(json.dump(), "").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  };
  refused([](Json& j) { j["model"]["vocab"].erase("a"); }, "byte 97");
  refused([](Json& j) { j["model"]["vocab"]["zz"] = 5; }, "another token");
  refused([](Json& j) { j["model"]["vocab"]["zz"] = -5; }, "-5");
  refused([](Json& j) { j["model"]["vocab"]["zz"] = int64_t{1} << 40; }, "1099511627776");
  refused([](Json& j) { j["model"]["merges"].push_back("q q"); }, "q q");
  refused([](Json& j) { j["model"]["merges"].push_back("a b c"); }, "a b c");
  refused([](Json& j) { j["model"]["merges"].push_back(7); }, "7");
  refused([](Json& j) { j["model"].erase("merges"); }, "merges");
  refused([](Json& j) { j["model"].erase("vocab"); }, "vocab");
  refused([](Json& j) { j.erase("model"); }, "model");
  refused([](Json& j) { j["added_tokens"][0]["content"] = ""; }, "content");
  refused([](Json& j) { j["added_tokens"][0]["id"] = 97; }, "97");
  refused([](Json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); }, "<s>");
}

TEST(TokenizerJson, EveryTruncationIsRefusedAndBitFlipsNeverCrash) {
  const std::string text = MakeTokenizer().dump();
  for (size_t n = 0; n < text.size(); ++n) EXPECT_FALSE(ParseTokenizerJson(text.substr(0, n), "").ok()) << n;
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::string flipped = text;
    const size_t bit = random() % (text.size() * 8);
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    if (const auto tokenizer = ParseTokenizerJson(flipped, ""); tokenizer.ok())
      (void)(*tokenizer)->Encode("abc he 12", false);
  }
}

TEST(Tokenizer, UnknownIdsAreErrors) {
  const auto tokenizer = Make(MakeTokenizer());
  for (const int32_t id : {-1, 262, 1 << 30}) {
    EXPECT_TRUE(absl::IsInvalidArgument(tokenizer->TokenBytes(id).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(tokenizer->Decode(std::vector<int32_t>{id}).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(StreamDecoder(*tokenizer).Push(id).status()));
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

TEST(Tokenizer, OversizedTextIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Make(MakeTokenizer())->Encode(std::string((32 << 20) + 1, 'a'), false).status()));
}

TEST(LoadTokenizer, NamesWhatIsMissing) {
  testing::TempFolder folder;
  EXPECT_TRUE(absl::IsNotFound(LoadTokenizer(folder.path()).status()));
}

TEST(StreamDecoder, NeverEmitsHalfACharacterAndLosesNothing) {
  const auto tokenizer = Make(MakeTokenizer());
  std::mt19937 random(11);
  const std::string alphabet[] = {"a",        "\xC3\xA9", "\xE4\xB8\xAD", "\xF0\x9F\x98\x80", "\xFF",
                                  "\xE4\xB8", "\xF0\x9F", "\xED\xA0\x80", "\xC0\xAF"};
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    for (int i = 0; i < 12; ++i) bytes += alphabet[random() % (round % 2 == 0 ? 4 : 9)];
    StreamDecoder stream(*tokenizer);
    std::string out;
    for (const char byte : bytes) {
      const std::string piece = stream.Push(static_cast<uint8_t>(byte)).value();
      EXPECT_EQ(ValidUtf8Prefix(piece), piece.size());
      out += piece;
    }
    out += stream.Finish();
    EXPECT_EQ(out, Utf8Lossy(bytes));
    if (round % 2 == 0) {
      EXPECT_EQ(out, bytes);
    }
  }
  StreamDecoder stream(*tokenizer);
  for (const int32_t id : {0xF0, 0x9F, 259}) EXPECT_EQ(stream.Push(id).value(), "");
  EXPECT_EQ(stream.Finish(), "\xEF\xBF\xBD");
}

TEST(Utf8, LossyFollowsTheUnicodeStandardsExample) {
  // Unicode standard, table 3-8: <61 F1 80 80 E1 80 C2 62 80 63 80 BF 64> gives a, 3 replacements, b, 1, c, 2, d.
  EXPECT_EQ(Utf8Lossy("a\xF1\x80\x80\xE1\x80\xC2"
                      "b\x80"
                      "c\x80\xBF"
                      "d"),
            "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
            "b\xEF\xBF\xBD"
            "c\xEF\xBF\xBD\xEF\xBF\xBD"
            "d");
}

}  // namespace
}  // namespace perigee::model
