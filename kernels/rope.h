// Rotary position embedding (arXiv 2104.09864), in the rotate-half form of Hugging Face's Llama: dimension j is paired
// with j + d/2.
#ifndef PERIGEE_KERNELS_ROPE_H_
#define PERIGEE_KERNELS_ROPE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace perigee::kernels {

// Angle per position of each pair, in radians.
struct Rope {
  std::vector<double> inverse_frequency;  // [head_dim / 2]
  int head_dim() const { return 2 * static_cast<int>(inverse_frequency.size()); }
};

// inverse_frequency[j] = theta^(-2j/d).
Rope MakeRope(int head_dim, double theta);

// The same under Llama-3's frequency scaling (config key rope_scaling, type "llama3").
Rope MakeLlama3Rope(int head_dim, double theta, double factor, double low_freq_factor, double high_freq_factor,
                    double original_context_tokens);

// Linear position interpolation (rope_scaling type "linear").
Rope MakeLinearRope(int head_dim, double theta, double factor);

// Rotates x[heads][head_dim] in place by `position` (any sign: a reused block's query is rotated by a difference of
// positions).
void ApplyRope(const Rope& rope, int64_t position, int heads, float* x);

// The same for x[rows][heads][head_dim], row r at first_position + r. Parallel inside.
void ApplyRopeToRows(const Rope& rope, int64_t first_position, size_t rows, int heads, float* x);

}  // namespace perigee::kernels

#endif  // PERIGEE_KERNELS_ROPE_H_
