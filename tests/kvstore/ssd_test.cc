// What the SSD tier promises: committed planes survive restarts and kills, wrong bytes are found, a full or short disk
// is not fatal.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <fstream>

#include "base/file.h"
#include "kvstore/ssd/faulty_files.h"
#include "kvstore/ssd/ssd_tier.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::vector<fs::path> Segments(const std::string& folder) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(folder + "/segments")) out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

void FlipByte(const fs::path& path, uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ 0x40);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
  ASSERT_TRUE(file.good());
}

MissReason MissOf(Store& store, const PlaneId& id) {
  auto lease = store.Acquire({&id, 1}, absl::Seconds(1));
  EXPECT_TRUE(lease.ok() && !lease->planes[0].found);
  return lease->planes[0].miss.reason;
}

class SsdTest : public testing::Test {
 protected:
  TempFolder folder_;
  FakeSlab slab_{1 << 20};
};

TEST_F(SsdTest, CommittedPlanesSurviveARestartAndDeletedOnesStayDeleted) {
  std::vector<TestPlane> planes;
  for (uint64_t i = 0; i < 40; ++i) planes.push_back(MakePlane(i, 1000 + 517 * i, pod::kPlaneKinds[i % 3]));
  {
    auto store = OpenStore(slab_, folder_.path(), 0, 128 << 10);
    ASSERT_TRUE(Write(*store, planes).ok());
    ASSERT_TRUE(Write(*store, MakePlane(900, 5000), Durability::kDram).ok());
    EXPECT_EQ(*store->Delete({&planes[3].id.key, 1}), 1u);
    EXPECT_GT(store->Stats().ssd.segments, 3u);
  }
  auto store = OpenStore(slab_, folder_.path(), 0, 128 << 10);
  for (size_t i = 0; i < planes.size(); ++i) {
    if (i == 3) {
      EXPECT_EQ(MissOf(*store, planes[i].id), MissReason::kNeverStored);
    } else {
      EXPECT_TRUE(ReadAndCompare(*store, planes[i]).ok()) << i;
    }
  }
  EXPECT_EQ(MissOf(*store, MakePlane(900, 1).id), MissReason::kNeverStored) << "DRAM durability ends with the process";
  EXPECT_EQ(store->Stats().hits_ssd, 39u);
  const auto listed = store->List("", 0, "");
  ASSERT_EQ(listed->planes.size(), 39u);
  EXPECT_EQ(listed->planes[0].meta.tenant, "tenant-a");
  EXPECT_EQ(listed->planes[0].meta.tokens, 64);
}

TEST_F(SsdTest, KilledAfterAcknowledgingNothingIsLost) {
  int acknowledged[2];
  ASSERT_EQ(::pipe(acknowledged), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto store = OpenStore(slab_, folder_.path(), 0, 64 << 10);
    for (uint64_t i = 0;; ++i) {
      if (!Write(*store, MakePlane(i, 3000 + i), Durability::kSynced).ok()) ::_exit(1);
      if (::write(acknowledged[1], &i, sizeof(i)) != sizeof(i)) ::_exit(1);
    }
  }
  uint64_t last = 0;
  while (last < 25) ASSERT_EQ(::read(acknowledged[0], &last, sizeof(last)), static_cast<ssize_t>(sizeof(last)));
  ::kill(child, SIGKILL);
  int status;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  ::fcntl(acknowledged[0], F_SETFL, O_NONBLOCK);
  uint64_t more;
  while (::read(acknowledged[0], &more, sizeof(more)) == sizeof(more)) last = more;
  ::close(acknowledged[0]);
  ::close(acknowledged[1]);

  auto store = OpenStore(slab_, folder_.path(), 0, 64 << 10);
  for (uint64_t i = 0; i <= last; ++i) ASSERT_TRUE(ReadAndCompare(*store, MakePlane(i, 3000 + i)).ok()) << i;
  EXPECT_EQ(store->Stats().ssd.lost_at_start, 0u);
  ASSERT_TRUE(Write(*store, MakePlane(5000, 3000)).ok());
  EXPECT_TRUE(ReadAndCompare(*store, MakePlane(5000, 3000)).ok());
}

