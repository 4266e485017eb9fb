// The decode node: fetches a prompt's planes (distant ones of all blocks, proximal ones of the sink and the window
// only), then generates, attending over the planes as they arrived.
#ifndef PERIGEE_DECODE_NODE_DECODE_NODE_H_
#define PERIGEE_DECODE_NODE_DECODE_NODE_H_

#include <functional>

#include "absl/status/status.h"
#include "node/node.h"
#include "perigee/v1/decode.pb.h"

namespace perigee::decode_node {

// Any thread may call, several at once.
class DecodeNode {
 public:
  // `node` outlives this object.
  explicit DecodeNode(const node::Node* node) : node_(node) {}

  // Calls emit for every event; when it returns false (the reader is gone) generation ends with CANCELLED. Errors as in
  // decode.proto.
  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<bool(const v1::GenerateEvent&)>& emit) const;

 private:
  absl::Status CheckRequest(const v1::GenerateRequest& request) const;
  absl::Status FetchPrompt(const v1::GenerateRequest& request, const pod::Identity& identity, model::PlaneCache& cache,
                           v1::GenerateEvent::Started* started) const;
  const node::Node* const node_;
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_DECODE_NODE_H_
