// Memory that UCX may read and write: a MemoryRegion on the owner's side, a RemoteRegion on the reader's or writer's
// side.
//
// The owner registers memory and sends remote_key() over the control plane; the peer turns it into a RemoteRegion with
// Endpoint::UnpackRemoteKey. Addresses are the owner's virtual addresses.
//
// Trust: the packed key's checksum finds damage, not malice, and nothing here authenticates a peer. The owner checks
// region and bounds of the transfers that it serves; those over RDMA or shared memory are bounded by the initiator's
// own checks. The data plane's port belongs on a private network.
#ifndef PERIGEE_TRANSPORT_MEMORY_H_
#define PERIGEE_TRANSPORT_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace perigee::transport {

namespace internal {
struct Region;
struct RemoteKey;
}  // namespace internal

// A registration; made by Context::RegisterMemory (the caller owns the bytes and keeps them alive as long as this
// object) or Context::AllocateMemory (this object owns them: page-aligned, contents unspecified). Movable. May outlive
// its engine: the bytes stay, peers no longer reach them. Any thread may read it.
class MemoryRegion {
 public:
  MemoryRegion() = default;
  MemoryRegion(MemoryRegion&&) noexcept = default;
  MemoryRegion& operator=(MemoryRegion&&) noexcept = default;
  // Ends the registration (and frees allocated bytes). A transfer that this side serves in it is cut off by closing its
  // connection; a one-sided one (RDMA, shared memory) cannot be seen from here, so peers must have been told before.
  // Not from a message handler if the bytes are the caller's.
  ~MemoryRegion() = default;

  std::byte* base() const;
  size_t size_bytes() const;
  std::span<std::byte> bytes() const { return {base(), size_bytes()}; }
  uint64_t address() const { return reinterpret_cast<uint64_t>(base()); }
  // What a peer needs: base, size, the engine's identity and UCX's key, checksummed. Opaque bytes; see remote_key.h.
  const std::string& remote_key() const;

 private:
  friend class Context;
  explicit MemoryRegion(std::shared_ptr<internal::Region> region) : region_(std::move(region)) {}
  std::shared_ptr<internal::Region> region_;
};

// Another engine's memory as seen through one connection. Movable; any thread may read it. May outlive its connection
// (transfers then fail with UNAVAILABLE) and is kept alive by the transfers that use it.
class RemoteRegion {
 public:
  RemoteRegion() = default;
  RemoteRegion(RemoteRegion&&) noexcept = default;
  RemoteRegion& operator=(RemoteRegion&&) noexcept = default;
  ~RemoteRegion() = default;

  uint64_t address() const;  // of the first byte, in the owner's address space
  uint64_t size_bytes() const;
  // How transfers reach it: "shared memory" (engine-allocated, same machine: copied through a mapping), "rdma"
  // (one-sided), "messages" (the owner's progress thread serves it).
  absl::string_view path() const;
  // OUT_OF_RANGE unless [address, address + size_bytes) lies inside the region.
  absl::Status CheckBounds(uint64_t address, uint64_t size_bytes) const;

 private:
  friend class Endpoint;
  explicit RemoteRegion(std::shared_ptr<internal::RemoteKey> key) : key_(std::move(key)) {}
  std::shared_ptr<internal::RemoteKey> key_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_MEMORY_H_
