// Connections of a rail: opening, the hello, signs of life, closing. Everything here runs as driver.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/status.h"
#include "spdlog/spdlog.h"
#include "transport/address.h"
#include "transport/core.h"

namespace perigee::transport::internal {
namespace {

constexpr absl::Duration kHelloLimit = absl::Seconds(10);  // for a peer to say who it is
constexpr absl::Duration kFirstRetry = absl::Seconds(1);
constexpr absl::Duration kLongestRetry = absl::Seconds(15);
constexpr absl::Duration kLinger = absl::Milliseconds(250);
constexpr int kMissedAnswers = 3;

// Freed by UCX's callback. For sends that nobody waits for.
struct Note {
  std::shared_ptr<Peer> peer;
  unsigned am_id = 0;
  std::string header, payload;
  size_t bytes() const { return header.size() + payload.size() + kMessageOverheadBytes; }
};

void Drop(Note* note) {
  note->peer->owed_bytes -= note->bytes();
  delete note;
}

void OnNoteSent(void* request, ucs_status_t, void* arg) {
  ucp_request_free(request);
  Drop(static_cast<Note*>(arg));
}

void SendNow(Note* note) {
  if (note->peer->failed) return Drop(note);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  // The hello needs the way back; it is the only message whose receiver does not know the channel yet.
  param.flags = UCP_AM_SEND_FLAG_EAGER | (note->am_id == kHelloId ? static_cast<uint32_t>(UCP_AM_SEND_FLAG_REPLY) : 0);
  param.cb.send = &OnNoteSent;
  param.user_data = note;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(note->peer->handle, note->am_id, note->header.data(), note->header.size(), note->payload.data(),
                      note->payload.size(), &param);
  if (!UCS_PTR_IS_PTR(request)) Drop(note);  // an error means a lost peer, whose endpoint tells
}

}  // namespace

absl::StatusOr<std::shared_ptr<Peer>> Core::OpenPeer(const ucp_ep_params_t& base_params, std::string name,
                                                     bool accepted) {
  if (stopping_) return absl::FailedPreconditionError("the transport context has been destroyed");
  auto peer = std::make_shared<Peer>();
  peer->core = shared_from_this();
  peer->name = std::move(name);
  peer->accepted = accepted;
  peer->rail = rail_;
  peer->opened = peer->heard = peer->pinged = absl::Now();
  PERIGEE_ASSIGN_OR_RETURN(peer->channel, RandomNumber());
  ucp_ep_params_t params = base_params;
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &Core::OnPeerError;
  params.err_handler.arg = peer.get();
  const ucs_status_t status = ucp_ep_create(worker_, &params, &peer->handle);
  if (status != UCS_OK) return UcxError(absl::StrCat("connect to ", peer->name), status);
  peers_[peer.get()] = peer;
  channels_[peer->channel] = peer.get();
  by_handle_[peer->handle] = peer.get();
  return peer;
}

void Core::OnConnectionRequest(ucp_conn_request_h request, void* arg) {
  auto* core = static_cast<Core*>(arg);
  std::string name = "a client", host;
  ucp_conn_request_attr_t attr{};
  attr.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR;
  if (ucp_conn_request_query(request, &attr) == UCS_OK) {
    name = AddressText(attr.client_address);
    host = AddressHost(attr.client_address);
  }
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  const absl::StatusOr<std::shared_ptr<Peer>> peer = core->OpenPeer(params, std::move(name), /*accepted=*/true);
  if (peer.ok()) (*peer)->host = host;  // else the client notices
}

absl::StatusOr<ucp_listener_h> Core::OpenListener(const sockaddr* address, socklen_t bytes, RailAddress* bound) {
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr.addr = address;
  params.sockaddr.addrlen = bytes;
  params.conn_handler.cb = &Core::OnConnectionRequest;
  params.conn_handler.arg = this;
  ucp_listener_h listener = nullptr;
  ucs_status_t status = ucp_listener_create(worker_, &params, &listener);
  if (status != UCS_OK) return UcxError("listen", status);
  ucp_listener_attr_t attr{};
  attr.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = ucp_listener_query(listener, &attr);
  if (status != UCS_OK) {
    ucp_listener_destroy(listener);
    return UcxError("ask for the listener's port", status);
  }
  listeners_.insert(listener);
  *bound = {AddressHost(attr.sockaddr), AddressPort(attr.sockaddr)};
  return listener;
}

void Core::CloseListener(ucp_listener_h listener) {
  if (listeners_.erase(listener) == 1) ucp_listener_destroy(listener);
}

// ---- Failing and closing ----

void Core::OnPeerError(void* arg, ucp_ep_h, ucs_status_t status) {
  auto* peer = static_cast<Peer*>(arg);
  const absl::string_view why = status == UCS_ERR_UNREACHABLE
                                    ? "nobody listens there, or the way there is by a network device that is not in "
                                      "use; connect again, or name it"
                                    : "connect again";
  peer->core->FailPeer(peer, absl::UnavailableError(absl::StrCat("connection to ", peer->name, " was lost: ",
                                                                 ucs_status_string(status), " (", why, ")")));
  peer->failed_at = absl::InfinitePast();  // nothing more will land, so nothing to linger for
}

void Core::FailPeer(Peer* peer, absl::Status why) {
  if (peer->failed) return;
  peer->failed = true;
  peer->failure = std::move(why);
  peer->failed_at = absl::Now();
  any_failed_ = true;
  dirty_ = true;
  const bool was_ready = peer->ready.exchange(false);
  channels_.erase(peer->channel);
  HelloEnded(peer, peer->failure);
  if (peer->accepted) return;
  if (!absl::IsCancelled(peer->failure)) shared_->counters.connections_failed++;
  const std::shared_ptr<Link> link = peer->link.lock();
  if (link == nullptr) return;
  bool retry = false;
  {
    std::lock_guard<std::mutex> lock(link->mutex);
    if (rail_ < link->rails.size() && link->rails[rail_].get() == peer) link->rails[rail_] = nullptr;
    if (was_ready) link->alive--;
    retry = !link->closed && link->alive > 0 && !link->Has(rail_);
  }
  if (!retry || stopping_) return;
  if (was_ready)
    spdlog::warn("transport: rail {} of {} is down: {}", rail_, link->name, std::string(peer->failure.message()));
  const auto known = std::find_if(lost_rails_.begin(), lost_rails_.end(),
                                  [&](const LostRail& lost) { return lost.link.lock() == link; });
  if (known == lost_rails_.end()) lost_rails_.push_back({link, absl::Now() + kFirstRetry, kFirstRetry});
}

void Core::CloseLink(const Link& link, const absl::Status& status) {
  for (auto& [raw, peer] : peers_) {
    if (peer->link.lock().get() == &link) FailPeer(raw, status);
  }
}

// A connection that this side gives up is closed when what is on the wire has landed, if that is soon: UCX 1.13 asserts
// when the acknowledgement of a write comes while it closes.
bool Core::Lingers(const Peer& peer) const {
  if (absl::Now() - peer.failed_at > kLinger) return false;
  for (const auto& rail : transfers_) {
    if (rail->peer.get() == &peer && rail->outstanding > 0) return true;
  }
  return std::any_of(serves_.begin(), serves_.end(),
                     [&](const auto& serve) { return serve.first->peer.get() == &peer && serve.first->outstanding; });
}

// Not done where the failure is noticed, because that may be inside one of UCX's callbacks.
void Core::CloseFailedPeers() {
  if (any_failed_) {
    any_failed_ = false;
    for (auto& [raw, peer] : peers_) {
      if (!peer->failed || peer->closing) continue;
      if (Lingers(*peer)) {
        any_failed_ = true;  // looked at again
        continue;
      }
      peer->closing = true;
      by_handle_.erase(peer->handle);
      ucp_request_param_t param{};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
      param.flags = UCP_EP_CLOSE_FLAG_FORCE;
      param.cb.send = &Core::OnPeerClosed;
      param.user_data = raw;
      const ucs_status_ptr_t request = ucp_ep_close_nbx(peer->handle, &param);
      if (request == nullptr || UCS_PTR_IS_ERR(request)) {
        peer->closed = true;
        any_closed_ = true;
      }
    }
    PollServes(absl::Now());  // those of failed peers end
  }
  if (any_closed_) {
    any_closed_ = false;
    dirty_ = true;
    for (auto it = peers_.begin(); it != peers_.end();) {
      it = it->second->closed ? peers_.erase(it) : std::next(it);
    }
  }
}

void Core::OnPeerClosed(void* request, ucs_status_t, void* arg) {
  auto* peer = static_cast<Peer*>(arg);
  ucp_request_free(request);
  peer->closed = true;
  peer->core->any_closed_ = true;
}

Peer* Core::PeerOf(uint64_t channel) {
  const auto found = channels_.find(channel);
  if (found == channels_.end()) return nullptr;
  Peer* peer = found->second;
  if (peer->failed || peer->remote_channel == 0) return nullptr;
  peer->heard = last_check_;
  peer->pings = 0;
  return peer;
}

// ---- Hello ----

absl::StatusOr<std::shared_ptr<Peer>> Core::Greet(const std::shared_ptr<Link>& link, const sockaddr* address,
                                                  socklen_t address_bytes, std::string name) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr.addr = address;
  params.sockaddr.addrlen = address_bytes;
  PERIGEE_ASSIGN_OR_RETURN(std::shared_ptr<Peer> peer, OpenPeer(params, std::move(name), /*accepted=*/false));
  peer->link = link;
  sockaddr_storage remote{};
  std::memcpy(&remote, address, std::min<size_t>(address_bytes, sizeof(remote)));
  peer->host = AddressHost(remote);
  Hello hello;
  hello.version_min = kProtocolMin;
  hello.version_max = kProtocolMax;
  hello.context_id = shared_->id;
  hello.channel = peer->channel;
  hello.machine = shared_->machine;
  hello.token = link->token;
  hello.ports = shared_->guard.Ports();
  SendNote(peer.get(), kHelloId, "", EncodeHello(hello));
  return peer;
}

