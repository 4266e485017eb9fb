// perigee up: a whole cluster on this machine, until it is told to stop.
#include <cstdio>

#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/local_cluster.h"
#include "spdlog/spdlog.h"

namespace perigee::cli {

void AddUp(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand(
      "up", "Run stores, prefill nodes, decode nodes and a gateway on this machine until interrupted");
  auto options = std::make_shared<cluster::LocalClusterOptions>();
  options->model_folder = DefaultModelFolder();
  options->state_folder = DefaultStateFolder();
  options->gateway = true;
  verb->add_option("--model", options->model_folder, "Model folder (Hugging Face files)")->capture_default_str();
  verb->add_option("--plan", options->plan_file,
                   "Plan file, or 'identity' (default: plan.json in the model folder, else identity)");
  verb->add_option("--state-dir", options->state_folder, "Data, logs and cluster.json")->capture_default_str();
  verb->add_option("--host", options->host, "Address to listen on")->capture_default_str();
  const CLI::Range nodes(1, 64);
  verb->add_option("--stores", options->stores, "How many stores")->capture_default_str()->check(nodes);
  verb->add_option("--prefill-nodes", options->prefill_nodes, "How many prefill nodes")
      ->capture_default_str()
      ->check(nodes);
  verb->add_option("--decode-nodes", options->decode_nodes, "How many decode nodes")
      ->capture_default_str()
      ->check(nodes);
  verb->add_option("--replicas", options->replicas, "Stores that are to have what is written")
      ->capture_default_str()
      ->check(CLI::Range(1, 8));
  verb->add_option("--gateway-port", options->gateway_port, "Of the HTTP API; 0: any free port")->capture_default_str();
  verb->add_option("--store-port", options->store_port, "Of the first store, the others' follow; 0: any free ports")
      ->capture_default_str();
  verb->add_option("--prefill-port", options->prefill_port, "0: any free port")->capture_default_str();
  verb->add_option("--decode-port", options->decode_port, "0: any free port")->capture_default_str();
  verb->add_option("--block-tokens", options->block_tokens, "16, 32, 64 or 128")->capture_default_str();
  verb->add_option("--chunk-tokens", options->chunk_tokens, "Prefill chunk")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--dram-mib", options->dram_mib, "The store's memory tier")
      ->capture_default_str()
      ->check(kMebibytes);
  verb->add_option("--ssd-mib", options->ssd_mib, "The store's disk tier")->capture_default_str()->check(kMebibytes);
  verb->add_option("--pool-mib", options->pool_mib, "Each node's memory for planes")
      ->capture_default_str()
      ->check(kMebibytes);
  verb->add_option("--transports", options->transports, "UCX transports, e.g. tcp or shm,tcp (default: UCX chooses)");
  verb->add_option("--log-level", options->log_level, "trace, debug, info, warn, error or off")->capture_default_str();
  verb->callback([options, &action] {
    action = [options]() -> absl::Status {
      cluster::BlockTerminationSignals();
      PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::LocalCluster> running,
                               cluster::LocalCluster::Start(*options));
      const cluster::ClusterAddresses& a = running->addresses();
      std::printf(
          "store    %s\nprefill  %s\ndecode   %s\ngateway  http://%s/v1\nready: addresses in %s; stop with Ctrl-C\n",
          a.store.c_str(), a.prefill.c_str(), a.decode.c_str(), a.gateway.c_str(), running->address_file().c_str());
      std::fflush(stdout);
      absl::Status status;
      while (!cluster::WaitForTermination(absl::Now() + absl::Milliseconds(200))) {
        const std::optional<std::string> dead = running->FindDead();
        if (!dead) continue;
        status = absl::UnavailableError(absl::StrCat("the ", *dead, " process ended by itself; stopping. Its log is ",
                                                     options->state_folder, "/", *dead, ".log"));
        break;
      }
      const absl::Status stopped = running->Stop();
      if (status.ok()) status = stopped;
      if (status.ok()) std::printf("stopped\n");
      return status;
    };
  });
}

}  // namespace perigee::cli
