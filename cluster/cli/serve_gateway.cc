// perigee serve gateway: the cluster's front door.
#include <algorithm>
#include <atomic>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "cluster/cli/command.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/member_flags.h"
#include "cluster/cli/watch_flags.h"
#include "cluster/contexts/chunk_index.h"
#include "cluster/contexts/context_rpc.h"
#include "cluster/contexts/context_service.h"
#include "cluster/contexts/open_registry.h"
#include "cluster/gateway/http_server.h"
#include "cluster/metrics/gateway_metrics.h"
#include "cluster/process.h"
#include "cluster/scheduler/cluster_backend.h"
#include "kvstore/sessions.h"
#include "kvstore/sharded_store.h"
#include "model/chat_template.h"
#include "model/config.h"
#include "model/measured_repair.h"
#include "model/tokenizer.h"
#include "node/composed_load.h"
#include "proto/grpc_server.h"
#include "spdlog/spdlog.h"
#include "transport/context.h"

namespace perigee::cli {
namespace {

struct Options {
  const CLI::App* verb = nullptr;  // That was chosen.
  std::string model_folder;
  std::string model_name;
  std::string transports;
  std::string secret_file;
  std::string contexts_folder;  // "": see OpenContextRegistry.
  std::string admin_listen;     // "": see AdminListen.
  std::string advertise_http;
  WatchFlags watch;
  int ready_fd = -1;
  double timeout_s = 600;
  double drain_s = 30;
  double read_timeout_s = 30, write_timeout_s = 30, idle_timeout_s = 75;
  uint64_t max_body_mib = 8, max_head_kib = 16;
  int replicas = 1;
  MemberFlags member;
  cluster::HttpServerOptions http;
  cluster::ClusterBackendOptions backend;
  std::string context_repair;  // "": as measured.
  cluster::ChunkIndexOptions chunks;
  bool no_store_answers = false;
};

void Log(const cluster::HttpRequestRecord& r) {
  if (!cluster::IsCompletion(r)) return;
  const RequestScope scope(r.request_id);
  const absl::Time now = SteadyNow();
  TracePast("request", now - r.took, now);
  spdlog::info("tenant '{}' {} -> {} in {} ms, first token {} ms, {}+{} tokens, {} cached{}{}", r.tenant, r.path,
               r.status, absl::ToInt64Milliseconds(r.took),
               r.first_token == absl::InfiniteDuration() ? -1 : absl::ToInt64Milliseconds(r.first_token),
               r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.cached_tokens, r.result.ok() ? "" : ": ",
               r.result.ok() ? "" : r.result.ToString());
}

// Beside the HTTP API, so that whoever reaches one reaches the other; on the port that the others are told.
absl::StatusOr<std::string> AdminListen(const Options& o) {
  if (o.admin_listen.empty()) {
    const std::string& told = o.member.advertise;
    const std::string host = HostOf(o.http.address);
    return absl::StrCat(host.empty() ? "0.0.0.0" : host, told.empty() ? ":0" : told.substr(told.rfind(':')));
  }
  // Members of etcd's clusters are on other machines, and would be told this one's loopback.
  if (absl::StartsWith(o.member.spec, "etcd:") && o.member.advertise.empty() && IsLoopback(o.admin_listen) &&
      !IsLoopback(o.http.address)) {
    return absl::FailedPreconditionError(absl::StrCat("--admin-listen ", o.admin_listen,
                                                      " is this machine's loopback, which others cannot connect to: ",
                                                      "leave it out, or say with --advertise where they can"));
  }
  return o.admin_listen;
}

// As the others are told it. `self`: where they reach the admin service.
absl::StatusOr<std::string> HttpAddress(const Options& o, const std::string& listening, const std::string& self) {
  if (!o.advertise_http.empty()) return o.advertise_http;
  if (!IsWildcard(listening)) return listening;
  if (IsLoopback(self) && o.member.advertise.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("the HTTP API listens on ", listening,
                                                      ", which others cannot connect to: say with --advertise-http "
                                                      "where, or with --advertise under which name all of it is"));
  }
  return UnderHostOf(self, listening);
}

// Answers to one prompt that every decode node of now can give at once: whichever gets the request takes all of them.
uint32_t MostSamples(const cluster::NodeSet& nodes) {
  uint32_t most = 0;
  for (const auto& node : nodes.Usable(cluster::Role::kDecode)) {
    const uint32_t here = node->info()->load().max_running();
    if (here > 0) most = most == 0 ? here : std::min(most, here);
  }
  return most;
}

absl::Status ServeGateway(const Options& o) {
  cluster::BlockTerminationSignals();
  PERIGEE_RETURN_IF_ERROR(o.watch.StartLogging("gateway"));
  cluster::ClusterBackendOptions backend_options = o.backend;
  if (!o.context_repair.empty()) {
    const absl::StatusOr<model::Repair> repair = model::Repair::Parse(o.context_repair);
    if (!repair.ok()) return UsageError(absl::StrCat("--context-repair: ", repair.status().message()));
    backend_options.context_repair = *repair;
  }
  PERIGEE_ASSIGN_OR_RETURN(backend_options.measured_repair, model::MeasuredRepair::Load(o.model_folder));
  PERIGEE_ASSIGN_OR_RETURN(const std::string admin_listen, AdminListen(o));
  cluster::RaiseDescriptorLimit();
  PERIGEE_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ModelConfig::Load(o.model_folder));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<model::Tokenizer> tokenizer, model::LoadTokenizer(o.model_folder));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<model::ChatTemplate> chat_template,
                           model::ChatTemplate::Load(o.model_folder));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::Member> member, o.member.Open());
  if (member == nullptr) return UsageError("which cluster? give --join");

  // Only to ask the stores where planes are: no payload comes here.
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<transport::Context> engine,
                           transport::Context::Create({.transports = o.transports, .guarded = true}));
  kvstore::ShardedStoreOptions store_options;
  store_options.read_stores = static_cast<size_t>(o.replicas) + 1;
  store_options.client.call_deadline = absl::Seconds(2);
  store_options.client.connect_deadline = absl::Seconds(2);
  if (!o.secret_file.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(store_options.client.secret, kvstore::ReadSecret(o.secret_file));
  }
  kvstore::ShardedStore store(member->stores(), engine.get(), store_options);
  const cluster::NodeSet nodes(&member->membership(), {});
  backend_options.store_answers = !o.no_store_answers;
  backend_options.tokenizer_digest = std::string(AsView(tokenizer->digest()));
  backend_options.context_opening = node::ContextOpening(*tokenizer);
  cluster::ClusterBackend backend(&nodes, &store, backend_options);

  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::ContextRegistry> registry,
                           cluster::OpenContextRegistry(o.member.spec, o.member.etcd, o.contexts_folder));
  cluster::ContextService contexts(
      registry.get(), tokenizer.get(),
      [&backend](const std::string& tenant, const std::vector<int32_t>& ids, const std::function<bool()>& cancelled) {
        return backend.PrefillAhead(tenant, ids, cancelled);
      },
      {.window_tokens = config.max_positions});

  cluster::ChunkIndex chunks(o.chunks);
  cluster::HttpServerOptions http = o.http;
  http.contexts = &contexts;
  if (o.chunks.tokens_per_tenant > 0) http.chunks = &chunks;
  http.request_timeout = absl::Seconds(o.timeout_s);
  http.read_timeout = absl::Seconds(o.read_timeout_s);
  http.write_timeout = absl::Seconds(o.write_timeout_s);
  http.idle_timeout = absl::Seconds(o.idle_timeout_s);
  http.max_body_bytes = o.max_body_mib << 20;
  http.max_head_bytes = o.max_head_kib << 10;
  http.most_samples = [&nodes] { return MostSamples(nodes); };
  std::string name = o.model_name;
  if (name.empty()) {
    const size_t end = o.model_folder.find_last_not_of('/');
    name = o.model_folder.substr(0, end + 1);
    name = name.substr(name.rfind('/') + 1);
  }
  cluster::GatewayMetrics metrics;
  const cluster::FrontModel front{.name = name,
                                  .tokenizer = tokenizer.get(),
                                  .chat_template = chat_template.get(),
                                  .context_tokens = config.max_positions,
                                  .created = absl::Now()};
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::HttpServer> server,
                           cluster::HttpServer::Start(http, front, &backend, [&metrics](const auto& record) {
                             metrics.Observe(record);
                             Log(record);
                           }));
  cluster::AdminOptions admin_options = o.member.Admin(*o.verb, member.get());
  if (!store_options.client.secret.empty()) {
    admin_options.admits = [own = store_options.client.secret](absl::string_view secret) { return secret == own; };
  }
  cluster::ContextRpc context_rpc(&contexts, admin_options.admits);
  cluster::AdminService admin(std::move(admin_options));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> admin_server,
                           GrpcServer::Start(admin_listen, {&admin, &context_rpc}));
  std::atomic<bool> draining{false};
  PERIGEE_ASSIGN_OR_RETURN(
      const std::unique_ptr<cluster::MetricsServer> metrics_server,
      o.watch.Serve(
          "gateway", [&](cluster::MetricFamilies& out) { metrics.Collect(backend.stats(), chunks.stats(), out); },
          [&] { return draining ? absl::UnavailableError("it is going to stop") : backend.Ready(); }));
  PERIGEE_ASSIGN_OR_RETURN(cluster::NodeRecord self, o.member.Record(cluster::Role::kGateway, admin_server->address()));
  PERIGEE_ASSIGN_OR_RETURN(self.http_address, HttpAddress(o, server->address(), self.address));
  self.metrics_address = MetricsAddress(metrics_server.get(), self.address);
  const auto load = [&backend] {
    const cluster::ClusterBackendStats stats = backend.stats();
    return cluster::NodeLoad{.running = static_cast<uint32_t>(stats.serving),
                             .queued = static_cast<uint32_t>(stats.waiting)};
  };
  admin.Begin(self, [load] {
    v1::ProgressResponse progress;
    progress.set_running(load().running);
    progress.set_queued(load().queued);
    return progress;
  });
  PERIGEE_RETURN_IF_ERROR(o.member.Join(*member, self, load));
  spdlog::info("serving model '{}' on {}", name, server->address());
  cluster::AnnounceReady(o.ready_fd, server->address());
  cluster::WaitForTermination();
  spdlog::info("stopping");
  draining = true;
  member->Leave();
  admin_server->Stop(absl::ZeroDuration());
  server->Drain(absl::Seconds(o.drain_s));
  return absl::OkStatus();
}

}  // namespace

