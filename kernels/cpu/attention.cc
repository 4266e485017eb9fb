#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/parallel.h"
#include "base/status.h"
#include "hwy/aligned_allocator.h"
#include "kernels/cpu/attention_internal.h"
#include "kernels/cpu/merge.h"

namespace perigee::kernels {
namespace internal {
namespace {

bool SameTile(const pod::Tile& a, const pod::Tile& b) {
  return a.plane == b.plane && a.offset_bytes == b.offset_bytes && a.codec == b.codec;
}

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

absl::Status CheckBlock(const AttentionInput& in, size_t index, int64_t end_of_last) {
  const BlockRef& block = in.blocks[index];
  const int block_tokens = in.layout->block_tokens();
  if (block.position < 0 || block.position % block_tokens != 0 || block.position < end_of_last) {
    return absl::InvalidArgumentError(absl::StrCat("attend: block ", index, " at position ", block.position,
                                                   " must start on a multiple of ", block_tokens, " at or after ",
                                                   end_of_last));
  }
  if (block.tokens < 1 || block.tokens > block_tokens ||
      (block.tokens < block_tokens && index + 1 < in.blocks.size())) {
    return absl::InvalidArgumentError(absl::StrCat("attend: block ", index, " holds ", block.tokens,
                                                   " tokens; only the ", "last may hold fewer than ", block_tokens,
                                                   ", and none 0"));
  }
  return absl::OkStatus();
}

// Which planes the layer's slots read, near and far.
struct PlaneNeeds {
  bool near_proximal = false, near_distant = false, far_proximal = false, far_distant = false;
};

PlaneNeeds FindNeeds(const AttentionInput& in) {
  PlaneNeeds needs;
  for (int h = 0; h < in.layout->plan().shape().kv_heads; ++h) {
    const pod::SlotTiles& t = in.layout->slot(in.layer, h);
    using enum pod::PlaneKind;
    needs.near_proximal |= Needs(t.near_keys, kProximal) || Needs(t.near_values, kProximal);
    needs.near_distant |= Needs(t.near_keys, kDistant) || Needs(t.near_values, kDistant);
    needs.far_proximal |= Needs(t.far_keys, kProximal) || Needs(t.far_values, kProximal);
    needs.far_distant |= Needs(t.far_keys, kDistant) || Needs(t.far_values, kDistant);
  }
  return needs;
}

absl::Status CheckPlanes(const AttentionInput& in, const PlaneNeeds& needs, size_t index) {
  const BlockRef& block = in.blocks[index];
  if (block.proximal != nullptr && block.distant != nullptr) return absl::OkStatus();
  const pod::Window& window = in.layout->plan().window();
  const int block_tokens = in.layout->block_tokens();
  // Of the queries that see the block, the first is the likeliest to be near to it and the last to be far.
  const int64_t first = std::max(in.positions.front(), block.position);
  const int64_t last = in.positions.back();
  const bool near = pod::IsNear(window, block_tokens, block.position, first);
  const bool far = !pod::IsNear(window, block_tokens, block.position, last);
  if (block.proximal == nullptr && ((near && needs.near_proximal) || (far && needs.far_proximal))) {
    return absl::FailedPreconditionError(absl::StrCat("attend: block ", index, " at position ", block.position,
                                                      " is near to the query at ", first,
                                                      " but its proximal plane is not here; fetch or rebuild it"));
  }
  if (block.distant == nullptr && ((near && needs.near_distant) || (far && needs.far_distant))) {
    return absl::FailedPreconditionError(absl::StrCat("attend: block ", index, " at position ", block.position,
                                                      " has no distant plane; fetch or rebuild it"));
  }
  return absl::OkStatus();
}

// Checks the view, and orders its visible blocks by rotation.
absl::Status PrepareBlocks(Call& call) {
  const AttentionInput& in = *call.input;
  const PlaneNeeds needs = FindNeeds(in);
  const int64_t last_position = in.positions.back();
  int64_t end = 0;
  int64_t covered = in.positions.front();  // Query positions below this lie in a block.
  call.order.reserve(in.blocks.size());
  for (size_t i = 0; i < in.blocks.size(); ++i) {
    const BlockRef& block = in.blocks[i];
    PERIGEE_RETURN_IF_ERROR(CheckBlock(in, i, end));
    end = block.position + block.tokens;
    if (block.position > last_position) continue;
    PERIGEE_RETURN_IF_ERROR(CheckPlanes(in, needs, i));
    if (block.position <= covered && end > covered) covered = end;
    const int64_t offset = block.position - block.base_position;
    int32_t rotation = static_cast<int32_t>(call.rotations.size()) - 1;
    while (rotation >= 0 && call.rotations[static_cast<size_t>(rotation)].offset != offset) --rotation;
    if (rotation < 0) {
      if (offset != 0 && in.rope == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrCat("attend: block ", i, " is moved by ", offset, " positions, which needs a rope"));
      }
      rotation = static_cast<int32_t>(call.rotations.size());
      Rotation& r = call.rotations.emplace_back();
      r.offset = offset;
      if (offset != 0) {
        for (double frequency : in.rope->inverse_frequency) {
          const double angle = -static_cast<double>(offset) * frequency;
          r.cosine.push_back(static_cast<float>(std::cos(angle)));
          r.sine.push_back(static_cast<float>(std::sin(angle)));
        }
      }
    }
    call.order.push_back({static_cast<int32_t>(i), rotation});
  }
  if (covered <= last_position) {
    return absl::InvalidArgumentError(
        absl::StrCat("attend: the view does not hold position ", covered, ", where a query stands"));
  }
  if (call.rotations.size() > 1) {
    std::stable_sort(call.order.begin(), call.order.end(),
                     [](const OrderedBlock& a, const OrderedBlock& b) { return a.rotation < b.rotation; });
  }
  return absl::OkStatus();
}

const float* QueryRow(const float* base, const Call& call, int64_t row) {
  return base + (row / call.group * call.input->q_heads + row % call.group) * call.head_dim;
}

void FinishRow(float l, const float* o, int head_dim, float* out) {
  const float inverse = 1.0f / l;  // Positive: every query sees its own token. l >= 2^-24, so the inverse is finite.
  for (int d = 0; d < head_dim; ++d) out[d] = o[d] * inverse;
}

// One unit's states, on the heap: a unit may have 64 rows of 1024 dimensions.
struct StateBuffer {
  StateBuffer(int rows, int head_dim) : data(hwy::AllocateAligned<float>(static_cast<size_t>(rows) * (head_dim + 2))) {
    state.m = data.get();
    state.l = state.m + rows;
    state.o = state.l + rows;
  }
  hwy::AlignedFreeUniquePtr<float[]> data;
  PartialState state;
};

}  // namespace

HeadPlan PlanHead(const Call& call, int kv_head) {
  const AttentionInput& in = *call.input;
  const pod::Plan& plan = in.layout->plan();
  const pod::Slot& slot = plan.slot(in.layer, kv_head);
  HeadPlan head;
  head.tiles = in.layout->slot(in.layer, kv_head);
  const int64_t stride = int64_t{call.group} * call.head_dim;
  head.near_queries = in.queries[static_cast<size_t>(in.layer)] + kv_head * stride;
  head.far_queries = head.near_queries;
  head.has_far = slot.role != pod::Role::kNearOnly;
  if (plan.sharing() == pod::Sharing::kScore && slot.role == pod::Role::kFollower) {
    head.far_queries = in.queries[static_cast<size_t>(slot.lead.layer)] + slot.lead.kv_head * stride;
  }
  head.uniform = head.has_far && head.far_queries == head.near_queries &&
                 SameTile(head.tiles.near_keys, head.tiles.far_keys) &&
                 SameTile(head.tiles.near_values, head.tiles.far_values);
  return head;
}

RowScale ScaleRow(const float* near_query, const float* far_query, int head_dim) {
  float largest = 0;
  for (int d = 0; d < head_dim; ++d) {
    largest = std::max(largest, std::max(std::fabs(near_query[d]), std::fabs(far_query[d])));
  }
  // A rotation can grow one element by sqrt(2). |q . k| <= head_dim * max|q| * max|k| must stay below max|k|.
  const double bound = 1.5 * static_cast<double>(largest) * head_dim;
  // Beyond 2^120 the exponent scale itself would overflow.
  const int shift = bound > 0.5 && std::isfinite(bound) ? std::min(120, std::ilogb(bound) + 2) : 0;
  RowScale scale;
  scale.query_scale = std::ldexp(1.0f, -shift);
  scale.exponent_scale =
      static_cast<float>(std::ldexp(1.4426950408889634 / std::sqrt(static_cast<double>(head_dim)), shift));
  return scale;
}

void PackRow(const Rotation& rotation, const float* query, float query_scale, int head_dim, float* dst) {
  if (rotation.offset == 0) {
    for (int d = 0; d < head_dim; ++d) dst[d] = query[d] * query_scale;
    return;
  }
  const int half = head_dim / 2;
  for (int j = 0; j < half; ++j) {
    const float c = rotation.cosine[static_cast<size_t>(j)], s = rotation.sine[static_cast<size_t>(j)];
    const float a = query[j] * query_scale, b = query[j + half] * query_scale;
    dst[j] = a * c - b * s;
    dst[j + half] = b * c + a * s;
  }
}

absl::Status AttendTuned(const AttentionInput& in, const Tuning& tuning, float* out) {
  PERIGEE_RETURN_IF_ERROR(CheckShapes(in));
  if (in.positions.empty()) return absl::OkStatus();
  const int64_t query_count = static_cast<int64_t>(in.positions.size());
  const pod::KvShape& shape = in.layout->plan().shape();
  Call call;
  call.input = &in;
  call.head_dim = shape.head_dim;
  call.block_tokens = in.layout->block_tokens();
  call.group = in.q_heads / shape.kv_heads;
  PERIGEE_RETURN_IF_ERROR(PrepareBlocks(call));

  const int64_t total_rows = query_count * call.group;
  bool dot = tuning.path == Tuning::Path::kDot || (tuning.path == Tuning::Path::kAuto && total_rows < 12) ||
             (tuning.path == Tuning::Path::kAuto && query_count == 1);
  dot = dot && CanDot(call.head_dim);
  const int unit_rows = dot ? std::min(call.group, kTileRows) : kTileRows;
  // A dot unit must not cross queries: a group larger than kTileRows is cut inside each query.
  const int64_t units_per_query = (call.group + unit_rows - 1) / unit_rows;
  const int64_t row_units = dot ? query_count * units_per_query : (total_rows + unit_rows - 1) / unit_rows;
  const size_t units = static_cast<size_t>(row_units) * static_cast<size_t>(shape.kv_heads);

  size_t splits = static_cast<size_t>(tuning.splits);
  if (splits == 0) {
    // Enough units for every thread to stay busy to the end, but none shorter than 256 tokens.
    const size_t wanted = 4 * static_cast<size_t>(ParallelThreads());
    const size_t longest = call.order.size() * static_cast<size_t>(call.block_tokens) / 256;
    splits = units >= wanted || ParallelThreads() == 1 ? 1 : std::min((wanted + units - 1) / units, longest);
  }
  splits = std::clamp<size_t>(splits, 1, call.order.size());

  const auto unit_range = [&](size_t unit, int64_t* first_row, int* rows) {
    if (dot) {
      const int64_t query = static_cast<int64_t>(unit) / units_per_query;
      const int64_t begin = static_cast<int64_t>(unit) % units_per_query * unit_rows;
      *first_row = query * call.group + begin;
      *rows = static_cast<int>(std::min<int64_t>(unit_rows, call.group - begin));
    } else {
      *first_row = static_cast<int64_t>(unit) * unit_rows;
      *rows = static_cast<int>(std::min<int64_t>(unit_rows, total_rows - *first_row));
    }
  };
  std::vector<std::unique_ptr<StateBuffer>> parts(splits > 1 ? units * splits : 0);
  ParallelFor(units * splits, [&](size_t i) {
    i = units * splits - 1 - i;  // Later queries see more: they go first, so that the threads end together.
    const size_t split = i % splits, unit = i / splits;
    const int kv_head = static_cast<int>(unit % static_cast<size_t>(shape.kv_heads));
    int64_t first_row;
    int rows;
    unit_range(unit / static_cast<size_t>(shape.kv_heads), &first_row, &rows);
    auto buffer = std::make_unique<StateBuffer>(rows, call.head_dim);
    const size_t begin = call.order.size() * split / splits, end = call.order.size() * (split + 1) / splits;
    (dot ? AttendDot : AttendTile)(call, kv_head, first_row, rows, begin, end, buffer->state);
    if (splits > 1) {
      parts[i] = std::move(buffer);
      return;
    }
    for (int r = 0; r < rows; ++r) {
      const int64_t row = first_row + r;
      FinishRow(buffer->state.l[r], buffer->state.o + int64_t{r} * call.head_dim, call.head_dim,
                out + (row / call.group * in.q_heads + kv_head * call.group + row % call.group) * call.head_dim);
    }
  });
  if (splits == 1) return absl::OkStatus();

  ParallelFor(units, [&](size_t unit) {
    const int kv_head = static_cast<int>(unit % static_cast<size_t>(shape.kv_heads));
    const HeadPlan head = PlanHead(call, kv_head);
    int64_t first_row;
    int rows;
    unit_range(unit / static_cast<size_t>(shape.kv_heads), &first_row, &rows);
    const PartialState& sum = parts[unit * splits]->state;
    for (int r = 0; r < rows; ++r) {
      const int64_t row = first_row + r;
      const RowScale scale =
          ScaleRow(QueryRow(head.near_queries, call, row), QueryRow(head.far_queries, call, row), call.head_dim);
      float* o = sum.o + int64_t{r} * call.head_dim;
      for (size_t s = 1; s < splits; ++s) {
        const PartialState& part = parts[unit * splits + s]->state;
        MergeState(scale.exponent_scale, call.head_dim, &sum.m[r], &sum.l[r], o, part.m[r], part.l[r],
                   part.o + int64_t{r} * call.head_dim);
      }
      FinishRow(sum.l[r], o, call.head_dim,
                out + (row / call.group * in.q_heads + kv_head * call.group + row % call.group) * call.head_dim);
    }
  });
  return absl::OkStatus();
}

}  // namespace internal

absl::Status Attend(const AttentionInput& input, float* out) { return internal::AttendTuned(input, {}, out); }

}  // namespace perigee::kernels
