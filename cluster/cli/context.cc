// perigee context add|ls|show|rm: texts that are computed once, kept pinned, and remembered by name.
//
// Names stand in a small file beside the cluster's (contexts.json): name, tokens, keys. The stores know only blocks.
// Pins end with a store's process, so what is shown of them is what the stores say: 'context add' with the same text
// pins them again.
#include <atomic>
#include <cstdio>
#include <filesystem>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/channel.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/prompt_keys.h"
#include "cluster/cli/store_keys.h"
#include "perigee/v1/prefill.grpc.pb.h"
#include "proto/grpc_status.h"

namespace perigee::cli {
namespace {

struct Options {
  ClusterFlags cluster;
  std::string contexts_file;  // "": beside the cluster's file.
  std::string name, file;
  std::string tenant, salt;
  uint32_t replicas = 1;
  bool hard = false;
  bool yes = false;
  double timeout_s = 600;
};

std::string ContextsFile(const Options& o) {
  if (!o.contexts_file.empty()) return o.contexts_file;
  return (std::filesystem::path(o.cluster.cluster_file).parent_path() / "contexts.json").string();
}

// {"version": 1, "contexts": {NAME: {...}}}; none without the file.
absl::StatusOr<Json> ReadContexts(const Options& o) {
  const std::string path = ContextsFile(o);
  const absl::StatusOr<std::string> text = ReadFile(path, size_t{64} << 20);
  if (absl::IsNotFound(text.status())) return Json::object();
  PERIGEE_RETURN_IF_ERROR(text.status());
  const Json json = Json::parse(*text, nullptr, false);
  if (!json.is_object() || json.value("version", 0) != 1 || !json.contains("contexts") ||
      !json["contexts"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a list of contexts of version 1"));
  }
  for (const auto& [name, context] : json["contexts"].items()) {
    if (!context.is_object() || !context.contains("keys") || !context["keys"].is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": context '", name, "' has no keys"));
    }
  }
  return json["contexts"];
}

absl::Status WriteContexts(const Options& o, const Json& contexts) {
  return WriteFileAtomically(ContextsFile(o), Json({{"version", 1}, {"contexts", contexts}}).dump(1) + "\n");
}

absl::StatusOr<std::vector<pod::BlockKey>> KeysOf(const Json& context) {
  std::vector<pod::BlockKey> keys;
  for (const Json& hex : context["keys"]) {
    if (!hex.is_string()) return absl::InvalidArgumentError("a context's key is not a string");
    const absl::StatusOr<pod::BlockKey> key = ParseKey(hex.get<std::string>());
    if (!key.ok()) return Annotate(key.status(), "the file of contexts");  // No fault of the command line.
    keys.push_back(*key);
  }
  return keys;
}

absl::StatusOr<Json> Find(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const Json contexts, ReadContexts(o));
  if (contexts.contains(o.name)) return contexts[o.name];
  return WithExitCode(absl::NotFoundError(absl::StrCat("no context is called '", o.name, "' in ", ContextsFile(o))),
                      ExitCode::kNotFound);
}

absl::StatusOr<uint64_t> PinAll(StoreFleet& fleet, const std::vector<pod::BlockKey>& keys, kvstore::PinMode mode,
                                uint32_t replicas) {
  std::atomic<uint64_t> planes = 0;
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string&, kvstore::StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const uint64_t n, InBatches(keys, [&](auto batch) -> absl::StatusOr<uint64_t> {
                               PERIGEE_ASSIGN_OR_RETURN(const uint32_t pinned, client.Pin(batch, mode, replicas));
                               return pinned;
                             }));
    planes += n;
    return absl::OkStatus();
  }));
  return planes.load();
}

