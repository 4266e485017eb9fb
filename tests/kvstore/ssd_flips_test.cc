// Bits that a disk turned over, anywhere in a closed store's folder: opened again it says what is wrong, naming the
// file, or serves right bytes and counted misses. It never crashes and never serves a wrong byte.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "base/file.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPlanes = 48;
constexpr uint64_t kFirstDeleted = 20, kLastDeleted = 27;
constexpr uint64_t kSegmentBytes = 96 << 10;

TestPlane PlaneOf(uint64_t n) { return MakePlane(n, 2000 + n % 4 * 3000, pod::kPlaneKinds[n % 3]); }
bool Deleted(uint64_t n) { return n >= kFirstDeleted && n <= kLastDeleted; }

// Several segments; an index whose first part is in SST files and whose last part, with the deletes, is in the WAL.
void Build(const std::string& folder) {
  FakeSlab slab(1 << 20);
  for (const auto& [begin, end] : {std::pair<uint64_t, uint64_t>{0, 30}, {30, kPlanes}}) {
    auto store = OpenStore(slab, folder, 0, kSegmentBytes);
    for (uint64_t n = begin; n < end; ++n) ASSERT_TRUE(Write(*store, PlaneOf(n), Durability::kSynced).ok());
    if (begin == 0) continue;
    std::vector<pod::BlockKey> keys;
    for (uint64_t n = kFirstDeleted; n <= kLastDeleted; ++n) keys.push_back(PlaneOf(n).id.key);
    ASSERT_EQ(*store->Delete(keys), keys.size());
  }
}

struct Where {
  const char* name;
  bool (*matches)(const fs::path& path);
  int seeds;
};

std::ostream& operator<<(std::ostream& out, const Where& where) { return out << where.name; }

class FlippedBits : public testing::TestWithParam<Where> {};

TEST_P(FlippedBits, AreAnErrorThatNamesTheFileOrCountedMissesAndNeverWrongBytes) {
  TempFolder master;
  Build(master.path());
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(master.path())) {
    const fs::path relative = fs::relative(entry.path(), master.path());
    if (entry.is_regular_file() && entry.file_size() > 0 && GetParam().matches(relative)) files.push_back(relative);
  }
  std::sort(files.begin(), files.end());
  ASSERT_FALSE(files.empty()) << "nothing to damage: the folder has another shape now";

  uint64_t refused = 0, lost = 0, missed = 0, served = 0;
  for (int seed = 1; seed <= GetParam().seeds; ++seed) {
    std::mt19937_64 random(static_cast<uint64_t>(seed));
    TempFolder folder;
    fs::copy(master.path(), folder.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    std::string damage;
    std::set<std::string> damaged;
    for (uint64_t flips = 1 + random() % 6; flips > 0; --flips) {
      const fs::path file = files[random() % files.size()];
      std::string bytes = *ReadFile((folder.path() / file).string());
      const size_t at = random() % bytes.size();
      bytes[at] ^= static_cast<char>(1 << random() % 8);
      std::ofstream(folder.path() / file, std::ios::binary | std::ios::trunc) << bytes;
      absl::StrAppend(&damage, " ", file.string(), "@", at);
      damaged.insert(file.filename().string());
    }
    SCOPED_TRACE(absl::StrCat("seed ", seed, ":", damage));

    FakeSlab slab(256 << 10);
    StoreOptions options;
    options.ssd =
        SsdOptions{.path = folder.path(), .segment_bytes = kSegmentBytes, .reserve_bytes = 0, .scrub_bytes_per_s = 0};
    auto store = Store::Open(options, slab.span());
    const StoreStats at_start = store.ok() ? (*store)->Stats() : StoreStats{};
    if (!store.ok() || at_start.ssd.health != SsdHealth::kOk) {
      const std::string said = store.ok() ? at_start.ssd.message : store.status().ToString();
      EXPECT_TRUE(absl::StrContains(said, folder.path())) << said;
      ++(store.ok() ? lost : refused);
      continue;
    }
    uint64_t misses = 0;
    for (uint64_t n = 0; n < kPlanes; ++n) {
      const absl::Status read = ReadAndCompare(**store, PlaneOf(n));
      EXPECT_TRUE(read.ok() || absl::IsNotFound(read)) << n << ": " << read;
      if (Deleted(n)) {
        EXPECT_FALSE(read.ok()) << "plane " << n << " was deleted and is back";
      } else {
        ++(read.ok() ? served : misses);
      }
    }
    const StoreStats stats = (*store)->Stats();
    EXPECT_EQ(misses, stats.ssd.lost_at_start + stats.checksum_failures) << "planes were lost and not counted";
    missed += misses;
    // It goes on, also after another start.
    EXPECT_TRUE(Write(**store, PlaneOf(100), Durability::kSynced).ok());
    store->reset();
    store = Store::Open(options, slab.span());
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_TRUE(ReadAndCompare(**store, PlaneOf(100)).ok());
    for (uint64_t n = 0; n < kPlanes; ++n) {
      const absl::Status read = ReadAndCompare(**store, PlaneOf(n));
      EXPECT_TRUE(read.ok() || absl::IsNotFound(read)) << n << ": " << read;
    }
  }
  std::printf(
      "%d damaged folders: %llu refused, %llu without their disk, the others served %llu planes and missed %llu\n",
      GetParam().seeds, static_cast<unsigned long long>(refused), static_cast<unsigned long long>(lost),
      static_cast<unsigned long long>(served), static_cast<unsigned long long>(missed));
}

bool InSegments(const fs::path& path) { return *path.begin() == "segments"; }
bool IsSst(const fs::path& path) { return path.extension() == ".sst"; }
bool IsWal(const fs::path& path) { return path.extension() == ".log"; }
bool IsManifest(const fs::path& path) { return absl::StartsWith(path.filename().string(), "MANIFEST"); }
bool IsOther(const fs::path& path) { return !InSegments(path) && !IsSst(path) && !IsWal(path) && !IsManifest(path); }

INSTANTIATE_TEST_SUITE_P(In, FlippedBits,
                         testing::Values(Where{"Segments", InSegments, 60}, Where{"SstFiles", IsSst, 60},
                                         Where{"TheWal", IsWal, 60}, Where{"TheManifest", IsManifest, 40},
                                         Where{"OtherFiles", IsOther, 40}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace perigee::kvstore
