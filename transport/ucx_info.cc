// What UCX says of itself: its devices and lanes.
#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "transport/core.h"

namespace perigee::transport::internal {

namespace {

template <typename Print>
std::string Printed(Print print) {
  char* buffer = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&buffer, &size);
  if (stream == nullptr) return "";
  print(stream);
  std::fclose(stream);
  std::string text(buffer, size);
  std::free(buffer);
  return text;
}

}  // namespace

absl::StatusOr<std::string> Core::Describe(Peer* peer) {
  if (peer->failed) return peer->failure;
  return Printed([&](FILE* stream) { ucp_ep_print_info(peer->handle, stream); });
}

// Lines of UCX's listing read "#     resource 3  : md 2  dev 1  flags -- tcp/eth0".
std::vector<std::string> Core::TransportNames() const {
  std::vector<std::string> names;
  const std::string text = Printed([&](FILE* stream) { ucp_context_print_info(context_, stream); });
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::StrContains(line, "resource")) continue;
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipWhitespace());
    if (!words.empty() && absl::StrContains(words.back(), "/")) names.emplace_back(words.back());
  }
  return names;
}

bool Core::UcxKnowsDevices() const {
  ucp_context_attr_t attr{};
  attr.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  return ucp_context_query(context_, &attr) == UCS_OK && (attr.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0;
}

}  // namespace perigee::transport::internal
