#include "kvstore/store_connections.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/trace.h"

namespace perigee::kvstore::internal {
namespace {

void Add(const StoreConnection& store, StoreConnections::Totals* totals) {
  const ClientStats of_store = store.stats();
  ClientStats& sum = totals->clients;
  sum.put_bytes += of_store.put_bytes;
  sum.fetched_bytes += of_store.fetched_bytes;
  sum.grpc_bytes += of_store.grpc_bytes;
  sum.quick_calls += of_store.quick_calls;
  sum.connects += of_store.connects;
  sum.checksum_failures += of_store.checksum_failures;
  totals->failovers += store.failovers();
}

}  // namespace

void AtOnce(size_t n, const std::function<void(size_t)>& body) {
  std::vector<std::thread> threads;
  for (size_t i = 1; i < n; ++i) {
    threads.emplace_back([&body, i, request = CurrentRequest()] {
      const RequestScope scope(request);
      body(i);
    });
  }
  if (n > 0) body(0);
  for (std::thread& thread : threads) thread.join();
}

StoreConnection::StoreConnection(const StoreEntry& store, transport::Context* engine, const ClientOptions& options,
                                 absl::Duration avoid_after_failure)
    : id_(store.id), address_(store.address), avoid_after_failure_(avoid_after_failure) {
  absl::StatusOr<std::unique_ptr<StoreClient>> client = StoreClient::Create(store.address, engine, options);
  if (client.ok()) {
    client_ = *std::move(client);
  } else {
    no_client_ = Annotate(client.status(), absl::StrCat("store ", id_));
  }
}

absl::Status StoreConnection::Enter(bool even_if_avoided) {
  PERIGEE_RETURN_IF_ERROR(no_client_);
  absl::MutexLock lock(&mu_);
  if (failure_.ok() || even_if_avoided) return absl::OkStatus();
  if (!tried_again_ && SteadyNow() >= avoid_until_) {
    tried_again_ = true;
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      absl::StrCat("store ", id_, " did not answer and is left alone for now: ", failure_.message()));
}

void StoreConnection::Settle(absl::Time started, const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  tried_again_ = false;
  if (!NoAnswer(status)) {
    last_answer_ = SteadyNow();
    failure_ = absl::OkStatus();
  } else if (last_answer_ <= started) {  // Else it has answered somebody since this call began.
    Fail(status);
  }
}

void StoreConnection::Note(const absl::Status& status) {
  if (!NoAnswer(status)) return;
  absl::MutexLock lock(&mu_);
  Fail(status);
}

void StoreConnection::AskWhetherItLives() {
  // Any answer will do; the client itself gives a store up that has none.
  Try(/*even_if_avoided=*/true, [](StoreClient& client) { return client.Lookup({}); }).status().IgnoreError();
}

void StoreConnection::Fail(const absl::Status& status) {
  failure_ = status;
  avoid_until_ = SteadyNow() + avoid_after_failure_;
}

bool StoreConnection::failing() const {
  absl::MutexLock lock(&mu_);
  return !failure_.ok();
}

ClientStats StoreConnection::stats() const { return client_ == nullptr ? ClientStats{} : client_->stats(); }

std::vector<std::shared_ptr<StoreConnection>> StoreView::Pick(const std::vector<size_t>& stores) const {
  std::vector<std::shared_ptr<StoreConnection>> picked;
  for (const size_t store : stores) picked.push_back(connections[store]);
  return picked;
}

absl::Status StoreView::NoStore() const {
  return absl::UnavailableError(absl::StrCat("no store is serving (", map->stores.size(), " in the map of epoch ",
                                             map->epoch, "); start one, or wait until one has joined"));
}

StoreConnections::StoreConnections(std::shared_ptr<StoreDirectory> directory, transport::Context* engine,
                                   ClientOptions options, absl::Duration avoid_after_failure)
    : directory_(std::move(directory)),
      engine_(engine),
      options_(std::move(options)),
      avoid_after_failure_(avoid_after_failure) {
  if (options_.answer_deadline < options_.call_deadline) watcher_ = std::thread([this] { Watch(); });
}

StoreConnections::~StoreConnections() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (watcher_.joinable()) watcher_.join();
}

void StoreConnections::Watch() {
  for (;;) {
    std::vector<std::shared_ptr<StoreConnection>> awaited;
    {
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), options_.answer_deadline / 2)) return;
      if (view_ == nullptr) continue;
      for (const auto& store : view_->connections) {
        if (store->awaited()) awaited.push_back(store);
      }
    }
    AtOnce(awaited.size(), [&](size_t i) { awaited[i]->AskWhetherItLives(); });
  }
}

std::shared_ptr<const StoreView> StoreConnections::Current() {
  std::shared_ptr<const StoreMap> map = directory_->Get();
  absl::MutexLock lock(&mu_);
  if (view_ == nullptr || map->epoch > view_->map->epoch) view_ = Rebuild(std::move(map));
  return view_;
}

std::shared_ptr<StoreConnection> StoreConnections::Make(const StoreEntry& store) const {
  return {new StoreConnection(store, engine_, options_, avoid_after_failure_), [gone = gone_](StoreConnection* made) {
            {
              absl::MutexLock lock(&gone->mu);
              Add(*made, &gone->totals);
            }
            delete made;
          }};
}

std::shared_ptr<const StoreView> StoreConnections::Rebuild(std::shared_ptr<const StoreMap> map) {
  auto view = std::make_shared<StoreView>();
  std::vector<std::shared_ptr<StoreConnection>> before;
  if (view_ != nullptr) before = view_->connections;
  for (const StoreEntry& store : map->stores) {
    const auto known = std::find_if(before.begin(), before.end(), [&store](const auto& connection) {
      return connection != nullptr && connection->id() == store.id && connection->address() == store.address;
    });
    view->connections.push_back(known != before.end() ? std::exchange(*known, nullptr) : Make(store));
  }
  std::erase_if(leaving_, [](const auto& connection) { return connection.expired(); });
  for (const std::shared_ptr<StoreConnection>& connection : before) {
    if (connection != nullptr) leaving_.push_back(connection);
  }
  view->map = std::move(map);
  return view;
}

StoreConnections::Totals StoreConnections::Count() {
  const std::shared_ptr<const StoreView> view = Current();
  std::vector<std::shared_ptr<StoreConnection>> alive = view->connections;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& leaving : leaving_) {
      if (std::shared_ptr<StoreConnection> connection = leaving.lock()) alive.push_back(std::move(connection));
    }
  }
  Totals totals;
  {
    absl::MutexLock lock(&gone_->mu);
    totals = gone_->totals;
  }
  for (const auto& connection : alive) Add(*connection, &totals);
  for (const auto& connection : view->connections) totals.failing += connection->failing() ? 1 : 0;
  return totals;
}

}  // namespace perigee::kvstore::internal
