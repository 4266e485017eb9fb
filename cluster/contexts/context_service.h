// Contexts as a gateway's APIs offer them: put and asked for by people, resolved to tokens by requests, computed ahead.
//
// Contexts are tokenised here, alone and without a begin of sequence, so that they have the same tokens in every
// prompt. Nothing of a text becomes a special token, and token ids that are special are refused.
#ifndef PERIGEE_CLUSTER_CONTEXTS_CONTEXT_SERVICE_H_
#define PERIGEE_CLUSTER_CONTEXTS_CONTEXT_SERVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster/contexts/content.h"
#include "cluster/contexts/prefill_ahead.h"
#include "cluster/contexts/registry.h"
#include "cluster/contexts/token_cache.h"
#include "model/tokenizer.h"

namespace perigee::cluster {

struct ContextInfo {
  ContextRecord record;  // Its tokens as this process counts them.
  ContextProgress progress;
};

// Leaves the planes of these tokens, as a context's, in the stores. It is called on one thread; UNAVAILABLE and
// RESOURCE_EXHAUSTED: not now.
using PrefillContext = std::function<absl::Status(const std::string& tenant, const std::vector<int32_t>& token_ids,
                                                  const std::function<bool()>& cancelled)>;

struct ContextServiceOptions {
  int64_t window_tokens = 0;  // Of the model: a context has at least one less.
  size_t cached_token_bytes = size_t{64} << 20;
  PrefillAheadOptions ahead = {};
};

// Any thread may call. Errors are the registry's besides those named here; all say what to do.
class ContextService {
 public:
  // registry and tokenizer outlive it. prefill: empty for a process that computes nothing ahead.
  ContextService(ContextRegistry* registry, const model::Tokenizer* tokenizer, PrefillContext prefill,
                 const ContextServiceOptions& options);

  struct PutAnswer {
    ContextInfo info;
    bool created = false;
  };
  // And has it computed, again also where nothing has changed: stores forget. INVALID_ARGUMENT: empty, larger than the
  // model's window, not UTF-8, special or unknown token ids.
  absl::StatusOr<PutAnswer> Put(const std::string& tenant, const std::string& id, ContextContent content);
  absl::StatusOr<ContextInfo> Get(const std::string& tenant, const std::string& id);
  // As ContextRegistry::List.
  absl::StatusOr<std::vector<ContextInfo>> List(const std::string& tenant, const std::string& after, size_t limit);
  absl::Status Delete(const std::string& tenant, const std::string& id);

  // What stands in a prompt. FAILED_PRECONDITION: token ids of another tokenizer.
  absl::StatusOr<SharedTokens> Resolve(const std::string& tenant, const std::string& id);

 private:
  absl::StatusOr<SharedTokens> Tokenise(const std::string& id, const StoredContent& stored) const;
  absl::StatusOr<SharedTokens> TokensOf(const ContextRecord& record);
  ContextInfo InfoOf(ContextRecord record);
  absl::Status Compute(const PrefillAhead::Job& job, const std::function<bool()>& cancelled);

  ContextRegistry* const registry_;
  const model::Tokenizer* const tokenizer_;
  const PrefillContext prefill_;
  const ContextServiceOptions options_;
  TokenCache cache_;
  PrefillAhead ahead_;  // Last: its thread uses the others.
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_CONTEXT_SERVICE_H_