// A record of a 5000-byte payload: head [0, 4096) with the fixed part, the plane header and padding; payload; padding
// to 12288.
class FlippedByte : public testing::TestWithParam<uint64_t> {};

TEST_P(FlippedByte, IsDetectedCountedAndBecomesAMiss) {
  TempFolder folder;
  FakeSlab slab(1 << 20);
  const TestPlane bad = MakePlane(1, 5000), good = MakePlane(2, 5000);
  {
    auto store = OpenStore(slab, folder.path());
    ASSERT_TRUE(Write(*store, bad).ok());
    ASSERT_TRUE(Write(*store, good).ok());
  }
  FlipByte(Segments(folder.path())[0], GetParam());
  {
    auto store = OpenStore(slab, folder.path());
    EXPECT_EQ(MissOf(*store, bad.id), MissReason::kChecksum);
    EXPECT_EQ(store->Stats().checksum_failures, 1u);
    EXPECT_TRUE(ReadAndCompare(*store, good).ok());
    ASSERT_TRUE(Write(*store, bad).ok()) << "can be stored again";
    EXPECT_TRUE(ReadAndCompare(*store, bad).ok());
    EXPECT_EQ(*store->Delete({&bad.id.key, 1}), 1u);
  }
  auto store = OpenStore(slab, folder.path());
  EXPECT_EQ(MissOf(*store, bad.id), MissReason::kNeverStored) << "the quarantined record does not come back";
}

INSTANTIATE_TEST_SUITE_P(EveryClassOfPosition, FlippedByte,
                         testing::Values(0,     // magic
                                         9,     // version
                                         13,    // header length
                                         17,    // payload length
                                         25,    // payload offset
                                         41,    // created
                                         50,    // key
                                         80,    // kind
                                         82,    // reserved
                                         85,    // checksum
                                         90,    // plane header
                                         150,   // plane header
                                         4000,  // head padding
                                         4096,  // first payload byte
                                         6000,  // payload
                                         9095,  // last payload byte
                                         9096,  // first padding byte
                                         12287  // last padding byte
                                         ));

TEST_F(SsdTest, ACorruptSsdCopyIsFoundByAReportWhileDramServesOn) {
  const TestPlane p = MakePlane(1, 5000);
  auto store = OpenStore(slab_, folder_.path());
  ASSERT_TRUE(Write(*store, p).ok());
  FlipByte(Segments(folder_.path())[0], 5000);
  CorruptReport report = store->ReportCorrupt(p.id);
  EXPECT_FALSE(report.dram_copy_dropped);
  EXPECT_TRUE(report.ssd_copy_dropped);
  EXPECT_TRUE(report.still_stored);
  EXPECT_TRUE(ReadAndCompare(*store, p).ok());
}

TEST_F(SsdTest, ACorruptDramCopyIsReplacedByTheSsdCopyEvenUnderALease) {
  const TestPlane p = MakePlane(1, 5000);
  auto store = OpenStore(slab_, folder_.path());
  ASSERT_TRUE(Write(*store, p).ok());
  const auto lease = store->Acquire({&p.id, 1}, absl::Seconds(60));
  *reinterpret_cast<char*>(lease->planes[0].address + 100) ^= 1;
  const CorruptReport report = store->ReportCorrupt(p.id);
  EXPECT_TRUE(report.dram_copy_dropped);
  EXPECT_FALSE(report.ssd_copy_dropped);
  EXPECT_TRUE(report.still_stored);
  EXPECT_TRUE(ReadAndCompare(*store, p).ok());
  EXPECT_TRUE(store->Release(lease->id, 0, 0).ok());
}

