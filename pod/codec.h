// Codecs: how a plane's numbers are written.
#ifndef PERIGEE_POD_CODEC_H_
#define PERIGEE_POD_CODEC_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace perigee::pod {

// The values are part of the file formats and of plan ids: never renumber. docs/formats.md reserves 3..5 for fp8_e4m3,
// int8 and int4.
enum class Codec : uint8_t { kBf16 = 1, kFp16 = 2 };

constexpr int CodecBits(Codec codec) {
  switch (codec) {
    case Codec::kBf16:
    case Codec::kFp16:
      return 16;
  }
  return 0;
}

constexpr const char* CodecName(Codec codec) {
  switch (codec) {
    case Codec::kBf16:
      return "bf16";
    case Codec::kFp16:
      return "fp16";
  }
  return "unknown";
}

inline std::optional<Codec> CodecFromName(absl::string_view name) {
  if (name == "bf16") return Codec::kBf16;
  if (name == "fp16") return Codec::kFp16;
  return std::nullopt;
}

inline std::optional<Codec> CodecFromId(uint32_t id) {
  if (id == 1) return Codec::kBf16;
  if (id == 2) return Codec::kFp16;
  return std::nullopt;
}

}  // namespace perigee::pod

#endif  // PERIGEE_POD_CODEC_H_
