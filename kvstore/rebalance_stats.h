// What a store's mover (kvstore/rebalancer.h) is at, and has done.
#ifndef PERIGEE_KVSTORE_REBALANCE_STATS_H_
#define PERIGEE_KVSTORE_REBALANCE_STATS_H_

#include <cstdint>
#include <string>

namespace perigee::kvstore {

struct RebalanceStats {
  uint64_t map_epoch = 0;  // Of the map that it places planes by; 0: none yet.
  bool in_map = false;     // The store is in that map; else it moves and removes nothing.
  bool draining = false;   // It is to give up everything.
  bool complete = false;   // A whole round under this map found nothing to do.
  // Here, though they belong to others: counted when a round begins, and less with every plane that is given up.
  uint64_t planes_to_move = 0, bytes_to_move = 0;
  // Since the store started.
  uint64_t rounds = 0;
  uint64_t moved_planes = 0, moved_bytes = 0;        // Sent to where they belong, from here, where they do not.
  uint64_t repaired_planes = 0, repaired_bytes = 0;  // Sent to others that were to have them too.
  uint64_t given_up_planes = 0;                      // Removed here, once others had them.
  uint64_t failures = 0;          // Planes that could not be sent, and calls that others did not answer.
  std::string last_failure = {};  // The latest of them, for people.

  bool drained() const { return draining && complete && planes_to_move == 0; }
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REBALANCE_STATS_H_
