// The index of one SSD path: a RocksDB database at <path>/index. Knows keys and values, not what they mean.
//
// Any thread may call. RESOURCE_EXHAUSTED: the disk is full; DATA_LOSS: RocksDB found wrong bytes of its own.
#ifndef PERIGEE_KVSTORE_SSD_SSD_INDEX_H_
#define PERIGEE_KVSTORE_SSD_SSD_INDEX_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::kvstore {

class SsdIndex {
 public:
  // Created where it is missing. FAILED_PRECONDITION when somebody else has it open.
  static absl::StatusOr<std::unique_ptr<SsdIndex>> Open(const std::string& path);
  virtual ~SsdIndex() = default;

  struct Change {
    std::string key;
    std::optional<std::string> value;  // Without one the key is deleted.
  };
  // All or none. synced: durable when it returns; an error then leaves open whether it is. One caller at a time.
  virtual absl::Status Write(std::span<const Change> changes, bool synced) = 0;
  // In key order; stops at the first error and returns it.
  virtual absl::Status ForEach(
      const std::function<absl::Status(absl::string_view key, absl::string_view value)>& visit) = 0;
  // NOT_FOUND without one.
  virtual absl::StatusOr<std::string> Get(absl::string_view key) = 0;
  // Counts changes over all starts; never goes back but by losing some. nullopt after a failed Write: open is then what
  // the next start finds.
  virtual std::optional<uint64_t> sequence() const = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_SSD_INDEX_H_
