#include "transport/slots.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "transport/wire.h"

namespace perigee::transport::internal {
namespace {

constexpr size_t kSlotBytes = kOpBytes + kMaxPieces * sizeof(WirePiece);

}  // namespace

SlotPool::~SlotPool() {
  for (const auto& slot : slots_) {
    if (device_ == nullptr) {
      std::free(slot->memory);
    } else {
      std::lock_guard<std::mutex> lock(*device_mutex_);
      device_->FreePinned({slot->memory, kSlotBytes});
    }
  }
}

absl::StatusOr<Slot*> SlotPool::Take() {
  if (free_.empty()) {
    if (slots_.size() == limit_) return nullptr;
    std::byte* memory = nullptr;
    if (device_ == nullptr) {
      memory = static_cast<std::byte*>(std::aligned_alloc(4096, kSlotBytes));
    } else {
      std::lock_guard<std::mutex> lock(*device_mutex_);
      const absl::StatusOr<std::span<std::byte>> pinned = device_->AllocatePinned(kSlotBytes);
      if (pinned.ok()) memory = pinned->data();
    }
    if (memory == nullptr) {
      if (!slots_.empty()) return nullptr;  // fewer slots do, slower
      return absl::ResourceExhaustedError(absl::StrCat("no memory for a staging buffer of ", kSlotBytes, " bytes"));
    }
    slots_.push_back(std::make_unique<Slot>(Slot{memory}));
    free_.push_back(slots_.back().get());
  }
  Slot* slot = free_.back();  // the one used last: its memory is in the cache
  free_.pop_back();
  return slot;
}

void SlotPool::Give(Slot* slot) { free_.push_back(slot); }

}  // namespace perigee::transport::internal
