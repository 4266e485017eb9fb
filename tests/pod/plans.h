// Plans that several tests look at.
#ifndef PERIGEE_TESTS_POD_PLANS_H_
#define PERIGEE_TESTS_POD_PLANS_H_

#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "pod/layout.h"
#include "pod/plan.h"

namespace perigee::pod {

inline Digest TestFingerprint() {
  Digest digest;
  for (size_t i = 0; i < digest.size(); ++i) digest[i] = static_cast<uint8_t>(i);
  return digest;
}

inline Slot Lead(Codec codec = Codec::kBf16) { return {Role::kLead, {}, codec}; }
inline Slot Follows(int layer, int kv_head, Codec codec = Codec::kBf16) {
  return {Role::kFollower, {layer, kv_head}, codec};
}
inline Slot NearOnly() { return {Role::kNearOnly, {}, Codec::kBf16}; }

inline absl::StatusOr<Plan> TryPlan(const KvShape& shape, std::vector<Slot> slots, Codec near_codec = Codec::kBf16) {
  return Plan::Create(shape, Window{16, 128}, Sharing::kKey, near_codec, std::move(slots), TestFingerprint());
}

// The plan of golden.py: every role, sharing across heads, a far codec that is not the near one.
inline constexpr KvShape kMixedShape{3, 2, 32};
inline std::vector<Slot> MixedSlots() {
  return {Lead(), NearOnly(), Follows(0, 0), Lead(Codec::kFp16), Follows(1, 1, Codec::kFp16), Follows(0, 0)};
}
inline Plan MixedPlan() { return *TryPlan(kMixedShape, MixedSlots()); }

// Podling's plan: 4 leads, 12 followers.
inline Plan PodlingPlan() {
  std::vector<Slot> slots = {Lead(), Lead(), Lead(), Follows(0, 1)};
  for (int layer = 2; layer < 8; ++layer) {
    slots.push_back(layer == 2 ? Lead() : Follows(2, 0));
    slots.push_back(Follows(0, 1));
  }
  return *TryPlan({8, 2, 32}, std::move(slots));
}

// A valid plan of random roles, leads and codecs.
inline Plan RandomPlan(std::mt19937& rng) {
  const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  const KvShape shape{1 + pick(6), 1 + pick(4), 2 * (1 + pick(70))};
  std::vector<Slot> slots;
  for (int i = 0; i < shape.slots(); ++i) {
    slots.push_back({static_cast<Role>(pick(3)), {}, pick(3) == 0 ? Codec::kFp16 : Codec::kBf16});
  }
  for (int i = 0; i < shape.slots(); ++i) {
    if (slots[static_cast<size_t>(i)].role != Role::kFollower) continue;
    std::vector<SlotId> leads;
    for (int j = 0; j < (i / shape.kv_heads + 1) * shape.kv_heads; ++j) {
      if (slots[static_cast<size_t>(j)].role == Role::kLead) leads.push_back({j / shape.kv_heads, j % shape.kv_heads});
    }
    if (leads.empty()) {
      slots[static_cast<size_t>(i)].role = Role::kNearOnly;
    } else {
      slots[static_cast<size_t>(i)].lead = leads[static_cast<size_t>(pick(static_cast<int>(leads.size())))];
    }
  }
  return *Plan::Create(shape, {pick(100), 1 + pick(300)}, pick(2) ? Sharing::kKey : Sharing::kScore,
                       pick(2) ? Codec::kBf16 : Codec::kFp16, std::move(slots), TestFingerprint());
}

inline std::string ReadTestdata(const std::string& name) {
  std::ifstream in(std::string(PERIGEE_SOURCE_DIR) + "/tests/pod/testdata/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// What golden.py computed from docs/formats.md: name -> value.
inline std::map<std::string, std::string> Golden() {
  std::ifstream in(std::string(PERIGEE_SOURCE_DIR) + "/tests/pod/testdata/golden.txt");
  std::map<std::string, std::string> golden;
  std::string name, value;
  while (in >> name >> value) golden[name] = value;
  return golden;
}

}  // namespace perigee::pod

#endif  // PERIGEE_TESTS_POD_PLANS_H_
