// Who may have a store's folder: one process at a time, and only of a version that knows all that is in it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>

#include <fstream>
#include <map>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/file.h"
#include "kvstore/client.h"
#include "planes.h"
#include "server_process.h"

namespace perigee::kvstore {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

// Of every file below the folder but those of RocksDB, which rewrites its own when it is opened.
std::map<std::string, std::string> Contents(const std::string& folder, bool with_index) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = fs::relative(entry.path(), folder).string();
    if (!with_index && name.starts_with("index")) continue;
    out[name] = entry.is_regular_file() ? *ReadFile(entry.path().string()) : "";
  }
  return out;
}

absl::Status OpenStatus(const std::string& folder) {
  FakeSlab slab(1 << 20);
  StoreOptions options;
  options.ssd = SsdOptions{.path = folder, .reserve_bytes = 0};
  return Store::Open(options, slab.span()).status();
}

TEST(Folder, OfTwoServersTheSecondRefusesAndTheFirstGoesOn) {
  TempFolder folder;
  transport::Options tcp;
  tcp.transports = "tcp";
  const auto engine = transport::Context::Create(tcp);
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto first = std::make_unique<ServerProcess>(0, 1 << 20, folder.path());
  const auto client = StoreClient::Connect(first->said(), engine->get(), {});
  ASSERT_TRUE(client.ok()) << first->said() << ": " << client.status();
  const auto write = [&](uint64_t n) {
    const TestPlane plane = MakePlane(n, 5000);
    auto batch = (*client)->Reserve(std::vector<PlaneRequest>{plane.request()});
    if (!batch.ok()) return batch.status();
    const absl::Status put = batch->Put(0, 0, plane.payload);
    if (!put.ok()) return put;
    const auto statuses = batch->Commit(std::vector<pod::PlaneHeader>{plane.header}, Durability::kSynced);
    return statuses.ok() ? (*statuses)[0] : statuses.status();
  };
  ASSERT_TRUE(write(1).ok());
  for (int attempt = 0; attempt < 2; ++attempt) {
    const ServerProcess second(0, 1 << 20, folder.path());
    EXPECT_THAT(second.said(), AllOf(HasSubstr("error"), HasSubstr("in use"), HasSubstr(folder.path())));
    EXPECT_TRUE(write(2 + static_cast<uint64_t>(attempt)).ok());
  }
  first->Kill();  // The dead keep nobody out.
  FakeSlab slab(1 << 20);
  const auto store = OpenStore(slab, folder.path());
  ASSERT_NE(store, nullptr);
  for (uint64_t n = 1; n <= 3; ++n) EXPECT_TRUE(ReadAndCompare(*store, MakePlane(n, 5000)).ok()) << n;
}

TEST(Folder, OfAFutureVersionIsRefusedWithBothVersionsAndNotOneByteIsTouched) {
  TempFolder folder;
  std::ofstream(folder.path() + "/FORMAT") << "perigee ssd tier 7\n";
  fs::create_directory(folder.path() + "/planes");  // It may look quite different inside.
  std::ofstream(folder.path() + "/planes/everything.bin") << "of version 7";
  const auto before = Contents(folder.path(), /*with_index=*/true);
  const absl::Status refused = OpenStatus(folder.path());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("version 7"), HasSubstr("version 1")));
  EXPECT_EQ(Contents(folder.path(), true), before);
}

TEST(Folder, AnIndexWithEntriesOfAFutureVersionIsRefusedWithBothVersionsAndNothingIsDropped) {
  TempFolder folder;
  std::vector<TestPlane> planes;
  for (uint64_t n = 0; n < 5; ++n) planes.push_back(MakePlane(n, 5000));
  {
    FakeSlab slab(1 << 20);
    ASSERT_TRUE(Write(*OpenStore(slab, folder.path()), planes).ok());
  }
  const std::string key = EncodeIndexKey(planes[2].id);
  const auto entries = [&](const std::function<void(rocksdb::DB&)>& change = {}) {
    rocksdb::DB* db = nullptr;
    EXPECT_TRUE(rocksdb::DB::Open({}, folder.path() + "/index", &db).ok());
    const std::unique_ptr<rocksdb::DB> owned(db);
    if (change) change(*db);
    std::map<std::string, std::string> out;
    const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator({}));
    for (it->SeekToFirst(); it->Valid(); it->Next()) out[it->key().ToString()] = it->value().ToString();
    return out;
  };
  std::string own;
  const auto before = entries([&](rocksdb::DB& db) {
    ASSERT_TRUE(db.Get({}, key, &own).ok());
    std::string future = own.substr(0, own.size() - 4) + "more";
    future[0] = 4;
    ByteWriter sum;
    sum.U32(Crc32c(AsBytes(future), Crc32c(AsBytes(key))));
    ASSERT_TRUE(db.Put({}, key, future + sum.Take()).ok());
  });
  const auto files = Contents(folder.path(), /*with_index=*/false);
  const absl::Status refused = OpenStatus(folder.path());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("version 4"), HasSubstr("up to version 3")));
  EXPECT_EQ(Contents(folder.path(), false), files);
  EXPECT_EQ(entries(), before);
  entries([&](rocksdb::DB& db) { ASSERT_TRUE(db.Put({}, key, own).ok()); });  // What the newer program could do.
  FakeSlab slab(1 << 20);
  const auto store = OpenStore(slab, folder.path());
  ASSERT_NE(store, nullptr);
  for (const TestPlane& plane : planes) EXPECT_TRUE(ReadAndCompare(*store, plane).ok());
}

TEST(Folder, ThatCannotBeThereIsAnErrorOfItsPathAndNotADiskThatBroke) {
  const absl::Status refused = OpenStatus("/proc/no/such");
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("/proc/no/such"));
}

TEST(Folder, WhoseFormatFileIsSomethingElseIsRefusedByNameAndUntouched) {
  TempFolder folder;
  std::ofstream(folder.path() + "/FORMAT") << "letters, 1998";
  const auto before = Contents(folder.path(), true);
  const absl::Status refused = OpenStatus(folder.path());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(folder.path() + "/FORMAT"));
  EXPECT_EQ(Contents(folder.path(), true), before);
}

}  // namespace
}  // namespace perigee::kvstore
