#include "kvstore/policy/entry_queues.h"

#include <algorithm>
#include <cassert>

namespace perigee::kvstore {
namespace {

constexpr int kLastResortLooks = 1024;

}  // namespace

EntryQueues::EntryQueues(size_t max_entries) : max_entries_(max_entries) {}

void EntryQueues::Grow(EntryId id) {
  assert(id < max_entries_);
  id_end_ = std::max(id_end_, size_t{id} + 1);
  while (id / kChunk >= chunks_.size()) chunks_.push_back(std::make_unique<Entry[]>(kChunk));
}

EntryQueues::Ends& EntryQueues::EndsOf(Queue q) {
  if (q >= queues_.size()) queues_.resize(q + 1);
  return queues_[q];
}

void EntryQueues::LinkNewest(Ends& ends, EntryId id) {
  Entry& e = (*this)[id];
  e.newer = kNoEntry;
  e.older = ends.newest;
  if (ends.newest != kNoEntry) (*this)[ends.newest].newer = id;
  ends.newest = id;
  if (ends.oldest == kNoEntry) ends.oldest = id;
}

void EntryQueues::LinkOldest(Ends& ends, EntryId id) {
  Entry& e = (*this)[id];
  e.older = kNoEntry;
  e.newer = ends.oldest;
  if (ends.oldest != kNoEntry) (*this)[ends.oldest].older = id;
  ends.oldest = id;
  if (ends.newest == kNoEntry) ends.newest = id;
}

void EntryQueues::Unlink(EntryId id) {
  Entry& e = (*this)[id];
  Ends& ends = e.aside ? aside_ : EndsOf(e.queue);
  (e.newer == kNoEntry ? ends.newest : (*this)[e.newer].older) = e.older;
  (e.older == kNoEntry ? ends.oldest : (*this)[e.older].newer) = e.newer;
  e.aside = false;
}

void EntryQueues::Add(EntryId id, const PlaneFacts& facts, Queue q) {
  Grow(id);
  Entry& e = (*this)[id];
  assert(!e.present);
  const uint16_t generation = e.generation;
  e = Entry{};
  e.generation = generation;
  e.present = true;
  e.kind = static_cast<uint8_t>(facts.kind);
  e.queue = q;
  if (facts.parent != kNoEntry && facts.parent != id && Present(facts.parent)) {
    Entry& parent = (*this)[facts.parent];
    e.parent = facts.parent;
    e.parent_generation = parent.generation;
    ++parent.children;
    parent.had_child = true;
  }
  LinkNewest(EndsOf(q), id);
  ++size_;
}

EntryId EntryQueues::Remove(EntryId id) {
  Entry& e = (*this)[id];
  assert(e.present);
  Unlink(id);
  e.present = false;
  ++e.generation;
  --size_;
  if (e.parent == kNoEntry) return kNoEntry;
  Entry& parent = (*this)[e.parent];
  if (!parent.present || parent.generation != e.parent_generation || parent.children == 0) return kNoEntry;
  return --parent.children == 0 ? e.parent : kNoEntry;
}

void EntryQueues::MoveToNewest(EntryId id, Queue q) {
  Unlink(id);
  (*this)[id].queue = q;
  LinkNewest(EndsOf(q), id);
}

void EntryQueues::MoveToOldest(EntryId id, Queue q) {
  Unlink(id);
  (*this)[id].queue = q;
  LinkOldest(EndsOf(q), id);
}

void EntryQueues::Return(EntryId id) {
  if (!Returns(id)) return;
  const Entry& e = (*this)[id];
  const Ends& ends = EndsOf(e.queue);
  if (ends.oldest != kNoEntry) {
    const uint32_t after_oldest = e.tick - (*this)[ends.oldest].tick;  // As signed: it may be older than the oldest.
    const uint32_t before_newest = (*this)[ends.newest].tick - e.tick;
    if (static_cast<int32_t>(after_oldest) > 0 && after_oldest > before_newest) return MoveToNewest(id, e.queue);
  }
  MoveToOldest(id, e.queue);
}

void EntryQueues::MoveBefore(EntryId id, EntryId newer) {
  const EntryId older = (*this)[newer].older;
  if (older == kNoEntry) return MoveToOldest(id, (*this)[newer].queue);
  Unlink(id);
  Entry& e = (*this)[id];
  e.newer = newer;
  e.older = older;
  (*this)[newer].older = id;
  (*this)[older].newer = id;
}

bool EntryQueues::FreeOrAside(EntryId id, EvictionPolicy::Evictable evictable) {
  if ((*this)[id].children == 0 && evictable(id)) return true;
  Unlink(id);
  (*this)[id].aside = true;
  LinkNewest(aside_, id);
  return false;
}

EntryId EntryQueues::OldestFree(Queue q, EvictionPolicy::Evictable evictable) {
  for (;;) {
    const EntryId id = oldest(q);
    if (id == kNoEntry || FreeOrAside(id, evictable)) return id;
  }
}

EntryId EntryQueues::LastResort(EvictionPolicy::Evictable evictable) {
  EntryId first = kNoEntry;
  for (int i = 0; i < kLastResortLooks; ++i) {
    const EntryId id = aside_.oldest;
    if (id == kNoEntry || id == first) return kNoEntry;
    if (evictable(id)) return id;
    if (first == kNoEntry) first = id;
    Unlink(id);
    (*this)[id].aside = true;
    LinkNewest(aside_, id);
  }
  return kNoEntry;
}

}  // namespace perigee::kvstore
