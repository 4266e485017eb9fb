// perigee serve store|prefill|decode: one process of a cluster. The gateway is in serve_gateway.cc.
#include <algorithm>
#include <map>

#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/cli/member_flags.h"
#include "cluster/cli/store_flags.h"
#include "cluster/cli/watch_flags.h"
#include "cluster/metrics/node_metrics.h"
#include "cluster/metrics/store_metrics.h"
#include "cluster/process.h"
#include "decode_node/service.h"
#include "kvstore/rebalance_wire.h"
#include "kvstore/server.h"
#include "node/node.h"
#include "prefill_node/service.h"
#include "proto/grpc_server.h"
#include "spdlog/spdlog.h"

namespace perigee::cli {
namespace {

const std::map<std::string, kvstore::Durability> kDurabilities = {{"best", kvstore::Durability::kBest},
                                                                  {"synced", kvstore::Durability::kSynced},
                                                                  {"dram", kvstore::Durability::kDram},
                                                                  {"replicated", kvstore::Durability::kReplicated}};

struct Options {
  const CLI::App* verb = nullptr;  // That was chosen.
  std::string listen;
  std::string transports;
  std::vector<std::string> devices;
  WatchFlags watch;
  int ready_fd = -1;
  MemberFlags member;
  // Store
  std::string advertise_host;
  std::string credentials;
  uint16_t data_port = 0;
  uint64_t dram_mib = 256;
  StoreFlags tiers;
  uint64_t move_mib_per_s = 200;
  // Nodes
  std::string store;
  int replicas = 1;
  double drain_s = 30;
  bool no_keep_planes = false, no_recompute = false;
  decode_node::DecodeOptions decode;
  std::string secret_file;
  model::ServedModelOptions model;
  uint64_t pool_mib = 256;
  double store_timeout_s = 20;
  prefill_node::PrefillOptions prefill;
  std::string durability = "best";
  uint32_t ttl_s = 0;
};

absl::Status WaitAndReport(const std::string& role, const std::string& address, int ready_fd) {
  spdlog::info("serving on {}", address);
  cluster::AnnounceReady(ready_fd, address);
  cluster::WaitForTermination();
  spdlog::info("stopping");
  return absl::OkStatus();
}

v1::ProgressResponse StoreProgress(kvstore::StoreServer& server) {
  v1::ProgressResponse progress;
  const kvstore::StoreStats stats = server.store().Stats();
  progress.set_dram_used_bytes(stats.slab_used_bytes);
  progress.set_ssd_used_bytes(stats.ssd.used_bytes);
  if (const auto rebalance = server.rebalance()) {
    kvstore::RebalanceToWire(*rebalance, progress.mutable_rebalance());
  }
  return progress;
}

absl::Status ServeStore(const Options& o) {
  cluster::BlockTerminationSignals();
  PERIGEE_RETURN_IF_ERROR(o.watch.StartLogging("store"));
  kvstore::ServerOptions options;
  const size_t colon = o.listen.rfind(':');
  int port = -1;
  if (colon == std::string::npos || !absl::SimpleAtoi(o.listen.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("--listen '", o.listen, "' is not host:port"));
  }
  options.host = o.listen.substr(0, colon);
  options.port = static_cast<uint16_t>(port);
  options.data_port = o.data_port;
  options.advertise_host = o.advertise_host;
  options.slab_bytes = o.dram_mib << 20;
  options.transport.transports = o.transports;
  options.transport.devices = o.devices;
  if (o.credentials.empty()) {
    spdlog::warn("no --credentials: every client is let in, none is trusted, and all payload goes by messages");
  } else {
    PERIGEE_ASSIGN_OR_RETURN(options.credentials, kvstore::ReadCredentials(o.credentials));
  }
  PERIGEE_ASSIGN_OR_RETURN(options.store, o.tiers.Options());
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::Member> member, o.member.Open());
  if (member != nullptr) {
    // Its name among the others is needed before its port is known, so both are.
    if (options.port == 0 && o.member.id.empty()) {
      return absl::InvalidArgumentError("a store of a cluster on any free port needs a name of its own: give --id");
    }
    PERIGEE_ASSIGN_OR_RETURN(const cluster::NodeRecord self, o.member.Record(cluster::Role::kStore, o.listen));
    options.directory = member->stores();
    options.store_id = self.id;
    options.rebalancer.bytes_per_s = o.move_mib_per_s << 20;
    if (!o.secret_file.empty()) {
      PERIGEE_ASSIGN_OR_RETURN(options.rebalancer.secret, kvstore::ReadSecret(o.secret_file));
    }
  }
  cluster::AdminOptions admin_options = o.member.Admin(*o.verb, member.get());
  if (!options.credentials.empty()) {
    admin_options.admits = [credentials = options.credentials](absl::string_view secret) {
      return std::any_of(credentials.begin(), credentials.end(),
                         [&](const kvstore::Credential& c) { return c.trusted && c.secret == secret; });
    };
  }
  cluster::AdminService admin(std::move(admin_options));
  options.more_services.push_back(&admin);
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<kvstore::StoreServer> server, kvstore::StoreServer::Start(options));
  PERIGEE_ASSIGN_OR_RETURN(cluster::NodeRecord self, o.member.Record(cluster::Role::kStore, server->address()));
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<cluster::MetricsServer> metrics,
                           o.watch.Serve(
                               "store",
                               [&server](cluster::MetricFamilies& out) {
                                 cluster::CollectStore(server->store().Stats(), server->rebalance(), out);
                               },
                               [&member] { return member == nullptr ? absl::OkStatus() : member->Ready(); }));
  self.metrics_address = MetricsAddress(metrics.get(), self.address);
  self.capacity.dram_bytes = options.slab_bytes;
  self.capacity.ssd_bytes = options.store.ssd.has_value() ? options.store.ssd->capacity_bytes : 0;
  admin.Begin(self, [server = server.get()] { return StoreProgress(*server); });
  if (member != nullptr) {
    PERIGEE_RETURN_IF_ERROR(o.member.Join(*member, self, [&server] {
      const kvstore::StoreStats stats = server->store().Stats();
      return cluster::NodeLoad{.dram_used_bytes = stats.slab_used_bytes, .ssd_used_bytes = stats.ssd.used_bytes};
    }));
  }
  PERIGEE_RETURN_IF_ERROR(WaitAndReport("store", server->address(), o.ready_fd));
  if (member != nullptr) member->Leave();
  metrics.reset();  // It looks at the store.
  server->Shutdown();
  return absl::OkStatus();
}

