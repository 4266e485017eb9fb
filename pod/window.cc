#include "pod/window.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace perigee::pod {

absl::Status ValidateWindow(const Window& window) {
  constexpr int32_t kMax = 1 << 30;
  if (window.recent_tokens < 1 || window.recent_tokens > kMax) {
    return absl::InvalidArgumentError(absl::StrCat("window: recent_tokens is ", window.recent_tokens,
                                                   "; it must be at least 1 (the current token) and at most ", kMax));
  }
  if (window.sink_tokens < 0 || window.sink_tokens > kMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("window: sink_tokens is ", window.sink_tokens, "; it must be between 0 and ", kMax));
  }
  return absl::OkStatus();
}

int64_t SinkEnd(const Window& window, int block_tokens) {
  return (int64_t{window.sink_tokens} + block_tokens - 1) / block_tokens * block_tokens;
}

int64_t RecentBegin(const Window& window, int block_tokens, int64_t position) {
  const int64_t first = std::max<int64_t>(0, position - window.recent_tokens + 1);
  return first / block_tokens * block_tokens;
}

bool IsSpanNear(const Window& window, int64_t first, int64_t last, int64_t position) {
  return first < window.sink_tokens || last > position - window.recent_tokens;
}

bool IsNear(const Window& window, int block_tokens, int64_t block_begin, int64_t position) {
  return IsSpanNear(window, block_begin, block_begin + block_tokens - 1, position);
}

}  // namespace perigee::pod
