// Calls to etcd's API v3: one deadline per call, and the next endpoint when one does not answer.
//
// A call goes to the endpoint that answered last. UNAVAILABLE and silence move on to the next one, round and round
// until the deadline. A transaction that was cut off may have been done, and is done again: callers' transactions bear
// that. Any thread may call.
//
// Errors: UNAVAILABLE when no endpoint answered in time; else what etcd said.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_ETCD_CLIENT_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_ETCD_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cluster/membership/etcd_membership.h"
#include "etcd/rpc.grpc.pb.h"

namespace perigee::cluster {

struct EtcdLease {
  int64_t id = 0;
  absl::Duration ttl;  // As granted: etcd has a shortest one.
};

// The end of the range of all keys that begin with `prefix`.
std::string PrefixEnd(std::string prefix);

// For building transactions.
etcdserverpb::Compare Unchanged(const std::string& key, int64_t mod_revision);  // 0: does not exist.
etcdserverpb::RequestOp GetOp(const std::string& key);
etcdserverpb::RequestOp PutOp(const std::string& key, const std::string& value, int64_t lease);
etcdserverpb::RequestOp DeleteOp(const std::string& key);

// One watch on the keys of a prefix. One thread at a time; Cancel: any.
class EtcdWatch {
 public:
  // Stops the stream and waits for its end, which is at once: it is cancelled.
  ~EtcdWatch();
  EtcdWatch(const EtcdWatch&) = delete;
  EtcdWatch& operator=(const EtcdWatch&) = delete;

  // The next message; none when the time was over first. UNAVAILABLE: the stream is broken, or cancelled.
  absl::StatusOr<std::optional<etcdserverpb::WatchResponse>> Next(absl::Duration timeout);
  // Ends a Next that waits.
  void Cancel() { context_.TryCancel(); }
  // Asks for a message without events, to see whether anybody is there. At most one such question at a time.
  void AskForProgress();

 private:
  friend class EtcdClient;
  EtcdWatch() = default;
  bool Handle(void* tag, bool ok);  // False: the stream has ended.

  enum Tag : intptr_t { kStart = 1, kWrite, kRead };
  static void* ToPointer(Tag tag) { return reinterpret_cast<void*>(tag); }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<etcdserverpb::WatchRequest, etcdserverpb::WatchResponse>> stream_;
  etcdserverpb::WatchRequest request_;
  etcdserverpb::WatchResponse response_;
  bool writing_ = false;
  bool reading_ = false;
  bool broken_ = false;
  bool arrived_ = false;  // response_ is a message that Next has not given out.
};

class EtcdClient {
 public:
  // Reads the TLS files; calls nobody. INVALID_ARGUMENT without endpoints.
  static absl::StatusOr<std::unique_ptr<EtcdClient>> Create(const EtcdOptions& options);

  absl::StatusOr<etcdserverpb::RangeResponse> Get(const std::string& key);
  absl::StatusOr<etcdserverpb::RangeResponse> GetPrefix(const std::string& prefix);
  absl::StatusOr<etcdserverpb::RangeResponse> Range(const etcdserverpb::RangeRequest& request);
  absl::StatusOr<etcdserverpb::TxnResponse> Txn(const etcdserverpb::TxnRequest& request);
  absl::StatusOr<EtcdLease> Grant(absl::Duration ttl);
  // False: there is no such lease any more.
  absl::StatusOr<bool> KeepAlive(int64_t lease);
  absl::Status Revoke(int64_t lease);

  // All changes of keys with that prefix from `revision` on, from the endpoint that answered last.
  std::unique_ptr<EtcdWatch> Watch(const std::string& prefix, int64_t revision);
  // Calls and watches after this one begin at another endpoint.
  void NextEndpoint() { ++current_; }

  const EtcdOptions& options() const { return options_; }

 private:
  explicit EtcdClient(const EtcdOptions& options) : options_(options) {}
  struct Endpoint {
    std::string address;
    std::unique_ptr<etcdserverpb::KV::Stub> kv;
    std::unique_ptr<etcdserverpb::Watch::Stub> watch;
    std::unique_ptr<etcdserverpb::Lease::Stub> lease;
  };
  absl::Status Call(absl::string_view what, const std::function<grpc::Status(Endpoint&, grpc::ClientContext*)>& call);

  const EtcdOptions options_;
  std::vector<Endpoint> endpoints_;
  std::atomic<size_t> current_{0};  // Modulo their number.
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_ETCD_CLIENT_H_
