// A real Ceph of one monitor and one OSD on the loopback (one_node_ceph.sh), for as long as the object lives.
#ifndef PERIGEE_TESTS_KVSTORE_REMOTE_ONE_NODE_CEPH_H_
#define PERIGEE_TESTS_KVSTORE_REMOTE_ONE_NODE_CEPH_H_

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/file.h"

extern char** environ;

namespace perigee::kvstore {

class OneNodeCeph {
 public:
  // store: "bluestore" keeps what was written when the OSD is killed, "memstore" is faster. NOT_FOUND where Ceph is not
  // installed, UNAVAILABLE where it does not start within a minute.
  static absl::StatusOr<std::unique_ptr<OneNodeCeph>> Start(const std::string& script, const std::string& store) {
    std::unique_ptr<OneNodeCeph> ceph(new OneNodeCeph);
    std::string folder = (std::filesystem::temp_directory_path() / "perigee_ceph_XXXXXX").string();
    if (::mkdtemp(folder.data()) == nullptr) return absl::ErrnoToStatus(errno, folder);
    ceph->folder_ = folder;
    int in[2], out[2];
    if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
    ceph->input_ = UniqueFd(in[1]);
    ceph->output_ = UniqueFd(out[0]);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::vector<std::string> words = {script, folder, store};
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const int error = ::posix_spawn(&ceph->pid_, script.c_str(), &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    if (error != 0) return absl::ErrnoToStatus(error, script);
    const absl::StatusOr<std::string> said = ceph->Hear(absl::Seconds(75));
    if (!said.ok()) return said.status();
    if (absl::StartsWith(*said, "ready ")) {
      ceph->config_path_ = said->substr(6);
      return ceph;
    }
    return absl::StrContains(*said, "not installed") ? absl::NotFoundError(*said) : absl::UnavailableError(*said);
  }

  ~OneNodeCeph() {
    input_.Reset();  // The script ends its daemons.
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  OneNodeCeph(const OneNodeCeph&) = delete;
  OneNodeCeph& operator=(const OneNodeCeph&) = delete;

  const std::string& config_path() const { return config_path_; }
  static const char* pool() { return "kv"; }

  // A command of the script's; what follows "ok".
  absl::StatusOr<std::string> Do(absl::string_view command) {
    const std::string line = absl::StrCat(command, "\n");
    if (::write(input_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
      return absl::ErrnoToStatus(errno, "one_node_ceph.sh");
    }
    absl::StatusOr<std::string> said = Hear(absl::Seconds(75));
    if (said.ok() && !absl::StartsWith(*said, "ok")) return absl::UnavailableError(*said);
    return said.ok() ? said->substr(std::min<size_t>(3, said->size())) : said;
  }

 private:
  OneNodeCeph() = default;
  absl::StatusOr<std::string> Hear(absl::Duration limit) {
    const absl::Time deadline = absl::Now() + limit;
    std::string line;
    for (char byte; absl::Now() < deadline;) {
      pollfd ready{output_.get(), POLLIN, 0};
      if (::poll(&ready, 1, 200) != 1) continue;
      if (::read(output_.get(), &byte, 1) != 1) return absl::UnavailableError("one_node_ceph.sh has ended");
      if (byte == '\n') return line;
      line.push_back(byte);
    }
    return absl::DeadlineExceededError("one_node_ceph.sh says nothing");
  }

  pid_t pid_ = 0;
  UniqueFd input_, output_;
  std::string folder_, config_path_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_REMOTE_ONE_NODE_CEPH_H_
