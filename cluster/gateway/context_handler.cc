#include "cluster/gateway/context_handler.h"

#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/gateway/request_fields.h"

namespace perigee::cluster {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kDefaultLimit = 100, kMaxLimit = 1000;

Json ContextJson(const ContextInfo& info) {
  const ContextRecord& record = info.record;
  Json json = {{"id", record.id},
               {"object", "context"},
               {"version", record.version},
               {"tokens", record.tokens},
               {"bytes", record.bytes},
               {"created", absl::ToUnixSeconds(record.created)},
               {"changed", absl::ToUnixSeconds(record.changed)},
               {"state", ContextStateName(info.progress.state)}};
  if (!info.progress.error.empty()) json["error"] = info.progress.error;
  return json;
}

// As OpenAI's errors: with what is wrong, where that is not said yet, and the code that clients look for.
absl::Status ForClients(const absl::Status& status, absl::string_view param) {
  bool said = false;
  status.ForEachPayload([&said](absl::string_view, const absl::Cord&) { said = true; });
  if (said) return status;
  if (absl::IsNotFound(status)) return WithDetails(status, param, "context_not_found");
  if (absl::IsFailedPrecondition(status)) return HttpError(409, status.message(), "context_unusable");
  if (absl::IsInvalidArgument(status)) return WithDetails(status, param);
  return status;
}

template <typename T>
void Answer(const absl::StatusOr<T>& json, HttpExchange& exchange, httplib::Response& response) {
  if (!json.ok()) return AnswerError(ForClients(json.status(), ""), exchange, response);
  response.status = 200;
  // Errors that are shown may have other processes' bytes in them.
  response.set_content(json->dump(-1, ' ', false, Json::error_handler_t::replace), "application/json");
}

std::string IdOf(const httplib::Request& request) { return request.matches[1].str(); }

absl::StatusOr<size_t> LimitOf(const httplib::Request& request) {
  if (!request.has_param("limit")) return kDefaultLimit;
  const std::string text = request.get_param_value("limit");
  size_t limit = 0;
  if (!absl::SimpleAtoi(text, &limit) || limit < 1 || limit > kMaxLimit) {
    return Invalid("limit", absl::StrCat("is not a whole number from 1 to ", kMaxLimit));
  }
  return limit;
}

}  // namespace

bool IsContextsPath(absl::string_view path) {
  return path == kContextsPath || absl::StartsWith(path, absl::StrCat(kContextsPath, "/"));
}

std::vector<std::string> ContextMethods(absl::string_view path) {
  if (path == kContextsPath) return {"GET", "HEAD"};
  return {"GET", "HEAD", "PUT", "DELETE"};
}

absl::StatusOr<ContextContent> ParseContextBody(absl::string_view body, bool is_json) {
  if (!is_json) return ContextContent(std::string(body));
  PERIGEE_ASSIGN_OR_RETURN(const RequestJson json, ParseBody(body));
  const Fields fields(json);
  const RequestJson* text = fields.Find("text");
  const RequestJson* ids = fields.Find("token_ids");
  if ((text == nullptr) == (ids == nullptr)) {
    return Invalid(text == nullptr ? "text" : "token_ids",
                   text == nullptr ? "is missing, and so is \"token_ids\": one of the two is needed"
                                   : "cannot stand beside \"text\": one of the two is needed");
  }
  if (text != nullptr) {
    if (!text->is_string()) return Invalid("text", absl::StrCat("is ", Shown(*text), "; a text is needed"));
    return ContextContent(text->get<std::string>());
  }
  if (!ids->is_array()) return Invalid("token_ids", absl::StrCat("is ", Shown(*ids), "; a list of ids is needed"));
  PERIGEE_ASSIGN_OR_RETURN(std::vector<int32_t> list, TokenIds("token_ids", *ids));
  return ContextContent(std::move(list));
}

absl::StatusOr<std::vector<SharedTokens>> ResolveContexts(ContextService* service, const std::string& tenant,
                                                          const CompletionCall& call) {
  std::vector<SharedTokens> all;
  if (call.contexts.empty()) return all;
  if (service == nullptr) return Unsupported("contexts");
  std::map<std::string, SharedTokens> by_id;  // Each looked at once, so that one request has one version of it.
  for (const std::string& id : call.contexts) {
    SharedTokens& tokens = by_id[id];
    if (tokens == nullptr) {
      absl::StatusOr<SharedTokens> resolved = service->Resolve(tenant, id);
      if (!resolved.ok()) return ForClients(resolved.status(), "contexts");
      tokens = *std::move(resolved);
    }
    all.push_back(tokens);
  }
  return all;
}

absl::StatusOr<ContextService*> ContextHandler::Service() const {
  if (options_.contexts != nullptr) return options_.contexts;
  return HttpError(404, "this server keeps no contexts", "unknown_url");
}

void ContextHandler::Put(const httplib::Request& request, const httplib::ContentReader& content, HttpExchange& exchange,
                         httplib::Response& response) {
  Answer(
      [&]() -> absl::StatusOr<Json> {
        PERIGEE_ASSIGN_OR_RETURN(ContextService * service, Service());
        PERIGEE_ASSIGN_OR_RETURN(const std::string body, ReadBody(options_, request, content, exchange));
        const bool plain = absl::StartsWithIgnoreCase(request.get_header_value("Content-Type"), "text/plain");
        PERIGEE_ASSIGN_OR_RETURN(ContextContent parsed, ParseContextBody(body, !plain));
        PERIGEE_ASSIGN_OR_RETURN(const ContextService::PutAnswer put,
                                 service->Put(exchange.record.tenant, IdOf(request), std::move(parsed)));
        Json json = ContextJson(put.info);
        json["new"] = put.created;
        return json;
      }(),
      exchange, response);
}

void ContextHandler::Get(const httplib::Request& request, HttpExchange& exchange, httplib::Response& response) {
  Answer(
      [&]() -> absl::StatusOr<Json> {
        PERIGEE_ASSIGN_OR_RETURN(ContextService * service, Service());
        PERIGEE_ASSIGN_OR_RETURN(const ContextInfo info, service->Get(exchange.record.tenant, IdOf(request)));
        return ContextJson(info);
      }(),
      exchange, response);
}

void ContextHandler::Delete(const httplib::Request& request, HttpExchange& exchange, httplib::Response& response) {
  Answer(
      [&]() -> absl::StatusOr<Json> {
        PERIGEE_ASSIGN_OR_RETURN(ContextService * service, Service());
        PERIGEE_RETURN_IF_ERROR(service->Delete(exchange.record.tenant, IdOf(request)));
        return Json{{"id", IdOf(request)}, {"object", "context.deleted"}, {"deleted", true}};
      }(),
      exchange, response);
}

void ContextHandler::List(const httplib::Request& request, HttpExchange& exchange, httplib::Response& response) {
  Answer(
      [&]() -> absl::StatusOr<Json> {
        PERIGEE_ASSIGN_OR_RETURN(ContextService * service, Service());
        PERIGEE_ASSIGN_OR_RETURN(const size_t limit, LimitOf(request));
        const std::string after = request.get_param_value("after");
        // One more than asked for tells whether there are more.
        PERIGEE_ASSIGN_OR_RETURN(std::vector<ContextInfo> infos,
                                 service->List(exchange.record.tenant, after, limit + 1));
        Json json = {{"object", "list"}, {"data", Json::array()}, {"has_more", infos.size() > limit}};
        if (infos.size() > limit) infos.resize(limit);
        for (const ContextInfo& info : infos) json["data"].push_back(ContextJson(info));
        return json;
      }(),
      exchange, response);
}

}  // namespace perigee::cluster
