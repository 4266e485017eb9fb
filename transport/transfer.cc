#include "transport/transfer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/time/clock.h"
#include "base/crc32c.h"
#include "transport/core.h"
#include "transport/wire.h"

namespace perigee::transport::internal {
namespace {

// A run of neighbours at least this long has messages of its own; shorter ones share one, which costs a copy on the
// receiving side and saves a round trip each.
constexpr size_t kDirectBytes = size_t{192} << 10;

}  // namespace

Transfer::Transfer(Direction direction, std::vector<Extent> extents, const TransferOptions& options)
    : direction(direction), deadline(options.deadline), checksums(options.checksums), extents(std::move(extents)) {
  Plan();
}

void Transfer::Plan() {
  // Neighbours are found by address. Extents over different keys never share an operation.
  std::vector<uint32_t> order;
  order.reserve(extents.size());
  for (uint32_t i = 0; i < extents.size(); ++i) {
    if (extents[i].size > 0) order.push_back(i);
  }
  const auto neighbours = [&](const Extent& a, const Extent& b) {
    return a.key == b.key && a.device == b.device && a.remote + a.size == b.remote && a.local + a.size == b.local;
  };
  const auto before = [&](uint32_t i, uint32_t j) {
    const Extent &a = extents[i], &b = extents[j];
    if (a.key != b.key) return a.key < b.key;
    if (a.device != b.device) return b.device;
    return a.remote < b.remote;
  };
  if (!std::is_sorted(order.begin(), order.end(), before)) std::stable_sort(order.begin(), order.end(), before);

  Operation open;  // of short runs
  const auto close = [&] {
    if (open.pieces > 0) operations.push_back(open);
    open = {};
  };
  remaining_ = std::make_unique<std::atomic<uint32_t>[]>(extents.size());
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    size_t run_bytes = extents[order[begin]].size;
    while (end < order.size() && neighbours(extents[order[end - 1]], extents[order[end]])) {
      run_bytes += extents[order[end++]].size;
    }
    const Extent& first = extents[order[begin]];
    const bool large = run_bytes >= kDirectBytes;
    // Equal operations rather than full ones and a rest, which might be what must not be, see long_payloads.cc.
    size_t parts = (run_bytes + kOpBytes - 1) / kOpBytes;
    if (IsLong(run_bytes) && run_bytes <= kSegmentBytes) parts = 2;
    size_t left = run_bytes;
    const auto part = [&] { return large ? ((left + parts - 1) / parts + 4095) / 4096 * 4096 : kPackedBytes; };
    size_t part_bytes = part();
    if (large) close();
    for (size_t i = begin; i < end; ++i) {
      const Extent& extent = extents[order[i]];
      for (size_t offset = 0; offset < extent.size;) {
        if (open.pieces > 0) {
          const Extent& other = extents[pieces[open.first_piece].extent];
          if (large && open.size == part_bytes) {
            left -= open.size;
            parts--;
            part_bytes = part();
            close();
          } else if (!large && (other.key != extent.key || other.device != extent.device || open.pieces == kMaxPieces ||
                                open.size == part_bytes)) {
            close();
          }
        }
        if (open.pieces == 0) open.first_piece = static_cast<uint32_t>(pieces.size());
        const size_t room = part_bytes - open.size;
        const size_t size = std::min(extent.size - offset, room);
        pieces.push_back({order[i], offset, size, 0});
        remaining_[order[i]].fetch_add(1, std::memory_order_relaxed);
        open.pieces++;
        open.size += size;
        open.direct = large && !first.device;
        offset += size;
      }
    }
    if (large) close();
    bytes += run_bytes;
    begin = end;
  }
  close();
  unfinished_ = operations.size();

  by_extent_.resize(pieces.size());
  std::iota(by_extent_.begin(), by_extent_.end(), 0);
  std::stable_sort(by_extent_.begin(), by_extent_.end(), [&](uint32_t a, uint32_t b) {
    return std::pair(pieces[a].extent, pieces[a].offset) < std::pair(pieces[b].extent, pieces[b].offset);
  });
  first_piece_of_.assign(extents.size() + 1, 0);
  for (const Piece& piece : pieces) first_piece_of_[piece.extent + 1]++;
  std::partial_sum(first_piece_of_.begin(), first_piece_of_.end(), first_piece_of_.begin());
}

void Transfer::Attach() {
  std::lock_guard<std::mutex> lock(mutex_);
  rails_++;
}

void Transfer::Detach(std::span<const uint32_t> unfinished, const absl::Status& why) {
  std::lock_guard<std::mutex> lock(mutex_);
  returned_.insert(returned_.end(), unfinished.begin(), unfinished.end());
  rails_--;
  if (rails_ == 0 && unfinished_ > 0 && error_.ok()) {
    error_ = why.ok() ? absl::InternalError("the transfer's last rail left with work undone") : why;
    failed_ = true;
  }
  EndLocked();
}

std::optional<uint32_t> Transfer::TakeOp() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.ok()) return std::nullopt;
  if (!returned_.empty()) {
    const uint32_t op = returned_.front();
    returned_.pop_front();
    return op;
  }
  if (next_ == operations.size()) return std::nullopt;
  return next_++;
}

void Transfer::ReturnOp(uint32_t op) {
  std::lock_guard<std::mutex> lock(mutex_);
  returned_.push_front(op);
}

void Transfer::OpDone(uint32_t op) {
  std::lock_guard<std::mutex> lock(mutex_);
  bool extents_done = false;
  for (const Piece& piece : PiecesOf(operations[op])) {
    extents_done |= remaining_[piece.extent].fetch_sub(1, std::memory_order_release) == 1;
  }
  unfinished_--;
  if (extents_done) moved_.notify_all();
  EndLocked();
}

void Transfer::Fail(absl::Status why) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.ok() || unfinished_ == 0) return;
  error_ = std::move(why);
  failed_ = true;
}

absl::Status Transfer::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

// All bytes have moved, whatever the rails still hold of it; or it has failed and no rail holds anything.
void Transfer::EndLocked() {
  if (done.Happened() || (unfinished_ > 0 && (rails_ > 0 || error_.ok()))) return;
  result = unfinished_ == 0 ? absl::OkStatus() : error_;
  Counters& counters = link->shared->counters;
  if (!result.ok()) {
    counters.failed_batches++;
  } else if (direction == Direction::kPut) {
    counters.put_bytes += bytes;
    counters.put_transfers += extents.size();
  } else {
    counters.get_bytes += bytes;
    counters.get_transfers += extents.size();
  }
  done.Notify();
  moved_.notify_all();
}

bool Transfer::WaitExtent(size_t extent, absl::Time until) const {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!extent_done(extent) && !done.Happened()) {
    const absl::Time now = absl::Now();
    if (now >= until) return false;
    moved_.wait_for(lock, absl::ToChronoMicroseconds(std::min(until - now, absl::Seconds(60))));
  }
  return true;
}

uint32_t Transfer::extent_crc32c(size_t extent) const {
  uint32_t crc = 0;
  for (uint32_t i = first_piece_of_[extent]; i < first_piece_of_[extent + 1]; ++i) {
    const Piece& piece = pieces[by_extent_[i]];
    crc = i == first_piece_of_[extent] ? piece.crc32c : Crc32cCombine(crc, piece.crc32c, piece.size);
  }
  return crc;
}

}  // namespace perigee::transport::internal
