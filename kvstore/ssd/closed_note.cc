#include "kvstore/ssd/closed_note.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/file.h"

namespace perigee::kvstore {
namespace {

std::string FileOf(const std::string& path) { return path + "/CLOSED"; }

}  // namespace

// "sequence 12 planes 3 crc32c 305419896\n", the checksum over what is before its word.
std::string EncodeClosedNote(const ClosedNote& note) {
  const std::string text = absl::StrCat("sequence ", note.sequence, " planes ", note.planes);
  return absl::StrCat(text, " crc32c ", Crc32c(AsBytes(text)), "\n");
}

std::optional<ClosedNote> DecodeClosedNote(absl::string_view text) {
  ClosedNote note;
  const std::vector<absl::string_view> words = absl::StrSplit(text, ' ');
  if (words.size() != 6 || !absl::SimpleAtoi(words[1], &note.sequence) || !absl::SimpleAtoi(words[3], &note.planes) ||
      EncodeClosedNote(note) != text) {
    return std::nullopt;
  }
  return note;
}

std::optional<ClosedNote> ReadClosedNote(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(FileOf(path), 4096);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  if (text.ok()) {
    if (const std::optional<ClosedNote> note = DecodeClosedNote(*text)) return note;
  }
  spdlog::warn("{} cannot be read; whether the index is all there is not checked", FileOf(path));
  return std::nullopt;
}

absl::Status WriteClosedNote(const std::string& path, const ClosedNote& note) {
  return WriteFileAtomically(FileOf(path), EncodeClosedNote(note));
}

void RemoveClosedNote(const std::string& path) { ::unlink(FileOf(path).c_str()); }

absl::Status CheckClosedNote(const std::string& path, const ClosedNote& note, const ClosedNote& now) {
  std::string what;
  if (now.sequence < note.sequence) {
    what = absl::StrCat("its last ", note.sequence - now.sequence, " writes are missing");
  } else if (now.sequence == note.sequence && now.planes != note.planes) {
    what = absl::StrCat("it has ", now.planes, " planes, ", note.planes, " were there when it was closed");
  } else {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("the store's index ", path, "/index is damaged: ", what,
                                          "; planes that were deleted may be back. Put the index back, empty ", path,
                                          ", or delete ", FileOf(path), " to go on with what is left"));
}

}  // namespace perigee::kvstore
