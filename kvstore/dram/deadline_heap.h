// Deadlines that can be moved and cancelled: ends of leases, of reservations, of planes' time to live. Exact times, the
// earliest first; O(log n) to add, move, cancel and take, O(1) to ask; no allocation per deadline once the arrays have
// grown. A heap with four children per node: its paths are half as long as with two, and siblings share a cache line.
//
// Not thread-safe. Wrong handles are bugs of the caller and end the process in debug builds.
#ifndef PERIGEE_KVSTORE_DRAM_DEADLINE_HEAP_H_
#define PERIGEE_KVSTORE_DRAM_DEADLINE_HEAP_H_

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace perigee::kvstore {

class DeadlineHeap {
 public:
  using Handle = uint32_t;
  static constexpr Handle kNone = ~uint32_t{0};
  struct Due {
    int64_t when = 0;   // In the caller's unit.
    uint64_t what = 0;  // The caller's: an id.
    Handle handle = kNone;
  };

  Handle Add(int64_t when, uint64_t what) {
    Handle h = unused_;
    if (h != kNone) {
      unused_ = items_[h].place;
    } else {
      h = static_cast<Handle>(items_.size());
      items_.emplace_back();
    }
    items_[h].what = what;
    heap_.push_back({when, h});
    Up(heap_.size() - 1);
    return h;
  }
  // To another time.
  void Move(Handle h, int64_t when) {
    const size_t place = PlaceOf(h);
    heap_[place].when = when;
    Down(Up(place));
  }
  void Cancel(Handle h) {
    const size_t place = PlaceOf(h);
    items_[h].place = unused_;
    items_[h].present = false;
    unused_ = h;
    const Node last = heap_.back();
    heap_.pop_back();
    if (place == heap_.size()) return;
    heap_[place] = last;
    Down(Up(place));
  }
  // The earliest. Among equals any.
  std::optional<Due> Earliest() const {
    if (heap_.empty()) return std::nullopt;
    const Node& first = heap_[0];
    return Due{first.when, items_[first.handle].what, first.handle};
  }
  // The earliest if its time has come (when <= now), cancelled.
  std::optional<Due> Take(int64_t now) {
    const std::optional<Due> due = Earliest();
    if (!due || due->when > now) return std::nullopt;
    Cancel(due->handle);
    return due;
  }
  int64_t When(Handle h) const { return heap_[PlaceOf(h)].when; }
  size_t size() const { return heap_.size(); }
  size_t MemoryBytes() const { return heap_.capacity() * sizeof(Node) + items_.capacity() * sizeof(Item); }

 private:
  static constexpr size_t kChildren = 4;
  struct Node {
    int64_t when = 0;
    Handle handle = kNone;
  };
  struct Item {
    uint64_t what = 0;
    uint32_t place = 0;  // In the heap; of an unused one the next unused one.
    bool present = true;
  };

  size_t PlaceOf(Handle h) const {
    assert(h < items_.size() && items_[h].present);
    return items_[h].place;
  }
  void Put(size_t place, Node node) {
    heap_[place] = node;
    items_[node.handle].place = static_cast<uint32_t>(place);
    items_[node.handle].present = true;
  }
  size_t Up(size_t place) {
    const Node node = heap_[place];
    while (place > 0 && node.when < heap_[(place - 1) / kChildren].when) {
      Put(place, heap_[(place - 1) / kChildren]);
      place = (place - 1) / kChildren;
    }
    Put(place, node);
    return place;
  }
  void Down(size_t place) {
    const Node node = heap_[place];
    for (;;) {
      const size_t first = place * kChildren + 1, end = std::min(first + kChildren, heap_.size());
      size_t least = first;
      for (size_t i = first + 1; i < end; ++i) {
        if (heap_[i].when < heap_[least].when) least = i;
      }
      if (first >= end || heap_[least].when >= node.when) break;
      Put(place, heap_[least]);
      place = least;
    }
    Put(place, node);
  }

  std::vector<Node> heap_;
  std::vector<Item> items_;
  Handle unused_ = kNone;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_DEADLINE_HEAP_H_
