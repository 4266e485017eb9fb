// Payloads above kEagerBytes, which UCX moves by rendezvous: the sender announces one (RTS), the receiver names where
// it belongs (RTR), the sender writes it there and is told that it has come (over tcp by UCX's own put and put-ack).
//
// UCX 1.13 ends the process (tcp_ep.c:939) when, of the bytes that it has read from a connection at once, one message
// makes it send, the send fails because the peer has died, and a put-ack follows. So nothing is ever sent to anybody
// from inside of ucp_worker_progress while a write may be unacknowledged:
//   - what our callbacks want to send waits until ucp_worker_progress has returned (Send), and so does a refusal;
//   - a connection's long payloads are received one after the other, so that the RTR of one, to which UCX answers with
//     the write, never comes before the ack of another;
//   - none is shorter than a segment of UCX's (Transfer::Plan): with both directions in use, UCX would acknowledge one
//     that it has read whole, together with the ack of its own.
// Everything here runs as driver.
#include <utility>

#include "absl/strings/str_cat.h"
#include "transport/core.h"

namespace perigee::transport::internal {

bool Core::Progress() {
  in_progress_ = true;
  const bool moved = ucp_worker_progress(worker_) != 0;
  in_progress_ = false;
  while (!after_progress_.empty()) {
    for (auto& fn : std::exchange(after_progress_, {})) fn();
  }
  return moved;
}

void Core::AfterProgress(std::function<void()> fn) {
  if (in_progress_) {
    after_progress_.push_back(std::move(fn));
  } else {
    fn();
  }
}

void Core::Send(std::function<void()> send) { long_sends_ > 0 ? AfterProgress(std::move(send)) : send(); }

void Core::QueueReceive(const std::shared_ptr<Peer>& peer, LongReceive receive) {
  peer->long_receives.push_back(receive);
  if (!peer->receiving) AfterProgress([this, peer] { NextReceive(peer.get()); });
}

void Core::NextReceive(Peer* peer) {
  while (!peer->receiving && !peer->failed && !peer->long_receives.empty()) {
    const LongReceive next = peer->long_receives.front();
    peer->long_receives.pop_front();
    next.serve != nullptr ? ReceivePut(next.serve) : ReceiveGet(next.op);
  }
}

// The callback may come before this returns (the peer has died), and end what it was called for.
absl::Status Core::Receive(Peer* peer, void** descriptor, std::byte* to, size_t size,
                           ucp_am_recv_data_nbx_callback_t callback, void* arg) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.cb.recv_am = callback;
  param.user_data = arg;
  peer->receiving = true;
  const ucs_status_ptr_t request = ucp_am_recv_data_nbx(worker_, std::exchange(*descriptor, nullptr), to, size, &param);
  if (!UCS_PTR_IS_ERR(request)) return absl::OkStatus();
  peer->receiving = false;
  return UcxError(absl::StrCat("receive from ", peer->name), UCS_PTR_STATUS(request));
}

void Core::ReceiveEnded(const std::shared_ptr<Peer>& peer) {
  peer->receiving = false;
  peer->served = last_check_;  // slow is not stalled
  if (!peer->long_receives.empty()) AfterProgress([this, peer] { NextReceive(peer.get()); });
}

// Of what has not begun.
void Core::DropReceive(Peer* peer, void** descriptor, const void* owner) {
  if (*descriptor == nullptr) return;
  std::erase_if(peer->long_receives,
                [&](const LongReceive& waiting) { return waiting.op == owner || waiting.serve == owner; });
  ucp_am_data_release(worker_, std::exchange(*descriptor, nullptr));
}

}  // namespace perigee::transport::internal
