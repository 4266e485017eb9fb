// Whatever the bytes, an accepted plan is written and read back as the same plan, and a layout of it can be made or is
// refused.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "pod/layout.h"
#include "pod/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using perigee::pod::Plan;
  const absl::StatusOr<Plan> plan = Plan::Parse({reinterpret_cast<const char*>(data), size});
  if (!plan.ok()) return 0;
  const absl::StatusOr<Plan> again = Plan::Parse(plan->ToJson());
  if (!again.ok() || again->id() != plan->id() || again->model_fingerprint() != plan->model_fingerprint()) std::abort();
  (void)perigee::pod::Layout::Create(*plan, 64);
  return 0;
}
