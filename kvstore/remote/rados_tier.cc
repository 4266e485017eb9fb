#include "kvstore/remote/rados_tier.h"

#include <algorithm>
#include <cerrno>
#include <deque>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/status.h"
#include "kvstore/remote/operations.h"
#include "kvstore/remote/rados_connection.h"
#include "kvstore/remote/remote_object.h"

namespace perigee::kvstore {
namespace {

using Connection = std::shared_ptr<RadosConnection>;

// Connections that nothing uses any more, to be closed by a thread that may block: the last user may be a callback on a
// thread of librados, which must not.
class UnusedConnections {
 public:
  static Connection Watch(const std::shared_ptr<UnusedConnections>& self, std::unique_ptr<RadosConnection> connection) {
    absl::MutexLock lock(&self->mu_);
    ++self->watched_;
    return Connection(connection.release(), [self](RadosConnection* unused) {
      absl::MutexLock lock(&self->mu_);
      self->unused_.emplace_back(unused);
    });
  }
  void Close() {
    std::vector<std::unique_ptr<RadosConnection>> closing;
    absl::MutexLock lock(&mu_);
    closing.swap(unused_);
    watched_ -= closing.size();
  }  // The lock is given back before they close.
  void AwaitAndCloseAll() {
    {
      absl::MutexLock lock(&mu_);
      const auto all = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return unused_.size() == watched_; };
      mu_.Await(absl::Condition(&all));
    }
    Close();
  }

 private:
  absl::Mutex mu_;
  size_t watched_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::unique_ptr<RadosConnection>> unused_ ABSL_GUARDED_BY(mu_);
};

constexpr absl::Duration kFirstRetry = absl::Milliseconds(500);
constexpr absl::Duration kLongestRetry = absl::Seconds(15);

// One operation of the tier: any number of librados' operations, which an early end cancels. Cancelling asks no one:
// librados forgets the operation and calls back. It never writes to memory that is not its own, since what it reads
// arrives in its buffers and what it writes was copied into them; so a cancelled operation's caller is free at once.
class RadosOperation : public RemoteOperation {
 public:
  explicit RadosOperation(Connection connection) : connection_(std::move(connection)) {}
  ~RadosOperation() override {
    for (librados::AioCompletion* completion : completions_) completion->release();
  }
  librados::IoCtx& io() { return connection_->io(); }
  const Connection& connection() const { return connection_; }

 protected:
  void GiveUp() override {
    std::vector<librados::AioCompletion*> running;
    {
      absl::MutexLock lock(&mu_);
      running = completions_;
    }
    for (librados::AioCompletion* completion : running) io().aio_cancel(completion);
  }

 private:
  friend class Aio;
  const Connection connection_;
  absl::Mutex mu_;
  std::vector<librados::AioCompletion*> completions_ ABSL_GUARDED_BY(mu_);
};

// One operation of librados with what its answer needs. It deletes itself after `then`.
class Aio {
 public:
  using Then = absl::AnyInvocable<void(Aio& answer, int result)>;
  using Submit = absl::FunctionRef<int(librados::AioCompletion*, Aio&)>;

  // submit: calls one of librados' aio functions. `then` is not called if the operation has ended already.
  static void Start(RemoteOperations& table, std::shared_ptr<RadosOperation> operation, Submit submit, Then then) {
    auto aio = std::unique_ptr<Aio>(new Aio(operation, std::move(then)));
    absl::ReleasableMutexLock lock(&operation->mu_);
    if (operation->claimed()) return;
    librados::AioCompletion* completion = librados::Rados::aio_create_completion(aio.get(), &Aio::Completed);
    operation->completions_.push_back(completion);
    aio->completion_ = completion;
    const int error = submit(completion, *aio);
    lock.Release();
    if (error >= 0) {
      static_cast<void>(aio.release());  // Completed deletes it.
    } else {
      table.EndSoon(operation->id(), RadosStatus(error, "librados does not take the operation"));
    }
  }

  librados::bufferlist head, body;
  int head_result = 0, body_result = 0;
  uint64_t object_bytes = 0;
  int stat_result = 0;

