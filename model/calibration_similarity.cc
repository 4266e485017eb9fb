#include "model/calibration_similarity.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/parallel.h"
#include "base/status.h"
#include "kernels/codec.h"
#include "kernels/gemm.h"
#include "model/plane_cache.h"
#include "pod/layout.h"

namespace perigee::model {
namespace {

using pod::SlotId;

// Rows of one batch: bounds the attention rows held at once, [slot][row][q head of the group][token].
constexpr int kBatchRows = 16;

// The dense model's cache, which keeps a copy of all keys and of the last chunk's queries.
class RecordingCache : public KvCache {
 public:
  RecordingCache(const pod::Layout* layout, const kernels::Rope* rope, int q_heads)
      : cache_(layout, rope, q_heads, HeapPlanes()),
        shape_(layout->plan().shape()),
        codec_(layout->plan().near_codec()),
        q_heads_(q_heads) {
    keys_.resize(static_cast<size_t>(shape_.slots()));
    queries_.resize(static_cast<size_t>(shape_.layers));
  }
  int64_t tokens() const override { return cache_.tokens(); }
  bool KeepsQueriesOf(int layer) const override { return false; }
  absl::Status Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) override {
    const size_t count = positions.size();
    const size_t dim = static_cast<size_t>(shape_.head_dim), heads = static_cast<size_t>(shape_.kv_heads);
    for (size_t h = 0; h < heads; ++h) {
      std::vector<float>& to = keys_[static_cast<size_t>(layer) * heads + h];
      const size_t before = to.size();
      to.resize(before + count * dim);
      for (size_t t = 0; t < count; ++t) {
        std::memcpy(&to[before + t * dim], keys + (t * heads + h) * dim, dim * sizeof(float));
      }
      kernels::RoundTrip(codec_, &to[before], count * dim);
    }
    return cache_.Append(layer, positions, keys, values);
  }
  absl::Status Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                      float* out) override {
    const float* from = queries[static_cast<size_t>(layer)];
    queries_[static_cast<size_t>(layer)].assign(
        from, from + positions.size() * static_cast<size_t>(q_heads_) * static_cast<size_t>(shape_.head_dim));
    return cache_.Attend(layer, positions, queries, out);
  }
  void Advance(std::span<const int64_t> positions) override { cache_.Advance(positions); }

  // [token][dim] of one slot, rounded as stored; [query][q_head][dim] of the last chunk.
  const std::vector<float>& keys(SlotId slot) const {
    return keys_[static_cast<size_t>(slot.layer) * static_cast<size_t>(shape_.kv_heads) +
                 static_cast<size_t>(slot.kv_head)];
  }
  const std::vector<float>& queries(int layer) const { return queries_[static_cast<size_t>(layer)]; }

 private:
  PlaneCache cache_;
  const pod::KvShape shape_;
  const pod::Codec codec_;
  const int q_heads_;
  std::vector<std::vector<float>> keys_, queries_;
};

bool MayLead(SlotId lead, SlotId follower) { return lead.layer <= follower.layer && lead != follower; }

// One sample's sums, to be divided by `rows`.
struct Sums {
  std::vector<double> similarity, mass;
  double rows = 0;
};

class SampleMeasurement {
 public:
  SampleMeasurement(const Transformer& transformer, const SimilarityOptions& options)
      : shape_(transformer.kv_shape()), options_(options), group_(transformer.config().q_heads / shape_.kv_heads) {}

  absl::StatusOr<Sums> Run(const Transformer& transformer, const pod::Layout& layout, const CalibrationSample& sample) {
    const size_t slots = static_cast<size_t>(shape_.slots());
    const size_t n = sample.tokens.size();
    const size_t first_useful = static_cast<size_t>(FirstDistantQuery(options_.window, options_.block_tokens));
    if (n <= first_useful)
      return absl::InvalidArgumentError(absl::StrCat("a sample of ", n, " tokens has nothing distant"));
    const size_t rows = std::min(static_cast<size_t>(options_.rows), n - first_useful);
    RecordingCache cache(&layout, &transformer.rope(), transformer.config().q_heads);
    const std::span<const int32_t> tokens(sample.tokens);
    if (n > rows) PERIGEE_RETURN_IF_ERROR(transformer.Forward(tokens.first(n - rows), cache, Logits::kNone, nullptr));
    PERIGEE_RETURN_IF_ERROR(transformer.Forward(tokens.last(rows), cache, Logits::kNone, nullptr));

    Sums sums;
    sums.similarity.assign(slots * slots, 0);
    sums.mass.assign(slots, 0);
    sums.rows = static_cast<double>(rows * static_cast<size_t>(group_));
    for (size_t begin = 0; begin < rows; begin += kBatchRows) {
      Batch(cache, n, n - rows, begin, std::min(rows, begin + kBatchRows), sums);
    }
    return sums;
  }

 private:
  size_t Index(SlotId id) const { return static_cast<size_t>(id.layer * shape_.kv_heads + id.kv_head); }

