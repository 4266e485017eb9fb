// Collective between processors, over UCX's active messages: whatever Options::transports names (tcp, shared memory,
// RDMA). See collective.h for what it promises, docs/design.md for the algorithms.
#ifndef PERIGEE_TRANSPORT_COLLECTIVE_UCX_COLLECTIVE_H_
#define PERIGEE_TRANSPORT_COLLECTIVE_UCX_COLLECTIVE_H_

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "transport/collective/collective.h"
#include "transport/collective/rendezvous.h"

namespace perigee::transport {

namespace internal {
struct Operation;
enum class OperationKind : uint8_t;
}  // namespace internal

class UcxCollective final : public Collective {
 public:
  // Rendezvous::Open and Join in one.
  static absl::StatusOr<std::unique_ptr<UcxCollective>> Create(const GroupOptions& options, absl::Time deadline);
  explicit UcxCollective(Group group);
  ~UcxCollective() override;

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size; }
  absl::Status AllReduceSum(std::span<float> values, absl::Time deadline) override;
  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all, absl::Time deadline) override;
  absl::Status Broadcast(std::span<std::byte> bytes, int root, absl::Time deadline) override;
  absl::Status BroadcastString(std::string* text, int root, absl::Time deadline) override;
  absl::Status Barrier(absl::Time deadline) override;

  // For a collective that moves its bytes otherwise and uses this group to watch over its ranks.
  // OK, or why the group is broken or about to be: a rank is gone, or has given up. Does not block. Group's thread.
  absl::Status CheckPeers();
  // Breaks the group and tells the other ranks why.
  void Abandon(const absl::Status& why);
  // What rank 0 gave to the rendezvous.
  const std::string& blob() const { return group_.blob; }

 private:
  // Runs one operation: numbers it, and breaks the group if it fails.
  absl::Status Run(internal::OperationKind kind, int root, size_t bytes, absl::FunctionRef<absl::Status()> body);
  absl::Status Send(int to, uint32_t step, absl::string_view payload);
  absl::Status SendToAll(uint32_t step, absl::string_view payload);
  // `bytes`: what it must have; kAnySize leaves that to the caller.
  absl::StatusOr<std::string> Take(int from, uint32_t step, size_t bytes);
  absl::Status ReduceSlice(std::span<float> mine, uint32_t step);

  Group group_;
  absl::Status broken_;
  // Of the operation under way:
  uint64_t sequence_ = 0;
  std::unique_ptr<internal::Operation> operation_;
  absl::Time deadline_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_COLLECTIVE_UCX_COLLECTIVE_H_
