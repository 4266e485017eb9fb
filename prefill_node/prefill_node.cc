#include "prefill_node/prefill_node.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "base/status.h"
#include "node/prompt_fetch.h"
#include "prefill_node/chunk_writer.h"
#include "prefill_node/reuse.h"

namespace perigee::prefill_node {
namespace {

using pod::PlaneKind;

}  // namespace

PrefillNode::PrefillNode(const node::Node* node, const PrefillOptions& options)
    : node_(node),
      chunk_tokens_([&] {
        const int block = node->model().layout().block_tokens();
        return (std::max(options.chunk_tokens, 1) + block - 1) / block * block;
      }()),
      options_(options) {}

absl::StatusOr<PrefillNode::Prompt> PrefillNode::Read(const v1::PrefillRequest& request) const {
  Prompt prompt;
  PERIGEE_ASSIGN_OR_RETURN(prompt.identity, node_->IdentityFor(request.scope()));
  const model::Tokenizer& tokenizer = node_->model().tokenizer();
  bool bos = !request.no_bos() && tokenizer.adds_bos_by_default();
  for (const v1::Segment& segment : request.segments()) {
    if (!prompt.ids.empty()) prompt.branch_points.push_back(static_cast<int64_t>(prompt.ids.size()));
    if (segment.has_tokens()) {
      prompt.ids.insert(prompt.ids.end(), segment.tokens().ids().begin(), segment.tokens().ids().end());
    } else {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(segment.text(), bos));
      prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
    }
    bos = false;
  }
  PERIGEE_RETURN_IF_ERROR(node_->CheckPrompt(prompt.ids, 0));
  prompt.cached = static_cast<int64_t>(prompt.ids.size()) - 1;
  prompt.branch_points.push_back(prompt.cached);
  prompt.keys = pod::DeriveChain(prompt.identity, std::span(prompt.ids).first(static_cast<size_t>(prompt.cached)));
  return prompt;
}

absl::Status PrefillNode::Prefill(const v1::PrefillRequest& request, absl::Time deadline,
                                  v1::PrefillResponse* response) const {
  PERIGEE_ASSIGN_OR_RETURN(const Prompt prompt, Read(request));
  int64_t reused = 0;
  if (prompt.cached > 0) {
    PERIGEE_ASSIGN_OR_RETURN(std::vector<StoredBlock> stored, LookUp(prompt, response));
    for (bool done = false; !done;) {
      const Reuse reuse = LongestUsablePrefix(node_->model().layout(), prompt.cached, stored);
      reused = std::min(static_cast<int64_t>(reuse.blocks) * node_->model().layout().block_tokens(), prompt.cached);
      response->set_reuse_ended_because(reused < prompt.cached ? reuse.ended_because : "");
      uint64_t bytes_reused = 0;
      for (size_t b = 0; b < reuse.blocks; ++b) bytes_reused += stored[b].bytes;
      response->set_bytes_stored(bytes_reused);
      // With everything stored nothing is computed, so nothing is fetched here: the decode node fetches for itself.
      if (reused == prompt.cached) break;
      // Not done: a plane vanished or proved wrong since the lookup. It is marked as missing now, and a shorter prefix
      // may do.
      PERIGEE_ASSIGN_OR_RETURN(done, ContinueFrom(prompt, reused, deadline, stored, response));
    }
  }
  response->mutable_token_ids()->Assign(prompt.ids.begin(), prompt.ids.end());
  response->set_model_fingerprint(std::string(AsView(prompt.identity.model_fingerprint)));
  response->set_plan_id(std::string(AsView(prompt.identity.plan_id)));
  response->set_reused_tokens(static_cast<uint32_t>(reused));
  response->set_prefilled_tokens(static_cast<uint32_t>(prompt.cached - reused));
  response->set_bytes_full(static_cast<uint64_t>(prompt.cached) * node_->model().layout().dense_bytes_per_token());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<StoredBlock>> PrefillNode::LookUp(const Prompt& prompt,
                                                             v1::PrefillResponse* response) const {
  const pod::Layout& layout = node_->model().layout();
  const absl::Time start = absl::Now();
  PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult lookup, node_->store().Lookup(prompt.keys));
  response->set_lookup_us(node::MicrosecondsSince(start));
  std::vector<StoredBlock> stored(prompt.keys.size());
  for (size_t b = 0; b < stored.size(); ++b) {
    stored[b].distant = layout.plane_bytes(PlaneKind::kDistant) == 0;
    stored[b].proximal = layout.plane_bytes(PlaneKind::kProximal) == 0;
    for (const kvstore::FoundPlane& plane : lookup.blocks[b].planes) {
      if (plane.kind == PlaneKind::kDistant) stored[b].distant = true;
      if (plane.kind == PlaneKind::kProximal) stored[b].proximal = true;
      stored[b].bytes += plane.payload_bytes;
    }
    for (const kvstore::MissedPlane& missed : lookup.blocks[b].misses) {
      const bool tells_why =
          stored[b].distant ? missed.kind == PlaneKind::kProximal : missed.kind == PlaneKind::kDistant;
      if (tells_why) {
        stored[b].missing =
            absl::StrCat(pod::PlaneKindName(missed.kind), " plane ", kvstore::MissReasonName(missed.miss.reason));
      }
    }
  }
  return stored;
}

