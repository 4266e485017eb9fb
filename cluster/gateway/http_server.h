// The gateway's front door: OpenAI's completions API over HTTP/1.1, in front of a Backend.
//
//   POST /v1/completions, /v1/chat/completions   openai.h says which fields; streams are server-sent events
//   GET  /v1/models, /v1/models/NAME
//   PUT, GET, DELETE /v1/contexts/ID, GET /v1/contexts   context_handler.h
//   GET  /health                                 200 while the process lives
//   GET  /ready                                  200 when requests can be served, else 503 with the reason
//
// Request headers: Authorization (only with a keys file), X-Request-Id (1 to 128 of A-Z a-z 0-9 . _ : -, else one is
// made; always answered), X-Request-Timeout (seconds; may only shorten the time; so may "timeout" in the body). Answers
// that fail before their first piece have a real status, also streams; later errors are an event {"error": ...} and the
// stream ends without [DONE]. A client that closes its connection, or its sending side, has its request cancelled.
//
// A thread for every connection and one for every prompt that is being completed. The HTTP library (cpp-httplib) reads
// requests and writes answers; sockets, threads and limits are here.
#ifndef PERIGEE_CLUSTER_GATEWAY_HTTP_SERVER_H_
#define PERIGEE_CLUSTER_GATEWAY_HTTP_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/contexts/chunk_index.h"
#include "cluster/contexts/context_service.h"
#include "cluster/gateway/backend.h"
#include "cluster/gateway/openai.h"

namespace perigee::cluster {

struct HttpServerOptions {
  std::string address = "127.0.0.1:8080";  // HOST:PORT or [HOST]:PORT; port 0: any.
  std::string tls_certificate_file;        // PEM, the whole chain; with tls_key_file. Both "": plain HTTP.
  std::string tls_key_file;
  std::string keys_file;  // api_keys.h. "": everybody is the tenant "".

  // A request under way has its connection's thread and one for each of its prompts, up to parallel_prompts; a waiting
  // one costs as much. So there are more connections than requests, for idle ones, and more requests than a cluster
  // lets wait (FairQueueOptions::max_waiting): who comes too late is told by the cluster's queue, which is fair.
  size_t max_connections = 4096;  // More are told 503.
  size_t max_requests = 2048;     // Completions under way, waiting ones included; more are told 429.
  size_t max_head_bytes = size_t{16} << 10;
  size_t max_body_bytes = size_t{8} << 20;
  CallLimits call_limits;
  // Answers to one prompt that the cluster can give at once, now; 0: not known. Any thread calls it; empty: none.
  std::function<uint32_t()> most_samples = nullptr;
  size_t parallel_prompts = 8;  // Of one request with several.
  // Outlives the server. Null: it keeps no contexts, and refuses requests that name some.
  ContextService* contexts = nullptr;
  // Outlives the server. Null: nothing is cut into chunks, a context_separator does nothing.
  ChunkIndex* chunks = nullptr;

  absl::Duration request_timeout = absl::Minutes(10);  // From the request's arrival to its answer's end.
  absl::Duration read_timeout = absl::Seconds(30);     // For a request to arrive.
  absl::Duration write_timeout = absl::Seconds(30);    // Without the client taking a byte.
  absl::Duration idle_timeout = absl::Seconds(75);     // Of a kept connection.
  absl::Duration retry_after = absl::Seconds(1);       // What clients are told with 429 and 503.
};

// What happened to one request, told when it has ended.
struct HttpRequestRecord {
  std::string request_id;
  std::string tenant;
  std::string method;
  std::string path;  // Without its query; "" where no request could be read.
  int status = 0;    // As sent; 499: the client was gone before there was one.
  bool stream = false;
  absl::Duration took;
  absl::Duration first_token = absl::InfiniteDuration();  // After the request arrived; infinite: none came.
  BackendUsage usage;
  absl::Status result;  // Of a completion; what a stream that began with 200 ended with.
};

class HttpServer {
 public:
  // Called from connections' threads, several at once.
  using Observer = std::function<void(const HttpRequestRecord&)>;

  // `backend` and the model's parts must outlive it. Serves when this returns. INVALID_ARGUMENT, NOT_FOUND: address,
  // keys or certificates that cannot be used; UNAVAILABLE: the address is taken.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options, const FrontModel& model,
                                                           Backend* backend, Observer observer = nullptr);
  // Drain(0).
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;

  // "127.0.0.1:43210", also where port 0 was asked for.
  const std::string& address() const;

  // Takes no more connections, ends idle ones, lets running requests finish until the time is over and cancels the
  // others (UNAVAILABLE). Returns when all have ended: true if none had to be cancelled. Meanwhile /ready says no.
  // Once.
  bool Drain(absl::Duration patience);

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_HTTP_SERVER_H_
