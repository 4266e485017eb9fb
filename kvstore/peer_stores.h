// Internal to the room: the other stores, as the mover (kvstore/rebalancer.h) talks to them. A store that failed once
// in a round is left alone until the next. One thread.
#ifndef PERIGEE_KVSTORE_PEER_STORES_H_
#define PERIGEE_KVSTORE_PEER_STORES_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/client.h"
#include "kvstore/placement.h"
#include "kvstore/rebalance_decision.h"
#include "kvstore/store.h"

namespace perigee::kvstore {

class PeerStores {
 public:
  // options: of all connections. bytes_in_flight, planes_in_flight: see RebalancerOptions. stopping: what the own disk
  // has not brought yet is not waited for.
  PeerStores(Store* own, transport::Context* engine, ClientOptions options, size_t planes_in_flight,
             uint64_t bytes_in_flight, std::function<bool()> stopping);

  // Forgets what failed, and connections to stores that are not in the map.
  void BeginRound(const StoreMap& map);

  struct Answer {
    OwnersCopy copy = OwnersCopy::kUnknown;
    uint32_t replicas = 0;  // Where there.
  };
  // One answer per plane. map_epoch: see StoreClient::Lookup.
  std::vector<Answer> Ask(const StoreEntry& peer, std::span<const ListedPlane* const> planes, uint64_t map_epoch);

  struct Sent {
    size_t planes = 0;
    uint64_t bytes = 0;
    size_t failed = 0;
  };
  // Copies planes there, in their order, with what is left of their time to live. before_batch: asked with a batch's
  // bytes before it goes; false ends the call. What had gone here meanwhile, and what is there already, counts as
  // nothing.
  Sent Send(const StoreEntry& peer, std::span<const ListedPlane* const> planes, int64_t now_unix_us,
            const std::function<bool(uint64_t bytes)>& before_batch);
  // Tells it that so many stores are to have the blocks' planes.
  void SetReplicas(const StoreEntry& peer, std::span<const pod::BlockKey> keys, uint32_t replicas);

  // Calls that were not answered, or refused, since the start.
  uint64_t failures() const { return failures_; }
  // The latest of these, or of planes that could not be sent; "" for none.
  const std::string& last_failure() const { return last_failure_; }

 private:
  struct Peer {
    std::unique_ptr<StoreClient> client;
    bool down = false, full = false;  // In this round.
  };
  void Note(const std::string& failure);
  // Null: it does not answer.
  StoreClient* Connected(const StoreEntry& peer);
  // Notes an error of a whole call; true: it was none.
  bool Went(const StoreEntry& peer, const absl::Status& status, const char* what);
  absl::Status SendBatch(StoreClient& client, std::span<const ListedPlane* const> planes, absl::Duration ttl,
                         Sent* sent);

  Store* const own_;
  transport::Context* const engine_;
  const ClientOptions options_;
  const size_t planes_in_flight_;
  const uint64_t bytes_in_flight_;
  const std::function<bool()> stopping_;
  absl::flat_hash_map<std::string, Peer> peers_;  // By address.
  uint64_t failures_ = 0;
  std::string last_failure_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_PEER_STORES_H_
