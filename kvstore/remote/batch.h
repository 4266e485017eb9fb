// Many operations of a remote tier at once, waited for. Both respect its bounds: what it refuses for want of room is
// tried again when another of the batch has ended. Any thread may call, but not a `done` of the tier.
#ifndef PERIGEE_KVSTORE_REMOTE_BATCH_H_
#define PERIGEE_KVSTORE_REMOTE_BATCH_H_

#include <vector>

#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

// One status per put, in order.
std::vector<absl::Status> PutAll(RemoteTier& tier, std::vector<RemotePut> puts, absl::Time deadline);
// OK: none of them is there. Else the first error.
absl::Status DeleteAll(RemoteTier& tier, const std::vector<PlaneId>& ids, absl::Time deadline);

// One of each, waited for.
absl::StatusOr<RemoteListPage> ListNow(RemoteTier& tier, const std::string& page_token, size_t max_planes,
                                       absl::Time deadline);
absl::StatusOr<std::vector<absl::StatusOr<RecordHead>>> StatNow(RemoteTier& tier, const std::vector<PlaneId>& ids,
                                                                absl::Time deadline);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_BATCH_H_
