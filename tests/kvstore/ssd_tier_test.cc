// The SSD tier alone: what it does in the background, with several paths, and with disks that fail.
#include "kvstore/ssd/ssd_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "base/file.h"
#include "kvstore/ssd/faulty_files.h"
#include "ssd_planes.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;
using Call = FaultyFiles::Call;

class SsdTierTest : public testing::Test {
 protected:
  SsdTierTest() {
    options_.path = folder_.path();
    options_.segment_bytes = 128 << 10;
    options_.reserve_bytes = 0;
    options_.scrub_bytes_per_s = 0;
    options_.max_write_amplification = 1;
    options_.retry_after = absl::Milliseconds(50);
    options_.dropped = drops_.callback();
  }
  void UsePaths(size_t n) {
    for (size_t i = 0; i < n; ++i) options_.paths.push_back(absl::StrCat(folder_.path(), "/disk", i));
  }
  void UseFaults() {
    auto real = OpenRealFiles({});
    ASSERT_TRUE(real.ok());
    faults_ = std::make_shared<FaultyFiles>(std::shared_ptr<FileLayer>(*std::move(real)), 1);
    options_.files = faults_;
  }
  // Planes records_.size() .. of 9,000 bytes, with their records.
  void Fill(SsdTier& tier, uint64_t n) {
    for (uint64_t i = records_.size(), end = i + n; i < end; ++i) {
      const auto record = Append(tier, MakePlane(i, 9000));
      ASSERT_TRUE(record.ok()) << record.status();
      records_.push_back(*record);
    }
  }
  SsdStored Stored(uint64_t i) { return {MakePlane(i, 1).id, records_[i]}; }

  TempFolder folder_;
  SsdOptions options_;
  Drops drops_;
  std::shared_ptr<FaultyFiles> faults_;
  std::vector<SsdRecord> records_;
};

TEST_F(SsdTierTest, CompactionGivesSpaceBackWithinItsBoundAndMovedPlanesKeepTheirRecords) {
  options_.max_write_amplification = 1.5;
  options_.compact_bytes_per_s = uint64_t{1} << 30;
  auto tier = OpenTier(options_);
  Fill(*tier, 80);
  const uint64_t before = tier->Stats().used_bytes;
  std::vector<SsdStored> gone;
  for (uint64_t i = 0; i < 80; ++i) {
    if (i % 5 != 0) gone.push_back(Stored(i));
  }
  ASSERT_TRUE(tier->Remove(gone).ok());
  EXPECT_TRUE(Eventually([&] { return tier->Stats().used_bytes < before / 2; })) << tier->Stats().used_bytes;
  const SsdStats stats = tier->Stats();
  EXPECT_GT(stats.counters.compacted_bytes, 0u);
  EXPECT_LE(stats.counters.compacted_bytes, stats.counters.written_bytes / 2 + options_.segment_bytes);
  for (uint64_t i = 0; i < 80; ++i) {
    const absl::Status read = Check(*tier, MakePlane(i, 9000), records_[i]);
    EXPECT_EQ(read.code(), i % 5 == 0 ? absl::StatusCode::kOk : absl::StatusCode::kNotFound) << i << ": " << read;
  }
  const std::vector<SsdStored> moved = {Stored(0)};
  ASSERT_TRUE(tier->Remove(moved).ok()) << "by the record it had before it moved";
  tier.reset();
  FoundPlanes found;
  tier = *SsdTier::Open(options_, [&](const IndexEntry& entry, const SsdRecord& record) {
    EXPECT_TRUE(found.emplace(entry.id, record).second);
    EXPECT_EQ(entry.meta.replicas, TestReplicas(entry.meta.base_position));
    EXPECT_EQ(entry.meta.group, GroupOf(entry.id.key));
  });
  EXPECT_EQ(found.size(), 15u);
  EXPECT_FALSE(found.contains(moved[0].id));
  EXPECT_EQ(tier->Stats().lost_at_start, 0u);
}

