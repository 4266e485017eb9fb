// OpenAI's completions API as text: request bodies to what the backend is asked for, answers and errors to bodies.
//
// Both endpoints take OpenAI's fields. Unknown fields are ignored, as other compatible servers do; known ones that
// would change the answer and are not implemented are refused by name: tools, functions, response_format other than
// text, logprobs, logit_bias, penalties, suffix, echo, best_of above n, audio. Extensions, at the top level of the
// body:
//   top_k                 sample among the k most likely tokens; 0 and -1: all
//   ignore_eos            go on after an end of sequence, up to max_tokens
//   cache_salt            answers share cached prompts only with requests of the same salt
//   timeout               seconds after which the request fails
//   chat_template_kwargs  switches (true or false) that the chat template sees, e.g. enable_thinking
//   contexts              ids of registered contexts (cluster/contexts/) that stand before the prompt, in order; in
//                         chats before the first user message's content
//   segments              completions, instead of prompt: {"text": "..."} and {"context": "id"} in order
//   context_separator     what stands between the chunks of a text prompt, and of user messages (text_chunks.h)
//   context_repair        what of contexts is computed again (model/repair.h)
// and, among a chat message's parts, {"type": "context", "id": "..."}. Around a context nothing is put.
//
// Errors are absl::Status; what OpenAI's errors have besides (the parameter, a code) travels as payloads, and ApiError
// says the HTTP status of each in one place. Everything here is a function of its arguments: any thread may call.
#ifndef PERIGEE_CLUSTER_GATEWAY_OPENAI_H_
#define PERIGEE_CLUSTER_GATEWAY_OPENAI_H_

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cluster/contexts/token_cache.h"
#include "cluster/gateway/backend.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace perigee::cluster {

// The model behind the front; its parts must outlive the front.
struct FrontModel {
  std::string name;  // As requests name it.
  const model::Tokenizer* tokenizer = nullptr;
  const model::ChatTemplate* chat_template = nullptr;
  int64_t context_tokens = 0;  // Prompt and answer.
  absl::Time created = absl::UnixEpoch();
};

enum class Endpoint { kCompletions, kChatCompletions };

struct CallLimits {
  size_t max_prompts = 64;  // In one request.
  uint32_t max_samples = 16;
  size_t max_messages = 4096;
  size_t max_contexts = 1024;
  size_t max_segments = 4096;
};

// A request body that has been read and checked.
struct CompletionCall {
  Endpoint endpoint = Endpoint::kCompletions;
  std::string model;
  // Completions: one of the three.
  std::vector<std::string> text_prompts;
  std::vector<std::vector<int32_t>> token_prompts;
  struct Segment {
    std::string text;
    bool is_context = false;  // The next of `contexts`, instead.
  };
  std::vector<Segment> segments;
  // Chat.
  std::vector<model::ChatMessage> messages;
  std::map<std::string, bool> template_switches;
  // Ids, one for each place where a context stands, in the order of the prompt. Completions: the first of them stand
  // before each prompt. Chat: places are the messages'.
  std::vector<std::string> contexts;
  size_t leading_contexts = 0;
  std::string repair;     // "": the model's default.
  std::string separator;  // Of chunks, in the text prompt and in users' messages; "": there are none.

  uint32_t samples = 1;
  std::optional<uint32_t> max_tokens;
  const char* max_tokens_name = "max_tokens";  // The field that it came from.
  double temperature = 1;
  double top_p = 1;
  uint32_t top_k = 0;
  std::optional<uint64_t> seed;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  bool stream = false;
  bool include_usage = false;
  std::string salt;
  std::optional<absl::Duration> timeout;
};

// INVALID_ARGUMENT says which field is wrong and how; UNIMPLEMENTED names a field that is not supported.
absl::StatusOr<CompletionCall> ParseCompletionCall(absl::string_view body, Endpoint endpoint,
                                                   const CallLimits& limits = {});

// One request for each prompt, in their order, tokenised; request_id, tenant and deadline are left to the caller.
// NOT_FOUND for another model's name; INVALID_ARGUMENT, with OpenAI's code, where the context is too small.
// Chunks are cut out and not yet contexts: who is asked for them is not a function of the call (AdmitChunks).
// `random_seed` is used where the call has none; `contexts` are the tokens of the call's contexts.
absl::StatusOr<std::vector<BackendRequest>> MakeBackendRequests(const CompletionCall& call, const FrontModel& model,
                                                                absl::Time now, uint64_t random_seed,
                                                                std::span<const SharedTokens> contexts = {});

// An answer, whole or as it comes. Choice number: prompt x samples + sample.
class AnswerFormat {
 public:
  AnswerFormat(const CompletionCall& call, const std::string& request_id, const std::string& model, absl::Time created);

  struct Choice {
    std::string text;
    std::string finish_reason;
  };
  std::string Whole(const std::vector<Choice>& choices, const BackendUsage& usage) const;

  // Server-sent events, each ended by an empty line. Chat: the first chunk of a choice gives the role.
  std::string FirstChunk(size_t choice) const;
  // "" where the event has nothing to show.
  std::string Chunk(size_t choice, const BackendEvent& event) const;
  std::string UsageChunk(const BackendUsage& usage) const;
  static std::string ErrorChunk(const absl::Status& status);
  static std::string Done() { return "data: [DONE]\n\n"; }

 private:
  std::string Wrapped(const std::string& choice_json) const;
  bool chat_;
  bool include_usage_;
  bool with_contexts_;
  std::string head_;        // {"id":...,"created":...,"model":..., without the object's kind.
  std::string chunk_kind_;  // The kind of a chunk.
};

// What an error looks like on the wire.
struct ApiError {
  int http_status = 500;
  bool retry_later = false;  // Send Retry-After.
  std::string body;
};
ApiError ToApiError(const absl::Status& status);

// An error with OpenAI's "param" and "code".
absl::Status WithDetails(absl::Status status, absl::string_view param, absl::string_view code = "");
// The statuses that only HTTP has: 401, 404 for a path, 405, 408, 411, 413, 415, 431, 499...
absl::Status HttpError(int http_status, absl::string_view message, absl::string_view code = "");

std::string ModelList(const FrontModel& model);
std::string ModelEntry(const FrontModel& model);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_OPENAI_H_
