#include "model/plane_cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "base/parallel.h"
#include "base/status.h"
#include "kernels/codec.h"
#include "kernels/compress.h"
#include "pod/window.h"

namespace perigee::model {

namespace {

bool IsHidden(const kernels::HiddenTokens& hidden, int64_t token) {
  return (hidden[static_cast<size_t>(token) / 64] >> token % 64 & 1) != 0;
}

}  // namespace

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

kernels::BlockRef PlaneCache::RefOf(const CachedBlock& block) const {
  return {.distant = block.distant.get(),
          .proximal = block.proximal.get(),
          .position = block.position,
          .base_position = block.base_position,
          .tokens = block.tokens,
          .far_only = block.far_only,
          .context = block.context,
          .hidden = block.hidden,
          .positions = block.positions.get()};
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
  if (block.tokens < layout_->block_tokens()) open_ = blocks_.size();
  refs_.push_back(RefOf(block));
  blocks_.push_back(std::move(block));
  return absl::OkStatus();
}

absl::Status PlaneCache::Place(CachedBlock block) {
  if (block.tokens < 1 || block.tokens > layout_->block_tokens() || block.positions != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("a block of ", block.tokens, " tokens cannot be placed at position ", block.position));
  }
  placed_.emplace(block.position, blocks_.size());
  tokens_ = std::max(tokens_, block.position + block.tokens);
  open_.reset();
  refs_.push_back(RefOf(block));
  blocks_.push_back(std::move(block));
  return absl::OkStatus();
}

absl::StatusOr<std::pair<size_t, int>> PlaneCache::FindPlaced(int64_t position) const {
  // Blocks overlap where one's first tokens are hidden.
  for (auto it = placed_.upper_bound(position); it != placed_.begin();) {
    const CachedBlock& block = blocks_[(--it)->second];
    const int64_t token = position - block.position;
    if (token >= layout_->block_tokens()) break;
    if (token < block.tokens && !IsHidden(block.hidden, token)) return std::pair(it->second, static_cast<int>(token));
  }
  return absl::NotFoundError(absl::StrCat("no token is placed at position ", position));
}

bool PlaneCache::FarOnlyAt(int64_t position) const {
  const auto found = FindPlaced(position);
  return found.ok() && blocks_[found->first].far_only;
}

absl::Status PlaneCache::Hide(std::span<const int64_t> positions) {
  for (const int64_t position : positions) {
    PERIGEE_ASSIGN_OR_RETURN(const auto found, FindPlaced(position));
    const auto [block, token] = found;
    blocks_[block].hidden[static_cast<size_t>(token) / 64] |= uint64_t{1} << token % 64;
    refs_[block].hidden = blocks_[block].hidden;
    hidden_.insert(position);
  }
  return absl::OkStatus();
}

void PlaneCache::SetContextAttention(float temperature, float scale) {
  context_temperature_ = temperature;
  context_scale_ = scale;
}

void PlaneCache::RetireProximal(int64_t position) {
  const pod::Window& window = layout_->plan().window();
  for (size_t& i = retired_until_; i < blocks_.size(); ++i) {
    CachedBlock& block = blocks_[i];
    // A block that is being filled may get tokens that are nearer.
    const int64_t last =
        block.positions == nullptr ? block.position + layout_->block_tokens() - 1 : block.last_position();
    if (block.position < window.sink_tokens) continue;
    if (pod::IsSpanNear(window, block.position, last, position)) break;
    block.proximal.reset();
    refs_[i].proximal = nullptr;
  }
}

absl::StatusOr<PlaneCache> PlaneCache::Fork() const {
  if (arrival_ != nullptr) return absl::FailedPreconditionError("the cache's blocks are still arriving");
  PlaneCache fork = *this;
  if (open_.has_value() && blocks_[*open_].tokens < layout_->block_tokens()) {
    CachedBlock& last = fork.blocks_[*open_];
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
  }
  fork.open_overlay_.reset();  // A further overlay goes into a block of its own.
  for (size_t i = 0; i < fork.blocks_.size(); ++i) fork.refs_[i] = RefOf(fork.blocks_[i]);
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

absl::StatusOr<size_t> PlaneCache::AddFresh(int64_t position) {
  CachedBlock block;
  block.position = block.base_position = position;  // The transformer rotates fresh keys at their own positions.
  const auto allocate = [&](pod::PlaneKind kind, PlaneBuffer& to) -> absl::Status {
    if (layout_->plane_bytes(kind) == 0) return absl::OkStatus();
    PERIGEE_ASSIGN_OR_RETURN(to, allocator_(layout_->plane_bytes(kind)));
    return absl::OkStatus();
  };
  PERIGEE_RETURN_IF_ERROR(allocate(pod::PlaneKind::kDistant, block.distant));
  PERIGEE_RETURN_IF_ERROR(allocate(pod::PlaneKind::kProximal, block.proximal));
  PERIGEE_RETURN_IF_ERROR(AddSummary(block));
  refs_.emplace_back();
  blocks_.push_back(std::move(block));
  return blocks_.size() - 1;
}

absl::Status PlaneCache::AddSummary(CachedBlock& block) {
  if (block.summary != nullptr || layout_->plane_bytes(pod::PlaneKind::kSummary) == 0) return absl::OkStatus();
  PERIGEE_ASSIGN_OR_RETURN(block.summary, allocator_(layout_->plane_bytes(pod::PlaneKind::kSummary)));
  return absl::OkStatus();
}

// Room for the chunk: what is hidden goes into overlays, the rest behind the token before it, or into a fresh block.
absl::Status PlaneCache::Grow(std::span<const int64_t> positions) {
  const int block_tokens = layout_->block_tokens();
  chunk_.clear();
  for (size_t row = 0; row < positions.size(); ++row) {
    const int64_t position = positions[row];
    const bool overlay = hidden_.erase(position) > 0;
    // Nothing is placed behind all others: there most chunks go.
    if (!overlay && position < tokens_ && FindPlaced(position).ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("a token is to be computed at position ", position, ", where one is placed and not hidden"));
    }
    std::optional<size_t>& open = overlay ? open_overlay_ : open_;
    if (open.has_value() && blocks_[*open].tokens == block_tokens) open.reset();
    if (!overlay && open.has_value() && blocks_[*open].last_position() + 1 != position) open.reset();
    // Only ascending positions can stand in one overlay.
    if (overlay && open.has_value() && blocks_[*open].last_position() >= position) open.reset();
    if (!open.has_value()) {
      PERIGEE_ASSIGN_OR_RETURN(open, AddFresh(position));
    }
    CachedBlock& block = blocks_[*open];
    if (layout_->plane_bytes(pod::PlaneKind::kProximal) > 0 && block.proximal == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("the block at position ", block.position,
                                                        " is to be filled up but its proximal plane is not here"));
    }
    // A block that was fetched has no summary yet; Append makes it, over all of its tokens.
    PERIGEE_RETURN_IF_ERROR(AddSummary(block));
    if (overlay) {
      if (block.positions == nullptr) {
        block.positions = std::shared_ptr<int64_t[]>(new int64_t[static_cast<size_t>(block_tokens)]);
      }
      block.positions[block.tokens] = position;
    }
    const bool goes_on = !chunk_.empty() && chunk_.back().block == *open;
    if (!goes_on) chunk_.push_back({.block = *open, .first_token = block.tokens, .tokens = 0, .row = row});
    ++chunk_.back().tokens;
    ++block.tokens;
    refs_[*open] = RefOf(block);
  }
  std::stable_sort(chunk_.begin(), chunk_.end(), [](const Stretch& a, const Stretch& b) { return a.block < b.block; });
  return absl::OkStatus();
}

