// Bytes that are changed on their way, UCX's own headers among them, between two processes that can be watched from
// outside: neither may end or hang, and both serve on.
#include "fixture.h"
#include "proxy.h"

namespace perigee::fault {
namespace {

using ::testing::AnyOf;
using ::testing::StartsWith;

constexpr int kConnectMs = 1500, kMoveMs = 1000;

class CorruptionTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    if (IsSkipped()) return;
    auto proxy = Proxy::Start(network_.get());
    ASSERT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
    StartOwner();
    StartInitiator();
  }
  void TearDown() override {
    initiator_ = nullptr;
    owner_ = nullptr;
    proxy_ = nullptr;
  }
  void StartOwner() {
    owner_ = nullptr;
    owner_ = std::make_unique<PeerProcess>(*network_, Place::kHostB, kPort, 1 << 20);
    ASSERT_EQ(owner_->Ask("fill 1"), "ok");
  }
  void StartInitiator() {
    initiator_ = nullptr;
    initiator_ = std::make_unique<PeerProcess>(*network_, Place::kHostA, kPort, 4096);
  }
  std::string Open() {
    return initiator_->Ask(absl::StrCat("open ", owner_->address(), " ", kPort, " ", owner_->key(), " ", kConnectMs),
                           absl::Milliseconds(kConnectMs) + kGrace);
  }
  std::string Get() {
    return initiator_->Ask(absl::StrCat("get 1 ", kMoveMs), absl::Milliseconds(kMoveMs) + kGrace);
  }
  // "initiator", "owner", ...: who has ended; they are started again. Empty: none.
  std::string Dead() {
    std::string dead;
    if (!initiator_->process().Alive()) {
      dead += " initiator " + initiator_->process().end();
      StartInitiator();
    }
    if (!owner_->process().Alive()) {
      dead += " owner " + owner_->process().end();
      StartOwner();
    }
    return dead;
  }
  std::unique_ptr<Proxy> proxy_;
  std::unique_ptr<PeerProcess> owner_, initiator_;
};

// The first bytes of every connection are UCX's own: magic number, addresses, wire-up messages.
TEST_F(CorruptionTest, DamagedWireUpEndsNoProcessAndNoCallLate) {
  const char* range = std::getenv("SWEEP");
  const int from = range ? std::atoi(range) : 0, to = range ? std::atoi(strchr(range, '-') + 1) : 400, step = range ? std::atoi(strchr(range, '/') + 1) : 25;
  for (int offset = from; offset < to; offset += step) {
    proxy_->CorruptAt(static_cast<uint64_t>(offset));
    std::string said = Open();
    if (said == "ok") said = absl::StrCat("opened, ", Get());
    proxy_->StopCorrupting();
    const std::string dead = Dead();
    std::printf("offset %d: %s;%s\n", offset, said.substr(0, 120).c_str(), dead.c_str());
    EXPECT_EQ(dead, "") << "offset " << offset;
    EXPECT_EQ(Open(), "ok") << "offset " << offset;
    EXPECT_EQ(Get(), "ok") << "offset " << offset;
  }
}

}  // namespace
}  // namespace perigee::fault
