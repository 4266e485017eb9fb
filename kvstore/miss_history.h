// Why a plane is not there any more, for the last so many planes that went. Not thread-safe. Lost with the process.
#ifndef PERIGEE_KVSTORE_MISS_HISTORY_H_
#define PERIGEE_KVSTORE_MISS_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <deque>

#include "absl/container/flat_hash_map.h"
#include "kvstore/plane_id.h"

namespace perigee::kvstore {

// The values are those of proto's MissReason.
enum class MissReason : uint8_t {
  kNeverStored = 1,
  kEvicted = 2,
  kDeleted = 3,
  kChecksum = 4,
  kOtherTenant = 5,
  kNoRoom = 6,
  kDiskLost = 7,
  kExpired = 8,
  kUnreachable = 9,
  kOverQuota = 10,
  kMoved = 11,
};
inline constexpr size_t kMissReasons = 12;  // For tables by reason.
const char* MissReasonName(MissReason reason);

struct Miss {
  MissReason reason = MissReason::kNeverStored;
  int64_t when_unix_us = 0;  // 0 where unknown
};

class MissHistory {
 public:
  explicit MissHistory(size_t capacity) : capacity_(capacity) {}

  void Record(const PlaneId& id, MissReason reason, int64_t when_unix_us) {
    if (capacity_ == 0) return;
    ++sequence_;
    misses_[id] = {Miss{reason, when_unix_us}, sequence_};
    order_.push_back({id, sequence_});
    while (order_.size() > capacity_) {
      const auto it = misses_.find(order_.front().first);
      if (it != misses_.end() && it->second.second == order_.front().second) misses_.erase(it);
      order_.pop_front();
    }
  }
  Miss Find(const PlaneId& id) const {
    const auto it = misses_.find(id);
    return it == misses_.end() ? Miss{} : it->second.first;
  }

 private:
  const size_t capacity_;
  uint64_t sequence_ = 0;
  absl::flat_hash_map<PlaneId, std::pair<Miss, uint64_t>> misses_;
  std::deque<std::pair<PlaneId, uint64_t>> order_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_MISS_HISTORY_H_
