#include "model/plane_cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/parallel.h"
#include "base/status.h"
#include "kernels/compress.h"
#include "pod/window.h"

namespace perigee::model {

PlaneAllocator HeapPlanes() {
  return [](size_t bytes) -> absl::StatusOr<PlaneBuffer> {
    const size_t rounded = (bytes + pod::kPlaneAlignment - 1) / pod::kPlaneAlignment * pod::kPlaneAlignment;
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(pod::kPlaneAlignment, rounded));
    if (memory == nullptr)
      return absl::ResourceExhaustedError(absl::StrCat("no memory for a plane of ", bytes, " bytes"));
    std::memset(memory, 0, rounded);
    return PlaneBuffer(memory, [](std::byte* p) { std::free(p); });
  };
}

PlaneCache::PlaneCache(const pod::Layout* layout, const kernels::Rope* rope, int q_heads, PlaneAllocator allocator)
    : layout_(layout), rope_(rope), q_heads_(q_heads), allocator_(std::move(allocator)) {
  const pod::Plan& plan = layout->plan();
  keeps_queries_.assign(static_cast<size_t>(plan.shape().layers), false);
  if (plan.sharing() == pod::Sharing::kScore) {
    for (int l = 0; l < plan.shape().layers; ++l) {
      for (int h = 0; h < plan.shape().kv_heads; ++h)
        keeps_queries_[static_cast<size_t>(plan.slot(l, h).lead.layer)] = true;
    }
  }
}

absl::Status PlaneCache::AddBlock(CachedBlock block) {
  if (block.position != tokens_ || block.tokens < 1 || block.tokens > layout_->block_tokens() ||
      (!blocks_.empty() && blocks_.back().tokens != layout_->block_tokens())) {
    return absl::InvalidArgumentError(absl::StrCat("a block of ", block.tokens, " tokens at position ", block.position,
                                                   " does not continue a cache of ", tokens_, " tokens"));
  }
  if (block.tokens < layout_->block_tokens() && block.base_position != block.position) {
    return absl::InvalidArgumentError(absl::StrCat("a block that is to be filled up must stand at its base position ",
                                                   block.base_position, ", not at ", block.position));
  }
  tokens_ += block.tokens;
  refs_.push_back({block.distant.get(), block.proximal.get(), block.position, block.base_position, block.tokens});
  blocks_.push_back(std::move(block));
  return absl::OkStatus();
}

void PlaneCache::RetireProximal(int64_t position, const std::function<bool(size_t block)>& keep) {
  const pod::Window& window = layout_->plan().window();
  const int64_t recent = pod::RecentBegin(window, layout_->block_tokens(), position);
  const int64_t sink_end = pod::SinkEnd(window, layout_->block_tokens());
  for (size_t& i = retired_until_; i < blocks_.size() && blocks_[i].position + layout_->block_tokens() <= recent; ++i) {
    if (blocks_[i].position < sink_end || (keep && keep(i))) continue;
    blocks_[i].proximal.reset();
    refs_[i].proximal = nullptr;
  }
}

absl::StatusOr<PlaneCache> PlaneCache::Fork() const {
  if (arrival_ != nullptr) return absl::FailedPreconditionError("the cache's blocks are still arriving");
  PlaneCache fork = *this;
  if (blocks_.empty() || blocks_.back().tokens == layout_->block_tokens()) return fork;
  CachedBlock& last = fork.blocks_.back();
  const auto copy = [&](pod::PlaneKind kind, PlaneBuffer& buffer) -> absl::Status {
    if (buffer == nullptr) return absl::OkStatus();
    const PlaneBuffer from = buffer;
    PERIGEE_ASSIGN_OR_RETURN(buffer, allocator_(layout_->plane_bytes(kind)));
    std::memcpy(buffer.get(), from.get(), layout_->plane_bytes(kind));
    return absl::OkStatus();
  };
  PERIGEE_RETURN_IF_ERROR(copy(pod::PlaneKind::kDistant, last.distant));
  PERIGEE_RETURN_IF_ERROR(copy(pod::PlaneKind::kProximal, last.proximal));
  PERIGEE_RETURN_IF_ERROR(copy(pod::PlaneKind::kSummary, last.summary));
  fork.refs_.back().distant = last.distant.get();
  fork.refs_.back().proximal = last.proximal.get();
  return fork;
}

void PlaneCache::AwaitArrival(std::function<absl::Status(int layer)> arrived) {
  arrival_ = std::move(arrived);
  arrived_layers_ = 0;
}

