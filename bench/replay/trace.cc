#include "replay/trace.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace perigee::bench {
namespace {

// A request of 2^30 tokens is an error of the trace, not a request.
constexpr uint64_t kMaxTokens = uint64_t{1} << 30;

absl::StatusOr<uint64_t> Number(const nlohmann::json& line, const char* field) {
  const auto it = line.find(field);
  if (it == line.end()) return absl::InvalidArgumentError(absl::StrCat("no \"", field, "\""));
  if (!it->is_number_unsigned()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", field, "\" is not a whole number from 0 on"));
  }
  return it->get<uint64_t>();
}

absl::Status AddLine(absl::string_view text, TraceBuilder& builder) {
  const auto line = nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) return absl::InvalidArgumentError("not a JSON object");
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t timestamp, Number(line, "timestamp"));
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t input, Number(line, "input_length"));
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t output, Number(line, "output_length"));
  if (timestamp > uint64_t{1} << 62) return absl::InvalidArgumentError(absl::StrCat("a timestamp of ", timestamp));
  const auto ids = line.find("hash_ids");
  if (ids == line.end() || !ids->is_array()) return absl::InvalidArgumentError("no list \"hash_ids\"");
  std::vector<uint64_t> hash_ids;
  hash_ids.reserve(ids->size());
  for (const auto& id : *ids) {
    if (!id.is_number_unsigned()) {
      return absl::InvalidArgumentError("an entry of \"hash_ids\" is not a whole number from 0 on");
    }
    hash_ids.push_back(id.get<uint64_t>());
  }
  return builder.Add(static_cast<int64_t>(timestamp), input, output, hash_ids);
}

}  // namespace

uint64_t Trace::total_tokens() const {
  uint64_t tokens = 0;
  for (const TraceRequest& r : requests) tokens += r.input_tokens;
  return tokens;
}

struct TraceBuilder::State {
  Trace trace;
  absl::flat_hash_map<uint64_t, uint32_t> numbers;
};

TraceBuilder::TraceBuilder() : state_(std::make_unique<State>()) {}
TraceBuilder::~TraceBuilder() = default;
Trace TraceBuilder::Build() && { return std::move(state_->trace); }

absl::Status TraceBuilder::Add(int64_t timestamp_ms, uint64_t input_tokens, uint64_t output_tokens,
                               const std::vector<uint64_t>& hash_ids) {
  Trace& trace = state_->trace;
  if (input_tokens == 0 || input_tokens > kMaxTokens || output_tokens > kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat("a request of ", input_tokens, " input and ", output_tokens,
                                                   " output tokens; 1 to ", kMaxTokens, " and 0 to ", kMaxTokens,
                                                   " are allowed"));
  }
  const uint64_t blocks = (input_tokens + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (hash_ids.size() != blocks) {
    return absl::InvalidArgumentError(absl::StrCat(hash_ids.size(), " hash ids for ", input_tokens,
                                                   " tokens; blocks of ", kTraceBlockTokens, " tokens make ", blocks));
  }
  if (!trace.requests.empty() && timestamp_ms < trace.requests.back().timestamp_ms) {
    return absl::InvalidArgumentError(absl::StrCat("timestamp ", timestamp_ms, " after ",
                                                   trace.requests.back().timestamp_ms, "; sort the trace by time"));
  }
  TraceRequest request{.timestamp_ms = timestamp_ms,
                       .input_tokens = static_cast<uint32_t>(input_tokens),
                       .output_tokens = static_cast<uint32_t>(output_tokens),
                       .blocks = {}};
  request.blocks.reserve(hash_ids.size());
  uint32_t parent = kNoBlock;
  for (const uint64_t id : hash_ids) {
    const auto [it, is_new] = state_->numbers.try_emplace(id, static_cast<uint32_t>(trace.hash_ids.size()));
    if (is_new) {
      trace.hash_ids.push_back(id);
      trace.parents.push_back(parent);
    } else if (trace.parents[it->second] != parent) {
      const auto name = [&](uint32_t b) { return b == kNoBlock ? "no other id" : absl::StrCat(trace.hash_ids[b]); };
      return absl::InvalidArgumentError(absl::StrCat("hash id ", id, " follows ", name(parent), " here and ",
                                                     name(trace.parents[it->second]),
                                                     " before; ids must stand for all that comes before them"));
    }
    parent = it->second;
    request.blocks.push_back(parent);
  }
  trace.requests.push_back(std::move(request));
  return absl::OkStatus();
}

absl::StatusOr<Trace> ParseTrace(absl::string_view text) {
  TraceBuilder builder;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    PERIGEE_RETURN_IF_ERROR(Annotate(AddLine(line, builder), absl::StrCat("line ", number)));
  }
  Trace trace = std::move(builder).Build();
  if (trace.requests.empty()) return absl::InvalidArgumentError("the trace has no requests");
  return trace;
}

std::string FormatTrace(const Trace& trace) {
  std::string text;
  for (const TraceRequest& r : trace.requests) {
    absl::StrAppend(
        &text, "{\"timestamp\": ", r.timestamp_ms, ", \"input_length\": ", r.input_tokens,
        ", \"output_length\": ", r.output_tokens, ", \"hash_ids\": [",
        absl::StrJoin(r.blocks, ", ", [&](std::string* out, uint32_t b) { absl::StrAppend(out, trace.hash_ids[b]); }),
        "]}\n");
  }
  return text;
}

}  // namespace perigee::bench
