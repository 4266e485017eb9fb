#include "kvstore/registered_pool.h"

#include <cstring>

#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "kvstore/dram/extent_slab.h"

namespace perigee::kvstore {

struct RegisteredPool::State {
  explicit State(transport::MemoryRegion r) : region(std::move(r)), slab(region.size_bytes()) {}
  transport::MemoryRegion region;
  mutable absl::Mutex mutex;
  ExtentSlab slab ABSL_GUARDED_BY(mutex);
};

absl::StatusOr<std::unique_ptr<RegisteredPool>> RegisteredPool::Create(transport::Context* engine, size_t bytes) {
  PERIGEE_ASSIGN_OR_RETURN(transport::MemoryRegion region, engine->AllocateMemory(bytes));
  return std::unique_ptr<RegisteredPool>(new RegisteredPool(std::make_shared<State>(std::move(region))));
}

absl::StatusOr<std::shared_ptr<std::byte[]>> RegisteredPool::Allocate(size_t bytes, Contents contents) {
  std::optional<Extent> extent;
  {
    absl::MutexLock lock(&state_->mutex);
    extent = state_->slab.Allocate(bytes);
    if (!extent) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no room for a plane of ", bytes, " bytes in this node's pool: ", state_->slab.free_bytes(), " of ",
          state_->slab.capacity_bytes(), " bytes are free; raise --pool-mib or send fewer requests at once"));
    }
  }
  std::byte* memory = state_->region.base() + extent->offset();
  if (contents == Contents::kZeroed) std::memset(memory, 0, bytes);
  return std::shared_ptr<std::byte[]>(memory, [state = state_, extent = *extent](std::byte*) {
    absl::MutexLock lock(&state->mutex);
    state->slab.Free(extent);
  });
}

uint64_t RegisteredPool::RoomFor(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

uint64_t RegisteredPool::capacity_bytes() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->slab.capacity_bytes();
}

uint64_t RegisteredPool::used_bytes() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->slab.used_bytes();
}

}  // namespace perigee::kvstore
