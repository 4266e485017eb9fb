#include "kvstore/dram/extent_slab.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace perigee::kvstore {

ExtentSlab::ExtentSlab(uint64_t capacity_bytes)
    : capacity_pages_(std::min<uint64_t>(capacity_bytes / kPageBytes, ~uint32_t{0})),
      newest_free_(ClassOf(static_cast<uint32_t>(capacity_pages_)) + 1, kNone),
      classes_(static_cast<uint32_t>(newest_free_.size())) {
  open_runs_.fill(kNone);
  if (capacity_pages_ == 0) return;
  const Handle all = NewNode();
  nodes_[all].pages = static_cast<uint32_t>(capacity_pages_);
  free_pages_ = capacity_pages_;
  LinkFree(all);
}

uint32_t ExtentSlab::ClassOf(uint32_t pages) {
  // Consecutive: sizes below kExactPages, then kClassesPerOctave classes to every octave.
  if (pages < kExactPages) return pages;
  const uint32_t octave = static_cast<uint32_t>(std::bit_width(pages)) - 1 - kClassBits;
  return kClassesPerOctave * octave + (pages >> octave);
}

ExtentSlab::Handle ExtentSlab::NewNode() {
  Handle h = unused_nodes_;
  if (h != kNone) {
    unused_nodes_ = nodes_[h].older;
  } else {
    h = nodes_end_++;
    nodes_.GrowTo(h);
  }
  nodes_[h] = Node{};
  return h;
}

void ExtentSlab::DropNode(Handle h) {
  nodes_[h].SetUse(Use::kUnused);
  nodes_[h].older = unused_nodes_;
  unused_nodes_ = h;
}

void ExtentSlab::LinkFree(Handle h) {
  Node& n = nodes_[h];
  const uint32_t c = ClassOf(n.pages);
  n.newer = kNone;
  n.older = newest_free_[c];
  newest_free_[c] = h;
  if (n.older == kNone) {
    classes_.Insert(c);
  } else {
    nodes_[n.older].newer = h;
  }
  ++free_pieces_;
}

void ExtentSlab::UnlinkFree(Handle h) {
  const Node& n = nodes_[h];
  if (n.older != kNone) nodes_[n.older].newer = n.newer;
  --free_pieces_;
  if (n.newer != kNone) {
    nodes_[n.newer].older = n.older;
    return;
  }
  const uint32_t c = ClassOf(n.pages);
  newest_free_[c] = n.older;
  if (n.older == kNone) classes_.Erase(c);
}

ExtentSlab::Handle ExtentSlab::TakeFree(uint32_t pages) {
  uint32_t c = ClassOf(pages);
  if (c >= newest_free_.size()) return kNone;
  Handle found = kNone;
  if (pages >= kExactPages) {
    Handle h = newest_free_[c];
    for (int i = 0; i < kLooks && h != kNone && found == kNone; ++i, h = nodes_[h].older) {
      if (nodes_[h].pages >= pages) found = h;
    }
    ++c;
  }
  if (found == kNone) {
    const std::optional<uint32_t> next = classes_.From(c);
    if (!next) return kNone;
    found = newest_free_[*next];
  }
  UnlinkFree(found);
  return found;
}

ExtentSlab::Handle ExtentSlab::TakePages(uint32_t pages, Use use) {
  const Handle h = TakeFree(pages);
  if (h == kNone) return kNone;
  if (nodes_[h].pages > pages) {
    const Handle rest = NewNode();
    Node& n = nodes_[h];
    Node& r = nodes_[rest];
    r.pages = n.pages - pages;
    n.pages = pages;
    if (use == Use::kRun) {  // From the far end.
      r.page = n.page;
      n.page += r.pages;
      r.before = n.before;
      r.after = h;
      if (r.before != kNone) nodes_[r.before].after = rest;
      n.before = rest;
    } else {
      r.page = n.page + pages;
      r.before = h;
      r.after = n.after;
      if (r.after != kNone) nodes_[r.after].before = rest;
      n.after = rest;
    }
    LinkFree(rest);
  }
  nodes_[h].SetUse(use);
  free_pages_ -= pages;
  return h;
}

void ExtentSlab::GivePages(Handle h) {
  Node& n = nodes_[h];
  free_pages_ += n.pages;
  if (const Handle before = n.before; before != kNone && nodes_[before].use() == Use::kFree) {
    UnlinkFree(before);
    n.page = nodes_[before].page;
    n.pages += nodes_[before].pages;
    n.before = nodes_[before].before;
    if (n.before != kNone) nodes_[n.before].after = h;
    DropNode(before);
  }
  if (const Handle after = n.after; after != kNone && nodes_[after].use() == Use::kFree) {
    UnlinkFree(after);
    n.pages += nodes_[after].pages;
    n.after = nodes_[after].after;
    if (n.after != kNone) nodes_[n.after].before = h;
    DropNode(after);
  }
  LinkFree(h);
}

void ExtentSlab::LinkRun(uint32_t run) {
  Run& r = run_list_[run];
  r.newer = kNone;
  r.older = open_runs_[r.pages];
  if (r.older != kNone) run_list_[r.older].newer = run;
  open_runs_[r.pages] = run;
}

