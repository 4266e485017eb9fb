#include "decode_node/stop_text.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"

namespace perigee::decode_node {

StopText::StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
}

std::string StopText::Push(absl::string_view piece) {
  if (stopped_) return "";
  held_.append(piece.data(), piece.size());
  size_t end = std::string::npos;
  for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
  if (end != std::string::npos) {
    stopped_ = true;
    std::string shown = held_.substr(0, end);
    held_.clear();
    return shown;
  }
  // Keep the longest tail that begins some stop text.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (absl::EndsWith(held_, absl::string_view(stop).substr(0, n))) keep = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopText::Finish() { return std::exchange(held_, {}); }

}  // namespace perigee::decode_node
