// Internal to the room: what a call is called in traces.
#ifndef PERIGEE_KVSTORE_CALL_NAME_H_
#define PERIGEE_KVSTORE_CALL_NAME_H_

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace perigee::kvstore {

// "Lookup", of v1::LookupRequest.
template <typename Request>
absl::string_view CallName() {
  return absl::StripSuffix(Request::descriptor()->name(), "Request");
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_CALL_NAME_H_
