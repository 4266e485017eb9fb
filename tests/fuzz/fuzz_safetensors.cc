// Whatever the bytes, parsing ends, and every accepted view can be read.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tensors = perigee::model::ParseSafetensors({reinterpret_cast<const std::byte*>(data), size});
  if (tensors.ok()) {
    for (const auto& [name, view] : *tensors) {
      std::vector<float> values(static_cast<size_t>(view.elements));
      perigee::model::ConvertToFloat(view, values);
    }
  }
  (void)perigee::model::ParseSafetensorsIndex({reinterpret_cast<const char*>(data), size});
  return 0;
}
