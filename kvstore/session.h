// Internal to the room: a client's tie to one start of one store, and the core that makes a new tie when the old one is
// lost.
#ifndef PERIGEE_KVSTORE_SESSION_H_
#define PERIGEE_KVSTORE_SESSION_H_

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "kvstore/call_name.h"
#include "kvstore/client.h"
#include "kvstore/quick_calls.h"
#include "kvstore/service.h"
#include "perigee/v1/kvstore.grpc.pb.h"
#include "proto/grpc_status.h"
#include "proto/request_id.h"

namespace perigee::kvstore::internal {

using SharedStub = std::shared_ptr<v1::KvStore::Stub>;

struct Session {
  explicit Session(std::function<SharedStub()> connect) : connect_(std::move(connect)), stub_(connect_()) {}

  SharedStub stub() const {
    absl::MutexLock lock(&mu_);
    return stub_;
  }
  // After a call that missed its deadline: an HTTP/2 connection whose bytes were damaged or lost may swallow calls for
  // ever without an error, so the next ones get a new one. The session goes on.
  void Replace(const SharedStub& suspect) {
    absl::MutexLock lock(&mu_);
    if (stub_ == suspect) stub_ = connect_();
  }

  // The store hangs: everything under way ends, with UNAVAILABLE.
  void GiveUp(const absl::Status& why) {
    connection.GiveUp(why.message());
    absl::MutexLock lock(&mu_);
    given_up_ = true;
    for (grpc::ClientContext* call : calls_) call->TryCancel();
  }
  bool given_up() const {
    absl::MutexLock lock(&mu_);
    return given_up_;
  }

  // A gRPC call, while it is under way.
  class UnderWay {
   public:
    UnderWay(Session* session, grpc::ClientContext* call) : session_(session), call_(call) {
      absl::MutexLock lock(&session_->mu_);
      session_->calls_.insert(call_);
      if (session_->given_up_) call_->TryCancel();
    }
    ~UnderWay() {
      absl::MutexLock lock(&session_->mu_);
      session_->calls_.erase(call_);
    }
    UnderWay(const UnderWay&) = delete;

   private:
    Session* const session_;
    grpc::ClientContext* const call_;
  };

  std::string token;
  uint64_t epoch = 0;
  absl::Duration max_ttl;
  transport::Endpoint connection;
  transport::RemoteRegion slab;
  bool trusted = false;
  bool has_ssd = false;
  std::atomic<bool> quick{true};  // The store answers quick calls, as far as we know.
  std::atomic<bool> lost{false};  // Noticed to be dead: the next call makes another.

 private:
  const std::function<SharedStub()> connect_;
  mutable absl::Mutex mu_;
  SharedStub stub_ ABSL_GUARDED_BY(mu_);
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mu_);
  bool given_up_ ABSL_GUARDED_BY(mu_) = false;
};

struct ClientCore {
  std::string address;
  transport::Context* engine = nullptr;  // Null: control calls only, without any payload.
  ClientOptions options;

  std::atomic<uint64_t> put_bytes{0}, fetched_bytes{0}, grpc_bytes{0}, quick_calls{0}, connects{0},
      checksum_failures{0}, last_epoch{0};

  // Held while connecting, so that one thread connects and the others wait (no longer than connect_deadline: what came
  // of it is their answer too).
  absl::Mutex mu;
  std::shared_ptr<Session> session ABSL_GUARDED_BY(mu);
  absl::Status connect_error ABSL_GUARDED_BY(mu);  // Of the last attempt that failed.
  std::atomic<uint64_t> failed_connects{0};

