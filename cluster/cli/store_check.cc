// perigee store verify|scrub: are the stored bytes what was stored?
#include <algorithm>
#include <atomic>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/plane_file.h"
#include "cluster/cli/store_keys.h"

namespace perigee::cli {
namespace {

using kvstore::StoreClient;

struct Options {
  StoreVerbFlags flags;
  std::string tenant;
  bool start = false;
  bool no_wait = false;
  double timeout_s = 3600;
};

constexpr size_t kBatchPlanes = 32;
constexpr uint64_t kBatchBytes = uint64_t{16} << 20;  // Held in the store's memory, and here, at a time.

struct Checked {
  uint64_t planes = 0, payload_bytes = 0;
  uint64_t vanished = 0;  // Evicted or deleted between the listing and the reading.
  uint64_t unread = 0;    // The store could not bring them now.
  std::vector<std::string> wrong;
};

// One store's planes, a batch at a time.
class Verifier {
 public:
  Verifier(ProgressBar* bar, uint64_t whole) : bar_(bar), whole_(whole) {}

  absl::Status Verify(const std::string& store, StoreClient& client, const std::string& tenant) {
    std::vector<WantedPlane> batch;
    uint64_t bytes = 0;
    PERIGEE_RETURN_IF_ERROR(ForEachPlane(client, tenant, {}, [&](const kvstore::ListedPlane& plane) {
      batch.push_back({.id = plane.id});
      bytes += plane.meta.payload_bytes;
      if (batch.size() == kBatchPlanes || bytes >= kBatchBytes) {
        Read(store, client, batch);
        batch.clear();
        bytes = 0;
      }
      return true;
    }));
    Read(store, client, batch);
    return absl::OkStatus();
  }
  Checked Result() {
    absl::MutexLock lock(&mu_);
    return checked_;
  }

 private:
  void Read(const std::string& store, StoreClient& client, std::span<const WantedPlane> batch) {
    if (batch.empty()) return;
    const std::vector<absl::StatusOr<PlaneFile>> files = FetchPlanes(client, batch);
    absl::MutexLock lock(&mu_);
    for (size_t i = 0; i < files.size(); ++i) {
      if (files[i].ok()) {
        ++checked_.planes;
        checked_.payload_bytes += files[i]->header.payload_bytes;
      } else if (absl::IsDataLoss(files[i].status())) {
        checked_.wrong.push_back(absl::StrCat(batch[i].id.ToString(), " at ", store));
      } else if (absl::IsNotFound(files[i].status())) {
        ++checked_.vanished;
      } else {
        ++checked_.unread;
      }
    }
    done_ += files.size();
    bar_->Set(done_, std::max(whole_, done_), absl::StrCat(checked_.wrong.size(), " wrong"));
  }

  ProgressBar* const bar_;
  const uint64_t whole_;
  absl::Mutex mu_;
  uint64_t done_ ABSL_GUARDED_BY(mu_) = 0;
  Checked checked_ ABSL_GUARDED_BY(mu_);
};

absl::StatusOr<uint64_t> CountPlanes(StoreFleet& fleet) {
  std::atomic<uint64_t> planes = 0;
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string&, StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const StoreClient::Stat stat, client.GetStat());
    // At least: a plane counts in every tier that has it.
    uint64_t most = 0;
    for (const auto& tier : stat.store.counts) {
      uint64_t here = 0;
      for (const kvstore::TierCount& count : tier) here += count.planes;
      most = std::max(most, here);
    }
    planes += most;
    return absl::OkStatus();
  }));
  return planes.load();
}

absl::Status Verify(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet,
                           StoreFleet::Open(o.flags, StoreFleet::Use::kMovePayload));
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t whole, CountPlanes(*fleet));
  absl::Status status;
  Checked checked;
  {
    ProgressBar bar("verifying");
    Verifier verifier(&bar, whole);
    status = fleet->ForEach(
        [&](const std::string& id, StoreClient& client) { return verifier.Verify(id, client, o.tenant); });
    checked = verifier.Result();
  }
  if (o.flags.cluster.json) {
    PrintJson({{"planes", checked.planes},
               {"payload_bytes", checked.payload_bytes},
               {"wrong", checked.wrong.size()},
               {"wrong_planes", checked.wrong},
               {"vanished", checked.vanished},
               {"unread", checked.unread}});
  } else {
    std::printf("%llu planes (%s) are right, %zu wrong, %llu gone meanwhile, %llu could not be read\n",
                static_cast<unsigned long long>(checked.planes),
                FormatBytes(static_cast<double>(checked.payload_bytes)).c_str(), checked.wrong.size(),
                static_cast<unsigned long long>(checked.vanished), static_cast<unsigned long long>(checked.unread));
    for (const std::string& plane : checked.wrong) std::printf("WRONG  %s (dropped by its store)\n", plane.c_str());
  }
  PERIGEE_RETURN_IF_ERROR(status);
  if (!checked.wrong.empty()) return Outcome(ExitCode::kWrongBytes);
  return checked.unread > 0 ? Outcome(ExitCode::kFailed) : absl::OkStatus();
}

