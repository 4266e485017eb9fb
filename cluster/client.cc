#include "cluster/client.h"

#include <grpcpp/grpcpp.h>

#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/channel.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {
namespace {

constexpr int kMaxAttempts = 3;

// Protobuf's strings are UTF-8; it answers others with an error that does not say so.
absl::Status CheckUtf8(absl::string_view what, absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto at = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
    const unsigned lead = at(i);
    const size_t more = lead < 0x80                   ? 0
                        : lead >= 0xC2 && lead < 0xE0 ? 1
                        : lead >= 0xE0 && lead < 0xF0 ? 2
                        : lead >= 0xF0 && lead < 0xF5 ? 3
                                                      : 4;
    bool valid = more < 4;
    for (size_t k = 1; valid && k <= more; ++k) valid = (at(i + k) & 0xC0) == 0x80;
    // No longer form than needed, no surrogates, nothing above U+10FFFF.
    if (valid && lead == 0xE0) valid = at(i + 1) >= 0xA0;
    if (valid && lead == 0xED) valid = at(i + 1) < 0xA0;
    if (valid && lead == 0xF0) valid = at(i + 1) >= 0x90;
    if (valid && lead == 0xF4) valid = at(i + 1) < 0x90;
    if (!valid)
      return absl::InvalidArgumentError(absl::StrCat(what, " is not valid UTF-8 at byte ", i, "; convert it first"));
    i += 1 + more;
  }
  return absl::OkStatus();
}

absl::Status CheckTexts(const GenerateOptions& options) {
  PERIGEE_RETURN_IF_ERROR(CheckUtf8("the tenant", options.tenant));
  PERIGEE_RETURN_IF_ERROR(CheckUtf8("the salt", options.salt));
  for (const std::string& segment : options.segments) PERIGEE_RETURN_IF_ERROR(CheckUtf8("the prompt", segment));
  for (const std::string& stop : options.stop) PERIGEE_RETURN_IF_ERROR(CheckUtf8("a stop text", stop));
  return absl::OkStatus();
}

template <typename Stub>
absl::StatusOr<v1::NodeInfo> Info(Stub& stub, const std::string& what, absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  v1::NodeInfo info;
  PERIGEE_RETURN_IF_ERROR(Annotate(FromGrpc(stub.Info(&context, v1::NodeInfoRequest(), &info)), what));
  return info;
}

}  // namespace

absl::StatusOr<ClusterAddresses> ClusterAddresses::Read(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, 1 << 20);
  if (!text.ok()) {
    return absl::NotFoundError(absl::StrCat("no cluster is described in ", path, " (", text.status().message(),
                                            "): start one with 'perigee up', or name another file with --cluster"));
  }
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  ClusterAddresses out;
  const auto read = [&](const char* field, std::string& to) {
    if (!json.is_object() || !json.contains(field) || !json[field].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": '", field, "' is missing or not a string"));
    }
    to = json[field].template get<std::string>();
    return absl::OkStatus();
  };
  PERIGEE_RETURN_IF_ERROR(read("store", out.store));
  PERIGEE_RETURN_IF_ERROR(read("prefill", out.prefill));
  PERIGEE_RETURN_IF_ERROR(read("decode", out.decode));
  for (const auto& [field, to] : {std::pair("store_secret_file", &out.store_secret_file),
                                  std::pair("gateway", &out.gateway), std::pair("members", &out.members)}) {
    if (json.contains(field)) PERIGEE_RETURN_IF_ERROR(read(field, *to));
  }
  if (json.contains("admin") && json["admin"].is_array()) {
    for (const auto& address : json["admin"]) {
      if (address.is_string()) out.admin.push_back(address.template get<std::string>());
    }
  }
  return out;
}

absl::Status ClusterAddresses::Write(const std::string& path) const {
  nlohmann::ordered_json json = {{"store", store}, {"prefill", prefill}, {"decode", decode}};
  for (const auto& [field, value] : {std::pair("store_secret_file", store_secret_file), std::pair("gateway", gateway),
                                     std::pair("members", members)}) {
    if (!value.empty()) json[field] = value;
  }
  if (!admin.empty()) json["admin"] = admin;
  return WriteFileAtomically(path, json.dump(2) + "\n");
}