absl::Status Add(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string text, ReadFile(o.file, 64 << 20));
  PERIGEE_ASSIGN_OR_RETURN(Json contexts, ReadContexts(o));
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  PERIGEE_ASSIGN_OR_RETURN(const pod::Identity identity, IdentityOf(cluster, o.tenant, o.salt));
  const cluster::NodeRecord* node = cluster.First(cluster::Role::kPrefill);
  if (node == nullptr) {
    return WithExitCode(absl::NotFoundError("the cluster has no serving prefill node"), ExitCode::kNotFound);
  }
  v1::PrefillRequest request;
  request.mutable_scope()->set_tenant(o.tenant);
  request.mutable_scope()->set_salt(o.salt);
  request.set_replicas(o.replicas);
  request.add_segments()->set_text(text);
  v1::PrefillResponse response;
  const auto stub = v1::PrefillNode::NewStub(cluster::ConnectTo(node->address));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(o.timeout_s)));
  PERIGEE_RETURN_IF_ERROR(
      Annotate(FromGrpc(stub->Prefill(&context, request, &response)), absl::StrCat("prefill node ", node->address)));
  const std::vector<int32_t> tokens(response.token_ids().begin(), response.token_ids().end());
  const std::vector<pod::BlockKey> keys = StoredChain(identity, tokens);
  if (keys.empty()) return absl::InvalidArgumentError(absl::StrCat(o.file, " is too short to be worth keeping"));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Of(cluster, ""));
  PERIGEE_ASSIGN_OR_RETURN(
      const uint64_t pinned,
      PinAll(*fleet, keys, o.hard ? kvstore::PinMode::kHard : kvstore::PinMode::kSoft, o.replicas));
  Json hex = Json::array();
  for (const pod::BlockKey& key : keys) hex.push_back(key.ToString());
  contexts[o.name] = {{"tokens", tokens.size()},
                      {"tenant", o.tenant},
                      {"salted", !o.salt.empty()},
                      {"replicas", o.replicas},
                      {"pin", o.hard ? "hard" : "soft"},
                      {"added_unix_us", absl::ToUnixMicros(absl::Now())},
                      {"keys", hex}};
  PERIGEE_RETURN_IF_ERROR(WriteContexts(o, contexts));
  if (o.cluster.json) {
    PrintJson({{"name", o.name},
               {"tokens", tokens.size()},
               {"blocks", keys.size()},
               {"prefilled_tokens", response.prefilled_tokens()},
               {"pinned_planes", pinned}});
  } else {
    std::printf("%s: %zu tokens in %zu blocks, %u of them computed now, %llu planes pinned\n", o.name.c_str(),
                tokens.size(), keys.size(), response.prefilled_tokens(), static_cast<unsigned long long>(pinned));
  }
  return absl::OkStatus();
}

// How many of the blocks have their distant plane in some store.
absl::StatusOr<size_t> CountStored(StoreFleet& fleet, const std::vector<pod::BlockKey>& keys) {
  absl::Mutex mu;
  absl::flat_hash_set<pod::BlockKey> stored;
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string&, kvstore::StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult found, client.Lookup(keys));
    absl::MutexLock lock(&mu);
    for (size_t i = 0; i < keys.size(); ++i) {
      for (const kvstore::FoundPlane& plane : found.blocks[i].planes) {
        if (plane.kind == pod::PlaneKind::kDistant) stored.insert(keys[i]);
      }
    }
    return absl::OkStatus();
  }));
  return stored.size();
}

// Planes of a context in all stores, copies counted.
struct Kept {
  uint64_t planes = 0, soft = 0, hard = 0;

  uint64_t pinned() const { return soft + hard; }
  const char* pin() const { return pinned() == 0 ? "none" : hard == 0 ? "soft" : soft == 0 ? "hard" : "mixed"; }
  std::string ToString() const { return absl::StrCat(pin(), ", ", pinned(), " of ", planes, " planes"); }
};

absl::StatusOr<Kept> CountPinned(StoreFleet& fleet, const std::vector<pod::BlockKey>& keys, const std::string& tenant) {
  Kept kept;
  if (keys.empty()) return kept;
  const absl::flat_hash_set<pod::BlockKey> wanted(keys.begin(), keys.end());
  // A chain's planes are one placement group's: the store looks through all of its planes, and sends few.
  const kvstore::ListFilter filter{.group = kvstore::GroupOf(keys.front())};
  absl::Mutex mu;
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string&, kvstore::StoreClient& client) {
    return ForEachPlane(client, tenant, filter, [&](const kvstore::ListedPlane& plane) {
      if (!wanted.contains(plane.id.key)) return true;
      absl::MutexLock lock(&mu);
      ++kept.planes;
      kept.soft += plane.pin == kvstore::PinMode::kSoft;
      kept.hard += plane.pin == kvstore::PinMode::kHard;
      return true;
    });
  }));
  return kept;
}

