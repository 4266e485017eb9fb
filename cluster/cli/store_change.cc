// perigee store rm|pin|unpin|evict|gc: what stays in the stores, and what goes.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <set>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/store_keys.h"

namespace perigee::cli {
namespace {

using kvstore::StoreClient;

struct Options {
  StoreVerbFlags flags;
  std::vector<std::string> keys;
  std::string tenant;
  bool all = false;
  bool yes = false;
  bool dry_run = false;
  bool hard = false;
  uint32_t replicas = 0;
  double idle_s = 0;
};

using Keys = std::vector<pod::BlockKey>;

absl::Status CheckChoice(const Options& o) {
  if (o.all != !o.keys.empty()) return absl::OkStatus();
  return UsageError("name the block keys (or unambiguous beginnings), or give --all");
}

// Named ones, or with --all those of every plane.
absl::StatusOr<Keys> Chosen(StoreFleet& fleet, const Options& o) {
  if (!o.all) return ResolveKeys(fleet, o.keys, o.tenant);
  PERIGEE_ASSIGN_OR_RETURN(const ListedByStore listed, ListAll(fleet, o.tenant));
  std::set<pod::BlockKey> keys;
  for (const auto& [id, planes] : listed) {
    for (const kvstore::ListedPlane& plane : planes) keys.insert(plane.id.key);
  }
  return Keys(keys.begin(), keys.end());
}

// At all stores; the number of copies that it was done to.
absl::StatusOr<uint64_t> AtAll(
    StoreFleet& fleet, const Keys& keys,
    const std::function<absl::StatusOr<uint64_t>(StoreClient&, std::span<const pod::BlockKey>)>& call) {
  std::atomic<uint64_t> planes = 0;
  PERIGEE_RETURN_IF_ERROR(fleet.ForEach([&](const std::string&, StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(const uint64_t n, InBatches(keys, [&](auto batch) { return call(client, batch); }));
    planes += n;
    return absl::OkStatus();
  }));
  return planes.load();
}

absl::StatusOr<uint64_t> Delete(StoreFleet& fleet, const Keys& keys) {
  return AtAll(fleet, keys, [](StoreClient& client, auto batch) -> absl::StatusOr<uint64_t> {
    PERIGEE_ASSIGN_OR_RETURN(const uint32_t n, client.Delete(batch));
    return n;
  });
}

absl::Status Report(const Options& o, const char* done, uint64_t blocks, uint64_t planes) {
  if (o.flags.cluster.json) {
    PrintJson({{"blocks", blocks}, {"planes", planes}});
  } else {
    std::printf("%s %llu blocks (%llu planes, copies counted)\n", done, static_cast<unsigned long long>(blocks),
                static_cast<unsigned long long>(planes));
  }
  return absl::OkStatus();
}

absl::Status NotStored(const Keys& keys) {
  return WithExitCode(absl::NotFoundError(absl::StrCat("no store has ", keys.size() == 1 ? "block " : "any of these ",
                                                       keys.size() == 1 ? keys[0].ToString() : "blocks")),
                      ExitCode::kNotFound);
}

absl::Status Remove(const Options& o) {
  PERIGEE_RETURN_IF_ERROR(CheckChoice(o));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  PERIGEE_ASSIGN_OR_RETURN(const Keys keys, Chosen(*fleet, o));
  if (keys.empty()) return Report(o, "removed", 0, 0);
  PERIGEE_RETURN_IF_ERROR(Confirm(absl::StrCat("Remove ", keys.size(), " blocks from all stores?"), o.yes));
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t planes, Delete(*fleet, keys));
  if (planes == 0) return NotStored(keys);
  return Report(o, "removed", keys.size(), planes);
}

absl::Status SetPin(const Options& o, kvstore::PinMode mode, uint32_t replicas, const char* done) {
  PERIGEE_RETURN_IF_ERROR(CheckChoice(o));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  PERIGEE_ASSIGN_OR_RETURN(const Keys keys, Chosen(*fleet, o));
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t planes,
                           AtAll(*fleet, keys, [&](StoreClient& client, auto batch) -> absl::StatusOr<uint64_t> {
                             PERIGEE_ASSIGN_OR_RETURN(const uint32_t n, client.Pin(batch, mode, replicas));
                             return n;
                           }));
  if (planes == 0 && !keys.empty()) return NotStored(keys);
  return Report(o, done, keys.size(), planes);
}

