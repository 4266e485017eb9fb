// Attention against the limits of the machine. Rows:
//
//   kernels/decode_attention/<plan>/32K
//       One layer, one query, 32K tokens of context, 8 kv heads, 32 query heads, head_dim 128, blocks of 64: bytes of
//       keys and values read per second, beside the read bandwidth measured in the same process, in turns. Contexts
//       rotate, so that none is found in the last-level cache.
//   kernels/decode_attention/texts/32K
//       The same over texts of 1,250 tokens from elsewhere: each read at an offset of its own, its last block ragged,
//       every seventh token hidden.
//   kernels/prefill_attention/3000
//       Causal attention of 3,000 tokens, 8 layers, 4 query heads of 32: seconds, beside the time that its
//       multiply-adds would take at the rate of oneDNN's float matrix product, measured in the same process.
//   kernels/gemm/<rows>x4096x4096
//       The weight's bytes read per second, beside the read bandwidth.
//
// --json FILE writes the rows; --only decode|prefill|gemm runs a part; --quick makes one short pass of everything (for
// smoke tests: its figures mean nothing).
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/rope.h"
#include "pod/layout.h"
#include "report.h"

namespace perigee {
namespace {

using bench::Report;
using Clock = std::chrono::steady_clock;

double Seconds(const std::function<void()>& body) {
  const auto begin = Clock::now();
  body();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

using bench::Median;

constexpr size_t kHugePage = size_t{2} << 20;

struct Buffer {
  explicit Buffer(size_t n)
      : bytes((n + kHugePage - 1) / kHugePage * kHugePage),
        data(static_cast<std::byte*>(std::aligned_alloc(kHugePage, bytes)), &std::free) {
    if (data == nullptr) {
      std::fprintf(stderr, "attention_bench: no memory for %zu bytes\n", bytes);
      std::exit(1);
    }
    madvise(data.get(), bytes, MADV_HUGEPAGE);  // For the probe and the planes alike.
  }
  size_t bytes;
  std::unique_ptr<std::byte, void (*)(void*)> data;
};

// bf16 numbers of size about 1, from a cheap generator: only their being ordinary numbers matters.
void FillBf16(Buffer& buffer, uint32_t seed) {
  auto* out = reinterpret_cast<uint16_t*>(buffer.data.get());
  uint32_t state = seed * 2654435761u + 1;
  for (size_t i = 0; i < buffer.bytes / 2; ++i) {
    state = state * 1664525u + 1013904223u;
    out[i] = static_cast<uint16_t>((state >> 16 & 0x807F) | (0x3E80 + (state >> 9 & 0x80)));
  }
}

size_t LastLevelCacheBytes() {
  const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return static_cast<size_t>(std::max({l3, l2, 0L}));
}

__attribute__((optimize("O3"), target_clones("avx512f", "avx2", "default"))) uint64_t SumWords(const uint64_t* p,
                                                                                               size_t n) {
  uint64_t sum[32] = {};
  for (size_t i = 0; i + 32 <= n; i += 32) {
    for (size_t j = 0; j < 32; ++j) sum[j] += p[i + j];
  }
  return std::accumulate(std::begin(sum), std::end(sum), uint64_t{0});
}

constexpr size_t kReadChunk = size_t{4} << 20;

// Reads the whole buffer once on all threads.
void ReadAll(const Buffer& buffer, std::vector<uint64_t>& sink) {
  ParallelFor(buffer.bytes / kReadChunk, [&](size_t i) {
    sink[i] += SumWords(reinterpret_cast<const uint64_t*>(buffer.data.get() + i * kReadChunk), kReadChunk / 8);
  });
}

constexpr char kReadLimit[] = "read bandwidth of all threads, same process, in turns";

struct Context {
  std::unique_ptr<Buffer> slab;
  std::vector<kernels::BlockRef> blocks;
};

Context MakeContext(const pod::Layout& layout, int tokens, uint32_t seed) {
  const auto plane_bytes = [&](pod::PlaneKind kind) {
    return (layout.plane_bytes(kind) + pod::kPlaneAlignment - 1) / pod::kPlaneAlignment * pod::kPlaneAlignment;
  };
  const size_t distant = plane_bytes(pod::PlaneKind::kDistant), proximal = plane_bytes(pod::PlaneKind::kProximal);
  const int count = (tokens + layout.block_tokens() - 1) / layout.block_tokens();
  Context context;
  context.slab = std::make_unique<Buffer>(static_cast<size_t>(count) * (distant + proximal));
  FillBf16(*context.slab, seed);
  const std::byte* at = context.slab->data.get();
  for (int i = 0; i < count; ++i) {
    kernels::BlockRef block;
    block.position = block.base_position = int64_t{i} * layout.block_tokens();
    block.tokens = std::min(layout.block_tokens(), tokens - i * layout.block_tokens());
    block.distant = at;
    block.proximal = at + distant;
    at += distant + proximal;
    context.blocks.push_back(block);
  }
  return context;
}

// Makes the blocks texts that were computed elsewhere. Fewer tokens are left.
void MoveApart(std::vector<kernels::BlockRef>& blocks) {
  constexpr int kTextBlocks = 20, kLastTokens = 34;
  int64_t position = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    kernels::BlockRef& block = blocks[i];
    const int64_t in_text = static_cast<int64_t>(i) % kTextBlocks;
    block.position = position;
    block.base_position = in_text * block.tokens;
    if (in_text == kTextBlocks - 1) block.tokens = kLastTokens;
    for (int t = 0; t + 1 < block.tokens; t += 7) block.hidden[static_cast<size_t>(t) / 64] |= uint64_t{1} << t % 64;
    position += block.tokens;
  }
}

std::vector<float> RandomFloats(size_t n, uint32_t seed) {
  std::vector<float> x(n);
  for (float& v : x) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31f;
  }
  return x;
}

struct Settings {
  bool quick = false;
  int repetitions = 15;
  size_t probe_bytes = 0;  // Four times the last-level cache, at least 256 MiB.
};

void BenchDecode(Report& report, const Settings& settings, const Buffer& probe, const char* name, const pod::Plan& plan,
                 int layer, bool apart) {
  const int tokens = settings.quick ? 2048 : 32768;
  const pod::Layout layout = *pod::Layout::Create(plan, 64);
  const pod::KvShape& shape = plan.shape();
  const int q_heads = 4 * shape.kv_heads;
  const size_t token_bytes = size_t{4} * static_cast<size_t>(shape.kv_heads * shape.head_dim);
  size_t read_bytes = 0;
  std::vector<Context> contexts;
  while (read_bytes < settings.probe_bytes) {
    contexts.push_back(MakeContext(layout, tokens, static_cast<uint32_t>(1 + contexts.size() * 10000)));
    if (apart) MoveApart(contexts.back().blocks);
    for (const kernels::BlockRef& block : contexts.back().blocks) {
      read_bytes += static_cast<size_t>(block.tokens) * token_bytes;
    }
  }
  const std::vector<float> query = RandomFloats(static_cast<size_t>(q_heads * shape.head_dim), 7);
  const std::vector<const float*> queries(static_cast<size_t>(shape.layers), query.data());
  std::vector<float> out(query.size());
  const kernels::Rope rope = kernels::MakeRope(shape.head_dim, 10000);
  kernels::AttentionInput input;
  input.layout = &layout;
  input.rope = &rope;
  input.layer = layer;
  input.q_heads = q_heads;
  const kernels::BlockRef& end = contexts.front().blocks.back();
  const int64_t last = end.PositionOf(end.tokens - 1);
  input.positions = std::span(&last, 1);
  input.queries = queries;

  std::vector<uint64_t> sink(probe.bytes / kReadChunk + 1);
  std::vector<double> read_rate, attend_rate;
  for (int r = -1; r < settings.repetitions; ++r) {  // The first round warms up.
    const double read_s = Seconds([&] { ReadAll(probe, sink); });
    const double attend_s = Seconds([&] {
      for (const Context& context : contexts) {
        input.blocks = context.blocks;
        const absl::Status status = kernels::Attend(input, out.data());
        if (!status.ok()) {
          std::fprintf(stderr, "attention_bench: %s\n", status.ToString().c_str());
          std::exit(1);
        }
      }
    });
    if (r < 0) continue;
    read_rate.push_back(static_cast<double>(probe.bytes) / read_s / 1e9);
    attend_rate.push_back(static_cast<double>(read_bytes) / attend_s / 1e9);
  }
  report.Add({.row = std::string("kernels/decode_attention/") + name + "/32K",
              .value = Median(attend_rate),
              .unit = "GB/s",
              .limit = Median(read_rate),
              .target = apart ? "" : ">=0.70",
              .command = kReadLimit});
}

void BenchPrefill(Report& report, const Settings& settings) {
  const int tokens = settings.quick ? 300 : 3000, layers = 8, heads = 4, kv_heads = 2, dim = 32;
  const pod::Plan plan = *pod::Plan::Identity({layers, kv_heads, dim}, {}, Digest{});
  const pod::Layout layout = *pod::Layout::Create(plan, 64);
  const Context context = MakeContext(layout, tokens, 3);
  const std::vector<float> query = RandomFloats(static_cast<size_t>(tokens * heads * dim), 9);
  const std::vector<const float*> queries(layers, query.data());
  std::vector<float> out(query.size());
  kernels::AttentionInput input;
  input.layout = &layout;
  input.q_heads = heads;
  std::vector<int64_t> positions(static_cast<size_t>(tokens));
  std::iota(positions.begin(), positions.end(), 0);
  input.positions = positions;
  input.queries = queries;
  input.blocks = context.blocks;
  const double flops = 4.0 * dim * heads * layers * (0.5 * tokens * (tokens + 1.0));
  // The rate of oneDNN's own matrix product of 1,024 x 1,024 x 1,024.
  const size_t n = settings.quick ? 128 : 1024;
  const std::vector<float> x = RandomFloats(n * n, 11), weight = RandomFloats(n * n, 12);
  std::vector<float> product(n * n);
  std::vector<double> gemm_flops, attend_s;
  for (int r = -1; r < settings.repetitions; ++r) {
    const double gemm_s = Seconds([&] { kernels::Gemm(x.data(), n, n, weight.data(), n, nullptr, product.data()); });
    const double s = Seconds([&] {
      for (input.layer = 0; input.layer < layers; ++input.layer) {
        if (!kernels::Attend(input, out.data()).ok()) std::exit(1);
      }
    });
    if (r < 0) continue;
    gemm_flops.push_back(2.0 * static_cast<double>(n * n * n) / gemm_s);
    attend_s.push_back(s);
  }
  const double limit_s = flops / Median(gemm_flops);
  report.Add({.row = "kernels/prefill_attention/3000",
              .value = Median(attend_s),
              .unit = "s",
              .limit = limit_s,
              .better = bench::Better::kLess,
              .target = "",
              .command = "its multiply-adds at the rate of oneDNN's float matrix product, same process, in turns"});
}

void BenchGemm(Report& report, const Settings& settings, const Buffer& probe) {
  const size_t k = settings.quick ? 256 : 4096, n = k;
  const size_t copies = std::max<size_t>(1, settings.probe_bytes / (4 * n * k));
  std::vector<std::vector<float>> weights;
  for (size_t i = 0; i < copies; ++i) weights.push_back(RandomFloats(n * k, static_cast<uint32_t>(i)));
  std::vector<uint64_t> sink(probe.bytes / kReadChunk + 1);
  for (size_t rows : {1, 4, 8, 16, 32, 64}) {
    const std::vector<float> x = RandomFloats(rows * k, 5);
    std::vector<float> out(rows * n);
    std::vector<double> read_rate, gemm_rate;
    for (int r = -1; r < settings.repetitions; ++r) {
      const double read_s = Seconds([&] { ReadAll(probe, sink); });
      const double gemm_s = Seconds([&] {
        for (const auto& weight : weights) kernels::Gemm(x.data(), rows, k, weight.data(), n, nullptr, out.data());
      });
      if (r < 0) continue;
      read_rate.push_back(static_cast<double>(probe.bytes) / read_s / 1e9);
      gemm_rate.push_back(static_cast<double>(4 * n * k * copies) / gemm_s / 1e9);
    }
    report.Add({.row = "kernels/gemm/" + std::to_string(rows) + "x4096x4096",
                .value = Median(gemm_rate),
                .unit = "GB/s",
                .limit = Median(read_rate),
                .target = "",
                .command = kReadLimit});
  }
}

int Main(int argc, char** argv) {
  Settings settings;
  std::string only;
  Report report;
  std::string json_path;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) settings.quick = true;
    if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) json_path = argv[++i];
    if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) only = argv[++i];
  }
  settings.probe_bytes = std::clamp(4 * LastLevelCacheBytes(), size_t{256} << 20, size_t{1} << 30);
  if (settings.quick) {
    settings.repetitions = 1;
    settings.probe_bytes = size_t{16} << 20;
  }
  Buffer probe(settings.probe_bytes);
  FillBf16(probe, 1);
  const auto wanted = [&](const char* name) { return only.empty() || only == name; };
  if (wanted("decode")) {
    const pod::Plan identity = *pod::Plan::Identity({1, 8, 128}, {}, Digest{});
    BenchDecode(report, settings, probe, "identity", identity, 0, false);
    BenchDecode(report, settings, probe, "texts", identity, 0, true);
    std::vector<pod::Slot> slots(16);
    for (int h = 0; h < 8; ++h) {
      slots[static_cast<size_t>(h)] = {pod::Role::kLead, {0, h}, pod::Codec::kBf16};
      slots[static_cast<size_t>(8 + h)] = {pod::Role::kFollower, {0, h}, pod::Codec::kBf16};
    }
    const pod::Plan sharing =
        *pod::Plan::Create({2, 8, 128}, {}, pod::Sharing::kKey, pod::Codec::kBf16, slots, Digest{});
    BenchDecode(report, settings, probe, "key_sharing", sharing, 1, false);
  }
  if (wanted("prefill")) BenchPrefill(report, settings);
  if (wanted("gemm")) BenchGemm(report, settings, probe);
  const absl::Status written = report.WriteJson(json_path);
  if (written.ok()) return 0;
  std::fprintf(stderr, "attention_bench: %s\n", written.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace perigee

int main(int argc, char** argv) { return perigee::Main(argc, argv); }
