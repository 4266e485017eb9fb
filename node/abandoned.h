// What a request has given up and that cannot end at once: transfers that still write into this node's memory. They
// end on a thread of their own, so that nobody who wanted to be rid of a store that hangs waits for it after all.
#ifndef PERIGEE_NODE_ABANDONED_H_
#define PERIGEE_NODE_ABANDONED_H_

#include <cstddef>
#include <deque>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace perigee::node {

// Any thread may call.
class Abandoned {
 public:
  Abandoned() : thread_([this] { Loop(); }) {}
  // Waits for everything that was taken: at the latest until the store's deadlines.
  ~Abandoned();

  // Destroys it on this object's thread, one after the other: their deadlines run meanwhile, so they do not add up.
  void Take(std::shared_ptr<void> what);
  // Not destroyed yet.
  size_t waiting() const;

 private:
  void Loop();

  mutable absl::Mutex mu_;
  std::deque<std::shared_ptr<void>> waiting_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false, stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_ABANDONED_H_
