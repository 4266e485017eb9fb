// Internal to the policies: what all of them do alike. Entries in doubly linked queues, numbered by the policy; who is
// whose parent; pinned entries and parents set aside. See eviction_policy.h.
#ifndef PERIGEE_KVSTORE_POLICY_ENTRY_QUEUES_H_
#define PERIGEE_KVSTORE_POLICY_ENTRY_QUEUES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvstore/policy/eviction_policy.h"

namespace perigee::kvstore {

class EntryQueues {
 public:
  using Queue = uint32_t;

  struct Entry {  // 32 bytes
    EntryId newer = kNoEntry, older = kNoEntry;
    EntryId parent = kNoEntry;
    uint32_t children = 0;
    uint32_t tick = 0;  // Of the last touch.
    Queue queue = 0;    // Where it is, or belongs while it is set aside.
    // An id's parent may have gone and its number be another entry's: a child counts with the generation it was born
    // under only. They wrap; what a wrong match breaks is one parent's count, and with it an order, nothing else.
    uint16_t generation = 0, parent_generation = 0;
    Past past;
    bool present : 1 = false;
    bool aside : 1 = false;
    uint8_t kind : 4 = 0;
  };

  explicit EntryQueues(size_t max_entries);

  Entry& operator[](EntryId id) { return chunks_[id / kChunk][id % kChunk]; }
  const Entry& operator[](EntryId id) const { return chunks_[id / kChunk][id % kChunk]; }
  size_t size() const { return size_; }
  size_t id_end() const { return id_end_; }  // Above all ids ever seen.
  EntryId oldest(Queue q) const { return q < queues_.size() ? queues_[q].oldest : kNoEntry; }
  bool empty(Queue q) const { return oldest(q) == kNoEntry; }

  // A new entry at the new end of q. Its parent gets a child.
  void Add(EntryId id, const PlaneFacts& facts, Queue q);
  // Out of everything. Returns its parent where it was that one's last child: the policy may have to Return it.
  EntryId Remove(EntryId id);
  // To the new end of q, from wherever it is.
  void MoveToNewest(EntryId id, Queue q);
  // To the new end of q, unless it belongs there already.
  void MoveAcross(EntryId id, Queue q) {
    if ((*this)[id].queue != q) MoveToNewest(id, q);
  }
  // Back into its queue if it was set aside and is no parent (any more): to its place by age, found within a few steps
  // from the old end. There it mostly is, for it was the oldest when it was set aside and was not touched since.
  void Return(EntryId id);

  // q's oldest that may go; sets aside what may not.
  EntryId OldestFree(Queue q, EvictionPolicy::Evictable evictable);
  // Whether it may go; else it is aside now.
  bool FreeOrAside(EntryId id, EvictionPolicy::Evictable evictable);
  // Where no queue has a free entry: one set aside that the tier would let go, so a parent of pinned ones. Looks at a
  // bounded number of them, at others each time.
  EntryId LastResort(EvictionPolicy::Evictable evictable);

  // Into the cache: these, and those beside them in their queues.
  void Prefetch(std::span<const EntryId> ids) const {
    for (const EntryId id : ids) {
      if (id < id_end_) __builtin_prefetch(&(*this)[id], 1);
    }
    for (const EntryId id : ids) {
      if (id >= id_end_) continue;
      const Entry& e = (*this)[id];
      if (e.newer < id_end_) __builtin_prefetch(&(*this)[e.newer], 1);
      if (e.older < id_end_) __builtin_prefetch(&(*this)[e.older], 1);
    }
  }

  bool Present(EntryId id) const { return id / kChunk < chunks_.size() && (*this)[id].present; }
  size_t MemoryBytes() const { return chunks_.size() * kChunk * sizeof(Entry) + queues_.capacity() * sizeof(Ends); }

 private:
  static constexpr size_t kChunk = 4096;
  struct Ends {
    EntryId newest = kNoEntry, oldest = kNoEntry;
  };
  void Grow(EntryId id);
  Ends& EndsOf(Queue q);
  void LinkNewest(Ends& ends, EntryId id);
  void LinkOlder(Ends& ends, EntryId id, EntryId newer);
  void Unlink(EntryId id);

  const size_t max_entries_;
  size_t size_ = 0, id_end_ = 0;
  std::vector<std::unique_ptr<Entry[]>> chunks_;  // Growing moves no entry.
  std::vector<Ends> queues_;
  Ends aside_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_ENTRY_QUEUES_H_
