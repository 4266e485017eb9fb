// Which blocks this node is computing right now, and for whom: a second request for the same blocks waits for the first
// instead of computing them too.
#ifndef PERIGEE_PREFILL_NODE_COMPUTING_H_
#define PERIGEE_PREFILL_NODE_COMPUTING_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "pod/block_key.h"

namespace perigee::prefill_node {

// Any thread may call.
class Computing {
 public:
  // Blocks that one request is computing; destruction says that it does so no longer.
  class Claim {
   public:
    Claim() = default;
    Claim(Claim&& other) noexcept;
    Claim& operator=(Claim&& other) noexcept;
    ~Claim();

   private:
    friend class Computing;
    Computing* computing_ = nullptr;
    std::vector<pod::BlockKey> keys_;
  };

  // Claims the blocks if nobody computes the first of them; else an empty claim is given, once the blocks that the two
  // have in common are not being computed any more, or at `deadline`: look then what has been stored. Blocks behind the
  // first that somebody else is computing already stay theirs. `cancelled`, where given, is asked now and then and ends
  // the wait.
  bool ClaimOrWait(std::span<const pod::BlockKey> keys, absl::Time deadline, Claim* claim,
                   const std::function<bool()>& cancelled = nullptr);

 private:
  void Release(const std::vector<pod::BlockKey>& keys);

  absl::Mutex mu_;
  absl::flat_hash_map<pod::BlockKey, uint64_t> owners_ ABSL_GUARDED_BY(mu_);  // By block: the claim's number.
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 1;
};

}  // namespace perigee::prefill_node

#endif  // PERIGEE_PREFILL_NODE_COMPUTING_H_
