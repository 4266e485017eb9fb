#include "node/prompt_fetch.h"

#include <algorithm>

#include "base/status.h"
#include "base/trace.h"
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

bool Reads(const pod::Layout& layout, PlaneKind kind, int64_t block_begin, int64_t tokens) {
  if (layout.plane_bytes(kind) == 0 || kind == PlaneKind::kSummary) return false;
  return kind == PlaneKind::kDistant || pod::IsNear(layout.plan().window(), layout.block_tokens(), block_begin, tokens);
}

absl::StatusOr<std::unique_ptr<PromptFetch>> PromptFetch::Start(const Node& node, const pod::Identity& identity,
                                                                std::span<const pod::BlockKey> keys, int64_t tokens,
                                                                model::PlaneCache& cache, absl::Time give_up) {
  const pod::Layout& layout = node.model().layout();
  const int block_tokens = layout.block_tokens();
  std::vector<model::CachedBlock> view(keys.size());
  for (size_t b = 0; b < keys.size(); ++b) {
    view[b].position = view[b].base_position = static_cast<int64_t>(b) * block_tokens;
    view[b].tokens = static_cast<int32_t>(std::min<int64_t>(block_tokens, tokens - view[b].position));
  }
  const auto wants = [&](PlaneKind kind, size_t b) {
    return Reads(layout, kind, static_cast<int64_t>(b) * block_tokens, tokens);
  };
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<PromptFetch> out,
                           StartView(node, identity, keys[0], keys, std::move(view), wants, false, give_up));
  if (!out->missing_.empty()) return out;
  for (model::CachedBlock& block : out->view_) PERIGEE_RETURN_IF_ERROR(cache.AddBlock(std::move(block)));
  out->view_.clear();
  if (!out->ids_.empty()) {
    cache.AwaitArrival([fetch = out.get()](int layer) { return fetch->WaitForLayer(layer); });
  }
  return out;
}

absl::StatusOr<std::unique_ptr<PromptFetch>> PromptFetch::StartContext(
    const Node& node, const pod::Identity& identity, const pod::BlockKey& root, std::span<const pod::BlockKey> keys,
    std::vector<model::CachedBlock> places, const std::vector<bool>& wants_proximal, absl::Time give_up) {
  const pod::Layout& layout = node.model().layout();
  const auto wants = [&](PlaneKind kind, size_t b) {
    return layout.plane_bytes(kind) > 0 && kind != PlaneKind::kSummary &&
           (kind == PlaneKind::kDistant || wants_proximal[b]);
  };
  return StartView(node, identity, root, keys, std::move(places), wants, true, give_up);
}

absl::StatusOr<std::unique_ptr<PromptFetch>> PromptFetch::StartView(
    const Node& node, const pod::Identity& identity, const pod::BlockKey& root, std::span<const pod::BlockKey> keys,
    std::vector<model::CachedBlock> view, const Wants& wants, bool is_context, absl::Time give_up) {
  const Span span("acquire");
  const absl::Time start = absl::Now();
  std::unique_ptr<PromptFetch> out(new PromptFetch);
  out->node_ = &node;
  out->give_up_ = give_up;
  out->blocks_ = keys.size();
  out->view_ = std::move(view);
  out->is_context_ = is_context;
  for (size_t b = 0; b < keys.size(); ++b) {
    for (const PlaneKind kind : {PlaneKind::kDistant, PlaneKind::kProximal}) {
      if (!wants(kind, b)) continue;
      model::PlaneBuffer& plane = out->view_[b].plane(kind);
      if (out->Complete(b)) plane = node.planes().Find({keys[b], kind});
      if (plane != nullptr) {
        ++out->planes_here_;
        continue;
      }
      out->ids_.push_back({keys[b], kind});
      out->block_of_.push_back(b);
    }
  }
  if (!out->ids_.empty()) PERIGEE_RETURN_IF_ERROR(out->StartFetch(identity, root));
  out->acquire_time_ = absl::Now() - start;
  return out;
}

// Nobody writes into the block's planes any more: a prompt that ends in it is computed on in it, a context is not.
bool PromptFetch::Complete(size_t block) const {
  return is_context_ || view_[block].tokens == node_->model().layout().block_tokens();
}