TEST_F(SsdTierTest, TheScrubberDropsWrongRecordsSaysWhyAndItsCountsSurvive) {
  options_.scrub_bytes_per_s = uint64_t{1} << 30;
  {
    auto tier = OpenTier(options_);
    Fill(*tier, 6);
    ASSERT_TRUE(Eventually([&] { return tier->Stats().counters.scrub_passes > 0; }));
    EXPECT_TRUE(drops_.reasons().empty());
    std::fstream file(folder_.path() + "/segments/00000001.seg", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(2 * (4096 + 12288) + 5000);
    file.put('\x7f');
    file.put('\x7e');
    file.close();
    EXPECT_TRUE(Eventually([&] { return !drops_.reasons().empty(); }));
    EXPECT_EQ(drops_.reasons(), (std::map<PlaneId, SsdDropReason>{{MakePlane(2, 1).id, SsdDropReason::kWrong}}));
    EXPECT_EQ(Check(*tier, MakePlane(2, 9000), records_[2]).code(), absl::StatusCode::kNotFound);
    EXPECT_TRUE(Check(*tier, MakePlane(3, 9000), records_[3]).ok());
  }
  FoundPlanes found;
  auto tier = OpenTier(options_, &found);
  EXPECT_EQ(found.size(), 5u);
  EXPECT_EQ(tier->Stats().counters.wrong_records, 1u);
  EXPECT_GE(tier->Stats().counters.written_bytes, 6 * (4096u + 12288u));
}

TEST_F(SsdTierTest, APassThatIsAskedForReadsEverythingAlsoWhereTheScrubberIsOff) {
  auto tier = OpenTier(options_);
  Fill(*tier, 6);
  std::fstream file(folder_.path() + "/segments/00000001.seg", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(3 * (4096 + 12288) + 5000);
  file.put('\x7f');
  file.put('\x7e');
  file.close();
  EXPECT_EQ(tier->Stats().counters.scrubbed_bytes, 0u);
  EXPECT_FALSE(tier->Stats().paths[0].scrubbing);
  tier->Scrub();
  EXPECT_TRUE(Eventually([&] { return !tier->Stats().paths[0].scrubbing; }));
  const SsdStats stats = tier->Stats();
  EXPECT_EQ(stats.counters.scrub_passes, 1u);
  EXPECT_EQ(stats.counters.scrubbed_bytes, 6 * (4096u + 12288u));
  EXPECT_EQ(stats.paths[0].scrub_pass_bytes, 0u) << "the pass has ended";
  EXPECT_EQ(drops_.reasons(), (std::map<PlaneId, SsdDropReason>{{MakePlane(3, 1).id, SsdDropReason::kWrong}}));
}

TEST_F(SsdTierTest, TheIndexSaysWhatIsBeforeAPlane) {
  auto tier = OpenTier(options_);
  Fill(*tier, 1);
  const absl::StatusOr<PlaneMeta> meta = tier->MetaOf(Stored(0));
  ASSERT_TRUE(meta.ok()) << meta.status();
  EXPECT_EQ(meta->payload_bytes, 9000u);
  const std::vector<SsdStored> gone = {Stored(0)};
  ASSERT_TRUE(tier->Remove(gone).ok());
  EXPECT_EQ(tier->MetaOf(Stored(0)).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SsdTierTest, ConcurrentAppendsShareTheirSyncs) {
  UseFaults();
  auto tier = OpenTier(options_);
  constexpr uint64_t kThreads = 8, kEach = 25;
  std::vector<std::thread> threads;
  std::atomic<uint64_t> stored{0};
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kEach; ++i) stored += Append(*tier, MakePlane(t * kEach + i, 3000)).ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(stored, kThreads * kEach);
  EXPECT_LT(faults_->calls(Call::kSync), kThreads * kEach * 3 / 4);
}

TEST_F(SsdTierTest, PlanesAreStripedOverAllPathsAndAllAreFoundAgain) {
  UsePaths(3);
  {
    auto tier = OpenTier(options_);
    Fill(*tier, 60);
    for (const SsdPathStats& path : tier->Stats().paths) EXPECT_GE(path.live_bytes, 15 * 16384u) << path.path;
  }
  FoundPlanes found;
  auto tier = OpenTier(options_, &found);
  ASSERT_EQ(found.size(), 60u);
  for (uint64_t i = 0; i < 60; ++i) {
    EXPECT_TRUE(Check(*tier, MakePlane(i, 9000), found.at(MakePlane(i, 1).id)).ok()) << i;
  }
}

TEST_F(SsdTierTest, APlaneStoredAgainIsThereOnceOnWhicheverPath) {
  UsePaths(3);
  auto tier = OpenTier(options_);
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(Append(*tier, MakePlane(1, 9000)).ok());
  EXPECT_EQ(tier->Stats().live_bytes, 16384u);
}

TEST_F(SsdTierTest, APathThatIsMissingAtTheStartIsDoneWithoutAndItsPlanesReturnWithIt) {
  UsePaths(3);
  { Fill(*OpenTier(options_), 30); }
  const std::string disk = options_.paths[1], away = folder_.path() + "/away";
  fs::rename(disk, away);
  std::ofstream(disk) << "a file, so that no folder can be made here";
  {
    FoundPlanes found;
    auto tier = OpenTier(options_, &found);
    ASSERT_NE(tier, nullptr);
    EXPECT_EQ(found.size(), 20u);
    const SsdStats stats = tier->Stats();
    EXPECT_EQ(stats.health, SsdHealth::kLost);
    EXPECT_EQ(stats.paths[0].health, SsdHealth::kOk);
    EXPECT_EQ(stats.paths[1].health, SsdHealth::kLost);
    EXPECT_THAT(stats.message, HasSubstr(disk));
    EXPECT_TRUE(Append(*tier, MakePlane(100, 9000)).ok());
  }
  fs::remove(disk);
  fs::rename(away, disk);
  FoundPlanes found;
  auto tier = OpenTier(options_, &found);
  EXPECT_EQ(found.size(), 31u);
}

TEST_F(SsdTierTest, APathThatWasAwayWhilePlanesWereDeletedDoesNotBringThemBack) {
  UsePaths(3);
  { Fill(*OpenTier(options_), 30); }
  const std::string disk = options_.paths[1], away = folder_.path() + "/away";
  fs::rename(disk, away);
  std::ofstream(disk) << "a file";
  ASSERT_TRUE(OpenTier(options_)->NoteDeletion().ok());
  fs::remove(disk);
  fs::rename(away, disk);
  for (int start = 0; start < 2; ++start) {
    FoundPlanes found;
    auto tier = OpenTier(options_, &found);
    EXPECT_EQ(found.size(), 20u);
    EXPECT_EQ(tier->Stats().health, SsdHealth::kOk);
  }
}

TEST_F(SsdTierTest, AllPathsLostIsATierThatRefusesAndSaysWhy) {
  options_.path = folder_.path() + "/file";
  std::ofstream(options_.path) << "no folder";
  auto tier = OpenTier(options_);
  ASSERT_NE(tier, nullptr);
  EXPECT_EQ(tier->Stats().health, SsdHealth::kLost);
  EXPECT_EQ(Append(*tier, MakePlane(1, 100)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(tier->NoteDeletion().ok());
}

TEST_F(SsdTierTest, APathWhoseReadsKeepFailingIsGivenUpWithItsPlanes) {
  UsePaths(2);
  UseFaults();
  auto tier = OpenTier(options_);
  Fill(*tier, 40);
  faults_->Inject({.call = Call::kRead, .error = EIO, .path_contains = "/disk1/"});
  uint64_t failed = 0;
  for (uint64_t i = 0; i < 40; ++i) failed += absl::IsUnavailable(Check(*tier, MakePlane(i, 9000), records_[i]));
  EXPECT_EQ(failed, 8u) << "then it is not asked any more";
  EXPECT_EQ(tier->Stats().paths[1].health, SsdHealth::kLost);
  const auto reasons = drops_.reasons();
  EXPECT_EQ(reasons.size(), 20u);
  for (const auto& [id, reason] : reasons) EXPECT_EQ(reason, SsdDropReason::kPathLost);
  Fill(*tier, 5);  // Without it.
  EXPECT_EQ(tier->Stats().paths[1].used_bytes, 0u);
}

struct WriteFault {
  const char* name;
  Call call;
  int error;
  uint64_t first_bytes;
  SsdHealth health;
};
class FailingWrites : public SsdTierTest, public testing::WithParamInterface<WriteFault> {};

TEST_P(FailingWrites, GoToTheOtherPathAndComeBackWhenTheDiskIsWell) {
  UsePaths(2);
  UseFaults();
  auto tier = OpenTier(options_);
  Fill(*tier, 10);
  faults_->Inject({.call = GetParam().call,
                   .error = GetParam().error,
                   .path_contains = "/disk0/",
                   .first_bytes = GetParam().first_bytes});
  const uint64_t on_other = tier->Stats().paths[1].live_bytes;
  Fill(*tier, 10);
  EXPECT_EQ(tier->Stats().paths[1].live_bytes, on_other + 10 * 16384);
  EXPECT_EQ(tier->Stats().paths[0].health, GetParam().health) << tier->Stats().message;
  EXPECT_THAT(tier->Stats().message, HasSubstr("disk0"));
  faults_->Clear();
  uint64_t next = 1000;
  EXPECT_TRUE(Eventually([&] {
    EXPECT_TRUE(Append(*tier, MakePlane(next++, 9000)).ok());
    return tier->Stats().health == SsdHealth::kOk;
  }));
  tier.reset();
  FoundPlanes found;
  tier = OpenTier(options_, &found);
  EXPECT_EQ(found.size(), 20 + (next - 1000));
  for (uint64_t i = 0; i < 20; ++i) {
    EXPECT_TRUE(Check(*tier, MakePlane(i, 9000), found.at(MakePlane(i, 1).id)).ok()) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, FailingWrites,
                         testing::Values(WriteFault{"WriteError", Call::kWrite, EIO, 0, SsdHealth::kFailing},
                                         WriteFault{"ShortWrite", Call::kWrite, EIO, 4096, SsdHealth::kFailing},
                                         WriteFault{"DiskFull", Call::kWrite, ENOSPC, 8192, SsdHealth::kFull},
                                         WriteFault{"SyncError", Call::kSync, EIO, 0, SsdHealth::kFailing},
                                         WriteFault{"ReadOnly", Call::kWrite, EROFS, 0, SsdHealth::kReadOnly}),
                         [](const auto& test) { return test.param.name; });

TEST_F(SsdTierTest, AnAppendThatFailsEverywhereStoresNothingAndLosesNothing) {
  UseFaults();
  auto tier = OpenTier(options_);
  Fill(*tier, 4);
  faults_->Inject({.call = Call::kSync, .error = EIO});
  std::vector<TestPlane> planes;
  for (uint64_t i = 10; i < 15; ++i) planes.push_back(MakePlane(i, 9000));
  EXPECT_FALSE(Append(*tier, planes).ok());
  EXPECT_EQ(Append(*tier, planes).status().code(), absl::StatusCode::kUnavailable) << "refused at once";
  EXPECT_EQ(tier->Stats().live_bytes, 4 * 16384u);
  faults_->Clear();
  tier.reset();
  FoundPlanes found;
  tier = OpenTier(options_, &found);
  EXPECT_EQ(found.size(), 4u);
}

TEST_F(SsdTierTest, ASlowDiskHoldsUpOneWriterAndRefusesTheOthers) {
  UseFaults();
  options_.slow_after = absl::Milliseconds(30);
  auto tier = OpenTier(options_);
  faults_->SetDelay(absl::Seconds(1));
  std::thread first([&] { EXPECT_TRUE(Append(*tier, MakePlane(1, 9000)).ok()); });
  EXPECT_TRUE(Eventually([&] { return tier->Stats().health == SsdHealth::kSlow; }));
  EXPECT_EQ(Append(*tier, MakePlane(2, 9000)).status().code(), absl::StatusCode::kUnavailable);
  first.join();
  faults_->Clear();
  EXPECT_EQ(tier->Stats().health, SsdHealth::kOk);
  EXPECT_TRUE(Append(*tier, MakePlane(2, 9000)).ok());
}

std::map<std::string, std::string> Contents(const std::string& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    out[entry.path().string()] = entry.is_regular_file() ? *ReadFile(entry.path().string()) : "";
  }
  return out;
}

TEST_F(SsdTierTest, AFolderOfAFutureVersionIsRefusedAndUntouched) {
  { Fill(*OpenTier(options_), 3); }
  std::ofstream(folder_.path() + "/FORMAT") << "perigee ssd tier 2\n";
  const auto before = Contents(folder_.path());
  const auto refused = SsdTier::Open(options_, [](const IndexEntry&, const SsdRecord&) {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("version 2"));
  EXPECT_EQ(Contents(folder_.path()), before);
}

TEST_F(SsdTierTest, ManyReadsAtOnceAreAllAnswered) {
  auto tier = OpenTier(options_);
  Fill(*tier, 100);
  std::vector<std::unique_ptr<AlignedBuffer>> memory;
  std::vector<SsdRead> reads;
  std::mutex mu;
  std::map<uint64_t, absl::StatusOr<std::string>> answers;
  for (uint64_t i = 0; i < 300; ++i) {
    memory.push_back(std::make_unique<AlignedBuffer>(9000));
    const SsdRecord record = i % 3 == 2 ? SsdRecord{999999, 9000} : records_[i / 3];
    reads.push_back({MakePlane(i / 3, 1).id, record, memory.back()->span(), [&, i](absl::StatusOr<std::string> head) {
                       std::lock_guard lock(mu);
                       answers.emplace(i, std::move(head));
                     }});
  }
  tier->ReadAsync(std::move(reads));
  tier.reset();  // Waits for them.
  ASSERT_EQ(answers.size(), 300u);
  for (uint64_t i = 0; i < 300; ++i) {
    if (i % 3 == 2) {
      EXPECT_EQ(answers.at(i).status().code(), absl::StatusCode::kNotFound);
    } else {
      ASSERT_TRUE(answers.at(i).ok()) << answers.at(i).status();
      EXPECT_TRUE(VerifyRecord(*answers.at(i), memory[i]->span(), MakePlane(i / 3, 1).id, 9000).ok());
    }
  }
}

// Files that are as long as if they had been written.
class HollowFiles : public FileLayer {
 public:
  explicit HollowFiles(std::unique_ptr<FileLayer> base) : base_(std::move(base)) {}
  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, bool create) override {
    return base_->Open(path, create);
  }
  void Start(std::vector<FileTransfer> transfers) override {
    std::vector<FileTransfer> others;
    for (FileTransfer& t : transfers) {
      if (t.kind != FileTransfer::Kind::kWrite) {
        others.push_back(std::move(t));
        continue;
      }
      const uint64_t end = t.offset_bytes + t.first.size() + t.second.size();
      t.done(*t.file->SizeBytes() < end ? t.file->Truncate(end) : absl::OkStatus());
    }
    if (!others.empty()) base_->Start(std::move(others));
  }
  absl::Status Unlink(const std::string& path) override { return base_->Unlink(path); }
  absl::Status SyncFolder(const std::string& path) override { return base_->SyncFolder(path); }
  absl::StatusOr<uint64_t> FreeBytes(const std::string&) override { return 0; }  // So that nothing is preallocated.
  std::string Describe() const override { return "hollow files"; }

 private:
  const std::unique_ptr<FileLayer> base_;
};

TEST_F(SsdTierTest, TenGibibytesOfOneMebibytePlanesOpenInLessThanTwoSeconds) {
  constexpr uint64_t kPlanes = 10240, kBatch = 512, kBytes = 1 << 20;
  options_.segment_bytes = uint64_t{256} << 20;
  {
    SsdOptions hollow = options_;
    auto real = OpenRealFiles({});
    ASSERT_TRUE(real.ok());
    hollow.files = std::make_shared<HollowFiles>(*std::move(real));
    auto tier = OpenTier(hollow);
    const AlignedBuffer payload(kBytes);
    const TestPlane model = MakePlane(0, 64);
    for (uint64_t at = 0; at < kPlanes; at += kBatch) {
      std::vector<SsdWrite> writes;
      for (uint64_t i = at; i < at + kBatch; ++i) {
        const PlaneId id{TestKey(i), pod::PlaneKind::kDistant};
        PlaneMeta meta = MetaOf(model.header, 1);
        meta.payload_bytes = kBytes;
        writes.push_back({id, meta, EncodeRecordHead(id, model.encoded(), kBytes, 1), payload.span()});
      }
      ASSERT_TRUE(tier->Append(writes).ok());
    }
  }
  FoundPlanes found;
  const absl::Time start = absl::Now();
  auto tier = OpenTier(options_, &found);
  const absl::Duration took = absl::Now() - start;
  EXPECT_EQ(found.size(), kPlanes);
  EXPECT_EQ(tier->Stats().live_bytes, kPlanes * (kBytes + 4096));
  EXPECT_LT(took, absl::Seconds(2));
  RecordProperty("open_ms", static_cast<int>(absl::ToInt64Milliseconds(took)));
  std::printf("opened in %.0f ms\n", absl::ToDoubleMilliseconds(took));
}

}  // namespace
}  // namespace perigee::kvstore