TEST_F(SsdTest, DramEvictionKeepsTheSsdCopyAndPlanesOnSsdGoBeforeDramOnlyOnes) {
  FakeSlab slab(4096 * 8);
  auto store = OpenStore(slab, folder_.path());
  ASSERT_TRUE(Write(*store, MakePlane(0, 4096), Durability::kDram).ok());
  for (uint64_t i = 1; i < 20; ++i) ASSERT_TRUE(Write(*store, MakePlane(i, 4096)).ok());
  for (uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(ReadAndCompare(*store, MakePlane(i, 4096)).ok()) << i;
  const StoreStats stats = store->Stats();
  EXPECT_GT(stats.hits_ssd, 10u);
  EXPECT_EQ(stats.dram_only_evictions, 0u);
  EXPECT_GT(stats.ssd_bytes_per_s, 0);
}

TEST_F(SsdTest, WithAllMemoryLeasedAnSsdPlaneIsAMissThatSaysNoRoom) {
  FakeSlab slab(4096 * 2);
  auto store = OpenStore(slab, folder_.path());
  const TestPlane a = MakePlane(1, 8192), b = MakePlane(2, 8192);
  ASSERT_TRUE(Write(*store, a).ok());
  ASSERT_TRUE(Write(*store, b).ok());
  const auto lease = store->Acquire({&b.id, 1}, absl::Seconds(60));
  EXPECT_EQ(MissOf(*store, a.id), MissReason::kNoRoom);
  ASSERT_TRUE(store->Release(lease->id, 0, 0).ok());
  EXPECT_TRUE(ReadAndCompare(*store, a).ok());
}

TEST_F(SsdTest, ATruncatedSegmentLosesOnlyWhatItLost) {
  {
    auto store = OpenStore(slab_, folder_.path());
    for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(Write(*store, MakePlane(i, 5000)).ok());
  }
  fs::resize_file(Segments(folder_.path())[0], 12288 * 3 - 1);
  {
    auto store = OpenStore(slab_, folder_.path());
    EXPECT_EQ(store->Stats().ssd.lost_at_start, 2u);
    EXPECT_TRUE(ReadAndCompare(*store, MakePlane(0, 5000)).ok());
    EXPECT_TRUE(ReadAndCompare(*store, MakePlane(1, 5000)).ok());
    EXPECT_EQ(MissOf(*store, MakePlane(2, 1).id), MissReason::kNeverStored);
    ASSERT_TRUE(Write(*store, MakePlane(9, 5000)).ok());
  }
  auto store = OpenStore(slab_, folder_.path());
  EXPECT_EQ(store->Stats().ssd.lost_at_start, 0u);
  EXPECT_TRUE(ReadAndCompare(*store, MakePlane(9, 5000)).ok());
}

TEST_F(SsdTest, AMissingSegmentAndAnUnacknowledgedTailAreNotFatal) {
  {
    auto store = OpenStore(slab_, folder_.path(), 0, 8192 * 2);
    for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(Write(*store, MakePlane(i, 4096)).ok());
  }
  const auto segments = Segments(folder_.path());
  ASSERT_EQ(segments.size(), 2u);
  fs::remove(segments[0]);
  std::ofstream(segments[1], std::ios::app) << std::string(777, 'x');
  std::ofstream(folder_.path() + "/segments/notes.txt") << "left alone";
  auto store = OpenStore(slab_, folder_.path(), 0, 8192 * 2);
  EXPECT_EQ(store->Stats().ssd.lost_at_start, 2u);
  EXPECT_EQ(fs::file_size(segments[1]), 8192u * 2);
  EXPECT_TRUE(ReadAndCompare(*store, MakePlane(2, 4096)).ok());
  EXPECT_TRUE(fs::exists(folder_.path() + "/segments/notes.txt"));
}

TEST_F(SsdTest, DeletingAllOfASegmentUnlinksIt) {
  auto store = OpenStore(slab_, folder_.path(), 0, 8192 * 2);
  std::vector<pod::BlockKey> keys;
  for (uint64_t i = 0; i < 6; ++i) {
    ASSERT_TRUE(Write(*store, MakePlane(i, 4096)).ok());
    keys.push_back(TestKey(i));
  }
  EXPECT_EQ(Segments(folder_.path()).size(), 3u);
  EXPECT_EQ(*store->Delete(std::span(keys).first(2)), 2u);
  EXPECT_EQ(Segments(folder_.path()).size(), 2u);
  EXPECT_EQ(*store->Delete(keys), 4u);
  EXPECT_EQ(Segments(folder_.path()).size(), 0u);
  EXPECT_EQ(store->Stats().ssd.used_bytes, 0u);
  EXPECT_EQ(store->Stats().ssd.live_bytes, 0u);
}

TEST_F(SsdTest, AFullTierEvictsTheLongestUnusedSegmentAndGoesOn) {
  constexpr uint64_t kCapacity = 64 * 8192, kSegment = kCapacity / 8;
  FakeSlab slab(4096 * 4);  // Small, so that DRAM hides nothing.
  auto store = OpenStore(slab, folder_.path(), kCapacity, kSegment);
  const TestPlane hot = MakePlane(0, 4096);
  ASSERT_TRUE(Write(*store, hot).ok());
  for (uint64_t i = 1; i < 300; ++i) {
    ASSERT_TRUE(Write(*store, MakePlane(i, 4096)).ok()) << i;
    if (i % 8 == 0) {
      ASSERT_TRUE(ReadAndCompare(*store, hot).ok()) << "used all the time, " << i;
    }
    ASSERT_LE(store->Stats().ssd.used_bytes, kCapacity + kSegment) << "but for a segment being compacted";
  }
  EXPECT_GT(store->Stats().ssd_evictions, 200u);
  EXPECT_EQ(MissOf(*store, MakePlane(20, 1).id), MissReason::kEvicted);
  EXPECT_TRUE(ReadAndCompare(*store, MakePlane(298, 4096)).ok());
  store.reset();
  store = OpenStore(slab, folder_.path(), kCapacity);
  EXPECT_EQ(store->Stats().ssd.lost_at_start, 0u);
  EXPECT_TRUE(ReadAndCompare(*store, hot).ok());
  EXPECT_EQ(MissOf(*store, MakePlane(20, 1).id), MissReason::kNeverStored);
}

TEST_F(SsdTest, WhoCommitsAPlaneThatIsThereGetsTheDurabilityThatItLacked) {
  const TestPlane plane = MakePlane(1, 5000);
  {
    auto store = OpenStore(slab_, folder_.path());
    const PlaneRequest request = plane.request();
    std::vector<CommitItem> items;
    for (int writer = 0; writer < 2; ++writer) {
      const auto reserved = store->Reserve({&request, 1}, absl::Seconds(60));
      ASSERT_TRUE(reserved.ok()) << reserved.status();
      Poke((*reserved)[0].address, plane.payload);
      items.push_back({(*reserved)[0].id, plane.encoded(), 0});
    }
    ASSERT_TRUE((*store->Commit({&items[0], 1}, Durability::kDram))[0].ok());
    EXPECT_FALSE(store->List("", 0, "")->planes[0].on_ssd);
    ASSERT_TRUE((*store->Commit({&items[1], 1}, Durability::kSynced))[0].ok());
    EXPECT_TRUE(store->List("", 0, "")->planes[0].on_ssd);
    const StoreStats stats = store->Stats();
    EXPECT_EQ(stats.counts[0][0].planes, 1u);
    EXPECT_EQ(stats.slab_used_bytes, 8192u);
    EXPECT_EQ(stats.reservations, 0u);
  }
  EXPECT_TRUE(ReadAndCompare(*OpenStore(slab_, folder_.path()), plane).ok());
}

TEST_F(SsdTest, ASecondStoreOnTheSameFolderIsRefusedClearly) {
  auto store = OpenStore(slab_, folder_.path());
  FakeSlab other(1 << 20);
  StoreOptions options;
  options.ssd = SsdOptions{.path = folder_.path()};
  const auto second = Store::Open(options, other.span());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(folder_.path()));
}

