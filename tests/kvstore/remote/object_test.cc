// Names and bytes of remote objects, without a backend.
#include <gtest/gtest.h>

#include <random>

#include "../planes.h"
#include "base/bytes.h"
#include "base/file.h"
#include "kvstore/remote/remote_object.h"

namespace perigee::kvstore {
namespace {

std::string RecordOf(const RemotePut& put) {
  const auto checked = CheckPut(put);
  EXPECT_TRUE(checked.ok()) << checked.status();
  std::string record(checked->record_bytes, '\xA5');
  EXPECT_EQ(WriteRecord(put, *checked, {reinterpret_cast<std::byte*>(record.data()), record.size()}), absl::OkStatus());
  return record;
}

TEST(RemoteObject, NameAndBytesAreThoseOfTheGoldenFile) {
  const auto header = ReadFile(PERIGEE_SOURCE_DIR "/tests/pod/testdata/plane_header_v1.bin");
  const auto golden = ReadFile(PERIGEE_SOURCE_DIR "/tests/kvstore/remote/testdata/object_v1.txt");
  ASSERT_TRUE(header.ok() && golden.ok());
  const auto decoded = pod::DecodePlaneHeader(*header);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  std::vector<std::byte> payload(decoded->payload_bytes);
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i * 31 + (i >> 8));
  const PlaneId id{decoded->key, decoded->kind};
  const std::string record =
      RecordOf({.id = id, .encoded_header = *header, .payload = payload, .created_unix_us = 1'700'000'000'123'456});
  EXPECT_EQ(absl::StrCat("name ", RemoteObjectName("golden", id), "\nbytes ", record.size(), "\nsha256 ",
                         ToHex(Sha256(record)), "\n"),
            *golden);
}

TEST(RemoteObject, NamesComeBackAndNoOtherNameIsTakenForOne) {
  for (const pod::PlaneKind kind : pod::kPlaneKinds) {
    const PlaneId id{TestKey(3), kind};
    const std::string name = RemoteObjectName("store-1", id);
    EXPECT_EQ(ParseRemoteObjectName("store-1", name), id);
    EXPECT_EQ(ParseRemoteObjectName("store", name), std::nullopt);
    EXPECT_EQ(ParseRemoteObjectName("store-12", name), std::nullopt);
    EXPECT_EQ(ParseRemoteObjectName("store-1", name + "x"), std::nullopt);
    std::string upper = name;
    for (char& c : upper) c = c >= 'a' && c <= 'f' ? static_cast<char>(c - 32) : c;
    EXPECT_EQ(ParseRemoteObjectName("store-1", upper), std::nullopt);
    for (size_t n = 0; n < name.size(); ++n) {
      EXPECT_EQ(ParseRemoteObjectName("store-1", name.substr(0, n)), std::nullopt) << n;
    }
  }
}

TEST(RemoteObject, PrefixesThatAreNoNamesEverywhereAreRefused) {
  for (const char* good : {"a", "store-1", "A_b-9"}) EXPECT_TRUE(CheckRemotePrefix(good).ok()) << good;
  for (const std::string& bad : {std::string(), std::string("a/b"), std::string(".."), std::string("a.b"),
                                 std::string("a b"), std::string(65, 'a'), std::string("a\0b", 3)}) {
    EXPECT_EQ(CheckRemotePrefix(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(RemoteObject, NoMutationOfARecordIsDeliveredAsThePlane) {
  const TestPlane plane = MakePlane(7, 5000);
  const std::string record =
      RecordOf({.id = plane.id, .encoded_header = plane.encoded(), .payload = plane.payload, .created_unix_us = 1});
  std::vector<std::byte> got(5000);
  const RemoteGet get{plane.id, 5000, 0, got};
  ASSERT_TRUE(DeliverRecord(get, record).ok());
  ASSERT_EQ(got, plane.payload);
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string mutated = record;
    switch (random() % 3) {
      case 0:
        mutated[random() % mutated.size()] ^= static_cast<char>(1 + random() % 255);
        break;
      case 1:
        mutated.resize(random() % mutated.size());
        break;
      case 2:
        mutated.insert(random() % 100, 1 + random() % 16, static_cast<char>(random()));
        break;
    }
    ASSERT_FALSE(DeliverRecord(get, mutated).ok());
  }
}

}  // namespace
}  // namespace perigee::kvstore
