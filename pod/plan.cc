#include "pod/plan.h"

#include <algorithm>

#include "base/status.h"

namespace perigee::pod {
namespace {

// Outward to block borders (pod/window.h): the only rule so far; its number is part of every plan id.
constexpr uint8_t kRoundOutwardToBlocks = 1;

Digest ComputeId(const Plan& plan) {
  ByteWriter w;
  w.Raw("perigee.plan.v1");
  w.U32(static_cast<uint32_t>(plan.shape().layers));
  w.U32(static_cast<uint32_t>(plan.shape().kv_heads));
  w.U32(static_cast<uint32_t>(plan.shape().head_dim));
  w.U32(static_cast<uint32_t>(plan.window().sink_tokens));
  w.U32(static_cast<uint32_t>(plan.window().recent_tokens));
  w.U8(kRoundOutwardToBlocks);
  w.U8(static_cast<uint8_t>(plan.sharing()));
  w.U8(static_cast<uint8_t>(plan.near_codec()));
  for (int l = 0; l < plan.shape().layers; ++l) {
    for (int h = 0; h < plan.shape().kv_heads; ++h) {
      const Slot& slot = plan.slot(l, h);
      w.U8(static_cast<uint8_t>(slot.role));
      w.U16(static_cast<uint16_t>(slot.lead.layer));
      w.U16(static_cast<uint16_t>(slot.lead.kv_head));
      w.U8(static_cast<uint8_t>(slot.far_codec));
    }
  }
  return Sha256(w.bytes());
}

std::string SlotName(int layer, int kv_head) { return absl::StrCat("slot (layer ", layer, ", kv head ", kv_head, ")"); }

}  // namespace

absl::Status ValidateShape(const KvShape& shape) {
  const auto bad = [](const char* field, int value, const char* rule) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", rule));
  };
  if (shape.layers < 1 || shape.layers > 1024) return bad("layers", shape.layers, "between 1 and 1024");
  if (shape.kv_heads < 1 || shape.kv_heads > 1024) return bad("kv_heads", shape.kv_heads, "between 1 and 1024");
  if (shape.head_dim < 2 || shape.head_dim > 1024 || shape.head_dim % 2 != 0) {
    return bad("head_dim", shape.head_dim, "even and between 2 and 1024");
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> Plan::Create(const KvShape& shape, const Window& window, Sharing sharing, Codec near_codec,
                                  std::vector<Slot> slots, const Digest& model_fingerprint) {
  PERIGEE_RETURN_IF_ERROR(ValidateShape(shape));
  PERIGEE_RETURN_IF_ERROR(ValidateWindow(window));
  if (slots.size() != static_cast<size_t>(shape.slots())) {
    return absl::InvalidArgumentError(absl::StrCat("a plan for ", shape.layers, " layers of ", shape.kv_heads,
                                                   " kv heads has ", shape.slots(), " slots, this has ", slots.size()));
  }
  for (int l = 0; l < shape.layers; ++l) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      Slot& slot = slots[static_cast<size_t>(l * shape.kv_heads + h)];
      if (slot.role != Role::kFollower) {
        slot.lead = SlotId{l, h};
        // Nothing distant is written for a near-only slot: one spelling, so that equal plans have equal ids.
        if (slot.role == Role::kNearOnly) slot.far_codec = near_codec;
        continue;
      }
      const SlotId lead = slot.lead;
      if (lead.layer < 0 || lead.layer > l || lead.kv_head < 0 || lead.kv_head >= shape.kv_heads) {
        return absl::InvalidArgumentError(absl::StrCat(SlotName(l, h), " follows ", SlotName(lead.layer, lead.kv_head),
                                                       ": a lead lies in the same or a lower layer of this model"));
      }
      if (slots[static_cast<size_t>(lead.layer * shape.kv_heads + lead.kv_head)].role != Role::kLead) {
        return absl::InvalidArgumentError(
            absl::StrCat(SlotName(l, h), " follows ", SlotName(lead.layer, lead.kv_head), ", which is not a lead"));
      }
    }
  }
  Plan plan;
  plan.shape_ = shape;
  plan.window_ = window;
  plan.sharing_ = sharing;
  plan.near_codec_ = near_codec;
  plan.slots_ = std::move(slots);
  plan.model_fingerprint_ = model_fingerprint;
  plan.id_ = ComputeId(plan);
  return plan;
}

absl::StatusOr<Plan> Plan::Identity(const KvShape& shape, const Window& window, const Digest& model_fingerprint,
                                    Codec codec) {
  PERIGEE_RETURN_IF_ERROR(ValidateShape(shape));
  std::vector<Slot> slots(static_cast<size_t>(shape.slots()));
  for (Slot& slot : slots) slot.far_codec = codec;
  return Create(shape, window, Sharing::kKey, codec, std::move(slots), model_fingerprint);
}

absl::StatusOr<Plan> Plan::ForHeads(int first_head, int heads) const {
  if (first_head < 0 || heads < 1 || first_head > shape_.kv_heads - heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv heads [", first_head, ", +", heads, ") of a plan for ", shape_.kv_heads, " kv heads"));
  }
  const auto inside = [&](int head) { return head >= first_head && head < first_head + heads; };
  KvShape shape = shape_;
  shape.kv_heads = heads;
  std::vector<Slot> slots;
  for (int l = 0; l < shape_.layers; ++l) {
    for (int h = 0; h < shape_.kv_heads; ++h) {
      Slot s = slot(l, h);
      if (inside(h) != inside(s.lead.kv_head)) {
        return absl::InvalidArgumentError(absl::StrCat(
            SlotName(l, h), " follows ", SlotName(s.lead.layer, s.lead.kv_head),
            ", but only one of them is among kv heads ", first_head, " to ", first_head + heads - 1,
            ": a tensor-parallel split must keep a follower with its lead; split less, or make a plan whose followers "
            "follow leads of their own kv head"));
      }
      if (!inside(h)) continue;
      s.lead.kv_head -= first_head;
      slots.push_back(s);
    }
  }
  return Create(shape, window_, sharing_, near_codec_, std::move(slots), model_fingerprint_);
}

absl::Status Plan::CheckModel(const KvShape& shape, const Digest& model_fingerprint) const {
  if (shape != shape_) {
    return absl::FailedPreconditionError(absl::StrCat("the plan is for ", shape_.layers, " layers x ", shape_.kv_heads,
                                                      " kv heads x ", shape_.head_dim, " dims, the model has ",
                                                      shape.layers, " x ", shape.kv_heads, " x ", shape.head_dim,
                                                      ": make a plan for this model with 'perigee model calibrate'"));
  }
  if (model_fingerprint != model_fingerprint_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the plan is for model ", ToHex(model_fingerprint_).substr(0, 16), "..., this model is ",
        ToHex(model_fingerprint).substr(0, 16), "...: make a plan for this model with 'perigee model calibrate'"));
  }
  return absl::OkStatus();
}

int Plan::CountRole(Role role) const {
  return static_cast<int>(std::count_if(slots_.begin(), slots_.end(), [&](const Slot& s) { return s.role == role; }));
}

}  // namespace perigee::pod