// Leases ids_, and begins to read them into fresh memory, which the view gets.
absl::Status PromptFetch::StartFetch(const pod::Identity& identity, const pod::BlockKey& root) {
  const pod::Layout& layout = node_->model().layout();
  PERIGEE_ASSIGN_OR_RETURN(kvstore::ShardedLease lease, node_->store().Acquire(root, ids_, give_up_ - absl::Now()));
  for (size_t i = 0; i < ids_.size(); ++i) {
    const PlaneId& id = ids_[i];
    const kvstore::HeldPlane& held = lease.planes()[i];
    if (!held.found && is_context_ && id.kind == PlaneKind::kProximal) {
      view_[block_of_[i]].far_only = true;
      continue;
    }
    if (!held.found) {
      missing_.push_back(
          {block_of_[i], id,
           absl::StrCat(pod::PlaneKindName(id.kind), " plane ", kvstore::MissReasonName(held.miss.reason))});
      continue;
    }
    const absl::Status header = pod::CheckPlaneHeader(held.header, layout, identity, id.key, id.kind, &root);
    if (!header.ok()) missing_.push_back({block_of_[i], id, std::string(header.message())});
  }
  if (!missing_.empty()) {
    view_.clear();
    return absl::OkStatus();
  }

  std::vector<std::vector<kvstore::FetchRequest>> groups(static_cast<size_t>(layout.plan().shape().layers));
  const auto distant_runs = RunsByLayer(layout, PlaneKind::kDistant);
  const auto proximal_runs = RunsByLayer(layout, PlaneKind::kProximal);
  for (size_t i = 0; i < ids_.size(); ++i) {
    const kvstore::HeldPlane& held = lease.planes()[i];
    if (!held.found) continue;
    PERIGEE_ASSIGN_OR_RETURN(
        const model::PlaneBuffer bytes,
        node_->planes().Allocate(held.header.payload_bytes, kvstore::RegisteredPool::Contents::kUnspecified));
    destinations_.push_back({.bytes = bytes, .id = ids_[i], .keep = Complete(block_of_[i])});
    const bool distant = ids_[i].kind == PlaneKind::kDistant;
    for (size_t layer = 0; layer < groups.size(); ++layer) {
      for (const SectionRun& run : (distant ? distant_runs : proximal_runs)[layer]) {
        groups[layer].push_back({.plane = i,
                                 .destination = {bytes.get() + run.offset_bytes, run.bytes},
                                 .first_section = run.first_section,
                                 .sections = run.sections});
      }
    }
    ++planes_;
    if (held.tier == kvstore::Tier::kSsd) ++planes_from_ssd_;
    bytes_ += held.header.payload_bytes;
    model::CachedBlock& block = view_[block_of_[i]];
    block.base_position = held.header.base_position;
    block.plane(ids_[i].kind) = bytes;
  }
  PERIGEE_ASSIGN_OR_RETURN(fetch_, lease.StartFetch(std::move(groups)));
  return absl::OkStatus();
}

// What was found wrong becomes missing().
absl::Status PromptFetch::Settle(absl::Status arrived) {
  if (!absl::IsDataLoss(arrived)) return arrived;
  for (const size_t plane : fetch_.wrong_planes()) {
    missing_.push_back({block_of_[plane], ids_[plane], std::string(arrived.message())});
  }
  return status();
}

absl::Status PromptFetch::WaitForLayer(int layer) {
  if (fetch_.groups() == 0) return absl::OkStatus();
  const absl::Time start = absl::Now();
  const absl::Status arrived = fetch_.Wait(static_cast<size_t>(layer), give_up_);
  exposed_time_ += absl::Now() - start;
  gave_up_ = absl::IsUnavailable(arrived) || (absl::IsDeadlineExceeded(arrived) && absl::Now() >= give_up_);
  if (arrived.ok() && static_cast<size_t>(layer) + 1 == fetch_.groups()) {
    for (Destination& to : destinations_) {
      if (to.keep) {
        node_->planes().Keep(to.id, std::move(to.bytes), node_->model().layout().plane_bytes(to.id.kind));
      }
    }
    destinations_.clear();
  }
  return Settle(arrived);
}

absl::Status PromptFetch::WaitForAll() {
  return fetch_.groups() == 0 ? absl::OkStatus() : WaitForLayer(static_cast<int>(fetch_.groups()) - 1);
}

bool PromptFetch::running() const {
  return fetch_.groups() > 0 && absl::IsDeadlineExceeded(fetch_.Wait(fetch_.groups() - 1, absl::InfinitePast()));
}

absl::Status PromptFetch::status() const {
  if (missing_.empty()) return absl::OkStatus();
  const MissingPlane& first = missing_.front();
  return absl::NotFoundError(
      absl::StrCat("block ", first.block, " of ", blocks_, " (", first.id.ToString(), "): ", first.why));
}

}  // namespace perigee::node
