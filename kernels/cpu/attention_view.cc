// What Attend is given, checked and put in order before any work.
#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/cpu/attention_internal.h"

namespace perigee::kernels::internal {
namespace {

bool Needs(const pod::Tile& tile, pod::PlaneKind plane) { return tile.present() && tile.plane == plane; }

absl::Status CheckShapes(const AttentionInput& in) {
  if (in.layout == nullptr) return absl::InvalidArgumentError("attend: no layout");
  const pod::KvShape& shape = in.layout->plan().shape();
  if (in.layer < 0 || in.layer >= shape.layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("attend: layer ", in.layer, " of a plan with ", shape.layers, " layers"));
  }
  if (in.q_heads <= 0 || in.q_heads % shape.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("attend: ", in.q_heads, " query heads are no multiple of ", shape.kv_heads, " kv heads"));
  }
  for (size_t i = 0; i < in.positions.size(); ++i) {
    if (in.positions[i] < 0 || (i > 0 && in.positions[i] <= in.positions[i - 1])) {
      return absl::InvalidArgumentError(absl::StrCat("attend: query ", i, " of ", in.positions.size(),
                                                     " stands at position ", in.positions[i],
                                                     "; positions ascend from 0"));
    }
  }
  if (in.rope != nullptr && in.rope->head_dim() != shape.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("attend: the rope is for head_dim ", in.rope->head_dim(), ", the plan has ", shape.head_dim));
  }
  const auto positive = [](float x) { return std::isfinite(x) && x > 0; };
  if (!positive(in.context_temperature) || !positive(in.context_scale)) {
    return absl::InvalidArgumentError(absl::StrCat("attend: contexts have temperature ", in.context_temperature,
                                                   " and scale ", in.context_scale,
                                                   "; both must be finite and positive"));
  }
  const auto has_queries = [&](int layer) {
    return static_cast<size_t>(layer) < in.queries.size() && in.queries[static_cast<size_t>(layer)] != nullptr;
  };
  if (!has_queries(in.layer)) return absl::InvalidArgumentError(absl::StrCat("attend: no queries of layer ", in.layer));
  for (int h = 0; h < shape.kv_heads; ++h) {
    const pod::Slot& slot = in.layout->plan().slot(in.layer, h);
    if (in.layout->plan().sharing() == pod::Sharing::kScore && slot.role == pod::Role::kFollower &&
        !has_queries(slot.lead.layer)) {
      return absl::InvalidArgumentError(absl::StrCat("attend: layer ", in.layer, " kv head ", h,
                                                     " shares the scores of layer ", slot.lead.layer,
                                                     ", whose queries are not given"));
    }
  }
  return absl::OkStatus();
}

bool HasHidden(const BlockRef& block) { return block.hidden != HiddenTokens{}; }

absl::Status CheckBlock(const AttentionInput& in, size_t index) {
  const BlockRef& block = in.blocks[index];
  if (block.tokens < 1 || block.tokens > in.layout->block_tokens()) {
    return absl::InvalidArgumentError(absl::StrCat("attend: block ", index, " holds ", block.tokens,
                                                   " tokens; at least 1 and at most ", in.layout->block_tokens(),
                                                   " can be"));
  }
  for (int t = block.tokens; HasHidden(block) && t < pod::kMaxBlockTokens; ++t) {
    if (IsHidden(block, t)) {
      return absl::InvalidArgumentError(
          absl::StrCat("attend: block ", index, " hides token ", t, " and holds ", block.tokens));
    }
  }
  // Hidden tokens may stand before everything.
  for (int t = 0; block.PositionOf(t) < 0; ++t) {
    if (t < block.tokens && !IsHidden(block, t)) {
      return absl::InvalidArgumentError(
          absl::StrCat("attend: token ", t, " of block ", index, " stands at position ", block.PositionOf(t)));
    }
    if (t == block.tokens) break;
  }
  if (block.positions == nullptr) return absl::OkStatus();
  if (block.positions[0] != block.position || block.base_position != block.position) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attend: block ", index, " has its tokens from position ", block.positions[0], " on, is said to stand at ",
        block.position, " and to be rotated at ", block.base_position, "; the three are one in an overlay"));
  }
  for (int t = 1; t < block.tokens; ++t) {
    if (block.positions[t] <= block.positions[t - 1]) {
      return absl::InvalidArgumentError(absl::StrCat("attend: block ", index, " has token ", t, " at position ",
                                                     block.positions[t], " after one at ", block.positions[t - 1],
                                                     "; positions ascend"));
    }
  }
  return absl::OkStatus();
}

// What the layer's slots read, near and far.
struct SlotNeeds {
  bool near_proximal = false, near_distant = false, far_proximal = false, far_distant = false;
  bool has_near_only = false;
};

SlotNeeds FindNeeds(const AttentionInput& in) {
  SlotNeeds needs;
  for (int h = 0; h < in.layout->plan().shape().kv_heads; ++h) {
    const pod::SlotTiles& t = in.layout->slot(in.layer, h);
    using enum pod::PlaneKind;
    needs.near_proximal |= Needs(t.near_keys, kProximal) || Needs(t.near_values, kProximal);
    needs.near_distant |= Needs(t.near_keys, kDistant) || Needs(t.near_values, kDistant);
    needs.far_proximal |= Needs(t.far_keys, kProximal) || Needs(t.far_values, kProximal);
    needs.far_distant |= Needs(t.far_keys, kDistant) || Needs(t.far_values, kDistant);
    needs.has_near_only |= in.layout->plan().slot(in.layer, h).role == pod::Role::kNearOnly;
  }
  return needs;
}