  absl::StatusOr<std::shared_ptr<Session>> GetSession(bool* fresh);
  // Whether payload can no longer move.
  bool Severed(const Session& s) const { return engine != nullptr && !s.connection.connected(); }
  // FAILED_PRECONDITION for clients that move no payload.
  absl::Status CheckMovesPayload() const {
    if (engine != nullptr) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("this client of the store at ", address, " has no data plane: it asks, and moves no payload"));
  }

  template <typename Method, typename Request, typename Response>
  absl::Status Call(Session& s, Method method, const Request& request, Response* response) {
    return CallWithin(s, method, request, response, options.call_deadline);
  }

  template <typename Method, typename Request, typename Response>
  absl::Status CallWithin(Session& s, Method method, const Request& request, Response* response,
                          absl::Duration deadline) {
    const CallSpan<Request> span(*this);
    grpc::ClientContext context;
    SendRequestId(CurrentRequest(), context);
    context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    if (!s.token.empty()) context.AddMetadata(kSessionMetadata, s.token);
    grpc_bytes += request.ByteSizeLong();
    const SharedStub stub = s.stub();
    grpc::Status status;
    {
      const Session::UnderWay call(&s, &context);
      status = (stub.get()->*method)(&context, request, response);
    }
    grpc_bytes += response->ByteSizeLong();
    // Unauthenticated: the store has forgotten the session.
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
        status.error_code() == grpc::StatusCode::UNAUTHENTICATED) {
      s.lost = true;
    } else if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      s.Replace(stub);
    } else if (status.error_code() == grpc::StatusCode::CANCELLED && s.given_up()) {
      return absl::UnavailableError(absl::StrCat("store at ", address, ": it hangs, and was given up"));
    }
    return Annotate(FromGrpc(status), absl::StrCat("store at ", address));
  }

  // By message, where the store answers this one at once; else over gRPC.
  template <typename Method, typename Request, typename Response>
  absl::Status CallQuickly(Session& s, QuickCall call, Method method, const Request& request, Response* response,
                           absl::Duration deadline) {
    const std::string bytes = s.quick ? request.SerializeAsString() : "";
    if (s.quick && bytes.size() <= kMaxQuickBytes) {
      CallSpan<Request> span(*this);
      span.Set("by", "message");
      const absl::StatusOr<std::string> answer = Quick(s, call, bytes, deadline);
      if (answer.ok() && !response->ParseFromString(*answer)) {
        return absl::InternalError(absl::StrCat("the store at ", address, " gave an answer that is no message"));
      }
      if (!absl::IsUnimplemented(answer.status())) return answer.status();
    }
    return CallWithin(s, method, request, response, deadline);
  }

  // Of a call that the store answers from its memory.
  absl::Duration answer_deadline() const { return std::min(options.answer_deadline, options.call_deadline); }
  absl::Status CheckAnswered(Session& s, const absl::Status& status) {
    if (absl::IsDeadlineExceeded(status) && options.answer_deadline < options.call_deadline) s.GiveUp(status);
    return status;
  }

  // Runs body(session), and once more on a new session if the one at hand turns out to be lost.
  template <typename Body>
  absl::Status WithSession(Body body) {
    for (;;) {
      bool fresh = false;
      PERIGEE_ASSIGN_OR_RETURN(const std::shared_ptr<Session> s, GetSession(&fresh));
      const absl::Status status = body(s);
      if (!s->lost || fresh) return status;
    }
  }

  // An answer of another start of the store: the session is lost.
  absl::Status CheckEpoch(Session& s, uint64_t epoch) {
    if (epoch == s.epoch) return absl::OkStatus();
    s.lost = true;
    return absl::UnavailableError(absl::StrCat("the store at ", address, " was restarted"));
  }

 private:
  // "store Lookup": a call, named by its request's type.
  template <typename Request>
  struct CallSpan : Span {
    explicit CallSpan(const ClientCore& core) : Span("store ", CallName<Request>()) { Set("store", core.address); }
  };
  absl::StatusOr<std::shared_ptr<Session>> Connect();
  absl::Status ConnectData(const v1::HelloResponse& response, absl::Time deadline, Session& s) const;
  // UNIMPLEMENTED: gRPC has to be asked.
  absl::StatusOr<std::string> Quick(Session& s, QuickCall call, const std::string& request, absl::Duration deadline);
};

}  // namespace perigee::kvstore::internal

#endif  // PERIGEE_KVSTORE_SESSION_H_
