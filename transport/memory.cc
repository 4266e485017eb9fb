#include "transport/memory.h"

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "transport/core.h"

namespace perigee::transport {
namespace internal {

Region::~Region() {
  if (handle != nullptr) rail->Unmap(handle);
}

RemoteKey::~RemoteKey() {
  // False after shutdown, which has destroyed the key.
  if (handle != nullptr) rail->Post([core = rail.get(), key = handle] { core->DestroyKey(key); });
}

}  // namespace internal

std::byte* MemoryRegion::base() const { return region_ == nullptr ? nullptr : region_->base; }
size_t MemoryRegion::size_bytes() const { return region_ == nullptr ? 0 : region_->size; }
MemoryKind MemoryRegion::kind() const { return region_ == nullptr ? MemoryKind::kHost : region_->kind; }

namespace {

const std::string& Empty() {
  static const std::string& empty = *new std::string;
  return empty;
}

}  // namespace

const std::string& MemoryRegion::remote_key() const { return region_ == nullptr ? Empty() : region_->remote_key; }
const std::string& MemoryRegion::served_key() const { return region_ == nullptr ? Empty() : region_->served_key; }

uint32_t MemoryRegion::SumOfPuts(std::span<const std::byte> bytes) const {
  return region_ == nullptr || region_->sums == nullptr ? Crc32c(bytes) : region_->sums->Sum(bytes);
}
size_t MemoryRegion::UnsummedBytes(std::span<const std::byte> bytes) const {
  return region_ == nullptr || region_->sums == nullptr ? bytes.size() : region_->sums->UnknownBytes(bytes);
}
void MemoryRegion::ForgetPuts(std::span<const std::byte> bytes) const {
  if (region_ != nullptr && region_->sums != nullptr) region_->sums->Forget(bytes);
}

uint64_t RemoteRegion::address() const { return key_ == nullptr ? 0 : key_->base; }
uint64_t RemoteRegion::size_bytes() const { return key_ == nullptr ? 0 : key_->size; }

absl::string_view RemoteRegion::path() const {
  if (key_ == nullptr) return "none";
  switch (key_->path) {
    case internal::Path::kMapped:
      return "shared memory";
    case internal::Path::kOneSided:
      return "rdma";
    case internal::Path::kMessages:
      return "messages";
  }
  return "none";
}

absl::Status RemoteRegion::CheckBounds(uint64_t address, uint64_t size_bytes) const {
  const uint64_t base = this->address();
  const uint64_t size = this->size_bytes();
  // Differences, because address + size_bytes may wrap.
  if (address < base || address - base > size || size_bytes > size - (address - base)) {
    return absl::OutOfRangeError(absl::StrCat("transfer of ", size_bytes, " bytes at ", address,
                                              " leaves the remote region of ", size, " bytes at ", base));
  }
  return absl::OkStatus();
}

}  // namespace perigee::transport
