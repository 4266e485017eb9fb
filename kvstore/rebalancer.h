// The mover of a store: brings planes to where the map of stores (kvstore/placement.h) has them, while the store
// serves.
//
// In rounds: some time after the map has changed, and every now and then, it goes through the store's planes. What
// another owner of a plane lacks is sent there (of several stores that have it by the best owner), with its time to
// live, pin and number of replicas. What belongs to others is given up once they have said, in this round and by the
// same map, that they have it; some time after they were first seen to have it, so that a reader who asks one store
// after the other finds it. So a new store gets its share, a draining one becomes empty, and a lost replica is made
// again from the others.
//
// Not moved: planes whose header does not name their chain's root, and those that only the remote tier holds. Given up
// by nobody: the last copy (unless an owner says that the plane was deleted after this copy came). A store that is not
// in the map moves and removes nothing.
//
// All stores must hear of maps from one source: two are taken for the same if their epochs are.
//
// One thread of its own; Progress and Stop from any.
#ifndef PERIGEE_KVSTORE_REBALANCER_H_
#define PERIGEE_KVSTORE_REBALANCER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "kvstore/placement.h"
#include "kvstore/rebalance_stats.h"
#include "kvstore/store.h"
#include "transport/context.h"

namespace perigee::kvstore {

struct RebalancerOptions {
  std::string secret;                               // For the other stores: of a credential without a tenant.
  absl::Duration settle = absl::Seconds(5);         // How long the map must stay before anything moves by it.
  absl::Duration every = absl::Seconds(60);         // From one round to the next when there is nothing to do,
  absl::Duration retry = absl::Seconds(5);          // and when there is.
  absl::Duration linger = absl::Seconds(5);         // How long a copy stays after the owners were seen to have it.
  uint64_t bytes_per_s = 200'000'000;               // Sent to all others together. Above 0.
  size_t planes_in_flight = 64;                     // Sent at a time,
  uint64_t bytes_in_flight = uint64_t{32} << 20;    // and leased meanwhile; one plane may be larger.
  size_t page_planes = 4096;                        // Asked for in one call.
  absl::Duration call_deadline = absl::Seconds(5);  // Of one call of another store.
};

class Rebalancer {
 public:
  // store, engine: outlive it. store_id: this store's in the map.
  Rebalancer(Store* store, std::string store_id, std::shared_ptr<const StoreDirectory> directory,
             transport::Context* engine, RebalancerOptions options);
  ~Rebalancer();  // Stops.

  // Ends the thread, after the call or transfer that is under way: at the latest after its deadline.
  void Stop();
  RebalanceStats Progress() const;

 private:
  class Mover;
  const std::unique_ptr<Mover> mover_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REBALANCER_H_
