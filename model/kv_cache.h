// What the forward pass needs of a KV cache, whatever its form.
//
// For every layer, in order, the transformer calls Append with the chunk's fresh keys and values, then Attend with its
// queries. Shapes: keys, values [token][kv_head][head_dim] float, keys rotated at their positions;
// queries[layer][token][q_head][head_dim], rotated; out [token][q_head][head_dim]. A cache serves one sequence and one
// thread.
#ifndef PERIGEE_MODEL_KV_CACHE_H_
#define PERIGEE_MODEL_KV_CACHE_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace perigee::model {

class KvCache {
 public:
  virtual ~KvCache() = default;

  // Tokens held so far: the position of the next token.
  virtual int64_t tokens() const = 0;

  // Whether a later layer's Attend will ask for this layer's queries (score sharing).
  virtual bool KeepsQueriesOf(int layer) const = 0;

  // The chunk's tokens stand at positions [tokens(), tokens() + count) until the last layer is appended.
  virtual absl::Status Append(int layer, int count, const float* keys, const float* values) = 0;

  // queries[l] is null for layers above `layer`, and for lower ones unless KeepsQueriesOf(l).
  virtual absl::Status Attend(int layer, int count, std::span<const float* const> queries, float* out) = 0;

  // The chunk is complete in all layers: tokens() grows by `count`.
  virtual void Advance(int count) = 0;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_KV_CACHE_H_