void AddServeGateway(CLI::App& serve, Action& action) {
  CLI::App* verb = serve.add_subcommand("gateway", "The front door: OpenAI's HTTP API in front of the cluster");
  auto o = std::make_shared<Options>();
  o->model_folder = DefaultModelFolder();
  verb->add_option("--listen", o->http.address, "host:port of the HTTP API; port 0 takes a free one")
      ->capture_default_str();
  verb->add_option("--admin-listen", o->admin_listen,
                   "host:port of gRPC, for operators (default: --listen's host, and --advertise's port or a free one)");
  verb->add_option("--advertise-http", o->advertise_http,
                   "host:port of the HTTP API as the others are told it (default: where it listens; where that is a "
                   "wildcard, under --advertise's host)");
  verb->add_option("--model", o->model_folder,
                   "Model folder; only its config, its tokenizer and context_repair.json are read")
      ->capture_default_str();
  verb->add_option("--model-name", o->model_name, "The model's name in requests (default: its folder's)");
  verb->add_option("--transports", o->transports, "UCX transports, e.g. tcp or shm,tcp (default: UCX chooses)");
  verb->add_option("--store-secret-file", o->secret_file, "File with the secret that the stores ask for");
  verb->add_option("--contexts-dir", o->contexts_folder,
                   "Folder for registered contexts, shared by all gateways (default: 'contexts' beside the file of "
                   "--join static:FILE; with etcd they stand there)");
  verb->add_option("--chunk-index-entries", o->chunks.entries,
                   "Chunks of prompts with a context_separator that are remembered, to know those that come again")
      ->capture_default_str()
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 30));
  verb->add_option("--chunk-tokens-per-tenant", o->chunks.tokens_per_tenant,
                   "Of a tenant's chunks that are reused as contexts; 0: none is, and context_separator does nothing")
      ->capture_default_str();
  verb->add_option("--replicas", o->replicas, "As the nodes', so that all copies are looked at")->capture_default_str();
  verb->add_option("--keys-file", o->http.keys_file,
                   "API keys: a line 'KEY TENANT' each (default: everybody, without a tenant)");
  verb->add_option("--tls-cert", o->http.tls_certificate_file, "Certificate chain (PEM): HTTPS");
  verb->add_option("--tls-key", o->http.tls_key_file, "And its key");
  verb->add_option("--timeout-s", o->timeout_s, "Longest time of a request")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
  verb->add_option("--drain-s", o->drain_s, "When it is told to stop: how long requests under way may go on")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
  verb->add_option("--max-connections", o->http.max_connections, "A thread each; more are told 503")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--max-requests", o->http.max_requests,
                   "Under way, waiting ones included, a connection and a thread each; more are told 429")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--max-waiting", o->backend.queue.max_waiting,
                   "Of them, those that wait for a place in the cluster; more are told 429")
      ->capture_default_str();
  verb->add_option("--max-body-mib", o->max_body_mib, "Of a request; larger ones are told 413")
      ->capture_default_str()
      ->check(CLI::Range(uint64_t{1}, uint64_t{1024}));
  verb->add_option("--max-head-kib", o->max_head_kib, "Of a request; larger ones are told 431")
      ->capture_default_str()
      ->check(CLI::Range(uint64_t{1}, uint64_t{1024}));
  verb->add_option("--read-timeout-s", o->read_timeout_s, "For a request to arrive")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
  verb->add_option("--write-timeout-s", o->write_timeout_s, "How long a client may take nothing of its answer")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
  verb->add_option("--idle-timeout-s", o->idle_timeout_s, "How long a connection is kept between requests")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
  verb->add_option("--max-direct-tokens", o->backend.route.max_direct_tokens,
                   "Missing prompt tokens that a decode node computes itself, where there are prefill nodes")
      ->capture_default_str();
  verb->add_option("--context-repair", o->context_repair,
                   "Of contexts, where a request does not say: full, none, prefix:32 ... (default: what context eval "
                   "measured with the model and plan that are served, else full)");
  verb->add_flag("--no-store-answers", o->no_store_answers, "Do not keep answers for the next turn of a conversation");
  o->watch.Add(*verb);
  verb->add_option("--ready-fd", o->ready_fd, "Write 'ready ADDRESS' to this descriptor once serving");
  o->member.Add(*verb);
  verb->callback([o, verb, &action] {
    o->verb = verb;
    action = [o] { return ServeGateway(*o); };
  });
}

}  // namespace perigee::cli
