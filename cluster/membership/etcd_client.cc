#include "cluster/membership/etcd_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {
namespace {

using etcdserverpb::RequestOp;

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const EtcdOptions& options) {
  if (options.ca_path.empty() && options.certificate_path.empty()) return grpc::InsecureChannelCredentials();
  if (options.certificate_path.empty() != options.key_path.empty()) {
    return absl::InvalidArgumentError("etcd: a TLS certificate needs its key, and a key its certificate");
  }
  grpc::SslCredentialsOptions ssl;
  if (!options.ca_path.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.ca_path, 1 << 20));
  }
  if (!options.certificate_path.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadFile(options.certificate_path, 1 << 20));
    PERIGEE_ASSIGN_OR_RETURN(ssl.pem_private_key, ReadFile(options.key_path, 1 << 20));
  }
  return grpc::SslCredentials(ssl);
}

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // An etcd that comes back should be found at once, not after gRPC's minute-long back-off.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

// Codes with which another endpoint may still answer.
bool TryNext(grpc::StatusCode code) {
  return code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::DEADLINE_EXCEEDED ||
         code == grpc::StatusCode::UNKNOWN;  // So says a server that is shutting down.
}

}  // namespace

std::string PrefixEnd(std::string prefix) {
  while (!prefix.empty() && prefix.back() == '\xFF') prefix.pop_back();
  if (prefix.empty()) return std::string(1, '\0');  // All keys.
  ++prefix.back();
  return prefix;
}

etcdserverpb::Compare Unchanged(const std::string& key, int64_t mod_revision) {
  etcdserverpb::Compare compare;
  compare.set_result(etcdserverpb::Compare::EQUAL);
  compare.set_target(etcdserverpb::Compare::MOD);
  compare.set_key(key);
  compare.set_mod_revision(mod_revision);
  return compare;
}

RequestOp GetOp(const std::string& key) {
  RequestOp op;
  op.mutable_request_range()->set_key(key);
  return op;
}

RequestOp PutOp(const std::string& key, const std::string& value, int64_t lease) {
  RequestOp op;
  op.mutable_request_put()->set_key(key);
  op.mutable_request_put()->set_value(value);
  op.mutable_request_put()->set_lease(lease);
  return op;
}

RequestOp DeleteOp(const std::string& key) {
  RequestOp op;
  op.mutable_request_delete_range()->set_key(key);
  return op;
}

absl::StatusOr<std::unique_ptr<EtcdClient>> EtcdClient::Create(const EtcdOptions& options) {
  if (options.endpoints.empty()) return absl::InvalidArgumentError("etcd: no endpoint; name host:port");
  std::unique_ptr<EtcdClient> out(new EtcdClient(options));
  PERIGEE_ASSIGN_OR_RETURN(const auto credentials, Credentials(options));
  for (const std::string& address : options.endpoints) {
    const auto channel = grpc::CreateCustomChannel(address, credentials, Arguments());
    out->endpoints_.push_back({.address = address,
                               .kv = etcdserverpb::KV::NewStub(channel),
                               .watch = etcdserverpb::Watch::NewStub(channel),
                               .lease = etcdserverpb::Lease::NewStub(channel)});
  }
  return out;
}

absl::Status EtcdClient::Call(absl::string_view what,
                              const std::function<grpc::Status(Endpoint&, grpc::ClientContext*)>& call) {
  const absl::Time deadline = absl::Now() + options_.call_deadline;
  const size_t endpoints = endpoints_.size();
  std::string last;
  for (size_t attempt = 0;; ++attempt) {
    const absl::Time now = absl::Now();
    if (now >= deadline) break;
    const size_t asked = current_;
    Endpoint& endpoint = endpoints_[asked % endpoints];
    const size_t left = endpoints - attempt % endpoints;  // Of this round.
    absl::Duration patience = (deadline - now) / static_cast<int64_t>(left);
    // Two endpoints that are dead must not cost a lease, of which a third has passed when it is renewed.
    if (endpoints > 1) patience = std::min(patience, options_.ttl / 4);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(now + patience));
    // A connection is made only while a call waits for it: one that fails at once never finds an etcd that is back.
    context.set_wait_for_ready(true);
    const grpc::Status status = call(endpoint, &context);
    if (status.ok()) return absl::OkStatus();
    if (!TryNext(status.error_code())) return Annotate(FromGrpc(status), absl::StrCat("etcd: ", what));
    last = absl::StrCat("; ", endpoint.address, ": ", status.error_message());
    size_t expected = asked;  // Of several threads with the same experience one moves on.
    current_.compare_exchange_strong(expected, asked + 1);
    // All were asked: a connection was closed, or they are choosing a leader.
    if (left == 1)
      absl::SleepFor(std::min(absl::Milliseconds(50), std::max(deadline - absl::Now(), absl::ZeroDuration())));
  }
  return absl::UnavailableError(absl::StrCat("etcd: ", what, ": no answer from ",
                                             absl::StrJoin(options_.endpoints, ", "), " within ",
                                             absl::FormatDuration(options_.call_deadline), last));
}

absl::StatusOr<etcdserverpb::RangeResponse> EtcdClient::Get(const std::string& key) {
  etcdserverpb::RangeRequest request;
  request.set_key(key);
  etcdserverpb::RangeResponse response;
  PERIGEE_RETURN_IF_ERROR(Call("reading", [&](Endpoint& endpoint, grpc::ClientContext* context) {
    return endpoint.kv->Range(context, request, &response);
  }));
  return response;
}

