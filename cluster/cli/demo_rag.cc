#include "cluster/cli/demo_rag.h"

#include <httplib.h>

#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace perigee::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kDocumentBytes = 1500;
constexpr absl::Duration kReadyWithin = absl::Seconds(60);

struct Document {
  const char* id;
  const char* name;  // Of its pass key.
  const char* digits;
  std::string text;
};

// The prose cut into documents, each with a statement about another name in its middle.
absl::StatusOr<std::vector<Document>> MakeDocuments(const std::string& prose) {
  std::vector<Document> documents = {{"genesis-1", "Torvek", "73190", {}},
                                     {"genesis-2", "Braimel", "20458", {}},
                                     {"genesis-3", "Plosun", "61837", {}},
                                     {"genesis-4", "Gadrin", "49526", {}}};
  for (size_t i = 0; i < documents.size(); ++i) {
    if (prose.size() < (i + 1) * kDocumentBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("the prose has ", prose.size(), " bytes; documents need ", documents.size() * kDocumentBytes));
    }
    std::string text = prose.substr(i * kDocumentBytes, kDocumentBytes);
    const size_t middle = text.find('.', kDocumentBytes / 2), end = text.rfind('.');
    if (middle == std::string::npos || middle >= end) {
      return absl::InvalidArgumentError("the prose has no sentences to make documents of");
    }
    documents[i].text = absl::StrCat(text.substr(0, middle + 1), " The pass key for ", documents[i].name, " is ",
                                     documents[i].digits, ".", text.substr(middle + 1, end - middle));
  }
  return documents;
}

class Gateway {
 public:
  explicit Gateway(const std::string& address) : client_(absl::StrCat("http://", address)) {
    client_.set_read_timeout(120);
  }
  absl::StatusOr<Json> Put(const std::string& path, const Json& body) {
    return Parse(client_.Put(path, body.dump(), "application/json"), path);
  }
  absl::StatusOr<Json> Get(const std::string& path) { return Parse(client_.Get(path), path); }
  absl::StatusOr<Json> Post(const std::string& path, const Json& body) {
    return Parse(client_.Post(path, body.dump(), "application/json"), path);
  }

 private:
  static absl::StatusOr<Json> Parse(const httplib::Result& result, const std::string& path) {
    if (!result) {
      return absl::UnavailableError(absl::StrCat("the gateway at ", path, ": ", httplib::to_string(result.error())));
    }
    Json json = Json::parse(result->body, nullptr, false);
    if (result->status != 200 || json.is_discarded()) {
      return absl::InternalError(absl::StrCat("the gateway at ", path, ": ", result->status, " ", result->body));
    }
    return json;
  }
  httplib::Client client_;
};

absl::Status Register(Gateway& gateway, const std::vector<Document>& documents) {
  for (const Document& document : documents) {
    PERIGEE_RETURN_IF_ERROR(
        gateway.Put(absl::StrCat("/v1/contexts/", document.id), {{"text", document.text}}).status());
  }
  const absl::Time deadline = absl::Now() + kReadyWithin;
  for (const Document& document : documents) {
    for (;;) {
      PERIGEE_ASSIGN_OR_RETURN(const Json context, gateway.Get(absl::StrCat("/v1/contexts/", document.id)));
      if (context.value("state", "") == "ready") break;
      if (context.value("state", "") == "failed" || absl::Now() > deadline) {
        return absl::InternalError(absl::StrCat("context ", document.id, " is not ready: ", context.dump()));
      }
      absl::SleepFor(absl::Milliseconds(20));
    }
  }
  return absl::OkStatus();
}

struct Row {
  const char* label;  // Of the report.
  std::vector<int> order;
  int asked;           // Document.
  const char* repair;  // "": the documents are sent as text.
};

}  // namespace

absl::StatusOr<Json> AskAboutDocuments(const std::string& address, const std::string& model, const std::string& prose) {
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<Document> documents, MakeDocuments(prose));
  Gateway gateway(address);
  PERIGEE_RETURN_IF_ERROR(Register(gateway, documents));
  std::printf(
      "\n4. Documents registered once (PUT /v1/contexts), then combined in any order by questions\n"
      "  %-12s %-10s %-18s %-6s  %8s %8s %8s %8s\n",
      "asked about", "documents", "repair", "answer", "prompt", "reused", "computed", "ms");
  const Row rows[] = {{"text", {2, 0, 3, 1}, 0, ""},
                      {"none", {2, 0, 3, 1}, 0, "none"},
                      {"prefix", {1, 3, 0, 2}, 3, "prefix:16"},
                      {"deviation", {3, 1, 0}, 1, "deviation:0.15"},
                      {"parallel", {0, 2, 1, 3}, 2, "parallel:1:1"}};
  Json report = Json::array();
  for (const Row& row : rows) {
    const Document& asked = documents[static_cast<size_t>(row.asked)];
    const std::string question = absl::StrCat(" What is the pass key for ", asked.name, "? ");
    Json body = {{"model", model}, {"max_tokens", 6}, {"temperature", 0}, {"ignore_eos", true}};
    std::string text;
    Json ids = Json::array();
    for (const int i : row.order) {
      text += documents[static_cast<size_t>(i)].text;
      ids.push_back(documents[static_cast<size_t>(i)].id);
    }
    if (*row.repair == '\0') {
      body["prompt"] = text + question;
      body["cache_salt"] = "nothing is stored under it";
    } else {
      body["contexts"] = ids;
      body["context_repair"] = row.repair;
      body["prompt"] = question;
    }
    const absl::Time start = absl::Now();
    PERIGEE_ASSIGN_OR_RETURN(const Json answer, gateway.Post("/v1/completions", body));
    const double ms = absl::ToDoubleMilliseconds(absl::Now() - start);
    const std::string said = answer.at("choices").at(0).at("text").get<std::string>();
    const std::string digits = said.substr(0, said.find('.'));
    const int64_t prompt = answer.at("usage").at("prompt_tokens").get<int64_t>();
    const int64_t reused = answer.at("usage").at("prompt_tokens_details").at("cached_tokens").get<int64_t>();
    report.push_back({{"name", row.label},
                      {"repair", row.repair},
                      {"prompt_tokens", prompt},
                      {"reused_tokens", reused},
                      {"computed_tokens", prompt - reused},
                      {"ms", ms},
                      {"answer", digits},
                      {"expected", asked.digits}});
    const std::string order =
        absl::StrJoin(row.order, ",", [](std::string* out, int i) { absl::StrAppend(out, i + 1); });
    std::printf("  %-12s %-10s %-18s %-6s  %8lld %8lld %8lld %8.1f\n", asked.name, order.c_str(),
                *row.repair == '\0' ? "sent as text" : row.repair, digits.c_str(), static_cast<long long>(prompt),
                static_cast<long long>(reused), static_cast<long long>(prompt - reused), ms);
    std::fflush(stdout);
    if (digits != asked.digits) {
      return absl::InternalError(
          absl::StrCat("the answer to ", row.label, " is '", said, "', expected ", asked.digits));
    }
  }
  std::printf("  (ms: until the whole answer of 6 tokens was here)\n");
  return report;
}

}  // namespace perigee::cli
