#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "checkpoint_builder.h"

namespace perigee::model {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::RawTensors;
using testing::SafetensorsFile;
using testing::TempFolder;
using testing::TinyTensors;

void ExpectRefused(const std::string& file, const std::string& message) {
  const auto tensors = ParseSafetensors(Bytes(file));
  ASSERT_FALSE(tensors.ok()) << message;
  EXPECT_THAT(std::string(tensors.status().message()), HasSubstr(message));
}

std::string OneTensor(const std::string& entry, size_t data_bytes) {
  return SafetensorsFile("{\"w\":" + entry + "}", std::string(data_bytes, 'x'));
}

TEST(Safetensors, ViewsNameShapeDtypeAndBytes) {
  const std::string file = SafetensorsFile(RawTensors{{"a", {"F32", {2, 1}, "01234567"}},
                                                      {"b", {"BF16", {3}, "abcdef"}},
                                                      {"c", {"F16", {}, "zz"}},
                                                      {"empty", {"F32", {0, 4}, ""}}});
  const auto tensors = ParseSafetensors(Bytes(file));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 4U);
  EXPECT_EQ(tensors->at("a").elements, 2);
  EXPECT_EQ(AsView(tensors->at("b").bytes), "abcdef");
  EXPECT_EQ(tensors->at("b").dtype, Dtype::kBf16);
  EXPECT_EQ(tensors->at("c").elements, 1);
  EXPECT_EQ(tensors->at("empty").elements, 0);
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string file = SafetensorsFile(RawTensors{{"a", {"F32", {2}, "01234567"}}, {"b", {"BF16", {3}, "abcdef"}}});
  for (size_t n = 0; n < file.size(); ++n) EXPECT_FALSE(ParseSafetensors(Bytes(file.substr(0, n))).ok()) << n;
  EXPECT_FALSE(ParseSafetensors(Bytes(file + "x")).ok());
}

TEST(Safetensors, EveryBitFlipIsRefusedOrStaysWithinTheFile) {
  const std::string file = SafetensorsFile(RawTensors{{"a", {"F32", {2}, "01234567"}}, {"b", {"BF16", {3}, "abcdef"}}});
  for (size_t bit = 0; bit < file.size() * 8; ++bit) {
    std::string flipped = file;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const auto tensors = ParseSafetensors(Bytes(flipped));
    if (!tensors.ok()) continue;
    for (const auto& [name, view] : *tensors) {
      std::vector<float> values(static_cast<size_t>(view.elements));
      ConvertToFloat(view, values);  // the sanitizers watch the reads
    }
  }
}

TEST(Safetensors, HostileHeadersAreRefusedWithTheReason) {
  ExpectRefused("", "0 bytes");
  ExpectRefused(std::string(8, '\xFF'), "18446744073709551615");
  ExpectRefused(std::string("\x10\0\0\0\0\0\0\0{}", 10), "cut short");
  ExpectRefused(SafetensorsFile("[]", ""), "not a JSON object");
  ExpectRefused(SafetensorsFile("{", ""), "not valid JSON");
  ExpectRefused(SafetensorsFile(std::string(1 << 20, '['), ""), "nests deeper");
  ExpectRefused(
      SafetensorsFile(
          R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          "01234567"),
      "twice");
  ExpectRefused(SafetensorsFile(R"({"__metadata__":{"a":1}})", ""), "__metadata__");
  ExpectRefused(OneTensor(R"({"dtype":"I8","shape":[4],"data_offsets":[0,4]})", 4), "I8");
  ExpectRefused(OneTensor(R"({"dtype":7,"shape":[4],"data_offsets":[0,4]})", 4), "dtype");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4), "takes 8 bytes");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4), "-1");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", 4), "shape");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0),
                "impossibly large");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]})", 0),
                "impossibly large");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})", 4), "9 dimensions");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})", 4), "do not lie within");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4), "do not lie within");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", 4), "data_offsets");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1})", 4), "nothing else");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8), "hole");
  ExpectRefused(OneTensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 8), "but the file has 8");
  ExpectRefused(
      SafetensorsFile(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          "01234567"),
      "inside");
}

