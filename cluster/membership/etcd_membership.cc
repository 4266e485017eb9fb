#include "cluster/membership/etcd_membership.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/status.h"
#include "cluster/membership/etcd_client.h"
#include "cluster/membership/etcd_registration.h"
#include "cluster/membership/etcd_state.h"
#include "cluster/membership/record.h"
#include "cluster/membership/view_holder.h"

namespace perigee::cluster {
namespace {

class EtcdMembership : public Membership {
 public:
  static absl::StatusOr<std::unique_ptr<Membership>> Open(const EtcdOptions& options);
  ~EtcdMembership() override;

  std::shared_ptr<const ClusterView> View() const override { return holder_.View(); }
  bool AwaitNewer(uint64_t version, absl::Time deadline) const override {
    return holder_.AwaitNewer(version, deadline);
  }
  absl::StatusOr<std::unique_ptr<Registration>> Join(const NodeRecord& node) override;
  absl::Status SetState(const std::string& id, NodeState state) override;
  absl::Status Remove(const std::string& id) override;

 private:
  explicit EtcdMembership(std::shared_ptr<EtcdClient> client)
      : client_(std::move(client)), keys_{client_->options().prefix}, state_(client_->options().prefix) {}
  const EtcdOptions& options() const { return client_->options(); }

  // Of the watcher thread, and before it exists of Open.
  absl::Status ReadAll();
  void Follow();  // Returns when the watch has ended.
  void Publish();
  void Reconcile();
  absl::Duration UntilNextTask() const;
  bool Stopping();
  void Watch();

  const std::shared_ptr<EtcdClient> client_;
  const EtcdKeys keys_;
  ViewHolder holder_;

  // The watcher thread's.
  EtcdState state_;
  int64_t revision_ = 0;  // That state_ is of.
  bool holding_ = false;  // Missing nodes are kept still.
  absl::Time placement_due_ = absl::InfiniteFuture();
  absl::BitGen random_;

  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  EtcdWatch* watch_ ABSL_GUARDED_BY(mu_) = nullptr;  // The one that Follow reads.
  std::thread watcher_;
};

absl::StatusOr<std::unique_ptr<Membership>> EtcdMembership::Open(const EtcdOptions& options) {
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<EtcdClient> client, EtcdClient::Create(options));
  std::unique_ptr<EtcdMembership> out(new EtcdMembership(std::move(client)));
  PERIGEE_RETURN_IF_ERROR(out->ReadAll());
  out->watcher_ = std::thread([raw = out.get()] { raw->Watch(); });
  return out;
}

EtcdMembership::~EtcdMembership() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    if (watch_ != nullptr) watch_->Cancel();
  }
  if (watcher_.joinable()) watcher_.join();
}

absl::StatusOr<std::unique_ptr<Registration>> EtcdMembership::Join(const NodeRecord& node) {
  PERIGEE_RETURN_IF_ERROR(CheckRecord(node));
  return EtcdRegistration::Join(client_, node);
}

absl::Status EtcdMembership::SetState(const std::string& id, NodeState state) {
  PERIGEE_RETURN_IF_ERROR(CheckNodeId(id));
  PERIGEE_ASSIGN_OR_RETURN(const etcdserverpb::RangeResponse node, client_->Get(keys_.Node(id)));
  // A node that is just being started again is known from the view.
  if (node.kvs_size() == 0 && FindNode(*View(), id) == nullptr) {
    return absl::NotFoundError(absl::StrCat("no node has the id '", id, "'"));
  }
  etcdserverpb::TxnRequest write;
  *write.add_success() = PutOp(keys_.State(id), StateToJson(state), 0);
  return client_->Txn(write).status();
}

absl::Status EtcdMembership::Remove(const std::string& id) {
  PERIGEE_RETURN_IF_ERROR(CheckNodeId(id));
  constexpr int kAttempts = 5;  // Each after the node was started again in between.
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    PERIGEE_ASSIGN_OR_RETURN(const etcdserverpb::RangeResponse node, client_->Get(keys_.Node(id)));
    PERIGEE_ASSIGN_OR_RETURN(const etcdserverpb::RangeResponse state, client_->Get(keys_.State(id)));
    const std::shared_ptr<const ClusterView> view = View();
    const NodeRecord* known = FindNode(*view, id);
    if (node.kvs_size() == 0 && state.kvs_size() == 0 && known == nullptr) {
      return absl::NotFoundError(absl::StrCat("no node has the id '", id, "'"));
    }
    uint64_t incarnation = known == nullptr ? 0 : known->incarnation;
    if (node.kvs_size() > 0) {
      const absl::StatusOr<NodeRecord> record = RecordFromJson(node.kvs(0).value());
      if (record.ok()) incarnation = record->incarnation;
    }
    etcdserverpb::TxnRequest write;
    *write.add_compare() = Unchanged(keys_.Node(id), node.kvs_size() == 0 ? 0 : node.kvs(0).mod_revision());
    *write.add_success() = PutOp(keys_.Removed(id), RemovalToJson(incarnation), 0);
    *write.add_success() = DeleteOp(keys_.Node(id));
    *write.add_success() = DeleteOp(keys_.State(id));
    *write.add_success() = DeleteOp(keys_.Load(id));
    PERIGEE_ASSIGN_OR_RETURN(const etcdserverpb::TxnResponse written, client_->Txn(write));
    if (written.succeeded()) return absl::OkStatus();
  }
  return absl::UnavailableError(absl::StrCat("the entry of node ", id, " was changed by others each time; try again"));
}

