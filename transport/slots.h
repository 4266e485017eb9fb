// Inside of transport/: staging buffers of one rail, each large enough for one operation with its table of pieces.
// Pinned where the context has a device. A fixed number: what finds none waits, so a burst of small transfers or a
// stalled peer costs no memory.
#ifndef PERIGEE_TRANSPORT_SLOTS_H_
#define PERIGEE_TRANSPORT_SLOTS_H_

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "transport/device_memory.h"

namespace perigee::transport::internal {

struct Slot {
  std::byte* memory = nullptr;
};

// Driver.
class SlotPool {
 public:
  SlotPool(size_t slots, DeviceMemory* device, std::mutex* device_mutex)
      : limit_(slots), device_(device), device_mutex_(device_mutex) {}
  ~SlotPool();
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  // Null when all are in use. RESOURCE_EXHAUSTED when there is no memory for the first one.
  absl::StatusOr<Slot*> Take();
  void Give(Slot* slot);

 private:
  const size_t limit_;
  DeviceMemory* const device_;
  std::mutex* const device_mutex_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> free_;
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_SLOTS_H_