template <typename Service>
v1::ProgressResponse NodeProgress(const node::Node& node, const Service& service) {
  v1::ProgressResponse progress;
  const v1::NodeLoad load = service.Load();
  progress.set_running(load.running());
  progress.set_queued(load.queued());
  progress.set_pool_used_bytes(node.Info().pool_used_bytes());
  return progress;
}

void Collect(const node::Node& node, const prefill_node::PrefillService& service, cluster::MetricFamilies& out) {
  cluster::CollectNode(cluster::Role::kPrefill, node, service.Load(), service.prefill().metrics(), std::nullopt, out);
}

void Collect(const node::Node& node, const decode_node::DecodeService& service, cluster::MetricFamilies& out) {
  const decode_node::AnswerWriterStats answers = service.decode().writer_stats();
  cluster::CollectNode(
      cluster::Role::kDecode, node, service.Load(), service.decode().metrics(),
      cluster::StoredAnswers{
          .stored = answers.answers, .failed = answers.failed, .waiting = answers.waiting, .bytes = answers.bytes},
      out);
}

template <typename Service, typename... Arguments>
absl::Status ServeNode(cluster::Role role, const Options& o, Arguments... arguments) {
  cluster::BlockTerminationSignals();
  PERIGEE_RETURN_IF_ERROR(o.watch.StartLogging(cluster::RoleName(role)));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::Member> member, o.member.Open());
  node::NodeOptions options;
  options.model = o.model;
  options.store_address = o.store;
  if (!o.secret_file.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(options.store.secret, kvstore::ReadSecret(o.secret_file));
  }
  options.transports = o.transports;
  options.devices = o.devices;
  options.pool_bytes = o.pool_mib << 20;
  options.store_timeout = absl::Seconds(o.store_timeout_s);
  options.replicas = o.replicas;
  options.keep_planes = !o.no_keep_planes;
  options.recompute = !o.no_recompute;
  if (member != nullptr) options.stores = member->stores();
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<node::Node> node, node::Node::Create(options));
  Service service(node.get(), arguments...);
  cluster::AdminOptions admin_options = o.member.Admin(*o.verb, member.get());
  if (!options.store.secret.empty()) {
    admin_options.admits = [own = options.store.secret](absl::string_view secret) { return secret == own; };
  }
  cluster::AdminService admin(std::move(admin_options));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server, GrpcServer::Start(o.listen, {&service, &admin}));
  PERIGEE_ASSIGN_OR_RETURN(
      const std::unique_ptr<cluster::MetricsServer> metrics,
      o.watch.Serve(
          cluster::RoleName(role), [&node, &service](cluster::MetricFamilies& out) { Collect(*node, service, out); },
          [&service, &member] {
            if (service.draining()) return absl::UnavailableError("it is going to stop");
            return member == nullptr ? absl::OkStatus() : member->Ready();
          }));
  PERIGEE_ASSIGN_OR_RETURN(cluster::NodeRecord self, o.member.Record(role, server->address()));
  self.metrics_address = MetricsAddress(metrics.get(), self.address);
  self.capacity.pool_bytes = node->Info().pool_bytes();
  self.capacity.max_sequences = service.Load().max_running();
  self.model_fingerprint = ToHex(node->model().fingerprint());
  self.plan_id = ToHex(node->model().plan().id());
  admin.Begin(self, [&node, &service] { return NodeProgress(*node, service); });
  if (member != nullptr) {
    PERIGEE_RETURN_IF_ERROR(o.member.Join(*member, self, [&node, &service] {
      const v1::NodeLoad load = service.Load();
      return cluster::NodeLoad{
          .pool_used_bytes = node->Info().pool_used_bytes(), .running = load.running(), .queued = load.queued()};
    }));
  }
  PERIGEE_RETURN_IF_ERROR(WaitAndReport(cluster::RoleName(role), server->address(), o.ready_fd));
  // What is under way is finished, as a member: who looks sees that nothing new should come, and that it lives.
  service.SetDraining();
  const absl::Time end = absl::Now() + absl::Seconds(o.drain_s);
  server->Stop(end - absl::Now());
  service.Finish(end);
  if (member != nullptr) member->Leave();
  return absl::OkStatus();
}

