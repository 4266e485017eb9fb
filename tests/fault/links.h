// All that the fault tests and their peer program want of transport/, in one place: serve a region, open a link to one,
// move scattered pieces, and tell right bytes from wrong ones.
//
// A region is cut in pieces, short and long in turns, with gaps between them: short ones travel together with their
// messages, long ones by rendezvous. Transfers touch the pieces only; the gaps show whether anything was written that
// nobody asked for. Bytes are a function of seed and offset in the region, so that a wrong, stale or displaced byte is
// seen as such.
#ifndef PERIGEE_TESTS_FAULT_LINKS_H_
#define PERIGEE_TESTS_FAULT_LINKS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "transport/context.h"

namespace perigee::fault {

inline constexpr size_t kShortBytes = 60 << 10;
inline constexpr size_t kLongBytes = 700 << 10;
inline constexpr size_t kGapBytes = 4 << 10;
inline constexpr size_t kRegionBytes = size_t{32} << 20;
// How much later than its deadline an operation may end.
inline constexpr absl::Duration kGrace = absl::Seconds(2);

void Fill(std::span<std::byte> region, uint64_t seed);
// Writes the seed's bytes into the pieces and leaves the gaps.
void FillPieces(std::span<std::byte> region, uint64_t seed);
// Bytes that are not those of `piece_seed` in pieces, of `gap_seed` in gaps.
size_t CountWrong(std::span<const std::byte> region, uint64_t piece_seed, uint64_t gap_seed);
// Wrong bytes in the gaps alone.
size_t CountWrongInGaps(std::span<const std::byte> region, uint64_t gap_seed);

std::unique_ptr<transport::Context> MakeContext();

// A region that others reach.
struct Served {
  transport::MemoryRegion region;
  transport::Listener listener;
  std::string key;  // hex
};
absl::StatusOr<Served> Serve(transport::Context& context, const std::string& address, uint16_t port, size_t bytes);

struct Link {
  transport::Endpoint endpoint;
  transport::RemoteRegion region;
};
absl::StatusOr<Link> Open(transport::Context& context, const std::string& address, uint16_t port,
                          const std::string& key, absl::Time deadline);

enum class Way { kGet, kPut };

// All pieces of the region from or to `local`, which is as large as the region. Start: the batch goes on.
absl::Status Move(const Link& link, Way way, std::span<std::byte> local, absl::Time deadline);
absl::StatusOr<transport::TransferBatch> StartMove(const Link& link, Way way, std::span<std::byte> local,
                                                   absl::Time deadline);

// UNAVAILABLE or DEADLINE_EXCEEDED: connect and try again.
bool IsRetryable(const absl::Status& status);

}  // namespace perigee::fault

#endif  // PERIGEE_TESTS_FAULT_LINKS_H_
