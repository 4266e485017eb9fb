// Internal to kernels/: the matrix product of a few rows (decoding), limited by reading the weight once.
#ifndef PERIGEE_KERNELS_CPU_MATVEC_H_
#define PERIGEE_KERNELS_CPU_MATVEC_H_

#include <cstddef>

namespace perigee::kernels::internal {

// As Gemm (kernels/gemm.h), any number of rows.
void MatVec(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, float* out);

// As Gemm, always by oneDNN.
void OneDnnGemm(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, float* out);

}  // namespace perigee::kernels::internal

#endif  // PERIGEE_KERNELS_CPU_MATVEC_H_