TEST_F(SsdTest, SegmentsWhoseIndexIsGoneAreKeptAndTheStoreSaysSo) {
  const TestPlane plane = MakePlane(1, 5000);
  {
    auto store = OpenStore(slab_, folder_.path());
    ASSERT_TRUE(Write(*store, plane).ok());
  }
  fs::rename(folder_.path() + "/index", folder_.path() + "/elsewhere");
  StoreOptions options;
  options.ssd = SsdOptions{.path = folder_.path()};
  const auto refused = Store::Open(options, slab_.span());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("index"));
  EXPECT_FALSE(Segments(folder_.path()).empty());

  fs::remove_all(folder_.path() + "/index");
  fs::rename(folder_.path() + "/elsewhere", folder_.path() + "/index");
  auto store = OpenStore(slab_, folder_.path());
  EXPECT_TRUE(ReadAndCompare(*store, plane).ok());
}

TEST_F(SsdTest, ADiskThatTakesNoWritesIsNoOutageExceptForSyncedCommits) {
  auto real = OpenRealFiles({});
  ASSERT_TRUE(real.ok());
  auto faults = std::make_shared<FaultyFiles>(std::shared_ptr<FileLayer>(*std::move(real)), 1);
  StoreOptions options;
  options.ssd = SsdOptions{.path = folder_.path(), .reserve_bytes = 0, .files = faults};
  auto store = Store::Open(options, slab_.span());
  ASSERT_TRUE(store.ok()) << store.status();
  const TestPlane before = MakePlane(1, 5000), after = MakePlane(2, 5000);
  ASSERT_TRUE(Write(**store, before, Durability::kSynced).ok());
  faults->Inject({.call = FaultyFiles::Call::kWrite, .error = EIO});
  EXPECT_FALSE(Write(**store, after, Durability::kSynced).ok());
  EXPECT_TRUE(Write(**store, after, Durability::kBest).ok());
  EXPECT_TRUE(ReadAndCompare(**store, before).ok());
  EXPECT_TRUE(ReadAndCompare(**store, after).ok());
  const StoreStats stats = (*store)->Stats();
  EXPECT_EQ(stats.ssd.health, SsdHealth::kFailing);
  EXPECT_THAT(stats.ssd.message, HasSubstr(folder_.path()));
}

