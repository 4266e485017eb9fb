// Planes for tests of the SSD tier alone: written and read back with their heads, in page-aligned memory.
#ifndef PERIGEE_TESTS_KVSTORE_SSD_PLANES_H_
#define PERIGEE_TESTS_KVSTORE_SSD_PLANES_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/ssd/aligned_buffer.h"
#include "kvstore/ssd/ssd_tier.h"
#include "planes.h"

namespace perigee::kvstore {

// Any number that is not always 1.
inline uint8_t TestReplicas(int64_t base_position) {
  return static_cast<uint8_t>(1 + base_position / 64 % kMaxReplicas);
}

// A plane as Append wants it.
struct AlignedPlane {
  explicit AlignedPlane(const TestPlane& plane) : memory(plane.payload.size()) {
    std::memset(memory.span().data(), 0, memory.span().size());
    std::memcpy(memory.span().data(), plane.payload.data(), plane.payload.size());
    write = {.id = plane.id,
             .meta = MetaOf(plane.header, 1, 0, TestReplicas(plane.header.base_position)),
             .head = EncodeRecordHead(plane.id, plane.encoded(), plane.payload.size(), 1),
             .padded_payload = memory.span()};
  }
  AlignedBuffer memory;
  SsdWrite write;
};

inline absl::StatusOr<std::vector<SsdRecord>> Append(SsdTier& tier, std::span<const TestPlane> planes) {
  std::vector<std::unique_ptr<AlignedPlane>> kept;
  std::vector<SsdWrite> writes;
  for (const TestPlane& plane : planes) {
    kept.push_back(std::make_unique<AlignedPlane>(plane));
    writes.push_back(kept.back()->write);
  }
  return tier.Append(writes);
}
inline absl::StatusOr<SsdRecord> Append(SsdTier& tier, const TestPlane& plane) {
  auto records = Append(tier, std::span(&plane, 1));
  if (!records.ok()) return records.status();
  return (*records)[0];
}

// OK only if the very bytes are there.
inline absl::Status Check(SsdTier& tier, const TestPlane& plane, const SsdRecord& record) {
  const AlignedBuffer memory(record.payload_bytes);
  const auto head = tier.Read(plane.id, record, memory.span());
  if (!head.ok()) return head.status();
  const auto verified = VerifyRecord(*head, memory.span(), plane.id, record.payload_bytes);
  if (!verified.ok()) return verified.status();
  return std::memcmp(memory.span().data(), plane.payload.data(), plane.payload.size()) == 0
             ? absl::OkStatus()
             : absl::InternalError("other bytes, right checksums");
}

using FoundPlanes = std::map<PlaneId, SsdRecord>;
inline std::unique_ptr<SsdTier> OpenTier(const SsdOptions& options, FoundPlanes* found = nullptr) {
  auto tier = SsdTier::Open(options, [&](const IndexEntry& entry, const SsdRecord& record) {
    if (found != nullptr) {
      EXPECT_TRUE(found->emplace(entry.id, record).second);
    }
  });
  EXPECT_TRUE(tier.ok()) << tier.status();
  return tier.ok() ? *std::move(tier) : nullptr;
}

// Until it is true, or false after ten seconds.
inline bool Eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

// What a tier dropped by itself.
class Drops {
 public:
  std::function<void(std::span<const SsdDropped>)> callback() {
    return [this](std::span<const SsdDropped> dropped) {
      std::lock_guard lock(mu_);
      for (const SsdDropped& d : dropped) reasons_[d.id] = d.reason;
    };
  }
  std::map<PlaneId, SsdDropReason> reasons() {
    std::lock_guard lock(mu_);
    return reasons_;
  }

 private:
  std::mutex mu_;
  std::map<PlaneId, SsdDropReason> reasons_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_SSD_PLANES_H_
