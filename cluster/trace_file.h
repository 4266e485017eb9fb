// One request's spans, collected from all processes that had a part in it, as a file for Perfetto or Chrome's tracing.
//
// Clocks of hosts differ: each process is asked a few times, and the fastest answer says by how much its clock is off,
// to within half the time that it took. Where that is less than what can be known, its times stay as they are.
#ifndef PERIGEE_CLUSTER_TRACE_FILE_H_
#define PERIGEE_CLUSTER_TRACE_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/membership/membership.h"
#include "perigee/v1/admin.pb.h"

namespace perigee::cluster {

struct NodeTrace {
  NodeRecord node;
  absl::Status status;  // Of asking it.
  v1::TraceResponse trace;
  int64_t clock_ahead_us = 0;  // Of this process's clock.
};

// Asks all at once, with the secret that they want of operators ("": none).
std::vector<NodeTrace> CollectTrace(const std::vector<NodeRecord>& nodes, const std::string& secret,
                                    const std::string& request_id, absl::Duration timeout);

// The Trace Event Format: {"traceEvents": [...]}, a "process" for each node that has spans, times of this process's
// clock. Nodes that did not answer are named under "otherData".
std::string TraceToJson(const std::string& request_id, const std::vector<NodeTrace>& nodes);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_TRACE_FILE_H_
