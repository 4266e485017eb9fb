// Core's second half: endpoints, batches and messages. Everything here runs on the progress thread.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/status.h"
#include "transport/core.h"

namespace perigee::transport::internal {
namespace {

constexpr size_t kWindow = 256;                  // UCX requests outstanding per batch
constexpr size_t kRoundBytes = size_t{4} << 20;  // issued per batch before others get their turn; also the largest
                                                 // single request: shared memory copies synchronously
constexpr size_t kRoundPieces = 64;

enum class MessageKind : uint16_t { kOneWay = 1, kRequest = 2, kReply = 3 };

// u16 kind | u16 handler id | u64 call id | u32 status code (replies) | u32 length, header | u32 length, payload
std::string EncodeMessage(MessageKind kind, uint16_t id, uint64_t call_id, absl::StatusCode code,
                          absl::string_view header, absl::string_view payload) {
  ByteWriter writer;
  writer.U16(static_cast<uint16_t>(kind));
  writer.U16(id);
  writer.U64(call_id);
  writer.U32(static_cast<uint32_t>(code));
  writer.Counted(header);
  writer.Counted(payload);
  return writer.Take();
}

std::string AddressText(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "?";
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &in.sin_addr, text, sizeof(text));
    return absl::StrCat(text, ":", ntohs(in.sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto& in6 = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &in6.sin6_addr, text, sizeof(text));
    return absl::StrCat("[", text, "]:", ntohs(in6.sin6_port));
  }
  return "an unknown address";
}

}  // namespace

std::string EncodeOutgoing(BatchKind kind, uint16_t id, uint64_t call_id, absl::string_view header,
                           absl::string_view payload) {
  return EncodeMessage(kind == BatchKind::kCall ? MessageKind::kRequest : MessageKind::kOneWay, id, call_id,
                       absl::StatusCode::kOk, header, payload);
}

// ---- Endpoints ----

absl::StatusOr<std::shared_ptr<Peer>> Core::OpenEndpoint(const ucp_ep_params_t& base_params, std::string peer_name,
                                                             bool accepted) {
  if (stopping_) return absl::FailedPreconditionError("the transport engine has been destroyed");
  auto endpoint = std::make_shared<Peer>();
  endpoint->core = shared_from_this();
  endpoint->peer_name = std::move(peer_name);
  endpoint->accepted = accepted;
  ucp_ep_params_t params = base_params;
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &Core::OnEndpointError;
  params.err_handler.arg = endpoint.get();
  const ucs_status_t status = ucp_ep_create(worker_, &params, &endpoint->handle);
  if (status != UCS_OK) return UcxError(absl::StrCat("connect to ", endpoint->peer_name), status);
  endpoint->connected = true;
  endpoints_[endpoint.get()] = endpoint;
  by_handle_[endpoint->handle] = endpoint.get();
  if (accepted) counters.connections_accepted++;
  return endpoint;
}

void Core::OnConnectionRequest(ucp_conn_request_h request, void* arg) {
  auto* core = static_cast<Core*>(arg);
  std::string name = "a client";
  ucp_conn_request_attr_t attr{};
  attr.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR;
  if (ucp_conn_request_query(request, &attr) == UCS_OK) name = AddressText(attr.client_address);
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  core->OpenEndpoint(params, std::move(name), /*accepted=*/true).status().IgnoreError();  // the client notices
}

void Core::OnEndpointError(void* arg, ucp_ep_h handle, ucs_status_t status) {
  auto* endpoint = static_cast<Peer*>(arg);
  endpoint->core->FailEndpoint(
      endpoint, absl::UnavailableError(absl::StrCat("connection to ", endpoint->peer_name,
                                                    " was lost: ", ucs_status_string(status), "; connect again")));
}

void Core::FailEndpoint(Peer* endpoint, absl::Status why) {
  if (endpoint->failed) return;
  if (!endpoint->accepted && !absl::IsCancelled(why)) counters.connections_failed++;
  endpoint->failed = true;
  endpoint->failure = std::move(why);
  endpoint->connected = false;
  any_failed_ = true;
  dirty_ = true;
}

// Not done where the failure is noticed, because that may be inside one of UCX's callbacks.
void Core::CloseFailedEndpoints() {
  if (any_failed_) {
    any_failed_ = false;
    for (auto& [raw, endpoint] : endpoints_) {
      if (!endpoint->failed || endpoint->closing) continue;
      endpoint->closing = true;
      by_handle_.erase(endpoint->handle);
      ucp_request_param_t param{};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
      param.flags = UCP_EP_CLOSE_FLAG_FORCE;
      param.cb.send = &Core::OnClosed;
      param.user_data = raw;
      const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint->handle, &param);
      if (request == nullptr || UCS_PTR_IS_ERR(request)) {
        endpoint->closed = true;
        any_closed_ = true;
      }
    }
  }
  if (any_closed_) {
    any_closed_ = false;
    dirty_ = true;
    for (auto it = endpoints_.begin(); it != endpoints_.end();) {
      it = it->second->closed ? endpoints_.erase(it) : std::next(it);
    }
  }
}

