// Whatever the bytes, a membership file, a record or a placement that is accepted is written and read back as the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "cluster/membership/record.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perigee::cluster;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto file = FileFromJson(text); file.ok()) {
    const auto again = FileFromJson(FileToJson(*file));
    if (!again.ok() || again->epoch != file->epoch || again->nodes != file->nodes) std::abort();
  }
  if (const auto record = RecordFromJson(text); record.ok()) {
    const auto again = RecordFromJson(RecordToJson(*record));
    if (!again.ok() || *again != *record || !CheckRecord(*record).ok()) std::abort();
  }
  if (const auto map = StoreMapFromJson(text); map.ok()) {
    const auto again = StoreMapFromJson(StoreMapToJson(*map));
    if (!again.ok() || again->epoch != map->epoch || again->stores != map->stores) std::abort();
  }
  (void)LoadFromJson(text);
  (void)StateFromJson(text);
  (void)RemovalFromJson(text);
  return 0;
}
