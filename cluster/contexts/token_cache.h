// Contexts' tokens by the digest of their content, so that a text is read and tokenised once and not for every request.
// The longest unused go when there are too many.
#ifndef PERIGEE_CLUSTER_CONTEXTS_TOKEN_CACHE_H_
#define PERIGEE_CLUSTER_CONTEXTS_TOKEN_CACHE_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/bytes.h"

namespace perigee::cluster {

// Whoever holds them may read them on, whatever becomes of the context.
using SharedTokens = std::shared_ptr<const std::vector<int32_t>>;

// Any thread may call.
class TokenCache {
 public:
  explicit TokenCache(size_t max_bytes) : max_bytes_(max_bytes) {}

  // Null: not here.
  SharedTokens Find(const Digest& content);
  void Add(const Digest& content, SharedTokens tokens);

 private:
  using Entry = std::pair<Digest, SharedTokens>;
  static size_t BytesOf(const SharedTokens& tokens) { return tokens->size() * sizeof(int32_t) + 256; }

  const size_t max_bytes_;
  absl::Mutex mu_;
  size_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mu_);  // The last used first.
  std::map<Digest, std::list<Entry>::iterator> by_content_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_TOKEN_CACHE_H_
