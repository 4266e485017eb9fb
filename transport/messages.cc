// Small messages: sent eagerly, whole, answered by handlers. Everything here runs as driver.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "transport/core.h"

namespace perigee::transport::internal {

void Core::AddMessage(std::shared_ptr<Message> message) {
  if (message->kind != MessageKind::kReply) {
    message->header.call = NewId();
    calls_[message->header.call] = message.get();
  }
  messages_.push_back(std::move(message));
  dirty_ = true;
}

// True when UCX holds nothing of it. Its waiter may have been told long before: the bytes are the message's own.
bool Core::AdvanceMessage(Message* message) {
  Peer* peer = message->peer.get();
  const bool waiting = message->kind != MessageKind::kReply && !message->done.Happened();
  if (waiting) {
    if (message->answered) {
      EndMessage(message, message->result);
    } else if (peer->failed) {
      EndMessage(message, peer->failure);
    } else if (absl::Now() >= message->deadline) {
      EndMessage(message, absl::DeadlineExceededError(
                              message->sent ? absl::StrCat("no answer from ", peer->name, " by the deadline")
                                            : "the deadline had passed before the operation started"));
    }
  }
  const bool wanted = message->kind == MessageKind::kReply || !message->done.Happened();
  if (!message->sent && wanted && !peer->failed) {
    // Enough lies with UCX for a peer that does not take it: ours wait. Answers do not, see ReceiveMessage.
    if (message->kind != MessageKind::kReply && peer->queued_bytes > 0 &&
        peer->queued_bytes + message->bytes.size() + kMessageOverheadBytes > kMaxQueuedBytes) {
      return false;
    }
    SendMessage(message);
    return false;
  }
  if (message->outstanding) return false;
  if (message->kind == MessageKind::kReply) peer->owed_bytes -= message->bytes.size() + kMessageOverheadBytes;
  return peer->failed || message->kind == MessageKind::kReply || message->done.Happened();
}

void Core::SendMessage(Message* message) {
  Peer* peer = message->peer.get();
  message->sent = true;
  message->header.channel = peer->remote_channel;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &Core::OnMessageSent;
  param.user_data = message;
  const ucs_status_ptr_t request = ucp_am_send_nbx(peer->handle, kMessageId, &message->header, sizeof(message->header),
                                                   message->bytes.data(), message->bytes.size(), &param);
  if (UCS_PTR_IS_ERR(request)) {
    FailPeer(peer, UcxError(absl::StrCat("message to ", peer->name), UCS_PTR_STATUS(request)));
    return;
  }
  shared_->counters.messages_sent++;
  if (request != nullptr) {
    message->outstanding = true;
    Queue(message, message->bytes.size() + kMessageOverheadBytes);
    return;
  }
  OnMessageSent(nullptr, UCS_OK, message);
}

void Core::OnMessageSent(void* request, ucs_status_t status, void* arg) {
  auto* message = static_cast<Message*>(arg);
  Peer* peer = message->peer.get();
  Core* core = peer->core.get();
  core->dirty_ = true;
  if (request != nullptr) {
    ucp_request_free(request);
    message->outstanding = false;
    Queue(message, 0);
  }
  if (status != UCS_OK) {
    core->FailPeer(peer, absl::UnavailableError(absl::StrCat("connection to ", peer->name, " was lost: ",
                                                             ucs_status_string(status), "; connect again")));
  }
}

// UCX holds so much of it now.
void Core::Queue(Message* message, size_t bytes) {
  message->peer->queued_bytes += bytes - message->queued_bytes;
  message->queued_bytes = bytes;
}

void Core::EndMessage(Message* message, absl::Status result) {
  if (message->kind != MessageKind::kReply) calls_.erase(message->header.call);
  if (message->done.Happened()) return;
  // An error that the peer's handler answered is not the transport's.
  if (!result.ok() && !message->answered) shared_->counters.failed_batches++;
  message->result = std::move(result);
  message->done.Notify();
}

void Core::OnMessage(const void* header, size_t header_length, void* data, size_t length,
                     const ucp_am_recv_param_t* param, bool*) {
  // Ours are sent eagerly, so a rendezvous comes from something else; its data never arrives here.
  MessageHeader message;
  if (IsRendezvous(param) || !ReadHeader(header, header_length, &message)) return;
  if (length > kMaxMessageBytes || message.header_bytes > length) return;
  ReceiveMessage(message, {static_cast<const char*>(data), length});
}

void Core::ReceiveMessage(const MessageHeader& message, absl::string_view bytes) {
  Peer* peer = PeerOf(message.channel);
  if (peer == nullptr) return;
  if (message.kind == MessageKind::kReply) {
    const auto found = calls_.find(message.call);
    if (found == calls_.end() || found->second->peer.get() != peer) return;  // its caller has given up
    Message* call = found->second;
    call->answered = true;
    call->reply = std::string(bytes);
    if (message.code != 0) {
      call->result = absl::Status(static_cast<absl::StatusCode>(std::min<uint32_t>(message.code, 16)), bytes);
    }
    dirty_ = true;
    return;
  }
  if (message.kind != MessageKind::kOneWay && message.kind != MessageKind::kRequest) return;
  // A peer that asks and asks, and takes no answers, cannot make us keep them all.
  if (peer->owed_bytes > kMaxOwedBytes) {
    return FailPeer(peer, absl::ResourceExhaustedError(absl::StrCat(peer->name, " does not take its answers")));
  }
  shared_->counters.messages_received++;
  absl::StatusOr<std::string> answer =
      absl::NotFoundError(absl::StrCat("the peer has no handler for messages with id ", message.handler));
  {
    std::shared_lock<std::shared_mutex> lock(shared_->handlers_mutex);
    const auto handler = shared_->handlers.find(message.handler);
    if (handler != shared_->handlers.end()) {
      answer = handler->second(bytes.substr(0, message.header_bytes), bytes.substr(message.header_bytes));
    }
  }
  // Its sender only asks whether it has come. (UCX's own flush would be a write whose acknowledgement is outstanding,
  // see long_payloads.cc.)
  if (message.kind == MessageKind::kOneWay) answer = "";
  if (answer.ok() && answer->size() > kMaxMessageBytes) {
    answer = absl::ResourceExhaustedError(absl::StrCat("the handler's answer has ", answer->size(), " bytes; at most ",
                                                       kMaxMessageBytes, " can be sent"));
  }
  auto reply = std::make_shared<Message>();
  reply->kind = MessageKind::kReply;
  reply->peer = peers_.at(peer);
  reply->header.kind = MessageKind::kReply;
  reply->header.call = message.call;
  reply->header.handler = message.handler;
  reply->header.code = static_cast<uint32_t>(answer.status().code());
  reply->bytes = answer.ok() ? *std::move(answer) : std::string(answer.status().message());
  peer->owed_bytes += reply->bytes.size() + kMessageOverheadBytes;
  AddMessage(std::move(reply));
}

}  // namespace perigee::transport::internal
