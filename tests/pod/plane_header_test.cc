#include "pod/plane_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/crc32c.h"
#include "plans.h"

namespace perigee::pod {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Identity TestIdentity() {
  Identity identity;
  identity.tenant = "acme";
  identity.salt = "pepper";
  identity.model_fingerprint = TestFingerprint();
  identity.plan_id = MixedPlan().id();
  identity.block_tokens = 64;
  return identity;
}

std::string Payload(size_t bytes) {
  std::string payload;
  for (size_t i = 0; i < bytes; ++i) payload.push_back(static_cast<char>(i * 31 + (i >> 8)));
  return payload;
}

// golden.py's header: the second block of 104 tokens, 40 of them in it.
struct Example {
  Layout layout = *Layout::Create(MixedPlan(), 64);
  Identity identity = TestIdentity();
  std::vector<BlockKey> chain;
  std::string payload;
  PlaneHeader header;

  explicit Example(PlaneKind kind = PlaneKind::kDistant) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 104; ++i) tokens.push_back(3 * i);
    chain = DeriveChain(identity, tokens);
    payload = Payload(layout.plane_bytes(kind));
    header.kind = kind;
    header.key = chain[1];
    header.has_parent = true;
    header.parent = header.root = chain[0];
    header.tenant = identity.tenant;
    header.model_fingerprint = identity.model_fingerprint;
    header.plan_id = identity.plan_id;
    header.shape = layout.plan().shape();
    header.near_codec = layout.plan().near_codec();
    header.block_tokens = 64;
    header.tokens = 40;
    header.shard = identity.shard;
    header.base_position = 64;
    header.payload_bytes = payload.size();
    header.sections = SumSections(layout, kind, AsBytes(payload));
  }
};

constexpr size_t kPrefixBytes = 18;
constexpr size_t kTenantLengthAt = 4 + 5 * 32;  // In the body.

// The golden header with its body changed and the checksum made right again: what a hostile writer can send.
template <typename Change>
std::string Forged(Change change) {
  static const std::string bytes = EncodePlaneHeader(Example().header);
  std::string body = bytes.substr(kPrefixBytes);
  change(body);
  ByteWriter w;
  w.Raw(bytes.substr(0, 10));
  w.U32(static_cast<uint32_t>(body.size()));
  w.U32(Crc32c(AsBytes(body)));
  w.Raw(body);
  return w.Take();
}

std::string Put32(std::string body, size_t at, uint32_t value) {
  for (size_t i = 0; i < 4; ++i) body[at + i] = static_cast<char>(value >> (8 * i));
  return body;
}

