#include "kernels/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/parallel.h"

namespace perigee::kernels {

Rope MakeRope(int head_dim, double theta) {
  Rope rope;
  for (int j = 0; j < head_dim / 2; ++j) rope.inverse_frequency.push_back(std::pow(theta, -2.0 * j / head_dim));
  return rope;
}

Rope MakeLlama3Rope(int head_dim, double theta, double factor, double low_freq_factor, double high_freq_factor,
                    double original_context_tokens) {
  Rope rope = MakeRope(head_dim, theta);
  const double longest_kept = original_context_tokens / high_freq_factor;
  const double shortest_slowed = original_context_tokens / low_freq_factor;
  for (double& frequency : rope.inverse_frequency) {
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < longest_kept) continue;
    if (wavelength > shortest_slowed) {
      frequency /= factor;
      continue;
    }
    const double smooth =
        (original_context_tokens / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
    frequency = (1 - smooth) * frequency / factor + smooth * frequency;
  }
  return rope;
}

Rope MakeLinearRope(int head_dim, double theta, double factor) {
  Rope rope = MakeRope(head_dim, theta);
  for (double& frequency : rope.inverse_frequency) frequency /= factor;
  return rope;
}

void ApplyRope(const Rope& rope, int64_t position, int heads, float* x) {
  const size_t half = rope.inverse_frequency.size();
  for (size_t j = 0; j < half; ++j) {
    // In double: at position 10^6 a float angle would be wrong by 0.03.
    const double angle = static_cast<double>(position) * rope.inverse_frequency[j];
    const float c = static_cast<float>(std::cos(angle)), s = static_cast<float>(std::sin(angle));
    for (int h = 0; h < heads; ++h) {
      float* head = x + static_cast<size_t>(h) * 2 * half;
      const float a = head[j], b = head[j + half];
      head[j] = a * c - b * s;
      head[j + half] = b * c + a * s;
    }
  }
}

void ApplyRopeToRows(const Rope& rope, int64_t first_position, size_t rows, int heads, float* x) {
  const size_t row_elements = static_cast<size_t>(heads) * static_cast<size_t>(rope.head_dim());
  constexpr size_t kRowsPerTask = 16;
  ParallelFor((rows + kRowsPerTask - 1) / kRowsPerTask, [&](size_t task) {
    for (size_t r = task * kRowsPerTask; r < std::min(rows, (task + 1) * kRowsPerTask); ++r) {
      ApplyRope(rope, first_position + static_cast<int64_t>(r), heads, x + r * row_elements);
    }
  });
}

}  // namespace perigee::kernels
