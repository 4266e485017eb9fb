// perigee generate: one prompt through a running cluster.
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/cli/exit_code.h"
#include "cluster/client.h"

namespace perigee::cli {
namespace {

struct Options {
  std::string cluster_file = DefaultStateFolder() + "/cluster.json";
  std::vector<std::string> context_files;
  std::string prompt;
  std::string prompt_file;
  double timeout_s = 120;
  bool json = false;
  cluster::GenerateOptions request;
};

absl::Status Run(Options options) {
  for (const std::string& file : options.context_files) {
    PERIGEE_ASSIGN_OR_RETURN(std::string text, ReadFile(file, 64 << 20));
    options.request.segments.push_back(std::move(text));
  }
  if (!options.prompt_file.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(options.prompt, ReadFile(options.prompt_file, 64 << 20));
  }
  if (!options.prompt.empty()) options.request.segments.push_back(options.prompt);
  if (options.request.segments.empty())
    return UsageError("nothing to run: give --prompt, --prompt-file or --context-file");
  options.request.timeout = absl::Seconds(options.timeout_s);

  PERIGEE_ASSIGN_OR_RETURN(const cluster::ClusterAddresses addresses,
                           cluster::ClusterAddresses::Read(options.cluster_file));
  cluster::ClusterClient client(addresses);
  std::function<void(absl::string_view)> on_text;
  if (!options.json) {
    on_text = [](absl::string_view text) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    };
  }
  PERIGEE_ASSIGN_OR_RETURN(const cluster::GenerateResult result, client.Generate(options.request, on_text));
  const double ttft_ms = absl::ToDoubleMilliseconds(result.time_to_first_token);
  if (options.json) {
    // The answer may hold any bytes a model can say; JSON takes valid UTF-8 only, and the decode node sends nothing
    // else.
    const nlohmann::ordered_json json = {{"text", result.text},
                                         {"token_ids", result.token_ids},
                                         {"finish_reason", result.finished.reason()},
                                         {"prompt_tokens", result.prefill.token_ids_size()},
                                         {"prefilled_tokens", result.prefill.prefilled_tokens()},
                                         {"reused_tokens", result.prefill.reused_tokens()},
                                         {"fetched_tokens", result.started.fetched_tokens()},
                                         {"bytes_full", result.prefill.bytes_full()},
                                         {"bytes_stored", result.prefill.bytes_stored()},
                                         {"bytes_fetched", result.started.bytes_fetched()},
                                         {"ttft_ms", ttft_ms},
                                         {"decode_tokens_per_s", result.tokens_per_s},
                                         {"attempts", result.attempts}};
    std::printf("%s\n", json.dump(2).c_str());
    return absl::OkStatus();
  }
  std::printf("\n");
  if (::isatty(STDERR_FILENO)) {
    std::fprintf(stderr,
                 "prompt %d tokens: %u computed, %u reused; %llu bytes fetched of %llu dense; first token after %.1f "
                 "ms, then %.0f tokens/s\n",
                 result.prefill.token_ids_size(), result.prefill.prefilled_tokens(), result.prefill.reused_tokens(),
                 static_cast<unsigned long long>(result.started.bytes_fetched()),
                 static_cast<unsigned long long>(result.prefill.bytes_full()), ttft_ms, result.tokens_per_s);
  }
  return absl::OkStatus();
}

}  // namespace

void AddGenerate(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("generate", "Run one prompt through a running cluster and print the answer");
  auto o = std::make_shared<Options>();
  verb->add_option("--cluster", o->cluster_file, "Address file written by 'perigee up'")->capture_default_str();
  verb->add_option("--context-file", o->context_files,
                   "Text before the prompt; may be repeated; each is reused by later requests");
  CLI::Option* prompt = verb->add_option("--prompt", o->prompt, "The prompt");
  verb->add_option("--prompt-file", o->prompt_file, "The prompt, from a file")->excludes(prompt);
  verb->add_option("--max-tokens", o->request.max_tokens, "Longest answer")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--temperature", o->request.temperature, "0: greedy")->capture_default_str();
  verb->add_option("--top-p", o->request.top_p, "0: off")->capture_default_str();
  verb->add_option("--top-k", o->request.top_k, "0: off")->capture_default_str();
  verb->add_option("--seed", o->request.seed, "Of the sampling")->capture_default_str();
  verb->add_option("--stop", o->request.stop, "End the answer before this text; may be repeated");
  verb->add_flag("--ignore-eos", o->request.ignore_eos, "Go on past the end-of-sequence token");
  verb->add_flag("--no-bos", o->request.no_bos, "Do not begin with the model's begin-of-sequence token");
  verb->add_option("--tenant", o->request.tenant, "Whose blocks may be reused");
  verb->add_option("--salt", o->request.salt, "Blocks are shared only under the same salt");
  verb->add_option("--timeout-s", o->timeout_s, "For the whole request")->capture_default_str()->check(kTimeoutSeconds);
  verb->add_flag("--json", o->json, "Print one JSON object instead of text");
  verb->callback([o, &action] { action = [o] { return Run(*o); }; });
}

}  // namespace perigee::cli