absl::Status Pin(const Options& o) {
  return SetPin(o, o.hard ? kvstore::PinMode::kHard : kvstore::PinMode::kSoft, o.replicas, "pinned");
}
absl::Status Unpin(const Options& o) { return SetPin(o, kvstore::PinMode::kNone, 0, "unpinned"); }

absl::Status Evict(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  PERIGEE_ASSIGN_OR_RETURN(const Keys keys, ResolveKeys(*fleet, o.keys, o.tenant));
  if (keys.size() > 4096) return UsageError("at most 4096 keys at a time");
  std::atomic<uint64_t> planes = 0, bytes = 0;
  PERIGEE_RETURN_IF_ERROR(fleet->ForEach([&](const std::string&, StoreClient& client) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(
        const kvstore::Evicted evicted,
        client.Evict({.keys = keys, .tenant = o.tenant, .idle = absl::Seconds(o.idle_s), .dry_run = o.dry_run}));
    planes += evicted.planes;
    bytes += evicted.payload_bytes;
    return absl::OkStatus();
  }));
  if (o.flags.cluster.json) {
    PrintJson({{"planes", planes.load()}, {"payload_bytes", bytes.load()}, {"dry_run", o.dry_run}});
  } else {
    std::printf("%s %llu planes (%s) from memory that slower tiers have\n", o.dry_run ? "would drop" : "dropped",
                static_cast<unsigned long long>(planes.load()), FormatBytes(static_cast<double>(bytes.load())).c_str());
  }
  return absl::OkStatus();
}

// Blocks that no reader can come to: one before them in their chain has no distant plane in any store.
struct Unreachable {
  Keys keys;
  uint64_t planes = 0, payload_bytes = 0;
  uint64_t unknown_blocks = 0;  // Whose block before nobody knows; left alone.
};

absl::StatusOr<Unreachable> FindUnreachable(StoreFleet& fleet, const std::string& tenant) {
  struct Block {
    pod::BlockKey parent;
    bool root = false, known = false, distant = false;
    uint64_t planes = 0, payload_bytes = 0;
    int64_t base_position = 0;
  };
  PERIGEE_ASSIGN_OR_RETURN(const ListedByStore listed, ListAll(fleet, tenant, {.parents = true}));
  absl::flat_hash_map<pod::BlockKey, Block> blocks;
  for (const auto& [store, planes] : listed) {
    for (const kvstore::ListedPlane& plane : planes) {
      Block& block = blocks[plane.id.key];
      block.distant |= plane.id.kind == pod::PlaneKind::kDistant;
      ++block.planes;
      block.payload_bytes += plane.meta.payload_bytes;
      block.base_position = plane.meta.base_position;
      if (!plane.parent_known) continue;
      block.known = true;
      block.root = !plane.meta.parent.has_value();
      if (plane.meta.parent) block.parent = *plane.meta.parent;
    }
  }
  std::vector<std::pair<int64_t, pod::BlockKey>> order;  // Parents before children.
  Unreachable found;
  for (const auto& [key, block] : blocks) {
    order.emplace_back(block.base_position, key);
    found.unknown_blocks += !block.known;
  }
  std::sort(order.begin(), order.end());
  absl::flat_hash_set<pod::BlockKey> gone;
  for (const auto& [position, key] : order) {
    const Block& block = blocks.at(key);
    if (!block.known || block.root) continue;
    const auto parent = blocks.find(block.parent);
    if (parent != blocks.end() && parent->second.distant && !gone.contains(block.parent)) continue;
    gone.insert(key);
    found.keys.push_back(key);
    found.planes += block.planes;
    found.payload_bytes += block.payload_bytes;
  }
  return found;
}

