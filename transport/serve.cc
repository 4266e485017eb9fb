// The owner's side of transfers by messages: what peers put into and get from this context's regions. The owner's
// program is not involved, only whoever drives the rail. Everything here runs as driver.
//
// The ways of the bytes: what a peer puts comes with its message (up to kEagerBytes) or, a large single piece of host
// memory, straight into the region by UCX's rendezvous. What it gets is sent from where it lies, if that is host
// memory. All else goes through a slot. So does everything that a peer that is not trusted gets, or puts by rendezvous:
// UCX waits for the peer, and by the time it moves the bytes, the lease that allowed them may have ended and the memory
// may be another's.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status.h"
#include "spdlog/spdlog.h"
#include "transport/core.h"

namespace perigee::transport::internal {
namespace {

constexpr size_t kMaxServes = 1024;  // of one peer; each may hold a table of pieces
constexpr size_t kSlotsPerPeer = 8;  // so that one that stalls leaves some to others
constexpr absl::Duration kServeLimit = absl::Seconds(30);

std::span<const std::byte> BytesOf(const WirePiece& piece) {
  return {reinterpret_cast<const std::byte*>(piece.address), piece.size};
}

size_t TableBytes(const OpHeader& request) { return request.pieces == 1 ? 0 : request.pieces * sizeof(WirePiece); }

}  // namespace

template <void (Core::*method)(const void*, size_t, void*, size_t, const ucp_am_recv_param_t*, bool*)>
ucs_status_t Core::OnAm(void* core, const void* header, size_t header_length, void* data, size_t length,
                        const ucp_am_recv_param_t* param) {
  bool keep = false;
  auto* self = static_cast<Core*>(core);
  (self->*method)(header, header_length, data, length, param, &keep);
  if (!keep && IsRendezvous(param)) {  // UCX would send the refusal at once
    keep = true;
    self->AfterProgress([self, data] { ucp_am_data_release(self->worker_, data); });
  }
  return keep ? UCS_INPROGRESS : UCS_OK;
}

absl::Status Core::SetAmHandlers() {
  const std::pair<unsigned, ucp_am_recv_callback_t> handlers[] = {
      {kHelloId, &OnAm<&Core::OnHello>},     {kHelloAnswerId, &OnAm<&Core::OnHelloAnswer>},
      {kPingId, &OnAm<&Core::OnPing>},       {kMessageId, &OnAm<&Core::OnMessage>},
      {kPutId, &OnAm<&Core::OnPut>},         {kGetId, &OnAm<&Core::OnGet>},
      {kGetDataId, &OnAm<&Core::OnGetData>}, {kAnswerId, &OnAm<&Core::OnAnswer>},
      {kCopiedId, &OnAm<&Core::OnCopied>}};
  const auto set = [&](unsigned id, ucp_am_recv_callback_t callback) {
    ucp_am_handler_param_t handler{};
    handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                         UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    handler.id = id;
    handler.flags = UCP_AM_FLAG_WHOLE_MSG;
    handler.cb = callback;
    handler.arg = this;
    return UcxError("ucp_worker_set_am_recv_handler", ucp_worker_set_am_recv_handler(worker_, &handler));
  };
  // Every id that a message can carry, from the last one, so that the table grows once: UCX 1.13 leaves gaps in it
  // uninitialised, reads behind its end, and jumps to what it finds there. It takes 1.5 MiB.
  for (unsigned id = UINT16_MAX + 1; id-- > 0;) PERIGEE_RETURN_IF_ERROR(set(id, &OnAm<&Core::OnNothing>));
  for (const auto& [id, callback] : handlers) PERIGEE_RETURN_IF_ERROR(set(id, callback));
  return absl::OkStatus();
}

// Null for requests that make no sense, and from peers that ask for too much at once.
std::unique_ptr<Serve> Core::NewServe(const void* header, size_t header_length, bool put) {
  auto serve = std::make_unique<Serve>();
  if (!ReadHeader(header, header_length, &serve->request)) return nullptr;
  Peer* peer = PeerOf(serve->request.channel);
  if (peer == nullptr) return nullptr;
  const OpHeader& request = serve->request;
  if (request.size == 0 || request.size > (request.pieces == 1 ? kOpBytes : kPackedBytes) || request.pieces == 0 ||
      request.pieces > kMaxPieces || peer->serving == kMaxServes) {
    FailPeer(peer, absl::InvalidArgumentError(absl::StrCat(peer->name, " asks for what this protocol does not have")));
    return nullptr;
  }
  serve->peer = peers_.at(peer);
  serve->put = put;
  serve->since = absl::Now();
  return serve;
}

void Core::AddServe(std::unique_ptr<Serve> serve) {
  serve->peer->serving++;
  Serve* raw = serve.get();
  serves_[raw] = std::move(serve);
}

// Whether the pieces lie in a region of ours, and this peer may reach them now.
absl::Status Core::Check(Serve* serve) {
  const std::shared_ptr<Region> region = shared_->FindRegion(serve->request.region);
  if (region == nullptr) return absl::OutOfRangeError("no such region");
  const PeerIdentity& identity = serve->peer->identity;
  // The peers that this side connected to serve us; they have no business in our memory but what is open to all.
  const bool leased = region->sharing == Sharing::kLeased && (serve->put || !identity.trusted);
  const uint64_t session = identity.trusted ? kTrustedSession : identity.session;
  const absl::Time now = leased ? SteadyNow() : absl::InfinitePast();
  for (const WirePiece& piece : serve->pieces) {
    if (!region->Contains(piece.address, piece.size)) return absl::OutOfRangeError("outside of the region");
    if (leased &&
        !shared_->grants.Allows(session, piece.address, piece.size, serve->put ? Access::kWrite : Access::kRead, now)) {
      return absl::PermissionDeniedError("no grant");
    }
  }
  serve->region = region;
  return absl::OkStatus();
}

// ---- Put ----

void Core::OnPut(const void* header, size_t header_length, void* data, size_t length, const ucp_am_recv_param_t* param,
                 bool* keep) {
  std::unique_ptr<Serve> owned = NewServe(header, header_length, /*put=*/true);
  if (owned == nullptr) return;
  Serve* serve = owned.get();
  const OpHeader& request = serve->request;
  const size_t table_bytes = TableBytes(request);
  if (length != table_bytes + request.size) {
    FailPeer(serve->peer.get(), absl::InvalidArgumentError("a put's payload has another size than it says"));
    return;
  }
  AddServe(std::move(owned));
  if (!IsRendezvous(param)) {
    absl::Status status = ReadPieces(request, data, length, &serve->pieces)
                              ? Check(serve)
                              : absl::InvalidArgumentError("a put's pieces do not add up");
    if (!status.ok()) return EndServe(serve, status);
    const std::byte* bytes = static_cast<const std::byte*>(data) + table_bytes;
    if (serve->region->kind != MemoryKind::kDevice) return Scatter(serve, bytes);
    // The device copies later, the message goes now.
    serve->region = nullptr;
    serve->stash.assign(bytes, bytes + request.size);
    return RunServe(serve);
  }
  if (request.pieces == 1) {
    serve->pieces = {{request.address, request.size}};
    const absl::Status status = Check(serve);
    if (!status.ok()) return EndServe(serve, status);
    serve->straight = serve->peer->identity.trusted && serve->region->kind != MemoryKind::kDevice;
    serve->region = nullptr;  // checked again when it is this one's turn, or the bytes are here
  }
  *keep = true;
  serve->descriptor = data;
  serve->descriptor_bytes = length;
  serve->straight ? QueueReceive(serve->peer, {.serve = serve}) : RunServe(serve);
}

void Core::ReceivePut(Serve* serve) {
  if (serve->straight) {
    const absl::Status status = Check(serve);
    if (!status.ok()) return EndServe(serve, status);
    if (serve->region->sums != nullptr) serve->put_sum = serve->region->sums->Begin(BytesOf(serve->pieces[0]));
  }
  std::byte* to = serve->straight ? reinterpret_cast<std::byte*>(serve->request.address) : serve->slot->memory;
  serve->outstanding = true;
  const absl::Status status =
      Receive(serve->peer.get(), &serve->descriptor, to, serve->descriptor_bytes, &Core::OnServeReceived, serve);
  if (status.ok()) return;
  serve->outstanding = false;
  EndServe(serve, status);
}

void Core::OnServeReceived(void* request, ucs_status_t status, size_t, void* arg) {
  auto* serve = static_cast<Serve*>(arg);
  Core* core = serve->peer->core.get();
  ucp_request_free(request);
  serve->outstanding = false;
  core->ReceiveEnded(serve->peer);
  if (status != UCS_OK || serve->peer->failed) return core->EndServe(serve, absl::UnavailableError("receive"));
  if (serve->straight && serve->region->sums != nullptr) {
    serve->outstanding = true;  // nobody ends it before
    return core->AfterProgress([core, serve] { core->SumStraight(serve); });
  }
  if (serve->straight) return core->EndServe(serve, absl::OkStatus());
  const std::byte* data = serve->slot->memory;
  absl::Status checked = ReadPieces(serve->request, data, serve->descriptor_bytes, &serve->pieces)
                             ? core->Check(serve)
                             : absl::InvalidArgumentError("a put's pieces do not add up");
  if (!checked.ok()) return core->EndServe(serve, checked);
  core->Scatter(serve, data + TableBytes(serve->request));
}

// After the next one has been asked for, so that the wire is busy meanwhile.
void Core::SumStraight(Serve* serve) {
  serve->outstanding = false;
  serve->region->sums->End(BytesOf(serve->pieces[0]), serve->put_sum);
  EndServe(serve, serve->peer->failed ? absl::UnavailableError("receive") : absl::OkStatus());
}

// The peer has copied a put by itself. It is believed in where, not in what.
void Core::OnCopied(const void* header, size_t header_length, void* data, size_t length,
                    const ucp_am_recv_param_t* param, bool*) {
  OpHeader copied;
  std::vector<WirePiece> pieces;
  if (IsRendezvous(param) || !ReadHeader(header, header_length, &copied) ||
      !ReadPieces(copied, data, length, &pieces)) {
    return;
  }
  const Peer* peer = PeerOf(copied.channel);
  if (peer == nullptr || !peer->identity.trusted) return;
  const std::shared_ptr<Region> region = shared_->FindRegion(copied.region);
  if (region == nullptr || region->sums == nullptr) return;
  for (const WirePiece& piece : pieces) {
    if (!region->Contains(piece.address, piece.size)) continue;
    const uint32_t put = region->sums->Begin(BytesOf(piece));
    if (piece.size >= PutSums::kGranuleBytes) region->sums->End(BytesOf(piece), put);
  }
}

// The bytes are here, and the pieces were checked just now.
void Core::Scatter(Serve* serve, const std::byte* data) {
  const bool device = serve->region->kind == MemoryKind::kDevice;
  for (const WirePiece& piece : serve->pieces) {
    auto* to = reinterpret_cast<std::byte*>(piece.address);
    if (device) {
      std::lock_guard<std::mutex> lock(shared_->device_mutex);
      const absl::StatusOr<CopyTicket> ticket = shared_->options.device->StartCopyToDevice(to, data, piece.size);
      if (!ticket.ok()) {
        spdlog::error("transport: a put could not be copied to the device: {}", std::string(ticket.status().message()));
        serve->failure = ticket.status();
        break;
      }
      serve->copies.push_back(*ticket);
    } else if (PutSums* sums = serve->region->sums.get(); sums != nullptr) {
      const uint32_t put = sums->Begin(BytesOf(piece));
      std::memcpy(to, data, piece.size);
      if (piece.size >= PutSums::kGranuleBytes) sums->End(BytesOf(piece), put);
    } else {
      std::memcpy(to, data, piece.size);
    }
    data += piece.size;
  }
  if (serve->copies.empty()) {
    EndServe(serve, serve->failure);
  } else {
    copying_serves_.insert(serve);
  }
}

// ---- Get ----

void Core::OnGet(const void* header, size_t header_length, void* data, size_t length, const ucp_am_recv_param_t* param,
                 bool*) {
  if (IsRendezvous(param) && length > kMaxPieces * sizeof(WirePiece)) return;
  std::unique_ptr<Serve> owned = NewServe(header, header_length, /*put=*/false);
  if (owned == nullptr) return;
  Serve* serve = owned.get();
  AddServe(std::move(owned));
  if (IsRendezvous(param) || !ReadPieces(serve->request, data, length, &serve->pieces)) {
    return EndServe(serve, absl::InvalidArgumentError("a get's pieces do not add up"));
  }
  const absl::Status status = Check(serve);
  if (!status.ok()) return EndServe(serve, status);
  if (serve->region->kind != MemoryKind::kDevice && serve->peer->identity.trusted) {
    for (const WirePiece& piece : serve->pieces) {
      AddPart(serve->parts, reinterpret_cast<const std::byte*>(piece.address), piece.size);
    }
    return SendData(serve);
  }
  serve->region = nullptr;  // checked again when there is a slot
  RunServe(serve);
}

// Gathers into the slot.
void Core::SendGet(Serve* serve) {
  const absl::Status status = Check(serve);
  if (!status.ok()) return EndServe(serve, status);
  const bool device = serve->region->kind == MemoryKind::kDevice;
  std::byte* to = serve->slot->memory;
  serve->parts = {{to, serve->request.size}};
  for (const WirePiece& piece : serve->pieces) {
    const auto* from = reinterpret_cast<const std::byte*>(piece.address);
    if (device) {
      std::lock_guard<std::mutex> lock(shared_->device_mutex);
      const absl::StatusOr<CopyTicket> ticket = shared_->options.device->StartCopyToHost(to, from, piece.size);
      if (!ticket.ok()) {
        spdlog::error("transport: a get could not be copied from the device: {}",
                      std::string(ticket.status().message()));
        serve->failure = ticket.status();
        break;
      }
      serve->copies.push_back(*ticket);
    } else {
      std::memcpy(to, from, piece.size);
    }
    to += piece.size;
  }
  if (!serve->copies.empty()) {
    copying_serves_.insert(serve);
  } else if (!serve->failure.ok()) {
    EndServe(serve, serve->failure);
  } else {
    SendData(serve);
  }
}

void Core::SendData(Serve* serve) {
  serve->outstanding = true;  // nobody ends it before
  Send([this, serve] { SendDataNow(serve); });
}

void Core::SendDataNow(Serve* serve) {
  serve->outstanding = false;
  if (serve->peer->failed) return EndServe(serve, absl::UnavailableError("send"));
  serve->header = {serve->peer->remote_channel, serve->request.op};
  ucp_request_param_t send{};
  send.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  const void* data = serve->parts[0].buffer;
  size_t count = serve->request.size;
  if (serve->parts.size() > 1) {
    data = serve->parts.data();
    count = serve->parts.size();
    send.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
    send.datatype = ucp_dt_make_iov();
  }
  send.flags = SendFlag(serve->request.size);
  send.cb.send = &Core::OnServeSent;
  send.user_data = serve;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(serve->peer->handle, kGetDataId, &serve->header, sizeof(serve->header), data, count, &send);
  serve->outstanding = UCS_PTR_IS_PTR(request);
  if (!serve->outstanding) {
    return EndServe(serve, request == nullptr ? absl::OkStatus() : absl::UnavailableError("send"));
  }
  if (IsLong(serve->request.size)) long_sends_++;
}

void Core::OnServeSent(void* request, ucs_status_t status, void* arg) {
  auto* serve = static_cast<Serve*>(arg);
  ucp_request_free(request);
  serve->outstanding = false;
  if (IsLong(serve->request.size)) serve->peer->core->long_sends_--;
  if (status != UCS_OK) OnPeerError(serve->peer.get(), nullptr, status);  // no answer goes there any more
  serve->peer->core->EndServe(serve, status == UCS_OK ? absl::OkStatus() : absl::UnavailableError("send"));
}

// ---- Slots, ends ----

bool Core::TakeServeSlot(Serve* serve) {
  if (serve->peer->slots == kSlotsPerPeer) return false;
  const absl::StatusOr<Slot*> slot = serve_slots_.Take();
  if (!slot.ok() || *slot == nullptr) return false;
  serve->slot = *slot;
  serve->peer->slots++;
  return true;
}

void Core::RunServe(Serve* serve) {
  if (!TakeServeSlot(serve)) {
    if (!serve->waiting) waiting_serves_.push_back(serve);
    serve->waiting = true;
    return;
  }
  serve->waiting = false;
  if (!serve->put) return SendGet(serve);
  if (serve->stash.empty()) return QueueReceive(serve->peer, {.serve = serve});
  const absl::Status status = Check(serve);
  if (!status.ok()) return EndServe(serve, status);
  std::memcpy(serve->slot->memory, serve->stash.data(), serve->stash.size());
  serve->stash = {};
  Scatter(serve, serve->slot->memory);
}

void Core::EndServe(Serve* serve, const absl::Status& status) {
  Peer* peer = serve->peer.get();
  if (status.ok()) {
    peer->served = last_check_;  // slow is not stalled
    shared_->counters.served_bytes += serve->request.size;
  } else if (!absl::IsUnavailable(status)) {
    shared_->counters.refused_serves++;
  }
  if (!peer->failed && (serve->put || !status.ok())) {
    const AnswerHeader answer{peer->remote_channel, serve->request.op, static_cast<uint32_t>(status.code()), 0};
    SendNote(peer, kAnswerId, std::string(reinterpret_cast<const char*>(&answer), sizeof(answer)), "");
  }
  DropServe(serve);
}

void Core::DropServe(Serve* serve) {
  DropReceive(serve->peer.get(), &serve->descriptor, serve);
  if (serve->slot != nullptr) {
    serve_slots_.Give(serve->slot);
    serve->peer->slots--;
    slot_freed_ = true;
  }
  if (serve->waiting) std::erase(waiting_serves_, serve);
  copying_serves_.erase(serve);
  serve->peer->serving--;
  serves_.erase(serve);
}

void Core::PollServes(absl::Time now) {
  for (auto it = copying_serves_.begin(); it != copying_serves_.end();) {
    Serve* serve = *it++;
    absl::Status status;
    if (!PollCopies(serve->copies, &status)) continue;
    copying_serves_.erase(serve);
    serve->failure.Update(status);
    if (serve->peer->failed) continue;  // dropped below
    serve->put || !serve->failure.ok() ? EndServe(serve, serve->failure) : SendData(serve);
  }
  std::vector<Serve*> over;
  for (const auto& [serve, owned] : serves_) {
    if (now - std::max(serve->since, serve->peer->served) > kServeLimit && !serve->peer->failed) {
      FailPeer(serve->peer.get(),
               absl::DeadlineExceededError(absl::StrCat(serve->peer->name, " stalls its transfers")));
    }
    if (serve->peer->failed && !serve->outstanding && serve->copies.empty()) over.push_back(serve);
  }
  for (Serve* serve : over) {
    if (serves_.contains(serve)) DropServe(serve);  // what one lets go of may end others
  }
  if (!slot_freed_) return;
  slot_freed_ = false;
  // Those whose peer has its share go on waiting; the others move up.
  for (size_t n = waiting_serves_.size(); n > 0 && !waiting_serves_.empty(); --n) {
    Serve* serve = waiting_serves_.front();
    waiting_serves_.pop_front();
    serve->waiting = false;
    RunServe(serve);
  }
}

}  // namespace perigee::transport::internal
