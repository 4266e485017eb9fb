#include "replay/generator.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <queue>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace perigee::bench {
namespace {

// Standard library distributions differ from one library to the next; these do not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {  // SplitMix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) / 9007199254740992.0; }
  double Exponential(double mean) { return -mean * std::log(Uniform()); }
  double LogNormal(double median, double sigma) {
    const double normal = std::sqrt(-2 * std::log(Uniform())) * std::cos(2 * std::numbers::pi * Uniform());
    return median * std::exp(sigma * normal);
  }
  uint32_t Tokens(double median, double sigma) {
    return static_cast<uint32_t>(std::clamp(LogNormal(median, sigma), 1.0, 200000.0));
  }
  // In [0, n), the i-th with probability proportional to 1 / (i + 1).
  size_t Zipf(size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += 1.0 / static_cast<double>(i + 1);
    double left = Uniform() * sum;
    for (size_t i = 0; i < n; ++i) {
      left -= 1.0 / static_cast<double>(i + 1);
      if (left <= 0) return i;
    }
    return n - 1;
  }

 private:
  uint64_t state_;
};

uint64_t Combine(uint64_t a, uint64_t b) { return Random(a ^ (b * 0x9e3779b97f4a7c15u)).Next(); }

struct Text {
  uint64_t name = 0;
  uint32_t tokens = 0;
};
using Prompt = std::vector<Text>;

// One id per block, over everything up to its end.
std::vector<uint64_t> HashIds(const Prompt& prompt) {
  std::vector<uint64_t> ids;
  uint64_t hash = 0;
  uint32_t room = kTraceBlockTokens;
  for (const Text& text : prompt) {
    for (uint32_t at = 0; at < text.tokens;) {
      const uint32_t taken = std::min(room, text.tokens - at);
      hash = Combine(Combine(hash, text.name), uint64_t{at} << 32 | taken);
      at += taken;
      room -= taken;
      if (room == 0) {
        ids.push_back(hash);
        room = kTraceBlockTokens;
      }
    }
  }
  if (room < kTraceBlockTokens) ids.push_back(hash);
  return ids;
}

constexpr double kCampaignSeconds = 600;
constexpr size_t kCampaignTexts = 100;

enum class Kind { kConversation, kDocument, kOnce, kAgent, kCampaign };

struct Session {
  double at_s = 0;  // Of the next request.
  uint64_t number = 0;
  Kind kind{};
  bool started = false;
  Prompt prompt;
  friend bool operator>(const Session& a, const Session& b) {
    return std::pair(a.at_s, a.number) > std::pair(b.at_s, b.number);
  }
};

class Generator {
 public:
  Generator(const Mix& mix, uint64_t seed) : mix_(mix), random_(seed) {
    for (int i = 0; i < 24; ++i) system_prompts_.push_back(NewText(900, 0.6));
    for (int i = 0; i < 6; ++i) tool_prompts_.push_back(NewText(6000, 0.5));
  }

  Trace Run(size_t requests) {
    double next_start_s = 0;
    std::priority_queue<Session, std::vector<Session>, std::greater<>> sessions;
    TraceBuilder builder;
    const double per_s = mix_.conversations + mix_.documents + mix_.once + mix_.agents + mix_.campaigns;
    for (size_t made = 0; made < requests; ++made) {
      while (sessions.empty() || sessions.top().at_s >= next_start_s) {
        sessions.push({.at_s = next_start_s, .number = ++sessions_, .kind = PickKind(per_s), .prompt = {}});
        next_start_s += random_.Exponential(1 / per_s);
      }
      Session session = sessions.top();
      sessions.pop();
      const double at_s = session.at_s;
      const uint32_t output = Continue(session);
      uint64_t input = 0;
      for (const Text& text : session.prompt) input += text.tokens;
      // Never refused: ids are chained, times ordered, lengths bounded.
      builder.Add(static_cast<int64_t>(at_s * 1000), input, output, HashIds(session.prompt)).IgnoreError();
      if (Goes(session, output)) sessions.push(std::move(session));
    }
    return std::move(builder).Build();
  }

 private:
  Text NewText(double median, double sigma) { return {++texts_, random_.Tokens(median, sigma)}; }

