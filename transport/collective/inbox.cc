#include "transport/collective/inbox.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"

namespace perigee::transport::internal {
namespace {

constexpr uint32_t kMagic = 0x4c434750;  // "PGCL"
enum class Kind : uint8_t { kStep = 1, kAbort = 2 };

// How often a waiting rank looks whether the others are still connected.
constexpr std::chrono::milliseconds kLook{10};
// A rank that has sent its last message and left: its connection's end may be seen before the message.
constexpr absl::Duration kGrace = absl::Milliseconds(200);

absl::string_view Name(OperationKind kind) {
  switch (kind) {
    case OperationKind::kAllReduceSum:
      return "AllReduceSum";
    case OperationKind::kAllGather:
      return "AllGather";
    case OperationKind::kBroadcast:
      return "Broadcast";
    case OperationKind::kBroadcastString:
      return "BroadcastString";
    case OperationKind::kBarrier:
      return "Barrier";
  }
  return "an unknown operation";
}

ByteWriter Start(Kind kind, uint64_t group_id, int from) {
  ByteWriter writer;
  writer.U32(kMagic);
  writer.U8(static_cast<uint8_t>(kind));
  writer.U64(group_id);
  writer.U32(static_cast<uint32_t>(from));
  return writer;
}

}  // namespace

std::string Describe(const Operation& operation) {
  std::string text = absl::StrCat("operation ", operation.sequence, ", ", Name(operation.kind));
  if (operation.kind == OperationKind::kBroadcast || operation.kind == OperationKind::kBroadcastString) {
    absl::StrAppend(&text, " from rank ", operation.root);
  }
  if (operation.kind != OperationKind::kBarrier && operation.kind != OperationKind::kBroadcastString) {
    absl::StrAppend(&text, " of ", operation.bytes, " bytes");
  }
  return text;
}

std::string EncodeStep(uint64_t group_id, int from, const Operation& operation, uint32_t step) {
  ByteWriter writer = Start(Kind::kStep, group_id, from);
  writer.U64(operation.sequence);
  writer.U8(static_cast<uint8_t>(operation.kind));
  writer.U32(operation.root);
  writer.U64(operation.bytes);
  writer.U32(step);
  return writer.Take();
}

std::string EncodeAbort(uint64_t group_id, int from, uint64_t sequence, const absl::Status& why) {
  ByteWriter writer = Start(Kind::kAbort, group_id, from);
  writer.U64(sequence);
  writer.U8(absl::IsInternal(why) ? 1 : 0);
  writer.Counted(why.message().substr(0, 4096));
  return writer.Take();
}

void Inbox::Open(uint64_t group_id, int rank, int size) {
  const std::lock_guard lock(mutex_);
  group_id_ = group_id;
  rank_ = rank;
  size_ = size;
}

void Inbox::Deliver(absl::string_view header, absl::string_view payload) {
  ByteReader reader(header);
  const uint32_t magic = reader.U32();
  const auto kind = static_cast<Kind>(reader.U8());
  const uint64_t group_id = reader.U64();
  const uint32_t from = reader.U32();
  if (!reader.ok() || magic != kMagic) return;
  const std::lock_guard lock(mutex_);
  if (group_id != group_id_ || from >= static_cast<uint32_t>(size_) || from == static_cast<uint32_t>(rank_)) return;
  if (kind == Kind::kAbort) {
    const uint64_t sequence = reader.U64();
    const bool disagreement = reader.U8() == 1;
    const absl::string_view why = reader.Counted();
    if (!reader.ok() || !broken_.ok()) return;
    broken_ = absl::Status(disagreement ? absl::StatusCode::kInternal : absl::StatusCode::kUnavailable,
                           absl::StrCat("rank ", from, " gave up: ", why));
    broken_from_ = sequence;
    changed_.notify_all();
    return;
  }
  Message message;
  message.operation.sequence = reader.U64();
  message.operation.kind = static_cast<OperationKind>(reader.U8());
  message.operation.root = reader.U32();
  message.operation.bytes = reader.U64();
  const uint32_t step = reader.U32();
  if (kind != Kind::kStep || !reader.ok() || reader.remaining() != 0 || !Broken().ok()) return;
  const int sender = static_cast<int>(from);
  CheckAgreement(sender, message.operation);
  if (waiting_of_[sender] >= kMaxWaiting) {
    Break(absl::StrCat("rank ", sender, " runs ahead: ", kMaxWaiting, " of its messages wait, the last of ",
                       Describe(message.operation)));
  }
  if (Broken().ok()) {
    message.payload = std::string(payload);
    const uint64_t sequence = message.operation.sequence;
    if (waiting_.try_emplace({sender, sequence, step}, std::move(message)).second) {
      waiting_of_[sender]++;
    } else {
      Break(absl::StrCat("rank ", sender, " sent step ", step, " of operation ", sequence, " twice"));
    }
  }
  changed_.notify_all();
}

void Inbox::CheckAgreement(int from, const Operation& theirs) {
  const uint64_t ahead = theirs.sequence - current_.sequence;
  if (theirs == current_ || ahead == 1 || ahead == 2 || !Broken().ok()) return;
  Break(absl::StrCat("the ranks disagree: rank ", from, " is in ", Describe(theirs), "; rank ", rank_, " is in ",
                     Describe(current_)));
}

void Inbox::Break(absl::string_view disagreement) {
  broken_ = absl::InternalError(disagreement);
  broken_from_ = 0;
}

const absl::Status& Inbox::Broken() const {
  static const absl::Status* ok = new absl::Status;
  return current_.sequence >= broken_from_ ? broken_ : *ok;
}

absl::Status Inbox::Begin(const Operation& operation) {
  const std::lock_guard lock(mutex_);
  current_ = operation;
  for (const auto& [key, message] : waiting_) CheckAgreement(std::get<0>(key), message.operation);
  return Broken();
}

bool Inbox::Ready(int from, uint32_t step) const {
  const std::lock_guard lock(mutex_);
  return waiting_.contains({from, current_.sequence, step}) || !Broken().ok();
}

absl::StatusOr<std::string> Inbox::Take(int from, uint32_t step, absl::Time deadline,
                                        absl::FunctionRef<bool()> connected) {
  absl::Time lost = absl::InfiniteFuture();
  std::unique_lock lock(mutex_);
  while (true) {
    const auto found = waiting_.find({from, current_.sequence, step});
    if (found != waiting_.end()) {
      std::string payload = std::move(found->second.payload);
      waiting_.erase(found);
      waiting_of_[from]--;
      return payload;
    }
    if (!Broken().ok()) return Broken();
    const absl::Time now = absl::Now();
    if (lost == absl::InfiniteFuture() && !connected()) lost = now;
    if (now - lost >= kGrace || (now >= deadline && lost != absl::InfiniteFuture())) {
      return absl::UnavailableError(
          absl::StrCat("rank ", from, " died or left (noticed by rank ", rank_, " in ", Describe(current_), ")"));
    }
    if (now >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", rank_, " heard nothing from rank ", from,
                                                      " by the deadline (", Describe(current_), ", step ", step, ")"));
    }
    const auto left = absl::ToChronoNanoseconds(deadline - now);
    changed_.wait_for(lock, std::min<std::chrono::nanoseconds>(left, kLook));
  }
}

absl::Status Inbox::status() const {
  const std::lock_guard lock(mutex_);
  return broken_;
}

}  // namespace perigee::transport::internal
