#include "cluster/membership/static_membership.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

// A static node stays a member while it restarts, and tells nobody its load.
class StaticRegistration : public Registration {
 public:
  void SetLoad(const NodeLoad&) override {}
};

// Held until the descriptor is closed; the file stays, since removing it would let two writers lock different files.
absl::StatusOr<UniqueFd> LockFile(const std::string& path, absl::Duration deadline) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!fd) return ErrnoStatus("open", path, errno);
  const absl::Time end = SteadyNow() + deadline;
  for (absl::Duration pause = absl::Milliseconds(1);; pause = std::min(2 * pause, absl::Milliseconds(50))) {
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
    if (errno != EWOULDBLOCK && errno != EINTR) return ErrnoStatus("lock", path, errno);
    if (SteadyNow() >= end) {
      return absl::UnavailableError(
          absl::StrCat(path, " was held by another process for ", absl::FormatDuration(deadline), "; try again"));
    }
    absl::SleepFor(pause);
  }
}

bool SameStores(const MembershipFile& a, const MembershipFile& b) {
  const auto stores = [](const MembershipFile& file) {
    ClusterView view{.nodes = file.nodes, .as_of = {}};
    std::sort(view.nodes.begin(), view.nodes.end(), [](const auto& x, const auto& y) { return x.id < y.id; });
    return StoresOf(view).stores;
  };
  return stores(a) == stores(b);
}

NodeRecord* Find(MembershipFile& file, absl::string_view id) {
  const auto found = std::find_if(file.nodes.begin(), file.nodes.end(), [&](const auto& n) { return n.id == id; });
  return found == file.nodes.end() ? nullptr : &*found;
}

absl::Status NoSuchNode(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("no node has the id '", id, "'"));
}

absl::StatusOr<MembershipFile> ParseFile(const std::string& path, const std::string& text) {
  absl::StatusOr<MembershipFile> file = FileFromJson(text);
  if (!file.ok()) return Annotate(file.status(), path);
  return file;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StaticMembership>> StaticMembership::Open(const std::string& path,
                                                                         const StaticOptions& options) {
  std::unique_ptr<StaticMembership> out(new StaticMembership(path, options));
  {
    absl::MutexLock lock(&out->mu_);
    PERIGEE_ASSIGN_OR_RETURN(out->text_, ReadFile(path, kMaxMembershipFileBytes));
    PERIGEE_ASSIGN_OR_RETURN(MembershipFile content, ParseFile(path, out->text_));
    out->Accept(std::move(content));
  }
  out->watcher_ = std::thread([raw = out.get()] { raw->Watch(); });
  return out;
}

std::unique_ptr<StaticMembership> StaticMembership::InMemory(MembershipFile content) {
  std::unique_ptr<StaticMembership> out(new StaticMembership("", {}));
  absl::MutexLock lock(&out->mu_);
  out->Accept(std::move(content));
  return out;
}

StaticMembership::~StaticMembership() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (watcher_.joinable()) watcher_.join();
}

absl::StatusOr<std::unique_ptr<Registration>> StaticMembership::Join(const NodeRecord& node) {
  PERIGEE_RETURN_IF_ERROR(CheckRecord(node));
  PERIGEE_RETURN_IF_ERROR(Edit([&](MembershipFile& file) {
    NodeRecord entry = node;
    entry.load = {};
    if (entry.incarnation == 0) entry.incarnation = NewIncarnation();
    NodeRecord* former = Find(file, node.id);
    if (former == nullptr) {
      file.nodes.push_back(std::move(entry));
      return absl::OkStatus();
    }
    if (former->state == NodeState::kDraining) entry.state = NodeState::kDraining;
    *former = std::move(entry);
    return absl::OkStatus();
  }));
  return std::make_unique<StaticRegistration>();
}

absl::Status StaticMembership::SetState(const std::string& id, NodeState state) {
  return Edit([&](MembershipFile& file) {
    NodeRecord* node = Find(file, id);
    if (node == nullptr) return NoSuchNode(id);
    node->state = state;
    return absl::OkStatus();
  });
}

absl::Status StaticMembership::Remove(const std::string& id) {
  return Edit([&](MembershipFile& file) {
    const NodeRecord* node = Find(file, id);
    if (node == nullptr) return NoSuchNode(id);
    file.nodes.erase(file.nodes.begin() + (node - file.nodes.data()));
    return absl::OkStatus();
  });
}

absl::Status StaticMembership::Edit(absl::FunctionRef<absl::Status(MembershipFile&)> change) {
  absl::MutexLock lock(&mu_);
  if (!path_.empty()) return EditFile(change);
  MembershipFile next = content_;
  PERIGEE_RETURN_IF_ERROR(change(next));
  if (!SameStores(content_, next)) ++next.epoch;
  Accept(std::move(next));
  return absl::OkStatus();
}

absl::Status StaticMembership::EditFile(absl::FunctionRef<absl::Status(MembershipFile&)> change) {
  PERIGEE_ASSIGN_OR_RETURN(const UniqueFd held, LockFile(path_ + ".lock", options_.lock_deadline));
  PERIGEE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path_, kMaxMembershipFileBytes));
  PERIGEE_ASSIGN_OR_RETURN(const MembershipFile before, ParseFile(path_, text));
  MembershipFile after = before;
  PERIGEE_RETURN_IF_ERROR(change(after));
  after.epoch = std::max(before.epoch, content_.epoch);
  // Also where somebody else changed stores under an epoch that stands for others in this process.
  const bool others = !SameStores(before, after) || (before.epoch <= content_.epoch && !SameStores(content_, after));
  if (others && ++after.epoch > kMaxEpoch) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": the epoch would pass ", kMaxEpoch));
  }
  std::string written = FileToJson(after);
  if (written != text) PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(path_, written));
  text_ = std::move(written);
  Accept(std::move(after));
  return absl::OkStatus();
}

void StaticMembership::Accept(MembershipFile content) {
  content_ = std::move(content);
  holder_.Publish(content_.epoch, content_.nodes);
}

absl::Status StaticMembership::Reload() {
  PERIGEE_ASSIGN_OR_RETURN(std::string text, ReadFile(path_, kMaxMembershipFileBytes));
  if (text == text_) {
    holder_.Touch();
    return absl::OkStatus();
  }
  PERIGEE_ASSIGN_OR_RETURN(MembershipFile content, ParseFile(path_, text));
  const bool same_stores = SameStores(content, content_);
  if (content.epoch < content_.epoch || (content.epoch == content_.epoch && !same_stores)) {
    // The number stands for other stores already, here or elsewhere.
    return Annotate(EditFile([](MembershipFile&) { return absl::OkStatus(); }), "raising the epoch");
  }
  text_ = std::move(text);
  Accept(std::move(content));
  return absl::OkStatus();
}

void StaticMembership::Watch() {
  std::string logged;
  absl::MutexLock lock(&mu_);
  while (!mu_.AwaitWithTimeout(absl::Condition(&stopping_), options_.poll_interval)) {
    const absl::Status status = Reload();
    if (!status.ok() && logged != status.message()) {
      spdlog::warn("the cluster stays as it was: {}", std::string(status.message()));
    }
    logged = std::string(status.message());
  }
}

}  // namespace perigee::cluster
