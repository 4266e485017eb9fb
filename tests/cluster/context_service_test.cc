#include "cluster/contexts/context_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "cluster/contexts/folder_registry.h"
#include "members.h"

namespace perigee::cluster {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const model::Tokenizer& Podling() {
  static const auto* const tokenizer =
      model::LoadTokenizer(std::string(PERIGEE_SOURCE_DIR) + "/models/podling")->release();
  return *tokenizer;
}

// Computes contexts as told.
class FakePrefill {
 public:
  PrefillContext Function() {
    return [this](const std::string& tenant, const std::vector<int32_t>& ids, const std::function<bool()>& cancelled) {
      {
        const absl::MutexLock lock(&mu_);
        seen_.push_back(absl::StrCat(tenant, ":", *Podling().Decode(ids)));
        ++running_;
        most_ = std::max(most_, running_);
      }
      for (;;) {
        const absl::MutexLock lock(&mu_);
        if (cancelled()) {
          --running_;
          ++cancelled_;
          return absl::CancelledError("given up");
        }
        if (held_) {
          changed_.WaitWithTimeout(&mu_, absl::Milliseconds(2));
          continue;
        }
        --running_;
        if (failures_.empty()) return absl::OkStatus();
        const absl::Status status = failures_.front();
        failures_.erase(failures_.begin());
        return status;
      }
    };
  }
  void Hold(bool held) {
    const absl::MutexLock lock(&mu_);
    held_ = held;
    changed_.SignalAll();
  }
  void Fail(std::vector<absl::Status> failures) {
    const absl::MutexLock lock(&mu_);
    failures_ = std::move(failures);
  }
  std::vector<std::string> seen() {
    const absl::MutexLock lock(&mu_);
    return seen_;
  }
  bool AwaitSeen(size_t count) {
    const absl::MutexLock lock(&mu_);
    const auto enough = [&] { return seen_.size() >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&enough), kDeadline);
  }
  bool AwaitCancelled(int count) {
    const absl::MutexLock lock(&mu_);
    const auto enough = [&] { return cancelled_ >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&enough), kDeadline);
  }
  int most() {
    const absl::MutexLock lock(&mu_);
    return most_;
  }

 private:
  absl::Mutex mu_;
  absl::CondVar changed_;
  bool held_ = false;
  std::vector<absl::Status> failures_;
  std::vector<std::string> seen_;
  int running_ = 0, most_ = 0, cancelled_ = 0;
};