void ExpectDataLoss(absl::string_view bytes, const std::string& reason = "plane header") {
  const absl::Status status = DecodePlaneHeader(bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
}

TEST(PlaneHeader, TheBytesAreTheOnesThatTheFormatsPageDefines) {
  PlaneHeader header = Example().header;
  EXPECT_EQ(EncodePlaneHeader(header), ReadTestdata("plane_header_v2.bin"));
  header.root = {};
  EXPECT_EQ(EncodePlaneHeader(header), ReadTestdata("plane_header_v1.bin"));
}

TEST(PlaneHeader, TheGoldenFileIsRead) {
  size_t encoded_bytes = 0;
  const std::string bytes = ReadTestdata("plane_header_v2.bin");
  const absl::StatusOr<PlaneHeader> header = DecodePlaneHeader(bytes, &encoded_bytes);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(*header, Example().header);
  EXPECT_EQ(encoded_bytes, bytes.size());
}

TEST(PlaneHeader, AHeaderOfVersion1HasNoRootAndKeepsItsBytes) {
  size_t encoded_bytes = 0;
  const std::string bytes = ReadTestdata("plane_header_v1.bin");
  const absl::StatusOr<PlaneHeader> header = DecodePlaneHeader(bytes, &encoded_bytes);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_FALSE(header->has_root());
  PlaneHeader expected = Example().header;
  expected.root = {};
  EXPECT_EQ(*header, expected);
  EXPECT_EQ(encoded_bytes, bytes.size());
  EXPECT_EQ(EncodePlaneHeader(*header), bytes);
  const Example e;
  EXPECT_TRUE(CheckPlaneHeader(*header, e.layout, e.identity, e.chain[1], PlaneKind::kDistant, &e.chain[0]).ok());
}

TEST(PlaneHeader, AnImpossibleRootIsRefused) {
  const auto with = [](auto change) {
    PlaneHeader header = Example().header;
    change(header);
    return EncodePlaneHeader(header);
  };
  ExpectDataLoss(with([](PlaneHeader& h) { h.root = h.key; }), "impossible root");
  ExpectDataLoss(with([](PlaneHeader& h) {
                   h.has_parent = false;
                   h.parent = {};
                 }),
                 "impossible root");
  ExpectDataLoss(Forged([](std::string& b) { b.replace(68, 32, std::string(32, '\0')); }), "impossible root");
}

TEST(PlaneHeader, EveryPlaneReadsBackPaddedOrNot) {
  for (const PlaneKind kind : kPlaneKinds) {
    PlaneHeader header = Example(kind).header;
    for (const bool first : {false, true}) {
      if (first) {
        header.has_parent = false;
        header.parent = {};
        header.root = header.key;
        header.base_position = 0;
        header.tenant = "";
      }
      std::string bytes = EncodePlaneHeader(header);
      const size_t size = bytes.size();
      bytes.resize(4096, '\xee');
      size_t encoded_bytes = 0;
      const absl::StatusOr<PlaneHeader> read = DecodePlaneHeader(bytes, &encoded_bytes);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(*read, header);
      EXPECT_EQ(encoded_bytes, size);
    }
  }
}

TEST(PlaneHeader, ExtremeValuesReadBack) {
  PlaneHeader header = Example().header;
  header.tenant = std::string(256, '\xff');
  header.shape = {1024, 1024, 1024};
  header.shard = UINT32_MAX;
  header.base_position = INT64_MAX;
  header.sections = std::vector<SectionSum>(1000, SectionSum{UINT32_MAX, UINT32_MAX});
  header.payload_bytes = uint64_t{1000} * UINT32_MAX;
  EXPECT_EQ(*DecodePlaneHeader(EncodePlaneHeader(header)), header);
  header.sections.clear();
  header.payload_bytes = 0;
  EXPECT_EQ(*DecodePlaneHeader(EncodePlaneHeader(header)), header);
}

TEST(PlaneHeader, EveryTruncationIsDataLoss) {
  const std::string bytes = EncodePlaneHeader(Example().header);
  for (size_t n = 0; n < bytes.size(); ++n) ExpectDataLoss(bytes.substr(0, n), "truncated");
}

TEST(PlaneHeader, EverySingleBitFlipIsRefused) {
  std::string bytes = EncodePlaneHeader(Example().header);
  const size_t header_bits = bytes.size() * 8;
  bytes.resize(4096);  // A longer length field finds bytes to read.
  for (size_t bit = 0; bit < header_bits; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    const absl::Status status = DecodePlaneHeader(flipped).status();
    EXPECT_EQ(status.code(), bit < 80 ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kDataLoss)
        << "bit " << bit;
  }
}

TEST(PlaneHeader, RandomForgeriesGiveAnErrorOrAHeaderThatReadsBack) {
  std::mt19937 rng(9);
  for (int round = 0; round < 20000; ++round) {
    const std::string bytes = Forged([&](std::string& body) {
      for (unsigned edits = 1 + rng() % 4; edits > 0; --edits) {
        const size_t at = rng() % body.size();
        switch (rng() % 4) {
          case 0:
            body[at] = static_cast<char>(rng());
            break;
          case 1:
            body.resize(at);
            break;
          case 2:
            body.insert(at, std::string(1 + rng() % 40, static_cast<char>(rng())));
            break;
          case 3:
            body[at] = static_cast<char>(rng() % 2 ? 0xff : 0);
            break;
        }
        if (body.empty()) body = "x";
      }
    });
    const absl::StatusOr<PlaneHeader> header = DecodePlaneHeader(bytes);
    if (header.ok()) {
      EXPECT_EQ(EncodePlaneHeader(*header), bytes);
    }
  }
}

TEST(PlaneHeader, OtherMagicAndVersionsAreNamed) {
  std::string bytes = EncodePlaneHeader(Example().header);
  std::string other = bytes;
  other[0] = 'X';
  EXPECT_EQ(DecodePlaneHeader(other).status().code(), absl::StatusCode::kFailedPrecondition);
  for (const char version : {0, 3}) {
    bytes[8] = version;
    const absl::Status status = DecodePlaneHeader(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(absl::StrCat("version ", static_cast<int>(version))), HasSubstr("versions 1 to 2")));
  }
}

