// The initiator's side of transfers: a rail takes operations and brings each to its end. Everything here runs as
// driver.
//
//   put:  kPutId{op, region, address} + [table] + data  ->  the owner stores it     -> kAnswerId{op, code}
//   get:  kGetId{op, region, address, size} + [table]   ->  the owner sends it: kGetDataId{op} + data, or kAnswerId{op,
//   code}
//
// UCX offers put and get over tcp too, emulated, but in 1.13 the emulation ends the *serving* process when the
// initiator dies in mid-transfer ("Fatal: unexpected error" in ucp_get_req_handler), copies through 8 KiB fragments,
// and lets any peer write anywhere. Large payloads of active messages move by UCX's rendezvous, straight between the
// two buffers.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/crc32c.h"
#include "transport/core.h"

namespace perigee::transport::internal {
namespace {

constexpr size_t kWindow = 16;                   // operations of one transfer under way per rail
constexpr size_t kRoundBytes = size_t{4} << 20;  // copied through a mapping before others get their turn
constexpr size_t kPeerWindow = 512;              // of all transfers with one peer, which serves no more than twice that
constexpr size_t kOneSidedWindow = 256;          // UCX requests

// Copies a piece, and sums it where asked.
void Move(std::byte* to, const std::byte* from, size_t size, bool sum, uint32_t* crc32c) {
  if (sum) {
    *crc32c = Crc32cCopy(to, {from, size});
  } else {
    std::memcpy(to, from, size);
  }
}

// An operation's header but for its number, and its table, neighbours joined; empty for a single piece.
OpHeader HeaderOf(const RailTransfer& rail, const Operation& operation, std::vector<WirePiece>* table) {
  Transfer& transfer = *rail.transfer;
  for (const Piece& piece : transfer.PiecesOf(operation)) {
    const uint64_t remote = transfer.Remote(piece);
    if (!table->empty() && table->back().address + table->back().size == remote) {
      table->back().size += piece.size;
    } else {
      table->push_back({remote, piece.size});
    }
  }
  const OpHeader header{.channel = rail.peer->remote_channel,
                        .region = transfer.Key(operation)->region_id,
                        .address = table->front().address,
                        .size = operation.size,
                        .pieces = static_cast<uint32_t>(table->size())};
  if (table->size() == 1) table->clear();
  return header;
}

// Other rails look for what this one returned or finished.
void Kick(const Transfer& transfer, const Core* self) {
  if (transfer.link->shared->rails.size() == 1) return;
  for (const std::shared_ptr<Core>& rail : transfer.link->shared->rails) {
    if (rail.get() != self) rail->Post([core = rail.get()] { core->SetDirty(); });
  }
}

}  // namespace

void Core::AddTransfer(std::shared_ptr<Transfer> transfer, std::shared_ptr<Peer> peer) {
  if (absl::Now() >= transfer->deadline) {
    transfer->Fail(absl::DeadlineExceededError("the deadline had passed before the operation started"));
  }
  auto rail = std::make_unique<RailTransfer>();
  rail->transfer = std::move(transfer);
  rail->peer = std::move(peer);
  transfers_.push_back(std::move(rail));
  dirty_ = true;
}

bool Core::AdvanceTransfer(RailTransfer* rail) {
  Transfer* transfer = rail->transfer.get();
  Peer* peer = rail->peer.get();
  if (!peer->failed && !transfer->failed()) Issue(rail);
  if (!rail->one_sided_ops.empty() && rail->outstanding == 0 && !peer->failed) {
    if (transfer->direction == Direction::kPut && !rail->flushing) {
      rail->flushing = true;
      ucp_request_param_t param{};
      param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
      param.cb.send = &Core::OnOneSided;
      param.user_data = rail;
      Requested(rail, ucp_ep_flush_nbx(peer->handle, &param), "flush");
    }
    if (rail->outstanding == 0 && !peer->failed) {
      rail->flushing = false;
      for (const uint32_t op : rail->one_sided_ops) {
        if (transfer->checksums) {
          for (Piece& piece : transfer->PiecesOf(transfer->operations[op])) {
            piece.crc32c = Crc32c({transfer->Local(piece), piece.size});
          }
        }
        transfer->OpDone(op);
      }
      rail->one_sided_ops.clear();
      dirty_ = true;
    }
  }
  if (peer->failed) {
    if (!rail->idle() || !peer->closed) return false;
    std::vector<uint32_t> unfinished = rail->one_sided_ops;
    while (!rail->ops.empty()) {
      WireOp* op = rail->ops.begin()->second.get();
      if (op->op != UINT32_MAX) unfinished.push_back(op->op);
      FreeOp(op);
    }
    transfer->Detach(unfinished, peer->failure);
    Kick(*transfer, this);
    return true;
  }
  if (!transfer->done.Happened() && !transfer->failed()) return false;
  if (!rail->ops.empty() || !rail->idle() || !rail->one_sided_ops.empty()) return false;
  transfer->Detach({}, absl::OkStatus());
  Kick(*transfer, this);
  return true;
}

void Core::Issue(RailTransfer* rail) {
  Transfer* transfer = rail->transfer.get();
  size_t copied = 0;
  while (rail->ops.size() < kWindow && rail->peer->issued < kPeerWindow && rail->outstanding < kOneSidedWindow &&
         !transfer->failed()) {
    if (copied >= kRoundBytes) {
      dirty_ = true;  // go on in the next round
      return;
    }
    const std::optional<uint32_t> op = transfer->TakeOp();
    if (!op.has_value()) return;
    const Operation& operation = transfer->operations[*op];
    const Path path = transfer->OnDevice(operation) ? Path::kMessages : transfer->Key(operation)->path;
    if (path == Path::kMapped) {
      CopyMapped(rail, *op);
      copied += operation.size;
    } else if (path == Path::kOneSided) {
      IssueOneSided(rail, *op);
    } else if (!IssueOp(rail, *op)) {
      transfer->ReturnOp(*op);
      return;
    }
  }
}

void Core::CopyMapped(RailTransfer* rail, uint32_t op) {
  Transfer* transfer = rail->transfer.get();
  const RemoteKey* key = transfer->Key(transfer->operations[op]);
  for (Piece& piece : transfer->PiecesOf(transfer->operations[op])) {
    std::byte* peer = key->mapped + (transfer->Remote(piece) - key->base);
    std::byte* local = transfer->Local(piece);
    const bool put = transfer->direction == Direction::kPut;
    Move(put ? peer : local, put ? local : peer, piece.size, transfer->checksums, &piece.crc32c);
  }
  if (transfer->direction == Direction::kPut) SendCopied(rail, op);
  transfer->OpDone(op);
  dirty_ = true;
}

// The owner notices what it did not move, and sums it while this side goes on.
void Core::SendCopied(RailTransfer* rail, uint32_t op) {
  std::vector<WirePiece> table;
  const OpHeader copied = HeaderOf(*rail, rail->transfer->operations[op], &table);
  SendNote(rail->peer.get(), kCopiedId, std::string(reinterpret_cast<const char*>(&copied), sizeof(copied)),
           std::string(reinterpret_cast<const char*>(table.data()), table.size() * sizeof(WirePiece)));
}

void Core::IssueOneSided(RailTransfer* rail, uint32_t op) {
  Transfer* transfer = rail->transfer.get();
  const RemoteKey* key = transfer->Key(transfer->operations[op]);
  rail->one_sided_ops.push_back(op);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = &Core::OnOneSided;
  param.user_data = rail;
  ucp_ep_h handle = rail->peer->handle;
  for (const Piece& piece : transfer->PiecesOf(transfer->operations[op])) {
    std::byte* local = transfer->Local(piece);
    const uint64_t remote = transfer->Remote(piece);
    if (transfer->direction == Direction::kPut) {
      Requested(rail, ucp_put_nbx(handle, local, piece.size, remote, key->handle, &param), "put");
    } else {
      Requested(rail, ucp_get_nbx(handle, local, piece.size, remote, key->handle, &param), "get");
    }
  }
}

void Core::Requested(RailTransfer* rail, ucs_status_ptr_t request, const char* what) {
  if (UCS_PTR_IS_ERR(request)) {
    FailPeer(rail->peer.get(), UcxError(absl::StrCat(what, " with ", rail->peer->name), UCS_PTR_STATUS(request)));
  } else if (request != nullptr) {
    rail->outstanding++;
  }
}

void Core::OnOneSided(void* request, ucs_status_t status, void* arg) {
  auto* rail = static_cast<RailTransfer*>(arg);
  ucp_request_free(request);
  rail->outstanding--;
  Core* core = rail->peer->core.get();
  core->dirty_ = true;
  // An operation that was accepted fails only because its connection does.
  if (status != UCS_OK) OnPeerError(rail->peer.get(), nullptr, status);
}

// ---- Operations by messages ----

// False when it must wait for a staging buffer.
bool Core::IssueOp(RailTransfer* rail, uint32_t index) {
  Transfer* transfer = rail->transfer.get();
  const Operation& operation = transfer->operations[index];
  const std::span<Piece> pieces = transfer->PiecesOf(operation);
  const bool put = transfer->direction == Direction::kPut;
  Slot* slot = nullptr;
  if (transfer->OnDevice(operation)) {
    const absl::StatusOr<Slot*> taken = op_slots_.Take();
    if (!taken.ok()) {
      transfer->Fail(taken.status());
      return false;
    }
    if (*taken == nullptr) return false;
    slot = *taken;
  }
  auto owned = std::make_unique<WireOp>();
  WireOp* op = owned.get();
  op->owner = rail;
  op->id = NewId();
  op->op = index;
  op->slot = slot;
  op->header = HeaderOf(*rail, operation, &op->table);
  op->header.op = op->id;
  ops_[op->id] = op;
  rail->ops[op->id] = std::move(owned);
  rail->unanswered++;
  rail->peer->issued++;
  if (!put || slot == nullptr) {
    SendOp(op);
    return true;
  }
  const size_t table_bytes = op->table.size() * sizeof(WirePiece);
  std::memcpy(slot->memory, op->table.data(), table_bytes);
  std::byte* to = slot->memory + table_bytes;
  for (Piece& piece : pieces) {
    std::lock_guard<std::mutex> lock(shared_->device_mutex);
    const absl::StatusOr<CopyTicket> ticket =
        shared_->options.device->StartCopyToHost(to, transfer->Local(piece), piece.size);
    if (!ticket.ok()) {
      transfer->Fail(ticket.status());
      break;
    }
    op->copies.push_back(*ticket);
    to += piece.size;
  }
  if (op->copies.empty()) {
    FreeOp(op);
  } else {
    rail->copying++;
    copying_ops_.insert(op);
  }
  return true;
}

void Core::SendOp(WireOp* op) {
  RailTransfer* rail = op->owner;
  Transfer* transfer = rail->transfer.get();
  const Operation& operation = transfer->operations[op->op];
  const size_t table_bytes = op->table.size() * sizeof(WirePiece);
  const bool put = transfer->direction == Direction::kPut;
  ucp_request_param_t param{};
  const void* payload = op->table.data();
  size_t count = table_bytes;
  if (put && op->slot != nullptr) {
    payload = op->slot->memory;
    count += operation.size;
  } else if (put && (operation.direct || operation.pieces == 1)) {
    payload = transfer->Local(transfer->PiecesOf(operation)[0]);
    count = operation.size;
  } else if (put) {
    if (table_bytes > 0) op->parts.push_back({op->table.data(), table_bytes});
    for (const Piece& piece : transfer->PiecesOf(operation)) AddPart(op->parts, transfer->Local(piece), piece.size);
    payload = op->parts.data();
    count = op->parts.size();
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
    param.datatype = ucp_dt_make_iov();
  }
  param.op_attr_mask |= UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.cb.send = &Core::OnOpSent;
  param.user_data = op;
  param.flags = SendFlag(table_bytes + (put ? operation.size : 0));
  const ucs_status_ptr_t request = ucp_am_send_nbx(rail->peer->handle, put ? kPutId : kGetId, &op->header,
                                                   sizeof(op->header), payload, count, &param);
  op->sending = UCS_PTR_IS_PTR(request);
  op->is_long = op->sending && IsLong(table_bytes + (put ? operation.size : 0));
  if (op->is_long) long_sends_++;
  Requested(rail, request, put ? "put" : "get");
  if (put && op->slot == nullptr && transfer->checksums) {  // while the wire is busy
    for (Piece& piece : transfer->PiecesOf(operation)) piece.crc32c = Crc32c({transfer->Local(piece), piece.size});
  }
}

void Core::OnOpSent(void* request, ucs_status_t status, void* arg) {
  auto* op = static_cast<WireOp*>(arg);
  RailTransfer* rail = op->owner;
  Core* core = rail->peer->core.get();
  ucp_request_free(request);
  if (op->is_long) core->long_sends_--;
  op->sending = false;
  rail->outstanding--;
  core->dirty_ = true;
  if (status != UCS_OK) {
    OnPeerError(rail->peer.get(), nullptr, status);
    return;
  }
  core->OpEnded(op);
}

void Core::OnAnswer(const void* header, size_t header_length, void*, size_t, const ucp_am_recv_param_t*, bool*) {
  AnswerHeader answer;
  if (!ReadHeader(header, header_length, &answer)) return;
  const Peer* peer = PeerOf(answer.channel);
  const auto found = ops_.find(answer.op);
  if (peer == nullptr || found == ops_.end()) return;
  WireOp* op = found->second;
  RailTransfer* rail = op->owner;
  Transfer* transfer = rail->transfer.get();
  if (rail->peer.get() != peer || op->answered || op->receiving || op->copying_in) return;
  if (answer.code == 0 && transfer->direction == Direction::kGet) return;  // a get ends with data
  if (answer.code != 0) {
    const auto code = static_cast<absl::StatusCode>(std::min<uint32_t>(answer.code, 16));
    const char* why = code == absl::StatusCode::kPermissionDenied
                          ? " does not let this session reach those bytes (no lease, or one that has ended)"
                      : code == absl::StatusCode::kOutOfRange
                          ? " refused the transfer: its region is gone or smaller; fetch the key again"
                          : " could not carry the transfer out; its log says why";
    transfer->Fail(absl::Status(code, absl::StrCat("the peer at ", peer->name, why)));
  }
  op->answered = true;
  rail->unanswered--;
  if (answer.code != 0) op->op = UINT32_MAX;  // not done, and no other rail need try
  OpEnded(op);
}

void Core::OnGetData(const void* header, size_t header_length, void* data, size_t length,
                     const ucp_am_recv_param_t* param, bool* keep) {
  GetDataHeader answer;
  if (!ReadHeader(header, header_length, &answer)) return;
  const Peer* peer = PeerOf(answer.channel);
  const auto found = ops_.find(answer.op);
  if (peer == nullptr || found == ops_.end()) return;
  WireOp* op = found->second;
  RailTransfer* rail = op->owner;
  Transfer* transfer = rail->transfer.get();
  if (rail->peer.get() != peer || transfer->direction != Direction::kGet || op->answered || op->receiving ||
      op->copying_in) {
    return;
  }
  const Operation& operation = transfer->operations[op->op];
  if (length != operation.size) {
    FailPeer(rail->peer.get(), absl::UnavailableError(absl::StrCat("the peer at ", peer->name, " answered a get of ",
                                                                   operation.size, " bytes with ", length)));
    return;
  }
  if (!IsRendezvous(param)) {
    OpArrived(op, static_cast<const std::byte*>(data));
    return;
  }
  if (!operation.direct && op->slot == nullptr) {
    return FailPeer(rail->peer.get(), absl::UnavailableError(absl::StrCat("the peer at ", peer->name, " announces ",
                                                                          length, " bytes as if they were many")));
  }
  *keep = true;
  op->receiving = true;
  op->descriptor = data;
  QueueReceive(rail->peer, {.op = op});
}

void Core::ReceiveGet(WireOp* op) {
  Transfer* transfer = op->owner->transfer.get();
  const Operation& operation = transfer->operations[op->op];
  std::byte* to = operation.direct ? transfer->Local(transfer->PiecesOf(operation)[0]) : op->slot->memory;
  RailTransfer* rail = op->owner;
  rail->outstanding++;
  const absl::Status status = Receive(rail->peer.get(), &op->descriptor, to, operation.size, &Core::OnOpReceived, op);
  if (status.ok()) return;
  rail->outstanding--;
  op->receiving = false;
  FailPeer(rail->peer.get(), status);
}

void Core::OnOpReceived(void* request, ucs_status_t status, size_t, void* arg) {
  auto* op = static_cast<WireOp*>(arg);
  RailTransfer* rail = op->owner;
  Core* core = rail->peer->core.get();
  ucp_request_free(request);
  op->receiving = false;
  rail->outstanding--;
  core->dirty_ = true;
  core->ReceiveEnded(rail->peer);
  if (status != UCS_OK) {
    OnPeerError(rail->peer.get(), nullptr, status);
    return;
  }
  Transfer* transfer = rail->transfer.get();
  const Operation& operation = transfer->operations[op->op];
  core->OpArrived(op, operation.direct ? transfer->Local(transfer->PiecesOf(operation)[0]) : op->slot->memory);
}

// A get's bytes are at `data`: UCX's memory, the slot, or (direct) where they belong.
void Core::OpArrived(WireOp* op, const std::byte* data) {
  RailTransfer* rail = op->owner;
  Transfer* transfer = rail->transfer.get();
  const Operation& operation = transfer->operations[op->op];
  const bool device = transfer->OnDevice(operation);
  if (device && data != op->slot->memory) {
    std::memcpy(op->slot->memory, data, operation.size);
    data = op->slot->memory;
  }
  for (Piece& piece : transfer->PiecesOf(operation)) {
    std::byte* to = transfer->Local(piece);
    if (device) {
      if (transfer->checksums) piece.crc32c = Crc32c({data, piece.size});
      std::lock_guard<std::mutex> lock(shared_->device_mutex);
      const absl::StatusOr<CopyTicket> ticket = shared_->options.device->StartCopyToDevice(to, data, piece.size);
      if (!ticket.ok()) {
        transfer->Fail(ticket.status());
        op->op = UINT32_MAX;
        break;
      }
      op->copies.push_back(*ticket);
    } else if (to != data) {
      Move(to, data, piece.size, transfer->checksums, &piece.crc32c);
    } else if (transfer->checksums) {
      piece.crc32c = Crc32c({data, piece.size});
    }
    data += piece.size;
  }
  op->answered = true;
  rail->unanswered--;
  if (!op->copies.empty()) {
    op->copying_in = true;
    rail->copying++;
    copying_ops_.insert(op);
    return;
  }
  OpEnded(op);
}

void Core::OpEnded(WireOp* op) {
  if (op->sending || op->receiving || !op->answered || !op->copies.empty()) return;
  dirty_ = true;
  if (op->op != UINT32_MAX) op->owner->transfer->OpDone(op->op);
  FreeOp(op);
}

void Core::FreeOp(WireOp* op) {
  DropReceive(op->owner->peer.get(), &op->descriptor, op);
  if (op->slot != nullptr) op_slots_.Give(op->slot);
  if (!op->answered) op->owner->unanswered--;
  op->owner->peer->issued--;
  dirty_ = true;  // somebody may have waited for the slot, or for the window
  ops_.erase(op->id);
  op->owner->ops.erase(op->id);
}

// ---- Device copies ----

// True when none is under way any more; the first error in *status.
bool Core::PollCopies(std::vector<CopyTicket>& copies, absl::Status* status) {
  std::lock_guard<std::mutex> lock(shared_->device_mutex);
  std::erase_if(copies, [&](const CopyTicket& ticket) {
    const absl::StatusOr<bool> ended = shared_->options.device->Poll(ticket);
    if (!ended.ok() && status->ok()) *status = ended.status();
    return !ended.ok() || *ended;
  });
  return copies.empty();
}

void Core::PollOps() {
  for (auto it = copying_ops_.begin(); it != copying_ops_.end();) {
    WireOp* op = *it;
    absl::Status status;
    if (!PollCopies(op->copies, &status)) {
      if (!status.ok()) op->owner->transfer->Fail(status);
      ++it;
      continue;
    }
    it = copying_ops_.erase(it);
    RailTransfer* rail = op->owner;
    Transfer* transfer = rail->transfer.get();
    rail->copying--;
    dirty_ = true;
    if (!status.ok()) transfer->Fail(status);
    if (op->copying_in) {
      if (!status.ok()) op->op = UINT32_MAX;
      OpEnded(op);
      continue;
    }
    if (rail->peer->failed || transfer->failed()) {
      if (!rail->peer->failed) FreeOp(op);  // else with the rail
      continue;
    }
    if (transfer->checksums) {
      const std::byte* data = op->slot->memory + op->table.size() * sizeof(WirePiece);
      for (Piece& piece : transfer->PiecesOf(transfer->operations[op->op])) {
        piece.crc32c = Crc32c({data, piece.size});
        data += piece.size;
      }
    }
    SendOp(op);
  }
}

}  // namespace perigee::transport::internal
