#include "kvstore/sharded_store.h"

#include <algorithm>
#include <utility>

#include "kvstore/store_connections.h"

namespace perigee::kvstore {

using internal::StoreView;

ShardedStore::ShardedStore(std::shared_ptr<StoreDirectory> directory, transport::Context* engine,
                           ShardedStoreOptions options)
    : options_(std::move(options)),
      connections_(std::make_unique<internal::StoreConnections>(std::move(directory), engine, options_.client,
                                                                options_.avoid_after_failure)) {}
ShardedStore::~ShardedStore() = default;

absl::StatusOr<uint32_t> ShardedStore::AtReaders(const pod::BlockKey& root, bool all_must_answer,
                                                 const std::function<absl::StatusOr<uint32_t>(StoreClient&)>& call) {
  const std::shared_ptr<const StoreView> view = connections_->Current();
  const auto readers = view->Pick(view->map->Readers(GroupOf(root), options_.read_stores));
  if (readers.empty()) return view->NoStore();
  std::vector<absl::StatusOr<uint32_t>> said(readers.size());
  internal::AtOnce(readers.size(),
                   [&](size_t i) { said[i] = readers[i]->Try(all_must_answer || view->even_if_avoided(), call); });
  uint32_t planes = 0;
  bool answered = false;
  absl::Status no_answer;
  for (const absl::StatusOr<uint32_t>& one : said) {
    if (internal::NoAnswer(one.status())) {
      no_answer.Update(one.status());
      continue;
    }
    PERIGEE_RETURN_IF_ERROR(one.status());
    answered = true;
    planes += *one;
  }
  if (!no_answer.ok() && (all_must_answer || !answered)) return no_answer;
  return planes;
}

absl::StatusOr<uint32_t> ShardedStore::Promote(const pod::BlockKey& root, std::span<const PlaneId> planes, bool drop) {
  return AtReaders(root, /*all_must_answer=*/false, [&](StoreClient& store) { return store.Promote(planes, drop); });
}

absl::StatusOr<uint32_t> ShardedStore::Pin(const pod::BlockKey& root, std::span<const pod::BlockKey> keys,
                                           PinMode mode) {
  return AtReaders(root, /*all_must_answer=*/false, [&](StoreClient& store) { return store.Pin(keys, mode); });
}

absl::StatusOr<uint32_t> ShardedStore::Delete(const pod::BlockKey& root, std::span<const pod::BlockKey> keys) {
  return AtReaders(root, /*all_must_answer=*/true, [&](StoreClient& store) { return store.Delete(keys); });
}

std::vector<ShardedStore::Visited> ShardedStore::ForEachStore(
    const std::function<absl::Status(const StoreEntry&, StoreClient&)>& visit) {
  const std::shared_ptr<const StoreView> view = connections_->Current();
  std::vector<Visited> visited;
  for (const StoreEntry& store : view->map->stores) visited.push_back({store, absl::OkStatus()});
  internal::AtOnce(visited.size(), [&](size_t i) {
    visited[i].status = view->connections[i]->Try(
        /*even_if_avoided=*/true, [&](StoreClient& client) { return visit(visited[i].store, client); });
  });
  return visited;
}

ShardedStats ShardedStore::stats() const {
  const internal::StoreConnections::Totals totals = connections_->Count();
  return {.clients = totals.clients, .failovers = totals.failovers, .stores_avoided = totals.failing};
}

}  // namespace perigee::kvstore