absl::Status PlaneCache::Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) {
  if (layer == 0) PERIGEE_RETURN_IF_ERROR(Grow(positions));
  PERIGEE_RETURN_IF_ERROR(Arrived(layer));  // The last block may be a fetched one that is to be filled up.
  const size_t row =
      static_cast<size_t>(layout_->plan().shape().kv_heads) * static_cast<size_t>(layout_->plan().shape().head_dim);
  std::vector<size_t> first;  // Stretches of one block stand together: one thread writes a block.
  for (size_t i = 0; i < chunk_.size(); ++i) {
    if (i == 0 || chunk_[i].block != chunk_[i - 1].block) first.push_back(i);
  }
  ParallelFor(first.size(), [&](size_t i) {
    const size_t end = i + 1 < first.size() ? first[i + 1] : chunk_.size();
    const CachedBlock& block = blocks_[chunk_[first[i]].block];
    const kernels::MutableBlock planes{block.distant.get(), block.proximal.get(), block.summary.get()};
    for (size_t s = first[i]; s < end; ++s) {
      const Stretch& stretch = chunk_[s];
      kernels::CompressLayer(*layout_, layer, keys + stretch.row * row, values + stretch.row * row, stretch.first_token,
                             stretch.tokens, planes);
    }
    if (block.summary != nullptr) {
      kernels::SummarizeLayer(*layout_, layer, chunk_[end - 1].first_token + chunk_[end - 1].tokens, planes);
    }
  });
  return absl::OkStatus();
}

void PlaneCache::Advance(std::span<const int64_t> positions) { tokens_ = std::max(tokens_, positions.back() + 1); }

absl::Status PlaneCache::PlacedValues(int layer, std::span<const int64_t> positions, float* out) {
  PERIGEE_RETURN_IF_ERROR(Arrived(layer));
  const pod::KvShape& shape = layout_->plan().shape();
  const size_t dim = static_cast<size_t>(shape.head_dim), heads = static_cast<size_t>(shape.kv_heads);
  const size_t block_tokens = static_cast<size_t>(layout_->block_tokens());
  std::vector<float> tile(dim * block_tokens);
  for (size_t i = 0; i < positions.size();) {
    PERIGEE_ASSIGN_OR_RETURN(const auto found, FindPlaced(positions[i]));
    const CachedBlock& block = blocks_[found.first];
    // All of the positions that lie in this block, head by head: a tile is decoded once.
    size_t end = i + 1;
    while (end < positions.size() && positions[end] <= block.last_position()) ++end;
    for (size_t j = i; j < end; ++j) PERIGEE_RETURN_IF_ERROR(FindPlaced(positions[j]).status());
    for (size_t h = 0; h < heads; ++h) {
      const pod::SlotTiles& tiles = layout_->slot(layer, static_cast<int>(h));
      const pod::Tile& from = block.proximal != nullptr ? tiles.near_values : tiles.far_values;
      const std::byte* plane = from.plane == pod::PlaneKind::kProximal ? block.proximal.get() : block.distant.get();
      if (!from.present() || plane == nullptr) {
        std::fill(tile.begin(), tile.end(), std::numeric_limits<float>::quiet_NaN());
      } else {
        kernels::Decode(from.codec, reinterpret_cast<const uint16_t*>(plane + from.offset_bytes), tile.size(),
                        tile.data());
      }
      for (size_t j = i; j < end; ++j) {
        const size_t token = static_cast<size_t>(positions[j] - block.position);
        float* row = out + (j * heads + h) * dim;
        for (size_t d = 0; d < dim; ++d) row[d] = tile[d * block_tokens + token];
      }
    }
    i = end;
  }
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
  input.context_temperature = context_temperature_;
  input.context_scale = context_scale_;
  return kernels::Attend(input, out);
}

}  // namespace perigee::model
