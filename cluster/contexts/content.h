// What a context was registered with, as registries store it: a byte that says which, then
//   'T'  the text, UTF-8
//   'I'  the digest of the tokenizer that the ids are of (32 bytes), and the ids, four bytes each, little-endian
#ifndef PERIGEE_CLUSTER_CONTEXTS_CONTENT_H_
#define PERIGEE_CLUSTER_CONTEXTS_CONTENT_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/bytes.h"

namespace perigee::cluster {

using ContextContent = std::variant<std::string, std::vector<int32_t>>;  // A text, or token ids.

struct StoredContent {
  ContextContent content;
  Digest tokenizer{};  // Of token ids.
};

std::string PackContent(const StoredContent& stored);
// DATA_LOSS for other bytes.
absl::StatusOr<StoredContent> UnpackContent(absl::string_view bytes);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_CONTENT_H_
