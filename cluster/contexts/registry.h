// Which contexts a cluster knows: texts (documents, system prompts) and lists of token ids that were registered under
// an id, to be computed once and reused wherever they stand in a prompt.
//
// A registry keeps records and contents. It is shared by all gateways of a cluster and read at each use, so that what
// one of them changes counts at once at the others. Contexts belong to their tenant: another tenant's are as absent
// everywhere. Nodes know nothing of all this: a request carries the tokens themselves.
#ifndef PERIGEE_CLUSTER_CONTEXTS_REGISTRY_H_
#define PERIGEE_CLUSTER_CONTEXTS_REGISTRY_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/bytes.h"

namespace perigee::cluster {

inline constexpr size_t kMaxContextIdBytes = 128;

struct ContextLimits {
  size_t content_bytes = size_t{1} << 20;  // As stored; etcd refuses requests above 1.5 MiB.
  size_t contexts = 1000;                  // Of one tenant. Where several put at once in etcd, some more.
};

struct ContextRecord {
  std::string tenant;
  std::string id;
  uint64_t version = 1;   // Grows by one with each other content.
  Digest content{};       // SHA-256 of the content as stored.
  uint64_t bytes = 0;     // Of the content as stored.
  uint64_t tokens = 0;    // As `tokenizer` counts them, without a begin of sequence.
  std::string tokenizer;  // Hexadecimal digest of the tokenizer of whoever put this version.
  absl::Time created;     // The first version.
  absl::Time changed;     // This one.
  friend bool operator==(const ContextRecord&, const ContextRecord&) = default;
};

struct NewContext {
  std::string tenant;
  std::string id;
  std::string content;  // Whatever bytes; content.h says which.
  uint64_t tokens = 0;
  std::string tokenizer;
};

// Any thread may call. Errors besides those named: INVALID_ARGUMENT for an id that CheckContextId refuses; UNAVAILABLE
// when the registry cannot be reached, which is never taken for "absent"; DATA_LOSS for a record that cannot be read.
class ContextRegistry {
 public:
  virtual ~ContextRegistry() = default;
  virtual const ContextLimits& limits() const = 0;

  struct PutResult {
    ContextRecord record;
    bool created = false;  // There was none of that id.
    bool changed = false;  // There was none, or another content.
  };
  // The same content as is there changes nothing. RESOURCE_EXHAUSTED above the limits.
  virtual absl::StatusOr<PutResult> Put(const NewContext& context) = 0;
  // NOT_FOUND.
  virtual absl::StatusOr<ContextRecord> Get(const std::string& tenant, const std::string& id) = 0;
  // Of just this version. NOT_FOUND: it has been replaced or deleted since.
  virtual absl::StatusOr<std::string> Content(const ContextRecord& record) = 0;
  // By id, those after `after` ("": from the first), at most `limit`.
  virtual absl::StatusOr<std::vector<ContextRecord>> List(const std::string& tenant, const std::string& after,
                                                          size_t limit) = 0;
  // NOT_FOUND.
  virtual absl::Status Delete(const std::string& tenant, const std::string& id) = 0;
};

// 1 to 128 of A-Z a-z 0-9 . _ : -
absl::Status CheckContextId(absl::string_view id);

// For registries: a record as they keep it (docs/formats.md, section 9), and what is the same in all of them.
std::string ContextRecordToJson(const ContextRecord& record);
// DATA_LOSS for what is no record of this tenant and id.
absl::StatusOr<ContextRecord> ContextRecordFromJson(absl::string_view text, const std::string& tenant,
                                                    const std::string& id);
// The id that stands in a record.
absl::StatusOr<std::string> ContextIdOf(absl::string_view text);
// What is to be written for `context` where `before` (null: nothing) is now.
ContextRegistry::PutResult NextVersion(const NewContext& context, const ContextRecord* before, absl::Time now);
absl::Status CheckNewContext(const NewContext& context, const ContextLimits& limits);
absl::Status TooManyContexts(const ContextLimits& limits);
absl::Status NoSuchContext(absl::string_view id);
// OK: `content` is what the record names.
absl::Status CheckContent(const ContextRecord& record, absl::string_view content);
// The name under which a tenant's records lie: tenants are users' texts.
std::string TenantKey(const std::string& tenant);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_REGISTRY_H_
