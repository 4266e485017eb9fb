#include "cluster/membership/directory_feeder.h"

#include "absl/time/clock.h"

namespace perigee::cluster {

DirectoryFeeder::DirectoryFeeder(const Membership* membership, kvstore::StoreDirectory* directory) {
  const std::shared_ptr<const ClusterView> first = membership->View();
  directory->Set(StoresOf(*first));
  thread_ = std::thread([this, membership, directory, version = first->version]() mutable {
    // In slices, since a membership cannot be told to wake those that wait.
    while (!stopping_) {
      if (!membership->AwaitNewer(version, absl::Now() + absl::Milliseconds(250))) continue;
      const std::shared_ptr<const ClusterView> view = membership->View();
      directory->Set(StoresOf(*view));
      version = view->version;
    }
  });
}

DirectoryFeeder::~DirectoryFeeder() {
  stopping_ = true;
  thread_.join();
}

}  // namespace perigee::cluster
