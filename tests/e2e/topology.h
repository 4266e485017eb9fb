// cluster/local/topology.py as tests use it: a cluster on network namespaces that goes with the object, and with the
// process however that ends.
#ifndef PERIGEE_TESTS_E2E_TOPOLOGY_H_
#define PERIGEE_TESTS_E2E_TOPOLOGY_H_

#include <spawn.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "program.h"

namespace perigee {

// Runs a command to its end; its standard output. UNIMPLEMENTED for exit code 77: not possible on this machine.
inline absl::StatusOr<std::string> RunCommand(const std::vector<std::string>& command) {
  std::string quoted;
  for (const std::string& word : command) absl::StrAppend(&quoted, "'", word, "' ");
  TempFolder folder;
  const std::string errors = folder.path() + "/errors";
  FILE* pipe = ::popen(absl::StrCat(quoted, "2>", errors).c_str(), "re");
  if (pipe == nullptr) return absl::InternalError(absl::StrCat("popen: ", quoted));
  std::string out;
  char buffer[4096];
  for (size_t n; (n = ::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.append(buffer, n);
  const int status = ::pclose(pipe);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return out;
  const std::string message = absl::StrCat(command[0], ": ", ReadFile(errors).value_or(""));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return absl::UnimplementedError(message);
  return absl::InternalError(message);
}

class Topology {
 public:
  struct Node {
    std::string name, role, address;
    pid_t pid = 0;
    std::string state;  // "running", "paused", "gone"
    int64_t rss_bytes = 0;
    int descriptors = 0;
    int threads = 0;
  };

  // options: of the script's `up`.
  static absl::StatusOr<std::unique_ptr<Topology>> Up(const std::vector<std::string>& options) {
    std::unique_ptr<Topology> topology(new Topology);
    std::vector<std::string> up = {"up", "--program", PERIGEE_PROGRAM, "--until-pid", absl::StrCat(::getpid())};
    up.insert(up.end(), options.begin(), options.end());
    const auto done = topology->Script(up);
    if (!done.ok()) return done.status();
    return topology;
  }
  ~Topology() { Script({"down", "--now"}).IgnoreError(); }

  absl::StatusOr<std::string> Script(const std::vector<std::string>& verb) const {
    std::vector<std::string> command = {"python3", std::string(PERIGEE_SOURCE_DIR) + "/cluster/local/topology.py",
                                        "--dir", folder_.path()};
    command.insert(command.end(), verb.begin(), verb.end());
    return RunCommand(command);
  }
  // signal: "-9", "-STOP", "-CONT" or "-TERM".
  absl::Status Kill(const std::string& node, const std::string& signal) const {
    return Script({"kill", node, signal}).status();
  }
  // Does not wait until it serves.
  absl::Status Start(const std::string& node) const { return Script({"start", node, "--no-wait"}).status(); }

  std::vector<Node> Nodes() const {
    const auto text = Script({"status", "--json"});
    EXPECT_TRUE(text.ok()) << text.status();
    std::vector<Node> nodes;
    if (!text.ok()) return nodes;
    const auto status = nlohmann::json::parse(*text);
    for (const auto& row : status["nodes"]) {
      nodes.push_back({.name = row["node"],
                       .role = row["role"],
                       .address = row["address"],
                       .pid = row["pid"].is_null() ? 0 : row["pid"].get<pid_t>(),
                       .state = row["state"],
                       .rss_bytes = row["rss_bytes"],
                       .descriptors = row["descriptors"],
                       .threads = row["threads"]});
    }
    return nodes;
  }
  std::vector<Node> NodesOf(const std::string& role) const {
    std::vector<Node> nodes = Nodes();
    std::erase_if(nodes, [&](const Node& node) { return node.role != role; });
    return nodes;
  }
  std::string secret_file() const { return folder_.path() + "/secret"; }
  std::string Log(const std::string& node) const {
    return ReadFile(absl::StrCat(folder_.path(), "/", node, "/log")).value_or("");
  }
  const std::string& folder() const { return folder_.path(); }

 private:
  Topology() = default;
  TempFolder folder_;
};

}  // namespace perigee

#endif  // PERIGEE_TESTS_E2E_TOPOLOGY_H_
