// perigee store get|put: one plane out of the stores into a file, and back.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/plane_file.h"
#include "cluster/cli/store_keys.h"

namespace perigee::cli {
namespace {

struct Options {
  StoreVerbFlags flags;
  std::string key;
  std::string plane = "distant";
  std::string file;
  int replicas = 1;
};

Json FileJson(const PlaneFile& plane, const std::string& path) {
  return {{"key", plane.id.key.ToString()},
          {"plane", pod::PlaneKindName(plane.id.kind)},
          {"tenant", plane.header.tenant},
          {"tokens", plane.header.tokens},
          {"base_position", plane.header.base_position},
          {"payload_bytes", plane.header.payload_bytes},
          {"file", path},
          {"file_bytes", plane.bytes.size()}};
}

absl::Status Get(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet,
                           StoreFleet::Open(o.flags, StoreFleet::Use::kMovePayload));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, ResolveKeys(*fleet, {o.key}, ""));
  kvstore::PlaneId id{keys[0], pod::PlaneKind::kDistant};
  for (const pod::PlaneKind kind : pod::kPlaneKinds) {
    if (o.plane == pod::PlaneKindName(kind)) id.kind = kind;
  }
  absl::Mutex mu;
  absl::StatusOr<PlaneFile> plane = absl::NotFoundError(absl::StrCat("no store has ", id.ToString()));
  const auto visited = fleet->TryEach([&](const std::string&, kvstore::StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult found, client.Lookup({&id.key, 1}));
    const WantedPlane wanted{.id = id, .created_unix_us = absl::ToUnixMicros(absl::Now())};
    for (const kvstore::FoundPlane& there : found.blocks[0].planes) {
      if (there.kind != id.kind) continue;
      absl::StatusOr<PlaneFile> read = std::move(FetchPlanes(client, {&wanted, 1})[0]);
      absl::MutexLock lock(&mu);
      if (!plane.ok()) plane = std::move(read);
    }
    return absl::OkStatus();
  });
  if (absl::IsNotFound(plane.status())) {
    for (const auto& v : visited) {
      if (!v.status.ok()) return Annotate(v.status, absl::StrCat("store ", v.store.address));
    }
    return WithExitCode(plane.status(), ExitCode::kNotFound);
  }
  if (absl::IsDataLoss(plane.status())) return WithExitCode(plane.status(), ExitCode::kWrongBytes);
  PERIGEE_RETURN_IF_ERROR(plane.status());
  PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(o.file, plane->bytes));
  if (o.flags.cluster.json) {
    PrintJson(FileJson(*plane, o.file));
  } else {
    std::printf("%s: %s, %d tokens at %lld, %s of payload, checked\n", o.file.c_str(), id.ToString().c_str(),
                plane->header.tokens, static_cast<long long>(plane->header.base_position),
                FormatBytes(static_cast<double>(plane->header.payload_bytes)).c_str());
  }
  return absl::OkStatus();
}

absl::Status Put(const Options& o) {
  absl::StatusOr<PlaneFile> plane = ReadPlaneFile(o.file);
  if (absl::IsDataLoss(plane.status())) return WithExitCode(plane.status(), ExitCode::kWrongBytes);
  PERIGEE_RETURN_IF_ERROR(plane.status());
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet,
                           StoreFleet::Open(o.flags, StoreFleet::Use::kMovePayload));
  PERIGEE_ASSIGN_OR_RETURN(const size_t stored, StorePlanes(fleet->sharded(), plane->root(), {&*plane, 1}, o.replicas));
  if (o.flags.cluster.json) {
    Json json = FileJson(*plane, o.file);
    json["stored"] = stored > 0;
    PrintJson(json);
  } else {
    std::printf("%s: %s\n", plane->id.ToString().c_str(),
                stored > 0 ? "stored" : "nothing to do: it is there already, or its time has passed");
  }
  return absl::OkStatus();
}

}  // namespace

void AddStorePlanes(CLI::App& store, Action& action) {
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = store.add_subcommand(name, what);
    o->flags.Add(*verb);
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* get = add("get", "Write one plane, with its header, into a file", Get);
  get->add_option("key", o->key, "Block key, or an unambiguous beginning of it")->required();
  get->add_option("--plane", o->plane, "distant, proximal or summary")
      ->capture_default_str()
      ->check(CLI::IsMember({"distant", "proximal", "summary"}));
  get->add_option("-o,--output", o->file, "The file")->required();
  CLI::App* put = add("put", "Store the plane of a file that 'get' or 'export' wrote", Put);
  put->add_option("file", o->file, "The file")->required();
  put->add_option("--replicas", o->replicas, "Stores that are to have it")
      ->capture_default_str()
      ->check(CLI::Range(1, static_cast<int>(kvstore::kMaxReplicas)));
}

}  // namespace perigee::cli
