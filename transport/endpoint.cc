#include "transport/endpoint.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "transport/core.h"

namespace perigee::transport {
namespace {

using internal::Core;
using internal::Direction;
using internal::Extent;
using internal::Link;
using internal::Message;
using internal::MessageKind;
using internal::Peer;
using internal::Transfer;

absl::Status NotOpen() {
  return absl::FailedPreconditionError("this Endpoint is empty; make one with Context::Connect");
}

absl::Status Lost(const Link& link) {
  if (link.shared->stopped) return absl::FailedPreconditionError("the transport context has been destroyed");
  return absl::UnavailableError(absl::StrCat("the connection to ", link.name, " is closed; connect again"));
}

absl::Status InHandler() {
  return absl::FailedPreconditionError("transfers and messages cannot be started from a message handler");
}

std::vector<std::shared_ptr<Peer>> ReadyRails(Link& link) {
  std::vector<std::shared_ptr<Peer>> ready;
  std::lock_guard<std::mutex> lock(link.mutex);
  for (const std::shared_ptr<Peer>& peer : link.rails) {
    if (peer != nullptr && peer->ready) ready.push_back(peer);
  }
  return ready;
}

}  // namespace

Endpoint& Endpoint::operator=(Endpoint&& other) noexcept {
  if (this != &other) {
    Close();
    link_ = std::move(other.link_);
  }
  return *this;
}

Endpoint::~Endpoint() { Close(); }

void Endpoint::Close() {
  if (link_ == nullptr) return;
  CloseWith(absl::CancelledError(absl::StrCat("the connection to ", link_->name, " was destroyed")));
  link_ = nullptr;
}

void Endpoint::GiveUp(absl::string_view why) const {
  if (link_ == nullptr) return;
  CloseWith(absl::UnavailableError(absl::StrCat("the connection to ", link_->name, " was given up: ", why)));
}

void Endpoint::CloseWith(const absl::Status& status) const {
  {
    std::lock_guard<std::mutex> lock(link_->mutex);
    link_->closed = true;
  }
  // Rails whose hello is under way are closed too, so every rail's thread looks.
  for (const std::shared_ptr<Core>& rail : link_->shared->rails) {
    rail->Post([core = rail.get(), link = link_, status] { core->CloseLink(*link, status); });
  }
}

bool Endpoint::connected() const { return link_ != nullptr && link_->alive > 0; }
int Endpoint::rails() const { return link_ == nullptr ? 0 : link_->alive.load(); }
int Endpoint::protocol_version() const { return link_ == nullptr ? 0 : link_->version; }

absl::StatusOr<std::string> Endpoint::Describe() const {
  if (link_ == nullptr) return NotOpen();
  std::string text;
  for (const std::shared_ptr<Peer>& peer : ReadyRails(*link_)) {
    PERIGEE_RETURN_IF_ERROR(peer->core->Run([&]() -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(const std::string lanes, peer->core->Describe(peer.get()));
      text += lanes;
      return absl::OkStatus();
    }));
  }
  if (text.empty()) return Lost(*link_);
  return text;
}

absl::StatusOr<RemoteRegion> Endpoint::UnpackRemoteKey(absl::string_view bytes) const {
  if (link_ == nullptr) return NotOpen();
  PERIGEE_ASSIGN_OR_RETURN(const PackedKey packed, DecodeRemoteKey(bytes));
  if (packed.context_id != link_->peer_id) {
    return absl::InvalidArgumentError(absl::StrCat("the remote key belongs to another context than the one at ",
                                                   link_->name, " (has it been restarted? fetch the key again)"));
  }
  auto key = std::make_shared<internal::RemoteKey>();
  key->link = link_;
  key->rail = link_->shared->rails[0];
  key->base = packed.base;
  key->size = packed.size_bytes;
  key->region_id = packed.region_id;
  const std::vector<std::shared_ptr<Peer>> rails = ReadyRails(*link_);
  if (rails.empty()) return Lost(*link_);
  // UCX's part is the first rail's. Without it, or with another rail only, messages do.
  if (!packed.ucx_key.empty() && rails[0]->rail == 0) {
    PERIGEE_RETURN_IF_ERROR(
        key->rail->Run([&] { return key->rail->UnpackKey(key.get(), rails[0].get(), packed.ucx_key.data()); }));
  }
  return RemoteRegion(std::move(key));
}

