#include "kvstore/policy/entry_queues.h"

#include <algorithm>
#include <cassert>

namespace perigee::kvstore {
namespace {

constexpr int kLastResortLooks = 1024;
constexpr int kReturnSteps = 8;

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

void EntryQueues::LinkOlder(Ends& ends, EntryId id, EntryId newer) {
  Entry& e = (*this)[id];
  e.newer = newer;
  e.older = (*this)[newer].older;
  (*this)[newer].older = id;
  (e.older == kNoEntry ? ends.oldest : (*this)[e.older].newer) = id;
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
  e.past = facts.past;
  if (facts.parent != kNoEntry && facts.parent != id && Present(facts.parent)) {
    Entry& parent = (*this)[facts.parent];
    e.parent = facts.parent;
    e.parent_generation = parent.generation;
    ++parent.children;
    if (facts.kind != pod::PlaneKind::kProximal) parent.past.continued = true;
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

void EntryQueues::Return(EntryId id) {
  const Entry& e = (*this)[id];
  if (!e.aside || e.children > 0) return;
  const auto is_older = [this, &e](EntryId other) { return static_cast<int32_t>((*this)[other].tick - e.tick) < 0; };
  EntryId newer = oldest(e.queue);
  for (int i = 0; i < kReturnSteps && newer != kNoEntry && is_older(newer); ++i) newer = (*this)[newer].newer;
  if (newer != kNoEntry && is_older(newer)) {
    // Somewhere inside. Next to the end that it is nearer to is near enough.
    const uint32_t before_newest = (*this)[EndsOf(e.queue).newest].tick - e.tick;
    const uint32_t after_this = e.tick - (*this)[newer].tick;
    if (before_newest < after_this) newer = kNoEntry;
  }
  if (newer == kNoEntry) return MoveToNewest(id, e.queue);
  Unlink(id);
  LinkOlder(EndsOf(e.queue), id, newer);
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
