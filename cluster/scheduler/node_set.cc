#include "cluster/scheduler/node_set.h"

#include <grpcpp/grpcpp.h>

#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "cluster/channel.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {

// An Info call under way.
struct NodeHandle::Question {
  grpc::ClientContext context;
  v1::NodeInfoRequest request;
  v1::NodeInfo info;
  bool ended = false;  // Under the node's mu_.
};

NodeHandle::NodeHandle(const NodeRecord& record, const NodeSetOptions& options)
    : id_(record.id), address_(record.address), role_(record.role), options_(options) {
  const std::shared_ptr<grpc::Channel> channel = ConnectTo(record.address);
  prefill_ = v1::PrefillNode::NewStub(channel);
  decode_ = v1::DecodeNode::NewStub(channel);
}

NodeHandle::~NodeHandle() {
  absl::MutexLock lock(&mu_);
  if (question_ == nullptr) return;
  question_->context.TryCancel();
  const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return question_->ended; };
  mu_.Await(absl::Condition(&ended));
}

std::shared_ptr<const v1::NodeInfo> NodeHandle::info() const {
  absl::MutexLock lock(&mu_);
  return info_;
}

bool NodeHandle::usable() const {
  absl::MutexLock lock(&mu_);
  return !failed_ && !info_->load().draining() && absl::Now() - last_answer_ < options_.gone_after;
}

bool NodeHandle::gone() const {
  absl::MutexLock lock(&mu_);
  return absl::Now() - last_answer_ >= options_.gone_after;
}

void NodeHandle::ReportFailure() {
  absl::MutexLock lock(&mu_);
  failed_ = true;
}

void NodeHandle::Ask() {
  Question* question;
  {
    absl::MutexLock lock(&mu_);
    if (question_ != nullptr && !question_->ended) return;
    question_ = std::make_unique<Question>();
    question = question_.get();
  }
  question->context.set_wait_for_ready(true);  // A channel connects again only while a call waits for it.
  question->context.set_deadline(absl::ToChronoTime(absl::Now() + options_.gone_after));
  const auto done = [this, question](grpc::Status status) { Answered(FromGrpc(status), question->info); };
  if (role_ == Role::kPrefill) {
    prefill_->async()->Info(&question->context, &question->request, &question->info, done);
  } else {
    decode_->async()->Info(&question->context, &question->request, &question->info, done);
  }
}

void NodeHandle::Answered(const absl::Status& status, const v1::NodeInfo& info) {
  absl::MutexLock lock(&mu_);
  question_->ended = true;
  failed_ = !status.ok();
  if (!status.ok()) return;
  info_ = std::make_shared<v1::NodeInfo>(info);
  last_answer_ = absl::Now();
}

NodeSet::NodeSet(const Membership* membership, const NodeSetOptions& options)
    : membership_(membership), options_(options) {
  Synchronise();
  thread_ = std::thread([this] { Loop(); });
}

NodeSet::~NodeSet() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void NodeSet::Synchronise() {
  const std::shared_ptr<const ClusterView> view = membership_->View();
  std::vector<std::shared_ptr<NodeHandle>> before;  // Destroyed without the lock: they wait for their question's end.
  std::vector<std::shared_ptr<NodeHandle>> asked;
  {
    absl::MutexLock lock(&mu_);
    std::map<std::string, Member> now;
    for (const NodeRecord& record : view->nodes) {
      if (record.role != Role::kPrefill && record.role != Role::kDecode) continue;
      const auto found = members_.find(record.id);
      std::shared_ptr<NodeHandle> node;
      if (found != members_.end() && found->second.node->address() == record.address &&
          found->second.node->role() == record.role) {
        node = found->second.node;
      } else {
        node = std::make_shared<NodeHandle>(record, options_);
      }
      asked.push_back(node);
      now[record.id] = {std::move(node), record.state == NodeState::kServing};
    }
    for (auto& [id, member] : members_) before.push_back(std::move(member.node));
    before.insert(before.end(), left_.begin(), left_.end());
    left_.clear();
    for (const std::shared_ptr<NodeHandle>& node : before) {
      const auto found = now.find(node->id());
      if ((found != now.end() && found->second.node == node) || node->requests == 0) continue;
      left_.push_back(node);
      asked.push_back(node);
    }
    members_ = std::move(now);
  }
  for (const std::shared_ptr<NodeHandle>& node : asked) node->Ask();
}

void NodeSet::Loop() {
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), options_.ask_every)) return;
    }
    Synchronise();
  }
}

std::vector<std::shared_ptr<NodeHandle>> NodeSet::Usable(Role role) const {
  std::vector<std::shared_ptr<NodeHandle>> nodes;
  absl::MutexLock lock(&mu_);
  for (const auto& [id, member] : members_) {
    if (member.serving && member.node->role() == role && member.node->usable()) nodes.push_back(member.node);
  }
  return nodes;
}

std::vector<std::shared_ptr<NodeHandle>> NodeSet::All(Role role) const {
  std::vector<std::shared_ptr<NodeHandle>> nodes;
  absl::MutexLock lock(&mu_);
  for (const auto& [id, member] : members_) {
    if (member.node->role() == role) nodes.push_back(member.node);
  }
  return nodes;
}

}  // namespace perigee::cluster
