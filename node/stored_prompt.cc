#include "node/stored_prompt.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/trace.h"
#include "node/prompt_fetch.h"

namespace perigee::node {

using pod::PlaneKind;

void MergeStored(const kvstore::BlockInfo& info, StoredBlock& block) {
  for (const kvstore::FoundPlane& plane : info.planes) {
    if (plane.kind != PlaneKind::kSummary) block.has(plane.kind) = true;
    block.bytes += plane.payload_bytes;
  }
  for (const kvstore::MissedPlane& missed : info.misses) {
    const bool tells_why = block.distant ? missed.kind == PlaneKind::kProximal : missed.kind == PlaneKind::kDistant;
    if (tells_why) {
      block.missing =
          absl::StrCat(pod::PlaneKindName(missed.kind), " plane ", kvstore::MissReasonName(missed.miss.reason));
    }
  }
}

absl::Duration StoredPrompt::EstimateFetch(size_t count) const {
  absl::Duration sum;
  for (size_t b = 0; b < std::min(count, fetch.size()); ++b) sum += fetch[b];
  return sum;
}

StoredPrompt LookUpPrompt(const Node& node, std::span<const pod::BlockKey> keys, int64_t tokens, Presence presence,
                          absl::Status* reached) {
  const pod::Layout& layout = node.model().layout();
  const int block_tokens = layout.block_tokens();
  Span span("lookup");
  span.Set("blocks", keys.size());
  StoredPrompt out;
  out.blocks.resize(keys.size());
  out.fetch.resize(keys.size());
  *reached = absl::OkStatus();
  const auto here = [&](size_t b, PlaneKind kind) {
    const bool full = static_cast<int64_t>(b + 1) * block_tokens <= tokens;
    return full && node.planes().Has({keys[b], kind});
  };
  bool all_here = true;
  for (size_t b = 0; b < keys.size(); ++b) {
    out.blocks[b].missing = "not looked up";
    for (const PlaneKind kind : {PlaneKind::kDistant, PlaneKind::kProximal}) {
      const bool present = layout.plane_bytes(kind) == 0 || (presence == Presence::kStoredOrHere && here(b, kind));
      out.blocks[b].has(kind) = present;
      all_here = all_here && (present || !Reads(layout, kind, static_cast<int64_t>(b) * block_tokens, tokens));
    }
  }
  if (all_here) return out;

  const absl::StatusOr<kvstore::LookupResult> lookup = node.store().Lookup(keys[0], keys);
  if (!lookup.ok()) {
    *reached = lookup.status();
    for (StoredBlock& block : out.blocks) block.missing = std::string(lookup.status().message());
    return out;
  }
  // The store's figure for everything is better than the sum of its figures for each plane: it counts latencies once.
  uint64_t sum_us = 0;
  std::vector<uint64_t> read_us(keys.size(), 0);
  for (size_t b = 0; b < std::min(keys.size(), lookup->blocks.size()); ++b) {
    for (const kvstore::FoundPlane& plane : lookup->blocks[b].planes) {
      sum_us += plane.estimated_fetch_us;
      if (Reads(layout, plane.kind, static_cast<int64_t>(b) * block_tokens, tokens) && !here(b, plane.kind)) {
        read_us[b] += plane.estimated_fetch_us;
      }
    }
    MergeStored(lookup->blocks[b], out.blocks[b]);
  }
  const double scale = sum_us == 0 ? 0 : static_cast<double>(lookup->estimated_fetch_us) / static_cast<double>(sum_us);
  for (size_t b = 0; b < keys.size(); ++b) {
    out.fetch[b] = absl::Microseconds(static_cast<double>(read_us[b]) * scale);
  }
  return out;
}

}  // namespace perigee::node
