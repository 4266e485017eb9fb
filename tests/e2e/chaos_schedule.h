// Nodes killed, paused and started again, as a seed says: at most one of each role at a time, so that with two copies
// of each plane nothing that was stored is out of reach.
#ifndef PERIGEE_TESTS_E2E_CHAOS_SCHEDULE_H_
#define PERIGEE_TESTS_E2E_CHAOS_SCHEDULE_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "topology.h"

namespace perigee {

// Somebody listens at "IPv4:port", and says so within a second.
inline bool Listens(const std::string& address) {
  const std::vector<std::string> parts = absl::StrSplit(address, ':');
  sockaddr_in to{};
  int port = 0;
  to.sin_family = AF_INET;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[1], &port)) return false;
  ::inet_pton(AF_INET, parts[0].c_str(), &to.sin_addr);
  to.sin_port = htons(static_cast<uint16_t>(port));
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval second{1, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &second, sizeof(second));
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0;
}

class ChaosSchedule {
 public:
  ChaosSchedule(const Topology& topology, uint64_t seed) : topology_(topology), random_(seed) {
    for (Topology::Node& node : topology.Nodes()) {
      if (node.role != "gateway") nodes_.push_back(std::move(node));
    }
  }

  // Does harm until then, and then makes all good again. What should not have happened meanwhile, if anything.
  std::vector<std::string> Run(absl::Time until) {
    absl::Time next = absl::Now();
    while (absl::Now() < until || !harmed_.empty()) {
      if (absl::Now() >= next && absl::Now() < until) {
        HarmOne();
        next = absl::Now() + absl::Milliseconds(Between(200, 2500));
      }
      Mend();
      absl::SleepFor(absl::Milliseconds(20));
    }
    return std::move(unexpected_);
  }

  int kills() const { return kills_; }
  int pauses() const { return pauses_; }

 private:
  struct Harm {
    std::string address;
    bool paused = false;
    absl::Time back_at;
    absl::Time give_up_at = absl::InfiniteFuture();  // After it was told to come back.
  };

  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low));
  }

  void HarmOne() {
    const Topology::Node& node = nodes_[random_() % nodes_.size()];
    for (const Topology::Node& other : nodes_) {
      if (other.role == node.role && harmed_.contains(other.name)) return;
    }
    const bool pause = random_() % 5 < 2;
    const absl::Status done = topology_.Kill(node.name, pause ? "-STOP" : "-9");
    const int64_t ms = pause ? Between(1000, 8000) : Between(300, 5000);
    if (!done.ok()) unexpected_.push_back(absl::StrCat(node.name, " was not there to be harmed: ", done.ToString()));
    ++(pause ? pauses_ : kills_);
    harmed_[node.name] = {
        .address = node.address, .paused = pause && done.ok(), .back_at = absl::Now() + absl::Milliseconds(ms)};
  }

  void Mend() {
    for (auto it = harmed_.begin(); it != harmed_.end();) {
      auto& [name, harm] = *it;
      const absl::Time now = absl::Now();
      if (harm.give_up_at == absl::InfiniteFuture() && now >= harm.back_at) {
        const absl::Status done = harm.paused ? topology_.Kill(name, "-CONT") : topology_.Start(name);
        if (!done.ok()) unexpected_.push_back(absl::StrCat(name, " cannot come back: ", done.ToString()));
        harm.give_up_at = now + absl::Seconds(30);
      } else if (harm.give_up_at <= now) {
        unexpected_.push_back(absl::StrCat(name, " did not serve again within 30 s"));
        it = harmed_.erase(it);
        continue;
      } else if (harm.give_up_at < absl::InfiniteFuture() && Listens(harm.address)) {
        it = harmed_.erase(it);
        continue;
      }
      ++it;
    }
  }

  const Topology& topology_;
  std::mt19937_64 random_;
  std::vector<Topology::Node> nodes_;
  std::map<std::string, Harm> harmed_;
  std::vector<std::string> unexpected_;
  int kills_ = 0, pauses_ = 0;
};

}  // namespace perigee

#endif  // PERIGEE_TESTS_E2E_CHAOS_SCHEDULE_H_