// To be thrown while the command line is read, where it is a usage error.
void CheckStores(const Options& o) {
  if (o.store.empty() == o.member.spec.empty()) {
    throw CLI::ValidationError("give either --store, the address of a store, or --join, a cluster with stores");
  }
}

void AddCommon(CLI::App* verb, Options& o) {
  verb->add_option("--listen", o.listen, "host:port of the control plane; port 0 takes a free one")
      ->capture_default_str();
  verb->add_option("--transports", o.transports, "UCX transports, e.g. tcp or shm,tcp (default: UCX chooses)");
  verb->add_option("--devices", o.devices,
                   "Network devices of the data plane, e.g. eth0,eth1: payload is spread over them")
      ->delimiter(',');
  o.watch.Add(*verb);
  verb->add_option("--ready-fd", o.ready_fd, "Write 'ready ADDRESS' to this descriptor once serving");
  o.member.Add(*verb);
}

void AddNode(CLI::App* verb, Options& o) {
  verb->add_option("--store", o.store, "The store's control address, host:port: for one that is no cluster's");
  verb->add_option("--store-secret-file", o.secret_file, "File with this node's secret at the store");
  verb->add_option("--model", o.model.folder, "Model folder (Hugging Face files)")->capture_default_str();
  verb->add_option("--plan", o.model.plan_file,
                   "Plan file, or 'identity' (default: plan.json in the model folder, else identity)");
  verb->add_option("--block-tokens", o.model.block_tokens, "16, 32, 64 or 128")->capture_default_str();
  verb->add_option("--replicas", o.replicas, "Stores that are to have what this node writes")
      ->capture_default_str()
      ->check(CLI::Range(1, static_cast<int>(kvstore::kMaxReplicas)));
  verb->add_option("--drain-s", o.drain_s, "When it is told to stop: how long requests under way may go on")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
  verb->add_flag("--no-keep-planes", o.no_keep_planes, "Do not keep planes of earlier requests in this node's memory");
  verb->add_flag("--no-recompute", o.no_recompute, "Fetch what is stored, also where computing it again is faster");
  verb->add_option("--pool-mib", o.pool_mib, "Registered memory for planes")->capture_default_str()->check(kMebibytes);
  verb->add_option("--store-timeout-s", o.store_timeout_s, "For one batch of store calls or transfers")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
}

}  // namespace

