// The decode node: brings a prompt's cache together (fetched planes, planes of earlier requests, and what has to be
// computed) and generates, attending over the planes as they are stored. Answers of all requests are generated in
// common passes (node/batch_engine.h); samples of one request share its prompt's blocks. A finished answer's planes
// stay in this node's memory and go to the store, for the conversation's next turn.
#ifndef PERIGEE_DECODE_NODE_DECODE_NODE_H_
#define PERIGEE_DECODE_NODE_DECODE_NODE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "decode_node/answer_group.h"
#include "decode_node/answer_writer.h"
#include "node/chunk_writer.h"
#include "node/composed_load.h"
#include "node/node.h"
#include "node/prompt_load.h"
#include "node/request_metrics.h"
#include "perigee/v1/decode.pb.h"

namespace perigee::decode_node {

struct DecodeOptions {
  int max_sequences = 64;         // Answers at once; more requests wait for a place, first come, first served.
  int chunk_tokens = 128;         // Of a prompt's missing part, computed between two tokens of the other answers.
  node::WriteOptions write = {};  // Of answers that are stored.
};

// Any thread may call, several at once.
class DecodeNode {
 public:
  // `node` outlives this object.
  explicit DecodeNode(const node::Node* node, const DecodeOptions& options = {});

  // Calls emit for every event; when it returns false (the reader is gone), or `cancelled`, asked now and then before
  // the first event, says so, the request ends with CANCELLED. Errors as in decode.proto; DEADLINE_EXCEEDED at the
  // deadline.
  absl::Status Generate(const v1::GenerateRequest& request, const std::function<bool(const v1::GenerateEvent&)>& emit,
                        absl::Time deadline = absl::InfiniteFuture(), const std::function<bool()>& cancelled = nullptr);
  const node::RequestMetrics& metrics() const { return metrics_; }

  AnswerWriter& writer() { return writer_; }
  AnswerWriterStats writer_stats() const { return writer_.stats(); }
  // Answers being generated, and requests waiting for a place.
  int running() const;
  int queued() const;
  int max_running() const { return options_.max_sequences; }

 private:
  class Place;
  absl::Status Answers(const v1::GenerateRequest& request, const std::function<bool(const v1::GenerateEvent&)>& emit,
                       absl::Time deadline, const std::function<bool()>& cancelled);
  void Count(const node::LoadReport& report, const v1::GenerateEvent::Started& started);
  absl::Status CheckRequest(const v1::GenerateRequest& request) const;
  // The prompt's cache, and the logits of its last token.
  absl::Status LoadPrompt(const v1::GenerateRequest& request, const pod::Identity& identity, absl::Time deadline,
                          const std::function<bool()>& cancelled, std::unique_ptr<model::PlaneCache>* cache,
                          std::vector<float>* logits, node::ComposedReport* report) const;
  // The same of a prompt in which contexts stand.
  absl::Status LoadComposed(const v1::GenerateRequest& request, const pod::Identity& identity, absl::Time deadline,
                            const std::function<bool()>& cancelled, std::unique_ptr<model::PlaneCache>* cache,
                            std::vector<float>* logits, node::ComposedReport* report) const;
  // Where answered_tokens hold the whole answer: what is left to say of it. False where they do not.
  absl::StatusOr<bool> FinishAnswered(const v1::GenerateRequest& request,
                                      const std::function<bool(const v1::GenerateEvent&)>& emit) const;
  void Describe(const v1::GenerateRequest& request, const node::ComposedReport& report,
                v1::GenerateEvent::Started* started) const;
  void KeepAnswers(const v1::GenerateRequest& request, const pod::Identity& identity, std::vector<Answer>& answers);

  const node::Node* const node_;
  const DecodeOptions options_;
  node::RequestMetrics metrics_;
  mutable AnswerWriter writer_;
  mutable absl::Mutex mu_;
  int running_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mu_) = 0;
  std::set<uint64_t> queue_ ABSL_GUARDED_BY(mu_);  // Tickets of those that wait for a place.
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_DECODE_NODE_H_
