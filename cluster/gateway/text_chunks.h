// The chunks of a text whose sender says what separates them (a document each, before the question), and which of a
// request's chunks are contexts. Internal to cluster/gateway.
#ifndef PERIGEE_CLUSTER_GATEWAY_TEXT_CHUNKS_H_
#define PERIGEE_CLUSTER_GATEWAY_TEXT_CHUNKS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/contexts/chunk_index.h"
#include "cluster/gateway/backend.h"
#include "model/tokenizer.h"

namespace perigee::cluster {

// A shorter one costs more to fetch and to repair than to compute.
inline constexpr size_t kMinChunkTokens = 64;

struct TextChunk {
  size_t begin = 0, end = 0;  // Bytes of the text.
  std::vector<int32_t> ids;   // As it has them alone, which is as a registered context of this text has them.
};

// The text is cut at each occurrence of `separator` ("": nowhere), from its beginning on; its last piece is the
// question, and each other one a chunk if it has kMinChunkTokens and nothing stands inside of it. What is no chunk is
// text, as separators are. `places`: bytes before which something stands, ascending. At most `most` chunks, the first
// ones.
absl::StatusOr<std::vector<TextChunk>> CutChunks(const model::Tokenizer& tokenizer, absl::string_view text,
                                                 absl::string_view separator, std::span<const size_t> places,
                                                 size_t most);

// Those of the request's chunks that the index takes for contexts become contexts; the others stay what they are.
void AdmitChunks(ChunkIndex& index, BackendRequest& request);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_TEXT_CHUNKS_H_
