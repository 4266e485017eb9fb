// The small row-wise operations of a Llama layer. All matrices are row-major float; rows are tokens. Any thread;
// parallel inside.
#ifndef PERIGEE_KERNELS_ELEMENTWISE_H_
#define PERIGEE_KERNELS_ELEMENTWISE_H_

#include <cstddef>

namespace perigee::kernels {

// out[r][c] = x[r][c] / sqrt(mean_c(x[r][c]^2) + epsilon) * weight[c]. out may be x.
void RmsNorm(const float* x, const float* weight, float epsilon, size_t rows, size_t columns, float* out);

// out[i] = silu(gate[i]) * up[i], silu(z) = z / (1 + exp(-z)). out may be gate or up.
void SwiGlu(const float* gate, const float* up, size_t n, float* out);

// x[i] += y[i].
void AddInPlace(float* x, const float* y, size_t n);

}  // namespace perigee::kernels

#endif  // PERIGEE_KERNELS_ELEMENTWISE_H_
