// A batch of extents that touch each other on neither side, in an order of its own on each.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "transfer/rows.h"

namespace perigee::bench {
namespace {

constexpr size_t kExtents = 256;
constexpr size_t kMebibyte = size_t{1} << 20;

std::vector<Extent> Scattered(size_t bytes) {
  std::mt19937 random(1);
  std::vector<size_t> local(kExtents), remote(kExtents);
  std::iota(local.begin(), local.end(), 0);
  std::iota(remote.begin(), remote.end(), 0);
  std::shuffle(local.begin(), local.end(), random);
  std::shuffle(remote.begin(), remote.end(), random);
  std::vector<Extent> extents;
  for (size_t i = 0; i < kExtents; ++i) extents.push_back({local[i] * 2 * bytes, remote[i] * 2 * bytes, bytes});
  return extents;
}

}  // namespace

void AddScatteredRows(const Run& run, const Pair& pair) {
  for (const Direction direction : {Direction::kPut, Direction::kGet}) {
    for (const auto& [bytes, target] : {std::pair{size_t{64} << 10, ">=0.80"}, std::pair{size_t{4} << 10, ">=0.50"}}) {
      const std::string name =
          absl::StrCat("transfer/", Name(direction), "/", pair.transport(), "/", kExtents, "x", SizeName(bytes));
      if (!run.Wants(name) && !run.Wants(name + "/same_memory") && !run.Wants(name + "/vs_one_by_one")) continue;
      const std::vector<Extent> extents = Scattered(bytes);
      const size_t batch_bytes = kExtents * bytes;
      const size_t batches = std::max<size_t>(CountOf(kMebibyte, pair.transport()) * kMebibyte / batch_bytes, 1);
      const size_t rounds = std::max<size_t>(batches / 8, 1);  // one by one is slow
      const std::vector<Extent> one_buffer(CountOf(kMebibyte, pair.transport()), Extent{0, 0, kMebibyte});
      // 1 MiB each as well, but over the same span of memory: what leaves the caches is a figure of the machine.
      std::vector<Extent> same_memory;
      for (size_t i = 0; i < batch_bytes / kMebibyte; ++i)
        same_memory.push_back({i * kMebibyte, i * kMebibyte, kMebibyte});

      std::vector<double> scattered, whole, spread, one_by_one;
      pair.MoveBatches(direction, extents, 1);
      for (int i = 0; i < run.repetitions; ++i) {
        scattered.push_back(batch_bytes * batches / pair.MoveBatches(direction, extents, batches));
        const double total = static_cast<double>(one_buffer.size() * kMebibyte);
        whole.push_back(
            total / std::min(pair.MoveBatches(direction, one_buffer, 1), pair.MoveOneByOne(direction, one_buffer, 1)));
        spread.push_back(batch_bytes * batches / pair.MoveBatches(direction, same_memory, batches));
        one_by_one.push_back(batch_bytes * rounds / pair.MoveOneByOne(direction, extents, rounds));
      }
      const auto add = [&](const std::string& row, const std::vector<double>& limit, const char* row_target,
                           const char* command) {
        if (!run.Wants(row)) return;
        run.report->Add({.row = row,
                         .value = Median(scattered) / 1e9,
                         .unit = "GB/s",
                         .limit = Median(limit) / 1e9,
                         .target = row_target,
                         .command = command});
      };
      add(name, whole, target,
          "ours, the same memory of 1 MiB each side again and again, the better of a batch and one after another");
      if (batch_bytes > kMebibyte) {
        add(name + "/same_memory", spread, "", "ours, a batch of extents of 1 MiB that has as many bytes");
      }
      if (bytes == size_t{4} << 10)
        add(name + "/vs_one_by_one", one_by_one, ">=5", "ours, the same extents one by one");
    }
  }
}

}  // namespace perigee::bench
