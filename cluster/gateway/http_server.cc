#include "cluster/gateway/http_server.h"

#include <httplib.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <list>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/gateway/api_keys.h"
#include "cluster/gateway/completion_handler.h"
#include "cluster/gateway/context_handler.h"
#include "cluster/gateway/http_connection.h"

namespace perigee::cluster {
namespace {

constexpr int kBacklog = 512;
// For cancelled requests to say so to their clients.
constexpr absl::Duration kLastWords = absl::Seconds(5);

struct TlsDeleter {
  void operator()(SSL_CTX* context) const { ::SSL_CTX_free(context); }
};
using TlsContext = std::unique_ptr<SSL_CTX, TlsDeleter>;

absl::StatusOr<TlsContext> LoadTls(const std::string& certificate, const std::string& key) {
  if (certificate.empty() && key.empty()) return TlsContext();
  if (certificate.empty() || key.empty()) {
    return absl::InvalidArgumentError("TLS needs a certificate file and a key file; only one is given");
  }
  const auto failed = [](absl::string_view what, const std::string& file) {
    char text[256];
    ::ERR_error_string_n(::ERR_get_error(), text, sizeof(text));
    return absl::InvalidArgumentError(absl::StrCat(what, " ", file, " cannot be used: ", text));
  };
  ::ERR_clear_error();
  TlsContext context(::SSL_CTX_new(::TLS_server_method()));
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for a TLS context");
  ::SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  ::SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  if (::SSL_CTX_use_certificate_chain_file(context.get(), certificate.c_str()) != 1) {
    return failed("the certificate", certificate);
  }
  if (::SSL_CTX_use_PrivateKey_file(context.get(), key.c_str(), SSL_FILETYPE_PEM) != 1) return failed("the key", key);
  if (::SSL_CTX_check_private_key(context.get()) != 1) return failed("the key", key);
  return context;
}

// A socket that listens, and its address with the port that it got.
struct Listener {
  UniqueFd socket;
  std::string address;
};

absl::StatusOr<Listener> Listen(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is not HOST:PORT"));
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.empty() ? nullptr : host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (error != 0) return absl::InvalidArgumentError(absl::StrCat("\"", address, "\": ", ::gai_strerror(error)));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, &::freeaddrinfo);
  absl::Status failure = absl::InvalidArgumentError(absl::StrCat("\"", address, "\" has no address"));
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    UniqueFd fd(::socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int on = 1;
    if (fd && ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
        ::bind(fd.get(), one->ai_addr, one->ai_addrlen) == 0 && ::listen(fd.get(), kBacklog) == 0) {
      sockaddr_storage bound{};
      socklen_t bytes = sizeof(bound);
      char port[32] = "";
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &bytes);
      ::getnameinfo(reinterpret_cast<sockaddr*>(&bound), bytes, nullptr, 0, port, sizeof(port), NI_NUMERICSERV);
      return Listener{std::move(fd), absl::StrCat(address.substr(0, colon), ":", port)};
    }
    failure = absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", std::strerror(errno)));
  }
  return failure;
}

bool IsSaneRequestId(absl::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view("._:-").find(c) != absl::string_view::npos;
  });
}

std::string NewRequestId() {
  thread_local absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16),
                      absl::Hex(absl::Uniform<uint32_t>(random), absl::kZeroPad8));
}

// The library without its own sockets: it is given connections.
class Library final : public httplib::Server {
 public:
  Library() { svr_sock_ = 0; }  // It takes an invalid one for the end of serving, in the middle of answers.
  using httplib::Server::process_request;
};

