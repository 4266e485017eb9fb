#include "decode_node/answer_writer.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "base/status.h"
#include "base/trace.h"
#include "node/reuse.h"
#include "node/stored_prompt.h"

namespace perigee::decode_node {
namespace {

// Each holds the planes of its answer in this node's memory.
constexpr size_t kMaxWaiting = 64;
constexpr uint64_t kLeastFree = 4;  // So large a part of the memory is not for them.
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
  // Answers under way need the memory more than those that wait to be stored.
  while (!jobs_.empty() && node_->planes().available_bytes() < node_->options().pool_bytes / kLeastFree) {
    jobs_.pop_front();
    ++stats_.failed;
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

// Of the block's planes in memory, those that a next turn reads.
std::vector<node::ChunkWriter::Plane> AnswerWriter::PlanesOf(const Job& job, size_t block) const {
  const pod::Layout& layout = node_->model().layout();
  const model::CachedBlock& here = job.cache.blocks()[block];
  std::vector<node::ChunkWriter::Plane> planes;
  if (here.distant != nullptr) planes.push_back({block, pod::PlaneKind::kDistant});
  if (here.proximal != nullptr && node::KeepsProximal(layout, here.position, {static_cast<int64_t>(job.ids.size())})) {
    planes.push_back({block, pod::PlaneKind::kProximal});
  }
  if (here.summary != nullptr) planes.push_back({block, pod::PlaneKind::kSummary});
  return planes;
}

absl::StatusOr<uint64_t> AnswerWriter::Write(const Job& job) {
  const Span span("store answer");
  const pod::Layout& layout = node_->model().layout();
  const std::vector<pod::BlockKey> keys = pod::DeriveChain(job.identity, job.ids);
  // The prompt is in the store, usually; where its planes were this node's own, or the store has lost some, an answer
  // behind them would never be found.
  absl::Status reached;
  const node::StoredPrompt stored =
      node::LookUpPrompt(*node_, keys, static_cast<int64_t>(job.ids.size()), node::Presence::kStored, &reached);
  PERIGEE_RETURN_IF_ERROR(reached);
  const auto is_stored = [&](size_t b) {
    for (const node::ChunkWriter::Plane& plane : PlanesOf(job, b)) {
      if (plane.kind == pod::PlaneKind::kDistant && !stored.blocks[b].distant) return false;
      if (plane.kind == pod::PlaneKind::kProximal && !stored.blocks[b].proximal) return false;
    }
    return true;
  };
  size_t first = 0;
  while (first < keys.size() && is_stored(first)) ++first;

  node::ChunkWriter writer(&node_->store(), &layout, &job.identity, keys, 1, options_);
  for (size_t begin = first; begin < keys.size(); begin += kChunkBlocks) {
    std::vector<node::ChunkWriter::Plane> planes;
    for (size_t b = begin; b < std::min(begin + kChunkBlocks, keys.size()); ++b) {
      for (const node::ChunkWriter::Plane& plane : PlanesOf(job, b)) planes.push_back(plane);
    }
    if (planes.empty()) continue;
    PERIGEE_RETURN_IF_ERROR(writer.Begin(std::move(planes)));
    for (int layer = 0; layer < layout.plan().shape().layers; ++layer) {
      PERIGEE_RETURN_IF_ERROR(writer.LayerDone(layer, job.cache.blocks()));
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
    if (absl::IsUnavailable(written.status()) || absl::IsDeadlineExceeded(written.status())) {
      stats_.failed += jobs_.size();
      next.swap(jobs_);  // Freed without the lock.
    }
    if (written.ok()) stats_.bytes += *written;
  }
}

}  // namespace perigee::decode_node
