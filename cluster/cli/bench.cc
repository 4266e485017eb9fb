// perigee bench: runs the measuring programs that were built beside this one.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cluster/cli/command.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"

namespace perigee::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string name;
  std::vector<std::string> arguments;
  bool json = false;
};

// Beside the program where it is installed, or in the build folder.
std::map<std::string, fs::path> Programs() {
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  std::map<std::string, fs::path> programs;
  for (const fs::path& folder : {here, here.parent_path() / "bench"}) {
    for (const auto& entry : fs::directory_iterator(folder, error)) {
      const std::string name = entry.path().filename().string();
      if (absl::EndsWith(name, "_bench") && ::access(entry.path().c_str(), X_OK) == 0) {
        programs[name.substr(0, name.size() - std::strlen("_bench"))] = entry.path();
      }
    }
  }
  return programs;
}

absl::Status Run(const Options& o) {
  const std::map<std::string, fs::path> programs = Programs();
  if (programs.empty()) {
    return WithExitCode(absl::NotFoundError("no measuring programs are built beside this one: in the sources, 'make "
                                            "bench' builds and runs all of them"),
                        ExitCode::kNotFound);
  }
  if (o.name.empty()) {
    Json rows = Json::array();
    Table table({"BENCH", "PROGRAM"});
    for (const auto& [name, path] : programs) {
      rows.push_back({{"name", name}, {"program", path.string()}});
      table.Add({name, path.string()});
    }
    if (o.json) {
      PrintJson(rows);
    } else {
      table.Print();
    }
    return absl::OkStatus();
  }
  const auto program = programs.find(o.name);
  if (program == programs.end()) {
    std::vector<std::string> names;
    for (const auto& [name, path] : programs) names.push_back(name);
    return WithExitCode(
        absl::NotFoundError(absl::StrCat("there is no bench '", o.name, "', but ", absl::StrJoin(names, ", "))),
        ExitCode::kNotFound);
  }
  std::vector<std::string> arguments = o.arguments;
  arguments.insert(arguments.begin(), program->second.string());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  return absl::InternalError(absl::StrCat("cannot run ", argv[0], ": ", std::strerror(errno)));
}

}  // namespace

void AddBench(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("bench", "Run a measuring program; without a name: list them");
  auto o = std::make_shared<Options>();
  verb->add_option("name", o->name, "Which");
  verb->add_option("arguments", o->arguments, "For the program; put -- before those that begin with a dash");
  verb->add_flag("--json", o->json, "Print the list as JSON");
  verb->callback([o, &action] { action = [o] { return Run(*o); }; });
}

}  // namespace perigee::cli
