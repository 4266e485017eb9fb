// Power cuts and kills at random moments, under concurrent writes, deletes and compaction: what was acknowledged is
// there with its bytes, what was deleted stays deleted.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <thread>

#include "kvstore/ssd/faulty_files.h"
#include "ssd_planes.h"

namespace perigee::kvstore {
namespace {

constexpr uint64_t kThreads = 3;

SsdOptions BusyOptions(const std::string& path) {
  SsdOptions options{.path = path};
  options.segment_bytes = 96 << 10;  // Few records each: compaction has much to do.
  options.reserve_bytes = 0;
  options.compact_bytes_per_s = uint64_t{4} << 30;
  options.scrub_bytes_per_s = uint64_t{1} << 20;
  return options;
}

TestPlane PlaneOf(uint64_t n) { return MakePlane(n, 3000 + n % 7 * 3000); }

// What a writer says of a plane.
struct Said {
  enum What : uint8_t { kStored, kDeleting, kDeleted } what = kStored;
  uint64_t plane = 0;
};

// One writer's planes are n % kThreads == thread; he deletes three quarters of them again. `say` is told of every
// acknowledgement, and of deletes before they begin. Ends with the first error or when `stop` is set.
void Load(SsdTier& tier, uint64_t thread, const std::atomic<bool>& stop, const std::function<void(Said)>& say) {
  std::vector<std::pair<uint64_t, SsdRecord>> stored;
  for (uint64_t round = 0; !stop; ++round) {
    std::vector<TestPlane> planes;
    std::vector<uint64_t> numbers;
    for (uint64_t i = 0; i < 1 + round % 4; ++i) {
      numbers.push_back(thread + kThreads * (round * 4 + i));
      planes.push_back(PlaneOf(numbers.back()));
    }
    const auto records = Append(tier, planes);
    if (!records.ok()) return;
    for (size_t i = 0; i < numbers.size(); ++i) {
      say({Said::kStored, numbers[i]});
      stored.emplace_back(numbers[i], (*records)[i]);
    }
    if (stored.size() < 12) continue;
    std::vector<SsdStored> gone;
    for (size_t i = 0; i < 9; ++i) {
      gone.push_back({PlaneOf(stored[i].first).id, stored[i].second});
      say({Said::kDeleting, stored[i].first});
    }
    if (!tier.Remove(gone).ok()) return;
    for (size_t i = 0; i < 9; ++i) say({Said::kDeleted, stored[i].first});
    stored.erase(stored.begin(), stored.begin() + 12);  // Three stay for ever.
  }
}

void ExpectAllThere(const std::string& path, const std::vector<Said>& said) {
  FoundPlanes found;
  const auto tier = OpenTier(BusyOptions(path), &found);
  ASSERT_NE(tier, nullptr);
  EXPECT_EQ(tier->Stats().lost_at_start, 0u);
  std::map<uint64_t, Said::What> last;
  for (const Said& s : said) last[s.plane] = s.what;
  for (const auto& [n, what] : last) {
    const TestPlane plane = PlaneOf(n);
    const auto it = found.find(plane.id);
    if (what == Said::kStored) {
      EXPECT_NE(it, found.end()) << "plane " << n << " was acknowledged and is gone";
    }
    if (what == Said::kDeleted) {
      EXPECT_EQ(it, found.end()) << "plane " << n << " was deleted and is back";
    }
    if (it == found.end()) continue;
    const absl::Status same = Check(*tier, plane, it->second);
    EXPECT_TRUE(same.ok()) << n << ": " << same;
  }
}

TEST(SsdCrash, AfterPowerCutsAllThatWasAcknowledgedIsThereAndNothingDeletedIs) {
  uint64_t compacted = 0;
  for (uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(seed);
    TempFolder folder;
    auto real = OpenRealFiles({});
    ASSERT_TRUE(real.ok());
    auto faulty = std::make_shared<FaultyFiles>(std::shared_ptr<FileLayer>(*std::move(real)), seed);
    SsdOptions options = BusyOptions(folder.path());
    options.files = faulty;
    std::mutex mu;
    std::vector<Said> said;
    {
      auto tier = OpenTier(options);
      ASSERT_NE(tier, nullptr);
      std::atomic<bool> stop{false};
      std::vector<std::thread> threads;
      for (uint64_t t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          Load(*tier, t, stop, [&](Said s) {
            std::lock_guard lock(mu);
            said.push_back(s);
          });
        });
      }
      // A moment in the life of the disk, not of the clock.
      const uint64_t cut_at = 40 + seed * 37 % 400;
      EXPECT_TRUE(Eventually([&] { return faulty->calls(FaultyFiles::Call::kWrite) >= cut_at; }));
      faulty->PowerCut();
      for (std::thread& thread : threads) thread.join();
      compacted += tier->Stats().counters.compacted_bytes;
    }
    ExpectAllThere(folder.path(), said);
  }
  EXPECT_GT(compacted, 0u) << "the cuts never met a compaction";
}

TEST(SsdCrash, KilledAtRandomMomentsNothingAcknowledgedIsLostAndNothingDeletedIsBack) {
  std::mt19937_64 random(20);
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    TempFolder folder;
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(pipe_ends[0]);
      auto tier = OpenTier(BusyOptions(folder.path()));
      if (tier == nullptr) ::_exit(1);
      const std::atomic<bool> never{false};
      std::vector<std::thread> threads;
      for (uint64_t t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          Load(*tier, t, never, [&](Said s) {
            if (::write(pipe_ends[1], &s, sizeof(s)) != sizeof(s)) ::_exit(1);
          });
        });
      }
      for (std::thread& thread : threads) thread.join();
      ::_exit(1);
    }
    ::close(pipe_ends[1]);
    std::vector<Said> said;
    Said s;
    const size_t kill_after = 30 + random() % 600;
    while (::read(pipe_ends[0], &s, sizeof(s)) == sizeof(s)) {
      said.push_back(s);
      if (said.size() == kill_after) ::kill(child, SIGKILL);
    }
    ::close(pipe_ends[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    ExpectAllThere(folder.path(), said);
  }
}

}  // namespace
}  // namespace perigee::kvstore