void Core::OnClosed(void* request, ucs_status_t, void* arg) {
  auto* endpoint = static_cast<Peer*>(arg);
  ucp_request_free(request);
  endpoint->closed = true;
  endpoint->core->any_closed_ = true;
}

// ---- Batches ----

void Core::AdvanceAll() {
  if (!dirty_) return;
  dirty_ = false;
  for (size_t i = 0; i < active_.size();) {
    if (Advance(active_[i].get())) {
      active_.erase(active_.begin() + i);  // order is kept: first started, first served
    } else {
      ++i;
    }
  }
}

bool Core::Advance(Batch* batch) {
  Peer* endpoint = batch->endpoint.get();
  auto issued = [&] { return batch->next == (batch->is_transfer() ? batch->pieces.size() : 1); };
  auto flushes = [&] {
    return batch->kind == BatchKind::kSend || (batch->kind == BatchKind::kPut && batch->one_sided);
  };
  auto complete = [&] {
    return batch->error.ok() && issued() && batch->outstanding == 0 && batch->unanswered == 0 &&
           (!flushes() || batch->flushing) && (batch->kind != BatchKind::kCall || batch->answered);
  };
  if (endpoint->failed && batch->error.ok() && !complete()) batch->error = endpoint->failure;
  if (batch->error.ok() && !issued()) {
    if (batch->next == 0 && batch->next_offset == 0 && absl::Now() >= batch->deadline) {
      batch->error = absl::DeadlineExceededError("the deadline had passed before the operation started");
    } else if (batch->is_transfer()) {
      IssuePieces(batch);
    } else {
      SendMessage(batch);
    }
  }
  if (batch->error.ok() && issued() && flushes() && !batch->flushing) Flush(batch);
  if (complete()) {
    End(batch);
    return true;
  }
  if (batch->error.ok()) return false;
  // A message's bytes are the batch's own: its caller need not wait for UCX. A transfer's are the caller's.
  if (!batch->is_transfer()) End(batch);
  if (batch->outstanding != 0) return false;
  if (endpoint->failed ? !endpoint->closed : batch->unanswered != 0) return false;
  End(batch);
  return true;
}

void Core::IssuePieces(Batch* batch) {
  size_t bytes = 0;
  for (size_t n = 0; batch->next < batch->pieces.size() && batch->error.ok(); ++n) {
    if (batch->outstanding >= kWindow || batch->unanswered >= kWindow) return;
    if (n == kRoundPieces || bytes >= kRoundBytes) {
      dirty_ = true;  // go on in the next round
      return;
    }
    const Piece& piece = batch->pieces[batch->next];
    const size_t size = std::min(piece.size - batch->next_offset, kRoundBytes);
    std::byte* local = piece.local + batch->next_offset;
    const uint64_t remote = piece.remote + batch->next_offset;
    switch (piece.key->path) {
      case Path::kMapped: {
        std::byte* peer = piece.key->mapped + (remote - piece.key->base);
        batch->kind == BatchKind::kPut ? std::memcpy(peer, local, size) : std::memcpy(local, peer, size);
        break;
      }
      case Path::kOneSided: {
        batch->one_sided = true;
        ucp_request_param_t param{};
        param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
        param.cb.send = &Core::OnOperation;
        param.user_data = batch;
        ucp_ep_h handle = batch->endpoint->handle;
        if (batch->kind == BatchKind::kPut) {
          Issued(batch, ucp_put_nbx(handle, local, size, remote, piece.key->handle, &param), "put");
        } else {
          Issued(batch, ucp_get_nbx(handle, local, size, remote, piece.key->handle, &param), "get");
        }
        break;
      }
      case Path::kMessages:
        IssueOp(batch, local, size, remote, piece.key);
        break;
    }
    bytes += size;
    batch->next_offset += size;
    if (batch->next_offset == piece.size) {
      batch->next++;
      batch->next_offset = 0;
    }
  }
}

void Core::Issued(Batch* batch, ucs_status_ptr_t request, const char* what) {
  if (UCS_PTR_IS_ERR(request)) {
    batch->error = UcxError(absl::StrCat(what, " with ", batch->endpoint->peer_name), UCS_PTR_STATUS(request));
    dirty_ = true;
  } else if (request != nullptr) {
    batch->outstanding++;
  }
}

void Core::OnOperation(void* request, ucs_status_t status, void* arg) {
  auto* batch = static_cast<Batch*>(arg);
  ucp_request_free(request);
  batch->endpoint->core->Completed(batch, status);
}

void Core::Completed(Batch* batch, ucs_status_t status) {
  batch->outstanding--;
  dirty_ = true;
  if (status == UCS_OK) return;
  Peer* endpoint = batch->endpoint.get();
  // An operation that was accepted fails only because its connection does.
  FailEndpoint(endpoint, absl::UnavailableError(absl::StrCat("connection to ", endpoint->peer_name, " was lost: ",
                                                             ucs_status_string(status), "; connect again")));
  if (batch->error.ok()) batch->error = endpoint->failure;
}

