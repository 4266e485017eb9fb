// Stores and nodes in the test's own process, and what a decode node answers.
#ifndef PERIGEE_TESTS_NODE_NODES_H_
#define PERIGEE_TESTS_NODE_NODES_H_

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "decode_node/decode_node.h"
#include "kvstore/server.h"
#include "node/node.h"

namespace perigee {

constexpr int kBlockTokens = 64;
inline const char* const kModel = PERIGEE_SOURCE_DIR "/models/podling";

inline std::unique_ptr<kvstore::StoreServer> StartStore(uint64_t slab_bytes) {
  kvstore::ServerOptions options;
  options.port = 0;
  options.slab_bytes = slab_bytes;
  auto server = kvstore::StoreServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

inline std::unique_ptr<node::Node> StartNode(const std::string& plan, const std::string& store,
                                             size_t pool_bytes = size_t{64} << 20,
                                             const kvstore::ClientOptions& client = {}) {
  auto node = node::Node::Create({.model = {.folder = kModel, .plan_file = plan, .block_tokens = kBlockTokens},
                                  .store_address = store,
                                  .transports = {},
                                  .pool_bytes = pool_bytes,
                                  .keep_planes = false,  // Most tests are about what is fetched.
                                  .recompute = false,
                                  .store_timeout = absl::Seconds(10),
                                  .store = client});
  EXPECT_TRUE(node.ok()) << node.status();
  return *std::move(node);
}

inline std::vector<int32_t> Ids(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = 2 + static_cast<int32_t>(random() % 1000);
  return ids;
}

inline std::vector<int32_t> Joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Answer {
  absl::Status status;
  v1::GenerateEvent::Started started;
  v1::GenerateEvent::Finished finished;
  std::vector<int32_t> tokens;
  std::string text;
  int starts = 0, finishes = 0;
};

inline Answer Generate(decode_node::DecodeNode& decode, const v1::GenerateRequest& request) {
  Answer answer;
  answer.status = decode.Generate(request, [&](const v1::GenerateEvent& event) {
    if (event.has_started()) {
      ++answer.starts;
      answer.started = event.started();
    } else if (event.has_token()) {
      answer.tokens.push_back(event.token().id());
      answer.text += event.token().text();
    } else {
      ++answer.finishes;
      answer.finished = event.finished();
      answer.text += event.finished().text();
    }
    return true;
  });
  return answer;
}

inline Answer Generate(decode_node::DecodeNode&& decode, const v1::GenerateRequest& request) {
  return Generate(decode, request);
}

}  // namespace perigee

#endif  // PERIGEE_TESTS_NODE_NODES_H_