absl::Status List(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const Json contexts, ReadContexts(o));
  Json rows = Json::array();
  Table table({"CONTEXT", ">TOKENS", ">BLOCKS", ">STORED", "PIN", ">REPLICAS", "TENANT"});
  if (!contexts.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
    PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Of(cluster, ""));
    for (const auto& [name, context] : contexts.items()) {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, KeysOf(context));
      PERIGEE_ASSIGN_OR_RETURN(const size_t stored, CountStored(*fleet, keys));
      PERIGEE_ASSIGN_OR_RETURN(const Kept kept, CountPinned(*fleet, keys, context.value("tenant", "")));
      rows.push_back({{"name", name},
                      {"tokens", context.value("tokens", uint64_t{0})},
                      {"blocks", keys.size()},
                      {"stored_blocks", stored},
                      {"planes", kept.planes},
                      {"pinned_planes", kept.pinned()},
                      {"pin", kept.pin()},
                      {"asked_pin", context.value("pin", "")},
                      {"replicas", context.value("replicas", 1u)},
                      {"tenant", context.value("tenant", "")}});
      table.Add({name, absl::StrCat(context.value("tokens", uint64_t{0})), absl::StrCat(keys.size()),
                 absl::StrCat(stored), kept.ToString(), absl::StrCat(context.value("replicas", 1u)),
                 context.value("tenant", "")});
    }
  }
  if (o.cluster.json) {
    PrintJson(rows);
  } else {
    table.Print();
  }
  return absl::OkStatus();
}

absl::Status Show(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(Json context, Find(o));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, KeysOf(context));
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Of(cluster, ""));
  PERIGEE_ASSIGN_OR_RETURN(const size_t stored, CountStored(*fleet, keys));
  PERIGEE_ASSIGN_OR_RETURN(const Kept kept, CountPinned(*fleet, keys, context.value("tenant", "")));
  context["name"] = o.name;
  context["stored_blocks"] = stored;
  context["asked_pin"] = context.value("pin", "");
  context["pin"] = kept.pin();
  context["planes"] = kept.planes;
  context["pinned_planes"] = kept.pinned();
  if (o.cluster.json) {
    PrintJson(context);
    return absl::OkStatus();
  }
  std::printf("%s: %llu tokens, %zu blocks, %zu of them stored; pin: %s\n", o.name.c_str(),
              static_cast<unsigned long long>(context.value("tokens", uint64_t{0})), keys.size(), stored,
              kept.ToString().c_str());
  for (const pod::BlockKey& key : keys) std::printf("  %s\n", key.ToString().c_str());
  return absl::OkStatus();
}

absl::Status Remove(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const Json context, Find(o));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, KeysOf(context));
  PERIGEE_RETURN_IF_ERROR(
      Confirm(absl::StrCat("Forget context '", o.name, "' and unpin its ", keys.size(), " blocks?"), o.yes));
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Of(cluster, ""));
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t unpinned, PinAll(*fleet, keys, kvstore::PinMode::kNone, 0));
  PERIGEE_ASSIGN_OR_RETURN(Json contexts, ReadContexts(o));
  contexts.erase(o.name);
  PERIGEE_RETURN_IF_ERROR(WriteContexts(o, contexts));
  if (o.cluster.json) {
    PrintJson({{"name", o.name}, {"unpinned_planes", unpinned}});
  } else {
    std::printf("%s: forgotten; its blocks stay until others need the room\n", o.name.c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddContext(CLI::App& app, Action& action) {
  CLI::App* group = app.add_subcommand("context", "Texts that are computed once and kept, by name");
  group->require_subcommand(1);
  AddContextEval(*group, action);
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&), bool named) {
    CLI::App* verb = group->add_subcommand(name, what);
    o->cluster.Add(*verb);
    verb->add_option("--contexts", o->contexts_file, "File with the names (default: contexts.json beside --cluster)");
    if (named) verb->add_option("name", o->name, "The context's name")->required();
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* verb = add("add", "Compute a text through a prefill node, pin it and remember it", Add, true);
  verb->add_option("--file", o->file, "The text")->required();
  verb->add_option("--tenant", o->tenant, "Whose it is");
  verb->add_option("--salt", o->salt, "Requests find it only under the same salt");
  verb->add_option("--replicas", o->replicas, "Stores that are to have it")
      ->capture_default_str()
      ->check(CLI::Range(1u, kvstore::kMaxReplicas));
  verb->add_flag("--hard", o->hard, "Keep it in memory, whatever comes");
  verb->add_option("--timeout-s", o->timeout_s, "For the computing")->capture_default_str()->check(kTimeoutSeconds);
  add("ls", "All names, and how much of each is stored", List, false);
  add("show", "One context's blocks", Show, true);
  add("rm", "Forget a name and unpin its blocks", Remove, true)->add_flag("--yes", o->yes, "Do not ask");
}

}  // namespace perigee::cli
