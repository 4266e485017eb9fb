// Collective between CUDA devices, by NCCL: one rank per device. What is different from collective.h:
//
// - Buffers of AllReduceSum, AllGather and Broadcast are memory of the rank's device. Kernels that write them must have
//   finished; when a call returns the result is there for every stream. BroadcastString and Barrier are the host's,
//   over UCX, as is the group's rendezvous.
// - AllReduceSum's results are bitwise identical at all ranks; the order of addition is NCCL's and depends on the
// length.
// - NCCL does not compare what the ranks do: different operations or sizes end as DEADLINE_EXCEEDED or wrong results,
// not
//   as INTERNAL. Ranks that die are noticed by the UCX group beside it, which ends a running operation at all ranks.
//
// NCCL's library is opened when the first group is made (libnccl.so.2), so that programs start on machines without it.
#ifndef PERIGEE_TRANSPORT_COLLECTIVE_NCCL_COLLECTIVE_H_
#define PERIGEE_TRANSPORT_COLLECTIVE_NCCL_COLLECTIVE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "transport/collective/collective.h"
#include "transport/collective/rendezvous.h"

namespace perigee::transport {

// `device` as CUDA numbers them in this process; options.blob is NCCL's and must be empty. UNIMPLEMENTED "built without
// NCCL" in programs built without CUDA or NCCL; UNAVAILABLE without a GPU, a driver or libnccl.so.2; else the errors of
// Rendezvous. A rank that fails alone, before the rendezvous, leaves the others waiting until their deadline.
absl::StatusOr<std::unique_ptr<Collective>> CreateNcclCollective(const GroupOptions& options, int device,
                                                                 absl::Time deadline);

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_COLLECTIVE_NCCL_COLLECTIVE_H_
