// perigee store export|import: planes as a folder of records, with a manifest that says what is in it.
//
// DIR/manifest.json names every file; it is written last, so a folder with one is whole. DIR/XX/plane.KEY.KIND is a
// plane's record. Both verbs can be broken off and run again: what is there, and right, is not done twice.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/plane_file.h"
#include "cluster/cli/store_keys.h"
#include "kvstore/remote/remote_object.h"

namespace perigee::cli {
namespace {

namespace fs = std::filesystem;
using kvstore::PlaneId;

constexpr char kPrefix[] = "plane";
constexpr char kManifest[] = "manifest.json";
constexpr size_t kBatchPlanes = 32;
constexpr uint64_t kBatchBytes = uint64_t{16} << 20;

struct Options {
  StoreVerbFlags flags;
  std::string folder;
  std::string tenant;
  int replicas = 1;
};

std::string FileOf(const PlaneId& id) {
  return absl::StrCat(id.key.ToString().substr(0, 2), "/", kvstore::RemoteObjectName(kPrefix, id));
}

// What the manifest says of one plane, beside the file's name.
struct Entry {
  std::string root;
  int64_t base_position = 0;
  uint64_t payload_bytes = 0;
};
using Manifest = std::map<PlaneId, Entry>;

absl::Status WriteManifest(const std::string& folder, const Manifest& manifest) {
  Json planes = Json::array();
  for (const auto& [id, entry] : manifest) {
    planes.push_back({{"key", id.key.ToString()},
                      {"plane", pod::PlaneKindName(id.kind)},
                      {"root", entry.root},
                      {"base_position", entry.base_position},
                      {"payload_bytes", entry.payload_bytes},
                      {"file", FileOf(id)}});
  }
  const Json json = {{"version", 1}, {"planes", planes}};
  return WriteFileAtomically(absl::StrCat(folder, "/", kManifest), absl::StrCat(json.dump(1), "\n"));
}

absl::StatusOr<Manifest> ReadManifest(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kManifest);
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) {
    return absl::NotFoundError(
        absl::StrCat(path, " is not there (", text.status().message(), "): the export was not finished; run it again"));
  }
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  const auto wrong = [&](absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat(path, ": ", what)); };
  if (!json.is_object() || !json.contains("version") || json["version"] != 1)
    return wrong("not a manifest of version 1");
  if (!json.contains("planes") || !json["planes"].is_array()) return wrong("\"planes\" is not a list");
  Manifest manifest;
  for (const auto& row : json["planes"]) {
    for (const char* field : {"key", "plane", "root"}) {
      if (!row.is_object() || !row.contains(field) || !row[field].is_string())
        return wrong("a plane without its fields");
    }
    for (const char* field : {"base_position", "payload_bytes"}) {
      if (!row.contains(field) || !row[field].is_number_unsigned()) return wrong("a plane without its fields");
    }
    PlaneId id;
    PERIGEE_ASSIGN_OR_RETURN(id.key, ParseKey(row["key"].get<std::string>()));
    bool known = false;
    for (const pod::PlaneKind kind : pod::kPlaneKinds) {
      if (row["plane"].get<std::string>() != pod::PlaneKindName(kind)) continue;
      id.kind = kind;
      known = true;
    }
    if (!known) return wrong("a plane of an unknown kind");
    manifest[id] = {row["root"].get<std::string>(), row["base_position"].get<int64_t>(),
                    row["payload_bytes"].get<uint64_t>()};
  }
  return manifest;
}

// One export under way, over several stores.
class Export {
 public:
  Export(const Options& o, ProgressBar* bar, uint64_t whole) : o_(o), bar_(bar), whole_(whole) {}

  absl::Status From(kvstore::StoreClient& client, std::span<const kvstore::ListedPlane> planes) {
    std::vector<WantedPlane> batch;
    uint64_t bytes = 0;
    for (const kvstore::ListedPlane& plane : planes) {
      if (Done(plane.id)) continue;
      batch.push_back({plane.id, plane.meta.created_unix_us, plane.meta.ttl_s});
      bytes += plane.meta.payload_bytes;
      if (batch.size() < kBatchPlanes && bytes < kBatchBytes) continue;
      PERIGEE_RETURN_IF_ERROR(Read(client, batch));
      batch.clear();
      bytes = 0;
    }
    return Read(client, batch);
  }

  Manifest manifest;
  uint64_t written = 0, found = 0, vanished = 0, wrong = 0;

 private:
  // There already, from this run or an earlier one.
  bool Done(const PlaneId& id) {
    {
      absl::MutexLock lock(&mu_);
      if (!seen_.insert(id).second) return true;
    }
    const std::string path = absl::StrCat(o_.folder, "/", FileOf(id));
    std::error_code error;
    if (!fs::exists(path, error)) return false;
    const absl::StatusOr<PlaneFile> file = ReadPlaneFile(path);
    if (!file.ok() || file->id != id) return false;
    absl::MutexLock lock(&mu_);
    ++found;
    Note(*file);
    return true;
  }

