// What a path of the SSD tier says of itself in a few bytes: CLOSED, FORMAT, and the index's keys that are no planes.
// Whatever the bytes, what is accepted is encoded to the same bytes, and what is refused is refused with words. The
// first byte chooses. What has a checksum is tried as it is and with the right one, since no mutation gets past it.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "kvstore/ssd/closed_note.h"
#include "kvstore/ssd/volume_state.h"

namespace {

using namespace perigee::kvstore;  // NOLINT: the format's names
using perigee::AsBytes;
using perigee::Crc32c;

constexpr char kPath[] = "/a/path";

void Expect(bool condition) {
  if (!condition) std::abort();
}

void TryNote(absl::string_view text) {
  const std::optional<ClosedNote> note = DecodeClosedNote(text);
  if (!note) return;
  Expect(EncodeClosedNote(*note) == text);
  // It fits what it tells of, and says so of nothing that has less in it.
  Expect(CheckClosedNote(kPath, *note, *note).ok());
  ClosedNote less = *note;
  if (less.sequence-- > 0) Expect(absl::StrContains(CheckClosedNote(kPath, *note, less).message(), kPath));
  less = *note;
  if (less.planes-- > 0) Expect(absl::StrContains(CheckClosedNote(kPath, *note, less).message(), kPath));
}

void TryNotes(absl::string_view text) {
  TryNote(text);
  const absl::string_view before = text.substr(0, text.find(" crc32c"));
  TryNote(absl::StrCat(before, " crc32c ", Crc32c(AsBytes(before)), "\n"));
}

void TryFormat(absl::string_view text) {
  const absl::Status status = CheckFormat(kPath, text);
  if (status.ok()) {
    // White space and zeros are let pass, another number is not.
    Expect(absl::StartsWith(text, "perigee ssd tier ") && text.find_first_of("23456789", 17) == text.npos);
  } else {
    Expect(absl::IsFailedPrecondition(status) && absl::StrContains(status.message(), kPath));
    Expect(text != EncodeFormat() && status.message().size() < 200);
  }
}

void TryStatistics(absl::string_view value) {
  const std::optional<SsdCounters> counters = DecodeStatistics(value);
  if (counters) Expect(EncodeStatistics(*counters) == value);
}

void TryAllStatistics(absl::string_view value) {
  TryStatistics(value);
  perigee::ByteWriter w;
  w.Raw(value.substr(0, value.size() < 4 ? 0 : value.size() - 4));
  w.U32(Crc32c(AsBytes(w.bytes())));
  TryStatistics(w.bytes());
}

void TryAbsence(absl::string_view value) {
  const std::optional<uint64_t> absence = DecodeAbsence(value);
  if (absence) Expect(EncodeAbsence(*absence) == value);
  // The tier's own keys, and no plane's.
  if (IsOwnKey(value)) Expect(absl::StartsWith(value, "perigee.") && !DecodeIndexEntry(value, "").ok());
  Expect(IsOwnKey(kAbsenceKey) && IsOwnKey(kStatisticsKey));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      TryNotes(input);
      break;
    case 1:
      TryFormat(input);
      break;
    case 2:
      TryAllStatistics(input);
      break;
    default:
      TryAbsence(input);
  }
  return 0;
}
