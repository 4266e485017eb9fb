// The KV store's control messages, over gRPC and by message, to a store in memory.
#include <cstddef>
#include <cstdint>

#include "kvstore_conversation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  perigee::kvstore::PlayConversation({reinterpret_cast<const char*>(data), size}, {});
  return 0;
}
