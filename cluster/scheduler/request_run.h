// One request on its way through the cluster: attempts at nodes, until its answers are complete.
#ifndef PERIGEE_CLUSTER_SCHEDULER_REQUEST_RUN_H_
#define PERIGEE_CLUSTER_SCHEDULER_REQUEST_RUN_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/scheduler/cluster_backend.h"

namespace perigee::cluster {

// One thread, once.
class RequestRun {
 public:
  // All outlive this object.
  RequestRun(ClusterBackend* backend, const ClusterModel& model, const BackendRequest& request, absl::Time deadline,
             absl::FunctionRef<bool(const BackendEvent&)> emit, absl::FunctionRef<bool()> cancelled);

  absl::StatusOr<BackendUsage> Run();

 private:
  struct Sample {
    std::vector<int32_t> ids;  // Answered so far.
    bool finished = false;
  };
  // What one attempt is about: samples to the same tokens.
  struct Attempt {
    std::vector<uint32_t> samples;
    std::vector<int32_t> ids;         // Prompt, and what is answered of a sample that is to go on.
    std::vector<pod::BlockKey> keys;  // Of all ids but the last; none where contexts stand in the prompt.
  };
  Attempt NextAttempt() const;
  // Route, prefill where needed, generate. Anything but OK and what GivesUp says is worth another attempt.
  absl::Status Try(const Attempt& attempt);
  PromptFigures Figures(const Attempt& attempt) const;
  // Where an attempt goes. As long as it lives the nodes count as busy with it.
  struct Choice;
  absl::StatusOr<Choice> Choose(const Attempt& attempt, const PromptFigures& prompt);
  // Sleeps, and says whether there is time left.
  absl::Status Pause();
  std::vector<std::shared_ptr<NodeHandle>> Candidates(Role role) const;
  absl::Status Prefill(NodeHandle& node, const Attempt& attempt);
  // Those of the request's contexts that the stores lack.
  absl::Status PrefillContexts();
  // What stays of no use in the stores when the request has ended.
  void DropPassingBlocks() const;
  bool composed() const { return !contexts_.empty(); }
  // Which repair the request's contexts get.
  absl::StatusOr<model::Repair> ChooseRepair() const;
  absl::Status Generate(NodeHandle& node, const Attempt& attempt, uint32_t max_compute_tokens);
  absl::Status Take(const v1::GenerateEvent& event, NodeHandle& node, const Attempt& attempt);
  absl::Status GivesUp(const absl::Status& status) const;
  // OK while it makes sense to go on waiting for the node.
  absl::Status StillThere(const NodeHandle& node) const;
  void Failed(NodeHandle& node, const absl::Status& status);

  ClusterBackend& backend_;
  const ClusterModel& model_;
  const BackendRequest& request_;
  const absl::Time deadline_;
  const absl::FunctionRef<bool(const BackendEvent&)> emit_;
  const absl::FunctionRef<bool()> cancelled_;
  pod::Identity identity_;
  absl::StatusOr<model::Repair> repair_;
  std::vector<std::vector<int32_t>> contexts_;            // Ids of each, opening included. None with "full".
  std::vector<std::vector<pod::BlockKey>> context_keys_;  // Theirs.
  std::vector<Sample> samples_;
  std::set<std::string> avoided_;  // Nodes that failed this request.
  absl::Duration pause_ = absl::Milliseconds(10);
  bool prefill_first_ = false;  // A decode node lacked planes that were thought to be there.
  bool caller_gone_ = false;
  bool prefilled_ = false;  // By a prefill node, at least in part.
  bool started_ = false;
  std::optional<uint32_t> found_;  // Prompt tokens that the first prefill did not compute.
  BackendUsage usage_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_REQUEST_RUN_H_