void Core::Flush(Batch* batch) {
  batch->flushing = true;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = &Core::OnOperation;
  param.user_data = batch;
  Issued(batch, ucp_ep_flush_nbx(batch->endpoint->handle, &param), "flush");
}

void Core::SendMessage(Batch* batch) {
  batch->next = 1;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_REPLY;
  param.cb.send = &Core::OnOperation;
  param.user_data = batch;
  Issued(batch,
         ucp_am_send_nbx(batch->endpoint->handle, kMessageId, nullptr, 0, batch->message.data(), batch->message.size(),
                         &param),
         "message");
  if (batch->error.ok()) counters.messages_sent++;
}

// Tells the waiter. Idempotent: a failed message's waiter is told before UCX has let go of the message.
void Core::End(Batch* batch) {
  if (batch->kind == BatchKind::kCall) calls_.erase(batch->call_id);
  ForgetOps(batch);
  if (batch->done.Happened()) return;
  if (batch->result.ok()) batch->result = batch->error;
  if (!batch->result.ok()) {
    if (batch->kind != BatchKind::kReply && !batch->error.ok()) counters.failed_batches++;
  } else if (batch->kind == BatchKind::kPut) {
    counters.put_bytes += batch->bytes;
    counters.put_transfers += batch->pieces.size();
  } else if (batch->kind == BatchKind::kGet) {
    counters.get_bytes += batch->bytes;
    counters.get_transfers += batch->pieces.size();
  }
  batch->done.Notify();
}

void Core::CheckDeadlines(absl::Time now) {
  for (auto& batch : active_) {
    if (now < batch->deadline) continue;
    Peer* endpoint = batch->endpoint.get();
    if (batch->error.ok()) {
      batch->error = absl::DeadlineExceededError(
          absl::StrCat(batch->is_transfer() ? "transfer with " : "no answer from ", endpoint->peer_name,
                       batch->is_transfer() ? " missed its deadline; its connection was closed, connect again"
                                            : " by the deadline"));
      dirty_ = true;
    }
    if (batch->is_transfer() && !endpoint->failed) {
      FailEndpoint(endpoint,
                   absl::UnavailableError(absl::StrCat("connection to ", endpoint->peer_name,
                                                       " was closed because a transfer missed its deadline")));
    }
  }
}

// ---- Messages ----

ucs_status_t Core::OnMessage(void* arg, const void*, size_t, void* data, size_t length,
                             const ucp_am_recv_param_t* param) {
  // Ours are sent eagerly, so a rendezvous comes from something else; its data never arrives here.
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) return UCS_ERR_REJECTED;
  ucp_ep_h reply_to = (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) != 0 ? param->reply_ep : nullptr;
  static_cast<Core*>(arg)->ReceiveMessage({static_cast<const char*>(data), length}, reply_to);
  return UCS_OK;
}

void Core::ReceiveMessage(absl::string_view bytes, ucp_ep_h reply_to) {
  ByteReader reader(bytes);
  const auto kind = static_cast<MessageKind>(reader.U16());
  const uint16_t id = reader.U16();
  const uint64_t call_id = reader.U64();
  const uint32_t code = reader.U32();
  const absl::string_view header = reader.Counted();
  const absl::string_view payload = reader.Counted();
  if (!reader.ok() || reader.remaining() != 0) return;
  if (kind == MessageKind::kReply) {
    const auto found = calls_.find(call_id);
    if (found == calls_.end()) return;  // its caller has given up
    Batch* batch = found->second;
    batch->answered = true;
    batch->reply = std::string(payload);
    if (code != 0) {
      batch->result = absl::Status(static_cast<absl::StatusCode>(std::min<uint32_t>(code, 16)), payload);
    }
    dirty_ = true;
    return;
  }
  if (kind != MessageKind::kOneWay && kind != MessageKind::kRequest) return;
  counters.messages_received++;
  absl::StatusOr<std::string> answer =
      absl::NotFoundError(absl::StrCat("the peer has no handler for messages with id ", id));
  const auto handler = handlers_.find(id);
  if (handler != handlers_.end()) answer = handler->second(header, payload);
  if (kind == MessageKind::kOneWay) return;
  if (answer.ok() && answer->size() > kMaxMessageBytes) {
    answer = absl::ResourceExhaustedError(absl::StrCat("the handler's answer has ", answer->size(), " bytes; at most ",
                                                       kMaxMessageBytes, " can be sent"));
  }
  const auto endpoint = by_handle_.find(reply_to);
  if (endpoint == by_handle_.end()) return;
  auto reply = std::make_shared<Batch>();
  reply->kind = BatchKind::kReply;
  reply->endpoint = endpoints_.at(endpoint->second);
  reply->message = EncodeMessage(MessageKind::kReply, id, call_id, answer.status().code(), "",
                                 answer.ok() ? absl::string_view(*answer) : answer.status().message());
  active_.push_back(std::move(reply));
  dirty_ = true;
}

}  // namespace perigee::transport::internal