// ---- Transfers ----

namespace {

// Get's destination and Put's source differ only in constness, which Put respects.
std::byte* Local(const PutTransfer& transfer) { return const_cast<std::byte*>(transfer.local.data()); }
std::byte* Local(const GetTransfer& transfer) { return transfer.local.data(); }

}  // namespace

namespace internal {

// Checks everything before anything is started.
template <typename Extents, typename KeyOf>
absl::StatusOr<std::shared_ptr<Transfer>> StartTransfer(Direction direction, const std::shared_ptr<Link>& link,
                                                        const Extents& transfers, const TransferOptions& options,
                                                        KeyOf key_of, Core::Then then) {
  for (const std::shared_ptr<Core>& rail : link->shared->rails) {
    if (rail->Driving()) return InHandler();
  }
  std::vector<Extent> extents;
  std::vector<std::shared_ptr<RemoteKey>> keys;
  extents.reserve(transfers.size());
  bool mapped = true, messages = false;
  for (size_t i = 0; i < transfers.size(); ++i) {
    const auto& transfer = transfers[i];
    if (transfer.region == nullptr || key_of(*transfer.region) == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("transfer ", i, " of ", transfers.size(), " names no remote region"));
    }
    const std::shared_ptr<RemoteKey>& key = key_of(*transfer.region);
    if (key->link != link) {
      return absl::InvalidArgumentError(
          absl::StrCat("transfer ", i, " of ", transfers.size(),
                       " uses a region of another connection; unpack the key on this one"));
    }
    const absl::Status bounds = transfer.region->CheckBounds(transfer.remote_address, transfer.local.size());
    if (!bounds.ok()) return Annotate(bounds, absl::StrCat("transfer ", i, " of ", transfers.size()));
    if (keys.empty() || keys.back() != key) keys.push_back(key);
    Extent extent{Local(transfer), transfer.remote_address, transfer.local.size(), key.get(),
                  link->shared->IsDevice(transfer.local.data())};
    messages |= key->path == Path::kMessages || extent.device;
    mapped &= key->path == Path::kMapped;
    extents.push_back(extent);
  }
  auto transfer = std::make_shared<Transfer>(direction, std::move(extents), options);
  transfer->keys = std::move(keys);
  transfer->link = link;
  std::vector<std::shared_ptr<Peer>> rails = ReadyRails(*link);
  // A mapping, and UCX's one-sided operations, are the first rail's.
  if (!messages && !rails.empty() && rails[0]->rail == 0) rails.resize(1);
  if (rails.empty()) return Lost(*link);
  transfer->driver = rails[0]->core.get();
  if (transfer->operations.empty()) rails.clear();  // nothing to move: it ends here
  transfer->Attach();                               // so that it does not end before all rails have it
  for (size_t i = 0; i < rails.size(); ++i) transfer->Attach();
  for (const std::shared_ptr<Peer>& peer : rails) {
    const auto add = [&] {
      peer->core->AddTransfer(transfer, peer);
      return absl::OkStatus();
    };
    const absl::Status status = peer->core->Run(add, peer == rails[0] ? then : Core::Then::kLeave);
    if (!status.ok()) {
      if (rails.size() == 1) transfer->Fail(status);
      transfer->Detach({}, status);
    }
  }
  transfer->Detach({}, Lost(*link));
  return transfer;
}

