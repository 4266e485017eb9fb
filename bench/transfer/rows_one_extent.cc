// One extent after another. How many sends are outstanding decides ucx_perftest's number, and ours, one way for some
// sizes and transports and the other way for others: the better one counts, on both sides.
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "transfer/rows.h"
#include "transfer/ucx_perftest.h"

namespace perigee::bench {
namespace {

constexpr size_t kFinalists = 3;

struct Variant {
  Perftest command;
  std::vector<double> bytes_per_second;
};

struct Ours {
  Direction direction;
  std::vector<double> one_by_one, batch;  // bytes a second
};

std::vector<Variant> Variants(const std::string& transport, size_t bytes, size_t count) {
  std::vector<Variant> variants;
  for (const char* test : {"ucp_put_bw", "ucp_get", "ucp_am_bw"}) {
    for (const char* outstanding : {"1", "16"}) {
      variants.push_back({{.tls = transport,
                           .test = test,
                           .bytes = bytes,
                           .iterations = count,
                           .warm_up = std::max<size_t>(count / 10, 1),
                           .options = {"-O", outstanding}},
                          {}});
    }
  }
  return variants;
}

void MeasureVariants(std::vector<Variant>* variants) {
  for (Variant& variant : *variants) {
    if (const auto speed = PerftestBytesPerSecond(variant.command)) variant.bytes_per_second.push_back(*speed);
  }
  std::erase_if(*variants, [](const Variant& variant) { return variant.bytes_per_second.empty(); });
  // The first round sorts out what has no chance.
  std::sort(variants->begin(), variants->end(),
            [](const Variant& a, const Variant& b) { return Median(a.bytes_per_second) > Median(b.bytes_per_second); });
  if (variants->size() > kFinalists) variants->erase(variants->begin() + kFinalists, variants->end());
}

}  // namespace

void AddOneExtentRows(const Run& run, const Pair& pair) {
  for (const size_t bytes : {size_t{1} << 20, size_t{4} << 20, size_t{32} << 20}) {
    const auto name = [&](Direction direction) {
      return absl::StrCat("transfer/", Name(direction), "/", pair.transport(), "/", SizeName(bytes));
    };
    std::vector<Ours> ours;
    for (const Direction direction : {Direction::kPut, Direction::kGet}) {
      if (run.Wants(name(direction))) ours.push_back({direction, {}, {}});
    }
    if (ours.empty()) continue;
    const size_t count = CountOf(bytes, pair.transport());
    const std::vector<Extent> extents(count, Extent{0, 0, bytes});
    const double total = static_cast<double>(bytes * count);
    const size_t warm_up = std::max<size_t>(count / 10, 1);
    std::vector<Variant> variants = Variants(pair.transport(), bytes, count);
    for (int i = 0; i < run.repetitions; ++i) {
      for (Ours& our : ours) {
        pair.MoveOneByOne(our.direction, {warm_up, extents[0]}, 1);  // as the peer has
        our.one_by_one.push_back(total / pair.MoveOneByOne(our.direction, extents, 1));
        our.batch.push_back(total / pair.MoveBatches(our.direction, extents, 1));
      }
      MeasureVariants(&variants);
    }
    for (const Ours& our : ours) {
      const double one_by_one = Median(our.one_by_one), batch = Median(our.batch);
      Row row;
      row.row = name(our.direction);
      row.value = std::max(one_by_one, batch) / 1e9;
      row.unit = "GB/s";
      row.target = ">=0.95";
      row.command = absl::StrCat("ours: one buffer each side, ",
                                 one_by_one > batch ? "one after another" : "all outstanding in one batch");
      if (variants.empty()) {
        absl::StrAppend(&row.command, "; no peer: ucx_perftest is missing or failed");
      } else {
        row.limit = Median(variants[0].bytes_per_second) / 1e9;
        absl::StrAppend(&row.command,
                        "; peer, best of put, get and am, one buffer each side: ", variants[0].command.ServerCommand(),
                        " & ", variants[0].command.ClientCommand());
      }
      run.report->Add(std::move(row));
    }
  }
}

}  // namespace perigee::bench
