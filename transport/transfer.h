// Inside of transport/: a batch, cut into operations that rails take one after the other.
//
// Piece: a part of one extent. Operation: up to kOpBytes of pieces that travel as one message. Operations are handed
// out under the transfer's lock; what happens to one between TakeOp and OpDone is the taking rail's business.
#ifndef PERIGEE_TRANSPORT_TRANSFER_H_
#define PERIGEE_TRANSPORT_TRANSFER_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "transport/event.h"
#include "transport/transfer_batch.h"

namespace perigee::transport::internal {

class Core;
struct RemoteKey;
struct Link;

enum class Direction { kPut, kGet };

struct Extent {
  std::byte* local = nullptr;
  uint64_t remote = 0;
  size_t size = 0;
  const RemoteKey* key = nullptr;
  bool device = false;  // `local` is device memory
};

struct Piece {
  uint32_t extent = 0;
  size_t offset = 0;
  size_t size = 0;
  uint32_t crc32c = 0;
};

struct Operation {
  uint32_t first_piece = 0;
  uint32_t pieces = 0;
  size_t size = 0;
  bool direct = false;  // one run on both sides, in host memory: moves without staging
};

struct Transfer {
  // Plans the operations. `extents` in the caller's order.
  Transfer(Direction direction, std::vector<Extent> extents, const TransferOptions& options);

  const Direction direction;
  const absl::Time deadline;
  const bool checksums;
  std::vector<Extent> extents;
  std::vector<Piece> pieces;
  std::vector<Operation> operations;
  std::vector<std::shared_ptr<RemoteKey>> keys;  // kept alive
  std::shared_ptr<Link> link;
  Core* driver = nullptr;  // the rail that a waiter drives
  uint64_t bytes = 0;
  Event done;
  absl::Status result;  // written before `done`, read after

  std::span<Piece> PiecesOf(const Operation& op) { return std::span(pieces).subspan(op.first_piece, op.pieces); }
  std::byte* Local(const Piece& piece) const { return extents[piece.extent].local + piece.offset; }
  uint64_t Remote(const Piece& piece) const { return extents[piece.extent].remote + piece.offset; }
  const RemoteKey* Key(const Operation& op) const { return extents[pieces[op.first_piece].extent].key; }
  bool OnDevice(const Operation& op) const { return extents[pieces[op.first_piece].extent].device; }

  // A rail takes part from Attach to Detach.
  void Attach();
  // `unfinished`: operations that the rail took and did not end, which another rail may do. why: not OK when the rail
  // is lost: the transfer fails if no rail is left.
  void Detach(std::span<const uint32_t> unfinished, const absl::Status& why);

  // Nothing when all are taken, or the transfer has failed.
  std::optional<uint32_t> TakeOp();
  // Taken, but there is no room to start it now.
  void ReturnOp(uint32_t op);
  void OpDone(uint32_t op);
  // The first failure counts. The transfer ends when its rails have let go.
  void Fail(absl::Status why);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  absl::Status failure() const;

  bool extent_done(size_t extent) const { return remaining_[extent].load(std::memory_order_acquire) == 0; }
  // Blocks; does not drive. False when `until` comes first.
  bool WaitExtent(size_t extent, absl::Time until) const;
  uint32_t extent_crc32c(size_t extent) const;

 private:
  void Plan();
  void EndLocked();

  mutable std::mutex mutex_;
  mutable std::condition_variable moved_;
  std::deque<uint32_t> returned_;  // by rails that were lost
  uint32_t next_ = 0;
  size_t unfinished_ = 0;
  int rails_ = 0;
  absl::Status error_;
  std::atomic<bool> failed_{false};
  std::vector<uint32_t> first_piece_of_;                // by extent: index into by_extent_
  std::vector<uint32_t> by_extent_;                     // pieces in the order of extent, then offset
  std::unique_ptr<std::atomic<uint32_t>[]> remaining_;  // pieces not done, by extent
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_TRANSFER_H_