 private:
  Aio(std::shared_ptr<RadosOperation> operation, Then then)
      : operation_(std::move(operation)), then_(std::move(then)) {}
  static void Completed(librados::completion_t, void* self) {
    Aio* aio = static_cast<Aio*>(self);
    aio->Answer(aio->completion_->get_return_value());
  }
  void Answer(int result) {
    std::unique_ptr<Aio> self(this);
    if (!operation_->claimed()) then_(*this, result);
  }

  const std::shared_ptr<RadosOperation> operation_;
  Then then_;
  librados::AioCompletion* completion_ = nullptr;
};

absl::string_view View(librados::bufferlist& bytes) { return {bytes.c_str(), bytes.length()}; }

using PutOperation = SingleOperation<RadosOperation, absl::StatusOr<PutOutcome>>;

struct GetOperation : SingleOperation<RadosOperation, absl::StatusOr<RecordHead>> {
  using SingleOperation::SingleOperation;
  RemoteGet get;
  std::string name;
};

using DeleteOperation = BatchOperation<RadosOperation, absl::Status>;
using StatOperation = BatchOperation<RadosOperation, absl::StatusOr<RecordHead>>;

struct ListOperation : SingleOperation<RadosOperation, absl::StatusOr<RemoteListPage>> {
  using SingleOperation::SingleOperation;
  std::string page_token;
  size_t max_planes = 0;
};

class RadosTier : public RemoteTier {
 public:
  explicit RadosTier(const RadosOptions& options) : options_(options), operations_(options.limits, options.slow_after) {
    manager_ = std::thread([this] { Manage(); });
    lister_ = std::thread([this] { RunLists(); });
  }

  ~RadosTier() override {
    operations_.Shutdown();
    {
      absl::MutexLock lock(&mu_);
      stop_ = true;
    }
    manager_.join();
    lister_.join();
    connection_.reset();
    connections_->AwaitAndCloseAll();
  }

  absl::Status AwaitFirstConnect() {
    absl::MutexLock lock(&mu_);
    const auto tried = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return tried_; };
    mu_.Await(absl::Condition(&tried));
    if (connection_ != nullptr) return absl::OkStatus();
    if (options_.start_unconnected && absl::IsUnavailable(connect_error_)) return absl::OkStatus();
    return connect_error_;
  }

