// What every backend of the remote tier must do (conformance.cc), asked of a real one.
#ifndef PERIGEE_TESTS_KVSTORE_REMOTE_CONFORMANCE_H_
#define PERIGEE_TESTS_KVSTORE_REMOTE_CONFORMANCE_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "await.h"
#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

// One test's view of a backend: a prefix of its own, and ways to spoil things.
class TestBackend {
 public:
  virtual ~TestBackend() = default;
  virtual absl::StatusOr<std::unique_ptr<RemoteTier>> Open(const RemoteLimits& limits) = 0;
  // Behind the tier's back: changes the stored object's bytes. The plane is stored.
  virtual void Edit(const PlaneId& id, const std::function<void(std::string&)>& change) = 0;
  // Stores something under a name that is not this tier's.
  virtual void AddStranger(const std::string& name) = 0;
  // Reads of this plane (at least) hang until Resume.
  virtual void Stall(const PlaneId& id) = 0;
  virtual void Resume() = 0;
  // Nothing works until ComeBack. Stored objects stay.
  virtual void GoAway() = 0;
  virtual void ComeBack() = 0;
};

inline constexpr uint64_t kMaxObjectBytes = uint64_t{24} << 20;
// How often tiers under test look for a sign of life.
inline constexpr absl::Duration kProbeInterval = absl::Milliseconds(300);

struct BackendParam {
  std::string name;
  std::function<std::unique_ptr<TestBackend>()> make;
};
inline void PrintTo(const BackendParam& param, std::ostream* out) { *out << param.name; }

class RemoteTierTest : public testing::TestWithParam<BackendParam> {
 protected:
  void SetUp() override {
    backend_ = GetParam().make();
    OpenTier({});
  }
  void TearDown() override {
    if (backend_ != nullptr) backend_->Resume();
    tier_.reset();
  }
  void OpenTier(const RemoteLimits& limits) {
    tier_.reset();
    auto tier = backend_->Open(limits);
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
  }

  std::unique_ptr<TestBackend> backend_;
  std::unique_ptr<RemoteTier> tier_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_REMOTE_CONFORMANCE_H_
