// Tenants' names as small numbers: stored once, compared as numbers, kept as long as somebody uses them. Numbers are
// dense and used again. 0 is the empty name; it is not counted.
//
// Not thread-safe.
#ifndef PERIGEE_KVSTORE_DRAM_TENANT_NAMES_H_
#define PERIGEE_KVSTORE_DRAM_TENANT_NAMES_H_

#include <cassert>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace perigee::kvstore {

using TenantId = uint32_t;

class TenantNames {
 public:
  // One use more; Drop ends it. Allocates for a name that nobody uses yet.
  TenantId Use(absl::string_view name) {
    if (name.empty()) return 0;
    const auto it = numbers_.find(name);
    if (it != numbers_.end()) {
      ++tenants_[it->second].uses;
      return it->second;
    }
    TenantId id = static_cast<TenantId>(tenants_.size());
    if (unused_.empty()) {
      tenants_.emplace_back();
    } else {
      id = unused_.back();
      unused_.pop_back();
    }
    tenants_[id].name = std::string(name);
    tenants_[id].uses = 1;
    numbers_.emplace(tenants_[id].name, id);
    return id;
  }
  void Drop(TenantId id) {
    if (id == 0) return;
    Tenant& t = tenants_[id];
    assert(t.uses > 0);
    if (--t.uses > 0) return;
    numbers_.erase(t.name);
    t.name = std::string();
    unused_.push_back(id);
  }
  // Of a name in use, without using it. Nothing is of a tenant that has none.
  std::optional<TenantId> Find(absl::string_view name) const {
    if (name.empty()) return 0;
    const auto it = numbers_.find(name);
    return it == numbers_.end() ? std::nullopt : std::optional(it->second);
  }
  // Valid until the tenant's last use ends.
  absl::string_view Name(TenantId id) const { return tenants_[id].name; }
  uint64_t Uses(TenantId id) const { return tenants_[id].uses; }
  size_t size() const { return numbers_.size(); }
  uint64_t MemoryBytes() const {
    uint64_t bytes = tenants_.size() * sizeof(Tenant) + unused_.capacity() * sizeof(TenantId) +
                     numbers_.capacity() * (sizeof(std::pair<absl::string_view, TenantId>) + 1);
    for (const Tenant& t : tenants_) bytes += t.name.capacity();
    return bytes;
  }

 private:
  struct Tenant {
    std::string name;
    uint64_t uses = 0;
  };
  std::deque<Tenant> tenants_ = std::deque<Tenant>(1);        // Names that views point into do not move.
  absl::flat_hash_map<absl::string_view, TenantId> numbers_;  // Views of tenants_' names.
  std::vector<TenantId> unused_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_TENANT_NAMES_H_
