// A gRPC channel to a process of the cluster.
#ifndef PERIGEE_CLUSTER_CHANNEL_H_
#define PERIGEE_CLUSTER_CHANNEL_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

namespace perigee::cluster {

// Connects when it is first used; a process that comes back is found within a second.
std::shared_ptr<grpc::Channel> ConnectTo(const std::string& address);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CHANNEL_H_
