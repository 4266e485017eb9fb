#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/tokenizer_pretokenize.h"

#include <pcre2.h>

#include <utility>

#include "base/status.h"

namespace perigee::model {
namespace {

constexpr size_t kMaxPatternBytes = 16 << 10;
constexpr uint32_t kMatchLimit =
    10'000'000;  // of PCRE2's internal steps, from one starting point: a fraction of a second
constexpr uint32_t kHeapLimitKib = 256 << 10;

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct CompileContextDeleter {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) return absl::StrCat("PCRE2 error ", code);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

const char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct RegexSplitter::Code {
  pcre2_code* compiled = nullptr;
  ~Code() { pcre2_code_free(compiled); }
};

RegexSplitter::RegexSplitter(std::unique_ptr<Code> code) : code_(std::move(code)) {}
RegexSplitter::RegexSplitter(RegexSplitter&&) noexcept = default;
RegexSplitter& RegexSplitter::operator=(RegexSplitter&&) noexcept = default;
RegexSplitter::~RegexSplitter() = default;

absl::StatusOr<RegexSplitter> RegexSplitter::Compile(absl::string_view pattern, bool literal) {
  if (pattern.empty() || pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a pre-tokenizer pattern has 1 to ", kMaxPatternBytes, " bytes, not ", pattern.size()));
  }
  const uint32_t options =
      literal ? (PCRE2_LITERAL | PCRE2_UTF) : (PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_DUPNAMES);
  const std::unique_ptr<pcre2_compile_context, CompileContextDeleter> context(pcre2_compile_context_create(nullptr));
  if (context == nullptr) return absl::ResourceExhaustedError("PCRE2 could not allocate a context");
  pcre2_set_parens_nest_limit(context.get(), 64);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_unique<Code>();
  code->compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error, &offset,
                                 context.get());
  if (code->compiled == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the pre-tokenizer pattern \"", pattern.substr(0, 200),
                                                   "\" does not compile at byte ", offset, ": ", ErrorText(error)));
  }
  // Where there is no JIT, matching is interpreted: slower, the same words.
  (void)pcre2_jit_compile(code->compiled, PCRE2_JIT_COMPLETE);
  return RegexSplitter(std::move(code));
}

absl::Status RegexSplitter::Split(absl::string_view text, std::vector<absl::string_view>& words) const {
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, MatchContextDeleter> context(pcre2_match_context_create(nullptr));
  if (data == nullptr || context == nullptr) return absl::ResourceExhaustedError("PCRE2 could not allocate match data");
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t at = 0;
  while (at < text.size()) {
    constexpr uint32_t kOptions = PCRE2_NOTEMPTY | PCRE2_NO_UTF_CHECK;
    int result = pcre2_match(code_->compiled, subject, text.size(), at, kOptions, data.get(), context.get());
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
      result =
          pcre2_match(code_->compiled, subject, text.size(), at, kOptions | PCRE2_NO_JIT, data.get(), context.get());
    }
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return absl::ResourceExhaustedError(absl::StrCat("the pre-tokenizer's pattern failed at byte ", at,
                                                       " of a piece of ", text.size(), " bytes: ", ErrorText(result)));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    const size_t begin = range[0], end = range[1];
    if (begin < at || end <= begin || end > text.size()) {  // \K can do this
      return absl::InvalidArgumentError("the pre-tokenizer's pattern matches outside of where it was applied (\\K?)");
    }
    if (begin > at) words.push_back(text.substr(at, begin - at));
    words.push_back(text.substr(begin, end - begin));
    at = end;
  }
  if (at < text.size()) words.push_back(text.substr(at));
  return absl::OkStatus();
}

absl::Status PreTokenizer::Split(absl::string_view text, std::vector<absl::string_view>& words,
                                 std::deque<std::string>& owned) const {
  words = {text};
  std::vector<absl::string_view> next;
  for (const Step& step : steps_) {
    next.clear();
    for (const absl::string_view word : words) {
      if (step.splitter != nullptr) {
        PERIGEE_RETURN_IF_ERROR(step.splitter->Split(word, next));
      } else if (word[0] != ' ') {
        owned.push_back(absl::StrCat(" ", word));
        next.push_back(owned.back());
      } else {
        next.push_back(word);
      }
    }
    words.swap(next);
  }
  return absl::OkStatus();
}

}  // namespace perigee::model
