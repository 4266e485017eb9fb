// The plan: for every (layer, kv head) slot of one model, what is kept of its distant tokens, and in which codec.
//
//   lead       keeps its distant keys and values
//   follower   keeps its distant values; its distant scores come from a lead slot of the same or a lower layer
//   near-only  keeps nothing distant (a streaming head: sink and recent tokens only)
//
// A Plan object is always valid: Create and Parse check it. Immutable after that, so any thread may read it. Copyable.
// Source: arXiv 2412.02252 (PoD); near-only slots are DuoAttention's streaming heads (arXiv 2410.10819).
#ifndef PERIGEE_POD_PLAN_H_
#define PERIGEE_POD_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/bytes.h"
#include "pod/codec.h"
#include "pod/window.h"

namespace perigee::pod {

// What a plan must know of a model.
struct KvShape {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;

  int slots() const { return layers * kv_heads; }
  friend bool operator==(const KvShape&, const KvShape&) = default;
};

// layers 1..1024, kv_heads 1..1024, head_dim 2..1024 and even (RoPE rotates pairs).
absl::Status ValidateShape(const KvShape& shape);

struct SlotId {
  int layer = 0;
  int kv_head = 0;
  friend auto operator<=>(const SlotId&, const SlotId&) = default;
};

enum class Role : uint8_t { kLead = 0, kFollower = 1, kNearOnly = 2 };

struct Slot {
  Role role = Role::kLead;
  SlotId lead;                     // Whose far keys score this slot: the slot itself unless it is a follower.
  Codec far_codec = Codec::kBf16;  // Of this slot's distant keys (lead) and values (lead, follower).
  friend bool operator==(const Slot&, const Slot&) = default;
};

// Whose query meets the lead's far keys. Stored bytes are the same.
//   key sharing    the slot's own query
//   score sharing  the lead's query: all slots of a group have the lead's distant scores
enum class Sharing : uint8_t { kKey = 1, kScore = 2 };

class Plan {
 public:
  // slots[layer * kv_heads + kv_head]. Refuses leads that are not leads, above their follower, or out of range.
  static absl::StatusOr<Plan> Create(const KvShape& shape, const Window& window, Sharing sharing, Codec near_codec,
                                     std::vector<Slot> slots, const Digest& model_fingerprint);

  // Every slot a lead in the near codec: nothing is shared, attention is exact.
  static absl::StatusOr<Plan> Identity(const KvShape& shape, const Window& window, const Digest& model_fingerprint,
                                       Codec codec = Codec::kBf16);

  // The plan file (JSON, docs/formats.md section 1). Unknown fields, other versions and other formats are refused.
  static absl::StatusOr<Plan> Parse(absl::string_view json);
  std::string ToJson() const;

  const KvShape& shape() const { return shape_; }
  const Window& window() const { return window_; }
  Sharing sharing() const { return sharing_; }
  Codec near_codec() const { return near_codec_; }
  const Slot& slot(SlotId id) const { return slots_[static_cast<size_t>(id.layer * shape_.kv_heads + id.kv_head)]; }
  const Slot& slot(int layer, int kv_head) const { return slot(SlotId{layer, kv_head}); }
  const Digest& model_fingerprint() const { return model_fingerprint_; }

  // SHA-256 over everything that the meaning of stored bytes depends on: shape, roles, codecs, window, rounding rule,
  // sharing form. Not the fingerprint: it stands beside the plan id wherever blocks are named.
  const Digest& id() const { return id_; }

  // The plan of kv heads [first_head, first_head + heads) alone, as one rank of a tensor-parallel group computes with
  // it: head h there is head first_head + h here. INVALID_ARGUMENT, naming the slot, where a follower and its lead are
  // not both inside or both outside. Its id is another plan's: blocks are named by the whole plan.
  absl::StatusOr<Plan> ForHeads(int first_head, int heads) const;

  // FAILED_PRECONDITION, naming both, unless the plan was made for this model.
  absl::Status CheckModel(const KvShape& shape, const Digest& model_fingerprint) const;

  int CountRole(Role role) const;

 private:
  Plan() = default;
  KvShape shape_;
  Window window_;
  Sharing sharing_ = Sharing::kKey;
  Codec near_codec_ = Codec::kBf16;
  std::vector<Slot> slots_;
  Digest model_fingerprint_{};
  Digest id_{};
};

}  // namespace perigee::pod

#endif  // PERIGEE_POD_PLAN_H_
