// A node's own plane memory: one registered region, cut into planes that free themselves.
//
// Fetches land here and fresh planes are written here, so that one-sided transfers need no copy and no registration of
// their own. Any thread may allocate and free. The region lives until the last plane is gone.
#ifndef PERIGEE_KVSTORE_REGISTERED_POOL_H_
#define PERIGEE_KVSTORE_REGISTERED_POOL_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "transport/context.h"

namespace perigee::kvstore {

class RegisteredPool {
 public:
  static absl::StatusOr<std::unique_ptr<RegisteredPool>> Create(transport::Context* engine, size_t bytes);

  // Page-aligned. RESOURCE_EXHAUSTED, naming what is free, when there is no room. Unspecified contents are for planes
  // that a fetch fills to the last byte.
  enum class Contents { kZeroed, kUnspecified };
  absl::StatusOr<std::shared_ptr<std::byte[]>> Allocate(size_t bytes, Contents contents = Contents::kZeroed);

  // What an allocation of so many takes: whole pages.
  static uint64_t RoomFor(size_t bytes);
  uint64_t capacity_bytes() const;
  uint64_t used_bytes() const;

 private:
  struct State;
  explicit RegisteredPool(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REGISTERED_POOL_H_
