#include "cluster/local_cluster.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "base/bytes.h"
#include "base/file.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

constexpr absl::Duration kStopTimeout = absl::Seconds(20);

absl::Status WritePrivateFile(const std::string& path, const std::string& text) {
  std::error_code error;
  std::filesystem::remove(path, error);
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file) return ErrnoStatus("create", path, errno);
  if (write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return ErrnoStatus("write", path, errno);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(LocalClusterOptions options) {
  if (options.executable.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(options.executable, SelfExecutable());
  }
  std::error_code error;
  std::filesystem::create_directories(options.state_folder, error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat("state folder '", options.state_folder, "': ", error.message()));
  }
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(std::move(options)));
  PERIGEE_RETURN_IF_ERROR(cluster->MakeSecret());
  PERIGEE_RETURN_IF_ERROR(cluster->StartStore());
  const LocalClusterOptions& o = cluster->options_;
  PERIGEE_ASSIGN_OR_RETURN(cluster->prefill_, cluster->LaunchNode("prefill", o.prefill_port));
  PERIGEE_ASSIGN_OR_RETURN(cluster->decode_, cluster->LaunchNode("decode", o.decode_port));
  PERIGEE_ASSIGN_OR_RETURN(cluster->addresses_.prefill, cluster->prefill_->WaitReady(o.start_timeout));
  PERIGEE_ASSIGN_OR_RETURN(cluster->addresses_.decode, cluster->decode_->WaitReady(o.start_timeout));
  PERIGEE_RETURN_IF_ERROR(cluster->addresses_.Write(cluster->address_file()));
  return cluster;
}

std::string LocalCluster::address_file() const { return absl::StrCat(options_.state_folder, "/cluster.json"); }

// The nodes are this operator's own: trusted, so that payload goes through shared memory. A new secret each time.
absl::Status LocalCluster::MakeSecret() {
  uint8_t random[32];
  if (getrandom(random, sizeof(random), 0) != sizeof(random)) return ErrnoStatus("getrandom", "secret", errno);
  const std::string secret = ToHex(random);
  addresses_.store_secret_file = absl::StrCat(options_.state_folder, "/store.secret");
  PERIGEE_RETURN_IF_ERROR(WritePrivateFile(addresses_.store_secret_file, absl::StrCat(secret, "\n")));
  return WritePrivateFile(absl::StrCat(options_.state_folder, "/credentials.toml"),
                          absl::StrCat("[[credential]]\nsecret = \"", secret, "\"\ntrusted = true\n"));
}

absl::StatusOr<ChildProcess> LocalCluster::Launch(const std::string& role, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"serve", role});
  arguments.insert(arguments.end(), {"--transports", options_.transports, "--log-level", options_.log_level});
  return ChildProcess::Start(options_.executable, std::move(arguments),
                             absl::StrCat(options_.state_folder, "/", role, ".log"));
}

absl::StatusOr<ChildProcess> LocalCluster::LaunchNode(const std::string& role, uint16_t port) {
  std::vector<std::string> arguments = {"--listen",
                                        absl::StrCat(options_.host, ":", port),
                                        "--store",
                                        addresses_.store,
                                        "--store-secret-file",
                                        addresses_.store_secret_file,
                                        "--model",
                                        options_.model_folder,
                                        "--block-tokens",
                                        absl::StrCat(options_.block_tokens),
                                        "--pool-mib",
                                        absl::StrCat(options_.pool_mib)};
  if (!options_.plan_file.empty()) arguments.insert(arguments.end(), {"--plan", options_.plan_file});
  if (role == "prefill") arguments.insert(arguments.end(), {"--chunk-tokens", absl::StrCat(options_.chunk_tokens)});
  return Launch(role, std::move(arguments));
}

absl::Status LocalCluster::StartStore() {
  const std::string listen =
      addresses_.store.empty() ? absl::StrCat(options_.host, ":", options_.store_port) : addresses_.store;
  PERIGEE_ASSIGN_OR_RETURN(
      store_,
      Launch("store", {"--listen", listen, "--credentials", absl::StrCat(options_.state_folder, "/credentials.toml"),
                       "--data-dir", absl::StrCat(options_.state_folder, "/store"), "--dram-mib",
                       absl::StrCat(options_.dram_mib), "--ssd-mib", absl::StrCat(options_.ssd_mib)}));
  PERIGEE_ASSIGN_OR_RETURN(addresses_.store, store_->WaitReady(options_.start_timeout));
  return absl::OkStatus();
}

void LocalCluster::KillStore() { store_->Kill(); }

std::optional<std::string> LocalCluster::FindDead() {
  if (store_ && !store_->Running()) return "store";
  if (prefill_ && !prefill_->Running()) return "prefill";
  if (decode_ && !decode_->Running()) return "decode";
  return std::nullopt;
}

absl::Status LocalCluster::Stop() {
  absl::Status first;
  for (std::optional<ChildProcess>* child : {&decode_, &prefill_, &store_}) {
    if (!*child) continue;
    first.Update((*child)->Stop(kStopTimeout));
    child->reset();
  }
  std::error_code error;
  std::filesystem::remove(address_file(), error);
  return first;
}

}  // namespace perigee::cluster
