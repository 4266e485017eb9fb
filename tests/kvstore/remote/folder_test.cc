// The folder backend: what every backend must do, and what only folders suffer from.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "conformance.h"
#include "kvstore/remote/folder_tier.h"
#include "kvstore/remote/remote_object.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

FolderOptions OptionsFor(const std::string& path) {
  FolderOptions options;
  options.path = path;
  options.prefix = "test";
  options.create = true;
  options.max_object_bytes = kMaxObjectBytes;
  options.probe_interval = kProbeInterval;
  return options;
}

class FolderBackend : public TestBackend {
 public:
  absl::StatusOr<std::unique_ptr<RemoteTier>> Open(const RemoteLimits& limits) override {
    FolderOptions options = OptionsFor(share());
    options.limits = limits;
    fs::create_directories(share());
    return OpenFolderTier(options);
  }
  void Edit(const PlaneId& id, const std::function<void(std::string&)>& change) override {
    std::ifstream in(PathOf(id), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(in), {}};
    change(bytes);
    std::ofstream(PathOf(id), std::ios::binary) << bytes;
  }
  void AddStranger(const std::string& name) override {
    const std::string real = absl::StrReplaceAll(name, {{"PREFIX", "test"}});
    fs::create_directories(share() + "/test/123");
    std::ofstream(absl::StrCat(share(), "/test/123/", real)) << "stranger";
    std::ofstream(absl::StrCat(share(), "/test/", real)) << "stranger";
  }
  // A FIFO in the file's place: whoever opens it to read waits for a writer.
  void Stall(const PlaneId& id) override {
    stalled_ = PathOf(id);
    fs::rename(stalled_, stalled_ + ".away");
    ASSERT_EQ(::mkfifo(stalled_.c_str(), 0600), 0);
  }
  void Resume() override {
    if (stalled_.empty()) return;
    const UniqueFd writer(::open(stalled_.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    ASSERT_TRUE(writer);
    fs::rename(stalled_ + ".away", stalled_);
    stalled_.clear();
  }
  void GoAway() override { fs::rename(share(), share() + "-unmounted"); }
  void ComeBack() override { fs::rename(share() + "-unmounted", share()); }

 private:
  std::string share() const { return folder_.path() + "/share"; }
  std::string PathOf(const PlaneId& id) const {
    return absl::StrCat(share(), "/test/", ToHex(id.key.digest).substr(0, 3), "/", RemoteObjectName("test", id));
  }
  TempFolder folder_;
  std::string stalled_;
};

INSTANTIATE_TEST_SUITE_P(Folder, RemoteTierTest,
                         testing::Values(BackendParam{"folder", [] { return std::make_unique<FolderBackend>(); }}),
                         [](const auto&) { return "folder"; });

class FolderTierTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<RemoteTier>> Open(bool create) {
    FolderOptions options = OptionsFor(folder_.path());
    options.create = create;
    return OpenFolderTier(options);
  }
  TempFolder folder_;
};

TEST_F(FolderTierTest, AFolderThatIsNotMountedIsRefusedAndNothingIsMadeInIt) {
  const auto tier = Open(false);
  EXPECT_EQ(tier.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(tier.status().message()), HasSubstr("mount the share"));
  EXPECT_TRUE(fs::is_empty(folder_.path()));
  EXPECT_TRUE(Open(true).ok());
  EXPECT_TRUE(Open(false).ok()) << "made once, it is recognised";
}

TEST_F(FolderTierTest, APutIntoAShareThatWentAwayMakesNothingBelowTheMountPoint) {
  auto tier = Open(true);
  ASSERT_TRUE(tier.ok());
  fs::remove_all(folder_.path() + "/test");
  EXPECT_EQ(Put(**tier, MakePlane(1, 5000)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(GetAndCompare(**tier, MakePlane(1, 5000)).code(), absl::StatusCode::kUnavailable)
      << "not a miss: nobody knows";
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(FolderTierTest, AFolderOfAnotherVersionIsRefusedAndLeftAlone) {
  ASSERT_TRUE(Open(true).ok());
  std::ofstream(folder_.path() + "/test/FORMAT") << "perigee.remote 2\n";
  const auto tier = Open(true);
  EXPECT_EQ(tier.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(tier.status().message()), HasSubstr("perigee.remote 2"));
}

TEST_F(FolderTierTest, PutsLeaveNoTemporaryFilesAndOldLeftoversGo) {
  {
    auto tier = Open(true);
    for (uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(Put(**tier, MakePlane(i, 5000)).ok());
  }
  const std::string temporary = folder_.path() + "/test/tmp";
  EXPECT_TRUE(fs::is_empty(temporary));
  std::ofstream(temporary + "/old") << "x";
  std::ofstream(temporary + "/new") << "x";
  fs::last_write_time(temporary + "/old", fs::file_time_type::clock::now() - std::chrono::hours(30));
  ASSERT_TRUE(Open(false).ok());
  EXPECT_FALSE(fs::exists(temporary + "/old"));
  EXPECT_TRUE(fs::exists(temporary + "/new")) << "another store may be writing it";
}

TEST_F(FolderTierTest, AFullFileSystemRefusesPutsSaysSoAndServesOn) {
  if (::mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, "size=80m") != 0) {
    GTEST_SKIP() << "LOUD: cannot mount a small tmpfs here (" << std::strerror(errno)
                 << "); the full file system is NOT tested";
  }
  struct Unmount {
    const std::string path;
    ~Unmount() { EXPECT_EQ(::umount2(path.c_str(), MNT_DETACH), 0); }
  } unmount{folder_.path()};
  auto tier = Open(true);
  ASSERT_TRUE(tier.ok()) << tier.status();
  uint64_t stored = 0;
  absl::Status status;
  for (; stored < 40; ++stored) {
    status = Put(**tier, MakePlane(stored, 4 << 20)).status();
    if (!status.ok()) break;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  ASSERT_GT(stored, 10u);
  EXPECT_TRUE((*tier)->health().full);
  EXPECT_TRUE((*tier)->health().reachable);
  EXPECT_TRUE(fs::is_empty(folder_.path() + "/test/tmp"));
  for (uint64_t i = 0; i < stored; ++i) EXPECT_EQ(GetAndCompare(**tier, MakePlane(i, 4 << 20)), absl::OkStatus());
  EXPECT_EQ(List(**tier, "", 100)->planes.size(), stored);
  for (uint64_t i = 0; i < stored; ++i) EXPECT_EQ(Delete(**tier, {MakePlane(i, 1).id})[0], absl::OkStatus());
  EXPECT_TRUE(Put(**tier, MakePlane(100, 4 << 20)).ok());
  EXPECT_TRUE(Eventually([&] { return !(*tier)->health().full; }));
  tier->reset();
}

}  // namespace
}  // namespace perigee::kvstore