TEST_F(SsdTest, AFullDiskRefusesCommitsLosesNothingAndServesOn) {
  if (::mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, "size=8m") != 0) {
    GTEST_SKIP() << "LOUD: cannot mount a small tmpfs here (" << std::strerror(errno)
                 << "); the full disk is NOT tested";
  }
  struct Unmount {
    const std::string path;
    ~Unmount() { EXPECT_EQ(::umount2(path.c_str(), MNT_DETACH), 0); }
  } unmount{folder_.path()};
  // reserve_bytes 0 makes the write itself fail; 2 MiB makes the check before it fail.
  for (const uint64_t reserve_bytes : {uint64_t{0}, uint64_t{2} << 20}) {
    const std::string path = absl::StrCat(folder_.path(), "/", reserve_bytes);
    StoreOptions options;
    options.ssd = SsdOptions{.path = path, .segment_bytes = 1 << 20, .reserve_bytes = reserve_bytes};
    auto store = Store::Open(options, slab_.span());
    ASSERT_TRUE(store.ok()) << store.status();
    uint64_t stored = 0;
    absl::Status status;
    while (stored < 100) {
      status = Write(**store, MakePlane(stored, 256 << 10), Durability::kSynced);
      if (!status.ok()) break;
      ++stored;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    ASSERT_GT(stored, 2u);
    for (uint64_t i = 0; i < stored; ++i) EXPECT_TRUE(ReadAndCompare(**store, MakePlane(i, 256 << 10)).ok()) << i;
    EXPECT_TRUE(Write(**store, MakePlane(1000, 4096), Durability::kDram).ok()) << "DRAM still takes planes";
    const std::vector<pod::BlockKey> keys = {TestKey(0), TestKey(1), TestKey(2), TestKey(3)};
    EXPECT_TRUE(stored < 8 || (*store)->Delete(keys).ok());
    if (stored >= 8) {
      EXPECT_TRUE(Write(**store, MakePlane(2000, 4096), Durability::kSynced).ok()) << "room again";
    }
    store->reset();
    auto again = Store::Open(options, slab_.span());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ((*again)->Stats().ssd.lost_at_start, 0u);
    EXPECT_TRUE(ReadAndCompare(**again, MakePlane(stored - 1, 256 << 10)).ok());
    again->reset();
    fs::remove_all(path);
  }
}

}  // namespace
}  // namespace perigee::kvstore