absl::StatusOr<bool> PrefillNode::ContinueFrom(const Prompt& prompt, int64_t reused, absl::Time deadline,
                                               std::vector<StoredBlock>& stored, v1::PrefillResponse* response) const {
  model::PlaneCache cache = node_->NewCache();
  std::unique_ptr<node::PromptFetch> fetch;  // Null where nothing is reused.
  const auto broken = [&] { return fetch != nullptr && !fetch->missing().empty(); };
  if (reused > 0) {
    const size_t blocks = static_cast<size_t>(reused / node_->model().layout().block_tokens());
    PERIGEE_ASSIGN_OR_RETURN(
        fetch, node::PromptFetch::Start(*node_, prompt.identity, std::span(prompt.keys).first(blocks), reused, cache));
  }
  absl::Status computed;
  if (!broken()) computed = Compute(prompt, deadline, cache, response);
  if (broken()) {
    // Found at the latest in the first chunk, which was not committed.
    for (const node::MissingPlane& plane : fetch->missing()) {
      StoredBlock& block = stored[plane.block];
      (plane.id.kind == PlaneKind::kDistant ? block.distant : block.proximal) = false;
      block.missing = plane.why;
    }
    return false;
  }
  PERIGEE_RETURN_IF_ERROR(computed);
  if (fetch != nullptr) {
    response->set_bytes_fetched(fetch->bytes());
    response->set_fetch_us(static_cast<uint64_t>(absl::ToInt64Microseconds(fetch->fetch_time())));
    response->set_exposed_fetch_us(static_cast<uint64_t>(absl::ToInt64Microseconds(fetch->exposed_time())));
    response->set_compute_us(response->compute_us() - response->exposed_fetch_us());
  }
  return true;
}

absl::Status PrefillNode::Compute(const Prompt& prompt, absl::Time deadline, model::PlaneCache& cache,
                                  v1::PrefillResponse* response) const {
  const pod::Layout& layout = node_->model().layout();
  const int block_tokens = layout.block_tokens();
  ChunkWriter writer(&node_->store(), &layout, &prompt.identity, prompt.keys, options_.chunks_under_way,
                     options_.durability, options_.ttl);
  const absl::Time start = absl::Now();
  while (cache.tokens() < prompt.cached) {
    const int64_t begin = cache.tokens();  // On a block border: every chunk and every reused prefix end on one.
    const int64_t end = std::min(prompt.cached, begin + chunk_tokens_);
    std::vector<ChunkWriter::Plane> planes;
    for (int64_t block_begin = begin; block_begin < end; block_begin += block_tokens) {
      for (PlaneKind kind : pod::kPlaneKinds) {
        if (layout.plane_bytes(kind) == 0) continue;
        if (kind == PlaneKind::kProximal && !KeepsProximal(layout, block_begin, prompt.branch_points)) continue;
        planes.push_back({static_cast<size_t>(block_begin / block_tokens), kind});
      }
    }
    PERIGEE_RETURN_IF_ERROR(writer.Begin(std::move(planes)));
    const auto ship = [&](int layer) -> absl::Status {
      if (absl::Now() > deadline)
        return absl::DeadlineExceededError("the request's time is over; the prefill was stopped");
      return writer.LayerDone(layer, cache.blocks());
    };
    const std::span<const int32_t> tokens =
        std::span(prompt.ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    PERIGEE_RETURN_IF_ERROR(node_->model().transformer().Forward(tokens, cache, model::Logits::kNone, nullptr, ship));
    cache.RetireProximal(cache.tokens());
  }
  PERIGEE_RETURN_IF_ERROR(writer.Finish());
  response->set_commit_us(static_cast<uint64_t>(absl::ToInt64Microseconds(writer.stalled())));
  response->set_compute_us(node::MicrosecondsSince(start) - response->commit_us());
  response->set_bytes_stored(response->bytes_stored() + writer.bytes_stored());
  response->set_bytes_written(writer.bytes_written());
  return absl::OkStatus();
}

}  // namespace perigee::prefill_node
