// Whatever the bytes, an accepted config passes its own validation.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config = perigee::model::ModelConfig::FromJson({reinterpret_cast<const char*>(data), size});
  if (config.ok() && !perigee::model::Validate(*config).ok()) std::abort();
  return 0;
}