// What the handlers that the library calls on this thread work on.
thread_local HttpExchange* current_exchange = nullptr;

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpServerOptions& options, const FrontModel& model, Backend* backend, Observer observer)
      : options_(options),
        model_(model),
        backend_(backend),
        observer_(std::move(observer)),
        handler_(options_, model_, backend),
        context_handler_(options_) {
    connection_limits_ = {.max_head_bytes = options.max_head_bytes,
                          .max_body_bytes = options.max_body_bytes,
                          .read_timeout = options.read_timeout,
                          .write_timeout = options.write_timeout,
                          .idle_timeout = options.idle_timeout};
    SetRoutes();
  }
  ~Impl() { Drain(absl::ZeroDuration()); }

  absl::Status Start() {
    PERIGEE_ASSIGN_OR_RETURN(tls_, LoadTls(options_.tls_certificate_file, options_.tls_key_file));
    if (!options_.keys_file.empty()) {
      PERIGEE_ASSIGN_OR_RETURN(keys_, ApiKeys::Read(options_.keys_file));
    }
    PERIGEE_ASSIGN_OR_RETURN(Listener listener, Listen(options_.address));
    listener_ = std::move(listener.socket);
    address_ = std::move(listener.address);
    wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ended_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_ || !ended_) return absl::ResourceExhaustedError(absl::StrCat("eventfd: ", std::strerror(errno)));
    acceptor_ = std::thread([this] { Accept(); });
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }
  bool Drain(absl::Duration patience);

 private:
  struct Session {
    std::unique_ptr<HttpConnection> connection;
    std::thread thread;
    bool ended = false;  // Under mutex_.
  };

  void SetRoutes();
  httplib::Server::HandlerResponse Route(const httplib::Request& request, httplib::Response& response);
  void Accept();
  void Begin(std::unique_ptr<HttpConnection> connection);
  bool StartSession(std::unique_ptr<HttpConnection>& connection);
  void JoinEnded();
  void Serve(HttpConnection& connection);
  bool ServeOne(HttpConnection& connection);
  void AnswerRaw(const absl::Status& status, HttpConnection& connection, HttpExchange& exchange) const;
  void Tell(HttpExchange& exchange) const;
  std::string RetryAfter() const {
    return absl::StrCat(std::max<int64_t>(1, absl::ToInt64Seconds(absl::Ceil(options_.retry_after, absl::Seconds(1)))));
  }

  const HttpServerOptions options_;
  const FrontModel model_;
  Backend* const backend_;
  const Observer observer_;
  HttpConnectionLimits connection_limits_;
  std::optional<ApiKeys> keys_;
  TlsContext tls_;
  CompletionHandler handler_;
  ContextHandler context_handler_;
  Library library_;

  UniqueFd listener_;
  std::string address_;
  UniqueFd wake_;   // Readable, for good, once the server drains.
  UniqueFd ended_;  // Readable when a session has ended.
  std::atomic<bool> draining_ = false;

  absl::Mutex mutex_;
  std::list<Session> sessions_ ABSL_GUARDED_BY(mutex_);
  size_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread acceptor_;
};

// ---- Routes.

void HttpServer::Impl::SetRoutes() {
  library_.set_payload_max_length(options_.max_body_bytes);
  library_.set_pre_routing_handler(
      [this](const httplib::Request& request, httplib::Response& response) { return Route(request, response); });
  for (const auto& [path, endpoint] : {std::pair("/v1/completions", Endpoint::kCompletions),
                                       std::pair("/v1/chat/completions", Endpoint::kChatCompletions)}) {
    library_.Post(path, [this, endpoint = endpoint](const httplib::Request& request, httplib::Response& response,
                                                    const httplib::ContentReader& content) {
      handler_.Handle(endpoint, request, content, *current_exchange, response);
    });
  }
  const std::string one_context = std::string(kContextsPath) + "/(.*)";  // Whatever the id: it is refused by name.
  library_.Put(one_context, [this](const httplib::Request& request, httplib::Response& response,
                                   const httplib::ContentReader& content) {
    context_handler_.Put(request, content, *current_exchange, response);
  });
  library_.Delete(one_context, [this](const httplib::Request& request, httplib::Response& response) {
    context_handler_.Delete(request, *current_exchange, response);
  });
  library_.Get(one_context, [this](const httplib::Request& request, httplib::Response& response) {
    context_handler_.Get(request, *current_exchange, response);
  });
  library_.Get(std::string(kContextsPath), [this](const httplib::Request& request, httplib::Response& response) {
    context_handler_.List(request, *current_exchange, response);
  });
  library_.set_exception_handler([](const httplib::Request&, httplib::Response& response, std::exception_ptr) {
    AnswerError(absl::InternalError("the request failed inside of the server"), *current_exchange, response);
  });
  // The library's own refusals have no body.
  library_.set_error_handler(
      httplib::Server::HandlerWithResponse([](const httplib::Request&, httplib::Response& response) {
        if (response.body.empty()) {
          AnswerError(HttpError(response.status, "the request is no valid HTTP"), *current_exchange, response);
        }
        return httplib::Server::HandlerResponse::Handled;
      }));
  library_.set_post_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    HttpExchange& exchange = *current_exchange;
    exchange.record.status = response.status;
    exchange.close = exchange.close || draining_.load() || request.get_header_value("Connection") == "close" ||
                     absl::IsCancelled(exchange.record.result);
    response.headers.erase("Keep-Alive");
    response.headers.erase("Connection");
    if (exchange.close) response.set_header("Connection", "close");
    response.set_header("X-Request-Id", exchange.record.request_id);
    if (exchange.retry_later) response.set_header("Retry-After", RetryAfter());
  });
}

