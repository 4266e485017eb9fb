#include "transport/endpoint.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "transport/core.h"

namespace perigee::transport {
namespace {

using internal::Batch;
using internal::BatchKind;
using internal::Core;
using internal::Peer;
using internal::Piece;

absl::Status NotOpen() {
  return absl::FailedPreconditionError("this Endpoint is empty; make one with Context::Connect");
}

}  // namespace

TransferBatch& TransferBatch::operator=(TransferBatch&& other) noexcept {
  if (this != &other) {
    Finish();
    batch_ = std::move(other.batch_);
  }
  return *this;
}

TransferBatch::~TransferBatch() { Finish(); }

void TransferBatch::Finish() {
  if (batch_ != nullptr) batch_->done.Wait();
  batch_ = nullptr;
}

bool TransferBatch::done() const { return batch_ == nullptr || batch_->done.Happened(); }

absl::Status TransferBatch::Wait(absl::Time until) {
  if (batch_ == nullptr) return absl::FailedPreconditionError("this TransferBatch is empty");
  if (!batch_->done.Wait(until)) {
    return absl::DeadlineExceededError("the transfer is still under way");
  }
  return batch_->result;
}

Endpoint& Endpoint::operator=(Endpoint&& other) noexcept {
  if (this != &other) {
    Close();
    endpoint_ = std::move(other.endpoint_);
  }
  return *this;
}

Endpoint::~Endpoint() { Close(); }

void Endpoint::Close() {
  if (endpoint_ == nullptr) return;
  endpoint_->core->Post([endpoint = endpoint_] {
    endpoint->core->FailEndpoint(endpoint.get(), absl::CancelledError(absl::StrCat(
                                                     "the connection to ", endpoint->peer_name, " was destroyed")));
  });
  endpoint_ = nullptr;
}

bool Endpoint::connected() const { return endpoint_ != nullptr && endpoint_->connected; }

absl::StatusOr<std::string> Endpoint::Describe() const {
  if (endpoint_ == nullptr) return NotOpen();
  std::string text;
  PERIGEE_RETURN_IF_ERROR(endpoint_->core->Run([&]() -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(text, endpoint_->core->Describe(endpoint_.get()));
    return absl::OkStatus();
  }));
  return text;
}

absl::StatusOr<RemoteRegion> Endpoint::UnpackRemoteKey(absl::string_view bytes) const {
  if (endpoint_ == nullptr) return NotOpen();
  PERIGEE_ASSIGN_OR_RETURN(const PackedKey packed, DecodeRemoteKey(bytes));
  if (packed.engine_id != endpoint_->peer_id) {
    return absl::InvalidArgumentError(absl::StrCat("the remote key belongs to another engine than the one at ",
                                                   endpoint_->peer_name,
                                                   " (has it been restarted? fetch the key again)"));
  }
  auto key = std::make_shared<internal::RemoteKey>();
  key->endpoint = endpoint_;
  key->base = packed.base;
  key->size = packed.size_bytes;
  key->region_id = packed.region_id;
  PERIGEE_RETURN_IF_ERROR(
      endpoint_->core->Run([&] { return endpoint_->core->UnpackKey(key.get(), packed.ucx_key.data()); }));
  return RemoteRegion(std::move(key));
}

namespace {

// Get's destination and Put's source differ only in constness, which UCX's put respects.
std::byte* Local(const PutTransfer& transfer) { return const_cast<std::byte*>(transfer.local.data()); }
std::byte* Local(const GetTransfer& transfer) { return transfer.local.data(); }

}  // namespace