absl::Status CheckPlanes(const Call& call, const SlotNeeds& needs, const OrderedBlock& at) {
  const AttentionInput& in = *call.input;
  const BlockRef& block = in.blocks[static_cast<size_t>(at.index)];
  if (block.proximal != nullptr && block.distant != nullptr) return absl::OkStatus();
  // Of the queries that see the block, the first is the likeliest to be near to it and the last to be far.
  const int64_t first = *std::lower_bound(in.positions.begin(), in.positions.end(), at.first);
  const int64_t last = in.positions.back();
  const bool near = IsNear(call, at, first), far = !IsNear(call, at, last);
  if (block.proximal == nullptr && ((near && needs.near_proximal) || (far && needs.far_proximal))) {
    return absl::FailedPreconditionError(absl::StrCat("attend: block ", at.index, " at position ", block.position,
                                                      " is near to the query at ", first,
                                                      " but its proximal plane is not here; fetch or rebuild it"));
  }
  if (block.distant == nullptr && ((near && needs.near_distant) || (far && needs.far_distant))) {
    return absl::FailedPreconditionError(absl::StrCat("attend: block ", at.index, " at position ", block.position,
                                                      " has no distant plane; fetch or rebuild it"));
  }
  return absl::OkStatus();
}

// The first token that is not hidden; block.tokens if there is none.
int FirstVisible(const BlockRef& block) {
  int token = 0;
  for (uint64_t bits : block.hidden) {
    if (bits != ~uint64_t{0}) return std::min(block.tokens, token + std::countr_one(bits));
    token += 64;
  }
  return block.tokens;
}

// Marks the queries that stand on a visible token of the block.
void MarkHeld(const AttentionInput& in, const OrderedBlock& at, std::vector<bool>* held) {
  const BlockRef& block = in.blocks[static_cast<size_t>(at.index)];
  const auto begin = std::lower_bound(in.positions.begin(), in.positions.end(), at.first);
  for (auto p = begin; p != in.positions.end() && *p <= at.last; ++p) {
    const int token = SeenTokens(block, *p) - 1;
    if (block.PositionOf(token) == *p && !IsHidden(block, token))
      (*held)[static_cast<size_t>(p - in.positions.begin())] = true;
  }
}

// The index of the rotation by a block's offset, made where it is the first of its kind.
absl::StatusOr<int32_t> FindRotation(Call& call, size_t index) {
  const AttentionInput& in = *call.input;
  const int64_t offset = in.blocks[index].position - in.blocks[index].base_position;
  for (size_t r = call.rotations.size(); r-- > 0;) {
    if (call.rotations[r].offset == offset) return static_cast<int32_t>(r);
  }
  if (offset != 0 && in.rope == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("attend: block ", index, " is moved by ", offset, " positions, which needs a rope"));
  }
  Rotation& rotation = call.rotations.emplace_back();
  rotation.offset = offset;
  if (offset != 0) {
    for (double frequency : in.rope->inverse_frequency) {
      const double angle = -static_cast<double>(offset) * frequency;
      rotation.cosine.push_back(static_cast<float>(std::cos(angle)));
      rotation.sine.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return static_cast<int32_t>(call.rotations.size()) - 1;
}

absl::Status PrepareBlocks(Call& call) {
  const AttentionInput& in = *call.input;
  const SlotNeeds needs = FindNeeds(in);
  std::vector<bool> held(in.positions.size());
  call.order.reserve(in.blocks.size());
  for (size_t i = 0; i < in.blocks.size(); ++i) {
    PERIGEE_RETURN_IF_ERROR(CheckBlock(in, i));
    const BlockRef& block = in.blocks[i];
    OrderedBlock at;
    at.index = static_cast<int32_t>(i);
    const int visible = FirstVisible(block);
    if (visible == block.tokens || block.PositionOf(visible) > in.positions.back()) continue;  // Nobody sees it.
    at.first = block.PositionOf(visible);
    at.last = block.PositionOf(block.tokens - 1);
    at.has_hidden = HasHidden(block);
    PERIGEE_RETURN_IF_ERROR(CheckPlanes(call, needs, at));
    PERIGEE_ASSIGN_OR_RETURN(at.rotation, FindRotation(call, i));
    if (!(block.far_only && needs.has_near_only)) MarkHeld(in, at, &held);
    call.order.push_back(at);
  }
  const auto missing = std::find(held.begin(), held.end(), false);
  if (missing != held.end()) {
    const size_t query = static_cast<size_t>(missing - held.begin());
    return absl::InvalidArgumentError(absl::StrCat("attend: the view holds no visible token at position ",
                                                   in.positions[query], ", where query ", query, " stands",
                                                   needs.has_near_only ? ", that near-only slots could see" : ""));
  }
  // Contexts that count as all others stand among them.
  const bool apart = in.context_temperature != 1 || in.context_scale != 1;
  const auto is_context = [&](const OrderedBlock& at) {
    return apart && in.blocks[static_cast<size_t>(at.index)].context;
  };
  call.contexts = static_cast<size_t>(std::count_if(call.order.begin(), call.order.end(), is_context));
  if (call.rotations.size() > 1 || call.contexts > 0) {
    std::stable_sort(call.order.begin(), call.order.end(), [&](const OrderedBlock& a, const OrderedBlock& b) {
      if (is_context(a) != is_context(b)) return is_context(a);
      return a.rotation < b.rotation;
    });
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PrepareCall(const AttentionInput& in, Call* call) {
  PERIGEE_RETURN_IF_ERROR(CheckShapes(in));
  call->input = &in;
  call->head_dim = in.layout->plan().shape().head_dim;
  call->block_tokens = in.layout->block_tokens();
  call->group = in.q_heads / in.layout->plan().shape().kv_heads;
  return in.positions.empty() ? absl::OkStatus() : PrepareBlocks(*call);
}

}  // namespace perigee::kernels::internal
