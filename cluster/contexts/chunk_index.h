// Which chunks of prompts this gateway has seen, so that those that come again are computed alone, as contexts are,
// without anybody registering them. Most chunks never come again: one is a context from its second sight on, and what
// is seen once costs an entry here and nothing in the stores. Only digests are kept, no content.
#ifndef PERIGEE_CLUSTER_CONTEXTS_CHUNK_INDEX_H_
#define PERIGEE_CLUSTER_CONTEXTS_CHUNK_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "base/bytes.h"

namespace perigee::cluster {

struct ChunkIndexOptions {
  // Remembered in all. Beyond, the least recently seen is forgotten: one that was seen once, as long as these are more
  // than half, so that novel chunks do not push out those that come again.
  size_t entries = 65536;
  // Of a tenant's chunks that are contexts. Beyond, its least recently seen is forgotten; a larger one never becomes
  // one. 0: none does.
  uint64_t tokens_per_tenant = uint64_t{4} << 20;
};

struct ChunkIndexStats {
  uint64_t seen = 0;          // Chunks of requests.
  uint64_t reused = 0;        // Of those: as contexts.
  uint64_t admitted = 0;      // Chunks that became contexts.
  uint64_t entries = 0;       // Remembered now.
  uint64_t admitted_now = 0;  // Of those: contexts.
};

// Any thread may call.
class ChunkIndex {
 public:
  explicit ChunkIndex(const ChunkIndexOptions& options = {}) : options_(options) {}
  ChunkIndex(const ChunkIndex&) = delete;

  // Counts one request's chunks as seen. Which of them are contexts: one that was seen in an earlier request, of the
  // same tenant and salt.
  std::vector<bool> See(const std::string& tenant, absl::string_view salt,
                        std::span<const std::span<const int32_t>> chunks);
  ChunkIndexStats stats() const;

 private:
  struct Entry;
  using Entries = std::list<Entry>;  // The last seen first.
  struct Tenant {
    uint64_t tokens = 0;                    // Of its contexts.
    std::list<Entries::iterator> contexts;  // The last seen first.
  };
  using Tenants = std::map<std::string, Tenant>;
  struct Entry {
    Digest chunk{};
    uint64_t tokens = 0;
    Tenants::iterator tenant;                          // Contexts only.
    std::list<Entries::iterator>::iterator of_tenant;  // Contexts only.
    bool admitted = false;
  };
  bool SeeOne(const std::string& tenant, const Digest& chunk, uint64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Admit(const std::string& tenant, Entries::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Forget(Entries::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ChunkIndexOptions options_;
  mutable absl::Mutex mu_;
  Entries once_ ABSL_GUARDED_BY(mu_);      // Seen once, or too large.
  Entries contexts_ ABSL_GUARDED_BY(mu_);  // Admitted.
  std::map<Digest, Entries::iterator> by_chunk_ ABSL_GUARDED_BY(mu_);
  Tenants tenants_ ABSL_GUARDED_BY(mu_);  // Those that have contexts.
  ChunkIndexStats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_CHUNK_INDEX_H_
