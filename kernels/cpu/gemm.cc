#include "kernels/gemm.h"

#include <omp.h>

#include <algorithm>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "base/parallel.h"
#include "kernels/cpu/matvec.h"

namespace perigee::kernels {
namespace internal {
namespace {

const dnnl::engine& Engine() {
  static const dnnl::engine* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

struct Shape {
  int64_t rows, k, n, out_stride;
  bool bias;
  friend auto operator<=>(const Shape&, const Shape&) = default;
};

dnnl::matmul MakePrimitive(const Shape& s) {
  using Desc = dnnl::memory::desc;
  constexpr auto kF32 = dnnl::memory::data_type::f32;
  const Desc x({s.rows, s.k}, kF32, dnnl::memory::dims{s.k, 1});
  const Desc weight({s.k, s.n}, kF32, dnnl::memory::dims{1, s.k});
  const Desc out({s.rows, s.n}, kF32, dnnl::memory::dims{s.out_stride, 1});
  dnnl::primitive_attr attr;
  if (s.bias) {
    const Desc bias({1, s.n}, kF32, dnnl::memory::dims{s.n, 1});
    return dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(x, weight, bias, out), attr, Engine()));
  }
  return dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(x, weight, out), attr, Engine()));
}

// A primitive per shape and thread: without locks, and the scratch that a primitive owns is never used twice at once.
const dnnl::matmul& Primitive(const Shape& shape) {
  thread_local std::map<Shape, dnnl::matmul> cache;
  const auto found = cache.find(shape);
  if (found != cache.end()) return found->second;
  if (cache.size() >= 256) cache.clear();  // Odd row counts would otherwise pile up.
  return cache.emplace(shape, MakePrimitive(shape)).first->second;
}

void RunPart(const Shape& shape, const float* x, const float* weight, const float* bias, float* out) {
  thread_local dnnl::stream stream(Engine());
  const dnnl::matmul& primitive = Primitive(shape);
  const dnnl_primitive_desc_t raw = const_cast<dnnl_primitive_desc_t>(primitive.get_primitive_desc());
  const auto memory = [&](dnnl_query_t what, int index, const float* data) {
    return dnnl::memory(dnnl::memory::desc(*dnnl_primitive_desc_query_md(raw, what, index)), Engine(),
                        const_cast<float*>(data));
  };
  std::unordered_map<int, dnnl::memory> args;
  args.emplace(DNNL_ARG_SRC, memory(dnnl_query_src_md, 0, x));
  args.emplace(DNNL_ARG_WEIGHTS, memory(dnnl_query_weights_md, 0, weight));
  if (bias != nullptr) args.emplace(DNNL_ARG_BIAS, memory(dnnl_query_weights_md, 1, bias));
  args.emplace(DNNL_ARG_DST, memory(dnnl_query_dst_md, 0, out));
  primitive.execute(stream, args);
  stream.wait();
}

// Our pool is the only source of threads: OpenMP's would spin beside it on the same cores. Affects the calling thread
// alone.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace

void OneDnnGemm(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, float* out) {
  if (rows == 0 || n == 0) return;
  // One part per thread, by rows where there are many, else by columns. A row's sums do not depend on the cut.
  const size_t threads = static_cast<size_t>(ParallelThreads());
  const bool worth_it = rows * n * k >= size_t{1} << 18;
  const size_t parts = worth_it ? threads : 1;
  const bool by_rows = rows >= 64 * parts;
  const size_t whole = by_rows ? rows : n;
  const size_t step = ((whole + parts - 1) / parts + 15) / 16 * 16;
  ParallelFor((whole + step - 1) / step, [&](size_t part) {
    const OneOpenMpThread guard;
    const size_t begin = part * step, count = std::min(step, whole - begin);
    Shape shape{static_cast<int64_t>(rows), static_cast<int64_t>(k), static_cast<int64_t>(n), static_cast<int64_t>(n),
                bias != nullptr};
    if (by_rows) {
      shape.rows = static_cast<int64_t>(count);
      RunPart(shape, x + begin * k, weight, bias, out + begin * n);
    } else {
      shape.n = static_cast<int64_t>(count);
      RunPart(shape, x, weight + begin * k, bias == nullptr ? nullptr : bias + begin, out + begin);
    }
  });
}

}  // namespace internal

void Gemm(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, float* out) {
  // Measured: below this the plain product reads the weight faster than oneDNN, which repacks it.
  if (rows < 16) return internal::MatVec(x, rows, k, weight, n, bias, out);
  internal::OneDnnGemm(x, rows, k, weight, n, bias, out);
}

}  // namespace perigee::kernels
