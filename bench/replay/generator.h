// Traces of our own, for where none is given: sessions of five kinds, started by a Poisson process and interleaved in
// time, with all lengths log-normal ("about n": median n) and all choices seeded.
//
//   conversations   one of 24 system prompts (about 900 tokens; popularity 1/rank), then turns: about 250 tokens asked,
//                   about 300 answered, 4 more turns on average; about 45 s between an answer and the next question,
//                   with a long tail. Every prompt repeats all that was said.
//   documents       one of a growing set of documents (about 16,000 tokens) and a question of about 60 tokens. A
//   session is
//                   one request; a fifth of them bring a new document, the rest ask about one of the known, the n-th
//                   newest with probability 1/n.
//   once            a document (about 12,000 tokens) that never comes back.
//   campaigns       one of 100 texts (about 8,000 tokens; popularity 1/rank) and a question of about 60. Every 600 s
//   all 100 are
//                   replaced by others: what was hot is dead at once.
//   agents          one of 6 tool prompts (about 6,000 tokens), then about 20 steps about 4 s apart: a call of about 80
//                   tokens, a result of about 700, with a long tail.
#ifndef PERIGEE_BENCH_REPLAY_GENERATOR_H_
#define PERIGEE_BENCH_REPLAY_GENERATOR_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "replay/trace.h"

namespace perigee::bench {

struct Mix {
  // Sessions started per second.
  double conversations = 0, documents = 0, once = 0, agents = 0, campaigns = 0;
};

// "mixed", "conversations", "documents", "agents", "campaigns", "scans" (conversations with many documents that come
// once).
absl::StatusOr<Mix> MixOf(absl::string_view shape);
std::vector<absl::string_view> Shapes();

// Equal arguments make equal traces.
Trace GenerateTrace(const Mix& mix, uint64_t seed, size_t requests);

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_REPLAY_GENERATOR_H_