template <typename Transfer, typename KeyOf>
absl::StatusOr<std::shared_ptr<Batch>> MakeBatch(BatchKind kind, const std::shared_ptr<Peer>& endpoint,
                                                 std::span<const Transfer> transfers, absl::Time deadline,
                                                 KeyOf key_of) {
  auto batch = std::make_shared<Batch>();
  batch->kind = kind;
  batch->endpoint = endpoint;
  batch->deadline = deadline;
  batch->pieces.reserve(transfers.size());
  for (size_t i = 0; i < transfers.size(); ++i) {
    const Transfer& transfer = transfers[i];
    if (transfer.region == nullptr || key_of(*transfer.region) == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("transfer ", i, " of ", transfers.size(), " names no remote region"));
    }
    const std::shared_ptr<internal::RemoteKey>& key = key_of(*transfer.region);
    if (key->endpoint != endpoint) {
      return absl::InvalidArgumentError(
          absl::StrCat("transfer ", i, " of ", transfers.size(),
                       " uses a region of another connection; unpack the key on this one"));
    }
    const absl::Status bounds = transfer.region->CheckBounds(transfer.remote_address, transfer.local.size());
    if (!bounds.ok()) return Annotate(bounds, absl::StrCat("transfer ", i, " of ", transfers.size()));
    if (transfer.local.empty()) continue;
    if (batch->keys.empty() || batch->keys.back() != key) batch->keys.push_back(key);
    batch->pieces.push_back({Local(transfer), transfer.local.size(), transfer.remote_address, key.get()});
    batch->bytes += transfer.local.size();
  }
  return batch;
}

absl::StatusOr<TransferBatch> Endpoint::StartPut(std::span<const PutTransfer> transfers, absl::Time deadline) const {
  if (endpoint_ == nullptr) return NotOpen();
  PERIGEE_ASSIGN_OR_RETURN(auto batch, MakeBatch(
                                           BatchKind::kPut, endpoint_, transfers, deadline,
                                           [](const RemoteRegion& region) -> auto& { return region.key_; }));
  PERIGEE_RETURN_IF_ERROR(endpoint_->core->Start(batch));
  return TransferBatch(std::move(batch));
}

absl::StatusOr<TransferBatch> Endpoint::StartGet(std::span<const GetTransfer> transfers, absl::Time deadline) const {
  if (endpoint_ == nullptr) return NotOpen();
  PERIGEE_ASSIGN_OR_RETURN(auto batch, MakeBatch(
                                           BatchKind::kGet, endpoint_, transfers, deadline,
                                           [](const RemoteRegion& region) -> auto& { return region.key_; }));
  PERIGEE_RETURN_IF_ERROR(endpoint_->core->Start(batch));
  return TransferBatch(std::move(batch));
}

absl::Status Endpoint::Put(std::span<const PutTransfer> transfers, absl::Time deadline) const {
  PERIGEE_ASSIGN_OR_RETURN(TransferBatch handle, StartPut(transfers, deadline));
  return handle.Wait();
}

absl::Status Endpoint::Get(std::span<const GetTransfer> transfers, absl::Time deadline) const {
  PERIGEE_ASSIGN_OR_RETURN(TransferBatch handle, StartGet(transfers, deadline));
  return handle.Wait();
}

namespace {

absl::StatusOr<std::shared_ptr<Batch>> MakeMessage(BatchKind kind, const std::shared_ptr<Peer>& endpoint,
                                                   uint16_t id, absl::string_view header, absl::string_view payload,
                                                   absl::Time deadline) {
  if (endpoint == nullptr) return NotOpen();
  if (header.size() > kMaxMessageBytes || payload.size() > kMaxMessageBytes - header.size()) {
    return absl::InvalidArgumentError(absl::StrCat("message of ", header.size(), " + ", payload.size(),
                                                   " bytes; at most ", kMaxMessageBytes,
                                                   " can be sent, use Put for more"));
  }
  auto batch = std::make_shared<Batch>();
  batch->kind = kind;
  batch->endpoint = endpoint;
  batch->deadline = deadline;
  batch->call_id = kind == BatchKind::kCall ? endpoint->core->NextCallId() : 0;
  batch->message = internal::EncodeOutgoing(kind, id, batch->call_id, header, payload);
  return batch;
}

}  // namespace

absl::Status Endpoint::Send(uint16_t id, absl::string_view header, absl::string_view payload,
                              absl::Time deadline) const {
  PERIGEE_ASSIGN_OR_RETURN(auto batch, MakeMessage(BatchKind::kSend, endpoint_, id, header, payload, deadline));
  return endpoint_->core->StartAndWait(batch);
}

absl::StatusOr<std::string> Endpoint::Call(uint16_t id, absl::string_view header, absl::string_view payload,
                                             absl::Time deadline) const {
  PERIGEE_ASSIGN_OR_RETURN(auto batch, MakeMessage(BatchKind::kCall, endpoint_, id, header, payload, deadline));
  PERIGEE_RETURN_IF_ERROR(endpoint_->core->StartAndWait(batch));
  return std::move(batch->reply);
}

}  // namespace perigee::transport