absl::Status PlaneCache::Arrived(int layer) {
  if (arrival_ == nullptr || layer < arrived_layers_) return absl::OkStatus();
  PERIGEE_RETURN_IF_ERROR(arrival_(layer));
  arrived_layers_ = layer + 1;
  if (arrived_layers_ == layout_->plan().shape().layers) arrival_ = nullptr;
  return absl::OkStatus();
}

// Room for `count` more tokens: fills the last block, then takes fresh ones.
absl::Status PlaneCache::Grow(int count) {
  const int block_tokens = layout_->block_tokens();
  int64_t end = blocks_.empty() ? 0 : blocks_.back().position + blocks_.back().tokens;
  const int64_t target = tokens_ + count;
  while (end < target) {
    if (blocks_.empty() || blocks_.back().tokens == block_tokens) {
      CachedBlock block;
      block.position = block.base_position = end;  // The transformer rotates fresh keys at their own positions.
      const auto allocate = [&](pod::PlaneKind kind, PlaneBuffer& to) -> absl::Status {
        if (layout_->plane_bytes(kind) == 0) return absl::OkStatus();
        PERIGEE_ASSIGN_OR_RETURN(to, allocator_(layout_->plane_bytes(kind)));
        return absl::OkStatus();
      };
      PERIGEE_RETURN_IF_ERROR(allocate(pod::PlaneKind::kDistant, block.distant));
      PERIGEE_RETURN_IF_ERROR(allocate(pod::PlaneKind::kProximal, block.proximal));
      PERIGEE_RETURN_IF_ERROR(allocate(pod::PlaneKind::kSummary, block.summary));
      refs_.push_back({block.distant.get(), block.proximal.get(), block.position, block.base_position, 0});
      blocks_.push_back(std::move(block));
    }
    CachedBlock& last = blocks_.back();
    if (layout_->plane_bytes(pod::PlaneKind::kProximal) > 0 && last.proximal == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("the block at position ", last.position,
                                                        " is to be filled up but its proximal plane is not here"));
    }
    // A block that was fetched has no summary yet; Append makes it, over all of its tokens.
    if (last.summary == nullptr && layout_->plane_bytes(pod::PlaneKind::kSummary) > 0) {
      PERIGEE_ASSIGN_OR_RETURN(last.summary, allocator_(layout_->plane_bytes(pod::PlaneKind::kSummary)));
    }
    last.tokens = static_cast<int32_t>(std::min<int64_t>(block_tokens, target - last.position));
    refs_.back().tokens = last.tokens;
    end = last.position + last.tokens;
  }
  return absl::OkStatus();
}

absl::Status PlaneCache::Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) {
  const int count = static_cast<int>(positions.size());
  if (layer == 0) PERIGEE_RETURN_IF_ERROR(Grow(count));
  PERIGEE_RETURN_IF_ERROR(Arrived(layer));  // The last block may be a fetched one that is to be filled up.
  const int block_tokens = layout_->block_tokens();
  const size_t row =
      static_cast<size_t>(layout_->plan().shape().kv_heads) * static_cast<size_t>(layout_->plan().shape().head_dim);
  const size_t first_block = static_cast<size_t>(tokens_ / block_tokens);
  ParallelFor(blocks_.size() - first_block, [&](size_t i) {
    const CachedBlock& block = blocks_[first_block + i];
    const int64_t begin = std::max(tokens_, block.position);
    const int64_t end = std::min(tokens_ + count, block.position + block_tokens);
    const size_t offset = static_cast<size_t>(begin - tokens_) * row;
    const kernels::MutableBlock planes{block.distant.get(), block.proximal.get(), block.summary.get()};
    kernels::CompressLayer(*layout_, layer, keys + offset, values + offset, static_cast<int>(begin - block.position),
                           static_cast<int>(end - begin), planes);
    if (block.summary != nullptr) {
      kernels::SummarizeLayer(*layout_, layer, static_cast<int>(end - block.position), planes);
    }
  });
  return absl::OkStatus();
}

absl::Status PlaneCache::Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                                float* out) {
  PERIGEE_RETURN_IF_ERROR(Arrived(layer));
  kernels::AttentionInput input;
  input.layout = layout_;
  input.rope = rope_;
  input.layer = layer;
  input.q_heads = q_heads_;
  input.positions = positions;
  input.queries = queries;
  input.blocks = refs_;
  return kernels::Attend(input, out);
}

}  // namespace perigee::model
