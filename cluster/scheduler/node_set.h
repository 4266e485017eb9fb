// The prefill and decode nodes of the cluster as a scheduler sees them: how to reach each, how busy it is, whether it
// answers. Each is asked several times a second, so that one that hangs is noticed, and not only one that is gone. One
// that leaves the cluster while it works for this process is asked until it has finished.
#ifndef PERIGEE_CLUSTER_SCHEDULER_NODE_SET_H_
#define PERIGEE_CLUSTER_SCHEDULER_NODE_SET_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cluster/membership/membership.h"
#include "perigee/v1/decode.grpc.pb.h"
#include "perigee/v1/prefill.grpc.pb.h"

namespace perigee::cluster {

struct NodeSetOptions {
  absl::Duration ask_every = absl::Milliseconds(250);
  // A node that has not answered for so long counts as gone until it does: calls to it are given up.
  absl::Duration gone_after = absl::Seconds(3);
};

// One node. Any thread may call; it lives as long as somebody holds it.
class NodeHandle {
 public:
  NodeHandle(const NodeRecord& record, const NodeSetOptions& options);
  ~NodeHandle();

  const std::string& id() const { return id_; }
  const std::string& address() const { return address_; }
  Role role() const { return role_; }
  v1::PrefillNode::Stub& prefill() { return *prefill_; }
  v1::DecodeNode::Stub& decode() { return *decode_; }

  // What it said last; empty before it said anything. Never null.
  std::shared_ptr<const v1::NodeInfo> info() const;
  // It answers, takes new work, and no call to it has failed since.
  bool usable() const;
  // It has not answered for too long.
  bool gone() const;
  // A call to it failed as one to a dead node would: not usable until it answers again.
  void ReportFailure();

  // Work that this process has given it and that its own figures may not show yet.
  std::atomic<int> requests{0};
  std::atomic<int64_t> prefill_tokens{0};

 private:
  friend class NodeSet;
  struct Question;
  void Ask();
  void Answered(const absl::Status& status, const v1::NodeInfo& info);

  const std::string id_, address_;
  const Role role_;
  const NodeSetOptions options_;
  std::unique_ptr<v1::PrefillNode::Stub> prefill_;
  std::unique_ptr<v1::DecodeNode::Stub> decode_;
  mutable absl::Mutex mu_;
  std::shared_ptr<const v1::NodeInfo> info_ ABSL_GUARDED_BY(mu_) = std::make_shared<v1::NodeInfo>();
  absl::Time last_answer_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  bool failed_ ABSL_GUARDED_BY(mu_) = true;                  // Until the first answer.
  std::unique_ptr<Question> question_ ABSL_GUARDED_BY(mu_);  // Null: none is open.
};

// Any thread may call.
class NodeSet {
 public:
  // `membership` outlives this object.
  NodeSet(const Membership* membership, const NodeSetOptions& options);
  ~NodeSet();

  // Serving nodes that are usable.
  std::vector<std::shared_ptr<NodeHandle>> Usable(Role role) const;
  // All of that role, for people.
  std::vector<std::shared_ptr<NodeHandle>> All(Role role) const;

 private:
  void Loop();
  void Synchronise();

  const Membership* const membership_;
  const NodeSetOptions options_;
  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  struct Member {
    std::shared_ptr<NodeHandle> node;
    bool serving = true;
  };
  std::map<std::string, Member> members_ ABSL_GUARDED_BY(mu_);          // By id.
  std::vector<std::shared_ptr<NodeHandle>> left_ ABSL_GUARDED_BY(mu_);  // With requests of this process.
  std::thread thread_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_NODE_SET_H_
