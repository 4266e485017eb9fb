#include "cluster/membership/etcd_registration.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status.h"
#include "cluster/membership/record.h"

namespace perigee::cluster {
namespace {

// The key's value in the answer to a GetOp; null where there is no such key.
const mvccpb::KeyValue* Found(const etcdserverpb::TxnResponse& response, int op) {
  if (op >= response.responses_size()) return nullptr;
  const etcdserverpb::RangeResponse& range = response.responses(op).response_range();
  return range.kvs_size() == 0 ? nullptr : &range.kvs(0);
}

int64_t RevisionOf(const mvccpb::KeyValue* kv) { return kv == nullptr ? 0 : kv->mod_revision(); }

}  // namespace

absl::StatusOr<std::unique_ptr<Registration>> EtcdRegistration::Join(std::shared_ptr<EtcdClient> client,
                                                                     NodeRecord node) {
  if (node.incarnation == 0) node.incarnation = NewIncarnation();
  node.load = {};
  std::unique_ptr<EtcdRegistration> out(new EtcdRegistration(std::move(client), std::move(node)));
  PERIGEE_RETURN_IF_ERROR(out->Enter(Occasion::kStart));
  out->keeper_ = std::thread([raw = out.get()] { raw->Keep(); });
  return out;
}

EtcdRegistration::EtcdRegistration(std::shared_ptr<EtcdClient> client, NodeRecord node)
    : client_(std::move(client)), node_(std::move(node)), keys_{client_->options().prefix} {}

EtcdRegistration::~EtcdRegistration() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (keeper_.joinable()) keeper_.join();
  // Where etcd does not answer the lease ends by itself.
  if (lease_.id != 0 && !absl::IsUnavailable(Status())) client_->Revoke(lease_.id).IgnoreError();
}

void EtcdRegistration::SetLoad(const NodeLoad& load) {
  absl::MutexLock lock(&mu_);
  if (load == load_) return;
  load_ = load;
  load_told_ = false;
}

absl::Status EtcdRegistration::Status() const {
  absl::MutexLock lock(&mu_);
  return status_;
}

absl::Status EtcdRegistration::CheckOthers(const mvccpb::KeyValue* node, const mvccpb::KeyValue* removed,
                                           Occasion occasion) const {
  if (removed != nullptr && RemovalFromJson(removed->value()).value_or(0) == node_.incarnation) {
    return absl::FailedPreconditionError(
        absl::StrCat("node ", node_.id, " was removed from the cluster; start it again to let it back in"));
  }
  if (node == nullptr) return absl::OkStatus();
  const absl::StatusOr<NodeRecord> other = RecordFromJson(node->value());
  if (!other.ok() || other->incarnation == node_.incarnation) return absl::OkStatus();
  // A node that starts takes the place of its former life, which cannot listen at the same address any more. One that
  // finds a successor in its place gives way.
  if (occasion == Occasion::kStart && other->address == node_.address) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("a process at ", other->address, " has the node id '", node_.id,
                   "'; give this one another id, or wait until that one's lease has ended if it is dead"));
}

absl::Status EtcdRegistration::Enter(Occasion occasion) {
  constexpr int kAttempts = 5;  // Each after somebody else changed the entry in between.
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    etcdserverpb::TxnRequest read;
    *read.add_success() = GetOp(keys_.Node(node_.id));
    *read.add_success() = GetOp(keys_.Removed(node_.id));
    PERIGEE_ASSIGN_OR_RETURN(const etcdserverpb::TxnResponse seen, client_->Txn(read));
    const mvccpb::KeyValue* node = Found(seen, 0);
    const mvccpb::KeyValue* removed = Found(seen, 1);
    const absl::Status others = CheckOthers(node, removed, occasion);
    out_for_good_ = !others.ok();
    PERIGEE_RETURN_IF_ERROR(others);
    if (node != nullptr && lease_.id != 0 && node->lease() == lease_.id) return absl::OkStatus();

    if (lease_.id == 0) {
      PERIGEE_ASSIGN_OR_RETURN(lease_, client_->Grant(client_->options().ttl));
    }
    etcdserverpb::TxnRequest write;
    *write.add_compare() = Unchanged(keys_.Node(node_.id), RevisionOf(node));
    *write.add_compare() = Unchanged(keys_.Removed(node_.id), RevisionOf(removed));
    *write.add_success() = PutOp(keys_.Node(node_.id), RecordToJson(node_), lease_.id);
    PERIGEE_ASSIGN_OR_RETURN(const etcdserverpb::TxnResponse written, client_->Txn(write));
    if (!written.succeeded()) continue;
    if (occasion == Occasion::kAgain) spdlog::info("node {} has entered the cluster again", node_.id);
    absl::MutexLock lock(&mu_);
    load_told_ = load_ == NodeLoad{};  // It was under the lease that ended.
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      absl::StrCat("the entry of node ", node_.id, " was changed by others each time; try again"));
}

absl::Status EtcdRegistration::Refresh() {
  if (lease_.id != 0) {
    PERIGEE_ASSIGN_OR_RETURN(const bool alive, client_->KeepAlive(lease_.id));
    if (!alive) lease_ = {};
  }
  return Enter(Occasion::kAgain);
}

absl::Status EtcdRegistration::TellLoad() {
  NodeLoad load;
  {
    absl::MutexLock lock(&mu_);
    load = load_;
    load_told_ = true;
  }
  etcdserverpb::TxnRequest write;
  *write.add_success() = PutOp(keys_.Load(node_.id), LoadToJson(load), lease_.id);
  const absl::Status told = client_->Txn(write).status();
  if (told.ok()) return absl::OkStatus();
  absl::MutexLock lock(&mu_);
  load_told_ = false;
  return told;
}

void EtcdRegistration::Keep() {
  // Three signs of life per ttl: two may get lost.
  const auto period = [this] { return (lease_.id != 0 ? lease_.ttl : client_->options().ttl) / 3; };
  absl::Time refresh_at = SteadyNow() + period();
  absl::Time load_at = absl::InfinitePast();
  for (;;) {
    bool tell_load = false;
    {
      absl::MutexLock lock(&mu_);
      const absl::Time now = SteadyNow();
      const bool entered = lease_.id != 0;
      const bool may_tell = entered && load_at <= now;
      const auto wake = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || (may_tell && !load_told_); };
      const absl::Time until = entered && !may_tell ? std::min(refresh_at, load_at) : refresh_at;
      mu_.AwaitWithTimeout(absl::Condition(&wake), until - now);
      if (stopping_) return;
      tell_load = may_tell && !load_told_;
    }
    if (tell_load) {
      if (!TellLoad().ok()) refresh_at = SteadyNow();
      load_at = SteadyNow() + client_->options().load_interval;
    }
    if (SteadyNow() < refresh_at) continue;

    const absl::Status status = Refresh();
    {
      absl::MutexLock lock(&mu_);
      if (status_.code() != status.code() && !status.ok()) {
        spdlog::warn("node {}: {}", node_.id, std::string(status.message()));
      }
      status_ = status;
    }
    if (out_for_good_) return;
    refresh_at = SteadyNow() + (status.ok() ? period() : std::min(period(), absl::Milliseconds(500)));
  }
}

}  // namespace perigee::cluster
