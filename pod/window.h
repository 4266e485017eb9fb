// The proximal window: which blocks a query attends with their own keys ("near") and which with their lead's ("far").
//
// The window of a query at position i is the first sink_tokens and the last recent_tokens, counting the query's own
// token (arXiv 2412.02252, section 2.2 and figure 2), both rounded outward to block borders: a block that holds one
// near token is wholly near. Everything is a pure function of i, so that prefill, decode and the reference draw the
// same line.
#ifndef PERIGEE_POD_WINDOW_H_
#define PERIGEE_POD_WINDOW_H_

#include <cstdint>

#include "absl/status/status.h"

namespace perigee::pod {

struct Window {
  int32_t sink_tokens = 16;
  int32_t recent_tokens = 4096;

  friend bool operator==(const Window&, const Window&) = default;
};

// recent_tokens >= 1 (a query always sees its own key), sink_tokens >= 0, both at most 2^30.
absl::Status ValidateWindow(const Window& window);

// Positions [0, SinkEnd) are near to every query.
int64_t SinkEnd(const Window& window, int block_tokens);

// Positions [RecentBegin, position] are near to the query at `position`. Grows with the position.
int64_t RecentBegin(const Window& window, int block_tokens, int64_t position);

// Whether a block whose first token stands at `first` (at most `position`: no query sees a later block) and whose last
// one at `last` is near to the query at `position`. It may begin anywhere and hold any number of tokens. While a block
// is being filled `last` grows, which only makes it nearer.
bool IsSpanNear(const Window& window, int64_t first, int64_t last, int64_t position);

// The same of a whole block that starts at `block_begin`, a multiple of block_tokens.
bool IsNear(const Window& window, int block_tokens, int64_t block_begin, int64_t position);

}  // namespace perigee::pod

#endif  // PERIGEE_POD_WINDOW_H_
