// What a GiB costs in CPU time, user and system of both processes: one Get after another, beside Redis GETs of values
// of the same size, each side into one buffer.
#include <vector>

#include "absl/strings/str_cat.h"
#include "peers/fail.h"
#include "peers/redis.h"
#include "transfer/rows.h"

namespace perigee::bench {
namespace {

constexpr double kGibibyte = 1 << 30;

}  // namespace

void AddCpuRows(const Run& run, const Pair& pair) {
  for (const size_t bytes : {size_t{1} << 20, size_t{16} << 20}) {
    const std::string name = absl::StrCat("transfer/cpu/", pair.transport(), "/get/", SizeName(bytes));
    if (!run.Wants(name)) continue;
    const size_t count = 2 * CountOf(bytes, pair.transport());
    const double gibibytes = static_cast<double>(bytes * count) / kGibibyte;
    const std::vector<Extent> extents(count, Extent{0, 0, bytes});
    const absl::StatusOr<std::unique_ptr<Redis>> redis = Redis::Start();
    const std::vector<std::string> keys(count, "k");
    if (redis.ok()) Check((*redis)->Set({keys.data(), 1}, std::string(bytes, 'v'), 1), "redis");
    std::vector<double> ours, peers;
    for (int i = 0; i < run.repetitions; ++i) {
      const double before = pair.CpuSeconds();
      pair.MoveOneByOne(Direction::kGet, extents, 1);
      ours.push_back((pair.CpuSeconds() - before) / gibibytes);
      if (!redis.ok()) continue;
      const double redis_before = (*redis)->CpuSeconds();
      Check((*redis)->Get(keys, bytes, 1), "redis");
      peers.push_back(((*redis)->CpuSeconds() - redis_before) / gibibytes);
    }
    Row row;
    row.row = name;
    row.value = Median(ours);
    row.unit = "CPU s/GiB";
    row.better = Better::kLess;
    row.target = ">=2.0";
    if (redis.ok()) {
      row.limit = Median(peers);
      row.command = absl::StrCat("user and system of both sides; Redis GET of one value: ", Redis::ServerCommand(),
                                 ", a client reading each answer into one buffer");
    } else {
      row.command = absl::StrCat("no peer: ", redis.status().message());
    }
    run.report->Add(std::move(row));
  }
}

}  // namespace perigee::bench
