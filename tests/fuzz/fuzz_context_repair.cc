// Whatever the bytes, an accepted measurement is written and read back as the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "model/measured_repair.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using perigee::model::MeasuredRepair;
  const absl::StatusOr<MeasuredRepair> measured = MeasuredRepair::Parse({reinterpret_cast<const char*>(data), size});
  if (!measured.ok()) return 0;
  const absl::StatusOr<MeasuredRepair> again = MeasuredRepair::Parse(measured->ToJson());
  if (!again.ok() || again->repair != measured->repair || again->measured.size() != measured->measured.size()) {
    std::abort();
  }
  return 0;
}