ClusterClient::ClusterClient(const ClusterAddresses& addresses)
    : addresses_(addresses),
      prefill_(v1::PrefillNode::NewStub(ConnectTo(addresses.prefill))),
      decode_(v1::DecodeNode::NewStub(ConnectTo(addresses.decode))) {}

absl::StatusOr<v1::NodeInfo> ClusterClient::PrefillInfo(absl::Duration timeout) {
  return Info(*prefill_, absl::StrCat("prefill node ", addresses_.prefill), timeout);
}

absl::StatusOr<v1::NodeInfo> ClusterClient::DecodeInfo(absl::Duration timeout) {
  return Info(*decode_, absl::StrCat("decode node ", addresses_.decode), timeout);
}

absl::StatusOr<GenerateResult> ClusterClient::Generate(const GenerateOptions& options,
                                                       const std::function<void(absl::string_view)>& on_text) {
  const absl::Time start = absl::Now();
  const absl::Time deadline = start + options.timeout;
  PERIGEE_RETURN_IF_ERROR(CheckTexts(options));
  v1::PrefillRequest prefill;
  prefill.mutable_scope()->set_tenant(options.tenant);
  prefill.mutable_scope()->set_salt(options.salt);
  prefill.set_no_bos(options.no_bos);
  if (!options.token_ids.empty()) {
    prefill.add_segments()->mutable_tokens()->mutable_ids()->Assign(options.token_ids.begin(), options.token_ids.end());
  } else {
    for (const std::string& segment : options.segments) prefill.add_segments()->set_text(segment);
  }

  for (int attempt = 1;; ++attempt) {
    GenerateResult result;
    result.attempts = attempt;
    {
      grpc::ClientContext context;
      context.set_deadline(absl::ToChronoTime(deadline));
      PERIGEE_RETURN_IF_ERROR(Annotate(FromGrpc(prefill_->Prefill(&context, prefill, &result.prefill)),
                                       absl::StrCat("prefill node ", addresses_.prefill)));
    }
    v1::GenerateRequest request;
    *request.mutable_scope() = prefill.scope();
    *request.mutable_token_ids() = result.prefill.token_ids();
    request.set_model_fingerprint(result.prefill.model_fingerprint());
    request.set_plan_id(result.prefill.plan_id());
    request.set_max_tokens(options.max_tokens);
    request.set_temperature(static_cast<float>(options.temperature));
    request.set_top_p(static_cast<float>(options.top_p));
    request.set_top_k(options.top_k);
    request.set_seed(options.seed);
    request.set_ignore_eos(options.ignore_eos);
    request.set_return_logits(options.return_logits);
    for (const std::string& stop : options.stop) request.add_stop(stop);
    const absl::Status status = Decode(options, request, start, deadline, on_text, result);
    if (status.ok()) return result;
    const bool retryable = absl::IsNotFound(status) && result.token_ids.empty() && attempt < kMaxAttempts;
    if (!retryable) return Annotate(status, absl::StrCat("decode node ", addresses_.decode));
  }
}

absl::Status ClusterClient::Decode(const GenerateOptions& options, const v1::GenerateRequest& request, absl::Time start,
                                   absl::Time deadline, const std::function<void(absl::string_view)>& on_text,
                                   GenerateResult& result) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader = decode_->Generate(&context, request);
  v1::GenerateEvent event;
  absl::Time first;
  absl::Time last;
  while (reader->Read(&event)) {
    if (event.has_started()) result.started = event.started();
    if (event.has_finished()) result.finished = event.finished();
    if (event.has_token()) {
      last = absl::Now();
      if (result.token_ids.empty()) {
        first = last;
        result.time_to_first_token = first - start;
      }
      result.token_ids.push_back(event.token().id());
      if (options.return_logits) {
        result.logits.emplace_back(event.token().logits().begin(), event.token().logits().end());
      }
    }
    const std::string& piece = event.has_token() ? event.token().text() : event.finished().text();
    result.text += piece;
    if (on_text && !piece.empty()) on_text(piece);
  }
  PERIGEE_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  if (result.token_ids.size() > 1 && last > first) {
    result.tokens_per_s = static_cast<double>(result.token_ids.size() - 1) / absl::ToDoubleSeconds(last - first);
  }
  return absl::OkStatus();
}

}  // namespace perigee::cluster
