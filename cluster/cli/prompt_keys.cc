#include "cluster/cli/prompt_keys.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/channel.h"
#include "cluster/cli/exit_code.h"
#include "perigee/v1/decode.grpc.pb.h"
#include "perigee/v1/prefill.grpc.pb.h"
#include "proto/grpc_status.h"

namespace perigee::cli {
namespace {

template <typename Service>
absl::StatusOr<v1::NodeInfo> InfoOf(const cluster::NodeRecord& node) {
  const auto stub = Service::NewStub(cluster::ConnectTo(node.address));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(5)));
  v1::NodeInfo info;
  PERIGEE_RETURN_IF_ERROR(Annotate(FromGrpc(stub->Info(&context, v1::NodeInfoRequest(), &info)), node.address));
  return info;
}

}  // namespace

absl::StatusOr<pod::Identity> IdentityOf(const ClusterAccess& cluster, const std::string& tenant,
                                         const std::string& salt) {
  v1::NodeInfo info;
  if (const cluster::NodeRecord* prefill = cluster.First(cluster::Role::kPrefill)) {
    PERIGEE_ASSIGN_OR_RETURN(info, InfoOf<v1::PrefillNode>(*prefill));
  } else if (const cluster::NodeRecord* decode = cluster.First(cluster::Role::kDecode)) {
    PERIGEE_ASSIGN_OR_RETURN(info, InfoOf<v1::DecodeNode>(*decode));
  } else {
    return WithExitCode(absl::NotFoundError("the cluster has no serving prefill or decode node: its plan is not known"),
                        ExitCode::kNotFound);
  }
  pod::Identity identity{.tenant = tenant, .salt = salt, .block_tokens = static_cast<int>(info.block_tokens())};
  if (info.model_fingerprint().size() != identity.model_fingerprint.size() ||
      info.plan_id().size() != identity.plan_id.size()) {
    return absl::InternalError("a node's model fingerprint or plan id is not of 32 bytes");
  }
  std::copy(info.model_fingerprint().begin(), info.model_fingerprint().end(), identity.model_fingerprint.begin());
  std::copy(info.plan_id().begin(), info.plan_id().end(), identity.plan_id.begin());
  PERIGEE_RETURN_IF_ERROR(pod::ValidateIdentity(identity));
  return identity;
}

std::vector<pod::BlockKey> StoredChain(const pod::Identity& identity, std::span<const int32_t> tokens) {
  if (tokens.size() < 2) return {};
  return pod::DeriveChain(identity, tokens.first(tokens.size() - 1));
}

}  // namespace perigee::cli