  // logits[row * group][token]: the slot's queries of rows [begin, end) against `keys`, times log2(e) / sqrt(dim).
  void Scores(const RecordingCache& cache, SlotId slot, const std::vector<float>& keys, size_t n, size_t begin,
              size_t end, std::vector<float>& logits) const {
    const size_t dim = static_cast<size_t>(shape_.head_dim), group = static_cast<size_t>(group_);
    const size_t q_width = group * static_cast<size_t>(shape_.kv_heads) * dim;
    std::vector<float> queries((end - begin) * group * dim);
    const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(dim)));
    for (size_t r = begin; r < end; ++r) {
      const float* from =
          cache.queries(slot.layer).data() + r * q_width + static_cast<size_t>(slot.kv_head) * group * dim;
      for (size_t i = 0; i < group * dim; ++i) queries[(r - begin) * group * dim + i] = from[i] * scale;
    }
    logits.resize((end - begin) * group * n);
    kernels::Gemm(queries.data(), (end - begin) * group, dim, keys.data(), n, nullptr, logits.data());
  }

  // In place: base-2 softmax over [begin, end). Returns log2 of the sum of exponentials.
  static double Softmax(float* row, size_t begin, size_t end) {
    const float top = *std::max_element(row + begin, row + end);
    double sum = 0;
    for (size_t t = begin; t < end; ++t) sum += row[t] = std::exp2(row[t] - top);
    const float inverse = static_cast<float>(1 / sum);
    for (size_t t = begin; t < end; ++t) row[t] *= inverse;
    return top + std::log2(sum);
  }

  void Batch(const RecordingCache& cache, size_t n, size_t first_position, size_t begin, size_t end, Sums& sums) const {
    const size_t slots = static_cast<size_t>(shape_.slots()), group = static_cast<size_t>(group_);
    const size_t rows = (end - begin) * group;
    const size_t far_begin = static_cast<size_t>(pod::SinkEnd(options_.window, options_.block_tokens));
    const auto position = [&](size_t row) { return first_position + begin + row / group; };
    const auto far_end = [&](size_t row) {
      return static_cast<size_t>(
          pod::RecentBegin(options_.window, options_.block_tokens, static_cast<int64_t>(position(row))));
    };
    const auto id = [&](size_t slot) {
      return SlotId{static_cast<int>(slot) / shape_.kv_heads, static_cast<int>(slot) % shape_.kv_heads};
    };
    std::vector<std::vector<float>> own(slots);
    for (size_t s = 0; s < slots; ++s) {
      Scores(cache, id(s), cache.keys(id(s)), n, begin, end, own[s]);
      for (size_t r = 0; r < rows; ++r) {
        float* row = &own[s][r * n];
        // The near part by its own sum, then the gate: far / (far + near).
        double near = 0;
        const size_t seen = position(r) + 1;
        const float top = *std::max_element(row, row + seen);
        for (size_t t = 0; t < std::min(far_begin, seen); ++t) near += std::exp2(row[t] - top);
        for (size_t t = far_end(r); t < seen; ++t) near += std::exp2(row[t] - top);
        const double far = std::exp2(Softmax(row, far_begin, far_end(r)) - top);
        sums.mass[s] += far / (far + near);
      }
    }
    std::vector<float> shared;
    for (size_t follower = 0; follower < slots; ++follower) {
      for (size_t lead = 0; lead < slots; ++lead) {
        if (!MayLead(id(lead), id(follower))) continue;
        const bool key = options_.sharing == pod::Sharing::kKey;
        if (key) Scores(cache, id(follower), cache.keys(id(lead)), n, begin, end, shared);
        double sum = 0;
        for (size_t r = 0; r < rows; ++r) {
          const size_t count = far_end(r) - far_begin;
          const float* other = &own[lead][r * n];
          if (key) {
            Softmax(&shared[r * n], far_begin, far_end(r));
            other = &shared[r * n];
          }
          sum += 1 - JsDivergence({&own[follower][r * n + far_begin], count}, {other + far_begin, count});
        }
        sums.similarity[follower * slots + lead] += sum;
      }
    }
  }

  const pod::KvShape shape_;
  const SimilarityOptions options_;
  const int group_;
};

}  // namespace

double JsDivergence(std::span<const float> p, std::span<const float> q) {
  // H((p + q) / 2) - (H(p) + H(q)) / 2, summed in one pass so that equal rows give exactly 0.
  const auto entropy = [](float x) { return x > 0 ? -x * std::log2(x) : 0.0f; };
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    sum += entropy(0.5f * (p[i] + q[i])) - 0.5f * (entropy(p[i]) + entropy(q[i]));
  }
  return std::clamp(sum, 0.0, 1.0);
}

SimilarityTable::SimilarityTable(const pod::KvShape& shape)
    : shape_(shape),
      similarity_(static_cast<size_t>(shape.slots()) * static_cast<size_t>(shape.slots()), 0),
      mass_(static_cast<size_t>(shape.slots()), 0) {}

