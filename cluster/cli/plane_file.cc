#include "cluster/cli/plane_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "kvstore/remote/remote_object.h"
#include "kvstore/ssd/segment_record.h"

namespace perigee::cli {
namespace {

constexpr size_t kKeyOffset = 48, kKindOffset = 80;  // In a record's head.

PlaneFile EncodePlaneFile(const kvstore::HeldPlane& held, const WantedPlane& wanted,
                          std::span<const std::byte> payload) {
  PlaneFile file;
  file.id = held.id;
  file.header = held.header;
  file.created_unix_us = wanted.created_unix_us;
  file.ttl_s = wanted.ttl_s;
  file.bytes = kvstore::EncodeRecordHead(held.id, pod::EncodePlaneHeader(held.header), payload.size(),
                                         wanted.created_unix_us, wanted.ttl_s);
  file.head_bytes = file.bytes.size();
  file.bytes.append(reinterpret_cast<const char*>(payload.data()), payload.size());
  file.bytes.resize(file.head_bytes + kvstore::RoundUpToPage(payload.size()), '\0');
  return file;
}

}  // namespace

absl::StatusOr<PlaneFile> DecodePlaneFile(std::string bytes) {
  if (bytes.size() < kvstore::kRecordFixedBytes) {
    return absl::DataLossError(absl::StrCat(bytes.size(), " bytes are no plane's record"));
  }
  PlaneFile file;
  std::memcpy(file.id.key.digest.data(), bytes.data() + kKeyOffset, file.id.key.digest.size());
  const auto kind = static_cast<unsigned char>(bytes[kKindOffset]);
  if (kind < 1 || kind > 3) return absl::DataLossError(absl::StrCat("plane kind ", kind, " is not known"));
  file.id.kind = static_cast<pod::PlaneKind>(kind);
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t head_bytes, kvstore::PeekHeadBytes(bytes, file.id));
  if (bytes.size() < head_bytes) return absl::DataLossError("the record is cut short");
  const absl::string_view head(bytes.data(), head_bytes);
  PERIGEE_ASSIGN_OR_RETURN(const kvstore::RecordHead checked, kvstore::CheckHead(head, file.id));
  PERIGEE_RETURN_IF_ERROR(kvstore::CheckRecordBytes(file.id, checked, head_bytes, bytes.size()));
  const std::span<const std::byte> padded(reinterpret_cast<const std::byte*>(bytes.data()) + head_bytes,
                                          bytes.size() - head_bytes);
  PERIGEE_RETURN_IF_ERROR(kvstore::VerifyRecord(head, padded, file.id, checked.header.payload_bytes).status());
  file.header = checked.header;
  file.created_unix_us = checked.created_unix_us;
  file.ttl_s = checked.ttl_s;
  file.head_bytes = head_bytes;
  file.bytes = std::move(bytes);
  return file;
}

absl::StatusOr<PlaneFile> ReadPlaneFile(const std::string& path) {
  PERIGEE_ASSIGN_OR_RETURN(std::string bytes, ReadFile(path));
  absl::StatusOr<PlaneFile> file = DecodePlaneFile(std::move(bytes));
  if (!file.ok()) return Annotate(file.status(), path);
  return file;
}

std::vector<absl::StatusOr<PlaneFile>> FetchPlanes(kvstore::StoreClient& client, std::span<const WantedPlane> planes) {
  std::vector<absl::StatusOr<PlaneFile>> files;
  std::vector<kvstore::PlaneId> ids;
  for (const WantedPlane& plane : planes) ids.push_back(plane.id);
  absl::StatusOr<kvstore::ReadLease> lease = client.Acquire(ids);
  if (!lease.ok()) return std::vector<absl::StatusOr<PlaneFile>>(planes.size(), lease.status());
  std::vector<std::vector<std::byte>> memory(planes.size());
  std::vector<kvstore::FetchRequest> requests;
  for (size_t i = 0; i < planes.size(); ++i) {
    const kvstore::HeldPlane& held = lease->planes()[i];
    if (!held.found) continue;
    memory[i].resize(held.header.payload_bytes);
    requests.push_back({.plane = i, .destination = memory[i]});
  }
  const std::vector<absl::Status> fetched = lease->Fetch(requests);
  auto status = fetched.begin();
  for (size_t i = 0; i < planes.size(); ++i) {
    const kvstore::HeldPlane& held = lease->planes()[i];
    const absl::Status read = held.found ? *status++ : absl::OkStatus();
    if (!held.found) {
      const std::string why = absl::StrCat(held.id.ToString(), ": ", kvstore::MissReasonName(held.miss.reason));
      files.push_back(held.miss.reason == kvstore::MissReason::kChecksum ? absl::DataLossError(why)
                                                                         : absl::NotFoundError(why));
    } else if (!read.ok()) {
      files.push_back(read);
    } else {
      files.push_back(EncodePlaneFile(held, planes[i], memory[i]));
    }
  }
  return files;
}

absl::StatusOr<size_t> StorePlanes(kvstore::ShardedStore& store, const pod::BlockKey& root,
                                   std::span<const PlaneFile> planes, int replicas) {
  // Planes of one Commit have one time to live.
  const absl::Time now = absl::Now();
  std::vector<std::pair<absl::Duration, std::vector<const PlaneFile*>>> groups;
  for (const PlaneFile& plane : planes) {
    absl::Duration left = absl::InfiniteDuration();
    if (plane.ttl_s > 0) {
      left =
          absl::Ceil(absl::FromUnixMicros(plane.created_unix_us) + absl::Seconds(plane.ttl_s) - now, absl::Seconds(1));
      if (left <= absl::ZeroDuration()) continue;
    }
    if (groups.empty() || groups.back().first != left) groups.push_back({left, {}});
    groups.back().second.push_back(&plane);
  }
  size_t stored = 0;
  for (const auto& [left, group] : groups) {
    std::vector<kvstore::PlaneRequest> requests;
    std::vector<pod::PlaneHeader> headers;
    for (const PlaneFile* plane : group) {
      requests.push_back({plane->id, plane->header.payload_bytes});
      headers.push_back(plane->header);
    }
    PERIGEE_ASSIGN_OR_RETURN(kvstore::ShardedBatch batch, store.Reserve(root, requests, replicas));
    for (size_t i = 0; i < group.size(); ++i) {
      if (batch.already_committed(i)) continue;
      ++stored;
      PERIGEE_RETURN_IF_ERROR(batch.Put(i, 0, group[i]->payload()));
    }
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<absl::Status> committed,
                             batch.Commit(headers, kvstore::Durability::kBest, left));
    for (size_t i = 0; i < committed.size(); ++i) {
      if (!committed[i].ok()) return Annotate(committed[i], group[i]->id.ToString());
    }
  }
  return stored;
}

}  // namespace perigee::cli
