// Bytes that are changed on their way, UCX's own headers among them, between two processes that can be watched from
// outside. No call ends later than its deadline, no plane is wrong and called right, and what was started again works.
//
// A process may end: UCX 1.13 believes what comes over a connection. It checks lengths and ids with assertions that
// abort the process, and follows pointers that its peer sends back. Nothing above it can prevent that.
#include <map>

#include "fixture.h"
#include "proxy.h"
#include "store_use.h"

namespace perigee::fault {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr int kConnectMs = 1500, kMoveMs = 1000;
// What Process::Hear says of a process that lives and does not answer in time.
constexpr char kSilence[] = "no word from the process";

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
  std::string Get() { return initiator_->Ask(absl::StrCat("get 1 ", kMoveMs), absl::Milliseconds(kMoveMs) + kGrace); }
  // Starts again what UCX has ended.
  void Revive() {
    if (!initiator_->process().Alive()) StartInitiator();
    if (!owner_->process().Alive()) StartOwner();
  }
  std::unique_ptr<Proxy> proxy_;
  std::unique_ptr<PeerProcess> owner_, initiator_;
};

// The first bytes of every connection are its own: magic number, addresses, wire-up messages, our hello, the first
// transfer's headers.
TEST_F(CorruptionTest, DamagedHeadersMakeNoCallLateAndAfterThemAllWorks) {
  for (uint64_t offset = 3; offset < 460; offset += 19) {
    proxy_->CorruptAt(offset);
    const std::string opened = Open();
    EXPECT_THAT(opened, Not(HasSubstr(kSilence))) << "open, offset " << offset;
    if (opened == "ok") {
      EXPECT_THAT(Get(), Not(HasSubstr(kSilence))) << "get, offset " << offset;
    }
    proxy_->StopCorrupting();
    Revive();
    std::string again = Open();
    // A process that is being ended when it is asked is alive a moment longer.
    for (int i = 0; i < 2 && again != "ok"; ++i) {
      Revive();
      again = Open();
    }
    EXPECT_EQ(again, "ok") << "offset " << offset;
    EXPECT_EQ(Get(), "ok") << "offset " << offset;
  }
  EXPECT_GT(proxy_->stats().corrupted_bytes, 20u);
}

class CorruptedStoreTest : public FaultTest {
 protected:
  void StartStore() {
    store_ = nullptr;
    auto store = Process::Start(*network_, Place::kHostB,
                                {FAULT_STORE, "serve", Network::Address(Place::kHostB), "7100", "67108864"});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    address_ = store_->Hear().value_or("failed");
  }
  void StartUser() {
    user_ = nullptr;
    auto user = Process::Start(*network_, Place::kHostA, {FAULT_STORE, "use", address_});
    ASSERT_TRUE(user.ok()) << user.status();
    user_ = *std::move(user);
    const auto said = user_->Hear(kStoreUse + kGrace);
    EXPECT_TRUE(said.ok() || absl::IsUnavailable(said.status())) << said.status();
  }
  void Revive() {
    if (!store_->Alive()) StartStore();
    for (int i = 0; i < 3 && !user_->Alive(); ++i) StartUser();
  }
  std::string Ask(const std::string& line) {
    const auto said = user_->Ask(line, kStoreUse + kGrace);
    return said.ok() ? *said : said.status().ToString();
  }
  std::unique_ptr<Process> store_, user_;
  std::string address_;
};

TEST_F(CorruptedStoreTest, AWireThatDamagesAnythingAnywhereNeverDeliversAWrongPlane) {
  StartStore();
  auto proxy = Proxy::Start(network_.get());
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  StartUser();
  std::map<std::string, int> outcomes;
  uint64_t good = 500000;
  const absl::Time until = absl::Now() + absl::Seconds(12);
  for (uint64_t round = 0; absl::Now() < until; ++round) {
    // Written over a clean wire, read over a bad one; and others written over it. 8 planes of 128 KiB are a MiB: damage
    // in payload mostly, now and then in gRPC's and UCX's headers.
    (*proxy)->CorruptRandomly(round % 4 == 3 ? 50000 : 1000000, round);
    for (const std::string& line :
         {absl::StrCat("read ", good, " 8 131072"), absl::StrCat("write ", round * 8 + 100, " 8 131072"),
          absl::StrCat("read ", round * 8 + 100, " 8 131072")}) {
      const std::string said = Ask(line);
      EXPECT_THAT(said, Not(StartsWith("wrong"))) << line << " in round " << round;
      EXPECT_THAT(said, Not(HasSubstr(kSilence))) << line << " in round " << round;
      outcomes[line.substr(0, line.find(' ') + 1) + said.substr(0, said.find(':'))]++;
    }
    (*proxy)->StopCorrupting();
    Revive();
    good = round * 8 + 500000;
    Ask(absl::StrCat("write ", good, " 8 131072"));
  }
  for (const auto& [outcome, times] : outcomes) std::printf("%4d %s\n", times, outcome.c_str());
  EXPECT_GT((*proxy)->stats().corrupted_bytes, 100u);
  EXPECT_GT(outcomes["read failed DATA_LOSS"], 0);
  EXPECT_GT(outcomes["read ok"], 0);
  // The same processes, if they live, and a clean wire.
  std::string said;
  for (int i = 0; i < 4 && said != "ok"; ++i) {
    Revive();
    said = Ask("write 1000000 8 131072");
  }
  EXPECT_EQ(said, "ok");
  EXPECT_EQ(Ask("read 1000000 8 131072"), "ok");
  user_ = nullptr;
  store_ = nullptr;
}

}  // namespace
}  // namespace perigee::fault
