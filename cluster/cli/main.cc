// perigee: one program, one verb per thing an operator does.
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "base/log.h"
#include "cluster/cli/command.h"
#include "cluster/cli/exit_code.h"

namespace perigee::cli {

std::string DefaultStateFolder() {
  if (const char* home = std::getenv("PERIGEE_HOME")) return home;
  if (const char* home = std::getenv("HOME")) return std::string(home) + "/.perigee";
  return ".perigee";
}

std::string DefaultModelFolder() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  for (std::filesystem::path folder = self.parent_path(); !error && folder.has_relative_path();
       folder = folder.parent_path()) {
    const std::filesystem::path model = folder / "models" / "podling";
    if (std::filesystem::exists(model / "config.json", error)) return model.string();
  }
  return "models/podling";
}

}  // namespace perigee::cli

int main(int argc, char** argv) {
  using namespace perigee;
  CLI::App app("Perigee: a KV-cache storage and transfer service for LLM inference", "perigee");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string(PERIGEE_VERSION));
  app.get_formatter()->column_width(34);
  cli::Action action;
  cli::AddUp(app, action);
  cli::AddGenerate(app, action);
  cli::AddCluster(app, action);
  cli::AddStore(app, action);
  cli::AddWhy(app, action);
  cli::AddContext(app, action);
  cli::AddModel(app, action);
  cli::AddDemo(app, action);
  cli::AddServe(app, action);
  cli::AddConfig(app, action);
  cli::AddBench(app, action);
  cli::AddCompletion(app, action);
  cli::AddTrace(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : static_cast<int>(cli::ExitCode::kUsage);
  }
  const absl::Status status = action();
  if (!status.ok() && !status.message().empty()) {
    std::fprintf(stderr, "perigee: %s (%s)\n", std::string(status.message()).c_str(),
                 absl::StatusCodeToString(status.code()).c_str());
  }
  return static_cast<int>(cli::ExitCodeOf(status));
}
