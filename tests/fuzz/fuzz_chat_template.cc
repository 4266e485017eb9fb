// Whatever the template, an accepted one renders a conversation without harm, and no byte of the conversation ends up
// among the template's own, nor any context but those that the messages have.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "model/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using perigee::model::ChatMessage;
  const auto chat = perigee::model::ChatTemplate::Parse({reinterpret_cast<const char*>(data), size},
                                                        {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!chat.ok()) return 0;
  // Characters that no template of the seeds has; ASCII's change of case does not make them.
  static const auto* const messages =
      new std::vector<ChatMessage>{{.role = "system", .content = " \x01\x02 ", .name = "", .contexts = {0, 2}},
                                   {.role = "user", .content = "\x02\x01\x02", .name = "\x01"},
                                   {.role = "assistant", .content = "\x01", .name = ""},
                                   {.role = "user", .content = "\x01 \x02\n", .name = "", .contexts = {4}}};
  for (size_t i = 0; i < size; ++i) {
    if (data[i] < 8 || data[i] == '\\') return 0;  // It could write them itself.
  }
  const auto segments = (*chat)->Render(*messages, {.switches = {}, .max_output_bytes = 1 << 16});
  if (!segments.ok()) return 0;
  for (const auto& segment : *segments) {
    if (segment.context >= 3 || (segment.context >= 0 && !segment.text.empty())) std::abort();
    if (!segment.is_template) continue;
    for (const char c : segment.text) {
      if (c == '\x01' || c == '\x02') std::abort();
    }
  }
  return 0;
}
