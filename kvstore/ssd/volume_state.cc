#include "kvstore/ssd/volume_state.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"

namespace perigee::kvstore {
namespace {

constexpr absl::string_view kFormatName = "perigee ssd tier ";
constexpr int kFormatVersion = 1;
constexpr absl::string_view kOwnKeys = "perigee.";
constexpr size_t kPlaneKeyBytes = 33;
static_assert(kAbsenceKey.size() != kPlaneKeyBytes && kStatisticsKey.size() != kPlaneKeyBytes);

constexpr uint8_t kStatisticsVersion = 1;
constexpr uint64_t SsdCounters::*kCounters[] = {&SsdCounters::written_bytes,  &SsdCounters::compacted_bytes,
                                                &SsdCounters::scrubbed_bytes, &SsdCounters::scrub_passes,
                                                &SsdCounters::wrong_records,  &SsdCounters::unreadable_records};

}  // namespace

std::string EncodeFormat() { return absl::StrCat(kFormatName, kFormatVersion, "\n"); }

absl::Status CheckFormat(const std::string& path, absl::string_view text) {
  int version = 0;
  if (!absl::StartsWith(text, kFormatName) || !absl::SimpleAtoi(text.substr(kFormatName.size()), &version)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, "/FORMAT is not a store's: this folder holds something else"));
  }
  if (version != kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the store's folder ", path, " is of version ", version,
                                                      ", this program reads version ", kFormatVersion,
                                                      ": start the program that wrote it"));
  }
  return absl::OkStatus();
}

bool IsOwnKey(absl::string_view key) { return absl::StartsWith(key, kOwnKeys) && key.size() != kPlaneKeyBytes; }

std::string EncodeAbsence(uint64_t absence) {
  ByteWriter w;
  w.U64(absence);
  return w.Take();
}

std::optional<uint64_t> DecodeAbsence(absl::string_view value) {
  if (value.size() != 8) return std::nullopt;
  return ByteReader(value).U64();
}

// Version | 6 counters | CRC32C of what is before it.
std::string EncodeStatistics(const SsdCounters& counters) {
  ByteWriter w;
  w.U8(kStatisticsVersion);
  for (const auto counter : kCounters) w.U64(counters.*counter);
  w.U32(Crc32c(AsBytes(w.bytes())));
  return w.Take();
}

std::optional<SsdCounters> DecodeStatistics(absl::string_view value) {
  if (value.size() != 1 + 6 * 8 + 4) return std::nullopt;
  ByteReader r(value);
  const uint8_t version = r.U8();
  SsdCounters counters;
  for (const auto counter : kCounters) counters.*counter = r.U64();
  const bool right = version == kStatisticsVersion && r.U32() == Crc32c(AsBytes(value.substr(0, value.size() - 4)));
  return right ? std::optional(counters) : std::nullopt;
}

}  // namespace perigee::kvstore
