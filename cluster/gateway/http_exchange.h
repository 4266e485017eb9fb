// One request on its connection, and what all routes do with it. Internal to cluster/gateway.
#ifndef PERIGEE_CLUSTER_GATEWAY_HTTP_EXCHANGE_H_
#define PERIGEE_CLUSTER_GATEWAY_HTTP_EXCHANGE_H_

#include <httplib.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/gateway/http_connection.h"
#include "cluster/gateway/http_server.h"

namespace perigee::cluster {

// From a request's arrival to its answer's end. Its connection's thread uses it.
struct HttpExchange {
  HttpConnection* connection = nullptr;
  absl::Time arrived;
  HttpRequestRecord record;
  bool close = false;        // The connection ends after the answer.
  bool retry_later = false;  // The answer has Retry-After.
};

// Puts the error into the answer.
void AnswerError(const absl::Status& status, HttpExchange& exchange, httplib::Response& response);

// The request's body, whole; the connection can then go on. 408, 413, 415 and 400 for bodies that cannot be read.
absl::StatusOr<std::string> ReadBody(const HttpServerOptions& options, const httplib::Request& request,
                                     const httplib::ContentReader& content, HttpExchange& exchange);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_HTTP_EXCHANGE_H_
