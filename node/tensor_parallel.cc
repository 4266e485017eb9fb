#include "node/tensor_parallel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "base/status.h"

namespace perigee::node {

namespace {

using pod::PlaneKind;

// What ranks must agree on before they write into one reservation.
Digest DigestOf(const pod::HeadShard& shard, std::span<const kvstore::PlaneId> planes) {
  ByteWriter w;
  w.Raw(AsView(shard.full().plan().id()));
  w.U32(static_cast<uint32_t>(shard.full().block_tokens()));
  w.U32(static_cast<uint32_t>(shard.size()));
  for (const kvstore::PlaneId& id : planes) {
    w.Raw(AsView(id.key.digest));
    w.U8(static_cast<uint8_t>(id.kind));
  }
  return Sha256(w.bytes());
}

absl::Status CheckRank(const transport::Collective& group, const pod::HeadShard& shard) {
  if (group.rank() == shard.rank() && group.size() == shard.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("rank ", group.rank(), " of ", group.size(),
                                                 " has the kv heads of rank ", shard.rank(), " of ", shard.size()));
}

absl::StatusCode CodeOf(std::byte wire) { return absl::Status(static_cast<absl::StatusCode>(wire), "").code(); }

}  // namespace

model::TensorParallel ModelGroup(transport::Collective* group, absl::Duration timeout) {
  return {group->rank(), group->size(),
          [group, timeout](std::span<float> values) { return group->AllReduceSum(values, absl::Now() + timeout); }};
}

absl::StatusOr<std::string> FromLeader(transport::Collective& group,
                                       const std::function<absl::StatusOr<std::string>()>& ask, absl::Time deadline) {
  std::string message;  // The code, then the answer or the error's text.
  if (group.rank() == 0) {
    const absl::StatusOr<std::string> answer = ask();
    message.push_back(static_cast<char>(answer.status().code()));
    message += answer.ok() ? *answer : std::string(answer.status().message());
  }
  PERIGEE_RETURN_IF_ERROR(group.BroadcastString(&message, 0, deadline));
  if (message.empty()) return absl::InternalError("rank 0 sent an empty answer");
  const absl::StatusCode code = CodeOf(static_cast<std::byte>(message[0]));
  message.erase(0, 1);
  if (code != absl::StatusCode::kOk) return absl::Status(code, message);
  return message;
}

absl::Status Agree(transport::Collective& group, const absl::Status& mine, absl::Time deadline) {
  constexpr size_t kBytes = 512;  // The code, then as much of the message as fits.
  std::vector<std::byte> sent(kBytes), all(kBytes * static_cast<size_t>(group.size()));
  sent[0] = static_cast<std::byte>(mine.code());
  mine.message().copy(reinterpret_cast<char*>(&sent[1]), kBytes - 2);
  PERIGEE_RETURN_IF_ERROR(group.AllGather(sent, all, deadline));
  for (int rank = 0; rank < group.size(); ++rank) {
    const std::byte* from = &all[kBytes * static_cast<size_t>(rank)];
    if (from[0] == std::byte{0}) continue;
    const char* text = reinterpret_cast<const char*>(from + 1);
    const absl::string_view message(text, ::strnlen(text, kBytes - 1));
    return absl::Status(CodeOf(from[0]), absl::StrCat("rank ", rank, " of ", group.size(), ": ", message));
  }
  return absl::OkStatus();
}

absl::StatusOr<ShardedWrite> ShardedWrite::Begin(transport::Collective& group, kvstore::StoreClient& store,
                                                 const pod::HeadShard& shard, std::span<const kvstore::PlaneId> planes,
                                                 absl::Time deadline) {
  PERIGEE_RETURN_IF_ERROR(CheckRank(group, shard));
  ShardedWrite write(group, shard, planes);
  const Digest digest = DigestOf(shard, planes);
  // Rank 0 reserves after the barrier, so the reservation is younger than every rank's `before`.
  const absl::Time before = absl::Now();
  PERIGEE_RETURN_IF_ERROR(group.Barrier(deadline));
  const auto reserve = [&]() -> absl::StatusOr<std::string> {
    std::vector<kvstore::PlaneRequest> requests;
    for (const kvstore::PlaneId& id : planes) requests.push_back({id, shard.full().plane_bytes(id.kind)});
    PERIGEE_ASSIGN_OR_RETURN(write.batch_, store.Reserve(requests));
    PERIGEE_ASSIGN_OR_RETURN(const std::string description, write.batch_.Describe());
    return absl::StrCat(AsView(digest), description);
  };
  PERIGEE_ASSIGN_OR_RETURN(const std::string answer, FromLeader(group, reserve, deadline));
  const auto join = [&]() -> absl::Status {
    const absl::string_view text = answer;
    if (text.substr(0, digest.size()) != AsView(digest)) {
      return absl::InternalError("this rank writes other planes, or under another plan, than rank 0");
    }
    PERIGEE_ASSIGN_OR_RETURN(write.joined_, store.Join(text.substr(digest.size()), before));
    return absl::OkStatus();
  };
  PERIGEE_RETURN_IF_ERROR(Agree(group, join(), deadline));
  return write;
}

void ShardedWrite::Ship(int layer, const PayloadOf& payload) {
  if (!status_.ok()) return;
  std::vector<kvstore::PutRange> ranges;
  for (size_t i = 0; i < planes_.size(); ++i) {
    if (joined_.already_committed(i)) continue;
    for (const pod::ShardExtent& extent : shard_->layer_extents(planes_[i].kind, layer)) {
      ranges.push_back({i, extent.full_offset, payload(i).subspan(extent.local_offset, extent.bytes)});
    }
  }
  status_.Update(joined_.Put(ranges));
}

absl::StatusOr<uint64_t> ShardedWrite::Commit(std::span<const pod::PlaneHeader> headers, const PayloadOf& payload,
                                              absl::Time deadline) {
  status_.Update(joined_.Finish());
  if (headers.size() != size()) {
    status_.Update(absl::InvalidArgumentError(absl::StrCat(headers.size(), " headers for ", size(), " planes")));
  }
  PERIGEE_RETURN_IF_ERROR(Agree(*group_, status_, deadline));

  // Every rank sends a checksum for every section of every new plane; those of its own heads count.
  const pod::Layout& full = shard_->full();
  std::vector<size_t> first_sum(size() + 1, 0);
  for (size_t i = 0; i < size(); ++i) {
    first_sum[i + 1] = first_sum[i] + (joined_.already_committed(i) ? 0 : full.sections(planes_[i].kind).size());
  }
  std::vector<uint32_t> sums(first_sum.back(), 0), all(sums.size() * static_cast<size_t>(group_->size()));
  for (size_t i = 0; i < size(); ++i) {
    if (joined_.already_committed(i)) continue;
    const std::vector<pod::SectionSum> local = pod::SumSections(shard_->local(), planes_[i].kind, payload(i));
    for (const pod::SectionRun& run : shard_->runs(planes_[i].kind)) {
      for (size_t s = 0; s < run.count; ++s) sums[first_sum[i] + run.full + s] = local[run.local + s].crc32c;
    }
  }
  PERIGEE_RETURN_IF_ERROR(
      group_->AllGather(std::as_bytes(std::span(sums)), std::as_writable_bytes(std::span(all)), deadline));

  const auto commit = [&]() -> absl::StatusOr<std::string> {
    std::vector<pod::PlaneHeader> whole(headers.begin(), headers.end());
    uint64_t new_bytes = 0;
    for (size_t i = 0; i < size(); ++i) {
      if (joined_.already_committed(i)) continue;
      const std::vector<pod::Section>& sections = full.sections(planes_[i].kind);
      whole[i].sections.clear();
      for (size_t s = 0; s < sections.size(); ++s) {
        const size_t owner = static_cast<size_t>(shard_->owner(planes_[i].kind, s));
        whole[i].sections.push_back(
            {static_cast<uint32_t>(sections[s].bytes), all[owner * sums.size() + first_sum[i] + s]});
      }
      new_bytes += whole[i].payload_bytes;
    }
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<absl::Status> statuses, batch_.Commit(whole));
    for (size_t i = 0; i < size(); ++i) {
      PERIGEE_RETURN_IF_ERROR(Annotate(statuses[i], absl::StrCat("commit of ", planes_[i].ToString())));
    }
    ByteWriter answer;
    answer.U64(new_bytes);
    return answer.Take();
  };
  PERIGEE_ASSIGN_OR_RETURN(const std::string answer, FromLeader(*group_, commit, deadline));
  ByteReader reader(answer);
  return reader.U64();
}

