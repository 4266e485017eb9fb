// What every registry of contexts does, over both: a folder and a real etcd.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cluster/contexts/etcd_registry.h"
#include "cluster/contexts/folder_registry.h"
#include "cluster/contexts/registry.h"
#include "cluster/membership/open_membership.h"
#include "etcd_process.h"
#include "members.h"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

NewContext Text(const std::string& id, const std::string& content, const std::string& tenant = "ann") {
  return {.tenant = tenant, .id = id, .content = content, .tokens = content.size(), .tokenizer = "ab"};
}

std::vector<std::string> IdsOf(const absl::StatusOr<std::vector<ContextRecord>>& records) {
  std::vector<std::string> ids;
  if (!records.ok()) return {std::string(records.status().message())};
  for (const ContextRecord& record : *records) ids.push_back(record.id);
  return ids;
}

class ContextRegistryTest : public FolderTest, public ::testing::WithParamInterface<const char*> {
 protected:
  bool etcd() const { return GetParam() == std::string("etcd"); }
  void SetUp() override {
    if (!etcd()) return;
    if (!HaveEtcd()) GTEST_SKIP() << "NOT TESTED: " << kEtcd << " is missing; install Debian's etcd-server";
    server_ = std::make_unique<EtcdServer>(EtcdServer::Alone(folder_));
    server_->Start();
    const absl::Status ready = server_->AwaitReady();
    ASSERT_TRUE(ready.ok()) << ready;
  }
  EtcdOptions Options() const {
    EtcdOptions options;
    options.endpoints = {server_->address()};
    options.call_deadline = absl::Seconds(1);
    return options;
  }
  // As another process would.
  std::unique_ptr<ContextRegistry> Open(const ContextLimits& limits = {}) const {
    if (etcd()) return *EtcdContextRegistry::Open(Options(), limits);
    return *FolderContextRegistry::Open(folder_ + "/contexts", limits);
  }