  absl::StatusOr<OperationId> Put(RemotePut put, absl::Time deadline, PutDone done) override {
    PERIGEE_ASSIGN_OR_RETURN(const CheckedPut checked, CheckPut(put));
    PERIGEE_ASSIGN_OR_RETURN(const Connection connection, Connected());
    if (checked.record_bytes > connection->max_object_bytes()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "put of ", put.id.ToString(), ": an object of ", checked.record_bytes, " bytes; the cluster takes at most ",
          connection->max_object_bytes(), " (osd_max_object_size, osd_max_write_size, the tier's max_object_bytes)"));
    }
    auto operation = std::make_shared<PutOperation>(connection);
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(operations_.Begin(operation, 1, checked.record_bytes, deadline));
    const OperationId id = operation->id();
    // The only copy: librados keeps a reference to this buffer, not to the caller's, however late it sends it.
    ceph::bufferptr record(ceph::buffer::create_page_aligned(static_cast<unsigned>(checked.record_bytes)));
    const absl::Status written =
        WriteRecord(put, checked, {reinterpret_cast<std::byte*>(record.c_str()), record.length()});
    if (!written.ok()) {
      if (operations_.Withdraw(*operation)) return written;
      return id;
    }
    librados::bufferlist bytes;
    bytes.push_back(std::move(record));
    librados::ObjectWriteOperation write;
    write.create(/*exclusive=*/true);
    write.set_alloc_hint2(checked.record_bytes, checked.record_bytes,
                          librados::ALLOC_HINT_FLAG_IMMUTABLE | librados::ALLOC_HINT_FLAG_LONGLIVED |
                              librados::ALLOC_HINT_FLAG_SEQUENTIAL_READ | librados::ALLOC_HINT_FLAG_INCOMPRESSIBLE);
    write.write_full(bytes);
    const std::string name = Name(put.id);
    Aio::Start(
        operations_, operation,
        // FULL_TRY: a full cluster answers instead of holding the write back until there is room.
        [&](librados::AioCompletion* completion, Aio&) {
          return connection->io().aio_operate(name, completion, &write, librados::OPERATION_FULL_TRY);
        },
        [this, operation, plane = put.id](Aio&, int result) {
          Observe(*operation->connection(), result, /*write=*/true);
          absl::StatusOr<PutOutcome> outcome = result == -EEXIST ? PutOutcome::kAlreadyStored : PutOutcome::kStored;
          if (result < 0 && result != -EEXIST) outcome = RadosStatus(result, absl::StrCat("put ", plane.ToString()));
          operations_.End(*operation, std::move(outcome));
        });
    return id;
  }

  absl::StatusOr<OperationId> Get(RemoteGet get, absl::Time deadline, GetDone done) override {
    PERIGEE_RETURN_IF_ERROR(CheckGetArguments(get));
    PERIGEE_ASSIGN_OR_RETURN(const Connection connection, Connected());
    auto operation = std::make_shared<GetOperation>(connection);
    operation->get = get;
    operation->name = Name(get.id);
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(
        operations_.Begin(operation, 1, kUsualHeadBytes + RoundUpToPage(get.destination.size()), deadline));
    const OperationId id = operation->id();
    IsWhole(get) ? GetWhole(operation) : GetRange(operation, kUsualHeadBytes);
    return id;
  }

  absl::StatusOr<OperationId> Delete(std::vector<PlaneId> ids, absl::Time deadline, DeleteDone done) override {
    PERIGEE_ASSIGN_OR_RETURN(const auto operation,
                             BeginBatch<DeleteOperation>(std::move(ids), deadline, std::move(done)));
    const OperationId id = operation->id();
    for (size_t i = 0; i < operation->ids.size(); ++i) {
      librados::ObjectWriteOperation remove;
      remove.remove();
      Aio::Start(
          operations_, operation,
          [&](librados::AioCompletion* completion, Aio&) {
            return operation->io().aio_operate(Name(operation->ids[i]), completion, &remove,
                                               librados::OPERATION_FULL_TRY);
          },
          [this, operation, i](Aio&, int result) {
            Observe(*operation->connection(), result, /*write=*/false);
            operations_.EndOne(*operation, i,
                               RadosStatus(result, absl::StrCat("delete ", operation->ids[i].ToString())));
          });
    }
    return id;
  }

  absl::StatusOr<OperationId> Stat(std::vector<PlaneId> ids, absl::Time deadline, StatDone done) override {
    PERIGEE_ASSIGN_OR_RETURN(const auto operation,
                             BeginBatch<StatOperation>(std::move(ids), deadline, std::move(done)));
    const OperationId id = operation->id();
    for (size_t i = 0; i < operation->ids.size(); ++i) StatOne(operation, i, kUsualHeadBytes);
    return id;
  }

  absl::StatusOr<OperationId> List(std::string page_token, size_t max_planes, absl::Time deadline,
                                   ListDone done) override {
    if (max_planes == 0) return absl::InvalidArgumentError("list: a page of 0 planes; ask for at least 1");
    librados::ObjectCursor cursor;
    if (!page_token.empty() && !cursor.from_str(page_token)) {
      return absl::InvalidArgumentError(absl::StrCat("list: '", page_token, "' is no page token of this tier"));
    }
    PERIGEE_ASSIGN_OR_RETURN(const Connection connection, Connected());
    auto operation = std::make_shared<ListOperation>(connection);
    operation->page_token = std::move(page_token);
    operation->max_planes = max_planes;
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(operations_.Begin(operation, 1, 0, deadline));
    const OperationId id = operation->id();
    absl::MutexLock lock(&mu_);
    lists_.push_back(std::move(operation));
    return id;
  }

  void Cancel(OperationId operation) override {
    operations_.EndSoon(operation, absl::CancelledError("cancelled by the caller"));
  }

  RemoteHealth health() const override {
    const RemoteOperations::Snapshot now = operations_.Look();
    RemoteHealth out{.reachable = false,
                     .full = false,
                     .slow = now.slow,
                     .message = "",
                     .operations = now.operations,
                     .bytes = now.bytes};
    absl::MutexLock lock(&mu_);
    out.reachable = connection_ != nullptr && answers_;
    out.full = full_;
    if (connection_ == nullptr) {
      out.message = std::string(connect_error_.message());
    } else if (!answers_) {
      out.message = absl::StrCat("pool '", options_.pool, "' of Ceph config ", options_.config_path,
                                 " does not answer: look at ceph health detail, ceph osd tree");
    } else if (full_) {
      out.message = full_message_;
    } else if (out.slow) {
      out.message = absl::StrCat("an operation is under way for ",
                                 absl::FormatDuration(absl::Trunc(now.oldest, absl::Milliseconds(1))),
                                 " or has just missed its deadline");
    }
    return out;
  }

  RemoteCapabilities capabilities() const override {
    absl::MutexLock lock(&mu_);
    const uint64_t object_bytes = connection_ != nullptr ? connection_->max_object_bytes() : options_.max_object_bytes;
    const uint64_t payload_bytes = object_bytes > kMaxHeadBytes ? object_bytes - kMaxHeadBytes : 0;
    return {.backend = "rados",
            .max_payload_bytes = payload_bytes / kPageBytes * kPageBytes,
            .ranged_get = true,
            .atomic_put = true};
  }

 private:
  std::string Name(const PlaneId& id) const { return RemoteObjectName(options_.prefix, id); }

  absl::StatusOr<Connection> Connected() const {
    absl::MutexLock lock(&mu_);
    if (connection_ != nullptr) return connection_;
    return absl::UnavailableError(absl::StrCat("the remote tier is not connected: ", connect_error_.message()));
  }

  template <typename Operation, typename Done>
  absl::StatusOr<std::shared_ptr<Operation>> BeginBatch(std::vector<PlaneId> ids, absl::Time deadline, Done done) {
    PERIGEE_RETURN_IF_ERROR(CheckBatch(ids.size(), options_.limits));
    PERIGEE_ASSIGN_OR_RETURN(const Connection connection, Connected());
    auto operation = std::make_shared<Operation>(std::move(ids), connection);
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(operations_.Begin(operation, operation->ids.size(), 0, deadline));
    return operation;
  }

  // One read of more than the record can have: the head's length need not be known, and bytes behind the end show.
  void GetWhole(const std::shared_ptr<GetOperation>& operation) {
    librados::ObjectReadOperation read;
    Aio::Start(
        operations_, operation,
        [&](librados::AioCompletion* completion, Aio& answer) {
          read.read(0, kMaxHeadBytes + RoundUpToPage(operation->get.payload_bytes), &answer.body, &answer.body_result);
          read.set_op_flags2(librados::OP_FADVISE_SEQUENTIAL);
          return operation->io().aio_operate(operation->name, completion, &read, nullptr);
        },
        [this, operation](Aio& answer, int result) {
          if (!CheckRead(*operation, result)) return;
          if (!operation->Claim()) return;
          absl::StatusOr<RecordHead> head = DeliverRecord(operation->get, View(answer.body));
          operations_.Finish(*operation, [&] { operation->done(std::move(head)); });
        });
  }

  // Head and range in one read, which the OSD does as one, so both are of the same object. It needs to know how long
  // the head is; a longer one than assumed costs a second round.
  void GetRange(const std::shared_ptr<GetOperation>& operation, uint64_t head_bytes) {
    librados::ObjectReadOperation read;
    Aio::Start(
        operations_, operation,
        [&](librados::AioCompletion* completion, Aio& answer) {
          const RemoteGet& get = operation->get;
          read.read(0, head_bytes, &answer.head, &answer.head_result);
          read.read(head_bytes + get.offset_bytes, get.destination.size(), &answer.body, &answer.body_result);
          return operation->io().aio_operate(operation->name, completion, &read, nullptr);
        },
        [this, operation, head_bytes](Aio& answer, int result) {
          if (!CheckRead(*operation, result)) return;
          const absl::string_view bytes = View(answer.head);
          const absl::StatusOr<uint64_t> needed = PeekHeadBytes(bytes, operation->get.id);
          if (needed.ok() && *needed != head_bytes && head_bytes == kUsualHeadBytes) {
            return GetRange(operation, *needed);
          }
          if (!operation->Claim()) return;
          absl::StatusOr<RecordHead> head = CheckHead(bytes, operation->get.id);
          if (head.ok()) {
            absl::Status status = CheckGet(*head, operation->get);
            if (status.ok()) status = DeliverRange(*head, operation->get, AsBytes(View(answer.body)));
            if (!status.ok()) head = status;
          }
          operations_.Finish(*operation, [&] { operation->done(std::move(head)); });
        });
  }

  // False: it has ended.
  bool CheckRead(GetOperation& operation, int result) {
    Observe(*operation.connection(), result, /*write=*/false);
    if (result >= 0) return true;
    operations_.End(operation,
                    absl::StatusOr<RecordHead>(RadosStatus(result, absl::StrCat("get ", operation.get.id.ToString()))));
    return false;
  }

  void StatOne(const std::shared_ptr<StatOperation>& operation, size_t i, uint64_t head_bytes) {
    librados::ObjectReadOperation read;
    Aio::Start(
        operations_, operation,
        [&](librados::AioCompletion* completion, Aio& answer) {
          read.stat(&answer.object_bytes, nullptr, &answer.stat_result);
          read.read(0, head_bytes, &answer.head, &answer.head_result);
          return operation->io().aio_operate(Name(operation->ids[i]), completion, &read, nullptr);
        },
        [this, operation, i, head_bytes](Aio& answer, int result) {
          Observe(*operation->connection(), result, /*write=*/false);
          const PlaneId& plane = operation->ids[i];
          if (result < 0) {
            return operations_.EndOne(*operation, i, RadosStatus(result, absl::StrCat("stat ", plane.ToString())));
          }
          const absl::string_view bytes = View(answer.head);
          const absl::StatusOr<uint64_t> needed = PeekHeadBytes(bytes, plane);
          if (needed.ok() && *needed > head_bytes) return StatOne(operation, i, *needed);
          absl::StatusOr<RecordHead> head = CheckHead(bytes, plane);
          if (head.ok()) {
            const absl::Status length = CheckRecordBytes(plane, *head, *needed, answer.object_bytes);
            if (!length.ok()) head = length;
          }
          operations_.EndOne(*operation, i, std::move(head));
        });
  }

  // What every answer says about the cluster.
  void Observe(RadosConnection& connection, int result, bool write) {
    absl::MutexLock lock(&mu_);
    if (result == -ESHUTDOWN) {  // Blocklisted: this client will never be served again.
      connection.MarkLost();
      return;
    }
    if (result != -ETIMEDOUT && result != -ECANCELED) answers_ = true;
    if (!write) return;
    if (result == -ENOSPC || result == -EDQUOT) {
      full_ = true;
      full_message_ = std::string(RadosStatus(result, absl::StrCat("pool '", options_.pool, "'")).message());
    } else if (result >= 0) {
      full_ = false;
    }
  }

  // Connects, looks whether the cluster answers, connects again where librados would not.
  void Manage() {
    absl::Duration retry = kFirstRetry;
    for (;;) {
      Connection connection;
      {
        absl::MutexLock lock(&mu_);
        if (stop_) break;
        connection = connection_;
      }
      if (connection == nullptr) {
        absl::StatusOr<std::unique_ptr<RadosConnection>> made = RadosConnection::Connect(options_);
        absl::MutexLock lock(&mu_);
        tried_ = true;
        if (made.ok()) {
          connection_ = UnusedConnections::Watch(connections_, *std::move(made));
          answers_ = true;
          retry = kFirstRetry;
        } else {
          connect_error_ = made.status();
          WaitFor(retry, nullptr);
          retry = std::min(retry * 2, kLongestRetry);
        }
      } else if (connection->lost() || !connection->PoolIsThere()) {
        absl::MutexLock lock(&mu_);
        connect_error_ = absl::UnavailableError(
            connection->lost() ? "the cluster has blocklisted this client; connecting again"
                               : absl::StrCat("pool '", options_.pool, "' is gone; looking for a new one"));
        connection_.reset();
      } else {
        Probe(connection);
        absl::MutexLock lock(&mu_);
        WaitFor(options_.probe_interval, connection.get());
      }
      connection.reset();
      connections_->Close();
    }
  }

  void WaitFor(absl::Duration time, const RadosConnection* unless_lost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return stop_ || (unless_lost != nullptr && unless_lost->lost());
    };
    mu_.AwaitWithTimeout(absl::Condition(&over), time);
  }

  // Asks for an object that nobody stores. Outside of the bounds, so that it is asked when they are used up.
  void Probe(const Connection& connection) {
    auto operation = std::make_shared<StatOperation>(std::vector<PlaneId>(1), connection);
    operation->done = [this](std::vector<absl::StatusOr<RecordHead>> answer) {
      if (!absl::IsDeadlineExceeded(answer[0].status())) return;
      absl::MutexLock lock(&mu_);
      answers_ = false;
    };
    if (operations_.Begin(operation, 0, 0, absl::Now() + options_.probe_interval).ok()) {
      StatOne(operation, 0, kUsualHeadBytes);
    }
  }

  // librados lists only by blocking.
  void RunLists() {
    for (;;) {
      std::shared_ptr<ListOperation> operation;
      {
        absl::MutexLock lock(&mu_);
        const auto work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || !lists_.empty(); };
        mu_.Await(absl::Condition(&work));
        if (lists_.empty()) return;
        operation = std::move(lists_.front());
        lists_.pop_front();
      }
      if (!operation->claimed()) operations_.End(*operation, ListNow(*operation));
    }
  }

  absl::StatusOr<RemoteListPage> ListNow(ListOperation& operation) {
    librados::IoCtx& io = operation.io();
    librados::ObjectCursor from = io.object_list_begin(), next;
    if (!operation.page_token.empty()) from.from_str(operation.page_token);
    std::vector<librados::ObjectItem> items;
    const int error = io.object_list(from, io.object_list_end(), operation.max_planes, {}, &items, &next);
    Observe(*operation.connection(), std::min(error, 0), /*write=*/false);
    if (error < 0) return RadosStatus(error, absl::StrCat("list pool '", options_.pool, "'"));
    RemoteListPage page;
    for (const librados::ObjectItem& item : items) {
      if (const auto id = ParseRemoteObjectName(options_.prefix, item.oid)) page.planes.push_back(*id);
    }
    if (!io.object_list_is_end(next)) page.next_page_token = next.to_str();
    return page;
  }

  const RadosOptions options_;
  const std::shared_ptr<UnusedConnections> connections_ = std::make_shared<UnusedConnections>();
  mutable absl::Mutex mu_;
  Connection connection_ ABSL_GUARDED_BY(mu_);  // null: not connected
  absl::Status connect_error_ ABSL_GUARDED_BY(mu_) = absl::UnavailableError("connecting");
  bool tried_ ABSL_GUARDED_BY(mu_) = false;
  bool answers_ ABSL_GUARDED_BY(mu_) = false;
  bool full_ ABSL_GUARDED_BY(mu_) = false;
  std::string full_message_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<std::shared_ptr<ListOperation>> lists_ ABSL_GUARDED_BY(mu_);
  RemoteOperations operations_;  // Gone before the connections.
  std::thread manager_, lister_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteTier>> OpenRadosTier(const RadosOptions& options) {
  PERIGEE_RETURN_IF_ERROR(CheckRemotePrefix(options.prefix));
  if (options.pool.empty()) return absl::InvalidArgumentError("the remote tier needs the name of a RADOS pool");
  auto tier = std::make_unique<RadosTier>(options);
  PERIGEE_RETURN_IF_ERROR(tier->AwaitFirstConnect());
  return tier;
}

}  // namespace perigee::kvstore
