// A conversation with the KV store, through the real service and store: whatever a client says, in whatever order,
// there is an answer, and when it has given everything back, no byte is left behind in any tier.
//
// An input is a list of calls: a byte for the method, two for the length of the request, the request (protobuf). So
// that mutations get somewhere, short names stand for real ones: keys of one byte for block keys, ids below 256 for
// those that the store has given, headers of one byte for the header of plane n. A Hello that is answered begins a
// session that says what follows; the secrets are "s" (trusted), "o" (tenant "odd") and "u", with which it begins.
//
// The methods are those of kvstore.proto in its order, then 15: time passes; with 16 added the same call by message,
// where there is one (kvstore/quick_calls.h); 31: a message as it is, a byte for the length of the header, header and
// payload. A header of one byte gets the session's token.
#ifndef PERIGEE_TESTS_FUZZ_KVSTORE_CONVERSATION_H_
#define PERIGEE_TESTS_FUZZ_KVSTORE_CONVERSATION_H_

#include "absl/strings/string_view.h"
#include "kvstore/store.h"

namespace perigee::kvstore {

// Aborts where something does not hold. options: which tiers besides memory, empty ones; `now` and `wall` are set here.
// The store is closed when it returns, and what it did with its tiers has ended.
void PlayConversation(absl::string_view input, StoreOptions options);

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_FUZZ_KVSTORE_CONVERSATION_H_
