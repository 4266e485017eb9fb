// Memory as a rail's UCX knows it: mapped, named to peers, and reached at peers. Everything here runs as driver.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "transport/core.h"

namespace perigee::transport::internal {

absl::Status Core::Map(Region* region, bool allocate) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.address = region->base;
  params.length = region->size;
  params.flags = allocate ? UCP_MEM_MAP_ALLOCATE : 0;
  ucs_status_t status = ucp_mem_map(context_, &params, &region->handle);
  if (status != UCS_OK) {
    region->handle = nullptr;
    const absl::Status error =
        UcxError(absl::StrCat(allocate ? "allocate " : "register ", region->size, " bytes"), status);
    // UCX reports what the kernel refused to pin or map as an I/O error.
    return absl::IsUnavailable(error) ? absl::ResourceExhaustedError(error.message()) : error;
  }
  if (!allocate) return absl::OkStatus();
  ucp_mem_attr_t attr{};
  attr.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  status = ucp_mem_query(region->handle, &attr);
  if (status != UCS_OK) return UcxError("ask for the address of allocated memory", status);
  region->base = static_cast<std::byte*>(attr.address);
  return absl::OkStatus();
}

absl::Status Core::PackKey(const Region* region, std::string* ucx_key) {
  void* packed = nullptr;
  size_t packed_bytes = 0;
  const ucs_status_t status = ucp_rkey_pack(context_, region->handle, &packed, &packed_bytes);
  if (status != UCS_OK) return UcxError("pack the remote key", status);
  ucx_key->assign(static_cast<const char*>(packed), packed_bytes);
  ucp_rkey_buffer_release(packed);
  return absl::OkStatus();
}

bool Core::CutOff(absl::FunctionRef<bool(const Serve&)> such, absl::string_view why) {
  bool any = false;
  for (const auto& [serve, owned] : serves_) {
    if (!such(*serve)) continue;
    FailPeer(serve->peer.get(), absl::UnavailableError(why));
    any = true;
  }
  return any;
}

void Core::Unmap(ucp_mem_h handle) {
  const auto unmap = [&] {
    ucp_mem_unmap(context_, handle);
    return absl::OkStatus();
  };
  if (Run(unmap).ok()) return;
  std::lock_guard<std::mutex> lock(role_);  // after the thread's end, several owners may do this at once
  unmap().IgnoreError();
}

absl::Status Core::UnpackKey(RemoteKey* key, Peer* peer, const void* ucx_key) {
  if (peer->failed) return peer->failure;
  ucp_rkey_h handle = nullptr;
  const ucs_status_t status = ucp_ep_rkey_unpack(peer->handle, ucx_key, &handle);
  if (status != UCS_OK) return UcxError(absl::StrCat("unpack a remote key from ", peer->name), status);
  void* mapped = nullptr;
  // Not on another machine, where a shared-memory id may by chance name something else.
  if (key->link->same_machine && ucp_rkey_ptr(handle, key->base, &mapped) == UCS_OK) {
    key->path = Path::kMapped;
    key->mapped = static_cast<std::byte*>(mapped);
  } else if (shared_->options.one_sided) {
    PERIGEE_ASSIGN_OR_RETURN(const std::string lanes, Describe(peer));
    if (absl::StrContains(lanes, ":rc_") || absl::StrContains(lanes, ":dc_")) key->path = Path::kOneSided;
  }
  if (key->path == Path::kMessages) {
    ucp_rkey_destroy(handle);
    return absl::OkStatus();
  }
  key->handle = handle;
  keys_.insert(handle);
  return absl::OkStatus();
}

void Core::DestroyKey(ucp_rkey_h key) {
  if (keys_.erase(key) == 1) ucp_rkey_destroy(key);
}

}  // namespace perigee::transport::internal