// Everything without a body; and what is wrong before a body is read.
httplib::Server::HandlerResponse HttpServer::Impl::Route(const httplib::Request& request, httplib::Response& response) {
  using Answered = httplib::Server::HandlerResponse;
  HttpExchange& exchange = *current_exchange;
  exchange.record.method = request.method;
  exchange.record.path = request.path;
  if (const std::string id = request.get_header_value("X-Request-Id"); IsSaneRequestId(id))
    exchange.record.request_id = id;
  const auto fail = [&](const absl::Status& status) {
    AnswerError(status, exchange, response);
    return Answered::Handled;
  };
  const auto answer = [&](const std::string& json) {
    response.status = 200;
    response.set_content(json, "application/json");
    return Answered::Handled;
  };
  constexpr absl::string_view kModels = "/v1/models";
  const absl::string_view path = request.path;
  const bool completion = path == "/v1/completions" || path == "/v1/chat/completions";
  const bool one_model = absl::StartsWith(path, "/v1/models/");
  const bool contexts = IsContextsPath(path);
  if (!completion && !one_model && !contexts && path != kModels && path != "/health" && path != "/ready") {
    return fail(HttpError(404, absl::StrCat("there is nothing at ", path.substr(0, 200)), "unknown_url"));
  }
  const std::vector<std::string> allowed = completion ? std::vector<std::string>{"POST"}
                                           : contexts ? ContextMethods(path)
                                                      : std::vector<std::string>{"GET", "HEAD"};
  if (std::find(allowed.begin(), allowed.end(), request.method) == allowed.end()) {
    response.set_header("Allow", absl::StrJoin(allowed, ", "));
    return fail(HttpError(405, absl::StrCat(request.method, " is not possible for ", path.substr(0, 200))));
  }
  if (path == "/health") return answer("{\"status\":\"ok\"}");
  if (path == "/ready") {
    const absl::Status ready = draining_.load() ? absl::UnavailableError("the server is stopping") : backend_->Ready();
    if (ready.ok()) return answer("{\"status\":\"ready\"}");
    return fail(absl::UnavailableError(ready.message()));
  }
  if (keys_) {
    absl::StatusOr<std::string> tenant = keys_->TenantOf(request.get_header_value("Authorization"));
    if (!tenant.ok()) {
      response.set_header("WWW-Authenticate", "Bearer");
      return fail(WithDetails(tenant.status(), "", "invalid_api_key"));
    }
    exchange.record.tenant = *std::move(tenant);
  }
  if (completion || contexts) return Answered::Unhandled;
  if (path == kModels) return answer(ModelList(model_));
  if (path.substr(kModels.size() + 1) == model_.name) return answer(ModelEntry(model_));
  return fail(WithDetails(absl::NotFoundError(absl::StrCat("The model \"", path.substr(kModels.size() + 1, 200),
                                                           "\" does not exist; this server has \"", model_.name, "\"")),
                          "model", "model_not_found"));
}

// ---- Connections.

