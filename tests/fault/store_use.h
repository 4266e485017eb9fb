// What a user of the store does: writes planes and reads them back. Whole sets; the first error of any plane counts.
#ifndef PERIGEE_TESTS_FAULT_STORE_USE_H_
#define PERIGEE_TESTS_FAULT_STORE_USE_H_

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/client.h"
#include "planes.h"

namespace perigee::fault {

// Of one call and one transfer; kStoreUse: of a Write or Read: connecting, a call, the transfer, and the courtesy at
// the end (Abort, Release).
inline constexpr absl::Duration kStoreCall = absl::Seconds(1);
inline constexpr absl::Duration kStoreTransfer = absl::Milliseconds(1500);
inline constexpr absl::Duration kStoreUse = absl::Milliseconds(4500);

inline kvstore::ClientOptions QuickOptions() {
  kvstore::ClientOptions options;
  options.connect_deadline = kStoreCall;
  options.call_deadline = kStoreCall;
  options.transfer_deadline = kStoreTransfer;
  return options;
}

inline absl::Status Write(kvstore::StoreClient& client, const std::vector<kvstore::TestPlane>& planes) {
  std::vector<kvstore::PlaneRequest> requests;
  std::vector<pod::PlaneHeader> headers;
  for (const kvstore::TestPlane& plane : planes) {
    requests.push_back(plane.request());
    headers.push_back(plane.header);
  }
  auto batch = client.Reserve(requests);
  if (!batch.ok()) return batch.status();
  for (size_t i = 0; i < planes.size(); ++i) {
    const absl::Status put = batch->Put(i, 0, planes[i].payload);
    if (!put.ok()) return put;
  }
  const auto statuses = batch->Commit(headers);
  if (!statuses.ok()) return statuses.status();
  absl::Status first;
  for (const absl::Status& status : *statuses) first.Update(status);
  return first;
}

// *wrong: planes whose status is OK and whose bytes are not those that were written.
inline absl::Status Read(kvstore::StoreClient& client, const std::vector<kvstore::TestPlane>& planes, size_t* wrong) {
  std::vector<kvstore::PlaneId> ids;
  for (const kvstore::TestPlane& plane : planes) ids.push_back(plane.id);
  auto lease = client.Acquire(ids);
  if (!lease.ok()) return lease.status();
  std::vector<std::vector<std::byte>> memory;
  std::vector<kvstore::FetchRequest> requests;
  for (size_t i = 0; i < planes.size(); ++i) {
    // As large as the header says; a plane with a damaged header that was found all the same is a wrong one.
    memory.emplace_back(planes[i].payload.size());
    requests.push_back({.plane = i, .destination = memory.back()});
  }
  absl::Status first;
  const std::vector<absl::Status> statuses = lease->Fetch(requests);
  for (size_t i = 0; i < planes.size(); ++i) {
    first.Update(statuses[i]);
    if (statuses[i].ok()) *wrong += memory[i] != planes[i].payload || lease->planes()[i].header != planes[i].header;
  }
  return first;
}

}  // namespace perigee::fault

#endif  // PERIGEE_TESTS_FAULT_STORE_USE_H_
