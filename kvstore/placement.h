// Which stores hold a block chain's planes: rendezvous hashing (Thaler and Ravishankar 1998), weighted by capacity.
//
// All blocks of a chain live together, on the stores that the chain's root (the key of its first block) leads to: a
// prefix is looked up and fetched at one place. Roots are gathered into 65,536 placement groups, so that a store needs
// two bytes a plane to know where it belongs. Each store has a score per group; a plane with R replicas belongs to the
// R serving stores with the highest. So a store that comes or goes moves its own share and nothing else, and every
// process that sees the same stores places alike, without asking anybody.
#ifndef PERIGEE_KVSTORE_PLACEMENT_H_
#define PERIGEE_KVSTORE_PLACEMENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "pod/block_key.h"

namespace perigee::kvstore {

using PlacementGroup = uint16_t;

inline constexpr uint32_t kMaxReplicas = 8;  // How many stores may be asked to hold one plane.

// The digest's first two bytes, little-endian.
PlacementGroup GroupOf(const pod::BlockKey& root);

enum class StoreState : uint8_t {
  kServing,
  kDraining,  // Read, but not written to: its planes are on their way to others.
};

struct StoreEntry {
  std::string id;       // Unique, and the same after a restart; the hash is over it.
  std::string address;  // host:port of the control plane.
  double weight = 1;    // Its share, beside the others' weights; above 0.
  StoreState state = StoreState::kServing;
  friend bool operator==(const StoreEntry&, const StoreEntry&) = default;
};

// The stores that are believed to be alive. A value; reading it needs no lock.
struct StoreMap {
  uint64_t epoch = 0;  // Grows with every change.
  std::vector<StoreEntry> stores;

  // Indices into stores, best first: the serving ones to which a group's planes with so many replicas belong. Fewer
  // where there are not so many.
  std::vector<size_t> Owners(PlacementGroup group, size_t replicas) const;
  // Where to look for a group's planes, best first: `serving` stores as by Owners, and among them, at the place that
  // their score gives them, the draining ones. Looking at one more than R finds planes while a store that came, or
  // went, has its share still moving.
  std::vector<size_t> Readers(PlacementGroup group, size_t serving) const;
};

// The map of the day, from whoever knows the cluster's members to those that place planes. Any thread may call.
class StoreDirectory {
 public:
  explicit StoreDirectory(StoreMap map = {});

  std::shared_ptr<const StoreMap> Get() const;
  // Taken unless its epoch is not above that of the map it has.
  void Set(StoreMap map);
  // Until the epoch is above `epoch`; false when the deadline came first.
  bool AwaitNewer(uint64_t epoch, absl::Time deadline) const;

 private:
  mutable absl::Mutex mu_;
  std::shared_ptr<const StoreMap> map_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_PLACEMENT_H_