namespace {

// This rank's own part of FetchShard.
absl::StatusOr<std::vector<FetchedPlane>> FetchSections(kvstore::StoreClient& store, const pod::HeadShard& shard,
                                                        const pod::Identity& identity,
                                                        std::span<const kvstore::PlaneId> planes,
                                                        const model::PlaneAllocator& allocate) {
  PERIGEE_ASSIGN_OR_RETURN(kvstore::ReadLease lease, store.Acquire(planes));
  std::vector<FetchedPlane> out(planes.size());
  std::vector<kvstore::FetchRequest> requests;
  for (size_t i = 0; i < planes.size(); ++i) {
    const kvstore::HeldPlane& held = lease.planes()[i];
    const PlaneKind kind = planes[i].kind;
    if (!held.found) {
      out[i].status = absl::NotFoundError(
          absl::StrCat(pod::PlaneKindName(kind), " plane ", kvstore::MissReasonName(held.miss.reason)));
      continue;
    }
    // Held to the whole model's layout: the section numbers below are those of the header.
    out[i].status = pod::CheckPlaneHeader(held.header, shard.full(), identity, planes[i].key, kind);
    if (!out[i].status.ok()) continue;
    out[i].base_position = held.header.base_position;
    out[i].from = held.tier;
    out[i].size_bytes = shard.local().plane_bytes(kind);
    if (out[i].size_bytes == 0) continue;  // Other ranks' heads alone are in this plane.
    PERIGEE_ASSIGN_OR_RETURN(out[i].bytes, allocate(out[i].size_bytes));
    const std::vector<pod::Section>& sections = shard.local().sections(kind);
    for (const pod::SectionRun& run : shard.runs(kind)) {
      const pod::Section& last = sections[run.local + run.count - 1];
      const size_t begin = sections[run.local].offset_bytes, end = last.offset_bytes + last.bytes;
      requests.push_back({.plane = i,
                          .destination = {out[i].bytes.get() + begin, end - begin},
                          .first_section = run.full,
                          .sections = run.count});
    }
  }
  const std::vector<absl::Status> statuses = lease.Fetch(requests);
  for (size_t r = 0; r < requests.size(); ++r) {
    if (absl::IsDataLoss(statuses[r])) {
      out[requests[r].plane].status = statuses[r];
    } else if (!statuses[r].ok()) {
      return statuses[r];  // The store or the wire, not this plane.
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::vector<FetchedPlane>> FetchShard(transport::Collective& group, kvstore::StoreClient& store,
                                                     const pod::HeadShard& shard, const pod::Identity& identity,
                                                     std::span<const kvstore::PlaneId> planes,
                                                     const model::PlaneAllocator& allocate, absl::Time deadline) {
  PERIGEE_RETURN_IF_ERROR(CheckRank(group, shard));
  absl::StatusOr<std::vector<FetchedPlane>> fetched = FetchSections(store, shard, identity, planes, allocate);
  PERIGEE_RETURN_IF_ERROR(Agree(group, fetched.status(), deadline));
  std::vector<std::byte> codes(planes.size()), all(planes.size() * static_cast<size_t>(group.size()));
  for (size_t i = 0; i < planes.size(); ++i) codes[i] = static_cast<std::byte>((*fetched)[i].status.code());
  PERIGEE_RETURN_IF_ERROR(group.AllGather(codes, all, deadline));
  for (size_t i = 0; i < planes.size(); ++i) {
    FetchedPlane& plane = (*fetched)[i];
    for (int rank = 0; rank < group.size() && plane.status.ok(); ++rank) {
      const absl::StatusCode code = CodeOf(all[planes.size() * static_cast<size_t>(rank) + i]);
      if (code == absl::StatusCode::kOk) continue;
      plane.status = absl::Status(code, absl::StrCat(pod::PlaneKindName(planes[i].kind), " plane is not whole: rank ",
                                                     rank, " of ", group.size(), " could not read its heads"));
    }
    if (!plane.status.ok()) plane.bytes = nullptr;
  }
  return fetched;
}

}  // namespace perigee::node
