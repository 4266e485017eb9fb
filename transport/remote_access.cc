// One-sided access where the hardware has none (tcp; memory that is not shared): Core's third part, on the progress
// thread.
//
// UCX offers put and get over tcp too, emulated, but in 1.13 the emulation ends the *serving* process when the
// initiator dies in mid-transfer ("Fatal: unexpected error" in ucp_get_req_handler), and it copies through 8 KiB
// fragments. So transfers go by UCX active messages, whose large payloads move by UCX's rendezvous straight between the
// two buffers, and whose errors arrive as statuses:
//
//   put:  initiator  kPutData{op, region, address} + payload ->  owner receives into the region   -> kAnswer{op, code}
//   get:  initiator  kGetRequest{op, region, address, size}  ->  owner sends from the region: kGetData{op} + payload,
//   or kAnswer{op, code}
//
// The owner's caller is not involved, only its progress thread. The owner checks region and bounds: an initiator cannot
// reach past a registered region, nor into one that is gone.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "transport/core.h"

namespace perigee::transport::internal {
namespace {

absl::string_view HeaderView(const void* header, size_t length) { return {static_cast<const char*>(header), length}; }

bool IsRendezvous(const ucp_am_recv_param_t* param) { return (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0; }

// Freed by UCX's callback. For sends whose only buffer is their header.
struct Note {
  std::string header;
};

void OnNoteSent(void* request, ucs_status_t, void* note) {
  ucp_request_free(request);
  delete static_cast<Note*>(note);
}

}  // namespace

absl::Status Core::SetAmHandlers() {
  const std::pair<unsigned, ucp_am_recv_callback_t> handlers[] = {{kMessageId, &Core::OnMessage},
                                                                  {kPutDataId, &Core::OnPutData},
                                                                  {kGetRequestId, &Core::OnGetRequest},
                                                                  {kGetDataId, &Core::OnGetData},
                                                                  {kAnswerId, &Core::OnAnswer}};
  for (const auto& [id, callback] : handlers) {
    ucp_am_handler_param_t handler{};
    handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                         UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    handler.id = id;
    handler.flags = UCP_AM_FLAG_WHOLE_MSG;
    handler.cb = callback;
    handler.arg = this;
    const ucs_status_t status = ucp_worker_set_am_recv_handler(worker_, &handler);
    if (status != UCS_OK) return UcxError("ucp_worker_set_am_recv_handler", status);
  }
  return absl::OkStatus();
}

// ---- The initiator ----

void Core::IssueOp(Batch* batch, std::byte* local, size_t size, uint64_t remote, const RemoteKey* key) {
  auto op = std::make_unique<Op>();
  op->batch = batch;
  op->id = next_op_id_++;
  op->local = local;
  op->size = size;
  ByteWriter writer;
  writer.U64(op->id);
  writer.U64(key->region_id);
  writer.U64(remote);
  if (batch->kind == BatchKind::kGet) writer.U64(size);
  op->header = writer.Take();
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_REPLY;
  param.cb.send = &Core::OnOperation;
  param.user_data = batch;
  const bool put = batch->kind == BatchKind::kPut;
  ops_[op->id] = op.get();
  batch->unanswered++;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(batch->endpoint->handle, put ? kPutDataId : kGetRequestId, op->header.data(), op->header.size(),
                      put ? op->local : nullptr, put ? size : 0, &param);
  if (UCS_PTR_IS_ERR(request)) {
    ops_.erase(op->id);
    batch->unanswered--;
  }
  Issued(batch, request, put ? "put" : "get");
  batch->ops.push_back(std::move(op));
}

void Core::ForgetOps(Batch* batch) {
  for (const auto& op : batch->ops) ops_.erase(op->id);
}

void Core::OpReceived(Op* op) {
  ops_.erase(op->id);
  op->batch->unanswered--;
  dirty_ = true;
}

ucs_status_t Core::OnGetData(void* arg, const void* header, size_t header_length, void* data, size_t length,
                             const ucp_am_recv_param_t* param) {
  auto* core = static_cast<Core*>(arg);
  ByteReader reader(HeaderView(header, header_length));
  const auto found = core->ops_.find(reader.U64());
  if (!reader.ok() || found == core->ops_.end()) return UCS_OK;  // its batch has ended: the data is dropped
  Op* op = found->second;
  Batch* batch = op->batch;
  if (batch->kind != BatchKind::kGet || batch->endpoint->failed) return UCS_OK;
  if (length != op->size) {
    core->FailEndpoint(batch->endpoint.get(),
                       absl::UnavailableError(absl::StrCat("the peer at ", batch->endpoint->peer_name,
                                                           " answered a get of ", op->size, " bytes with ", length)));
    return UCS_OK;
  }
  if (!IsRendezvous(param)) {
    std::memcpy(op->local, data, length);
    core->OpReceived(op);
    return UCS_OK;
  }
  ucp_request_param_t receive{};
  receive.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  receive.cb.recv_am = &Core::OnOpReceived;
  receive.user_data = op;
  const ucs_status_ptr_t request = ucp_am_recv_data_nbx(core->worker_, data, op->local, length, &receive);
  if (UCS_PTR_IS_ERR(request)) {
    core->FailEndpoint(batch->endpoint.get(), UcxError("receive", UCS_PTR_STATUS(request)));
  } else {
    batch->outstanding++;
  }
  return UCS_INPROGRESS;  // the descriptor is the receive's now
}

void Core::OnOpReceived(void* request, ucs_status_t status, size_t, void* arg) {
  auto* op = static_cast<Op*>(arg);
  Core* core = op->batch->endpoint->core.get();
  ucp_request_free(request);
  if (status == UCS_OK) core->OpReceived(op);
  core->Completed(op->batch, status);
}

ucs_status_t Core::OnAnswer(void* arg, const void* header, size_t header_length, void*, size_t,
                            const ucp_am_recv_param_t* param) {
  auto* core = static_cast<Core*>(arg);
  if (IsRendezvous(param)) return UCS_OK;
  ByteReader reader(HeaderView(header, header_length));
  const auto found = core->ops_.find(reader.U64());
  const uint32_t code = reader.U32();
  if (!reader.ok() || found == core->ops_.end()) return UCS_OK;
  Op* op = found->second;
  if (code != 0 && op->batch->error.ok()) {
    op->batch->error =
        absl::Status(static_cast<absl::StatusCode>(std::min<uint32_t>(code, 16)),
                     absl::StrCat("the peer at ", op->batch->endpoint->peer_name,
                                  " refused the transfer: its region is gone or smaller; fetch the key again"));
  } else if (code == 0 && op->batch->kind == BatchKind::kGet) {
    return UCS_OK;  // a get ends with data
  }
  core->OpReceived(op);
  return UCS_OK;
}

// ---- The owner ----

void Core::AnswerOp(const std::shared_ptr<Peer>& endpoint, uint64_t op_id, const absl::Status& status) {
  if (endpoint->failed) return;
  ByteWriter writer;
  writer.U64(op_id);
  writer.U32(static_cast<uint32_t>(status.code()));
  auto* note = new Note{writer.Take()};
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &OnNoteSent;
  param.user_data = note;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(endpoint->handle, kAnswerId, note->header.data(), note->header.size(), nullptr, 0, &param);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) delete note;  // an error means a lost peer, whose endpoint tells
}

ucs_status_t Core::OnPutData(void* arg, const void* header, size_t header_length, void* data, size_t length,
                             const ucp_am_recv_param_t* param) {
  auto* core = static_cast<Core*>(arg);
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return UCS_OK;
  const auto by_handle = core->by_handle_.find(param->reply_ep);
  if (by_handle == core->by_handle_.end() || by_handle->second->failed) return UCS_OK;
  const std::shared_ptr<Peer> endpoint = core->endpoints_.at(by_handle->second);
  ByteReader reader(HeaderView(header, header_length));
  const uint64_t op_id = reader.U64();
  const auto found = core->regions_.find(reader.U64());
  const uint64_t address = reader.U64();
  if (!reader.ok()) return UCS_OK;
  if (found == core->regions_.end() || !found->second->Contains(address, length)) {
    core->AnswerOp(endpoint, op_id, absl::OutOfRangeError(""));
    return UCS_OK;
  }
  auto* target = reinterpret_cast<std::byte*>(address);
  if (!IsRendezvous(param)) {
    std::memcpy(target, data, length);
    core->AnswerOp(endpoint, op_id, absl::OkStatus());
    return UCS_OK;
  }
  auto* serve = new Serve{endpoint, found->second, op_id, ""};
  ucp_request_param_t receive{};
  receive.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  receive.cb.recv_am = &Core::OnServeReceived;
  receive.user_data = serve;
  serve->region->serving.push_back(serve);
  const ucs_status_ptr_t request = ucp_am_recv_data_nbx(core->worker_, data, target, length, &receive);
  if (UCS_PTR_IS_ERR(request)) {
    core->AnswerOp(endpoint, op_id, absl::UnavailableError(""));
    core->EndServe(serve);
  }
  return UCS_INPROGRESS;
}

void Core::OnServeReceived(void* request, ucs_status_t status, size_t, void* arg) {
  auto* serve = static_cast<Serve*>(arg);
  Core* core = serve->endpoint->core.get();
  ucp_request_free(request);
  if (status == UCS_OK) core->AnswerOp(serve->endpoint, serve->op_id, absl::OkStatus());
  core->EndServe(serve);
}

ucs_status_t Core::OnGetRequest(void* arg, const void* header, size_t header_length, void*, size_t,
                                const ucp_am_recv_param_t* param) {
  auto* core = static_cast<Core*>(arg);
  if (IsRendezvous(param) || (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return UCS_OK;
  const auto by_handle = core->by_handle_.find(param->reply_ep);
  if (by_handle == core->by_handle_.end() || by_handle->second->failed) return UCS_OK;
  const std::shared_ptr<Peer> endpoint = core->endpoints_.at(by_handle->second);
  ByteReader reader(HeaderView(header, header_length));
  const uint64_t op_id = reader.U64();
  const auto found = core->regions_.find(reader.U64());
  const uint64_t address = reader.U64();
  const uint64_t size = reader.U64();
  if (!reader.ok()) return UCS_OK;
  if (found == core->regions_.end() || !found->second->Contains(address, size)) {
    core->AnswerOp(endpoint, op_id, absl::OutOfRangeError(""));
    return UCS_OK;
  }
  ByteWriter writer;
  writer.U64(op_id);
  auto* serve = new Serve{endpoint, found->second, op_id, writer.Take()};
  serve->region->serving.push_back(serve);
  ucp_request_param_t send{};
  send.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  send.cb.send = &Core::OnServeSent;
  send.user_data = serve;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(endpoint->handle, kGetDataId, serve->header.data(), serve->header.size(),
                      reinterpret_cast<const void*>(address), size, &send);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) core->EndServe(serve);
  return UCS_OK;
}

void Core::OnServeSent(void* request, ucs_status_t, void* arg) {
  auto* serve = static_cast<Serve*>(arg);
  ucp_request_free(request);
  serve->endpoint->core->EndServe(serve);
}

void Core::EndServe(Serve* serve) {
  Region* region = serve->region;
  std::erase(region->serving, serve);
  delete serve;
  if (region->serving.empty() && unmapping_.contains(region)) FinishUnmap(region);
}

void Core::Unmap(Region* region) {
  if (OnThread()) {
    // A message handler cannot wait for what only this thread can end: the registration lives on until then, without
    // its owner.
    auto* orphan = new Region{};
    orphan->handle = region->handle;
    orphan->orphan = true;
    orphan->serving.swap(region->serving);
    for (Serve* serve : orphan->serving) serve->region = orphan;
    regions_.erase(region->id);
    BeginUnmap(orphan);
    return;
  }
  Event idle;
  const bool posted = Run([&]() -> absl::Status {
                        regions_.erase(region->id);
                        region->idle = &idle;
                        BeginUnmap(region);
                        return absl::OkStatus();
                      }).ok();
  if (posted) {
    idle.Wait();
  } else {
    FinishUnmap(region);  // the thread is gone, and every transfer with it
  }
}

void Core::BeginUnmap(Region* region) {
  unmapping_.insert(region);
  for (Serve* serve : region->serving) {
    FailEndpoint(serve->endpoint.get(), absl::CancelledError("the region was unregistered"));
  }
  if (region->serving.empty()) FinishUnmap(region);
}

void Core::FinishUnmap(Region* region) {
  {
    // After the thread's end, several owners may do this at once.
    std::lock_guard<std::mutex> lock(unmap_mutex_);
    ucp_mem_unmap(context_, region->handle);
    unmapping_.erase(region);
  }
  if (region->orphan) {
    region->handle = nullptr;
    delete region;
  } else if (region->idle != nullptr) {
    region->idle->Notify();  // its owner may delete it now
  }
}

}  // namespace perigee::transport::internal
