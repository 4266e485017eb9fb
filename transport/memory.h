// Memory that peers may read and write: a MemoryRegion on the owner's side, a RemoteRegion on the reader's or writer's
// side.
//
// The owner registers memory and sends a remote key over the control plane; the peer turns it into a RemoteRegion with
// Endpoint::UnpackRemoteKey. Addresses are the owner's virtual addresses. The packed key's checksum finds damage, not
// malice; what a peer may do is access.h's matter.
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

enum class MemoryKind : uint8_t {
  kHost,
  kPinnedHost,  // page-locked: a device copies to and from it without a detour
  kDevice,      // not the processor's to touch: transfers stage it through pinned host memory
};

// Who may reach a region by messages.
enum class Sharing : uint8_t {
  kOpen,    // every authenticated peer, all of it
  kLeased,  // trusted peers all of it; others what the GrantTable grants to their session
};

// A registration; made by Context::RegisterMemory (the caller owns the bytes and keeps them alive as long as this
// object) or Context::AllocateMemory (this object owns them: page-aligned, contents unspecified). Movable. May outlive
// its context: the bytes stay, peers no longer reach them. Any thread may read it.
class MemoryRegion {
 public:
  MemoryRegion() = default;
  MemoryRegion(MemoryRegion&&) noexcept = default;
  MemoryRegion& operator=(MemoryRegion&&) noexcept = default;
  // Ends the registration (and frees allocated bytes). A transfer that this side serves in it is cut off by closing its
  // connection; one over RDMA or shared memory cannot be seen from here, so peers must have been told before.
  // Not from a message handler if the bytes are the caller's.
  ~MemoryRegion() = default;

  std::byte* base() const;
  size_t size_bytes() const;
  MemoryKind kind() const;
  std::span<std::byte> bytes() const { return {base(), size_bytes()}; }
  uint64_t address() const { return reinterpret_cast<uint64_t>(base()); }
  // What a trusted peer needs: base, size, the context's identity and UCX's key, checksummed. Opaque bytes; see
  // remote_key.h.
  const std::string& remote_key() const;
  // The same without UCX's part: opens nothing by itself, every transfer is a message that the owner serves.
  const std::string& served_key() const;

  // The owner of a leased host region has to check what peers have put there, and the transport has summed most of it
  // when it arrived. CRC32C of a part of the region, for which nothing needs to be read that long puts have brought
  // since ForgetPuts. Only for bytes that nobody writes any more, and that none but peers have written. Of any other
  // region all is read.
  uint32_t SumOfPuts(std::span<const std::byte> bytes) const;
  // How much of it SumOfPuts would read.
  size_t UnsummedBytes(std::span<const std::byte> bytes) const;
  // Before peers may write there.
  void ForgetPuts(std::span<const std::byte> bytes) const;

 private:
  friend class Context;
  explicit MemoryRegion(std::shared_ptr<internal::Region> region) : region_(std::move(region)) {}
  std::shared_ptr<internal::Region> region_;
};

// Another context's memory as seen through one endpoint. Movable; any thread may read it. May outlive its endpoint
// (transfers then fail with UNAVAILABLE) and is kept alive by the transfers that use it.
class RemoteRegion {
 public:
  RemoteRegion() = default;
  RemoteRegion(RemoteRegion&&) noexcept = default;
  RemoteRegion& operator=(RemoteRegion&&) noexcept = default;
  ~RemoteRegion() = default;

  uint64_t address() const;  // of the first byte, in the owner's address space
  uint64_t size_bytes() const;
  // How transfers reach it: "shared memory" (allocated by its context, same machine: copied through a mapping), "rdma"
  // (one-sided), "messages" (the owner's transport serves it).
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
