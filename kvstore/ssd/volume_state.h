// Internal to the SSD tier: what a path says of itself in a few bytes: the text of <path>/FORMAT, and the keys of its
// index that are no planes (docs/formats.md, sections 6 and 6.2). Bytes and their meaning only; who reads and writes
// them is in ssd_volume.h.
#ifndef PERIGEE_KVSTORE_SSD_VOLUME_STATE_H_
#define PERIGEE_KVSTORE_SSD_VOLUME_STATE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kvstore/ssd/ssd_types.h"

namespace perigee::kvstore {

// Of a new folder.
std::string EncodeFormat();
// OK, or FAILED_PRECONDITION that names the folder and says what to do. text: FORMAT's.
absl::Status CheckFormat(const std::string& path, absl::string_view text);

inline constexpr absl::string_view kAbsenceKey = "perigee.absence";
inline constexpr absl::string_view kStatisticsKey = "perigee.statistics";
// Whether it is one of the index's keys that are no planes, known here or not.
bool IsOwnKey(absl::string_view key);

// See SsdTier::NoteDeletion. nullopt for what is none.
std::string EncodeAbsence(uint64_t absence);
std::optional<uint64_t> DecodeAbsence(absl::string_view value);

// nullopt for anything but the exact bytes of EncodeStatistics.
std::string EncodeStatistics(const SsdCounters& counters);
std::optional<SsdCounters> DecodeStatistics(absl::string_view value);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_VOLUME_STATE_H_
