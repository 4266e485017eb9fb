#include "prefill_node/prefill_node.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "base/status.h"
#include "prefill_node/reuse.h"

namespace perigee::prefill_node {
namespace {

using kvstore::PlaneId;
using pod::PlaneKind;

}  // namespace

PrefillNode::PrefillNode(const node::Node* node, const PrefillOptions& options)
    : node_(node), chunk_tokens_([&] {
        const int block = node->model().layout().block_tokens();
        return (std::max(options.chunk_tokens, 1) + block - 1) / block * block;
      }()) {}

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
  model::PlaneCache cache = node_->NewCache();
  PERIGEE_ASSIGN_OR_RETURN(const int64_t reused, ReusePrefix(prompt, cache, response));

  const absl::Time start = absl::Now();
  if (reused < prompt.cached) {
    while (cache.tokens() < prompt.cached) {
      const int64_t end = std::min(prompt.cached, cache.tokens() + chunk_tokens_);
      PERIGEE_RETURN_IF_ERROR(ComputeChunk(prompt, end, deadline, cache, response));
      cache.RetireProximal(cache.tokens());
    }
  }
  response->set_compute_us(node::MicrosecondsSince(start) - response->commit_us());
  response->mutable_token_ids()->Assign(prompt.ids.begin(), prompt.ids.end());
  response->set_model_fingerprint(std::string(AsView(prompt.identity.model_fingerprint)));
  response->set_plan_id(std::string(AsView(prompt.identity.plan_id)));
  response->set_reused_tokens(static_cast<uint32_t>(reused));
  response->set_prefilled_tokens(static_cast<uint32_t>(prompt.cached - reused));
  response->set_bytes_full(static_cast<uint64_t>(prompt.cached) * node_->model().layout().dense_bytes_per_token());
  return absl::OkStatus();
}

absl::StatusOr<int64_t> PrefillNode::ReusePrefix(const Prompt& prompt, model::PlaneCache& cache,
                                                 v1::PrefillResponse* response) const {
  if (prompt.cached == 0) return 0;
  const pod::Layout& layout = node_->model().layout();
  const bool has_distant = layout.plane_bytes(PlaneKind::kDistant) > 0;
  const bool has_proximal = layout.plane_bytes(PlaneKind::kProximal) > 0;
  const absl::Time lookup_start = absl::Now();
  PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult lookup, node_->store().Lookup(prompt.keys));
  response->set_lookup_us(node::MicrosecondsSince(lookup_start));

  std::vector<StoredBlock> stored(prompt.keys.size());
  std::vector<uint64_t> stored_bytes(prompt.keys.size(), 0);
  for (size_t b = 0; b < stored.size(); ++b) {
    stored[b].distant = !has_distant;
    stored[b].proximal = !has_proximal;
    for (const kvstore::FoundPlane& plane : lookup.blocks[b].planes) {
      if (plane.kind == PlaneKind::kDistant) stored[b].distant = true;
      if (plane.kind == PlaneKind::kProximal) stored[b].proximal = true;
      stored_bytes[b] += plane.payload_bytes;
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

  const absl::Time fetch_start = absl::Now();
  for (;;) {
    const Reuse reuse = LongestUsablePrefix(layout, prompt.cached, stored);
    const int64_t end = std::min(static_cast<int64_t>(reuse.blocks) * layout.block_tokens(), prompt.cached);
    // With everything stored nothing is computed, so nothing is fetched here: the decode node fetches for itself.
    if (end < prompt.cached && reuse.blocks > 0) {
      PERIGEE_ASSIGN_OR_RETURN(const bool fetched, FetchBlocks(prompt, end, stored, cache, response));
      // A plane vanished or proved wrong since the lookup: it is marked as missing now, and a shorter prefix may do.
      if (!fetched) continue;
    }
    response->set_fetch_us(node::MicrosecondsSince(fetch_start));
    response->set_reuse_ended_because(end < prompt.cached ? reuse.ended_because : "");
    uint64_t bytes = 0;
    for (size_t b = 0; b < reuse.blocks; ++b) bytes += stored_bytes[b];
    response->set_bytes_stored(bytes);
    return end;
  }
}

absl::StatusOr<bool> PrefillNode::FetchBlocks(const Prompt& prompt, int64_t end, std::vector<StoredBlock>& stored,
                                              model::PlaneCache& cache, v1::PrefillResponse* response) const {
  const pod::Layout& layout = node_->model().layout();
  const int block_tokens = layout.block_tokens();
  const size_t blocks = static_cast<size_t>(end / block_tokens);
  std::vector<PlaneId> planes;
  for (size_t b = 0; b < blocks; ++b) {
    const bool near = pod::IsNear(layout.plan().window(), block_tokens, static_cast<int64_t>(b) * block_tokens, end);
    if (layout.plane_bytes(PlaneKind::kDistant) > 0) planes.push_back({prompt.keys[b], PlaneKind::kDistant});
    if (near && layout.plane_bytes(PlaneKind::kProximal) > 0) planes.push_back({prompt.keys[b], PlaneKind::kProximal});
  }
  PERIGEE_ASSIGN_OR_RETURN(std::vector<node::FetchedPlane> fetched, node_->FetchPlanes(prompt.identity, planes));

  std::vector<model::CachedBlock> view(blocks);
  bool complete = true;
  size_t b = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < planes.size(); ++i) {
    while (planes[i].key != prompt.keys[b]) ++b;
    const bool distant = planes[i].kind == PlaneKind::kDistant;
    if (!fetched[i].status.ok()) {
      (distant ? stored[b].distant : stored[b].proximal) = false;
      stored[b].missing = std::string(fetched[i].status.message());
      complete = false;
      continue;
    }
    bytes += fetched[i].size_bytes;
    view[b].base_position = fetched[i].base_position;
    (distant ? view[b].distant : view[b].proximal) = std::move(fetched[i].bytes);
  }
  response->set_bytes_fetched(response->bytes_fetched() + bytes);
  if (!complete) return false;
  for (size_t i = 0; i < blocks; ++i) {
    view[i].position = static_cast<int64_t>(i) * block_tokens;
    view[i].tokens = block_tokens;
    PERIGEE_RETURN_IF_ERROR(cache.AddBlock(std::move(view[i])));
  }
  return true;
}