absl::Status CollectGarbage(const Options& o) {
  if (!o.flags.store.empty()) {
    return UsageError("one store cannot say what is unreachable: leave out --store");
  }
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  PERIGEE_ASSIGN_OR_RETURN(const Unreachable first, FindUnreachable(*fleet, o.tenant));
  Keys keys = first.keys;
  uint64_t removed = 0;
  if (!o.dry_run && !keys.empty()) {
    // A chain that was being written, or moved, while the stores were listed one after the other looked broken: only
    // what is unreachable twice goes.
    PERIGEE_ASSIGN_OR_RETURN(const Unreachable second, FindUnreachable(*fleet, o.tenant));
    const absl::flat_hash_set<pod::BlockKey> again(second.keys.begin(), second.keys.end());
    std::erase_if(keys, [&](const pod::BlockKey& key) { return !again.contains(key); });
    PERIGEE_RETURN_IF_ERROR(
        Confirm(absl::StrCat("Remove ", keys.size(), " blocks (", FormatBytes(static_cast<double>(first.payload_bytes)),
                             ") that no chain leads to?"),
                o.yes));
    PERIGEE_ASSIGN_OR_RETURN(removed, Delete(*fleet, keys));
  }
  if (o.flags.cluster.json) {
    PrintJson({{"unreachable_blocks", first.keys.size()},
               {"unreachable_planes", first.planes},
               {"payload_bytes", first.payload_bytes},
               {"unknown_blocks", first.unknown_blocks},
               {"removed_planes", removed},
               {"dry_run", o.dry_run}});
  } else {
    std::printf("%zu unreachable blocks (%llu planes, %s)%s\n", first.keys.size(),
                static_cast<unsigned long long>(first.planes),
                FormatBytes(static_cast<double>(first.payload_bytes)).c_str(),
                o.dry_run ? "" : absl::StrCat(", ", removed, " planes removed").c_str());
    if (first.unknown_blocks > 0) {
      std::printf("%llu blocks do not say what is before them, and were left alone\n",
                  static_cast<unsigned long long>(first.unknown_blocks));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void AddStoreChange(CLI::App& store, Action& action) {
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = store.add_subcommand(name, what);
    o->flags.Add(*verb);
    verb->add_option("--tenant", o->tenant, "Of this tenant only");
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  const auto add_keys = [&](CLI::App* verb, bool all) {
    verb->add_option("keys", o->keys, "Block keys, or unambiguous beginnings of them");
    if (all) verb->add_flag("--all", o->all, "Every block");
  };
  CLI::App* rm = add("rm", "Remove blocks from all stores and tiers", Remove);
  add_keys(rm, true);
  rm->add_flag("--yes", o->yes, "Do not ask");
  CLI::App* pin = add("pin", "Keep blocks when others go; until the store's process ends", Pin);
  add_keys(pin, true);
  pin->add_flag("--hard", o->hard, "Keep them in memory, whatever comes");
  pin->add_option("--replicas", o->replicas, "And have so many stores keep them")
      ->check(CLI::Range(1u, kvstore::kMaxReplicas));
  add_keys(add("unpin", "Treat blocks as all others again", Unpin), true);
  CLI::App* evict = add("evict", "Drop copies in memory of planes that a slower tier has", Evict);
  add_keys(evict, false);
  evict->add_option("--idle-s", o->idle_s, "Only what was not used for so long")->check(CLI::NonNegativeNumber);
  evict->add_flag("--dry-run", o->dry_run, "Only say what would go");
  CLI::App* gc = add("gc", "Remove blocks that cannot be found, because one before them is missing", CollectGarbage);
  gc->add_flag("--dry-run", o->dry_run, "Only say what would go");
  gc->add_flag("--yes", o->yes, "Do not ask");
}

}  // namespace perigee::cli