TEST(PlaneHeader, HostileLengthsAllocateNothing) {
  const std::string bytes = EncodePlaneHeader(Example().header);
  ExpectDataLoss(Put32(bytes, 10, 0xffffffff), "body length");
  ExpectDataLoss(Put32(bytes, 10, 64 << 20), "truncated");
  const size_t count_at = Example().header.tenant.size() + kTenantLengthAt + 4 + 6 * 4 + 2 * 8;
  for (uint32_t count : {0u, 1u, 3u, 0x20000002u, 0x80000002u, 0xffffffffu}) {
    ExpectDataLoss(Forged([&](std::string& body) { body = Put32(body, count_at, count); }), "does not fit");
  }
  for (uint32_t length : {0u, 3u, 5u, 200u, 0xffffffffu}) {
    ExpectDataLoss(Forged([&](std::string& body) { body = Put32(body, kTenantLengthAt, length); }));
  }
  ExpectDataLoss(Forged([&](std::string& body) { body.clear(); }), "does not fit");
  ExpectDataLoss(Forged([&](std::string& body) { body += '\0'; }), "does not fit");
}

TEST(PlaneHeader, ImpossibleValuesWithARightChecksumAreRefused) {
  const auto with = [](auto change) {
    PlaneHeader header = Example().header;
    change(header);
    return EncodePlaneHeader(header);
  };
  ExpectDataLoss(Forged([](std::string& b) { b[0] = 0; }), "kind 0");
  ExpectDataLoss(Forged([](std::string& b) { b[0] = 4; }), "kind 4");
  for (char codec : {0, 3, 4, 5, 6}) ExpectDataLoss(Forged([&](std::string& b) { b[1] = codec; }), "codec id");
  ExpectDataLoss(Forged([](std::string& b) { b[2] = 2; }), "parent flag");
  ExpectDataLoss(Forged([](std::string& b) { b[3] = 1; }), "reserved");
  ExpectDataLoss(with([](PlaneHeader& h) { h.has_parent = false; }), "parent of a first block");
  ExpectDataLoss(with([](PlaneHeader& h) { h.tenant = std::string(257, 't'); }), "tenant length");
  ExpectDataLoss(with([](PlaneHeader& h) { h.shape.layers = 0; }), "layers");
  ExpectDataLoss(with([](PlaneHeader& h) { h.shape.kv_heads = -1; }), "kv_heads");
  ExpectDataLoss(with([](PlaneHeader& h) { h.shape.head_dim = 33; }), "head_dim");
  ExpectDataLoss(with([](PlaneHeader& h) { h.block_tokens = 0; }), "block_tokens");
  ExpectDataLoss(with([](PlaneHeader& h) { h.block_tokens = 1 << 30; }), "block_tokens");
  ExpectDataLoss(with([](PlaneHeader& h) { h.tokens = 0; }), "tokens");
  ExpectDataLoss(with([](PlaneHeader& h) { h.tokens = 65; }), "tokens");
  ExpectDataLoss(with([](PlaneHeader& h) { h.tokens = -1; }), "tokens");
  ExpectDataLoss(with([](PlaneHeader& h) { h.base_position = -1; }), "base_position");
  ExpectDataLoss(with([](PlaneHeader& h) { ++h.payload_bytes; }), "payload_bytes");
  ExpectDataLoss(with([](PlaneHeader& h) { h.sections[0].bytes -= 64; }), "payload_bytes");
}

TEST(PlaneHeader, ItsOwnPlanePassesTheCheck) {
  for (const PlaneKind kind : kPlaneKinds) {
    const Example e(kind);
    EXPECT_TRUE(CheckPlaneHeader(e.header, e.layout, e.identity, e.chain[1], kind).ok());
  }
}

