#include "cluster/gateway/http_exchange.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace perigee::cluster {

void AnswerError(const absl::Status& status, HttpExchange& exchange, httplib::Response& response) {
  const ApiError error = ToApiError(status);
  response.status = error.http_status;
  response.set_content(error.body, "application/json");
  exchange.retry_later = error.retry_later;
  exchange.record.result = status;
}

absl::StatusOr<std::string> ReadBody(const HttpServerOptions& options, const httplib::Request& request,
                                     const httplib::ContentReader& content, HttpExchange& exchange) {
  const size_t max_bytes = options.max_body_bytes;
  const std::string type = request.get_header_value("Content-Type");
  if (request.is_multipart_form_data() || absl::StartsWithIgnoreCase(type, "application/x-www-form-urlencoded")) {
    return HttpError(
        415, absl::StrCat("a body of type \"", type.substr(0, 80), "\" is not understood; send application/json"));
  }
  std::string body;
  bool too_large = false;
  const bool read = content([&](const char* data, size_t bytes) {
    too_large = body.size() + bytes > max_bytes;
    if (!too_large) body.append(data, bytes);
    return !too_large;
  });
  if (too_large) return HttpError(413, absl::StrCat("the body has more than the ", max_bytes, " bytes allowed"));
  if (!read && absl::Now() >= exchange.arrived + options.read_timeout)
    return HttpError(408, "the request's body did not arrive in time");
  if (!read)
    return HttpError(400, "the request's body cannot be read: it ends early or is not encoded as its head says");
  exchange.close = false;  // The next request begins where it should.
  return body;
}

}  // namespace perigee::cluster