  absl::Status Read(kvstore::StoreClient& client, std::span<const WantedPlane> batch) {
    if (batch.empty()) return absl::OkStatus();
    const std::vector<absl::StatusOr<PlaneFile>> files = FetchPlanes(client, batch);
    for (size_t i = 0; i < files.size(); ++i) {
      if (files[i].ok()) {
        const std::string path = absl::StrCat(o_.folder, "/", FileOf(files[i]->id));
        std::error_code error;
        fs::create_directories(fs::path(path).parent_path(), error);
        PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(path, files[i]->bytes));
      } else if (!absl::IsNotFound(files[i].status()) && !absl::IsDataLoss(files[i].status())) {
        return files[i].status();
      }
      absl::MutexLock lock(&mu_);
      if (files[i].ok()) {
        ++written;
        Note(*files[i]);
      } else if (absl::IsDataLoss(files[i].status())) {
        ++wrong;
        seen_.erase(batch[i].id);  // Another store may have it right.
      } else {
        ++vanished;
        seen_.erase(batch[i].id);
      }
    }
    return absl::OkStatus();
  }

  void Note(const PlaneFile& file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    manifest[file.id] = {file.root().ToString(), file.header.base_position, file.header.payload_bytes};
    bar_->Set(manifest.size(), std::max<uint64_t>(whole_, manifest.size()));
  }

  const Options& o_;
  ProgressBar* const bar_;
  const uint64_t whole_;
  absl::Mutex mu_;
  std::set<PlaneId> seen_ ABSL_GUARDED_BY(mu_);
};

absl::Status ExportAll(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet,
                           StoreFleet::Open(o.flags, StoreFleet::Use::kMovePayload));
  std::error_code error;
  fs::create_directories(o.folder, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("cannot make ", o.folder, ": ", error.message()));
  PERIGEE_ASSIGN_OR_RETURN(const ListedByStore listed, ListAll(*fleet, o.tenant));
  std::set<PlaneId> all;
  for (const auto& [store, planes] : listed) {
    for (const kvstore::ListedPlane& plane : planes) all.insert(plane.id);
  }
  fs::remove(absl::StrCat(o.folder, "/", kManifest), error);  // Not whole any more, until it is again.
  ProgressBar bar("exporting");
  Export run(o, &bar, all.size());
  PERIGEE_RETURN_IF_ERROR(fleet->ForEach(
      [&](const std::string& id, kvstore::StoreClient& client) { return run.From(client, listed.at(id)); }));
  PERIGEE_RETURN_IF_ERROR(WriteManifest(o.folder, run.manifest));
  if (o.flags.cluster.json) {
    PrintJson({{"planes", run.manifest.size()},
               {"written", run.written},
               {"found", run.found},
               {"vanished", run.vanished},
               {"wrong", run.wrong},
               {"folder", o.folder}});
  } else {
    std::printf("%zu planes in %s: %llu written, %llu there before; %llu were gone when they were read, %llu wrong\n",
                run.manifest.size(), o.folder.c_str(), static_cast<unsigned long long>(run.written),
                static_cast<unsigned long long>(run.found), static_cast<unsigned long long>(run.vanished),
                static_cast<unsigned long long>(run.wrong));
  }
  return run.wrong > 0 ? Outcome(ExitCode::kWrongBytes) : absl::OkStatus();
}

absl::Status ImportAll(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(o.folder));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet,
                           StoreFleet::Open(o.flags, StoreFleet::Use::kMovePayload));
  // Chain by chain, and parents before children: what is broken off has no holes.
  std::vector<std::pair<PlaneId, Entry>> order(manifest.begin(), manifest.end());
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::tie(a.second.root, a.second.base_position, a.first) <
           std::tie(b.second.root, b.second.base_position, b.first);
  });
  ProgressBar bar("importing");
  uint64_t stored = 0, done = 0;
  std::vector<std::string> wrong;
  std::vector<PlaneFile> batch;
  uint64_t bytes = 0;
  const auto store = [&]() -> absl::Status {
    if (batch.empty()) return absl::OkStatus();
    PERIGEE_ASSIGN_OR_RETURN(const size_t n, StorePlanes(fleet->sharded(), batch[0].root(), batch, o.replicas));
    stored += n;
    batch.clear();
    bytes = 0;
    return absl::OkStatus();
  };
  for (const auto& [id, entry] : order) {
    absl::StatusOr<PlaneFile> file = ReadPlaneFile(absl::StrCat(o.folder, "/", FileOf(id)));
    bar.Set(++done, order.size());
    if (file.ok() && file->id != id) file = absl::DataLossError(absl::StrCat(FileOf(id), " is another plane's"));
    if (!file.ok()) {
      wrong.push_back(std::string(file.status().message()));
      continue;
    }
    if (!batch.empty() && (batch[0].root() != file->root() || batch.size() == kBatchPlanes || bytes >= kBatchBytes)) {
      PERIGEE_RETURN_IF_ERROR(store());
    }
    bytes += file->header.payload_bytes;
    batch.push_back(*std::move(file));
  }
  PERIGEE_RETURN_IF_ERROR(store());
  if (o.flags.cluster.json) {
    PrintJson({{"planes", order.size()},
               {"stored", stored},
               {"found", order.size() - wrong.size() - stored},
               {"wrong", wrong}});
  } else {
    std::printf("%zu planes: %llu stored, %llu were there (or their time has passed), %zu files wrong\n", order.size(),
                static_cast<unsigned long long>(stored),
                static_cast<unsigned long long>(order.size() - wrong.size() - stored), wrong.size());
    for (const std::string& what : wrong) std::printf("WRONG  %s\n", what.c_str());
  }
  return wrong.empty() ? absl::OkStatus() : Outcome(ExitCode::kWrongBytes);
}

}  // namespace

void AddStoreArchive(CLI::App& store, Action& action) {
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = store.add_subcommand(name, what);
    o->flags.Add(*verb);
    verb->add_option("folder", o->folder, "The folder")->required();
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* out = add("export", "Write all planes into a folder; again: only what is missing there", ExportAll);
  out->add_option("--tenant", o->tenant, "Of this tenant only");
  CLI::App* in = add("import", "Store the planes of a folder that 'export' wrote", ImportAll);
  in->add_option("--replicas", o->replicas, "Stores that are to have them")
      ->capture_default_str()
      ->check(CLI::Range(1, static_cast<int>(kvstore::kMaxReplicas)));
}

}  // namespace perigee::cli
