// Whatever the bytes, an accepted tokenizer encodes and decodes a short text without harm.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokenizer = perigee::model::ParseTokenizerJson({reinterpret_cast<const char*>(data), size}, "");
  if (!tokenizer.ok()) return 0;
  const auto ids = (*tokenizer)->Encode("the pass key, 12\n \xC3\xA9\xFF", false, true);
  if (!ids.ok()) return 0;
  if (!(*tokenizer)->Decode(*ids).ok()) std::abort();  // ids of its own making
  perigee::model::StreamDecoder stream(**tokenizer);
  for (const int32_t id : *ids) (void)stream.Push(id);
  (void)stream.Finish();
  return 0;
}
