// Which plane of a full tier goes, and which is worth a place in a slower one. One policy per tier; the tier keeps the
// bytes, the pins and the keys, the policy only an order.
//
// Entries are the tier's own dense numbers: below max_entries, used again after Evicted or Removed. All state lies in
// arrays that grow to the highest number seen; no call allocates per operation.
//
// Every policy keeps children before parents: an entry that another one names as its `parent` is not a victim as long
// as that one is there and some other entry can go. The tier names as parent what an entry is worthless without:
//
//   proximal plane -> distant plane of its block -> summary plane of its block -> distant plane of the block before
//
// leaving out what is not stored. So a block's proximal plane goes before its distant plane, a chain's end before its
// start, in whatever order the planes were inserted and touched. A summary whose distant plane has gone goes next.
//
// Pinned entries stay where they are until a search for a victim meets them. They are then set aside, keep their place
// as the next to go, and are looked at again when the tier says Unpinned. Each is set aside at most once per touch or
// unpin, so Victim costs constant time over the calls, whatever is pinned.
//
// Not thread-safe: the tier calls under its own lock. Wrong ids are bugs of the caller and end the process in debug
// builds; nothing here fails otherwise.
#ifndef PERIGEE_KVSTORE_POLICY_EVICTION_POLICY_H_
#define PERIGEE_KVSTORE_POLICY_EVICTION_POLICY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "pod/layout.h"

namespace perigee::kvstore {

using EntryId = uint32_t;
inline constexpr EntryId kNoEntry = ~EntryId{0};

// What a tier's policy knows of an entry's life, for the next tier's.
struct Past {
  uint8_t uses = 0;        // How often it was used again since it first came, as far as remembered; 255 is many.
  bool continued = false;  // Whether it ever was a parent, of other than its own block's proximal plane.
};

struct PlaneFacts {
  uint64_t key_hash = 0;  // Of its name: by this it is known again after it has gone.
  pod::PlaneKind kind = pod::PlaneKind::kDistant;
  EntryId parent = kNoEntry;   // Stored in this tier now; see above.
  uint32_t tenant = 0;         // Small and dense: tenants with a quota of their own from 1; 0 is everybody else.
  uint64_t payload_bytes = 0;  // As the tier accounts them.
  double cost_us = 0;          // To have it back: fetched from a slower tier, or computed again where last_copy.
  bool last_copy = false;      // Its going loses it for good.
  Past past;                   // In the tier that it comes from: PastOf() of that tier's policy.
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual absl::string_view name() const = 0;

  virtual void Inserted(EntryId id, const PlaneFacts& facts) = 0;
  virtual void Touched(EntryId id) = 0;
  // Touched is about to be called for these: brings what it looks at into the cache, all misses together.
  virtual void Expect(std::span<const EntryId>) const {}
  // Its last pin has gone.
  virtual void Unpinned(EntryId id) = 0;
  // What it takes to have it back is another now: a slower tier got a copy, or lost one. It keeps its age.
  virtual void CostChanged(EntryId id, uint64_t payload_bytes, double cost_us, bool last_copy) = 0;
  // It went for want of room: remembered under its hash, by policies that remember.
  virtual void Evicted(EntryId id, uint64_t key_hash) = 0;
  // It went for another reason (deleted, expired, corrupt).
  virtual void Removed(EntryId id) = 0;

  // Who goes next, of one tenant or of all. Nothing: no entry is evictable. Where all that may go are parents of
  // pinned entries, one of those. Does not remove it: the tier calls Evicted when it has gone.
  using Evictable = absl::FunctionRef<bool(EntryId)>;
  virtual std::optional<EntryId> Victim(std::optional<uint32_t> tenant, Evictable evictable) = 0;

  // Is a plane that leaves a faster tier worth a write into this one? write_us is what the write costs others: the time
  // that it takes, or a part of it where the device has time to spare.
  virtual bool Admit(const PlaneFacts& facts, double write_us) = 0;

  virtual Past PastOf(EntryId id) const = 0;
  virtual size_t MemoryBytes() const = 0;
};

struct PolicyOptions {
  size_t max_entries = 0;    // Ids are below this.
  size_t usual_entries = 0;  // About so many are in the tier at a time; 0: max_entries.
  // Evicted entries to remember, 12 bytes each. 0: as many as usual, for "value" twice as many; 2^24 at most.
  size_t ghost_entries = 0;
};

// "lru", "s3fifo", "value"; "default" is "value". INVALID_ARGUMENT names the policies there are.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   const PolicyOptions& options);
std::vector<absl::string_view> EvictionPolicyNames();

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_EVICTION_POLICY_H_
