// The decode node: fetches a prompt's planes (distant ones of all blocks, proximal ones of the sink and the window
// only) and generates, attending over the planes as they arrive: layer l of the first token runs while those of later
// layers travel.
#ifndef PERIGEE_DECODE_NODE_DECODE_NODE_H_
#define PERIGEE_DECODE_NODE_DECODE_NODE_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "node/node.h"
#include "node/prompt_fetch.h"
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
  // Null for a prompt of one token. NOT_FOUND when planes are missing.
  absl::StatusOr<std::unique_ptr<node::PromptFetch>> FetchPrompt(const v1::GenerateRequest& request,
                                                                 const pod::Identity& identity,
                                                                 model::PlaneCache& cache) const;
  void Describe(const v1::GenerateRequest& request, const node::PromptFetch* fetch,
                v1::GenerateEvent::Started* started) const;
  const node::Node* const node_;
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_DECODE_NODE_H_