  std::unique_ptr<EtcdServer> server_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, ContextRegistryTest, ::testing::Values("folder", "etcd"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(ContextRegistryTest, TheSameContentIsTheSameVersionAndAnotherIsTheNext) {
  const auto registry = Open();
  const auto first = registry->Put(Text("river", "a"));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(first->created && first->changed);
  EXPECT_EQ(first->record.version, 1u);
  EXPECT_EQ(first->record.bytes, 1u);
  EXPECT_EQ(first->record.content, Sha256("a"));
  const auto again = Open()->Put(Text("river", "a"));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_FALSE(again->created || again->changed);
  EXPECT_EQ(again->record, first->record);
  const auto other = registry->Put(Text("river", "bc"));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(other->created);
  EXPECT_TRUE(other->changed);
  EXPECT_EQ(other->record.version, 2u);
  EXPECT_EQ(other->record.created, first->record.created);
  EXPECT_GE(other->record.changed, first->record.changed);
  EXPECT_EQ(*Open()->Get("ann", "river"), other->record);
  EXPECT_EQ(*registry->Content(other->record), "bc");
  EXPECT_TRUE(absl::IsNotFound(registry->Content(first->record).status())) << "an old version's content is gone";
}

TEST_P(ContextRegistryTest, WhatOneChangesTheOthersSeeAtOnce) {
  const auto one = Open(), other = Open();
  ASSERT_TRUE(one->Put(Text("river", "a")).ok());
  EXPECT_EQ(other->Get("ann", "river")->version, 1u);
  ASSERT_TRUE(other->Put(Text("river", "b")).ok());
  EXPECT_EQ(one->Get("ann", "river")->version, 2u);
  EXPECT_EQ(one->Delete("ann", "river"), absl::OkStatus());
  EXPECT_TRUE(absl::IsNotFound(other->Get("ann", "river").status()));
  EXPECT_TRUE(absl::IsNotFound(other->Delete("ann", "river")));
  EXPECT_EQ(other->Put(Text("river", "c"))->record.version, 1u) << "a new context under an old id";
}

TEST_P(ContextRegistryTest, AnotherTenantsContextIsAsAbsent) {
  const auto registry = Open();
  const auto put = registry->Put(Text("river", "a"));
  ASSERT_TRUE(put.ok()) << put.status();
  for (const std::string tenant : {"", "bob", "ann/", "../ann"}) {
    const absl::Status absent = registry->Get(tenant, "lake").status();
    const absl::Status theirs = registry->Get(tenant, "river").status();
    EXPECT_TRUE(absl::IsNotFound(theirs));
    EXPECT_EQ(std::string(theirs.message()), absl::StrCat("there is no context \"river\""));
    EXPECT_EQ(std::string(absent.message()), absl::StrCat("there is no context \"lake\""));
    EXPECT_THAT(IdsOf(registry->List(tenant, "", 10)), IsEmpty());
    EXPECT_TRUE(absl::IsNotFound(registry->Delete(tenant, "river")));
    ContextRecord stolen = put->record;
    stolen.tenant = tenant;
    EXPECT_TRUE(absl::IsNotFound(registry->Content(stolen).status()));
  }
  ASSERT_TRUE(registry->Put(Text("river", "other", "bob")).ok());
  EXPECT_EQ(*registry->Get("ann", "river"), put->record);
}

TEST_P(ContextRegistryTest, ListsGoOnAfterAnId) {
  const auto registry = Open();
  EXPECT_THAT(IdsOf(registry->List("ann", "", 10)), IsEmpty());
  for (const char* id : {"c", "a", "b.1", "b:2", "b"}) ASSERT_TRUE(registry->Put(Text(id, "x")).ok());
  ASSERT_TRUE(registry->Put(Text("aa", "x", "bob")).ok());
  EXPECT_THAT(IdsOf(registry->List("ann", "", 10)), ElementsAre("a", "b", "b.1", "b:2", "c"));
  EXPECT_THAT(IdsOf(registry->List("ann", "", 2)), ElementsAre("a", "b"));
  EXPECT_THAT(IdsOf(registry->List("ann", "b", 2)), ElementsAre("b.1", "b:2"));
  EXPECT_THAT(IdsOf(registry->List("ann", "b.0", 10)), ElementsAre("b.1", "b:2", "c"));
  EXPECT_THAT(IdsOf(registry->List("ann", "c", 10)), IsEmpty());
  EXPECT_THAT(IdsOf(registry->List("ann", "", 0)), IsEmpty());
}

TEST_P(ContextRegistryTest, LimitsAreToldWithBothNumbers) {
  const auto registry = Open({.content_bytes = 4, .contexts = 2});
  const absl::Status large = registry->Put(Text("a", "12345")).status();
  EXPECT_TRUE(absl::IsInvalidArgument(large));
  EXPECT_THAT(std::string(large.message()), ::testing::AllOf(HasSubstr("5 bytes"), HasSubstr("at most 4")));
  ASSERT_TRUE(registry->Put(Text("a", "1234")).ok());
  ASSERT_TRUE(registry->Put(Text("b", "1")).ok());
  const absl::Status many = registry->Put(Text("c", "1")).status();
  EXPECT_TRUE(absl::IsResourceExhausted(many)) << many;
  EXPECT_TRUE(registry->Put(Text("b", "2")).ok()) << "a new version is no new context";
  EXPECT_TRUE(registry->Put(Text("c", "1", "bob")).ok()) << "a limit is each tenant's";
  ASSERT_TRUE(registry->Delete("ann", "a").ok());
  EXPECT_TRUE(registry->Put(Text("c", "1")).ok());
}

TEST_P(ContextRegistryTest, IdsAreShortAndPlain) {
  const auto registry = Open();
  for (const std::string& id : {std::string(), std::string("a/b"), std::string("../x"), std::string("a b"),
                                std::string("a\0b", 3), std::string("\xC3\xA4"), std::string(129, 'a')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(registry->Put(Text(id, "x")).status())) << id;
    EXPECT_TRUE(absl::IsInvalidArgument(registry->Get("ann", id).status())) << id;
    EXPECT_TRUE(absl::IsInvalidArgument(registry->Delete("ann", id))) << id;
  }
  for (const std::string& id : {std::string("."), std::string(".."), std::string("A:b-c_d.9"), std::string(128, 'a')}) {
    ASSERT_TRUE(registry->Put(Text(id, id)).ok()) << id;
    EXPECT_EQ(*registry->Content(*registry->Get("ann", id)), id);
  }
}

TEST_P(ContextRegistryTest, ContentIsAnyBytesUpToAMebibyte) {
  const auto registry = Open();
  std::string content(size_t{1} << 20, '\0');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7);
  for (const std::string& bytes : {std::string(), content}) {
    const auto put = registry->Put(Text("big", bytes));
    ASSERT_TRUE(put.ok()) << put.status();
    const auto read = registry->Content(put->record);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read == bytes, true);
  }
}

