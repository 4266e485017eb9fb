// Puts finished answers into the store, in the background, so that the next turn of a conversation finds them wherever
// it goes.
#ifndef PERIGEE_DECODE_NODE_ANSWER_WRITER_H_
#define PERIGEE_DECODE_NODE_ANSWER_WRITER_H_

#include <cstdint>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "model/plane_cache.h"
#include "node/chunk_writer.h"
#include "node/node.h"

namespace perigee::decode_node {

struct AnswerWriterStats {
  uint64_t answers = 0;  // Stored.
  uint64_t bytes = 0;    // That were not in the store before.
  uint64_t failed = 0;   // The store refused, or too much was waiting.
  size_t waiting = 0;
};

// Any thread may call.
class AnswerWriter {
 public:
  struct Job {
    pod::Identity identity;
    std::vector<int32_t> ids;  // Of all tokens that the cache holds.
    model::PlaneCache cache;   // Keeps the bytes until they are stored.
    std::string request_id{};  // For whom it works (base/trace.h).
  };

  AnswerWriter(const node::Node* node, const node::WriteOptions& options);
  // Ends the job under way; gives up those that wait.
  ~AnswerWriter();

  // What of it the store lacks is stored. Gives the job up where too much is waiting already, or the store does not
  // answer: an answer can always be computed again, and its planes take room here.
  void Add(Job job);
  // Until nothing waits and nothing runs; false at the deadline.
  bool Flush(absl::Time deadline);
  AnswerWriterStats stats() const;

 private:
  void Loop();
  // Bytes written.
  absl::StatusOr<uint64_t> Write(const Job& job);
  std::vector<node::ChunkWriter::Plane> PlanesOf(const Job& job, size_t block) const;

  const node::Node* const node_;
  const node::WriteOptions options_;
  mutable absl::Mutex mu_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false, stopping_ ABSL_GUARDED_BY(mu_) = false;
  AnswerWriterStats stats_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_ANSWER_WRITER_H_
