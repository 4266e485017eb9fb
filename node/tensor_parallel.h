// How the ranks of a tensor-parallel group work with the store: together they write and read planes of the whole model,
// each rank its own kv heads' sections.
//
//   writing   rank 0 reserves and commits; every rank puts its sections straight into the store's memory
//             (kvstore/shared_reservation.h) and sends their checksums to rank 0, which makes the headers
//   reading   every rank leases the planes and fetches its sections into planes of its local layout
//
// Functions that take a group are collective: every rank calls them in the same order, with the same planes and its own
// shard, one thread at a time. They end alike at all ranks: what one rank could not do, all are told. An error of the
// group itself (transport/collective/collective.h) breaks it; the caller makes a new one.
#ifndef PERIGEE_NODE_TENSOR_PARALLEL_H_
#define PERIGEE_NODE_TENSOR_PARALLEL_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client.h"
#include "kvstore/shared_reservation.h"
#include "model/plane_cache.h"
#include "model/tensor_parallel.h"
#include "node/node.h"
#include "pod/head_shard.h"
#include "transport/collective/collective.h"

namespace perigee::node {

// A plane's sections of one rank, brought into its memory and checked against header and checksums.
struct FetchedPlane {
  absl::Status status;  // NOT_FOUND with the store's reason; DATA_LOSS for wrong bytes; else bytes are here.
  model::PlaneBuffer bytes;
  size_t size_bytes = 0;
  int64_t base_position = 0;
  kvstore::Tier from = kvstore::Tier::kDram;
};

// The group as the forward pass sees it; every sum has `timeout`. `group` outlives the model.
model::TensorParallel ModelGroup(transport::Collective* group, absl::Duration timeout);

// Rank 0's answer, or its error, at every rank: `ask` runs at rank 0 alone. For decisions that must be one.
absl::StatusOr<std::string> FromLeader(transport::Collective& group,
                                       const std::function<absl::StatusOr<std::string>()>& ask, absl::Time deadline);

// OK where every rank's status is OK; else, at every rank, the error of the lowest rank that has one, with its number.
absl::Status Agree(transport::Collective& group, const absl::Status& mine, absl::Time deadline);

// The rank's plane (of the local layout) for plane `i` of a write.
using PayloadOf = std::function<std::span<const std::byte>(size_t i)>;

// Planes on their way into the store. Move-only; goes before group, store and shard.
class ShardedWrite {
 public:
  // Collective. RESOURCE_EXHAUSTED, UNAVAILABLE: as StoreClient::Reserve. INTERNAL where the ranks name other planes.
  static absl::StatusOr<ShardedWrite> Begin(transport::Collective& group, kvstore::StoreClient& store,
                                            const pod::HeadShard& shard, std::span<const kvstore::PlaneId> planes,
                                            absl::Time deadline);

  size_t size() const { return planes_.size(); }
  bool already_committed(size_t i) const { return joined_.already_committed(i); }

  // Starts sending what layer `layer` wrote. Not collective, and does not fail by itself: an error here would keep this
  // rank from the sums that the others wait in, so it is told by Commit. The bytes stay until Commit has returned or
  // this object is gone.
  void Ship(int layer, const PayloadOf& payload);

  // Collective, after the last layer. headers: one per plane, without section sums; read at rank 0 only. Returns the
  // payload bytes that were new to the store, of all ranks. On any error no plane of the write need exist.
  absl::StatusOr<uint64_t> Commit(std::span<const pod::PlaneHeader> headers, const PayloadOf& payload,
                                  absl::Time deadline);

 private:
  ShardedWrite(transport::Collective& group, const pod::HeadShard& shard, std::span<const kvstore::PlaneId> planes)
      : group_(&group), shard_(&shard), planes_(planes.begin(), planes.end()) {}
  transport::Collective* group_;
  const pod::HeadShard* shard_;
  std::vector<kvstore::PlaneId> planes_;
  kvstore::WriteBatch batch_;    // At rank 0 only.
  kvstore::JoinedBatch joined_;  // At rank 0 too. After batch_: this process's puts end before the batch is given up.
  absl::Status status_;          // The first error of Ship.
};

// Collective. The rank's sections of the planes, in local planes that `allocate` gives, each section checked; as
// Node::FetchPlanes, and a plane that one rank could not have is not OK at any rank. The Status is the whole batch's.
absl::StatusOr<std::vector<FetchedPlane>> FetchShard(transport::Collective& group, kvstore::StoreClient& store,
                                                     const pod::HeadShard& shard, const pod::Identity& identity,
                                                     std::span<const kvstore::PlaneId> planes,
                                                     const model::PlaneAllocator& allocate, absl::Time deadline);

}  // namespace perigee::node

#endif  // PERIGEE_NODE_TENSOR_PARALLEL_H_
