#include "node/prompt_fetch.h"

#include <algorithm>

#include "base/status.h"
#include "pod/window.h"

namespace perigee::node {
namespace {

using kvstore::PlaneId;
using pod::PlaneKind;

// By section: the first layer that has a tile in it. That layer is the first to read it, too: a lead's keys stand in
// the section of its group, which no lower layer belongs to.
std::vector<int> FirstLayers(const pod::Layout& layout, PlaneKind kind) {
  const std::vector<pod::Section>& sections = layout.sections(kind);
  std::vector<int> first(sections.size(), layout.plan().shape().layers - 1);
  for (int layer = layout.plan().shape().layers - 1; layer >= 0; --layer) {
    for (const pod::Section& range : layout.layer_ranges(kind, layer)) {
      for (size_t s = 0; s < sections.size(); ++s) {
        if (range.offset_bytes < sections[s].offset_bytes + sections[s].bytes &&
            sections[s].offset_bytes < range.offset_bytes + range.bytes) {
          first[s] = layer;
        }
      }
    }
  }
  return first;
}

// What one layer waits for in every plane of a kind: runs of neighbouring sections.
struct SectionRun {
  size_t first_section = 0, sections = 0;
  size_t offset_bytes = 0, bytes = 0;
};
std::vector<std::vector<SectionRun>> RunsByLayer(const pod::Layout& layout, PlaneKind kind) {
  std::vector<std::vector<SectionRun>> runs(static_cast<size_t>(layout.plan().shape().layers));
  const std::vector<int> first = FirstLayers(layout, kind);
  for (size_t s = 0; s < first.size(); ++s) {
    const pod::Section& section = layout.sections(kind)[s];
    std::vector<SectionRun>& of_layer = runs[static_cast<size_t>(first[s])];
    if (!of_layer.empty() && of_layer.back().first_section + of_layer.back().sections == s) {
      ++of_layer.back().sections;
      of_layer.back().bytes += section.bytes;
    } else {
      of_layer.push_back({s, 1, section.offset_bytes, section.bytes});
    }
  }
  return runs;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PromptFetch>> PromptFetch::Start(const Node& node, const pod::Identity& identity,
                                                                std::span<const pod::BlockKey> keys, int64_t tokens,
                                                                model::PlaneCache& cache) {
  const absl::Time start = absl::Now();
  const pod::Layout& layout = node.model().layout();
  const int block_tokens = layout.block_tokens();
  std::unique_ptr<PromptFetch> out(new PromptFetch);
  out->blocks_ = keys.size();
  std::vector<model::CachedBlock> view(keys.size());
  for (size_t b = 0; b < keys.size(); ++b) {
    view[b].position = static_cast<int64_t>(b) * block_tokens;
    view[b].tokens = static_cast<int32_t>(std::min<int64_t>(block_tokens, tokens - view[b].position));
    const auto want = [&](PlaneKind kind) {
      if (layout.plane_bytes(kind) == 0) return;
      out->ids_.push_back({keys[b], kind});
      out->block_of_.push_back(b);
    };
    want(PlaneKind::kDistant);
    if (pod::IsNear(layout.plan().window(), block_tokens, view[b].position, tokens)) want(PlaneKind::kProximal);
  }

  PERIGEE_ASSIGN_OR_RETURN(kvstore::ReadLease lease, node.store().Acquire(out->ids_));
  for (size_t i = 0; i < out->ids_.size(); ++i) {
    const PlaneId& id = out->ids_[i];
    const kvstore::HeldPlane& held = lease.planes()[i];
    if (!held.found) {
      out->missing_.push_back(
          {out->block_of_[i], id,
           absl::StrCat(pod::PlaneKindName(id.kind), " plane ", kvstore::MissReasonName(held.miss.reason))});
      continue;
    }
    const absl::Status header = pod::CheckPlaneHeader(held.header, layout, identity, id.key, id.kind, &keys.front());
    if (!header.ok()) out->missing_.push_back({out->block_of_[i], id, std::string(header.message())});
  }
  if (!out->missing_.empty()) return out;

  std::vector<std::vector<kvstore::FetchRequest>> groups(static_cast<size_t>(layout.plan().shape().layers));
  const auto distant_runs = RunsByLayer(layout, PlaneKind::kDistant);
  const auto proximal_runs = RunsByLayer(layout, PlaneKind::kProximal);
  for (size_t i = 0; i < out->ids_.size(); ++i) {
    const kvstore::HeldPlane& held = lease.planes()[i];
    PERIGEE_ASSIGN_OR_RETURN(
        const model::PlaneBuffer bytes,
        node.pool().Allocate(held.header.payload_bytes, kvstore::RegisteredPool::Contents::kUnspecified));
    out->buffers_.push_back(bytes);
    const bool distant = out->ids_[i].kind == PlaneKind::kDistant;
    for (size_t layer = 0; layer < groups.size(); ++layer) {
      for (const SectionRun& run : (distant ? distant_runs : proximal_runs)[layer]) {
        groups[layer].push_back({.plane = i,
                                 .destination = {bytes.get() + run.offset_bytes, run.bytes},
                                 .first_section = run.first_section,
                                 .sections = run.sections});
      }
    }
    ++out->planes_;
    if (held.tier == kvstore::Tier::kSsd) ++out->planes_from_ssd_;
    out->bytes_ += held.header.payload_bytes;
    model::CachedBlock& block = view[out->block_of_[i]];
    block.base_position = held.header.base_position;
    (distant ? block.distant : block.proximal) = bytes;
  }
  PERIGEE_ASSIGN_OR_RETURN(out->fetch_, lease.StartFetch(std::move(groups)));
  for (model::CachedBlock& block : view) PERIGEE_RETURN_IF_ERROR(cache.AddBlock(std::move(block)));
  cache.AwaitArrival([fetch = out.get()](int layer) { return fetch->WaitForLayer(layer); });
  out->acquire_time_ = absl::Now() - start;
  return out;
}

absl::Status PromptFetch::WaitForLayer(int layer) {
  const absl::Time start = absl::Now();
  const absl::Status arrived = fetch_.Wait(static_cast<size_t>(layer));
  exposed_time_ += absl::Now() - start;
  if (absl::IsDataLoss(arrived)) {
    for (const size_t plane : fetch_.wrong_planes()) {
      missing_.push_back({block_of_[plane], ids_[plane], std::string(arrived.message())});
    }
    return status();
  }
  if (arrived.ok() && static_cast<size_t>(layer) + 1 == fetch_.groups()) buffers_.clear();
  return arrived;
}

absl::Status PromptFetch::status() const {
  if (missing_.empty()) return absl::OkStatus();
  const MissingPlane& first = missing_.front();
  return absl::NotFoundError(
      absl::StrCat("block ", first.block, " of ", blocks_, " (", first.id.ToString(), "): ", first.why));
}

}  // namespace perigee::node
