#include "hosts.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "process.h"

namespace perigee::fault {
namespace {

absl::Status WriteText(const char* path, const std::string& text) {
  const UniqueFd file(open(path, O_WRONLY | O_CLOEXEC));
  if (!file || write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return ErrnoStatus("write", path, errno);
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenNamespace() {
  UniqueFd fd(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus("open", "/proc/thread-self/ns/net", errno);
  return fd;
}

absl::StatusOr<UniqueFd> NewNamespace() {
  absl::StatusOr<UniqueFd> made = absl::UnknownError("");
  std::thread([&made] {
    made = unshare(CLONE_NEWNET) == 0 ? OpenNamespace() : ErrnoStatus("unshare", "network namespace", errno);
  }).join();
  return made;
}

// "ra1": the router's end of host A's v1.
std::string RouterDevice(Place host, int rail) { return absl::StrCat(host == Place::kHostA ? "ra" : "rb", rail + 1); }
std::string Subnet(Place host, int rail) {
  return absl::StrCat("10.77.", 2 * rail + (host == Place::kHostA ? 0 : 1), ".");
}
Place Other(Place host) { return host == Place::kHostA ? Place::kHostB : Place::kHostA; }

}  // namespace

absl::Status PrepareHosts() {
  // Where distributions keep ip, tc and nft, which are not on every user's path.
  const char* path = std::getenv("PATH");
  setenv("PATH", absl::StrCat(path == nullptr ? "" : path, ":/usr/sbin:/sbin").c_str(), 1);
  const uid_t user = geteuid();
  const gid_t group = getegid();
  if (user != 0) {
    if (unshare(CLONE_NEWUSER) != 0) return ErrnoStatus("unshare", "user namespace (not root)", errno);
    PERIGEE_RETURN_IF_ERROR(WriteText("/proc/self/setgroups", "deny"));
    PERIGEE_RETURN_IF_ERROR(WriteText("/proc/self/uid_map", absl::StrCat("0 ", user, " 1")));
    PERIGEE_RETURN_IF_ERROR(WriteText("/proc/self/gid_map", absl::StrCat("0 ", group, " 1")));
  }
  if (unshare(CLONE_NEWNS) != 0) return ErrnoStatus("unshare", "mount namespace", errno);
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return ErrnoStatus("mount", "/", errno);
  // Everything that the tests need, once.
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<Network> network, Network::Create());
  PERIGEE_RETURN_IF_ERROR(network->SetLoss(1));
  PERIGEE_RETURN_IF_ERROR(network->LimitRate(0, 100));
  PERIGEE_RETURN_IF_ERROR(network->Redirect(1));
  return network->Enter(Place::kHostA);
}

absl::StatusOr<std::unique_ptr<Network>> Network::Create(int rails) {
  std::unique_ptr<Network> network(new Network);
  PERIGEE_RETURN_IF_ERROR(network->Build(rails));
  return network;
}

absl::Status Network::Build(int rails) {
  PERIGEE_ASSIGN_OR_RETURN(home_, OpenNamespace());
  for (UniqueFd& place : places_) {
    PERIGEE_ASSIGN_OR_RETURN(place, NewNamespace());
  }
  PERIGEE_RETURN_IF_ERROR(Command(Place::kRouter, "ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward"));
  for (const Place host : {Place::kHostA, Place::kHostB}) {
    PERIGEE_RETURN_IF_ERROR(Command(host, "ip link set lo up"));
    for (int rail = 0; rail < rails; ++rail) {
      const std::string subnet = Subnet(host, rail), router_device = RouterDevice(host, rail);
      const std::string router = absl::StrCat("/proc/", getpid(), "/fd/", namespace_fd(Place::kRouter));
      PERIGEE_RETURN_IF_ERROR(
          Command(host, absl::StrCat("ip link add ", Device(rail), " type veth peer name ", router_device, " netns ",
                                     router, " && ip addr add ", Address(host, rail), "/24 dev ", Device(rail))));
      PERIGEE_RETURN_IF_ERROR(Command(Place::kRouter, absl::StrCat("ip addr add ", subnet, "1/24 dev ", router_device,
                                                                   " && ip link set ", router_device, " up")));
      PERIGEE_RETURN_IF_ERROR(SetLink(host, rail, true));
    }
  }
  return absl::OkStatus();
}

Network::~Network() {
  if (!home_) return;
  setns(home_.get(), CLONE_NEWNET);
  if (sys_mounted_) umount2("/sys", MNT_DETACH);
  // UCX remembers, for the life of a process, the number of the namespace in which it started, and takes a peer whose
  // namespace has the same number for one on this host. The kernel gives the numbers of namespaces that are gone to new
  // ones, so none is let go before the process ends.
  static auto* const kept = new std::vector<UniqueFd>;
  for (UniqueFd& place : places_) kept->push_back(std::move(place));
}

std::string Network::Address(Place host, int rail) { return absl::StrCat(Subnet(host, rail), "2"); }
std::string Network::Gateway(Place host, int rail) { return absl::StrCat(Subnet(host, rail), "1"); }
std::string Network::Device(int rail) { return absl::StrCat("v", rail + 1); }

absl::Status Network::Enter(Place place) {
  if (setns(namespace_fd(place), CLONE_NEWNET) != 0) return ErrnoStatus("setns", "host", errno);
  if (sys_mounted_) umount2("/sys", MNT_DETACH);
  // UCX looks for network devices in /sys, which shows those of the namespace in which it was mounted.
  if (mount("sysfs", "/sys", "sysfs", 0, nullptr) != 0) return ErrnoStatus("mount", "/sys", errno);
  sys_mounted_ = true;
  return absl::OkStatus();
}

void Network::RunIn(Place place, const std::function<void()>& fn) const {
  std::thread([&] {
    if (setns(namespace_fd(place), CLONE_NEWNET) != 0) std::abort();
    fn();
  }).join();
}

absl::Status Network::SetLink(Place host, int rail, bool up) {
  PERIGEE_RETURN_IF_ERROR(Command(host, absl::StrCat("ip link set ", Device(rail), up ? " up" : " down")));
  if (!up) return absl::OkStatus();
  // The kernel calls a device running up to a second after it is up, and UCX uses only what is running when a context
  // is made.
  return Command(host,
                 absl::StrCat("timeout 5 sh -c 'until ip link show ", Device(rail),
                              " | grep -q \"state UP\"; do sleep 0.01; done' && ip route replace ",
                              Subnet(Other(host), rail), "0/24 via ", Subnet(host, rail), "1 dev ", Device(rail)));
}

absl::Status Network::SetBlackHole(bool on) {
  black_hole_ = on;
  return Filter();
}

absl::Status Network::SetLoss(int percent) {
  loss_percent_ = percent;
  return Filter();
}

absl::Status Network::Redirect(uint16_t port) {
  redirect_port_ = port;
  return Filter();
}

absl::Status Network::LimitRate(int rail, int megabits_per_s) {
  for (const Place host : {Place::kHostA, Place::kHostB}) {
    PERIGEE_RETURN_IF_ERROR(
        Command(Place::kRouter, absl::StrCat("tc qdisc replace dev ", RouterDevice(host, rail), " root tbf rate ",
                                             megabits_per_s, "mbit burst 256kb latency 100ms")));
  }
  return absl::OkStatus();
}

absl::Status Network::Filter() {
  // The first two lines: whatever was there before, it is not now.
  std::string script = "add table ip fault\ndelete table ip fault\ntable ip fault {\n";
  if (black_hole_ || loss_percent_ > 0) {
    absl::StrAppend(&script, "chain lose {\ntype filter hook prerouting priority raw\n",
                    black_hole_ ? "drop\n" : absl::StrCat("numgen random mod 100 < ", loss_percent_, " drop\n"), "}\n");
  }
  if (redirect_port_ != 0) {
    absl::StrAppend(&script, "chain catch {\ntype nat hook prerouting priority dstnat\nip protocol tcp redirect to :",
                    redirect_port_, "\n}\n");
  }
  script += "}\n";
  return RunCommand(namespace_fd(Place::kRouter), {"nft", "-f", "-"}, script);
}

absl::Status Network::Command(Place place, const std::string& command) const {
  return RunCommand(namespace_fd(place), {"sh", "-c", command}, "");
}

std::vector<uint16_t> ListeningPorts(const Network& network, Place place) {
  std::vector<uint16_t> ports;
  network.RunIn(place, [&ports] {
    for (const char* path : {"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"}) {
      std::ifstream file(path);
      std::string line;
      std::getline(file, line);  // the columns' names
      while (std::getline(file, line)) {
        // "  0: 00000000:1C84 00000000:0000 0A ..."; 0A: listening
        const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
        uint32_t port = 0;
        if (words.size() > 3 && words[3] == "0A" &&
            absl::SimpleHexAtoi(words[1].substr(words[1].rfind(':') + 1), &port)) {
          ports.push_back(static_cast<uint16_t>(port));
        }
      }
    }
  });
  std::sort(ports.begin(), ports.end());
  ports.erase(std::unique(ports.begin(), ports.end()), ports.end());
  return ports;
}

}  // namespace perigee::fault