  Kind PickKind(double per_s) {
    double left = random_.Uniform() * per_s;
    if ((left -= mix_.conversations) < 0) return Kind::kConversation;
    if ((left -= mix_.documents) < 0) return Kind::kDocument;
    if ((left -= mix_.once) < 0) return Kind::kOnce;
    return (left -= mix_.agents) < 0 ? Kind::kAgent : Kind::kCampaign;
  }

  // Makes the session's prompt the next request's; returns its answer's length.
  uint32_t Continue(Session& session) {
    switch (session.kind) {
      case Kind::kConversation:
        if (!session.started) session.prompt = {system_prompts_[random_.Zipf(system_prompts_.size())]};
        session.prompt.push_back(NewText(250, 1.0));
        break;
      case Kind::kDocument: {
        if (documents_.empty() || random_.Uniform() < 0.2) {
          documents_.push_back(NewText(16000, 0.8));
          session.prompt = {documents_.back()};
        } else {
          session.prompt = {documents_[documents_.size() - 1 - random_.Zipf(documents_.size())]};
        }
        session.prompt.push_back(NewText(60, 0.5));
        break;
      }
      case Kind::kOnce:
        session.prompt = {NewText(12000, 0.8)};
        break;
      case Kind::kCampaign: {
        const auto campaign = static_cast<size_t>(session.at_s / kCampaignSeconds);
        while (campaign_texts_.size() < (campaign + 1) * kCampaignTexts) campaign_texts_.push_back(NewText(8000, 0.6));
        session.prompt = {campaign_texts_[campaign * kCampaignTexts + random_.Zipf(kCampaignTexts)], NewText(60, 0.5)};
        break;
      }
      case Kind::kAgent:
        if (!session.started) session.prompt = {tool_prompts_[random_.Zipf(tool_prompts_.size())]};
        session.prompt.push_back(session.started ? NewText(700, 1.2) : NewText(150, 0.8));
        break;
    }
    session.started = true;
    return random_.Tokens(session.kind == Kind::kAgent ? 80 : 300, 0.7);
  }

  // Whether there is another request, and when.
  bool Goes(Session& session, uint32_t output) {
    double pause_s = 0;
    switch (session.kind) {
      case Kind::kConversation:
        if (random_.Uniform() < 0.2) return false;
        pause_s = random_.LogNormal(45, 1.3);
        break;
      case Kind::kDocument:
      case Kind::kOnce:
      case Kind::kCampaign:
        return false;
      case Kind::kAgent:
        if (random_.Uniform() < 0.05) return false;
        pause_s = random_.LogNormal(4, 0.8);
        break;
    }
    session.prompt.push_back({++texts_, output});
    uint64_t tokens = 0;
    for (const Text& text : session.prompt) tokens += text.tokens;
    session.at_s += pause_s;
    return tokens < 128000;  // A usual model's context.
  }

  const Mix mix_;
  Random random_;
  uint64_t texts_ = 0, sessions_ = 0;
  std::vector<Text> system_prompts_, tool_prompts_, documents_, campaign_texts_;
};

struct Shape {
  absl::string_view name;
  Mix mix;
};
constexpr Shape kShapes[] = {
    {"mixed", {.conversations = 0.4, .documents = 0.3, .once = 0.2, .agents = 0.02}},
    {"conversations", {.conversations = 1}},
    {"documents", {.documents = 0.7, .once = 0.3}},
    {"agents", {.once = 0.05, .agents = 0.1}},
    {"campaigns", {.conversations = 0.2, .campaigns = 1}},
    {"scans", {.conversations = 0.5, .once = 1}},
};

}  // namespace

absl::StatusOr<Mix> MixOf(absl::string_view shape) {
  for (const Shape& s : kShapes) {
    if (s.name == shape) return s.mix;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("there is no shape \"", shape, "\"; there are ", absl::StrJoin(Shapes(), ", ")));
}

std::vector<absl::string_view> Shapes() {
  std::vector<absl::string_view> names;
  for (const Shape& shape : kShapes) names.push_back(shape.name);
  return names;
}

Trace GenerateTrace(const Mix& mix, uint64_t seed, size_t requests) { return Generator(mix, seed).Run(requests); }

}  // namespace perigee::bench