absl::Status PrefillNode::ComputeChunk(const Prompt& prompt, int64_t end, absl::Time deadline, model::PlaneCache& cache,
                                       v1::PrefillResponse* response) const {
  const pod::Layout& layout = node_->model().layout();
  const int block_tokens = layout.block_tokens();
  const int64_t begin = cache.tokens();  // On a block border: the chunk and every reused prefix end on one.
  const size_t first_block = static_cast<size_t>(begin / block_tokens);
  const size_t blocks = static_cast<size_t>((end - begin + block_tokens - 1) / block_tokens);

  // What this chunk writes: plane `i` of the batch is pieces[i].
  struct Piece {
    size_t block;
    PlaneKind kind;
  };
  std::vector<Piece> pieces;
  std::vector<kvstore::PlaneRequest> planes;
  for (size_t b = first_block; b < first_block + blocks; ++b) {
    for (PlaneKind kind : pod::kPlaneKinds) {
      const size_t bytes = layout.plane_bytes(kind);
      if (bytes == 0) continue;
      if (kind == PlaneKind::kProximal &&
          !KeepsProximal(layout, static_cast<int64_t>(b) * block_tokens, prompt.branch_points)) {
        continue;
      }
      pieces.push_back({b, kind});
      planes.push_back({{prompt.keys[b], kind}, bytes});
    }
  }
  PERIGEE_ASSIGN_OR_RETURN(kvstore::WriteBatch batch, node_->store().Reserve(planes));

  const auto payload = [&](const Piece& piece) {
    const model::CachedBlock& block = cache.blocks()[piece.block];
    const model::PlaneBuffer& plane = piece.kind == PlaneKind::kDistant    ? block.distant
                                      : piece.kind == PlaneKind::kProximal ? block.proximal
                                                                           : block.summary;
    return std::span<const std::byte>(plane.get(), layout.plane_bytes(piece.kind));
  };
  // The tiles of layer l are final once l is computed: they travel while l + 1 is.
  const auto ship = [&](int layer) -> absl::Status {
    if (absl::Now() > deadline)
      return absl::DeadlineExceededError("the request's time is over; the prefill was stopped");
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (batch.already_committed(i)) continue;
      for (const pod::Section& range : layout.layer_ranges(pieces[i].kind, layer)) {
        PERIGEE_RETURN_IF_ERROR(
            batch.Put(i, range.offset_bytes, payload(pieces[i]).subspan(range.offset_bytes, range.bytes)));
      }
    }
    return absl::OkStatus();
  };
  const std::span<const int32_t> tokens =
      std::span(prompt.ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  PERIGEE_RETURN_IF_ERROR(node_->model().transformer().Forward(tokens, cache, model::Logits::kNone, nullptr, ship));

  std::vector<pod::PlaneHeader> headers;
  for (const Piece& piece : pieces) {
    const model::CachedBlock& block = cache.blocks()[piece.block];
    pod::PlaneHeader header;
    header.kind = piece.kind;
    header.key = prompt.keys[piece.block];
    header.has_parent = piece.block > 0;
    if (header.has_parent) header.parent = prompt.keys[piece.block - 1];
    header.tenant = prompt.identity.tenant;
    header.model_fingerprint = prompt.identity.model_fingerprint;
    header.plan_id = prompt.identity.plan_id;
    header.shape = layout.plan().shape();
    header.near_codec = layout.plan().near_codec();
    header.block_tokens = block_tokens;
    header.tokens = block.tokens;
    header.shard = prompt.identity.shard;
    header.base_position = block.base_position;
    header.payload_bytes = layout.plane_bytes(piece.kind);
    header.sections = pod::SumSections(layout, piece.kind, payload(piece));
    headers.push_back(std::move(header));
  }
  uint64_t written_bytes = 0;  // Counted before the commit, after which all planes are committed.
  for (size_t i = 0; i < pieces.size(); ++i) written_bytes += batch.already_committed(i) ? 0 : planes[i].payload_bytes;
  const absl::Time commit_start = absl::Now();
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<absl::Status> statuses, batch.Commit(headers));
  response->set_commit_us(response->commit_us() + node::MicrosecondsSince(commit_start));
  for (size_t i = 0; i < pieces.size(); ++i) {
    PERIGEE_RETURN_IF_ERROR(Annotate(statuses[i], absl::StrCat("commit of ", planes[i].id.ToString())));
    response->set_bytes_stored(response->bytes_stored() + planes[i].payload_bytes);
  }
  response->set_bytes_written(response->bytes_written() + written_bytes);
  return absl::OkStatus();
}

}  // namespace perigee::prefill_node