absl::StatusOr<std::shared_ptr<Message>> MakeMessage(MessageKind kind, const std::shared_ptr<Link>& link, uint16_t id,
                                                     absl::string_view header, absl::string_view payload,
                                                     absl::Time deadline) {
  if (header.size() > kMaxMessageBytes || payload.size() > kMaxMessageBytes - header.size()) {
    return absl::InvalidArgumentError(absl::StrCat("message of ", header.size(), " + ", payload.size(),
                                                   " bytes; at most ", kMaxMessageBytes,
                                                   " can be sent, use Put for more"));
  }
  for (const std::shared_ptr<Core>& rail : link->shared->rails) {
    if (rail->Driving()) return InHandler();
  }
  const std::vector<std::shared_ptr<Peer>> rails = ReadyRails(*link);
  if (rails.empty()) return Lost(*link);
  auto message = std::make_shared<Message>();
  message->kind = kind;
  message->peer = rails[0];
  message->deadline = deadline;
  message->header.kind = kind;
  message->header.handler = id;
  message->header.header_bytes = static_cast<uint32_t>(header.size());
  message->bytes.reserve(header.size() + payload.size());
  message->bytes.append(header.data(), header.size());
  message->bytes.append(payload.data(), payload.size());
  return message;
}

absl::Status SendAndWait(const std::shared_ptr<Message>& message) {
  Core* core = message->peer->core.get();
  PERIGEE_RETURN_IF_ERROR(core->Run(
      [&] {
        core->AddMessage(message);
        return absl::OkStatus();
      },
      Core::Then::kWait));
  core->Wait(message->done, absl::InfiniteFuture());
  return message->result;
}

}  // namespace internal

template <typename Extents>
absl::StatusOr<TransferBatch> Endpoint::Start(internal::Direction direction, const Extents& transfers,
                                              const TransferOptions& options, bool waits) const {
  if (link_ == nullptr) return NotOpen();
  PERIGEE_ASSIGN_OR_RETURN(
      auto transfer, internal::StartTransfer(
                         direction, link_, transfers, options,
                         [](const RemoteRegion& r) -> const std::shared_ptr<internal::RemoteKey>& { return r.key_; },
                         waits ? internal::Core::Then::kWait : internal::Core::Then::kLeave));
  return TransferBatch(std::move(transfer));
}

absl::StatusOr<TransferBatch> Endpoint::StartPut(std::span<const PutTransfer> transfers,
                                                 const TransferOptions& options) const {
  return Start(internal::Direction::kPut, transfers, options, /*waits=*/false);
}

absl::StatusOr<TransferBatch> Endpoint::StartGet(std::span<const GetTransfer> transfers,
                                                 const TransferOptions& options) const {
  return Start(internal::Direction::kGet, transfers, options, /*waits=*/false);
}

absl::Status Endpoint::Put(std::span<const PutTransfer> transfers, absl::Time deadline) const {
  const TransferOptions options{.deadline = deadline, .checksums = false};
  PERIGEE_ASSIGN_OR_RETURN(TransferBatch batch, Start(internal::Direction::kPut, transfers, options, /*waits=*/true));
  return batch.Wait();
}

absl::Status Endpoint::Get(std::span<const GetTransfer> transfers, absl::Time deadline) const {
  const TransferOptions options{.deadline = deadline, .checksums = false};
  PERIGEE_ASSIGN_OR_RETURN(TransferBatch batch, Start(internal::Direction::kGet, transfers, options, /*waits=*/true));
  return batch.Wait();
}

// ---- Messages ----

absl::Status Endpoint::Send(uint16_t id, absl::string_view header, absl::string_view payload,
                            absl::Time deadline) const {
  if (link_ == nullptr) return NotOpen();
  PERIGEE_ASSIGN_OR_RETURN(auto message,
                           internal::MakeMessage(MessageKind::kOneWay, link_, id, header, payload, deadline));
  return internal::SendAndWait(message);
}

absl::StatusOr<std::string> Endpoint::Call(uint16_t id, absl::string_view header, absl::string_view payload,
                                           absl::Time deadline) const {
  if (link_ == nullptr) return NotOpen();
  PERIGEE_ASSIGN_OR_RETURN(auto message,
                           internal::MakeMessage(MessageKind::kRequest, link_, id, header, payload, deadline));
  PERIGEE_RETURN_IF_ERROR(internal::SendAndWait(message));
  return std::move(message->reply);
}

}  // namespace perigee::transport
