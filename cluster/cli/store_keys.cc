#include "cluster/cli/store_keys.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/bytes.h"
#include "base/status.h"
#include "cluster/cli/exit_code.h"

namespace perigee::cli {

using kvstore::StoreClient;

const char* TierName(kvstore::Tier tier) {
  return tier == kvstore::Tier::kDram ? "dram" : tier == kvstore::Tier::kSsd ? "ssd" : "remote";
}
const char* PinName(kvstore::PinMode pin) {
  return pin == kvstore::PinMode::kHard ? "hard" : pin == kvstore::PinMode::kSoft ? "soft" : "none";
}

absl::StatusOr<pod::BlockKey> ParseKey(const std::string& hex) {
  const absl::StatusOr<Digest> digest = DigestFromHex(absl::AsciiStrToLower(hex));
  if (!digest.ok()) {
    return UsageError(absl::StrCat("'", hex, "' is no block key: it has ", 2 * Digest{}.size(), " hexadecimal digits"));
  }
  return pod::BlockKey{*digest};
}

absl::Status ForEachPlane(StoreClient& client, const std::string& tenant, const kvstore::ListFilter& filter,
                          const std::function<bool(const kvstore::ListedPlane&)>& visit) {
  std::string token;
  do {
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::ListPage page, client.List(token, 1000, tenant, filter));
    for (const kvstore::ListedPlane& plane : page.planes) {
      if (!visit(plane)) return absl::OkStatus();
    }
    token = page.next_page_token;
  } while (!token.empty());
  return absl::OkStatus();
}

absl::StatusOr<ListedByStore> ListAll(StoreFleet& fleet, const std::string& tenant, const kvstore::ListFilter& filter) {
  ListedByStore listed;
  for (const kvstore::StoreEntry& store : fleet.stores()) listed[store.id];
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string& id, StoreClient& client) {
    std::vector<kvstore::ListedPlane>& planes = listed.at(id);
    return ForEachPlane(client, tenant, filter, [&](const kvstore::ListedPlane& plane) {
      planes.push_back(plane);
      return true;
    });
  }));
  return listed;
}

absl::StatusOr<std::vector<pod::BlockKey>> ResolveKeys(StoreFleet& fleet, const std::vector<std::string>& names,
                                                       const std::string& tenant) {
  std::vector<pod::BlockKey> chosen;
  std::optional<std::set<pod::BlockKey>> stored;
  for (const std::string& name : names) {
    if (name.empty()) return UsageError("a block key is empty");  // It would begin every key.
    // Longer ones, and what is no beginning of any: ParseKey says so.
    const bool beginning_of_key = std::all_of(name.begin(), name.end(), absl::ascii_isxdigit);
    if (name.size() >= 2 * Digest{}.size() || !beginning_of_key) {
      PERIGEE_ASSIGN_OR_RETURN(const pod::BlockKey key, ParseKey(name));
      chosen.push_back(key);
      continue;
    }
    if (!stored) {
      PERIGEE_ASSIGN_OR_RETURN(const ListedByStore listed, ListAll(fleet, tenant));
      stored.emplace();
      for (const auto& [id, planes] : listed) {
        for (const kvstore::ListedPlane& plane : planes) stored->insert(plane.id.key);
      }
    }
    const std::string beginning = absl::AsciiStrToLower(name);
    std::vector<pod::BlockKey> matches;
    for (const pod::BlockKey& key : *stored) {
      if (absl::StartsWith(key.ToString(), beginning)) matches.push_back(key);
    }
    if (matches.empty()) {
      return WithExitCode(absl::NotFoundError(absl::StrCat("no stored block's key begins with '", name, "'")),
                          ExitCode::kNotFound);
    }
    if (matches.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(matches.size(), " block keys begin with '", name, "'; give more digits"));
    }
    chosen.push_back(matches[0]);
  }
  return chosen;
}

absl::StatusOr<pod::PlaneHeader> HeaderOf(StoreFleet& fleet, const pod::BlockKey& key) {
  absl::Mutex mu;
  std::optional<pod::PlaneHeader> header;
  const auto visited = fleet.TryEach([&](const std::string&, StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult found, client.Lookup({&key, 1}));
    if (found.blocks[0].planes.empty()) return absl::OkStatus();
    const kvstore::PlaneId id{key, found.blocks[0].planes[0].kind};
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::ReadLease lease, client.Acquire({&id, 1}));
    absl::MutexLock lock(&mu);
    if (lease.planes()[0].found) header = lease.planes()[0].header;
    return absl::OkStatus();
  });
  if (header) return *header;
  for (const auto& v : visited) {
    if (!v.status.ok()) return Annotate(v.status, absl::StrCat("store ", v.store.address));
  }
  return WithExitCode(absl::NotFoundError(absl::StrCat("no store has block ", key.ToString())), ExitCode::kNotFound);
}

std::optional<pod::BlockKey> RootOf(StoreFleet& fleet, const pod::BlockKey& key) {
  const absl::StatusOr<pod::PlaneHeader> header = HeaderOf(fleet, key);
  if (!header.ok() || !header->has_root()) return std::nullopt;
  return header->root;
}

absl::StatusOr<uint64_t> InBatches(
    const std::vector<pod::BlockKey>& keys,
    const std::function<absl::StatusOr<uint64_t>(std::span<const pod::BlockKey>)>& call) {
  constexpr size_t kBatch = 4096;
  uint64_t sum = 0;
  for (size_t i = 0; i < keys.size(); i += kBatch) {
    PERIGEE_ASSIGN_OR_RETURN(const uint64_t n, call(std::span(keys).subspan(i, std::min(kBatch, keys.size() - i))));
    sum += n;
  }
  return sum;
}

}  // namespace perigee::cli
