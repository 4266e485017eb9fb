#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/time/time.h"
#include "base/status.h"
#include "base/trace.h"

namespace perigee {
namespace {

// "[request] " in front of a line's text.
class RequestFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg&, const std::tm&, spdlog::memory_buf_t& out) override {
    const absl::string_view id = CurrentRequest();
    if (id.empty()) return;
    const std::string text = absl::StrCat("[", id, "] ");
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<RequestFlag>(); }
};

// Of the character that the text begins with; 0 where it begins with none. (Overlong forms and surrogates pass: readers
// accept or replace them.)
size_t Utf8Length(absl::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  return length;
}

// Messages may hold anything that a client sent: bytes that are no text become U+FFFD.
void AppendJsonText(absl::string_view text, std::string* out) {
  out->push_back('"');
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    const char c = text[0];
    if (length == 0) {
      out->append("\\ufffd");
    } else if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", c);
      out->append(escaped);
    } else {
      out->append(text.data(), length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  out->push_back('"');
}

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto view = [](const spdlog::string_view_t& text) { return absl::string_view(text.data(), text.size()); };
    std::string line = absl::StrCat(
        "{\"time\":\"", absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::FromChrono(message.time), absl::UTCTimeZone()),
        "\",\"level\":\"", view(spdlog::level::to_string_view(message.level)), "\",\"process\":");
    AppendJsonText(view(message.logger_name), &line);
    if (const absl::string_view id = CurrentRequest(); !id.empty()) {
      line += ",\"request_id\":";
      AppendJsonText(id, &line);
    }
    line += ",\"message\":";
    AppendJsonText(view(message.payload), &line);
    line += "}\n";
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

}  // namespace

absl::Status InitLogging(const std::string& process, const std::string& level, const std::string& format) {
  const spdlog::level::level_enum parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown log level '", level, "': use trace, debug, info, warn, error or off"));
  }
  auto logger = std::make_shared<spdlog::logger>(process, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  if (format == "json") {
    logger->set_formatter(std::make_unique<JsonFormatter>());
  } else if (format == "text") {
    auto text = std::make_unique<spdlog::pattern_formatter>();
    text->add_flag<RequestFlag>('*').set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %n: %*%v");
    logger->set_formatter(std::move(text));
  } else {
    return absl::InvalidArgumentError(absl::StrCat("unknown log format '", format, "': use text or json"));
  }
  logger->set_level(parsed);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

}  // namespace perigee
