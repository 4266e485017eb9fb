// The command line: one function per verb adds its options and its action to the program.
//
// Exit codes stand in exit_code.h.
#ifndef PERIGEE_CLUSTER_CLI_COMMAND_H_
#define PERIGEE_CLUSTER_CLI_COMMAND_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"

namespace perigee::cli {

// What was chosen on the command line; main runs it after parsing.
using Action = std::function<absl::Status()>;

// Of options in MiB: what is left of the range fits 64 bits in bytes.
inline const CLI::Range kMebibytes(uint64_t{1}, uint64_t{1} << 40);

// Of timeouts in seconds. CLI::Range lets NaN through.
inline const CLI::Validator kTimeoutSeconds(
    [](const std::string& text) -> std::string {
      double value = 0;
      const bool fits = CLI::detail::lexical_cast(text, value) && value >= 0.001 && value <= 86400;
      return fits ? "" : "'" + text + "' is not a time between 0.001 and 86400 seconds";
    },
    "SECONDS");

void AddServe(CLI::App& app, Action& action);
void AddServeGateway(CLI::App& serve, Action& action);  // Of AddServe.
void AddUp(CLI::App& app, Action& action);
void AddGenerate(CLI::App& app, Action& action);
void AddCluster(CLI::App& app, Action& action);
void AddClusterChange(CLI::App& cluster, Action& action);  // Of AddCluster.
void AddStore(CLI::App& app, Action& action);
void AddStoreChange(CLI::App& store, Action& action);   // Of AddStore.
void AddStorePlanes(CLI::App& store, Action& action);   // Likewise.
void AddStoreCheck(CLI::App& store, Action& action);    // Likewise.
void AddStoreArchive(CLI::App& store, Action& action);  // Likewise.
void AddWhy(CLI::App& app, Action& action);
void AddContext(CLI::App& app, Action& action);
void AddContextEval(CLI::App& context_group, Action& action);  // Of AddContext.
void AddConfig(CLI::App& app, Action& action);
void AddBench(CLI::App& app, Action& action);
void AddCompletion(CLI::App& app, Action& action);
void AddModel(CLI::App& app, Action& action);
void AddCalibrate(CLI::App& model, Action& action);  // Below `model`.
void AddDemo(CLI::App& app, Action& action);
void AddTrace(CLI::App& app, Action& action);

// $PERIGEE_HOME, else ~/.perigee: where `up` keeps its state and the other verbs look for it.
std::string DefaultStateFolder();

// The model that comes with the project: models/podling beside the sources or beside the installed program.
std::string DefaultModelFolder();

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_COMMAND_H_
