// A store's rebalancing as a protobuf message, and back: what the store's service and the operator's share.
#ifndef PERIGEE_KVSTORE_REBALANCE_WIRE_H_
#define PERIGEE_KVSTORE_REBALANCE_WIRE_H_

#include "kvstore/rebalance_stats.h"
#include "perigee/v1/kvstore.pb.h"

namespace perigee::kvstore {

inline void RebalanceToWire(const RebalanceStats& stats, v1::StatResponse::Rebalance* wire) {
  wire->set_map_epoch(stats.map_epoch);
  wire->set_in_map(stats.in_map);
  wire->set_draining(stats.draining);
  wire->set_complete(stats.complete);
  wire->set_planes_to_move(stats.planes_to_move);
  wire->set_bytes_to_move(stats.bytes_to_move);
  wire->set_rounds(stats.rounds);
  wire->set_moved_planes(stats.moved_planes);
  wire->set_moved_bytes(stats.moved_bytes);
  wire->set_repaired_planes(stats.repaired_planes);
  wire->set_repaired_bytes(stats.repaired_bytes);
  wire->set_given_up_planes(stats.given_up_planes);
  wire->set_failures(stats.failures);
  wire->set_last_failure(stats.last_failure);
}

inline RebalanceStats RebalanceFromWire(const v1::StatResponse::Rebalance& wire) {
  return {.map_epoch = wire.map_epoch(),
          .in_map = wire.in_map(),
          .draining = wire.draining(),
          .complete = wire.complete(),
          .planes_to_move = wire.planes_to_move(),
          .bytes_to_move = wire.bytes_to_move(),
          .rounds = wire.rounds(),
          .moved_planes = wire.moved_planes(),
          .moved_bytes = wire.moved_bytes(),
          .repaired_planes = wire.repaired_planes(),
          .repaired_bytes = wire.repaired_bytes(),
          .given_up_planes = wire.given_up_planes(),
          .failures = wire.failures(),
          .last_failure = wire.last_failure()};
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REBALANCE_WIRE_H_
