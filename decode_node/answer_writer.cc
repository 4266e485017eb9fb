#include "decode_node/answer_writer.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "base/status.h"
#include "base/trace.h"
#include "node/reuse.h"

namespace perigee::decode_node {
namespace {

// Each holds the planes of its answer in this node's memory.
constexpr size_t kMaxWaiting = 64;
// Reserved and committed together.
constexpr size_t kChunkBlocks = 8;

}  // namespace

AnswerWriter::AnswerWriter(const node::Node* node, const node::WriteOptions& options)
    : node_(node), options_(options), thread_([this] { Loop(); }) {}

AnswerWriter::~AnswerWriter() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void AnswerWriter::Add(Job job) {
  absl::MutexLock lock(&mu_);
  if (stopping_ || jobs_.size() >= kMaxWaiting) {
    ++stats_.failed;
    return;
  }
  jobs_.push_back(std::move(job));
}

bool AnswerWriter::Flush(absl::Time deadline) {
  const auto idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return jobs_.empty() && !busy_; };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithDeadline(absl::Condition(&idle), deadline);
}

AnswerWriterStats AnswerWriter::stats() const {
  absl::MutexLock lock(&mu_);
  AnswerWriterStats stats = stats_;
  stats.waiting = jobs_.size() + (busy_ ? 1 : 0);
  return stats;
}

absl::StatusOr<uint64_t> AnswerWriter::Write(const Job& job) {
  const Span span("store answer");
  const pod::Layout& layout = node_->model().layout();
  const std::vector<pod::BlockKey> keys = pod::DeriveChain(job.identity, job.ids);
  const std::vector<model::CachedBlock>& blocks = job.cache.blocks();
  node::ChunkWriter writer(&node_->store(), &layout, &job.identity, keys, 1, options_);
  for (size_t begin = job.first_block; begin < keys.size(); begin += kChunkBlocks) {
    std::vector<node::ChunkWriter::Plane> planes;
    for (size_t b = begin; b < std::min(begin + kChunkBlocks, keys.size()); ++b) {
      const auto add = [&](pod::PlaneKind kind, bool here) {
        if (here) planes.push_back({b, kind});
      };
      add(pod::PlaneKind::kDistant, blocks[b].distant != nullptr);
      add(pod::PlaneKind::kProximal,
          blocks[b].proximal != nullptr &&
              node::KeepsProximal(layout, blocks[b].position, {static_cast<int64_t>(job.ids.size())}));
      add(pod::PlaneKind::kSummary, blocks[b].summary != nullptr);
    }
    PERIGEE_RETURN_IF_ERROR(writer.Begin(std::move(planes)));
    for (int layer = 0; layer < layout.plan().shape().layers; ++layer) {
      PERIGEE_RETURN_IF_ERROR(writer.LayerDone(layer, blocks));
    }
  }
  PERIGEE_RETURN_IF_ERROR(writer.Finish());
  return writer.bytes_written();
}

void AnswerWriter::Loop() {
  for (;;) {
    std::deque<Job> next;
    {
      const auto something = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !jobs_.empty(); };
      absl::MutexLock lock(&mu_, absl::Condition(&something));
      if (stopping_) return;
      next.push_back(std::move(jobs_.front()));
      jobs_.pop_front();
      busy_ = true;
    }
    const RequestScope scope(next.front().request_id);
    const absl::StatusOr<uint64_t> written = Write(next.front());
    next.clear();
    if (!written.ok()) spdlog::info("an answer was not stored: {}", written.status().ToString());
    absl::MutexLock lock(&mu_);
    busy_ = false;
    ++(written.ok() ? stats_.answers : stats_.failed);
    if (written.ok()) stats_.bytes += *written;
  }
}

}  // namespace perigee::decode_node