void HttpServer::Impl::Accept() {
  bool out_of_descriptors = false;
  while (!draining_.load()) {
    pollfd fds[] = {{wake_.get(), POLLIN, 0}, {ended_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    // Out of descriptors, the listener would stay readable.
    (void)::poll(fds, out_of_descriptors ? 2 : 3, out_of_descriptors ? 50 : -1);
    out_of_descriptors = false;
    JoinEnded();
    while (!draining_.load()) {
      UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!socket) {
        out_of_descriptors = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
        break;
      }
      const int on = 1;
      (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      auto connection =
          std::make_unique<HttpConnection>(std::move(socket), tls_.get(), wake_.get(), connection_limits_);
      Begin(std::move(connection));
    }
  }
  listener_.Reset();
}

// Gives the connection a thread, or tells it that there is none.
void HttpServer::Impl::Begin(std::unique_ptr<HttpConnection> connection) {
  if (StartSession(connection)) return;
  // A TLS client could not read it.
  if (tls_ != nullptr) return;
  HttpExchange exchange{.connection = connection.get(), .arrived = absl::Now(), .record = {}};
  AnswerRaw(absl::UnavailableError("the server has too many connections; try again later"), *connection, exchange);
  connection->Finish(absl::ZeroDuration());
}

// Takes the connection; false, and leaves it, when there is no room for it.
bool HttpServer::Impl::StartSession(std::unique_ptr<HttpConnection>& connection) {
  const absl::MutexLock lock(&mutex_);
  if (running_ >= options_.max_connections) return false;
  sessions_.push_back({.connection = std::move(connection), .thread = {}});
  Session* const session = &sessions_.back();
  try {
    session->thread = std::thread([this, session] {
      Serve(*session->connection);
      session->connection->Abort();  // Whoever joins closes it; the client need not wait for that.
      const absl::MutexLock end(&mutex_);
      session->ended = true;
      --running_;
      const uint64_t one = 1;
      (void)!::write(ended_.get(), &one, sizeof(one));
    });
  } catch (const std::system_error&) {
    connection = std::move(session->connection);
    sessions_.pop_back();
    return false;
  }
  ++running_;
  return true;
}

void HttpServer::Impl::JoinEnded() {
  uint64_t ignored = 0;
  (void)!::read(ended_.get(), &ignored, sizeof(ignored));
  std::list<Session> ended;
  {
    const absl::MutexLock lock(&mutex_);
    for (auto at = sessions_.begin(); at != sessions_.end();) {
      const auto next = std::next(at);
      if (at->ended) ended.splice(ended.end(), sessions_, at);
      at = next;
    }
  }
  for (Session& session : ended) session.thread.join();
}

void HttpServer::Impl::Serve(HttpConnection& connection) {
  if (!connection.Handshake().ok()) return;
  while (ServeOne(connection)) {
  }
}

// False: the connection has ended.
bool HttpServer::Impl::ServeOne(HttpConnection& connection) {
  const absl::Status head = connection.ReadHead();
  if (absl::IsCancelled(head)) return false;
  HttpExchange exchange{.connection = &connection, .arrived = absl::Now(), .record = {}};
  exchange.record.request_id = NewRequestId();
  if (!head.ok()) {
    AnswerRaw(head, connection, exchange);
    connection.Finish();
    return false;
  }
  // A body that nobody reads would be taken for the next request.
  exchange.close = connection.has_body();
  current_exchange = &exchange;
  bool closed = false;
  const bool written = library_.process_request(connection, draining_.load(), closed, nullptr);
  current_exchange = nullptr;
  if (absl::IsCancelled(exchange.record.result) && exchange.record.status == 0) exchange.record.status = 499;
  Tell(exchange);
  if (written && !closed && !exchange.close) return true;
  connection.Finish();
  return false;
}

void HttpServer::Impl::AnswerRaw(const absl::Status& status, HttpConnection& connection, HttpExchange& exchange) const {
  const ApiError error = ToApiError(status);
  exchange.record.status = error.http_status;
  exchange.record.result = status;
  if (exchange.record.request_id.empty()) exchange.record.request_id = NewRequestId();
  const std::string answer =
      absl::StrCat("HTTP/1.1 ", error.http_status,
                   " Refused\r\nContent-Type: application/json\r\nContent-Length: ", error.body.size(),
                   "\r\nConnection: close\r\nX-Request-Id: ", exchange.record.request_id, "\r\n",
                   error.retry_later ? absl::StrCat("Retry-After: ", RetryAfter(), "\r\n") : "", "\r\n", error.body);
  // Small enough for any socket's buffer: it is written whole or not at all.
  (void)connection.write(answer.data(), answer.size());
  Tell(exchange);
}

void HttpServer::Impl::Tell(HttpExchange& exchange) const {
  if (!observer_) return;
  exchange.record.took = absl::Now() - exchange.arrived;
  observer_(exchange.record);
}

bool HttpServer::Impl::Drain(absl::Duration patience) {
  if (!acceptor_.joinable()) return true;
  draining_.store(true);
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));
  acceptor_.join();
  const auto all_ended = [this] {
    mutex_.AssertReaderHeld();
    return running_ == 0;
  };
  bool by_themselves = true;
  {
    const absl::MutexLock lock(&mutex_);
    by_themselves = mutex_.AwaitWithTimeout(absl::Condition(&all_ended), patience);
  }
  if (!by_themselves) {
    handler_.Stop();
    const absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(&all_ended), kLastWords)) {
      for (Session& session : sessions_) {
        if (!session.ended) session.connection->Abort();
      }
    }
    // Sockets are closed and runs cancelled: what is left is the backend's time to notice.
    mutex_.Await(absl::Condition(&all_ended));
  }
  JoinEnded();
  return by_themselves;
}

// ---- The public face.

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options, const FrontModel& model,
                                                              Backend* backend, Observer observer) {
  auto impl = std::make_unique<Impl>(options, model, backend, std::move(observer));
  PERIGEE_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

const std::string& HttpServer::address() const { return impl_->address(); }
bool HttpServer::Drain(absl::Duration patience) { return impl_->Drain(patience); }

}  // namespace perigee::cluster
