#include "proto/request_id.h"

#include <string>

#include "base/trace.h"

namespace perigee {

void SendRequestId(absl::string_view id, grpc::ClientContext& context) {
  if (!id.empty()) context.AddMetadata(kRequestIdKey, std::string(id));
}

absl::string_view ReceivedRequestId(const grpc::ServerContext& context) {
  const auto found = context.client_metadata().find(kRequestIdKey);
  if (found == context.client_metadata().end()) return {};
  const absl::string_view id(found->second.data(), found->second.size());
  return IsRequestId(id) ? id : absl::string_view();
}

}  // namespace perigee
