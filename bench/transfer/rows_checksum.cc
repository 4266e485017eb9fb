// What taking every extent's CRC32C while it moves costs in throughput.
#include <vector>

#include "absl/strings/str_cat.h"
#include "transfer/rows.h"

namespace perigee::bench {

void AddChecksumRows(const Run& run, const Pair& pair) {
  for (const size_t bytes : {size_t{1} << 20, size_t{32} << 20}) {
    const std::string name = absl::StrCat("transfer/crc/", pair.transport(), "/", SizeName(bytes));
    if (!run.Wants(name)) continue;
    const std::vector<Extent> extents(CountOf(bytes, pair.transport()), Extent{0, 0, bytes});
    const double total = static_cast<double>(bytes * extents.size());
    std::vector<double> with, without;
    pair.MoveBatches(Direction::kGet, extents, 1, /*checksums=*/true);
    for (int i = 0; i < run.repetitions; ++i) {
      with.push_back(total / pair.MoveBatches(Direction::kGet, extents, 1, /*checksums=*/true));
      without.push_back(total / pair.MoveBatches(Direction::kGet, extents, 1, /*checksums=*/false));
    }
    Row row;
    row.row = name;
    row.value = Median(with) / 1e9;
    row.unit = "GB/s";
    row.limit = Median(without) / 1e9;
    row.target = ">=0.95";
    row.command = "ours without checksums, get, one batch, one buffer each side";
    run.report->Add(std::move(row));
  }
}

}  // namespace perigee::bench