absl::Status EtcdMembership::ReadAll() {
  // Always everything, never the changes since the last revision: so an etcd that has compacted them, was restored
  // from a backup, or has lost its data is no special case. A cluster's keys are a few hundred kilobytes at most.
  PERIGEE_ASSIGN_OR_RETURN(const etcdserverpb::RangeResponse all, client_->GetPrefix(options().prefix));
  const absl::Time now = SteadyNow();
  state_.HoldUntil(now + options().ttl);
  holding_ = true;
  state_.Replace(all.kvs(), now);
  revision_ = all.header().revision();
  Publish();
  return absl::OkStatus();
}

void EtcdMembership::Publish() { holder_.Publish(state_.placement_epoch(), state_.Nodes(SteadyNow())); }

void EtcdMembership::Reconcile() {
  const absl::Time now = SteadyNow();
  const std::optional<kvstore::StoreMap> wanted = state_.WantedPlacement(now);
  if (!wanted.has_value()) {
    placement_due_ = absl::InfiniteFuture();
    return;
  }
  if (placement_due_ == absl::InfiniteFuture()) {
    // All processes see the same change at the same time, and one of them is enough: each waits for a random time, the
    // longer the more there are.
    const double spread_ms = 5.0 * static_cast<double>(holder_.View()->nodes.size());
    placement_due_ = now + absl::Milliseconds(absl::Uniform(random_, 0.0, spread_ms + 1.0));
  }
  if (now < placement_due_) return;
  etcdserverpb::TxnRequest write;
  *write.add_compare() = Unchanged(keys_.Placement(), state_.placement_revision());
  *write.add_success() = PutOp(keys_.Placement(), StoreMapToJson(*wanted), 0);
  const absl::Status written = client_->Txn(write).status();
  if (!written.ok()) spdlog::warn("the placement was not written: {}", std::string(written.message()));
  // Whoever wrote it, the watch tells; this is for the case that it was written in vain.
  placement_due_ = SteadyNow() + absl::Milliseconds(500);
}

absl::Duration EtcdMembership::UntilNextTask() const {
  const absl::Time now = SteadyNow();
  absl::Duration wait = std::min(options().ttl / 3, placement_due_ - now);
  if (holding_) wait = std::min(wait, state_.hold_until() - now);
  return std::max(wait, absl::Milliseconds(1));
}

void EtcdMembership::Follow() {
  const std::unique_ptr<EtcdWatch> watch = client_->Watch(options().prefix, revision_ + 1);
  {
    absl::MutexLock lock(&mu_);
    watch_ = watch.get();
  }
  absl::Time heard = SteadyNow();
  bool asked = false;
  while (!Stopping()) {
    const absl::StatusOr<std::optional<etcdserverpb::WatchResponse>> got = watch->Next(UntilNextTask());
    const absl::Time now = SteadyNow();
    if (!got.ok() || (got->has_value() && (*got)->canceled())) break;
    if (got->has_value()) {
      heard = now;
      asked = false;
      for (const mvccpb::Event& event : (*got)->events()) state_.Apply(event, now);
    } else if (now - heard > options().ttl * 2 / 3) {  // It was asked, and had as long again to answer.
      break;
    } else if (now - heard >= options().ttl / 3 && !asked) {
      watch->AskForProgress();
      asked = true;
    }
    const bool hold_ends = holding_ && now >= state_.hold_until();  // Missing nodes go, though nothing came.
    if (hold_ends) holding_ = false;
    if (got->has_value() || hold_ends) Publish();
    Reconcile();
  }
  absl::MutexLock lock(&mu_);
  watch_ = nullptr;
}

bool EtcdMembership::Stopping() {
  absl::MutexLock lock(&mu_);
  return stopping_;
}

void EtcdMembership::Watch() {
  bool reachable = true;
  for (;;) {
    const absl::Time began = SteadyNow();
    if (reachable) Follow();
    client_->NextEndpoint();
    {
      // No more than four times a second, whatever the reason.
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&stopping_), began + absl::Milliseconds(250) - SteadyNow());
      if (stopping_) return;
    }
    const absl::Status status = ReadAll();
    if (status.ok() && !reachable) spdlog::info("etcd is back");
    if (!status.ok() && reachable) {
      spdlog::warn("the cluster stays as it was: {}", std::string(status.message()));
    }
    reachable = status.ok();
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Membership>> OpenEtcdMembership(const EtcdOptions& options) {
  if (!absl::StartsWith(options.prefix, "/") || !absl::EndsWith(options.prefix, "/")) {
    return absl::InvalidArgumentError(
        absl::StrCat("etcd: the prefix '", options.prefix, "' must begin and end with a slash"));
  }
  if (options.ttl < absl::Seconds(1) || options.call_deadline <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("etcd: the ttl must be at least 1 s, and the call deadline above 0");
  }
  return EtcdMembership::Open(options);
}

}  // namespace perigee::cluster
