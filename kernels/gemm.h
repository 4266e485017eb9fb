// Matrix product with a weight: out[rows][n] = x[rows][k] * weight[n][k]^T (+ bias[n]). Row-major float. By oneDNN.
#ifndef PERIGEE_KERNELS_GEMM_H_
#define PERIGEE_KERNELS_GEMM_H_

#include <cstddef>

namespace perigee::kernels {

// bias may be null. Any thread; parallel inside. Memory is the caller's.
void Gemm(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, float* out);

}  // namespace perigee::kernels

#endif  // PERIGEE_KERNELS_GEMM_H_
