#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

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

const float* QueryRow(const float* base, const Call& call, int64_t row) {
  return base + (row / call.group * call.input->q_heads + row % call.group) * call.head_dim;
}

void FinishRow(float l, const float* o, int head_dim, float* out) {
  const float inverse = 1.0f / l;  // Positive: every query sees its own token. l >= 2^-24, so the inverse is finite.
  for (int d = 0; d < head_dim; ++d) out[d] = o[d] * inverse;
}

// The state of one row over one kind of blocks.
struct RowState {
  float exponent_scale, m, l;
  const float* o;

  // The logarithm to base 2 of the sum of all exp(logit).
  double LogSum() const { return double{m} * exponent_scale + std::log2(double{l}) - kProbabilityBias; }
};

// Each state finished by itself, then weighed by its sum, that of the contexts to the power of context_scale.
void FinishTwo(const RowState& context, const RowState& rest, double context_scale, int head_dim, float* out) {
  if (context.l == 0) return FinishRow(rest.l, rest.o, head_dim, out);
  if (rest.l == 0) return FinishRow(context.l, context.o, head_dim, out);
  const double rest_weight = 1 / (1 + std::exp2(context_scale * context.LogSum() - rest.LogSum()));
  const double a = (1 - rest_weight) / context.l, b = rest_weight / rest.l;
  for (int d = 0; d < head_dim; ++d) out[d] = static_cast<float>(a * context.o[d] + b * rest.o[d]);
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

// Cuts the blocks into `splits` ranges of about the same length, more where there are fewer than kinds of blocks.
std::vector<Range> CutRanges(const Call& call, size_t splits) {
  std::vector<Range> ranges;
  const auto cut = [&](size_t begin, size_t count, size_t parts, bool context) {
    parts = std::clamp<size_t>(parts, count > 0 ? 1 : 0, count);
    for (size_t i = 0; i < parts; ++i) {
      ranges.push_back({begin + count * i / parts, begin + count * (i + 1) / parts, context});
    }
  };
  const size_t blocks = call.order.size(), contexts = call.contexts;
  const size_t context_splits = (splits * contexts + blocks / 2) / blocks;
  cut(0, contexts, context_splits, true);
  cut(contexts, blocks - contexts, splits - context_splits, false);
  return ranges;
}

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

RowScale ScaleRow(const float* near_query, const float* far_query, int head_dim, float temperature) {
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
  // An absurd temperature must not make it 0 or infinite: times an infinite or no difference of scores that were NaN.
  scale.exponent_scale = static_cast<float>(
      std::clamp(std::ldexp(1.4426950408889634 / std::sqrt(static_cast<double>(head_dim)) / double{temperature}, shift),
                 double{std::numeric_limits<float>::min()}, double{std::numeric_limits<float>::max()}));
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
  Call call;
  PERIGEE_RETURN_IF_ERROR(PrepareCall(in, &call));
  if (in.positions.empty()) return absl::OkStatus();
  const int64_t query_count = static_cast<int64_t>(in.positions.size());
  const size_t kv_heads = static_cast<size_t>(in.layout->plan().shape().kv_heads);

  const int64_t total_rows = query_count * call.group;
  bool dot = tuning.path == Tuning::Path::kDot || (tuning.path == Tuning::Path::kAuto && total_rows < 12) ||
             (tuning.path == Tuning::Path::kAuto && query_count == 1);
  dot = dot && CanDot(call.head_dim);
  const int unit_rows = dot ? std::min(call.group, kTileRows) : kTileRows;
  // A dot unit must not cross queries: a group larger than kTileRows is cut inside each query.
  const int64_t units_per_query = (call.group + unit_rows - 1) / unit_rows;
  const int64_t row_units = dot ? query_count * units_per_query : (total_rows + unit_rows - 1) / unit_rows;
  const size_t units = static_cast<size_t>(row_units) * kv_heads;

  size_t splits = static_cast<size_t>(tuning.splits);
  if (splits == 0) {
    // Enough units for every thread to stay busy to the end, but none shorter than 256 tokens.
    const size_t wanted = 4 * static_cast<size_t>(ParallelThreads());
    const size_t longest = call.order.size() * static_cast<size_t>(call.block_tokens) / 256;
    splits = units >= wanted || ParallelThreads() == 1 ? 1 : std::min((wanted + units - 1) / units, longest);
  }
  const std::vector<Range> ranges = CutRanges(call, splits);
  const size_t context_ranges =
      static_cast<size_t>(std::count_if(ranges.begin(), ranges.end(), [](const Range& r) { return r.context; }));

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
  const auto out_row = [&](int kv_head, int64_t row) {
    return out + (row / call.group * in.q_heads + kv_head * call.group + row % call.group) * call.head_dim;
  };
  std::vector<std::unique_ptr<StateBuffer>> parts(ranges.size() > 1 ? units * ranges.size() : 0);
  ParallelFor(units * ranges.size(), [&](size_t i) {
    i = units * ranges.size() - 1 - i;  // Later queries see more: they go first, so that the threads end together.
    const size_t unit = i / ranges.size();
    const int kv_head = static_cast<int>(unit % kv_heads);
    int64_t first_row;
    int rows;
    unit_range(unit / kv_heads, &first_row, &rows);
    auto buffer = std::make_unique<StateBuffer>(rows, call.head_dim);
    (dot ? AttendDot : AttendTile)(call, kv_head, first_row, rows, ranges[i % ranges.size()], buffer->state);
    if (ranges.size() > 1) {
      parts[i] = std::move(buffer);
      return;
    }
    for (int r = 0; r < rows; ++r) {
      FinishRow(buffer->state.l[r], buffer->state.o + int64_t{r} * call.head_dim, call.head_dim,
                out_row(kv_head, first_row + r));
    }
  });
  if (ranges.size() == 1) return absl::OkStatus();

  ParallelFor(units, [&](size_t unit) {
    const int kv_head = static_cast<int>(unit % kv_heads);
    const HeadPlan head = PlanHead(call, kv_head);
    int64_t first_row;
    int rows;
    unit_range(unit / kv_heads, &first_row, &rows);
    // The states of ranges [begin, end), merged into the first of them.
    const auto merge = [&](int r, size_t begin, size_t end) {
      const int64_t row = first_row + r;
      const RowScale scale = ScaleRow(QueryRow(head.near_queries, call, row), QueryRow(head.far_queries, call, row),
                                      call.head_dim, TemperatureOf(call, ranges[begin]));
      const PartialState& sum = parts[unit * ranges.size() + begin]->state;
      float* o = sum.o + int64_t{r} * call.head_dim;
      for (size_t s = begin + 1; s < end; ++s) {
        const PartialState& part = parts[unit * ranges.size() + s]->state;
        MergeState(scale.exponent_scale, call.head_dim, &sum.m[r], &sum.l[r], o, part.m[r], part.l[r],
                   part.o + int64_t{r} * call.head_dim);
      }
      return RowState{scale.exponent_scale, sum.m[r], sum.l[r], o};
    };
    for (int r = 0; r < rows; ++r) {
      float* result = out_row(kv_head, first_row + r);
      if (context_ranges == 0 || context_ranges == ranges.size()) {
        const RowState state = merge(r, 0, ranges.size());
        FinishRow(state.l, state.o, call.head_dim, result);
      } else {
        FinishTwo(merge(r, 0, context_ranges), merge(r, context_ranges, ranges.size()), in.context_scale, call.head_dim,
                  result);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace internal

absl::Status Attend(const AttentionInput& input, float* out) { return internal::AttendTuned(input, {}, out); }

}  // namespace perigee::kernels
