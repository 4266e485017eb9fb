// Internal to the SSD tier: what a path was like when it was closed, in <path>/CLOSED, so that the next start can tell
// whether the index is still all there.
//
// RocksDB takes a damaged end of its journal for a write that a crash cut off, and goes on without it: synced writes
// would be missing and, worse, what they deleted would be back, without a word. The note is beside RocksDB's files and
// has a checksum of its own. After a crash there is none, and nothing to compare.
#ifndef PERIGEE_KVSTORE_SSD_CLOSED_NOTE_H_
#define PERIGEE_KVSTORE_SSD_CLOSED_NOTE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace perigee::kvstore {

struct ClosedNote {
  uint64_t sequence = 0;  // SsdIndex::sequence, all of it synced.
  uint64_t planes = 0;    // Entries of planes in the index.
};

// The file's text; nullopt for anything but exactly that.
std::string EncodeClosedNote(const ClosedNote& note);
std::optional<ClosedNote> DecodeClosedNote(absl::string_view text);

// nullopt without one, and for one that is damaged itself (said in the log).
std::optional<ClosedNote> ReadClosedNote(const std::string& path);
absl::Status WriteClosedNote(const std::string& path, const ClosedNote& note);
void RemoveClosedNote(const std::string& path);

// OK, or DATA_LOSS that names the index and says what to do. now: what the opened index has. A later sequence than the
// note's means that the note is of an earlier closing, and says nothing of the number of planes.
absl::Status CheckClosedNote(const std::string& path, const ClosedNote& note, const ClosedNote& now);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_CLOSED_NOTE_H_
