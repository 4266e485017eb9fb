// Stores and nodes in the test's own process, and what a decode node answers.
#ifndef PERIGEE_TESTS_NODE_NODES_H_
#define PERIGEE_TESTS_NODE_NODES_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "decode_node/decode_node.h"
#include "kvstore/server.h"
#include "node/node.h"
#include "perigee/v1/prefill.pb.h"

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

// What most tests want: planes that are fetched, and not kept or computed again.
inline node::NodeOptions NodeOptionsFor(const std::string& plan, const std::string& store) {
  return {.model = {.folder = kModel, .plan_file = plan, .block_tokens = kBlockTokens},
          .store_address = store,
          .transports = {},
          .pool_bytes = size_t{64} << 20,
          .keep_planes = false,
          .recompute = false,
          .store_timeout = absl::Seconds(10)};
}

inline std::unique_ptr<node::Node> StartNode(const node::NodeOptions& options) {
  auto node = node::Node::Create(options);
  EXPECT_TRUE(node.ok()) << node.status();
  return *std::move(node);
}

inline std::unique_ptr<node::Node> StartNode(const std::string& plan, const std::string& store,
                                             size_t pool_bytes = size_t{64} << 20,
                                             const kvstore::ClientOptions& client = {}) {
  node::NodeOptions options = NodeOptionsFor(plan, store);
  options.pool_bytes = pool_bytes;
  options.store = client;
  return StartNode(options);
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

inline v1::PrefillRequest SegmentsOf(const std::vector<std::vector<int32_t>>& segments,
                                     const std::string& tenant = "") {
  v1::PrefillRequest request;
  request.mutable_scope()->set_tenant(tenant);
  for (const auto& ids : segments) {
    request.add_segments()->mutable_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
  }
  return request;
}

inline v1::GenerateRequest AskFor(const std::vector<int32_t>& ids, uint32_t max_tokens,
                                  const std::string& tenant = "") {
  v1::GenerateRequest request;
  request.mutable_scope()->set_tenant(tenant);
  request.mutable_token_ids()->Assign(ids.begin(), ids.end());
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

// Until it is so; false after 20 s.
inline bool Becomes(const std::function<bool()>& so) {
  for (const absl::Time deadline = absl::Now() + absl::Seconds(20); !so();) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

// Breaks one byte of a stored plane: its last, which the last section holds.
inline void Corrupt(kvstore::StoreServer& store, const kvstore::PlaneId& id) {
  const auto held = store.store().Acquire({&id, 1}, absl::Seconds(60));
  ASSERT_TRUE(held.ok() && held->planes[0].found);
  reinterpret_cast<char*>(held->planes[0].address)[held->planes[0].payload_bytes - 1] ^= 1;
  ASSERT_TRUE(store.store().Release(held->id, 0, 0).ok());
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
