// Contexts over HTTP:
//
//   PUT    /v1/contexts/ID               {"text": "..."} or {"token_ids": [...]}, or a body of text/plain
//   GET    /v1/contexts/ID
//   DELETE /v1/contexts/ID
//   GET    /v1/contexts?after=ID&limit=N  by id; limit: 1 to 1000, 100 if it is not given
//
// A context's answer is {"id", "object": "context", "version", "tokens", "bytes", "created", "changed", "state",
// "error"?}; PUT adds "new": whether there was none of that id. Whose contexts these are says the key, as everywhere.
// Internal to cluster/gateway.
#ifndef PERIGEE_CLUSTER_GATEWAY_CONTEXT_HANDLER_H_
#define PERIGEE_CLUSTER_GATEWAY_CONTEXT_HANDLER_H_

#include <httplib.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/contexts/context_service.h"
#include "cluster/gateway/http_exchange.h"
#include "cluster/gateway/openai.h"

namespace perigee::cluster {

inline constexpr absl::string_view kContextsPath = "/v1/contexts";
bool IsContextsPath(absl::string_view path);
// Those that are possible for such a path.
std::vector<std::string> ContextMethods(absl::string_view path);

// The body of a PUT. INVALID_ARGUMENT says which field is wrong and how.
absl::StatusOr<ContextContent> ParseContextBody(absl::string_view body, bool is_json);

// The tokens of a call's contexts, one for each place, as they are now. NOT_FOUND, with the code context_not_found and
// the id, for absent ones and other tenants'. service: null where none are kept.
absl::StatusOr<std::vector<SharedTokens>> ResolveContexts(ContextService* service, const std::string& tenant,
                                                          const CompletionCall& call);

// Any thread may call.
class ContextHandler {
 public:
  // Outlive it.
  explicit ContextHandler(const HttpServerOptions& options) : options_(options) {}

  void Put(const httplib::Request& request, const httplib::ContentReader& content, HttpExchange& exchange,
           httplib::Response& response);
  void Get(const httplib::Request& request, HttpExchange& exchange, httplib::Response& response);
  void Delete(const httplib::Request& request, HttpExchange& exchange, httplib::Response& response);
  void List(const httplib::Request& request, HttpExchange& exchange, httplib::Response& response);

 private:
  absl::StatusOr<ContextService*> Service() const;
  const HttpServerOptions& options_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_CONTEXT_HANDLER_H_
