// Keeps a store directory in step with a membership: from those who know the members to those who place planes.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_DIRECTORY_FEEDER_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_DIRECTORY_FEEDER_H_

#include <atomic>
#include <memory>
#include <thread>

#include "cluster/membership/membership.h"
#include "kvstore/placement.h"

namespace perigee::cluster {

// The directory has the membership's stores when the constructor returns, and each change of them from then on.
// Destruction ends the thread, within a quarter of a second.
class DirectoryFeeder {
 public:
  // Both outlive this object.
  DirectoryFeeder(const Membership* membership, kvstore::StoreDirectory* directory);
  ~DirectoryFeeder();
  DirectoryFeeder(const DirectoryFeeder&) = delete;
  DirectoryFeeder& operator=(const DirectoryFeeder&) = delete;

 private:
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_DIRECTORY_FEEDER_H_
