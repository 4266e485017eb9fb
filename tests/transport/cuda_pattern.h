// What cuda_test's processes fill device memory with.
#ifndef PERIGEE_TESTS_TRANSPORT_CUDA_PATTERN_H_
#define PERIGEE_TESTS_TRANSPORT_CUDA_PATTERN_H_

#include <cstddef>

namespace perigee::transport {

inline std::byte Pattern(size_t i) { return static_cast<std::byte>(i * 31 + (i >> 9) + 7); }

}  // namespace perigee::transport

#endif  // PERIGEE_TESTS_TRANSPORT_CUDA_PATTERN_H_