TEST_P(ContextRegistryTest, OfManyThatPutAtOnceEachGetsItsVersion) {
  constexpr int kThreads = 4, kPuts = 5;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const auto registry = Open();
      for (int i = 0; i < kPuts; ++i) {
        const auto put = registry->Put(Text("river", absl::StrCat(t, ".", i)));
        EXPECT_TRUE(put.ok()) << put.status();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto registry = Open();
  const auto last = registry->Get("ann", "river");
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(last->version, uint64_t{kThreads * kPuts}) << "no version was lost, none was given twice";
  EXPECT_TRUE(registry->Content(*last).ok());
}

TEST_P(ContextRegistryTest, WhatCannotBeReachedIsNotTakenForAbsent) {
  const auto registry = Open();
  ASSERT_TRUE(registry->Put(Text("river", "a")).ok());
  if (etcd()) {
    server_->Kill();
  } else {  // A file where the tenant's folder was.
    const std::string folder = absl::StrCat(folder_, "/contexts/", TenantKey("ann"));
    std::filesystem::remove_all(folder);
    ASSERT_TRUE(WriteFileAtomically(folder, "").ok());
  }
  for (const absl::Status& status : {registry->Get("ann", "river").status(), registry->Get("ann", "lake").status(),
                                     registry->Put(Text("lake", "a")).status(), registry->Delete("ann", "river"),
                                     registry->List("ann", "", 10).status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("try again"));
  }
}

TEST_P(ContextRegistryTest, NeitherMembersNorTheFolderShowUsersTexts) {
  const auto registry = Open();
  ASSERT_TRUE(registry->Put(Text("river", "a secret", "../../ann")).ok());
  if (etcd()) {
    const auto client = *EtcdClient::Create(Options());
    EXPECT_TRUE(client->GetPrefix(Options().prefix)->kvs().empty()) << "every member reads what is there";
    return;
  }
  EXPECT_EQ(std::filesystem::status(folder_ + "/contexts").permissions(), std::filesystem::perms::owner_all);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    EXPECT_EQ(name.find("ann"), std::string::npos) << name;
    EXPECT_EQ(name.find("river"), std::string::npos) << name;
  }
}

TEST(ContextRecordTest, WhatIsNoRecordOfThisContextIsDataLoss) {
  const ContextRecord record = NextVersion(Text("river", "a"), nullptr, absl::FromUnixMicros(77)).record;
  const std::string json = ContextRecordToJson(record);
  const auto read = ContextRecordFromJson(json, "ann", "river");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, record);
  EXPECT_TRUE(absl::IsDataLoss(ContextRecordFromJson(json, "bob", "river").status()));
  EXPECT_TRUE(absl::IsDataLoss(ContextRecordFromJson(json, "ann", "lake").status()));
  for (const std::string& text : {std::string(), std::string("[]"), std::string("{}"), json.substr(0, 50),
                                  std::string(R"({"id":"river","version":-1})")}) {
    EXPECT_TRUE(absl::IsDataLoss(ContextRecordFromJson(text, "ann", "river").status())) << text;
  }
}

}  // namespace
}  // namespace perigee::cluster
