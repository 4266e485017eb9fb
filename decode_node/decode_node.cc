#include "decode_node/decode_node.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "base/status.h"
#include "decode_node/stop_text.h"
#include "model/sampler.h"

namespace perigee::decode_node {
namespace {

std::span<const int32_t> PromptOf(const v1::GenerateRequest& request) {
  return {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())};
}

absl::Status CheckDigest(const char* what, const std::string& wanted, const Digest& served) {
  if (wanted.empty() || wanted == AsView(served)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the request is for ", what, " ",
                   ToHex(std::span(reinterpret_cast<const uint8_t*>(wanted.data()), wanted.size())),
                   ", this node serves ", ToHex(served)));
}

}  // namespace

absl::Status DecodeNode::CheckRequest(const v1::GenerateRequest& request) const {
  if (request.max_tokens() == 0) return absl::InvalidArgumentError("max_tokens is 0; ask for at least one token");
  PERIGEE_RETURN_IF_ERROR(node_->CheckPrompt(PromptOf(request), request.max_tokens()));
  PERIGEE_RETURN_IF_ERROR(CheckDigest("model", request.model_fingerprint(), node_->model().fingerprint()));
  return CheckDigest("plan", request.plan_id(), node_->model().plan().id());
}

absl::StatusOr<std::unique_ptr<node::PromptFetch>> DecodeNode::FetchPrompt(const v1::GenerateRequest& request,
                                                                           const pod::Identity& identity,
                                                                           model::PlaneCache& cache) const {
  const int64_t cached = request.token_ids_size() - 1;
  if (cached == 0) return nullptr;
  const std::vector<pod::BlockKey> keys =
      pod::DeriveChain(identity, PromptOf(request).first(static_cast<size_t>(cached)));
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<node::PromptFetch> fetch,
                           node::PromptFetch::Start(*node_, identity, keys, cached, cache));
  PERIGEE_RETURN_IF_ERROR(fetch->status());
  return fetch;
}

void DecodeNode::Describe(const v1::GenerateRequest& request, const node::PromptFetch* fetch,
                          v1::GenerateEvent::Started* started) const {
  const pod::Layout& layout = node_->model().layout();
  const pod::Window& window = layout.plan().window();
  const int64_t cached = request.token_ids_size() - 1;
  started->set_near_sink_end(std::min<int64_t>(pod::SinkEnd(window, layout.block_tokens()), cached + 1));
  started->set_near_recent_begin(pod::RecentBegin(window, layout.block_tokens(), cached));
  started->set_fetched_tokens(static_cast<uint32_t>(cached));
  if (fetch == nullptr) return;
  const auto us = [](absl::Duration d) { return static_cast<uint64_t>(absl::ToInt64Microseconds(d)); };
  started->set_bytes_fetched(fetch->bytes());
  started->set_planes_fetched(fetch->planes());
  started->set_planes_from_ssd(fetch->planes_from_ssd());
  started->set_planes_from_dram(fetch->planes() - fetch->planes_from_ssd());
  started->set_acquire_us(us(fetch->acquire_time()));
  started->set_fetch_us(us(fetch->fetch_time()));
  started->set_exposed_fetch_us(us(fetch->exposed_time()));
}

absl::Status DecodeNode::Generate(const v1::GenerateRequest& request,
                                  const std::function<bool(const v1::GenerateEvent&)>& emit) const {
  const absl::Time arrival = absl::Now();
  PERIGEE_RETURN_IF_ERROR(CheckRequest(request));
  PERIGEE_ASSIGN_OR_RETURN(const pod::Identity identity, node_->IdentityFor(request.scope()));
  PERIGEE_ASSIGN_OR_RETURN(
      model::Sampler sampler,
      model::Sampler::Create({.temperature = request.temperature(),
                              .top_k = static_cast<int>(std::min<uint32_t>(request.top_k(), INT32_MAX)),
                              .top_p = request.top_p() == 0 ? 1.0 : request.top_p(),
                              .seed = request.seed()}));
  const auto cancelled = [] { return absl::CancelledError("the caller is gone"); };
  model::PlaneCache cache = node_->NewCache();
  v1::GenerateEvent event;
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<node::PromptFetch> fetch, FetchPrompt(request, identity, cache));

  const model::ServedModel& model = node_->model();
  const std::vector<int32_t>& eos =
      model.tokenizer().eos_ids().empty() ? model.transformer().config().eos_ids : model.tokenizer().eos_ids();
  model::StreamDecoder text(model.tokenizer());
  StopText stop({request.stop().begin(), request.stop().end()});
  std::vector<float> logits;
  int32_t token = request.token_ids(request.token_ids_size() - 1);
  std::string reason = "length";
  absl::Time first;
  uint32_t count = 0;
  while (count < request.max_tokens() && !stop.stopped()) {
    PERIGEE_RETURN_IF_ERROR(model.transformer().Forward(std::span(&token, 1), cache, model::Logits::kLast, &logits));
    if (count == 0) {
      // Only now: the first pass waits for planes, and ends with their error if one is wrong.
      Describe(request, fetch.get(), event.mutable_started());
      if (!emit(event)) return cancelled();
    }
    cache.RetireProximal(cache.tokens());
    PERIGEE_ASSIGN_OR_RETURN(token, sampler.Sample(logits));
    if (count++ == 0) first = absl::Now();
    const bool ends = !request.ignore_eos() && std::find(eos.begin(), eos.end(), token) != eos.end();
    v1::GenerateEvent::Token* out = event.mutable_token();
    out->Clear();
    out->set_id(token);
    if (!ends) {
      PERIGEE_ASSIGN_OR_RETURN(const std::string piece, text.Push(token));
      out->set_text(stop.Push(piece));
    }
    if (request.return_logits()) out->mutable_logits()->Assign(logits.begin(), logits.end());
    if (!emit(event)) return cancelled();
    if (ends) {
      reason = "eos";
      break;
    }
  }
  v1::GenerateEvent::Finished* finished = event.mutable_finished();
  std::string rest = stop.Push(text.Finish());  // Before Finish: arguments of one call have no order.
  rest += stop.Finish();
  finished->set_text(std::move(rest));
  if (stop.stopped()) reason = "stop";
  finished->set_reason(reason);
  finished->set_tokens(count);
  finished->set_first_token_us(static_cast<uint64_t>(absl::ToInt64Microseconds(first - arrival)));
  finished->set_decode_us(node::MicrosecondsSince(first));
  return emit(event) ? absl::OkStatus() : cancelled();
}

}  // namespace perigee::decode_node
