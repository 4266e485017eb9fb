#include "cluster/local_cluster.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "base/bytes.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/membership/record.h"

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
  PERIGEE_RETURN_IF_ERROR(cluster->LockFolder());
  PERIGEE_RETURN_IF_ERROR(cluster->MakeSecret());
  PERIGEE_RETURN_IF_ERROR(cluster->MakeMembers());
  const LocalClusterOptions& o = cluster->options_;
  PERIGEE_RETURN_IF_ERROR(cluster->LaunchAll("store", o.stores, o.store_port));
  PERIGEE_RETURN_IF_ERROR(cluster->LaunchAll("prefill", o.prefill_nodes, o.prefill_port));
  PERIGEE_RETURN_IF_ERROR(cluster->LaunchAll("decode", o.decode_nodes, o.decode_port));
  for (Part& part : cluster->parts_) {
    if (part.role != "store") PERIGEE_RETURN_IF_ERROR(cluster->AwaitReady(part));
  }
  if (o.gateway) {
    PERIGEE_RETURN_IF_ERROR(cluster->LaunchAll("gateway", 1, o.gateway_port));
    PERIGEE_RETURN_IF_ERROR(cluster->AwaitReady(cluster->parts_.back()));
  }
  const auto first = [&](const std::string& role) {
    for (const Part& part : cluster->parts_) {
      if (part.role == role) return part.address;
    }
    return std::string();
  };
  cluster->addresses_.store = first("store");
  cluster->addresses_.prefill = first("prefill");
  cluster->addresses_.decode = first("decode");
  cluster->addresses_.gateway = first("gateway");
  for (const Part& part : cluster->parts_) {
    if (part.role != "gateway") cluster->addresses_.admin.push_back(part.address);
  }
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

// Before anything of a cluster that may run there is overwritten. The kernel unlocks when the process ends.
absl::Status LocalCluster::LockFolder() {
  const std::string path = absl::StrCat(options_.state_folder, "/lock");
  lock_ = UniqueFd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock_) return ErrnoStatus("create", path, errno);
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the state folder ", options_.state_folder,
                                                    " is in use by another 'perigee up'; stop it, or choose another"));
}

absl::Status LocalCluster::MakeMembers() {
  const std::string path = absl::StrCat(options_.state_folder, "/members.json");
  PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(path, FileToJson(MembershipFile{})));
  addresses_.members = absl::StrCat("static:", path);
  return absl::OkStatus();
}

const ChildProcess& LocalCluster::Find(const std::string& name) const {
  for (const Part& part : parts_) {
    if (part.name == name) return *part.child;
  }
  std::abort();  // There is one of each role.
}

absl::Status LocalCluster::LaunchAll(const std::string& role, int count, uint16_t port) {
  for (int i = 0; i < count; ++i) {
    parts_.push_back({.name = i == 0 ? role : absl::StrCat(role, i + 1), .role = role, .address = {}, .child = {}});
    PERIGEE_RETURN_IF_ERROR(
        Launch(parts_.back(), absl::StrCat(options_.host, ":", port == 0 ? 0 : port + static_cast<uint16_t>(i))));
    // Nodes may start at the same time; they look for stores.
    if (role == "store") PERIGEE_RETURN_IF_ERROR(AwaitReady(parts_.back()));
  }
  return absl::OkStatus();
}

absl::Status LocalCluster::Launch(Part& part, const std::string& listen) {
  std::vector<std::string> arguments = {"serve",
                                        part.role,
                                        "--listen",
                                        listen,
                                        "--join",
                                        addresses_.members,
                                        "--id",
                                        part.name,
                                        "--store-secret-file",
                                        addresses_.store_secret_file,
                                        "--transports",
                                        options_.transports,
                                        "--metrics-listen",
                                        absl::StrCat(options_.host, ":0"),
                                        "--log-level",
                                        options_.log_level};
  const std::vector<std::string> more = part.role == "store" ? StoreArguments(part) : NodeArguments(part);
  arguments.insert(arguments.end(), more.begin(), more.end());
  PERIGEE_ASSIGN_OR_RETURN(part.child,
                           ChildProcess::Start(options_.executable, std::move(arguments),
                                               absl::StrCat(options_.state_folder, "/", part.name, ".log")));
  return absl::OkStatus();
}

absl::Status LocalCluster::AwaitReady(Part& part) {
  PERIGEE_ASSIGN_OR_RETURN(part.address, part.child->WaitReady(options_.start_timeout));
  return absl::OkStatus();
}

std::vector<std::string> LocalCluster::StoreArguments(const Part& part) const {
  return {"--credentials", absl::StrCat(options_.state_folder, "/credentials.toml"),
          "--data-dir",    absl::StrCat(options_.state_folder, "/", part.name),
          "--dram-mib",    absl::StrCat(options_.dram_mib),
          "--ssd-mib",     absl::StrCat(options_.ssd_mib)};
}

std::vector<std::string> LocalCluster::NodeArguments(const Part& part) const {
  std::vector<std::string> arguments = {"--model", options_.model_folder, "--replicas",
                                        absl::StrCat(options_.replicas)};
  const auto add = [&](std::vector<std::string> more) { arguments.insert(arguments.end(), more.begin(), more.end()); };
  if (part.role == "gateway") return arguments;
  add({"--block-tokens", absl::StrCat(options_.block_tokens), "--pool-mib", absl::StrCat(options_.pool_mib)});
  if (!options_.plan_file.empty()) add({"--plan", options_.plan_file});
  if (!options_.keep_planes) add({"--no-keep-planes"});
  if (part.role == "prefill") add({"--chunk-tokens", absl::StrCat(options_.chunk_tokens)});
  return arguments;
}

void LocalCluster::KillStore() { parts_.front().child->Kill(); }

absl::Status LocalCluster::StartStore() {
  PERIGEE_RETURN_IF_ERROR(Launch(parts_.front(), parts_.front().address));
  return AwaitReady(parts_.front());
}

std::optional<std::string> LocalCluster::FindDead() {
  for (Part& part : parts_) {
    if (part.child && !part.child->Running()) return part.name;
  }
  return std::nullopt;
}

absl::Status LocalCluster::Stop() {
  absl::Status first;
  while (!parts_.empty()) {
    if (parts_.back().child) first.Update(parts_.back().child->Stop(kStopTimeout));
    parts_.pop_back();
  }
  std::error_code error;
  std::filesystem::remove(address_file(), error);
  return first;
}

}  // namespace perigee::cluster