struct ScrubState {
  std::string store;
  kvstore::SsdStats ssd;
  bool running() const {
    return std::any_of(ssd.paths.begin(), ssd.paths.end(), [](const auto& path) { return path.scrubbing; });
  }
};

absl::StatusOr<std::vector<ScrubState>> ScrubStates(StoreFleet& fleet) {
  absl::Mutex mu;
  std::vector<ScrubState> states;
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string& id, StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const StoreClient::Stat stat, client.GetStat());
    absl::MutexLock lock(&mu);
    if (stat.store.ssd_capacity_bytes > 0 || !stat.store.ssd.paths.empty()) states.push_back({id, stat.store.ssd});
    return absl::OkStatus();
  }));
  std::sort(states.begin(), states.end(), [](const auto& a, const auto& b) { return a.store < b.store; });
  return states;
}

absl::StatusOr<std::vector<ScrubState>> AwaitScrub(StoreFleet& fleet, absl::Time deadline) {
  ProgressBar bar("scrubbing");
  for (;;) {
    PERIGEE_ASSIGN_OR_RETURN(std::vector<ScrubState> states, ScrubStates(fleet));
    uint64_t done = 0, whole = 0;
    bool running = false;
    for (const ScrubState& state : states) {
      running |= state.running();
      for (const kvstore::SsdPathStats& path : state.ssd.paths) {
        whole += path.live_bytes;
        done += path.scrubbing ? std::min(path.scrub_pass_bytes, path.live_bytes) : path.live_bytes;
      }
    }
    bar.Set(done, whole);
    if (!running) return states;
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError("the disks are not read through yet; they go on: look with 'store scrub'");
    }
    absl::SleepFor(absl::Milliseconds(200));
  }
}

absl::Status Scrub(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  PERIGEE_ASSIGN_OR_RETURN(std::vector<ScrubState> states, ScrubStates(*fleet));
  if (states.empty()) {
    return WithExitCode(absl::FailedPreconditionError("no store has a disk tier: there is nothing to scrub"),
                        ExitCode::kRefused);
  }
  uint64_t wrong_before = 0, wrong_now = 0;
  for (const ScrubState& state : states) wrong_before += state.ssd.counters.wrong_records;
  if (o.start) {
    PERIGEE_RETURN_IF_ERROR(fleet->ForEach([&](const std::string& id, StoreClient& client) {
      const bool has_disk =
          std::any_of(states.begin(), states.end(), [&](const ScrubState& state) { return state.store == id; });
      return has_disk ? client.Scrub() : absl::OkStatus();
    }));
    if (!o.no_wait) {
      PERIGEE_ASSIGN_OR_RETURN(states, AwaitScrub(*fleet, absl::Now() + absl::Seconds(o.timeout_s)));
    }
  }
  Json rows = Json::array();
  Table table({"STORE", "STATE", ">CHECKED", ">OF", ">PASSES", ">WRONG", ">UNREADABLE"});
  for (const ScrubState& state : states) {
    uint64_t pass_bytes = 0;
    for (const kvstore::SsdPathStats& path : state.ssd.paths) pass_bytes += path.scrub_pass_bytes;
    const kvstore::SsdCounters& c = state.ssd.counters;
    wrong_now += c.wrong_records;
    table.Add({state.store, state.running() ? "running" : "idle", FormatBytes(static_cast<double>(pass_bytes)),
               FormatBytes(static_cast<double>(state.ssd.live_bytes)), absl::StrCat(c.scrub_passes),
               absl::StrCat(c.wrong_records), absl::StrCat(c.unreadable_records)});
    rows.push_back({{"store", state.store},
                    {"running", state.running()},
                    {"pass_bytes", pass_bytes},
                    {"live_bytes", state.ssd.live_bytes},
                    {"passes", c.scrub_passes},
                    {"scrubbed_bytes", c.scrubbed_bytes},
                    {"wrong_records", c.wrong_records},
                    {"unreadable_records", c.unreadable_records}});
  }
  if (o.flags.cluster.json) {
    PrintJson(rows);
  } else {
    table.Print();
  }
  return wrong_now > wrong_before ? Outcome(ExitCode::kWrongBytes) : absl::OkStatus();
}

}  // namespace

void AddStoreCheck(CLI::App& store, Action& action) {
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = store.add_subcommand(name, what);
    o->flags.Add(*verb);
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* verify = add("verify", "Read every plane back and compare it with its checksums", Verify);
  verify->add_option("--tenant", o->tenant, "Of this tenant only");
  CLI::App* scrub =
      add("scrub", "What the disks' scrubbers are at; with --start, have them read everything now", Scrub);
  scrub->add_flag("--start", o->start, "Begin a pass, and wait for its end");
  scrub->add_flag("--no-wait", o->no_wait, "Only begin");
  scrub->add_option("--timeout-s", o->timeout_s, "How long to wait")->capture_default_str()->check(kTimeoutSeconds);
}

}  // namespace perigee::cli
