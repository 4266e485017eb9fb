// Both engines under the SSD tier move the same bytes and report the same errors.
#include "kvstore/ssd/file_layer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kvstore/ssd/aligned_buffer.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using Kind = FileTransfer::Kind;

struct Engine {
  const char* name;
  IoEngineKind kind;
  bool direct;
  bool registered;
};

class FileLayerTest : public testing::TestWithParam<Engine> {
 protected:
  void SetUp() override {
    auto files = OpenRealFiles({.engine = GetParam().kind,
                                .depth = 4,
                                .direct = GetParam().direct,
                                .memory = GetParam().registered ? memory_.span() : std::span<std::byte>()});
    if (!files.ok()) GTEST_SKIP() << "LOUD: " << files.status() << "; this engine is NOT tested";
    files_ = *std::move(files);
  }
  TempFolder folder_;
  AlignedBuffer memory_{size_t{4} << 20};
  std::unique_ptr<FileLayer> files_;
};

TEST_P(FileLayerTest, ManyTransfersInTwoPiecesComeBackAsTheyWere) {
  auto file = files_->Open(folder_.path() + "/a", /*create=*/true);
  ASSERT_TRUE(file.ok()) << file.status();
  constexpr size_t kRecords = 64, kHead = 4096, kPayload = 16384;
  const std::span<std::byte> all = memory_.span().first(kRecords * (kHead + kPayload));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::byte>(i * 7 + i / 4096);
  const std::vector<std::byte> written(all.begin(), all.end());
  const auto transfers = [&](Kind kind) {
    std::vector<FileTransfer> out;
    for (size_t i = 0; i < kRecords; ++i) {
      const size_t at = i * (kHead + kPayload);
      // In two pieces and in one, by turns.
      const size_t head = i % 2 == 0 ? kHead : 0;
      out.push_back({.file = file->get(),
                     .kind = kind,
                     .offset_bytes = at,
                     .first = all.subspan(at, head),
                     .second = all.subspan(at + head, kHead + kPayload - head)});
    }
    return out;
  };
  ASSERT_TRUE(RunTransfers(*files_, transfers(Kind::kWrite)).ok());
  ASSERT_TRUE(RunTransfers(*files_, {FileTransfer{.file = file->get(), .kind = Kind::kSync}}).ok());
  EXPECT_EQ(*(*file)->SizeBytes(), all.size());
  std::fill(all.begin(), all.end(), std::byte{0});
  ASSERT_TRUE(RunTransfers(*files_, transfers(Kind::kRead)).ok());
  EXPECT_TRUE(std::equal(all.begin(), all.end(), written.begin()));
}

TEST_P(FileLayerTest, ErrorsSayWhatAndWhere) {
  const std::string path = folder_.path() + "/a";
  EXPECT_EQ(files_->Open(path, /*create=*/false).status().code(), absl::StatusCode::kNotFound);
  auto file = files_->Open(path, /*create=*/true);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(files_->Open(path, /*create=*/true).status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE((*file)->Truncate(8192).ok());
  const absl::Status read = RunTransfers(
      *files_, {FileTransfer{.file = file->get(), .offset_bytes = 4096, .second = memory_.span().first(8192)}});
  EXPECT_EQ(read.code(), absl::StatusCode::kDataLoss) << read;
  EXPECT_NE(std::string(read.message()).find(path), std::string::npos);
  ASSERT_TRUE(files_->Unlink(path).ok());
  EXPECT_TRUE(RunTransfers(*files_, {FileTransfer{.file = file->get(), .second = memory_.span().first(8192)}}).ok())
      << "an open file outlives its name";
  EXPECT_EQ(files_->Unlink(path).code(), absl::StatusCode::kNotFound);
}

INSTANTIATE_TEST_SUITE_P(Engines, FileLayerTest,
                         testing::Values(Engine{"Uring", IoEngineKind::kUring, true, false},
                                         Engine{"UringRegistered", IoEngineKind::kUring, true, true},
                                         Engine{"UringBuffered", IoEngineKind::kUring, false, false},
                                         Engine{"Threads", IoEngineKind::kThreads, true, false},
                                         Engine{"ThreadsBuffered", IoEngineKind::kThreads, false, false}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace perigee::kvstore