std::vector<SlotId> SimilarityTable::LeadsBySimilarity(SlotId follower) const {
  std::vector<SlotId> leads;
  for (int l = 0; l <= follower.layer; ++l) {
    for (int h = 0; h < shape_.kv_heads; ++h) {
      if (MayLead({l, h}, follower)) leads.push_back({l, h});
    }
  }
  std::stable_sort(leads.begin(), leads.end(), [&](SlotId a, SlotId b) { return at(follower, a) > at(follower, b); });
  return leads;
}

absl::StatusOr<SimilarityTable> MeasureSimilarity(const Transformer& transformer,
                                                  std::span<const CalibrationSample> samples,
                                                  const SimilarityOptions& options) {
  if (samples.empty()) return absl::InvalidArgumentError("no samples to measure similarity on");
  if (options.rows < 1)
    return absl::InvalidArgumentError(absl::StrCat("rows is ", options.rows, "; it must be at least 1"));
  const pod::KvShape shape = transformer.kv_shape();
  PERIGEE_ASSIGN_OR_RETURN(const pod::Plan plan, pod::Plan::Identity(shape, options.window, Digest{}, options.codec));
  PERIGEE_ASSIGN_OR_RETURN(const pod::Layout layout, pod::Layout::Create(plan, options.block_tokens));
  std::vector<absl::StatusOr<Sums>> sums(samples.size());
  ParallelFor(samples.size(), [&](size_t i) {
    sums[i] = SampleMeasurement(transformer, options).Run(transformer, layout, samples[i]);
  });

  SimilarityTable table(shape);
  const size_t slots = static_cast<size_t>(shape.slots());
  const auto id = [&](size_t slot) {
    return SlotId{static_cast<int>(slot) / shape.kv_heads, static_cast<int>(slot) % shape.kv_heads};
  };
  for (const absl::StatusOr<Sums>& sample :
       sums) {  // In order, whichever thread was first: equal runs give equal tables.
    PERIGEE_RETURN_IF_ERROR(sample.status());
    const double weight = 1 / (sample->rows * static_cast<double>(samples.size()));
    for (size_t f = 0; f < slots; ++f) {
      table.set_distant_mass(id(f), table.distant_mass(id(f)) + sample->mass[f] * weight);
      for (size_t l = 0; l < slots; ++l)
        table.set(id(f), id(l), table.at(id(f), id(l)) + sample->similarity[f * slots + l] * weight);
    }
  }
  return table;
}

std::vector<pod::Slot> GreedyRuns(const SimilarityTable& table, double threshold, int lead_layers, pod::Codec codec) {
  const pod::KvShape& shape = table.shape();
  std::vector<pod::Slot> slots(static_cast<size_t>(shape.slots()));
  for (int h = 0; h < shape.kv_heads; ++h) {
    SlotId lowest{0, h};
    for (int l = 0; l < shape.layers; ++l) {
      pod::Slot& slot = slots[static_cast<size_t>(l * shape.kv_heads + h)];
      slot.far_codec = codec;
      const bool joins = l > 0 && l >= lead_layers && table.at({l, h}, lowest) >= threshold;
      if (!joins) lowest = {l, h};
      slot.role = joins ? pod::Role::kFollower : pod::Role::kLead;
      slot.lead = lowest;
    }
  }
  return slots;
}

absl::StatusOr<double> ThresholdForFollowers(const SimilarityTable& table, int followers, int lead_layers) {
  const pod::KvShape& shape = table.shape();
  const auto count = [&](double threshold) {
    const std::vector<pod::Slot> slots = GreedyRuns(table, threshold, lead_layers, pod::Codec::kBf16);
    return static_cast<int>(
        std::count_if(slots.begin(), slots.end(), [](const pod::Slot& s) { return s.role == pod::Role::kFollower; }));
  };
  // Runs change only where the threshold passes a table entry; 2 is above all of them.
  std::vector<double> thresholds = {2};
  for (int h = 0; h < shape.kv_heads; ++h) {
    for (int l = 1; l < shape.layers; ++l) {
      for (int below = 0; below < l; ++below) thresholds.push_back(table.at({l, h}, {below, h}));
    }
  }
  std::sort(thresholds.begin(), thresholds.end(), std::greater<>());
  int fewer = -1, more = shape.slots() + 1;
  for (const double threshold : thresholds) {
    const int n = count(threshold);
    if (n == followers) return threshold;
    if (n < followers) fewer = std::max(fewer, n);
    if (n > followers) more = std::min(more, n);
  }
  const std::string near = fewer < 0              ? absl::StrCat(more)
                           : more > shape.slots() ? absl::StrCat(fewer)
                                                  : absl::StrCat(fewer, " or ", more);
  return absl::NotFoundError(
      absl::StrCat("no threshold makes ", followers, " of ", shape.slots(), " slots follow; ", near, " can be had"));
}

}  // namespace perigee::model
