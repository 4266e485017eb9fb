// Stop strings over streamed text: holds back what might be the beginning of one.
#ifndef PERIGEE_DECODE_NODE_STOP_TEXT_H_
#define PERIGEE_DECODE_NODE_STOP_TEXT_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace perigee::decode_node {

// One per answer; not thread-safe.
class StopText {
 public:
  // Empty stop texts are ignored.
  explicit StopText(std::vector<std::string> stops);

  // What can be shown now that `piece` arrived: never a stop text nor anything after it.
  std::string Push(absl::string_view piece);
  // What was held back, when the answer ends without a stop text.
  std::string Finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_STOP_TEXT_H_
