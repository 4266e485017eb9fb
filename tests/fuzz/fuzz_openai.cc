// Whatever a request's body, it is refused with an error that is JSON, or becomes requests that keep to the limits. The
// same for a context's.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "cluster/gateway/context_handler.h"
#include "cluster/gateway/openai.h"
#include "cluster/gateway/text_chunks.h"
#include "nlohmann/json.hpp"

namespace {

using namespace perigee;

void Require(bool holds) {
  if (!holds) std::abort();
}

void Use(const cluster::CompletionCall& call, const cluster::FrontModel& model) {
  static const auto tokens = std::make_shared<const std::vector<int32_t>>(std::vector<int32_t>{300, 301, 302});
  const std::vector<cluster::SharedTokens> contexts(call.contexts.size(), tokens);
  Require(contexts.size() <= 1024 && call.segments.size() <= 4096);
  const auto requests = cluster::MakeBackendRequests(call, model, absl::UnixEpoch(), 7, contexts);
  if (!requests.ok()) {
    Require(!nlohmann::json::parse(cluster::ToApiError(requests.status()).body, nullptr, false).is_discarded());
    return;
  }
  for (cluster::BackendRequest request : *requests) {
    const auto tokens = static_cast<int64_t>(request.token_ids.size());
    Require(tokens > 0 && request.max_tokens > 0 && tokens + request.max_tokens <= model.context_tokens);
    Require(request.samples >= 1 && request.samples <= 16 && request.stop.size() <= 4);
    for (const int64_t point : request.branch_points) Require(point > 0 && point < tokens);
    int64_t end = 0;
    for (const auto& [begin, length, source, source_begin] : request.contexts) {
      Require(begin >= end && length == 3 && request.token_ids[static_cast<size_t>(begin)] == 300);
      end = begin + length;
      Require(end <= tokens);
    }
    Require(request.chunks.empty() || !call.separator.empty());
    for (const auto& [begin, length, source, source_begin] : request.chunks)
      Require(length >= 64 && begin >= 0 && begin + length <= tokens);
    // All of them are contexts at their second sight, in order beside the others.
    cluster::ChunkIndex index;
    const size_t all = request.contexts.size() + request.chunks.size();
    cluster::BackendRequest again = request;
    cluster::AdmitChunks(index, request);
    cluster::AdmitChunks(index, again);
    Require(again.chunks.empty() && again.contexts.size() == all);
    end = 0;
    for (const auto& [begin, length, source, source_begin] : again.contexts) {
      Require(begin >= end);
      end = begin + length;
    }
  }
  const cluster::AnswerFormat format(call, "id", model.name, absl::UnixEpoch());
  const std::string chunk = format.Chunk(0, {.sample = 0, .text = call.salt, .tokens = 1, .finish_reason = "stop"});
  Require(chunk.ends_with("\n\n"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* const tokenizer = model::LoadTokenizer(PERIGEE_SOURCE_DIR "/models/podling")->release();
  static const auto* const chat_template = model::ChatTemplate::Plain().release();
  static const cluster::FrontModel model = {
      .name = "m", .tokenizer = tokenizer, .chat_template = chat_template, .context_tokens = 512};
  const absl::string_view body(reinterpret_cast<const char*>(data), size);
  const auto content = cluster::ParseContextBody(body, /*is_json=*/true);
  if (!content.ok()) {
    Require(!nlohmann::json::parse(cluster::ToApiError(content.status()).body, nullptr, false).is_discarded());
  }
  for (const auto endpoint : {cluster::Endpoint::kCompletions, cluster::Endpoint::kChatCompletions}) {
    const auto call = cluster::ParseCompletionCall(body, endpoint);
    if (call.ok()) {
      Use(*call, model);
    } else {
      Require(!nlohmann::json::parse(cluster::ToApiError(call.status()).body, nullptr, false).is_discarded());
    }
  }
  return 0;
}