void ExtentSlab::UnlinkRun(uint32_t run) {
  const Run& r = run_list_[run];
  (r.newer == kNone ? open_runs_[r.pages] : run_list_[r.newer].older) = r.older;
  if (r.older != kNone) run_list_[r.older].newer = r.newer;
}

uint32_t ExtentSlab::NewRun(uint32_t pages) {
  const Handle node = TakePages(kRunPages, Use::kRun);
  if (node == kNone) return kNone;
  uint32_t run = unused_runs_;
  if (run != kNone) {
    unused_runs_ = run_list_[run].older;
  } else {
    run = runs_end_++;
    run_list_.GrowTo(run);
  }
  nodes_[node].older = run;
  const uint32_t places = kRunPages / pages;
  Run& r = run_list_[run] = Run{};
  r.node = node;
  r.pages = static_cast<uint16_t>(pages);
  for (uint32_t i = 0; i < places; ++i) r.free_places[i / 64] |= uint64_t{1} << i % 64;
  LinkRun(run);
  run_free_pages_ += places * pages;
  internal_bytes_ += (kRunPages - places * pages) * kPageBytes;
  ++runs_;
  return run;
}

ExtentSlab::Handle ExtentSlab::AllocateSmall(uint32_t pages) {
  const uint32_t run = open_runs_[pages] != kNone ? open_runs_[pages] : NewRun(pages);
  if (run == kNone) return kNone;
  Run& r = run_list_[run];
  uint32_t word = 0;
  while (r.free_places[word] == 0) ++word;
  const uint32_t place = word * 64 + static_cast<uint32_t>(std::countr_zero(r.free_places[word]));
  r.free_places[word] &= r.free_places[word] - 1;
  if (++r.live == kRunPages / pages) UnlinkRun(run);
  run_free_pages_ -= pages;
  const Handle h = NewNode();
  Node& n = nodes_[h];
  n.SetUse(Use::kSmall);
  n.page = nodes_[r.node].page + place * pages;
  n.pages = pages;
  n.before = run;
  n.after = place;
  return h;
}

void ExtentSlab::FreeSmall(Handle h) {
  const uint32_t run = nodes_[h].before, place = nodes_[h].after;
  DropNode(h);
  Run& r = run_list_[run];
  const uint32_t pages = r.pages, places = kRunPages / pages;
  assert((r.free_places[place / 64] >> place % 64 & 1) == 0);
  r.free_places[place / 64] |= uint64_t{1} << place % 64;
  run_free_pages_ += pages;
  if (r.live-- == places) LinkRun(run);
  if (r.live > 0) return;
  UnlinkRun(run);
  run_free_pages_ -= places * pages;
  internal_bytes_ -= (kRunPages - places * pages) * kPageBytes;
  --runs_;
  GivePages(r.node);
  r.older = unused_runs_;
  unused_runs_ = run;
}

std::optional<Extent> ExtentSlab::Allocate(uint64_t bytes) {
  if (bytes == 0 || bytes > capacity_bytes()) return std::nullopt;
  const uint32_t pages = static_cast<uint32_t>(RoundUpToPage(bytes) / kPageBytes);
  Handle h = kNone;
  if (pages <= kSmallPages && capacity_bytes() >= kLeastForRuns) h = AllocateSmall(pages);
  if (h == kNone) h = TakePages(pages, Use::kTaken);
  if (h == kNone) return std::nullopt;
  Node& n = nodes_[h];
  n.older = static_cast<uint32_t>(pages * kPageBytes - bytes);
  internal_bytes_ += n.older;
  ++extents_;
  return Extent{h, n.page};
}

bool ExtentSlab::Free(Extent extent) {
  if (extent.node >= nodes_end_) return false;
  const Node& n = nodes_[extent.node];
  const Use use = n.use();
  if (n.page != extent.page || (use != Use::kTaken && use != Use::kSmall)) return false;
  internal_bytes_ -= n.older;
  --extents_;
  if (use == Use::kSmall) {
    FreeSmall(extent.node);
  } else {
    GivePages(extent.node);
  }
  return true;
}

uint64_t ExtentSlab::largest_free_bytes() const {
  const std::optional<uint32_t> last = classes_.Last();
  if (!last) return 0;
  uint32_t pages = 0;
  Handle h = newest_free_[*last];
  for (int i = 0; i < kLooks && h != kNone; ++i, h = nodes_[h].older) pages = std::max(pages, nodes_[h].pages);
  return pages * kPageBytes;
}

double ExtentSlab::fragmentation() const {
  return free_bytes() == 0 ? 0.0 : 1.0 - static_cast<double>(largest_free_bytes()) / static_cast<double>(free_bytes());
}

uint64_t ExtentSlab::MemoryBytes() const {
  return sizeof(*this) + nodes_.memory_bytes() + run_list_.memory_bytes() + newest_free_.capacity() * sizeof(Handle) +
         classes_.MemoryBytes();
}

}  // namespace perigee::kvstore
