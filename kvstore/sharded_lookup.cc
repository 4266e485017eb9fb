// ShardedStore::Lookup: what the first reader does not have is asked of the next ones.
#include <algorithm>
#include <utility>

#include "kvstore/sharded_store.h"
#include "kvstore/store_connections.h"

namespace perigee::kvstore {

using internal::StoreConnection;
using internal::StoreView;

namespace {

// Of prefix lookups: a chain whose blocks alternate between stores would ask without end. A shorter prefix is true too.
constexpr size_t kMaxPrefixCalls = 16;

template <typename Planes>
auto Find(Planes& planes, pod::PlaneKind kind) {
  return std::find_if(planes.begin(), planes.end(), [kind](const auto& plane) { return plane.kind == kind; });
}
template <typename Planes>
bool Has(const Planes& planes, pod::PlaneKind kind) {
  return Find(planes, kind) != planes.end();
}

// The next readers need not be asked; see ShardedStore::Lookup.
bool Complete(const BlockInfo& block) {
  return Has(block.planes, pod::PlaneKind::kDistant) &&
         std::all_of(block.misses.begin(), block.misses.end(),
                     [](const MissedPlane& missed) { return missed.miss.reason == MissReason::kNeverStored; });
}

// A plane that two stores have is the first one's; of two reasons for a miss, the one that says more.
void MergeBlock(BlockInfo& block, const BlockInfo& next) {
  for (const FoundPlane& plane : next.planes) {
    if (Has(block.planes, plane.kind)) continue;
    block.planes.push_back(plane);
    std::erase_if(block.misses, [&plane](const MissedPlane& missed) { return missed.kind == plane.kind; });
  }
  for (const MissedPlane& missed : next.misses) {
    if (Has(block.planes, missed.kind)) continue;
    const auto known = Find(block.misses, missed.kind);
    if (known == block.misses.end()) {
      block.misses.push_back(missed);
    } else if (known->miss.reason == MissReason::kNeverStored) {
      known->miss = missed.miss;
    }
  }
  const auto by_kind = [](const auto& a, const auto& b) { return a.kind < b.kind; };
  std::sort(block.planes.begin(), block.planes.end(), by_kind);
  std::sort(block.misses.begin(), block.misses.end(), by_kind);
}

void MarkUnreachable(BlockInfo& block) {
  for (MissedPlane& missed : block.misses) missed.miss = {MissReason::kUnreachable, 0};
}

// What a lookup has learned so far, and from whom.
struct Asked {
  std::shared_ptr<const StoreView> view;
  std::vector<std::shared_ptr<StoreConnection>> readers;
  std::vector<bool> silent;  // Readers that did not answer.
  absl::Status error;        // The first of those.
  size_t answers = 0;
  LookupResult merged;

  Asked(std::shared_ptr<const StoreView> of, PlacementGroup group, size_t read_stores)
      : view(std::move(of)), readers(view->Pick(view->map->Readers(group, read_stores))), silent(readers.size()) {}

  absl::StatusOr<LookupResult> Ask(size_t reader, std::span<const pod::BlockKey> keys, LookupMode mode) {
    auto result =
        readers[reader]->Try(view->even_if_avoided(), [&](StoreClient& store) { return store.Lookup(keys, mode); });
    if (result.ok()) {
      ++answers;
    } else {
      silent[reader] = true;
      error.Update(result.status());
    }
    return result;
  }

  absl::StatusOr<LookupResult> Result() && {
    if (readers.empty()) return view->NoStore();
    if (answers == 0) return error;
    merged.estimated_fetch_us = 0;
    for (const BlockInfo& block : merged.blocks) {
      for (const FoundPlane& plane : block.planes) merged.estimated_fetch_us += plane.estimated_fetch_us;
    }
    for (size_t i = 0; i < readers.size(); ++i) {
      if (silent[i]) readers[i]->CountFailover();
    }
    return std::move(merged);
  }
};

}  // namespace

absl::StatusOr<LookupResult> ShardedStore::Lookup(const pod::BlockKey& root, std::span<const pod::BlockKey> keys,
                                                  LookupMode mode) {
  return mode == LookupMode::kAll ? LookupAll(root, keys) : LookupPrefix(root, keys);
}

absl::StatusOr<LookupResult> ShardedStore::LookupAll(const pod::BlockKey& root, std::span<const pod::BlockKey> keys) {
  Asked asked(connections_->Current(), GroupOf(root), options_.read_stores);
  std::vector<size_t> open(keys.size());  // Blocks that the next reader is asked for.
  for (size_t b = 0; b < open.size(); ++b) open[b] = b;
  std::vector<size_t> unreachable;
  asked.merged.blocks.resize(keys.size());
  for (size_t r = 0; r < asked.readers.size() && (asked.answers == 0 || !open.empty()); ++r) {
    std::vector<pod::BlockKey> some;
    if (open.size() < keys.size()) {
      for (const size_t b : open) some.push_back(keys[b]);
    }
    auto result =
        asked.Ask(r, open.size() < keys.size() ? std::span<const pod::BlockKey>(some) : keys, LookupMode::kAll);
    if (!result.ok()) {
      unreachable.insert(unreachable.end(), open.begin(), open.end());
      continue;
    }
    if (asked.answers == 1) {
      asked.merged.blocks = std::move(result->blocks);
    } else {
      for (size_t i = 0; i < open.size(); ++i) MergeBlock(asked.merged.blocks[open[i]], result->blocks[i]);
    }
    std::erase_if(open, [&asked](size_t b) { return Complete(asked.merged.blocks[b]); });
  }
  for (const size_t b : unreachable) MarkUnreachable(asked.merged.blocks[b]);
  return std::move(asked).Result();
}

// The readers go on, in turn, from where the prefix ends, until none of them knows its next block.
absl::StatusOr<LookupResult> ShardedStore::LookupPrefix(const pod::BlockKey& root,
                                                        std::span<const pod::BlockKey> keys) {
  Asked asked(connections_->Current(), GroupOf(root), options_.read_stores);
  const size_t readers = asked.readers.size();
  std::vector<BlockInfo>& blocks = asked.merged.blocks;
  size_t known = 0;                       // Blocks whose distant plane somebody has.
  size_t unreachable_from = keys.size();  // Blocks for which some reader did not answer.
  size_t without_more = 0;                // Readers in a row, the last one included, that do not know block `known`.
  for (size_t call = 0; call < kMaxPrefixCalls && without_more < readers; ++call) {
    if (known == keys.size() && asked.answers > 0) break;
    const size_t reader = call % readers;
    ++without_more;
    if (asked.silent[reader]) continue;
    auto result = asked.Ask(reader, keys.subspan(known), LookupMode::kPrefix);
    if (!result.ok()) {
      unreachable_from = std::min(unreachable_from, known);
      continue;
    }
    const size_t begin = known;
    blocks.resize(std::max(blocks.size(), begin + result->blocks.size()));
    for (size_t i = 0; i < result->blocks.size(); ++i) MergeBlock(blocks[begin + i], result->blocks[i]);
    while (known < blocks.size() && Has(blocks[known].planes, pod::PlaneKind::kDistant)) ++known;
    if (known > begin) without_more = 1;
  }
  for (size_t b = unreachable_from; b < blocks.size(); ++b) MarkUnreachable(blocks[b]);
  return std::move(asked).Result();
}

}  // namespace perigee::kvstore