void Core::SendNote(Peer* peer, unsigned am_id, std::string header, std::string payload) {
  if (peer->failed) return;
  // They answer the peer, mostly: one that takes none may not make us keep them all.
  if (peer->owed_bytes > kMaxOwedBytes) {
    return FailPeer(peer, absl::ResourceExhaustedError(absl::StrCat(peer->name, " does not take its answers")));
  }
  auto* note = new Note{peers_.at(peer), am_id, std::move(header), std::move(payload)};
  peer->owed_bytes += note->bytes();
  Send([note] { SendNow(note); });
}

void Core::OnHello(const void*, size_t, void* data, size_t length, const ucp_am_recv_param_t* param, bool*) {
  if (IsRendezvous(param) || (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return;
  const auto found = by_handle_.find(param->reply_ep);
  if (found == by_handle_.end()) return;
  Peer* peer = found->second;
  if (!peer->accepted || peer->failed || peer->remote_channel != 0) return;
  if (peer->refused) {  // one token a connection
    return FailPeer(peer, absl::PermissionDeniedError(absl::StrCat(peer->name, " was refused and asks again")));
  }
  const absl::StatusOr<Hello> hello = DecodeHello({static_cast<const char*>(data), length});
  if (!hello.ok()) {
    shared_->counters.refused_peers++;
    FailPeer(peer, hello.status());
    return;
  }
  const std::string to(reinterpret_cast<const char*>(&hello->channel), sizeof(hello->channel));
  HelloAnswer answer;
  answer.context_id = shared_->id;
  answer.machine = shared_->machine;
  const absl::StatusOr<uint16_t> version = AgreeOnVersion(kProtocolMin, kProtocolMax, *hello);
  absl::StatusOr<PeerIdentity> identity =
      version.ok() ? shared_->Authenticate(*hello) : absl::StatusOr<PeerIdentity>(version.status());
  if (!identity.ok()) {
    // The peer is told why, and closes; if it does not, the hello's time limit ends it.
    shared_->counters.refused_peers++;
    peer->refused = true;
    spdlog::warn("transport: refused {}: {}", peer->name, std::string(identity.status().message()));
    answer.code = static_cast<uint32_t>(identity.status().code());
    answer.message = std::string(identity.status().message());
    SendNote(peer, kHelloAnswerId, to, EncodeHelloAnswer(answer));
    return;
  }
  peer->remote_channel = hello->channel;
  peer->identity = *std::move(identity);
  peer->heard = absl::Now();
  peer->ready = true;
  shared_->counters.connections_accepted++;
  answer.version = *version;
  answer.ports = shared_->guard.Ports();
  shared_->guard.Harden(peer->host, hello->ports);
  answer.channel = peer->channel;
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    for (const RailAddress& rail : shared_->rail_addresses) {
      answer.rail_hosts.push_back(rail.host);
      answer.rail_ports.push_back(rail.port);
    }
  }
  SendNote(peer, kHelloAnswerId, to, EncodeHelloAnswer(answer));
}

void Core::OnHelloAnswer(const void* header, size_t header_length, void* data, size_t length,
                         const ucp_am_recv_param_t* param, bool*) {
  uint64_t channel = 0;
  if (IsRendezvous(param) || !ReadHeader(header, header_length, &channel)) return;
  const auto found = channels_.find(channel);
  if (found == channels_.end()) return;
  Peer* peer = found->second;
  if (peer->accepted || peer->failed || peer->remote_channel != 0) return;
  const std::shared_ptr<Link> link = peer->link.lock();
  const absl::StatusOr<HelloAnswer> answer = DecodeHelloAnswer({static_cast<const char*>(data), length});
  if (link == nullptr || !answer.ok()) {
    FailPeer(peer, absl::UnavailableError(
                       absl::StrCat("the peer at ", peer->name, " answers in another protocol; run the same release")));
    return;
  }
  if (answer->code != 0) {
    FailPeer(peer, absl::Status(static_cast<absl::StatusCode>(std::min<uint32_t>(answer->code, 16)), answer->message));
    return;
  }
  bool same = true, needed = true;
  {
    std::lock_guard<std::mutex> lock(link->mutex);
    const bool first = link->version == 0;
    same = first || link->peer_id == answer->context_id;
    needed = !link->Has(rail_);  // else an earlier or later try of this rail was quicker
    if (same && needed) {
      peer->remote_channel = answer->channel;
      if (first) {
        link->peer_id = answer->context_id;
        link->same_machine = !shared_->machine.empty() && answer->machine == shared_->machine;
        link->version = answer->version;
        for (size_t i = 0; i < answer->rail_hosts.size(); ++i) {
          link->addresses.push_back({answer->rail_hosts[i], answer->rail_ports[i]});
        }
      }
      if (link->rails.size() <= rail_) link->rails.resize(rail_ + 1);
      link->rails[rail_] = peers_.at(peer);
      link->alive++;
      peer->ready = true;
    }
  }
  if (!needed) return FailPeer(peer, absl::CancelledError("this rail is connected already"));
  if (!same) {
    // Another process has taken the address. The rails that are left will find out for themselves.
    FailPeer(peer, absl::UnavailableError(absl::StrCat("the peer at ", peer->name, " has been restarted")));
    return;
  }
  shared_->guard.Harden(peer->host, answer->ports);
  peer->heard = absl::Now();
  std::erase_if(lost_rails_, [&](const LostRail& lost) { return lost.link.lock() == link; });
  HelloEnded(peer, absl::OkStatus());
}

void Core::HelloEnded(Peer* peer, const absl::Status& status) {
  if (peer->hello_done.Happened()) return;
  peer->hello_status = status;
  peer->hello_done.Notify();
}

// ---- Signs of life ----

void Core::KeepAlive(absl::Time now) {
  const absl::Duration interval = shared_->options.keepalive;
  for (auto& [raw, peer] : peers_) {
    if (peer->failed) continue;
    if (peer->remote_channel == 0) {
      if (now - peer->opened > kHelloLimit) {
        if (peer->accepted && !peer->refused) shared_->counters.refused_peers++;
        FailPeer(raw, absl::UnavailableError(absl::StrCat(peer->name, " did not say hello in time")));
      }
      continue;
    }
    // Only what was asked counts as unanswered: this side may have been the one that did not look.
    const absl::Duration silent = now - peer->heard;
    if (silent <= interval || now - peer->pinged <= interval) continue;
    if (peer->pings == kMissedAnswers) {
      FailPeer(raw, absl::UnavailableError(absl::StrCat("no sign of life from ", peer->name, " for ",
                                                        absl::FormatDuration(silent), "; connect again")));
    } else {
      peer->pinged = now;
      peer->pings++;
      const PingHeader ping{peer->remote_channel, 0};
      SendNote(raw, kPingId, std::string(reinterpret_cast<const char*>(&ping), sizeof(ping)), "");
    }
  }
}

void Core::OnPing(const void* header, size_t header_length, void*, size_t, const ucp_am_recv_param_t*, bool*) {
  PingHeader ping;
  if (!ReadHeader(header, header_length, &ping)) return;
  Peer* peer = PeerOf(ping.channel);
  if (peer == nullptr || ping.is_answer != 0) return;
  const PingHeader answer{peer->remote_channel, 1};
  SendNote(peer, kPingId, std::string(reinterpret_cast<const char*>(&answer), sizeof(answer)), "");
}

void Core::RetryRails(absl::Time now) {
  for (size_t i = 0; i < lost_rails_.size();) {
    LostRail& lost = lost_rails_[i];
    const std::shared_ptr<Link> link = lost.link.lock();
    bool wanted = link != nullptr;
    if (wanted) {
      std::lock_guard<std::mutex> lock(link->mutex);
      wanted = !link->closed && link->alive > 0 && rail_ < link->addresses.size() && !link->Has(rail_);
    }
    if (!wanted) {
      lost_rails_.erase(lost_rails_.begin() + static_cast<ptrdiff_t>(i));
      continue;
    }
    if (now >= lost.next_try) {
      lost.pause = std::min(lost.pause * 2, kLongestRetry);
      lost.next_try = now + lost.pause;
      const RailAddress& rail = link->addresses[rail_];
      const absl::StatusOr<SocketAddress> address = ParseAddress(rail.host, rail.port);
      if (address.ok()) {
        Greet(link, address->get(), address->length, absl::StrCat(rail.host, ":", rail.port)).status().IgnoreError();
      }
    }
    ++i;
  }
}

}  // namespace perigee::transport::internal
