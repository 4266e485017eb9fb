// What the forward pass needs of a KV cache, whatever its form.
//
// For every layer, in order, the transformer calls Append with the chunk's fresh keys and values, then Attend with its
// queries. The chunk's tokens stand at `positions`, ascending: the next ones, one after the other, but for caches that
// have places for others (model/plane_cache.h). Shapes: keys, values [token][kv_head][head_dim] float, keys rotated at
// their positions; queries[layer][token][q_head][head_dim], rotated; out [token][q_head][head_dim]. A cache serves one
// sequence and one thread.
#ifndef PERIGEE_MODEL_KV_CACHE_H_
#define PERIGEE_MODEL_KV_CACHE_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace perigee::model {

class KvCache {
 public:
  virtual ~KvCache() = default;

  // The position of the next token: all before it are held, or have a place.
  virtual int64_t tokens() const = 0;

  // Whether a later layer's Attend will ask for this layer's queries (score sharing).
  virtual bool KeepsQueriesOf(int layer) const = 0;

  virtual absl::Status Append(int layer, std::span<const int64_t> positions, const float* keys,
                              const float* values) = 0;

  // queries[l] is null for layers above `layer`, and for lower ones unless KeepsQueriesOf(l).
  virtual absl::Status Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                              float* out) = 0;

  // The chunk is complete in all layers.
  virtual void Advance(std::span<const int64_t> positions) = 0;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_KV_CACHE_H_
