#include "kvstore/ssd/segment_record.h"

#include <gtest/gtest.h>

#include <random>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

struct Record {
  TestPlane plane;
  std::string head;
  std::vector<std::byte> padded;
};

Record MakeRecord() {
  Record r{.plane = MakePlane(7, 5000), .head = {}, .padded = {}};
  r.head = EncodeRecordHead(r.plane.id, r.plane.encoded(), r.plane.payload.size(), 1234567, 0x123456);
  r.padded = r.plane.payload;
  r.padded.resize(8192);
  return r;
}

TEST(SegmentRecord, RoundTrips) {
  const Record r = MakeRecord();
  EXPECT_EQ(r.head.size(), 4096u);
  const auto got = VerifyRecord(r.head, r.padded, r.plane.id, 5000);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->header, r.plane.header);
  EXPECT_EQ(got->encoded_header, r.plane.encoded());
  EXPECT_EQ(got->created_unix_us, 1234567);
  EXPECT_EQ(got->ttl_s, 0x123456u);
}

TEST(SegmentRecord, EveryFlippedBitOfTheHeadIsFound) {
  Record r = MakeRecord();
  for (size_t i = 0; i < r.head.size() * 8; ++i) {
    r.head[i / 8] ^= static_cast<char>(1 << (i % 8));
    ASSERT_FALSE(DecodeRecordHead(r.head, r.plane.id, 5000).ok()) << "bit " << i;
    r.head[i / 8] ^= static_cast<char>(1 << (i % 8));
  }
}

TEST(SegmentRecord, EveryFlippedByteOfPayloadAndPaddingIsFound) {
  Record r = MakeRecord();
  for (size_t i = 0; i < r.padded.size(); ++i) {
    r.padded[i] ^= std::byte{0x10};
    ASSERT_FALSE(VerifyRecord(r.head, r.padded, r.plane.id, 5000).ok()) << "byte " << i;
    r.padded[i] ^= std::byte{0x10};
  }
}

TEST(SegmentRecord, TruncatedAtAnyLengthIsRefused) {
  const Record r = MakeRecord();
  for (size_t n = 0; n < r.head.size(); ++n) {
    ASSERT_FALSE(DecodeRecordHead(absl::string_view(r.head).substr(0, n), r.plane.id, 5000).ok()) << n;
  }
  for (size_t n = 0; n < r.padded.size(); n += 97) {
    ASSERT_FALSE(VerifyRecord(r.head, std::span(r.padded).first(n), r.plane.id, 5000).ok()) << n;
  }
}

TEST(SegmentRecord, AnotherPlanesRecordIsRefused) {
  const Record r = MakeRecord();
  EXPECT_FALSE(DecodeRecordHead(r.head, PlaneId{TestKey(8), r.plane.id.kind}, 5000).ok());
  EXPECT_FALSE(DecodeRecordHead(r.head, PlaneId{r.plane.id.key, pod::PlaneKind::kSummary}, 5000).ok());
  EXPECT_FALSE(DecodeRecordHead(r.head, r.plane.id, 5001).ok());
}

TEST(SegmentRecord, IndexEntriesOfOlderVersionsAreReadWithoutWhatTheyDoNotSay) {
  const Record r = MakeRecord();
  const std::string key = EncodeIndexKey(r.plane.id);
  for (const uint8_t version : {1, 2}) {
    ByteWriter w;
    w.U8(version);
    w.U64(3);                       // segment
    w.U64(8192);                    // offset
    w.U32(4096);                    // head
    w.U64(5000);                    // payload
    w.U64(99);                      // created
    if (version == 2) w.U32(3600);  // time to live
    w.U64(448);                     // base position
    w.U32(64);                      // tokens
    w.Counted("tenant-a");
    if (version == 2) w.Counted(AsView(TestKey(6).digest));
    w.U32(Crc32c(AsBytes(w.bytes()), Crc32c(AsBytes(key))));
    const auto entry = DecodeIndexEntry(key, w.Take());
    ASSERT_TRUE(entry.ok()) << entry.status();
    PlaneMeta expected = MetaOf(r.plane.header, 99, version == 2 ? 3600 : 0);
    if (version == 2) expected.parent = TestKey(6);
    ASSERT_TRUE(expected.group.has_value());
    expected.group = std::nullopt;
    EXPECT_EQ(entry->meta, expected);
    EXPECT_EQ(entry->meta.replicas, 1);
    EXPECT_EQ(entry->location.offset, 8192u);
  }
}

TEST(SegmentRecord, AnIndexEntryKeepsGroupAndReplicasAndRefusesImpossibleOnes) {
  const Record r = MakeRecord();
  const SsdLocation location{.segment = 3, .offset = 8192, .head_bytes = 4096, .payload_bytes = 5000};
  PlaneMeta meta = MetaOf(r.plane.header, 99, 0, 3);
  EXPECT_EQ(meta.group, GroupOf(r.plane.id.key));
  const std::string key = EncodeIndexKey(r.plane.id);
  const auto read = [&] { return DecodeIndexEntry(key, EncodeIndexValue(r.plane.id, location, meta)); };
  EXPECT_EQ(read()->meta, meta);
  meta.group = std::nullopt;
  EXPECT_EQ(read()->meta, meta);
  for (const uint8_t replicas : {0, 9, 255}) {
    meta.replicas = replicas;
    EXPECT_EQ(read().status().code(), absl::StatusCode::kDataLoss) << static_cast<int>(replicas);
  }
}

TEST(SegmentRecord, RandomMutationsOfHeadAndIndexEntryNeverPassOrCrash) {
  const Record r = MakeRecord();
  const SsdLocation location{.segment = 3, .offset = 8192, .head_bytes = 4096, .payload_bytes = 5000};
  PlaneMeta meta = MetaOf(r.plane.header, 99, 3600, 2);
  meta.parent = TestKey(6);
  const std::string key = EncodeIndexKey(r.plane.id);
  const std::string value = EncodeIndexValue(r.plane.id, location, meta);
  const auto good = DecodeIndexEntry(key, value);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->id, r.plane.id);
  EXPECT_EQ(good->location, location);
  EXPECT_EQ(good->meta, meta);

  std::mt19937_64 random(5);
  const auto mutate = [&](std::string bytes) {
    for (int n = 1 + static_cast<int>(random() % 4); n > 0; --n) {
      switch (random() % 4) {
        case 0:
          if (!bytes.empty()) bytes[random() % bytes.size()] ^= static_cast<char>(1 + random() % 255);
          break;
        case 1:
          bytes.resize(random() % (bytes.size() + 1));
          break;
        case 2:
          bytes.insert(random() % (bytes.size() + 1), 1 + random() % 16, static_cast<char>(random()));
          break;
        case 3:
          for (size_t i = 0, at = random() % (bytes.size() + 1); i < 8 && at + i < bytes.size(); ++i)
            bytes[at + i] = '\xff';
          break;
      }
    }
    return bytes;
  };
  for (int i = 0; i < 20000; ++i) {
    const std::string head = mutate(r.head);
    if (head != r.head) {
      ASSERT_FALSE(DecodeRecordHead(head, r.plane.id, 5000).ok());
    }
    const std::string k = mutate(key), v = mutate(value);
    if (k != key) {
      ASSERT_FALSE(DecodeIndexEntry(k, value).ok());
    }
    if (v != value) {
      ASSERT_FALSE(DecodeIndexEntry(key, v).ok());
    }
  }
}

}  // namespace
}  // namespace perigee::kvstore