class ContextServiceTest : public FolderTest {
 protected:
  void SetUp() override {
    registry_ = *FolderContextRegistry::Open(folder_ + "/contexts");
    service_ = Open(&Podling());
  }
  std::unique_ptr<ContextService> Open(const model::Tokenizer* tokenizer) {
    ContextServiceOptions options{.window_tokens = 64};
    options.ahead.first_backoff = absl::Milliseconds(1);
    return std::make_unique<ContextService>(registry_.get(), tokenizer, prefill_.Function(), options);
  }
  // Until the context is in that state; what it was at last.
  std::string AwaitState(const std::string& id, ContextState state) {
    const absl::Time deadline = absl::Now() + kDeadline;
    for (;;) {
      const auto info = service_->Get("ann", id);
      if (!info.ok()) return std::string(info.status().message());
      if (info->progress.state == state || absl::Now() > deadline) return ContextStateName(info->progress.state);
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  absl::Status Put(const std::string& id, const std::string& text) { return service_->Put("ann", id, text).status(); }

  FakePrefill prefill_;
  std::unique_ptr<FolderContextRegistry> registry_;
  std::unique_ptr<ContextService> service_;
};

TEST_F(ContextServiceTest, AContextIsItsTokensWithoutABeginOfSequence) {
  const auto put = service_->Put("ann", "river", "the pass key");
  ASSERT_TRUE(put.ok()) << put.status();
  const auto expected = *Podling().Encode("the pass key", false);
  EXPECT_TRUE(put->created);
  EXPECT_EQ(put->info.record.tokens, expected.size());
  EXPECT_EQ(**service_->Resolve("ann", "river"), expected);
  EXPECT_EQ(**Open(&Podling())->Resolve("ann", "river"), expected) << "from the registry";
  ASSERT_TRUE(service_->Put("ann", "ids", expected).ok());
  EXPECT_EQ(**Open(&Podling())->Resolve("ann", "ids"), expected);
  EXPECT_FALSE(service_->Put("ann", "ids", expected)->created);
  EXPECT_EQ(service_->Get("ann", "ids")->record.version, 1u);
}

TEST_F(ContextServiceTest, NoTextBecomesASpecialTokenAndNoSpecialIdIsTaken) {
  ASSERT_TRUE(Podling().bos_id().has_value());
  const int32_t bos = *Podling().bos_id();
  const std::string bos_text(*Podling().TokenBytes(bos));
  ASSERT_EQ(Put("text", bos_text), absl::OkStatus());
  EXPECT_THAT(**service_->Resolve("ann", "text"), ::testing::Not(::testing::Contains(bos)));
  const absl::Status special = service_->Put("ann", "ids", std::vector<int32_t>{bos, 300}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(special));
  EXPECT_THAT(std::string(special.message()), HasSubstr(absl::StrCat("token id ", bos, " is a special token")));
}

TEST_F(ContextServiceTest, WhatCannotBeAContextIsRefusedWithTheNumbers) {
  std::vector<int32_t> ids(64, 300);
  const absl::Status large = service_->Put("ann", "a", ids).status();
  EXPECT_TRUE(absl::IsInvalidArgument(large));
  EXPECT_THAT(std::string(large.message()), AllOf(HasSubstr("64 tokens; the model's context length is 64")));
  ids.pop_back();
  EXPECT_TRUE(service_->Put("ann", "a", ids).ok());
  for (const ContextContent& content :
       {ContextContent(""), ContextContent("\xFF"), ContextContent(std::vector<int32_t>()),
        ContextContent(std::vector<int32_t>{-1}), ContextContent(std::vector<int32_t>{1 << 30}),
        ContextContent(std::string((size_t{1} << 20) + 1, 'a'))}) {
    EXPECT_TRUE(absl::IsInvalidArgument(service_->Put("ann", "b", content).status()));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(service_->Put("ann", "a/b", "x").status()));
  EXPECT_TRUE(absl::IsNotFound(service_->Get("ann", "b").status())) << "nothing of it is kept";
}

TEST_F(ContextServiceTest, TokenIdsOfAnotherTokenizerMustBePutAgain) {
  ASSERT_TRUE(service_->Put("ann", "ids", std::vector<int32_t>{300, 301}).ok());
  ASSERT_EQ(Put("text", "the pass key"), absl::OkStatus());
  const auto text = *ReadFile(std::string(PERIGEE_SOURCE_DIR) + "/models/podling/tokenizer.json");
  std::filesystem::create_directories(folder_ + "/other");
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/other/tokenizer.json", text + "\n").ok());
  const auto other = *model::LoadTokenizer(folder_ + "/other");
  const auto service = Open(other.get());
  const absl::Status status = service->Resolve("ann", "ids").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("put it again"));
  EXPECT_EQ(service->Get("ann", "ids")->progress.state, ContextState::kFailed);
  EXPECT_EQ(**service->Resolve("ann", "text"), **service_->Resolve("ann", "text"));
}

TEST_F(ContextServiceTest, WhoHoldsTokensKeepsThemWhateverBecomesOfTheContext) {
  ASSERT_EQ(Put("river", "the pass key"), absl::OkStatus());
  const SharedTokens tokens = *service_->Resolve("ann", "river");
  const std::vector<int32_t> before = *tokens;
  ASSERT_EQ(Put("river", "another text"), absl::OkStatus());
  EXPECT_NE(**service_->Resolve("ann", "river"), before);
  ASSERT_EQ(service_->Delete("ann", "river"), absl::OkStatus());
  EXPECT_TRUE(absl::IsNotFound(service_->Resolve("ann", "river").status()));
  EXPECT_EQ(*tokens, before);
}

TEST_F(ContextServiceTest, AnotherGatewaysChangesCountAtOnce) {
  const auto other = Open(&Podling());
  ASSERT_EQ(Put("river", "one"), absl::OkStatus());
  EXPECT_EQ(*Podling().Decode(**other->Resolve("ann", "river")), "one");
  ASSERT_TRUE(other->Put("ann", "river", "two").ok());
  EXPECT_EQ(*Podling().Decode(**service_->Resolve("ann", "river")), "two");
  ASSERT_EQ(other->Delete("ann", "river"), absl::OkStatus());
  EXPECT_TRUE(absl::IsNotFound(service_->Resolve("ann", "river").status()));
  EXPECT_TRUE(absl::IsNotFound(service_->Resolve("bob", "river").status()));
}

TEST_F(ContextServiceTest, ContextsAreComputedAheadOneAtATime) {
  prefill_.Hold(true);
  for (const char* id : {"a", "b", "c"}) ASSERT_EQ(Put(id, absl::StrCat("text ", id)), absl::OkStatus());
  EXPECT_EQ(AwaitState("a", ContextState::kComputing), "computing");
  EXPECT_EQ(AwaitState("b", ContextState::kPending), "pending");
  const auto listed = service_->List("ann", "a", 10);
  ASSERT_TRUE(listed.ok());
  ASSERT_EQ(listed->size(), 2u);
  EXPECT_EQ((*listed)[0].progress.state, ContextState::kPending);
  prefill_.Hold(false);
  for (const char* id : {"a", "b", "c"}) EXPECT_EQ(AwaitState(id, ContextState::kReady), "ready");
  EXPECT_THAT(prefill_.seen(), ::testing::ElementsAre("ann:text a", "ann:text b", "ann:text c"));
  EXPECT_EQ(prefill_.most(), 1);
  EXPECT_EQ(Open(&Podling())->Get("ann", "a")->progress.state, ContextState::kUnknown) << "of a process that begins";
}

TEST_F(ContextServiceTest, WhatCannotBeDoneNowIsDoneLaterAndOtherErrorsAreTold) {
  prefill_.Fail({absl::UnavailableError("no prefill node"), absl::ResourceExhaustedError("busy")});
  ASSERT_EQ(Put("a", "text a"), absl::OkStatus());
  EXPECT_EQ(AwaitState("a", ContextState::kReady), "ready");
  EXPECT_EQ(prefill_.seen().size(), 3u);
  prefill_.Fail({absl::InvalidArgumentError("this model has no such thing")});
  ASSERT_EQ(Put("b", "text b"), absl::OkStatus());
  EXPECT_EQ(AwaitState("b", ContextState::kFailed), "failed");
  EXPECT_EQ(service_->Get("ann", "b")->progress.error, "this model has no such thing");
  ASSERT_EQ(Put("b", "text b"), absl::OkStatus());
  EXPECT_EQ(AwaitState("b", ContextState::kReady), "ready") << "the same content again asks for it again";
}

TEST_F(ContextServiceTest, ADeletedOrReplacedVersionLeavesTheQueue) {
  prefill_.Hold(true);
  for (const char* id : {"a", "b", "c", "d"}) ASSERT_EQ(Put(id, absl::StrCat("text ", id)), absl::OkStatus());
  ASSERT_TRUE(prefill_.AwaitSeen(1));
  ASSERT_EQ(service_->Delete("ann", "a"), absl::OkStatus());
  ASSERT_TRUE(prefill_.AwaitCancelled(1)) << "what is being computed is given up";
  ASSERT_TRUE(prefill_.AwaitSeen(2));  // b.
  ASSERT_EQ(Put("c", "new c"), absl::OkStatus());
  ASSERT_EQ(Open(&Podling())->Delete("ann", "d"), absl::OkStatus());  // At another gateway.
  prefill_.Hold(false);
  EXPECT_EQ(AwaitState("c", ContextState::kReady), "ready");
  EXPECT_THAT(prefill_.seen(), ::testing::ElementsAre("ann:text a", "ann:text b", "ann:new c"));
}

TEST_F(ContextServiceTest, ItEndsWhileItComputes) {
  prefill_.Hold(true);
  ASSERT_EQ(Put("a", "text a"), absl::OkStatus());
  ASSERT_TRUE(prefill_.AwaitSeen(1));
  service_.reset();
  EXPECT_TRUE(prefill_.AwaitCancelled(1));
}

TEST(TokenCacheTest, TheLongestUnusedGoes) {
  TokenCache cache(3 * (256 + 4));
  const auto digest = [](int i) { return Sha256(absl::StrCat(i)); };
  const auto tokens = [](int i) { return std::make_shared<const std::vector<int32_t>>(1, i); };
  for (int i = 0; i < 3; ++i) cache.Add(digest(i), tokens(i));
  EXPECT_NE(cache.Find(digest(0)), nullptr);
  cache.Add(digest(3), tokens(3));
  EXPECT_EQ(cache.Find(digest(1)), nullptr);
  EXPECT_EQ(*cache.Find(digest(0)), std::vector<int32_t>{0});
  EXPECT_NE(cache.Find(digest(3)), nullptr);
}

TEST(ContextContentTest, BytesThatAreNoContentAreDataLoss) {
  const StoredContent ids{.content = std::vector<int32_t>{1, -2, 1 << 30}, .tokenizer = Sha256("x")};
  const auto read = UnpackContent(PackContent(ids));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->content, ids.content);
  EXPECT_EQ(read->tokenizer, ids.tokenizer);
  EXPECT_EQ(std::get<std::string>(UnpackContent(PackContent({.content = "a\nb"}))->content), "a\nb");
  const std::string packed = PackContent(ids);
  for (const std::string& bytes : {std::string(), std::string("X"), packed.substr(0, 20), packed + "x"}) {
    EXPECT_TRUE(absl::IsDataLoss(UnpackContent(bytes).status()));
  }
}

}  // namespace
}  // namespace perigee::cluster