absl::StatusOr<etcdserverpb::RangeResponse> EtcdClient::GetPrefix(const std::string& prefix) {
  etcdserverpb::RangeRequest request;
  request.set_key(prefix);
  request.set_range_end(PrefixEnd(prefix));
  etcdserverpb::RangeResponse response;
  PERIGEE_RETURN_IF_ERROR(Call("reading the cluster", [&](Endpoint& endpoint, grpc::ClientContext* context) {
    return endpoint.kv->Range(context, request, &response);
  }));
  return response;
}

absl::StatusOr<etcdserverpb::RangeResponse> EtcdClient::Range(const etcdserverpb::RangeRequest& request) {
  etcdserverpb::RangeResponse response;
  PERIGEE_RETURN_IF_ERROR(Call("reading", [&](Endpoint& endpoint, grpc::ClientContext* context) {
    return endpoint.kv->Range(context, request, &response);
  }));
  return response;
}

absl::StatusOr<etcdserverpb::TxnResponse> EtcdClient::Txn(const etcdserverpb::TxnRequest& request) {
  etcdserverpb::TxnResponse response;
  PERIGEE_RETURN_IF_ERROR(Call("a transaction", [&](Endpoint& endpoint, grpc::ClientContext* context) {
    return endpoint.kv->Txn(context, request, &response);
  }));
  return response;
}

absl::StatusOr<EtcdLease> EtcdClient::Grant(absl::Duration ttl) {
  etcdserverpb::LeaseGrantRequest request;
  request.set_ttl(std::max<int64_t>(1, absl::ToInt64Seconds(absl::Ceil(ttl, absl::Seconds(1)))));
  etcdserverpb::LeaseGrantResponse response;
  PERIGEE_RETURN_IF_ERROR(Call("asking for a lease", [&](Endpoint& endpoint, grpc::ClientContext* context) {
    return endpoint.lease->LeaseGrant(context, request, &response);
  }));
  return EtcdLease{.id = response.id(), .ttl = absl::Seconds(response.ttl())};
}

absl::StatusOr<bool> EtcdClient::KeepAlive(int64_t lease) {
  etcdserverpb::LeaseKeepAliveRequest request;
  request.set_id(lease);
  etcdserverpb::LeaseKeepAliveResponse response;
  PERIGEE_RETURN_IF_ERROR(Call("keeping a lease", [&](Endpoint& endpoint, grpc::ClientContext* context) {
    const auto stream = endpoint.lease->LeaseKeepAlive(context);
    if (stream->Write(request) && stream->Read(&response)) {
      context->TryCancel();  // One answer is all that is wanted.
      stream->Finish();
      return grpc::Status::OK;
    }
    const grpc::Status status = stream->Finish();
    return status.ok() ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "no answer") : status;
  }));
  return response.ttl() > 0;
}

absl::Status EtcdClient::Revoke(int64_t lease) {
  etcdserverpb::LeaseRevokeRequest request;
  request.set_id(lease);
  etcdserverpb::LeaseRevokeResponse response;
  return Call("giving a lease back", [&](Endpoint& endpoint, grpc::ClientContext* context) {
    return endpoint.lease->LeaseRevoke(context, request, &response);
  });
}

std::unique_ptr<EtcdWatch> EtcdClient::Watch(const std::string& prefix, int64_t revision) {
  std::unique_ptr<EtcdWatch> watch(new EtcdWatch);
  etcdserverpb::WatchCreateRequest* create = watch->request_.mutable_create_request();
  create->set_key(prefix);
  create->set_range_end(PrefixEnd(prefix));
  create->set_start_revision(revision);
  // A member that is cut off from the others ends the stream instead of being silent.
  watch->context_.AddMetadata("hasleader", "true");
  Endpoint& endpoint = endpoints_[current_ % endpoints_.size()];
  watch->stream_ =
      endpoint.watch->AsyncWatch(&watch->context_, &watch->queue_, EtcdWatch::ToPointer(EtcdWatch::kStart));
  return watch;
}

EtcdWatch::~EtcdWatch() {
  context_.TryCancel();
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool EtcdWatch::Handle(void* tag, bool ok) {
  if (!ok) return false;
  if (tag == ToPointer(kStart)) {
    writing_ = true;
    stream_->Write(request_, ToPointer(kWrite));
    reading_ = true;
    stream_->Read(&response_, ToPointer(kRead));
  } else if (tag == ToPointer(kWrite)) {
    writing_ = false;
  } else {
    reading_ = false;
    arrived_ = true;
  }
  return true;
}

absl::StatusOr<std::optional<etcdserverpb::WatchResponse>> EtcdWatch::Next(absl::Duration timeout) {
  const auto deadline = absl::ToChronoTime(absl::Now() + timeout);
  while (!broken_ && !arrived_) {
    void* tag = nullptr;
    bool ok = false;
    const auto got = queue_.AsyncNext(&tag, &ok, deadline);
    if (got == grpc::CompletionQueue::TIMEOUT) return std::nullopt;
    broken_ = got == grpc::CompletionQueue::SHUTDOWN || !Handle(tag, ok);
  }
  if (broken_) return absl::UnavailableError("etcd: the watch has ended");
  arrived_ = false;
  std::optional<etcdserverpb::WatchResponse> out(std::move(response_));
  reading_ = true;
  stream_->Read(&response_, ToPointer(kRead));
  return out;
}

void EtcdWatch::AskForProgress() {
  if (writing_ || broken_ || !reading_) return;
  request_.mutable_progress_request();
  writing_ = true;
  stream_->Write(request_, ToPointer(kWrite));
}

}  // namespace perigee::cluster
