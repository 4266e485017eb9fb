#include "cluster/contexts/etcd_registry.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

constexpr int kMaxAttempts = 16;  // Of a change that others came before.

absl::Status Reachable(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return status;
  return absl::UnavailableError(absl::StrCat("the registry of contexts cannot be reached (", status.message(),
                                             "): requests without contexts are served; see to etcd and try again"));
}

absl::Status TooBusy(const std::string& id) {
  return absl::UnavailableError(
      absl::StrCat("context '", id, "' was changed by others ", kMaxAttempts, " times meanwhile: try again"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<EtcdContextRegistry>> EtcdContextRegistry::Open(const EtcdOptions& options,
                                                                               const ContextLimits& limits) {
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<EtcdClient> client, EtcdClient::Create(options));
  return std::unique_ptr<EtcdContextRegistry>(new EtcdContextRegistry(std::move(client), limits));
}

std::string EtcdContextRegistry::Records(const std::string& tenant) const {
  return absl::StrCat("/contexts", client_->options().prefix, "records/", TenantKey(tenant), "/");
}

std::string EtcdContextRegistry::Contents(const std::string& tenant) const {
  return absl::StrCat("/contexts", client_->options().prefix, "contents/", TenantKey(tenant), "/");
}

absl::StatusOr<EtcdContextRegistry::Found> EtcdContextRegistry::Find(const std::string& key) {
  const absl::StatusOr<etcdserverpb::RangeResponse> found = client_->Get(key);
  PERIGEE_RETURN_IF_ERROR(Reachable(found.status()));
  if (found->kvs().empty()) return Found();
  return Found{.record = found->kvs(0).value(), .mod_revision = found->kvs(0).mod_revision()};
}

absl::StatusOr<ContextRegistry::PutResult> EtcdContextRegistry::Put(const NewContext& context) {
  PERIGEE_RETURN_IF_ERROR(CheckNewContext(context, limits_));
  const std::string records = Records(context.tenant), key = records + context.id;
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    PERIGEE_ASSIGN_OR_RETURN(const Found found, Find(key));
    absl::StatusOr<ContextRecord> before = absl::NotFoundError("none");
    // One that cannot be read is replaced.
    if (found.mod_revision > 0) before = ContextRecordFromJson(found.record, context.tenant, context.id);
    PutResult result = NextVersion(context, before.ok() ? &*before : nullptr, absl::Now());
    if (!result.changed) return result;
    if (found.mod_revision == 0) {
      etcdserverpb::RangeRequest count;
      count.set_key(records);
      count.set_range_end(PrefixEnd(records));
      count.set_count_only(true);
      const absl::StatusOr<etcdserverpb::RangeResponse> counted = client_->Range(count);
      PERIGEE_RETURN_IF_ERROR(Reachable(counted.status()));
      if (static_cast<size_t>(counted->count()) >= limits_.contexts) return TooManyContexts(limits_);
    }
    etcdserverpb::TxnRequest change;
    *change.add_compare() = Unchanged(key, found.mod_revision);
    *change.add_success() = PutOp(key, ContextRecordToJson(result.record), 0);
    *change.add_success() = PutOp(Contents(context.tenant) + context.id, context.content, 0);
    const absl::StatusOr<etcdserverpb::TxnResponse> done = client_->Txn(change);
    PERIGEE_RETURN_IF_ERROR(Reachable(done.status()));
    if (done->succeeded()) return result;
  }
  return TooBusy(context.id);
}

absl::StatusOr<ContextRecord> EtcdContextRegistry::Get(const std::string& tenant, const std::string& id) {
  PERIGEE_RETURN_IF_ERROR(CheckContextId(id));
  PERIGEE_ASSIGN_OR_RETURN(const Found found, Find(Records(tenant) + id));
  if (found.mod_revision == 0) return NoSuchContext(id);
  return ContextRecordFromJson(found.record, tenant, id);
}

absl::StatusOr<std::string> EtcdContextRegistry::Content(const ContextRecord& record) {
  absl::StatusOr<etcdserverpb::RangeResponse> found = client_->Get(Contents(record.tenant) + record.id);
  PERIGEE_RETURN_IF_ERROR(Reachable(found.status()));
  if (found->kvs().empty()) return NoSuchContext(record.id);
  PERIGEE_RETURN_IF_ERROR(CheckContent(record, found->kvs(0).value()));
  return std::move(*found->mutable_kvs(0)->mutable_value());
}

absl::StatusOr<std::vector<ContextRecord>> EtcdContextRegistry::List(const std::string& tenant,
                                                                     const std::string& after, size_t limit) {
  const std::string records = Records(tenant);
  std::vector<ContextRecord> out;
  if (limit == 0) return out;  // To etcd it is no limit.
  etcdserverpb::RangeRequest request;
  request.set_key(after.empty() ? records : absl::StrCat(records, after, absl::string_view("\0", 1)));
  request.set_range_end(PrefixEnd(records));
  request.set_limit(static_cast<int64_t>(std::min<size_t>(limit, std::numeric_limits<int32_t>::max())));
  const absl::StatusOr<etcdserverpb::RangeResponse> found = client_->Range(request);
  PERIGEE_RETURN_IF_ERROR(Reachable(found.status()));
  for (const auto& pair : found->kvs()) {
    PERIGEE_ASSIGN_OR_RETURN(ContextRecord record,
                             ContextRecordFromJson(pair.value(), tenant, pair.key().substr(records.size())));
    out.push_back(std::move(record));
  }
  return out;
}

absl::Status EtcdContextRegistry::Delete(const std::string& tenant, const std::string& id) {
  PERIGEE_RETURN_IF_ERROR(CheckContextId(id));
  const std::string key = Records(tenant) + id;
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    PERIGEE_ASSIGN_OR_RETURN(const Found found, Find(key));
    if (found.mod_revision == 0) return NoSuchContext(id);
    etcdserverpb::TxnRequest change;
    *change.add_compare() = Unchanged(key, found.mod_revision);
    *change.add_success() = DeleteOp(key);
    *change.add_success() = DeleteOp(Contents(tenant) + id);
    const absl::StatusOr<etcdserverpb::TxnResponse> done = client_->Txn(change);
    PERIGEE_RETURN_IF_ERROR(Reachable(done.status()));
    if (done->succeeded()) return absl::OkStatus();
  }
  return TooBusy(id);
}

}  // namespace perigee::cluster
