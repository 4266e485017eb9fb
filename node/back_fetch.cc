#include "node/back_fetch.h"

#include <algorithm>

#include "base/status.h"
#include "base/trace.h"
#include "node/prompt_fetch.h"
#include "pod/plane_header.h"

namespace perigee::node {
namespace {

using kvstore::PlaneId;
using pod::PlaneKind;

// Leased and fetched together: enough for a transfer to be worth its round trips, little enough for the front to see
// progress often.
constexpr uint64_t kRangeBytes = uint64_t{2} << 20;

}  // namespace

BackFetch::BackFetch(const Node& node, const pod::Identity& identity, std::span<const pod::BlockKey> keys,
                     int64_t tokens)
    : node_(node),
      identity_(identity),
      keys_(keys.begin(), keys.end()),
      tokens_(tokens),
      blocks_(keys.size()),
      first_here_(keys.size()) {
  const int block_tokens = node.model().layout().block_tokens();
  for (size_t b = 0; b < keys.size(); ++b) {
    blocks_[b].position = blocks_[b].base_position = static_cast<int64_t>(b) * block_tokens;
    blocks_[b].tokens = static_cast<int32_t>(std::min<int64_t>(block_tokens, tokens - blocks_[b].position));
  }
  thread_ = std::thread([this, request = std::string(CurrentRequest())] {
    const RequestScope scope(request);
    const Span span("fetch from the back");
    Run();
  });
}

BackFetch::~BackFetch() {
  Stop();
  thread_.join();
}

void BackFetch::Stop() {
  absl::MutexLock lock(&mu_);
  stopping_ = true;
}

bool BackFetch::running() const {
  absl::MutexLock lock(&mu_);
  return running_;
}

size_t BackFetch::first_here() const {
  absl::MutexLock lock(&mu_);
  return first_here_;
}

absl::Status BackFetch::status() const {
  absl::MutexLock lock(&mu_);
  return status_;
}

std::vector<PlaneId> BackFetch::PlanesOf(size_t block) const {
  std::vector<PlaneId> ids;
  for (const PlaneKind kind : {PlaneKind::kDistant, PlaneKind::kProximal}) {
    if (Reads(node_.model().layout(), kind, blocks_[block].position, tokens_)) ids.push_back({keys_[block], kind});
  }
  return ids;
}

void BackFetch::Run() {
  const absl::Status fetched = FetchAll();
  absl::MutexLock lock(&mu_);
  status_ = fetched;
  running_ = false;
}

absl::Status BackFetch::FetchAll() {
  const pod::Layout& layout = node_.model().layout();
  // The store begins with the last ones too, and reads ahead of what is leased below.
  std::vector<PlaneId> all;
  for (size_t b = keys_.size(); b-- > 0;) {
    for (const PlaneId& id : PlanesOf(b)) all.push_back(id);
  }
  node_.store().Promote(keys_[0], all).status().IgnoreError();  // Only a hint.

  size_t end = keys_.size();
  while (end > 0) {
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return absl::CancelledError("the fetch was stopped");
    }
    size_t begin = end;
    for (uint64_t bytes = 0; begin > 0 && bytes < kRangeBytes;) {
      --begin;
      for (const PlaneId& id : PlanesOf(begin)) bytes += layout.plane_bytes(id.kind);
    }
    PERIGEE_RETURN_IF_ERROR(FetchRange(begin, end));
    absl::MutexLock lock(&mu_);
    first_here_ = end = begin;
  }
  return absl::OkStatus();
}

absl::Status BackFetch::FetchRange(size_t begin, size_t end) {
  const pod::Layout& layout = node_.model().layout();
  std::vector<PlaneId> ids;
  std::vector<model::PlaneBuffer*> places;
  for (size_t b = begin; b < end; ++b) {
    for (const PlaneId& id : PlanesOf(b)) {
      model::PlaneBuffer& place = blocks_[b].plane(id.kind);
      if (blocks_[b].tokens == layout.block_tokens()) place = node_.planes().Find(id);
      if (place != nullptr) continue;
      ids.push_back(id);
      places.push_back(&place);
    }
  }
  if (ids.empty()) return absl::OkStatus();
  PERIGEE_ASSIGN_OR_RETURN(kvstore::ShardedLease lease, node_.store().Acquire(keys_[0], ids));
  std::vector<kvstore::FetchRequest> requests;
  for (size_t i = 0; i < ids.size(); ++i) {
    const kvstore::HeldPlane& held = lease.planes()[i];
    if (!held.found) {
      return absl::NotFoundError(absl::StrCat(ids[i].ToString(), ": ", kvstore::MissReasonName(held.miss.reason)));
    }
    PERIGEE_RETURN_IF_ERROR(pod::CheckPlaneHeader(held.header, layout, identity_, ids[i].key, ids[i].kind, &keys_[0]));
    PERIGEE_ASSIGN_OR_RETURN(*places[i], node_.planes().Allocate(held.header.payload_bytes,
                                                                 kvstore::RegisteredPool::Contents::kUnspecified));
    requests.push_back({.plane = i, .destination = {places[i]->get(), held.header.payload_bytes}});
    bytes_ += held.header.payload_bytes;
    ++planes_;
    if (held.tier == kvstore::Tier::kSsd) ++planes_from_ssd_;
  }
  std::vector<std::vector<kvstore::FetchRequest>> all;
  all.push_back(std::move(requests));
  PERIGEE_ASSIGN_OR_RETURN(const kvstore::ShardedFetch fetch, lease.StartFetch(std::move(all)));
  PERIGEE_RETURN_IF_ERROR(fetch.Wait(0));
  for (size_t b = begin; b < end; ++b) {
    if (blocks_[b].tokens < layout.block_tokens()) continue;
    for (const PlaneId& id : PlanesOf(b)) {
      node_.planes().Keep(id, blocks_[b].plane(id.kind), layout.plane_bytes(id.kind));
    }
  }
  return absl::OkStatus();
}

absl::Status BackFetch::AddTo(model::PlaneCache& cache, size_t block) {
  for (size_t b = block; b < blocks_.size(); ++b) PERIGEE_RETURN_IF_ERROR(cache.AddBlock(blocks_[b]));
  return absl::OkStatus();
}

}  // namespace perigee::node