TEST(PlaneHeader, TheCheckNamesTheFieldThatDiffers) {
  const Example e;
  const auto expect = [&](auto change, const std::string& field) {
    PlaneHeader header = e.header;
    change(header);
    const absl::Status status =
        CheckPlaneHeader(header, e.layout, e.identity, e.chain[1], PlaneKind::kDistant, &e.chain[0]);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr("plane header: " + field + " is "));
  };
  expect([&](PlaneHeader& h) { h.key = e.chain[0]; }, "block key");
  expect([](PlaneHeader& h) { h.kind = PlaneKind::kProximal; }, "plane");
  expect([&](PlaneHeader& h) { h.root = e.chain[1]; }, "root");
  expect([](PlaneHeader& h) { h.tenant = "evil"; }, "tenant");
  expect([](PlaneHeader& h) { h.model_fingerprint[5] ^= 1; }, "model fingerprint");
  expect([](PlaneHeader& h) { h.plan_id[5] ^= 1; }, "plan id");
  expect([](PlaneHeader& h) { h.shape.layers = 4; }, "shape");
  expect([](PlaneHeader& h) { h.shape.kv_heads = 4; }, "shape");
  expect([](PlaneHeader& h) { h.shape.head_dim = 64; }, "shape");
  expect([](PlaneHeader& h) { h.near_codec = Codec::kFp16; }, "codec");
  expect([](PlaneHeader& h) { h.block_tokens = 128; }, "block_tokens");
  expect([](PlaneHeader& h) { h.shard = 1; }, "shard");
  expect([](PlaneHeader& h) { h.payload_bytes = 0; }, "payload");
  expect([](PlaneHeader& h) { h.sections.pop_back(); }, "payload");
  expect([](PlaneHeader& h) { std::swap(h.sections[0], h.sections[1]); }, "section 0");
}

TEST(PlaneHeader, AFlippedByteInAnySectionIsFoundAndTheSectionNamed) {
  for (const PlaneKind kind : kPlaneKinds) {
    const Example e(kind);
    EXPECT_TRUE(VerifyPayload(e.header, AsBytes(e.payload)).ok());
    const std::vector<Section>& sections = e.layout.sections(kind);
    for (size_t i = 0; i < sections.size(); ++i) {
      for (const size_t at : {size_t{0}, sections[i].bytes / 2, sections[i].bytes - 1}) {
        std::string payload = e.payload;
        payload[sections[i].offset_bytes + at] ^= 0x10;
        const absl::Status status = VerifyPayload(e.header, AsBytes(payload));
        EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
        EXPECT_THAT(std::string(status.message()),
                    AllOf(HasSubstr(absl::StrCat("section ", i, " ")), HasSubstr(PlaneKindName(kind))));
      }
    }
  }
}

TEST(PlaneHeader, APayloadOfAnotherLengthIsDataLoss) {
  const Example e;
  EXPECT_EQ(VerifyPayload(e.header, AsBytes(e.payload + "x")).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(VerifyPayload(e.header, AsBytes(e.payload).first(e.payload.size() - 1)).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(VerifyPayload(e.header, {}).code(), absl::StatusCode::kDataLoss);
}

TEST(PlaneHeader, AHandMadeHeaderWhoseSectionsDoNotFitIsDataLoss) {
  Example e;
  e.header.sections[0].bytes = UINT32_MAX;
  EXPECT_EQ(VerifyPayload(e.header, AsBytes(e.payload)).code(), absl::StatusCode::kDataLoss);
  e.header.sections.clear();
  EXPECT_EQ(VerifyPayload(e.header, AsBytes(e.payload)).code(), absl::StatusCode::kDataLoss);
}

TEST(PlaneHeader, AnEmptyPlaneVerifies) {
  const Layout layout = *Layout::Create(*Plan::Identity({2, 2, 32}, {}, {}), 64);
  PlaneHeader header = Example().header;
  header.kind = PlaneKind::kProximal;
  header.payload_bytes = 0;
  header.sections = SumSections(layout, PlaneKind::kProximal, {});
  EXPECT_TRUE(header.sections.empty());
  EXPECT_TRUE(VerifyPayload(header, {}).ok());
}

}  // namespace
}  // namespace perigee::pod
