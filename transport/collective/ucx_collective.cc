// Everything is direct exchange between all pairs: a rank sends to each other rank what that one needs, and nothing is
// passed on. Per rank that is as many bytes as a ring's, in 2 steps instead of 2 (n - 1), and each element is summed by
// one rank, or by all in the same order: rank 0's + rank 1's + ... whatever the length.
//
// Long operations are cut into slices of kPieceBytes per pair of ranks. The next slice is on its way while the last one
// is received, never more: what waits at a receiver stays bounded.
#include "transport/collective/ucx_collective.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/status.h"
#include "transport/collective/inbox.h"

namespace perigee::transport {
namespace {

using internal::Operation;
using internal::OperationKind;

// Up to so many bytes sent per rank, every rank sends all values to all: one step. Beyond, each rank sums a part and
// sends it around: two steps, fewer bytes.
constexpr size_t kOneStepBytes = size_t{64} << 10;
constexpr size_t kPieceBytes = size_t{256} << 10;
constexpr size_t kAnySize = ~size_t{0};
constexpr absl::Duration kFarewell = absl::Milliseconds(200);

template <typename T>
absl::string_view View(std::span<T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

// The `i`th of `n` nearly equal parts.
template <typename T>
std::span<T> Part(std::span<T> values, int i, int n) {
  const size_t begin = values.size() * i / n;
  return values.subspan(begin, values.size() * (i + 1) / n - begin);
}

template <typename T>
std::span<T> Slice(std::span<T> values, size_t index, size_t length) {
  const size_t begin = std::min(values.size(), index * length);
  return values.subspan(begin, std::min(length, values.size() - begin));
}

// An empty operation has one slice: the ranks meet all the same.
size_t Slices(size_t count, size_t length) { return count == 0 ? 1 : (count + length - 1) / length; }

// sums[i] = terms[0][i] + terms[1][i] + ..., in this order. One of the terms may be `sums` itself.
void SumInOrder(std::span<float> sums, std::span<const absl::string_view> terms) {
  std::array<float, 1024> sum, term;
  for (size_t begin = 0; begin < sums.size(); begin += sum.size()) {
    const size_t count = std::min(sum.size(), sums.size() - begin);
    std::memcpy(sum.data(), terms[0].data() + begin * sizeof(float), count * sizeof(float));
    for (const absl::string_view other : terms.subspan(1)) {
      std::memcpy(term.data(), other.data() + begin * sizeof(float), count * sizeof(float));
      for (size_t i = 0; i < count; ++i) sum[i] += term[i];
    }
    std::memcpy(sums.data() + begin, sum.data(), count * sizeof(float));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<UcxCollective>> UcxCollective::Create(const GroupOptions& options, absl::Time deadline) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<Rendezvous> rendezvous, Rendezvous::Open(options));
  PERIGEE_ASSIGN_OR_RETURN(Group group, rendezvous->Join(deadline));
  return std::make_unique<UcxCollective>(std::move(group));
}

UcxCollective::UcxCollective(Group group) : group_(std::move(group)), operation_(std::make_unique<Operation>()) {}

UcxCollective::~UcxCollective() = default;

absl::Status UcxCollective::Run(OperationKind kind, int root, size_t bytes, absl::FunctionRef<absl::Status()> body) {
  if (!broken_.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the group is broken, make a new one with all ranks; it broke because: ", broken_.message()));
  }
  if (size() == 1) return body();
  *operation_ = {++sequence_, kind, static_cast<uint32_t>(root), bytes};
  absl::Status status = group_.inbox->Begin(*operation_);
  if (status.ok()) status = body();
  if (status.ok()) return status;
  Abandon(status);
  return broken_;
}

void UcxCollective::Abandon(const absl::Status& why) {
  if (!broken_.ok()) return;
  // What another rank says of itself explains more than what followed from it here.
  const absl::Status told = group_.inbox->status();
  broken_ = told.ok() || absl::IsInternal(why) ? why : told;
  const std::string message = internal::EncodeAbort(group_.id, rank(), sequence_, broken_);
  for (int i = 1; i < size(); ++i) {
    const Endpoint& to = group_.endpoints[(rank() + i) % size()];
    // A stalled rank does not take it; the others must still be told.
    const absl::Time until = absl::Now() + kFarewell / (size() - 1);
    if (to.connected()) to.Send(internal::kCollectiveMessageId, message, "", until).IgnoreError();
  }
}

absl::Status UcxCollective::CheckPeers() {
  if (!broken_.ok()) return broken_;
  PERIGEE_RETURN_IF_ERROR(group_.inbox->status());
  for (int i = 0; i < size(); ++i) {
    if (i != rank() && !group_.endpoints[i].connected()) {
      return absl::UnavailableError(absl::StrCat("rank ", i, " died or left"));
    }
  }
  return absl::OkStatus();
}

absl::Status UcxCollective::Send(int to, uint32_t step, absl::string_view payload) {
  const absl::Status status = group_.endpoints[to].Send(
      internal::kCollectiveMessageId, internal::EncodeStep(group_.id, rank(), *operation_, step), payload, deadline_);
  // A lost connection alone is no failure: the peer may have left after its last operation, which it cannot end before
  // it has this message, while the sending's own end was not told. Whether something is missing shows in Take.
  if (status.ok() || absl::IsUnavailable(status)) return absl::OkStatus();
  PERIGEE_RETURN_IF_ERROR(group_.inbox->status());  // who gave up said so before leaving
  return Annotate(
      status, absl::StrCat("rank ", rank(), " cannot send to rank ", to, " (", internal::Describe(*operation_), ")"));
}

// Begins with the next rank, so that not all send to rank 0 at once.
absl::Status UcxCollective::SendToAll(uint32_t step, absl::string_view payload) {
  for (int i = 1; i < size(); ++i) PERIGEE_RETURN_IF_ERROR(Send((rank() + i) % size(), step, payload));
  return absl::OkStatus();
}

absl::StatusOr<std::string> UcxCollective::Take(int from, uint32_t step, size_t bytes) {
  // Driving ourselves spares the rail's thread, which leaves the field to callers for a while.
  group_.context->Drive([&] { return group_.inbox->Ready(from, step); }, deadline_);
  PERIGEE_ASSIGN_OR_RETURN(std::string payload, group_.inbox->Take(from, step, deadline_,
                                                                   [&] { return group_.endpoints[from].connected(); }));
  if (bytes != kAnySize && payload.size() != bytes) {
    return absl::InternalError(absl::StrCat("rank ", from, " sent ", payload.size(), " bytes in step ", step, " of ",
                                            internal::Describe(*operation_), " where rank ", rank(), " expects ",
                                            bytes));
  }
  return payload;
}

// Takes everyone's part of `mine` and sums them up in it.
absl::Status UcxCollective::ReduceSlice(std::span<float> mine, uint32_t step) {
  std::vector<std::string> payloads(size());
  std::vector<absl::string_view> terms(size());
  for (int from = 0; from < size(); ++from) {
    if (from == rank()) {
      terms[from] = View(mine);
    } else {
      PERIGEE_ASSIGN_OR_RETURN(payloads[from], Take(from, step, mine.size_bytes()));
      terms[from] = payloads[from];
    }
  }
  SumInOrder(mine, terms);
  return absl::OkStatus();
}

absl::Status UcxCollective::AllReduceSum(std::span<float> values, absl::Time deadline) {
  deadline_ = deadline;
  const int n = size();
  return Run(OperationKind::kAllReduceSum, 0, values.size_bytes(), [&]() -> absl::Status {
    if (n == 1) return absl::OkStatus();
    if (values.size_bytes() * (n - 1) <= kOneStepBytes) {
      PERIGEE_RETURN_IF_ERROR(SendToAll(0, View(values)));
      return ReduceSlice(values, 0);
    }
    const size_t length = kPieceBytes / sizeof(float) * n;
    const size_t slices = Slices(values.size(), length);
    const auto scatter = [&](size_t slice) -> absl::Status {
      const std::span<float> piece = Slice(values, slice, length);
      for (int i = 1; i < n; ++i) {
        const int to = (rank() + i) % n;
        PERIGEE_RETURN_IF_ERROR(Send(to, static_cast<uint32_t>(2 * slice), View(Part(piece, to, n))));
      }
      return absl::OkStatus();
    };
    PERIGEE_RETURN_IF_ERROR(scatter(0));
    for (size_t slice = 0; slice < slices; ++slice) {
      const std::span<float> piece = Slice(values, slice, length);
      const std::span<float> mine = Part(piece, rank(), n);
      PERIGEE_RETURN_IF_ERROR(ReduceSlice(mine, static_cast<uint32_t>(2 * slice)));
      PERIGEE_RETURN_IF_ERROR(SendToAll(static_cast<uint32_t>(2 * slice + 1), View(mine)));
      if (slice + 1 < slices) PERIGEE_RETURN_IF_ERROR(scatter(slice + 1));
      for (int i = 1; i < n; ++i) {
        const int from = (rank() + n - i) % n;
        const std::span<float> theirs = Part(piece, from, n);
        PERIGEE_ASSIGN_OR_RETURN(const std::string payload,
                                 Take(from, static_cast<uint32_t>(2 * slice + 1), theirs.size_bytes()));
        std::memcpy(theirs.data(), payload.data(), payload.size());
      }
    }
    return absl::OkStatus();
  });
}

absl::Status UcxCollective::AllGather(std::span<const std::byte> mine, std::span<std::byte> all, absl::Time deadline) {
  const int n = size();
  if (all.size() % n != 0 || all.size() / n != mine.size()) {
    return absl::InvalidArgumentError(absl::StrCat("AllGather of ", mine.size(), " bytes from each of ", n,
                                                   " ranks into ", all.size(), " bytes; give ", n, " times as many"));
  }
  deadline_ = deadline;
  return Run(OperationKind::kAllGather, 0, mine.size(), [&]() -> absl::Status {
    if (!mine.empty()) std::memmove(all.data() + rank() * mine.size(), mine.data(), mine.size());
    if (n == 1) return absl::OkStatus();
    const size_t slices = Slices(mine.size(), kPieceBytes);
    const auto send = [&](size_t slice) {
      return SendToAll(static_cast<uint32_t>(slice), View(Slice(mine, slice, kPieceBytes)));
    };
    PERIGEE_RETURN_IF_ERROR(send(0));
    for (size_t slice = 0; slice < slices; ++slice) {
      if (slice + 1 < slices) PERIGEE_RETURN_IF_ERROR(send(slice + 1));
      for (int i = 1; i < n; ++i) {
        const int from = (rank() + n - i) % n;
        const std::span<std::byte> theirs = Slice(all.subspan(from * mine.size(), mine.size()), slice, kPieceBytes);
        PERIGEE_ASSIGN_OR_RETURN(const std::string payload, Take(from, static_cast<uint32_t>(slice), theirs.size()));
        if (!payload.empty()) std::memcpy(theirs.data(), payload.data(), payload.size());
      }
    }
    return absl::OkStatus();
  });
}

absl::Status UcxCollective::Broadcast(std::span<std::byte> bytes, int root, absl::Time deadline) {
  if (root < 0 || root >= size()) {
    return absl::InvalidArgumentError(absl::StrCat("root ", root, " in a group of ", size()));
  }
  deadline_ = deadline;
  return Run(OperationKind::kBroadcast, root, bytes.size(), [&]() -> absl::Status {
    const size_t slices = Slices(bytes.size(), kPieceBytes);
    // Answers keep the root at most one slice ahead of the slowest receiver.
    const auto await_all = [&](size_t slice) -> absl::Status {
      for (int i = 1; i < size(); ++i) {
        PERIGEE_RETURN_IF_ERROR(Take((rank() + i) % size(), static_cast<uint32_t>(slice), 0).status());
      }
      return absl::OkStatus();
    };
    for (size_t slice = 0; slice < slices; ++slice) {
      const std::span<std::byte> piece = Slice(bytes, slice, kPieceBytes);
      if (rank() == root) {
        PERIGEE_RETURN_IF_ERROR(SendToAll(static_cast<uint32_t>(slice), View(piece)));
        if (slice > 0) PERIGEE_RETURN_IF_ERROR(await_all(slice - 1));
      } else {
        PERIGEE_ASSIGN_OR_RETURN(const std::string payload, Take(root, static_cast<uint32_t>(slice), piece.size()));
        if (!payload.empty()) std::memcpy(piece.data(), payload.data(), payload.size());
        PERIGEE_RETURN_IF_ERROR(Send(root, static_cast<uint32_t>(slice), ""));
      }
    }
    return rank() == root ? await_all(slices - 1) : absl::OkStatus();
  });
}

absl::Status UcxCollective::BroadcastString(std::string* text, int root, absl::Time deadline) {
  if (root < 0 || root >= size()) {
    return absl::InvalidArgumentError(absl::StrCat("root ", root, " in a group of ", size()));
  }
  if (rank() == root && text->size() > kMaxStringBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a string of ", text->size(), " bytes; at most ", kMaxStringBytes, " are possible"));
  }
  deadline_ = deadline;
  return Run(OperationKind::kBroadcastString, root, 0, [&]() -> absl::Status {
    // Step 0 is the length and the first piece; the others follow one by one, each answered by all.
    size_t done = 0;
    if (rank() == root) {
      for (uint32_t step = 0; step == 0 || done < text->size(); ++step) {
        ByteWriter piece;
        if (step == 0) piece.U64(text->size());
        const absl::string_view rest = absl::string_view(*text).substr(done, kPieceBytes);
        piece.Raw(rest);
        done += rest.size();
        PERIGEE_RETURN_IF_ERROR(SendToAll(step, piece.bytes()));
        for (int i = 1; i < size(); ++i) {
          PERIGEE_RETURN_IF_ERROR(Take((rank() + i) % size(), step, 0).status());
        }
      }
      return absl::OkStatus();
    }
    std::string received;
    uint64_t total = 0;
    for (uint32_t step = 0; step == 0 || received.size() < total; ++step) {
      PERIGEE_ASSIGN_OR_RETURN(const std::string payload, Take(root, step, kAnySize));
      ByteReader reader(payload);
      if (step == 0) total = reader.U64();
      const absl::string_view piece = reader.Raw(reader.remaining());
      if (!reader.ok() || total > kMaxStringBytes || piece.size() > total - received.size() ||
          (piece.empty() && received.size() < total)) {
        return absl::InternalError(absl::StrCat("rank ", root, " sent ", piece.size(), " bytes after ", received.size(),
                                                " of a string of ", total));
      }
      received.append(piece.data(), piece.size());
      PERIGEE_RETURN_IF_ERROR(Send(root, step, ""));
    }
    *text = std::move(received);
    return absl::OkStatus();
  });
}

absl::Status UcxCollective::Barrier(absl::Time deadline) {
  deadline_ = deadline;
  return Run(OperationKind::kBarrier, 0, 0, [&]() -> absl::Status {
    if (size() == 1) return absl::OkStatus();
    PERIGEE_RETURN_IF_ERROR(SendToAll(0, ""));
    for (int i = 1; i < size(); ++i) PERIGEE_RETURN_IF_ERROR(Take((rank() + i) % size(), 0, 0).status());
    return absl::OkStatus();
  });
}

}  // namespace perigee::transport
