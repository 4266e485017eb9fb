#include "transport/transfer_batch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "transport/core.h"

namespace perigee::transport {

TransferBatch::TransferBatch(std::shared_ptr<internal::Transfer> transfer) : transfer_(std::move(transfer)) {}

TransferBatch& TransferBatch::operator=(TransferBatch&& other) noexcept {
  if (this != &other) {
    Finish();
    transfer_ = std::move(other.transfer_);
  }
  return *this;
}

TransferBatch::~TransferBatch() { Finish(); }

void TransferBatch::Finish() {
  if (transfer_ != nullptr) transfer_->driver->Wait(transfer_->done, absl::InfiniteFuture());
  transfer_ = nullptr;
}

bool TransferBatch::done() const { return transfer_ == nullptr || transfer_->done.Happened(); }

absl::Status TransferBatch::Wait(absl::Time until) {
  if (transfer_ == nullptr) return absl::FailedPreconditionError("this TransferBatch is empty");
  if (!transfer_->driver->Wait(transfer_->done, until)) {
    return absl::DeadlineExceededError("the transfer is still under way");
  }
  return transfer_->result;
}

void TransferBatch::Cancel() {
  if (transfer_ == nullptr) return;
  transfer_->Fail(absl::CancelledError("the batch was cancelled"));
  for (const auto& rail : transfer_->link->shared->rails) {
    rail->Post([core = rail.get()] { core->SetDirty(); });
  }
}

size_t TransferBatch::size() const { return transfer_ == nullptr ? 0 : transfer_->extents.size(); }

bool TransferBatch::extent_done(size_t extent) const { return transfer_ != nullptr && transfer_->extent_done(extent); }

absl::Status TransferBatch::WaitExtent(size_t extent, absl::Time until) {
  if (transfer_ == nullptr) return absl::FailedPreconditionError("this TransferBatch is empty");
  if (extent >= transfer_->extents.size()) {
    return absl::InvalidArgumentError(absl::StrCat("extent ", extent, " of a batch of ", transfer_->extents.size()));
  }
  const auto over = [&] { return transfer_->extent_done(extent) || transfer_->done.Happened(); };
  if (!transfer_->driver->Drive(over, until) && !transfer_->WaitExtent(extent, until)) {
    return absl::DeadlineExceededError("the extent is still under way");
  }
  return transfer_->extent_done(extent) ? absl::OkStatus() : transfer_->result;
}

uint32_t TransferBatch::extent_crc32c(size_t extent) const {
  return transfer_ == nullptr ? 0 : transfer_->extent_crc32c(extent);
}

}  // namespace perigee::transport
