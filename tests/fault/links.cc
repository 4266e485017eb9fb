#include "links.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/bytes.h"
#include "base/status.h"
#include "hosts.h"

namespace perigee::fault {
namespace {

static_assert(kShortBytes % 8 == 0 && kLongBytes % 8 == 0 && kGapBytes % 8 == 0);

uint64_t Word(uint64_t seed, uint64_t offset) {
  uint64_t x = (seed << 40) ^ offset ^ 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

void FillRange(std::span<std::byte> region, size_t begin, size_t end, uint64_t seed) {
  for (size_t at = begin; at < end; at += 8) {
    const uint64_t word = Word(seed, at);
    std::memcpy(region.data() + at, &word, 8);
  }
}

size_t CountRange(std::span<const std::byte> region, size_t begin, size_t end, uint64_t seed) {
  size_t wrong = 0;
  for (size_t at = begin; at < end; at += 8) {
    const uint64_t word = Word(seed, at);
    if (std::memcmp(region.data() + at, &word, 8) == 0) continue;
    std::byte expected[8];
    std::memcpy(expected, &word, 8);
    for (size_t i = 0; i < 8; ++i) wrong += region[at + i] != expected[i];
  }
  return wrong;
}

// fn(begin, end, is_piece); a region is a multiple of 8 bytes.
template <typename Fn>
void ForRanges(size_t bytes, Fn fn) {
  // Seven short ones, which share messages, and a long one.
  for (size_t begin = 0, piece = 0; begin < bytes; ++piece) {
    const size_t middle = std::min(begin + (piece % 8 == 7 ? kLongBytes : kShortBytes), bytes);
    const size_t end = std::min(middle + kGapBytes, bytes);
    fn(begin, middle, true);
    fn(middle, end, false);
    begin = end;
  }
}

template <typename Transfer>
std::vector<Transfer> Pieces(const Link& link, std::span<std::byte> local) {
  std::vector<Transfer> pieces;
  ForRanges(local.size(), [&](size_t begin, size_t end, bool is_piece) {
    if (is_piece) pieces.push_back({local.subspan(begin, end - begin), link.region.address() + begin, &link.region});
  });
  return pieces;
}

}  // namespace

void Fill(std::span<std::byte> region, uint64_t seed) { FillRange(region, 0, region.size(), seed); }

void FillPieces(std::span<std::byte> region, uint64_t seed) {
  ForRanges(region.size(), [&](size_t begin, size_t end, bool is_piece) {
    if (is_piece) FillRange(region, begin, end, seed);
  });
}

size_t CountWrong(std::span<const std::byte> region, uint64_t piece_seed, uint64_t gap_seed) {
  size_t wrong = 0;
  ForRanges(region.size(), [&](size_t begin, size_t end, bool is_piece) {
    wrong += CountRange(region, begin, end, is_piece ? piece_seed : gap_seed);
  });
  return wrong;
}

size_t CountWrongInGaps(std::span<const std::byte> region, uint64_t gap_seed) {
  size_t wrong = 0;
  ForRanges(region.size(), [&](size_t begin, size_t end, bool is_piece) {
    if (!is_piece) wrong += CountRange(region, begin, end, gap_seed);
  });
  return wrong;
}

std::unique_ptr<transport::Context> MakeContext() {
  auto context = transport::Context::Create({.transports = "tcp", .guarded = true});
  if (!context.ok()) {
    std::fprintf(stderr, "%s\n", context.status().ToString().c_str());
    std::abort();
  }
  // Who belongs to the network; in a cluster, the control plane says so.
  for (const Place place : {Place::kHostA, Place::kHostB}) {
    for (int rail = 0; rail < 2; ++rail) {
      // The router too: its proxy connects in their name.
      for (const std::string& address : {Network::Address(place, rail), Network::Gateway(place, rail)}) {
        const absl::Status admitted = (*context)->Admit(address);
        if (!admitted.ok()) std::fprintf(stderr, "%s\n", admitted.ToString().c_str());
      }
    }
  }
  return *std::move(context);
}

absl::StatusOr<Served> Serve(transport::Context& context, const std::string& address, uint16_t port, size_t bytes) {
  Served served;
  PERIGEE_ASSIGN_OR_RETURN(served.region, context.AllocateMemory(bytes));
  PERIGEE_ASSIGN_OR_RETURN(served.listener, context.Listen(address, port, transport::TrustEveryone));
  const std::string& key = served.region.remote_key();
  served.key = ToHex({reinterpret_cast<const uint8_t*>(key.data()), key.size()});
  return served;
}

absl::StatusOr<Link> Open(transport::Context& context, const std::string& address, uint16_t port,
                          const std::string& key, absl::Time deadline) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string packed, FromHex(key));
  Link link;
  PERIGEE_ASSIGN_OR_RETURN(link.endpoint, context.Connect(address, port, deadline));
  PERIGEE_ASSIGN_OR_RETURN(link.region, link.endpoint.UnpackRemoteKey(packed));
  return link;
}

absl::StatusOr<transport::TransferBatch> StartMove(const Link& link, Way way, std::span<std::byte> local,
                                                   absl::Time deadline) {
  if (way == Way::kGet)
    return link.endpoint.StartGet(Pieces<transport::GetTransfer>(link, local), {.deadline = deadline});
  return link.endpoint.StartPut(Pieces<transport::PutTransfer>(link, local), {.deadline = deadline});
}

absl::Status Move(const Link& link, Way way, std::span<std::byte> local, absl::Time deadline) {
  PERIGEE_ASSIGN_OR_RETURN(transport::TransferBatch batch, StartMove(link, way, local, deadline));
  return batch.Wait();
}

bool IsRetryable(const absl::Status& status) { return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status); }

}  // namespace perigee::fault
