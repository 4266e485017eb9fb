// perigee context add|ls|show|rm: texts that are registered at the cluster's gateways, computed once, and named by
// requests. A gateway of the cluster is asked, as an HTTP client would, but for any tenant.
#include <cstdio>
#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/contexts/context_rpc.h"

namespace perigee::cli {
namespace {

constexpr absl::Duration kAskAgainAfter = absl::Milliseconds(100);
constexpr size_t kMaxFileBytes = size_t{64} << 20;  // Gateways take less, and say how much.

struct Options {
  ClusterFlags cluster;
  std::string tenant;
  std::vector<std::string> files, ids;
  std::string id;
  bool wait = false;
  bool yes = false;
  double timeout_s = 600;
};

const char* StateName(v1::ContextState state) {
  switch (state) {
    case v1::CONTEXT_STATE_PENDING:
      return "pending";
    case v1::CONTEXT_STATE_COMPUTING:
      return "computing";
    case v1::CONTEXT_STATE_READY:
      return "ready";
    case v1::CONTEXT_STATE_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

Json EntryJson(const v1::ContextEntry& entry) {
  Json json = {{"id", entry.id()},
               {"version", entry.version()},
               {"tokens", entry.tokens()},
               {"bytes", entry.bytes()},
               {"created_unix_us", entry.created_unix_us()},
               {"changed_unix_us", entry.changed_unix_us()},
               {"state", StateName(entry.state())}};
  if (!entry.error().empty()) json["error"] = entry.error();
  return json;
}

absl::StatusOr<std::unique_ptr<cluster::ContextClient>> Connect(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  const cluster::NodeRecord* gateway = cluster.First(cluster::Role::kGateway);
  if (gateway != nullptr) return std::make_unique<cluster::ContextClient>(gateway->address, cluster.secret);
  return WithExitCode(absl::NotFoundError("the cluster has no serving gateway: contexts are kept by gateways"),
                      ExitCode::kNotFound);
}

// An id that is not there is what the exit code says.
absl::Status Told(const absl::Status& status) {
  return absl::IsNotFound(status) ? WithExitCode(status, ExitCode::kNotFound) : status;
}

absl::StatusOr<std::vector<v1::PutContextRequest>> ReadAll(const Options& o) {
  if (!o.id.empty() && o.files.size() != 1) return UsageError("--id is for one file");
  std::vector<v1::PutContextRequest> requests;
  std::set<std::string> ids;
  for (const std::string& file : o.files) {
    v1::PutContextRequest request;
    request.set_tenant(o.tenant);
    request.set_id(o.id.empty() ? std::filesystem::path(file).stem().string() : o.id);
    if (!ids.insert(request.id()).second) {
      return UsageError(absl::StrCat("two files would be the context '", request.id(), "'"));
    }
    if (const absl::Status id = cluster::CheckContextId(request.id()); !id.ok()) {
      return UsageError(absl::StrCat(file, ": ", id.message(), ": say another with --id"));
    }
    PERIGEE_ASSIGN_OR_RETURN(*request.mutable_text(), ReadFile(file, kMaxFileBytes));
    requests.push_back(std::move(request));
  }
  return requests;
}

// Until all are computed. What one fails with; DEADLINE_EXCEEDED.
absl::Status AwaitReady(cluster::ContextClient& gateway, const std::vector<v1::PutContextRequest>& requests,
                        absl::Duration timeout, std::vector<v1::PutContextResponse>& done) {
  const absl::Time deadline = absl::Now() + timeout;
  ProgressBar bar("computing");
  for (size_t i = 0; i < requests.size();) {
    const v1::PutContextRequest& request = requests[i];
    bar.Set(i, requests.size(), request.id());
    PERIGEE_ASSIGN_OR_RETURN(const v1::ContextEntry entry, gateway.Get(request.tenant(), request.id()));
    const bool replaced = entry.content() != done[i].context().content();
    *done[i].mutable_context() = entry;
    if (replaced) return absl::AbortedError(absl::StrCat("context '", entry.id(), "' was replaced by somebody else"));
    if (entry.state() == v1::CONTEXT_STATE_FAILED) {
      return absl::UnknownError(absl::StrCat("context '", entry.id(), "' cannot be computed: ", entry.error()));
    }
    if (entry.state() == v1::CONTEXT_STATE_READY) {
      ++i;
      continue;
    }
    // The gateway has been started again.
    if (entry.state() == v1::CONTEXT_STATE_UNKNOWN) PERIGEE_RETURN_IF_ERROR(gateway.Put(request).status());
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "context '", entry.id(), "' is ", StateName(entry.state()), " after ", absl::FormatDuration(timeout),
          entry.error().empty() ? "" : ": ", entry.error(), "; computing goes on"));
    }
    absl::SleepFor(kAskAgainAfter);
  }
  return absl::OkStatus();
}

absl::Status Add(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<v1::PutContextRequest> requests, ReadAll(o));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::ContextClient> gateway, Connect(o));
  std::vector<v1::PutContextResponse> done;
  {
    ProgressBar bar("registering");
    for (const v1::PutContextRequest& request : requests) {
      bar.Set(done.size(), requests.size(), request.id());
      PERIGEE_ASSIGN_OR_RETURN(v1::PutContextResponse response, gateway->Put(request));
      done.push_back(std::move(response));
    }
  }
  absl::Status waited;
  if (o.wait) waited = AwaitReady(*gateway, requests, absl::Seconds(o.timeout_s), done);
  Json rows = Json::array();
  for (const v1::PutContextResponse& response : done) {
    rows.push_back(EntryJson(response.context()));
    rows.back()["new"] = response.created();
    if (o.cluster.json) continue;
    std::printf("%s: version %llu, %llu tokens, %s\n", response.context().id().c_str(),
                static_cast<unsigned long long>(response.context().version()),
                static_cast<unsigned long long>(response.context().tokens()), StateName(response.context().state()));
  }
  if (o.cluster.json) PrintJson(rows);
  return waited;
}