TEST(Safetensors, AllSixteenBitPatternsConvertExactly) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const std::string two{static_cast<char>(bits & 255), static_cast<char>(bits >> 8)};
    TensorView view{Dtype::kBf16, {1}, 1, Bytes(two)};
    float value;
    ConvertToFloat(view, {&value, 1});
    EXPECT_EQ(std::bit_cast<uint32_t>(value), bits << 16);

    view.dtype = Dtype::kF16;
    ConvertToFloat(view, {&value, 1});
    const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
    if (exponent == 31) {
      EXPECT_TRUE(fraction == 0 ? std::isinf(value) : std::isnan(value));
    } else {
      const double expected = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      EXPECT_EQ(value, bits & 0x8000 ? -expected : expected) << bits;
    }
    EXPECT_EQ(std::signbit(value), (bits & 0x8000) != 0);
  }
}

TEST(Checkpoint, ShardedAndSingleHoldTheSameTensors) {
  TempFolder single, sharded;
  single.Write("model.safetensors", SafetensorsFile(TinyTensors()));
  WriteSharded(sharded, TinyTensors());
  const auto a = Checkpoint::Open(single.path()), b = Checkpoint::Open(sharded.path());
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(b->files().size(), 2U);
  ASSERT_EQ(a->tensors().size(), b->tensors().size());
  for (const auto& [name, view] : a->tensors()) {
    ASSERT_NE(b->Find(name), nullptr) << name;
    EXPECT_EQ(AsView(view.bytes), AsView(b->Find(name)->bytes));
  }
  EXPECT_EQ(a->Find("nothing"), nullptr);
}

TEST(Checkpoint, IndexMayOnlyNameFilesBesideIt) {
  for (const std::string bad : {"../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".hidden.safetensors",
                                "model.bin", "", "a\\b.safetensors", "a..safetensors"}) {
    const auto index = ParseSafetensorsIndex(nlohmann::json{{"weight_map", {{"w", bad}}}}.dump());
    ASSERT_FALSE(index.ok()) << bad;
    EXPECT_THAT(std::string(index.status().message()), HasSubstr("plain"));
  }
  EXPECT_FALSE(ParseSafetensorsIndex(R"({"weight_map":{"w":"a\u0000.safetensors"}})").ok());
  EXPECT_FALSE(ParseSafetensorsIndex(R"({"weight_map":{}})").ok());
  EXPECT_FALSE(ParseSafetensorsIndex(R"({"weight_map":{"w":1}})").ok());
  EXPECT_FALSE(ParseSafetensorsIndex("{}").ok());
}

TEST(Checkpoint, IndexAndShardsMustAgree) {
  const auto open_with = [](const nlohmann::json& changes, bool remove_shard) {
    TempFolder folder;
    WriteSharded(folder, {{"a", testing::MakeF32({2})}, {"b", testing::MakeF32({2})}});
    nlohmann::json map = {{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00002-of-00002.safetensors"}};
    map.merge_patch(changes);
    folder.Write("model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
    if (remove_shard) std::filesystem::remove(folder.path() + "/model-00002-of-00002.safetensors");
    return Checkpoint::Open(folder.path()).status();
  };
  EXPECT_TRUE(open_with(nlohmann::json::object(), false).ok());
  EXPECT_THAT(std::string(open_with({{"c", "model-00001-of-00002.safetensors"}}, false).message()),
              HasSubstr("lacks tensor \"c\""));
  EXPECT_THAT(std::string(open_with({{"a", "model-00002-of-00002.safetensors"}}, false).message()), HasSubstr("\"a\""));
  EXPECT_TRUE(absl::IsNotFound(open_with(nlohmann::json::object(), true)));
}

TEST(Checkpoint, AnEmptyFolderSaysWhatIsMissing) {
  TempFolder folder;
  const auto status = Checkpoint::Open(folder.path()).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors.index.json"));
}

}  // namespace
}  // namespace perigee::model
