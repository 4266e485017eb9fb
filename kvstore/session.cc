#include "kvstore/session.h"

#include "kvstore/service.h"

namespace perigee::kvstore::internal {

absl::StatusOr<std::shared_ptr<Session>> ClientCore::GetSession(bool* fresh) {
  const uint64_t failed_before = failed_connects;
  absl::MutexLock lock(&mu);
  *fresh = false;
  if (session != nullptr && !session->lost && !Severed(*session)) return session;
  session = nullptr;
  // Another tried while this one waited here: trying once more would make those behind wait for one deadline each.
  if (failed_connects != failed_before) return connect_error;
  absl::StatusOr<std::shared_ptr<Session>> made = Connect();
  if (!made.ok()) {
    ++failed_connects;
    return connect_error = made.status();
  }
  session = *std::move(made);
  *fresh = true;
  ++connects;
  last_epoch = session->epoch;
  return session;
}

absl::StatusOr<std::shared_ptr<Session>> ClientCore::Connect() {
  const absl::Time deadline = absl::Now() + options.connect_deadline;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  // Every session tries at once, instead of inheriting the back-off of the one before; and never through a web proxy.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto s = std::make_shared<Session>([address = address, arguments]() -> SharedStub {
    return v1::KvStore::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  });

  v1::HelloRequest request;
  request.set_protocol_version(kProtocolVersion);
  request.set_protocol_version_min(kProtocolVersionMin);
  request.set_secret(options.secret);
  request.set_tenant(options.tenant);
  if (engine != nullptr) {
    for (const std::string& host : transport::LocalAddresses()) request.add_data_hosts(host);
    request.set_context_id(std::string(engine->id()));
  }
  v1::HelloResponse response;
  const absl::Status hello = CallWithin(*s, &v1::KvStore::Stub::Hello, request, &response, options.connect_deadline);
  if (absl::IsUnavailable(hello) || absl::IsDeadlineExceeded(hello)) {
    return absl::UnavailableError(absl::StrCat("no store answers at ", address, " within ",
                                               absl::FormatDuration(options.connect_deadline), " (", hello.message(),
                                               "); start it or check the address"));
  }
  PERIGEE_RETURN_IF_ERROR(hello);
  if (engine != nullptr) {
    PERIGEE_RETURN_IF_ERROR(ConnectData(response, deadline, *s));
  }
  s->quick = engine != nullptr;
  s->token = response.session_token();
  s->epoch = response.epoch();
  s->trusted = response.trusted();
  s->has_ssd = response.has_ssd();
  s->max_ttl = absl::Milliseconds(static_cast<int64_t>(response.max_ttl_ms()));
  return s;
}

absl::Status ClientCore::ConnectData(const v1::HelloResponse& response, absl::Time deadline, Session& s) const {
  if (response.data_port() == 0 || response.data_port() > 65535) {
    return absl::InternalError(
        absl::StrCat("store at ", address, " names the impossible data port ", response.data_port()));
  }
  std::string host = response.data_host();
  if (host.empty()) {
    host = address.substr(0, address.rfind(':'));
    if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  }
  for (const std::string& address : response.data_hosts()) PERIGEE_RETURN_IF_ERROR(engine->Admit(address));
  absl::StatusOr<transport::Endpoint> connection =
      engine->Connect(host, static_cast<uint16_t>(response.data_port()), deadline, response.session_token());
  if (!connection.ok()) {
    return absl::UnavailableError(absl::StrCat("the store at ", address, " answers, but its data plane at ", host, ":",
                                               response.data_port(), " does not: ", connection.status().ToString()));
  }
  s.connection = *std::move(connection);
  PERIGEE_ASSIGN_OR_RETURN(s.slab, s.connection.UnpackRemoteKey(response.remote_key()));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ClientCore::Quick(Session& s, QuickCall call, const std::string& request,
                                              absl::Duration deadline) {
  const std::string header = absl::StrCat(std::string(1, static_cast<char>(call)), s.token);
  absl::StatusOr<std::string> answer = s.connection.Call(kQuickCallId, header, request, absl::Now() + deadline);
  if (absl::IsNotFound(answer.status())) {  // no handler: an older store
    s.quick = false;
    return absl::UnimplementedError("no quick calls");
  }
  if (answer.ok() && answer->empty()) answer = absl::InternalError("an empty answer");
  const std::string at = absl::StrCat("store at ", address);
  if (!answer.ok()) {
    if (absl::IsUnavailable(answer.status())) s.lost = true;
    return Annotate(answer.status(), at);
  }
  grpc_bytes += request.size() + answer->size();
  const auto code = static_cast<absl::StatusCode>(answer->front());
  answer->erase(0, 1);
  if (code != absl::StatusCode::kUnimplemented) ++quick_calls;
  if (code == absl::StatusCode::kOk) return answer;
  if (code == absl::StatusCode::kUnauthenticated) s.lost = true;  // The store has forgotten the session.
  return Annotate(absl::Status(code, *answer), at);
}

}  // namespace perigee::kvstore::internal