absl::Status List(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::ContextClient> gateway, Connect(o));
  Json rows = Json::array();
  Table table({"CONTEXT", ">VERSION", ">TOKENS", ">SIZE", ">AGE", "STATE"});
  std::string after;
  for (bool more = true; more;) {
    PERIGEE_ASSIGN_OR_RETURN(const v1::ListContextsResponse page, gateway->List(o.tenant, after));
    for (const v1::ContextEntry& entry : page.contexts()) {
      rows.push_back(EntryJson(entry));
      table.Add({entry.id(), absl::StrCat(entry.version()), absl::StrCat(entry.tokens()),
                 FormatBytes(static_cast<double>(entry.bytes())),
                 FormatAge(absl::Now() - absl::FromUnixMicros(entry.changed_unix_us())), StateName(entry.state())});
      after = entry.id();
    }
    more = page.more() && page.contexts_size() > 0;
  }
  if (o.cluster.json) {
    PrintJson(rows);
  } else {
    table.Print();
  }
  return absl::OkStatus();
}

absl::Status Show(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::ContextClient> gateway, Connect(o));
  const absl::StatusOr<v1::ContextEntry> entry = gateway->Get(o.tenant, o.ids[0]);
  PERIGEE_RETURN_IF_ERROR(Told(entry.status()));
  const std::string content =
      ToHex({reinterpret_cast<const uint8_t*>(entry->content().data()), entry->content().size()});
  if (o.cluster.json) {
    Json json = EntryJson(*entry);
    json["content_sha256"] = content;
    PrintJson(json);
    return absl::OkStatus();
  }
  const auto age = [](int64_t unix_us) { return FormatAge(absl::Now() - absl::FromUnixMicros(unix_us)); };
  std::printf("%s: version %llu, %llu tokens, %s\nadded %s ago, changed %s ago\ncontent %s\nstate: %s%s%s\n",
              entry->id().c_str(), static_cast<unsigned long long>(entry->version()),
              static_cast<unsigned long long>(entry->tokens()),
              FormatBytes(static_cast<double>(entry->bytes())).c_str(), age(entry->created_unix_us()).c_str(),
              age(entry->changed_unix_us()).c_str(), content.c_str(), StateName(entry->state()),
              entry->error().empty() ? "" : ": ", entry->error().c_str());
  return absl::OkStatus();
}

absl::Status Remove(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::ContextClient> gateway, Connect(o));
  // Nothing is deleted where one is misspelt.
  for (const std::string& id : o.ids) PERIGEE_RETURN_IF_ERROR(Told(gateway->Get(o.tenant, id).status()));
  PERIGEE_RETURN_IF_ERROR(Confirm(o.ids.size() == 1 ? absl::StrCat("Forget context '", o.ids[0], "'?")
                                                    : absl::StrCat("Forget ", o.ids.size(), " contexts?"),
                                  o.yes));
  Json rows = Json::array();
  for (const std::string& id : o.ids) {
    PERIGEE_RETURN_IF_ERROR(Told(gateway->Delete(o.tenant, id)));
    rows.push_back({{"id", id}, {"deleted", true}});
    if (!o.cluster.json) std::printf("%s: forgotten; its blocks stay until others need the room\n", id.c_str());
  }
  if (o.cluster.json) PrintJson(rows);
  return absl::OkStatus();
}

}  // namespace

void AddContext(CLI::App& app, Action& action) {
  CLI::App* group = app.add_subcommand("context", "Texts that are computed once and reused wherever they stand");
  group->require_subcommand(1);
  AddContextEval(*group, action);
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = group->add_subcommand(name, what);
    o->cluster.Add(*verb);
    verb->add_option("--tenant", o->tenant, "Whose they are: as the gateways' keys have it");
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* verb = add("add", "Register files' texts, and have them computed in the background", Add);
  verb->add_option("files", o->files, "Texts (UTF-8); each is called as its file, without the ending")->required();
  verb->add_option("--id", o->id, "What to call it instead; for one file");
  verb->add_flag("--wait", o->wait, "Until all are computed");
  verb->add_option("--timeout-s", o->timeout_s, "Of --wait")->capture_default_str()->check(kTimeoutSeconds);
  add("ls", "All contexts of a tenant", List);
  add("show", "One context", Show)->add_option("id", o->ids, "Its id")->required()->expected(1);
  verb = add("rm", "Forget contexts", Remove);
  verb->add_option("ids", o->ids, "Their ids")->required();
  verb->add_flag("--yes", o->yes, "Do not ask");
}

}  // namespace perigee::cli