void AddServe(CLI::App& app, Action& action) {
  CLI::App* serve = app.add_subcommand("serve", "Run one process of a cluster: store, prefill, decode or gateway");
  serve->require_subcommand(1);
  auto o = std::make_shared<Options>();
  o->model.folder = DefaultModelFolder();
  o->listen = "127.0.0.1:0";

  CLI::App* store = serve->add_subcommand("store", "The KV store");
  AddCommon(store, *o);
  store->add_option("--data-port", o->data_port, "Port of the data plane; 0 takes a free one")->capture_default_str();
  store->add_option("--advertise-host", o->advertise_host,
                    "Host under which clients reach the data plane (default: the control plane's)");
  store->add_option("--credentials", o->credentials,
                    "TOML file of who may talk to this store (docs/operations.md; default: everybody, none trusted)");
  store->add_option("--dram-mib", o->dram_mib, "Memory tier")->capture_default_str()->check(kMebibytes);
  o->tiers.Add(*store);
  store->add_option("--store-secret-file", o->secret_file,
                    "File with this store's secret at the cluster's other stores");
  store->add_option("--weight", o->member.weight, "Its share of the cluster's planes, beside the other stores' weights")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  store->add_option("--move-mib-per-s", o->move_mib_per_s, "Sent to other stores when planes have to move")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  store->callback([o, store, &action] {
    o->verb = store;
    action = [o] { return ServeStore(*o); };
  });

  CLI::App* prefill = serve->add_subcommand("prefill", "A prefill node");
  AddCommon(prefill, *o);
  AddNode(prefill, *o);
  prefill->add_option("--chunk-tokens", o->prefill.chunk_tokens, "Computed and committed together")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  prefill
      ->add_option("--branch-tokens", o->prefill.branch_tokens,
                   "Other prompts may go on from anywhere in so many last tokens of a prompt")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  prefill
      ->add_option("--durability", o->durability,
                   "Of what is stored: synced (on the store's disk), dram, replicated (in its remote tier), or best "
                   "(synced where the store has a disk that takes writes, else dram)")
      ->capture_default_str()
      ->check(CLI::IsMember(kDurabilities));
  prefill->add_option("--ttl-s", o->ttl_s, "What is stored is gone after so many seconds; 0: never")
      ->capture_default_str()
      ->check(CLI::Range(uint32_t{0}, kvstore::kMaxTtlSeconds));
  prefill->callback([o, prefill, &action] {
    CheckStores(*o);
    o->verb = prefill;
    action = [o] {
      o->prefill.write.durability = kDurabilities.at(o->durability);
      if (o->ttl_s > 0) o->prefill.write.ttl = absl::Seconds(o->ttl_s);
      return ServeNode<prefill_node::PrefillService>(cluster::Role::kPrefill, *o, o->prefill);
    };
  });

  CLI::App* decode = serve->add_subcommand("decode", "A decode node");
  AddCommon(decode, *o);
  AddNode(decode, *o);
  decode->add_option("--max-sequences", o->decode.max_sequences, "Answers generated at once; more requests wait")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  decode->callback([o, decode, &action] {
    CheckStores(*o);
    o->verb = decode;
    action = [o] { return ServeNode<decode_node::DecodeService>(cluster::Role::kDecode, *o, o->decode); };
  });
  AddServeGateway(*serve, action);
}

}  // namespace perigee::cli
