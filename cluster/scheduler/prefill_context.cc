#include "cluster/scheduler/prefill_context.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/scheduler/calls.h"

namespace perigee::cluster {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(50);
constexpr absl::Duration kLongest = absl::Minutes(30);  // It waits for all others.

}  // namespace

absl::Status PrefillContextTokens(const NodeSet& nodes, const std::string& tenant,
                                  const std::vector<int32_t>& token_ids, const std::function<bool()>& cancelled) {
  const std::vector<std::shared_ptr<NodeHandle>> usable = nodes.Usable(Role::kPrefill);
  if (usable.empty()) return absl::UnavailableError("no prefill node can be used now");
  const auto busy = [](const auto& node) { return node->prefill_tokens.load() + node->requests.load(); };
  const std::shared_ptr<NodeHandle> node =
      *std::min_element(usable.begin(), usable.end(), [&](const auto& a, const auto& b) { return busy(a) < busy(b); });
  v1::PrefillRequest request;
  request.mutable_scope()->set_tenant(tenant);
  request.add_segments()->mutable_tokens()->mutable_ids()->Assign(token_ids.begin(), token_ids.end());
  request.set_background(true);
  PrefillCall call(node->prefill(), request, /*request_id=*/"", absl::Now() + kLongest);
  for (;;) {
    if (const std::optional<absl::Status> status = call.Wait(kLookEvery)) {
      if (absl::IsUnavailable(*status)) node->ReportFailure();
      if (absl::IsCancelled(*status)) return absl::UnavailableError(absl::StrCat("given up by ", node->address()));
      return Annotate(*status, absl::StrCat("prefill node ", node->address()));
    }
    if (cancelled()) return absl::CancelledError("nobody wants it any more");
    if (node->gone()) return absl::UnavailableError(absl::StrCat("prefill node ", node->address(), " is gone"));
  }
}

}  // namespace perigee::cluster
