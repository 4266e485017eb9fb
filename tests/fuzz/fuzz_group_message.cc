// Messages between the ranks of a group: whatever the headers, a rank hears those of its group only, keeps no more than
// it may, and what it takes has come as it was encoded.
//
// An input is a list of deliveries: u16 length of the header, header. The payload is the header again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/time/time.h"
#include "base/bytes.h"
#include "transport/collective/inbox.h"

namespace {

using namespace perigee::transport::internal;  // NOLINT: the messages' names

constexpr uint64_t kGroup = 0x0807060504030201;
constexpr int kRank = 1, kSize = 3;
constexpr Operation kNow{.sequence = 5, .kind = OperationKind::kAllGather, .root = 0, .bytes = 64};

void Expect(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  Inbox inbox;
  inbox.Deliver(input, input);  // Before there is a group.
  inbox.Open(kGroup, kRank, kSize);
  Expect(inbox.Begin(kNow).ok());
  perigee::ByteReader r(input);
  while (r.remaining() > 0) {
    const uint16_t length = r.U16();
    const absl::string_view header = r.Raw(std::min<size_t>(length, r.remaining()));
    inbox.Deliver(header, header);
  }
  if (!inbox.status().ok()) Expect(!inbox.status().message().empty() && inbox.status().message().size() <= size + 200);
  for (const int from : {0, 2}) {
    for (uint32_t step = 0; step < 4; ++step) {
      if (!inbox.Ready(from, step)) continue;
      const auto payload = inbox.Take(from, step, absl::InfinitePast(), [] { return false; });
      if (payload.ok()) Expect(*payload == EncodeStep(kGroup, from, kNow, step));
    }
  }
  return 0;
}
