// Hostile and damaged control messages over real gRPC: clear errors, no crash, nothing left behind.
#include "kvstore/service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <random>

#include "kvstore/quick_calls.h"
#include "perigee/v1/kvstore.grpc.pb.h"
#include "planes.h"
#include "proto/grpc_server.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

using Stub = v1::KvStore::Stub;

class ServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    store_ = OpenStore(slab_, "");
    DataPlane data;
    data.epoch = 7;
    data.port = 1;
    service_ = MakeStoreService(store_.get(), &sessions_, data);
    auto server = GrpcServer::Start("127.0.0.1:0", {service_.grpc.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    stub_ = v1::KvStore::NewStub(
        grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments));
    v1::HelloRequest hello;
    v1::HelloResponse session;
    hello.set_protocol_version(kProtocolVersion);
    ASSERT_TRUE(Call(&Stub::Hello, hello, &session).ok());
    token_ = session.session_token();
  }
  template <typename Method, typename Request, typename Response>
  grpc::Status Call(Method method, const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    if (!token_.empty()) context.AddMetadata(kSessionMetadata, token_);
    return (stub_.get()->*method)(&context, request, response);
  }
  FakeSlab slab_{1 << 20};
  transport::GrantTable grants_;
  SessionTable sessions_{{}, &grants_};
  std::unique_ptr<Store> store_;
  StoreService service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::KvStore::Stub> stub_;
  std::string token_;
};

TEST_F(ServiceTest, AnotherProtocolVersionIsRefused) {
  v1::HelloRequest request;
  v1::HelloResponse response;
  request.set_protocol_version(99);
  const grpc::Status status = Call(&Stub::Hello, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("99"));
}

TEST_F(ServiceTest, WrongKeysKindsAndSizesAreRefused) {
  for (const size_t key_bytes : {size_t{0}, size_t{31}, size_t{33}, size_t{1} << 20}) {
    v1::ReserveRequest request;
    v1::ReserveResponse response;
    auto* plane = request.add_planes();
    plane->mutable_id()->set_key(std::string(key_bytes, 'k'));
    plane->mutable_id()->set_kind(v1::PLANE_KIND_DISTANT);
    plane->set_payload_bytes(10);
    request.set_ttl_ms(1000);
    EXPECT_EQ(Call(&Stub::Reserve, request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    v1::LookupRequest lookup;
    v1::LookupResponse found;
    lookup.add_keys(std::string(key_bytes, 'k'));
    EXPECT_EQ(Call(&Stub::Lookup, lookup, &found).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    v1::DeleteRequest remove;
    v1::DeleteResponse removed;
    remove.add_keys(std::string(key_bytes, 'k'));
    EXPECT_EQ(Call(&Stub::Delete, remove, &removed).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  for (const int kind : {0, 4, 1000, -1}) {
    v1::AcquireRequest request;
    v1::AcquireResponse response;
    request.add_planes()->set_key(std::string(32, 'k'));
    request.mutable_planes(0)->set_kind(static_cast<v1::PlaneKind>(kind));
    request.set_ttl_ms(1000);
    EXPECT_EQ(Call(&Stub::Acquire, request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1} << 50, UINT64_MAX, UINT64_MAX - 1}) {
    v1::ReserveRequest request;
    v1::ReserveResponse response;
    auto* plane = request.add_planes();
    plane->mutable_id()->set_key(std::string(32, 'k'));
    plane->mutable_id()->set_kind(v1::PLANE_KIND_DISTANT);
    plane->set_payload_bytes(bytes);
    request.set_ttl_ms(UINT64_MAX);
    EXPECT_FALSE(Call(&Stub::Reserve, request, &response).ok());
  }
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
}

TEST_F(ServiceTest, HostileQuickCallsGetErrorsAndLeaveNothing) {
  const auto code = [&](const std::string& header, const std::string& payload) -> int {
    const absl::StatusOr<std::string> answer = service_.quick(header, payload);
    return answer.ok() ? answer->at(0) : answer.status().raw_code();
  };
  const auto header = [&](QuickCall call) { return static_cast<char>(call) + token_; };
  constexpr int kInvalid = 3, kUnimplemented = 12, kUnauthenticated = 16;
  EXPECT_EQ(code("", ""), kInvalid);
  EXPECT_EQ(code(std::string(1, '\0') + token_, ""), kUnimplemented);
  EXPECT_EQ(code(std::string(1, '\x7f') + token_, ""), kUnimplemented);
  EXPECT_EQ(code(header(QuickCall::kReserve), std::string(kMaxQuickBytes + 1, 'x')), kInvalid);
  v1::ReserveRequest reserve;
  reserve.set_ttl_ms(1000);
  for (size_t i = 0; i <= kMaxQuickPlanes; ++i) {
    reserve.add_planes()->mutable_id()->set_key(TestKey(i).digest.data(), TestKey(i).digest.size());
    reserve.mutable_planes(static_cast<int>(i))->mutable_id()->set_kind(v1::PLANE_KIND_DISTANT);
    reserve.mutable_planes(static_cast<int>(i))->set_payload_bytes(1);
  }
  EXPECT_EQ(code(header(QuickCall::kReserve), reserve.SerializeAsString()), kUnimplemented) << "too many for a handler";
  reserve.mutable_planes()->DeleteSubrange(1, static_cast<int>(kMaxQuickPlanes));
  EXPECT_EQ(code(header(QuickCall::kReserve).substr(0, 1), reserve.SerializeAsString()), kUnauthenticated);
  EXPECT_EQ(code(header(QuickCall::kReserve).substr(0, 20), reserve.SerializeAsString()), kUnauthenticated);
  reserve.mutable_planes(0)->mutable_id()->set_key("short");
  EXPECT_EQ(code(header(QuickCall::kReserve), reserve.SerializeAsString()), kInvalid);
  // This session is nobody's whom the store trusts.
  EXPECT_EQ(code(header(QuickCall::kCommit), v1::CommitRequest().SerializeAsString()), kUnimplemented);
  EXPECT_EQ(code(header(QuickCall::kRelease), v1::ReleaseRequest().SerializeAsString()), kUnimplemented);
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::string junk(random() % 200, ' ');
    for (char& c : junk) c = static_cast<char>(random());
    EXPECT_NE(code(header(static_cast<QuickCall>(1 + i % 4)), junk + "\x07"), 0) << i;
  }
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
  EXPECT_EQ(store_->Stats().leases, 0u);
}

TEST_F(ServiceTest, UnknownIdsAreNotFoundAndEmptyBatchesAreFine) {
  v1::CommitRequest commit;
  v1::CommitResponse committed;
  commit.set_durability(v1::DURABILITY_DRAM);
  commit.add_planes()->set_reservation_id(12345);
  commit.add_planes()->set_header(std::string(3 << 20, 'x'));
  ASSERT_TRUE(Call(&Stub::Commit, commit, &committed).ok());
  EXPECT_EQ(committed.planes(0).code(), static_cast<int>(grpc::StatusCode::NOT_FOUND));
  EXPECT_EQ(committed.planes(1).code(), static_cast<int>(grpc::StatusCode::NOT_FOUND));
  commit.set_durability(static_cast<v1::Durability>(77));
  EXPECT_EQ(Call(&Stub::Commit, commit, &committed).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::RenewRequest renew;
  v1::RenewResponse renewed;
  renew.set_ttl_ms(5);
  EXPECT_EQ(Call(&Stub::Renew, renew, &renewed).error_code(), grpc::StatusCode::NOT_FOUND);
  v1::ReleaseRequest release;
  v1::ReleaseResponse released;
  release.set_lease_id(UINT64_MAX);
  EXPECT_EQ(Call(&Stub::Release, release, &released).error_code(), grpc::StatusCode::NOT_FOUND);
  v1::AbortRequest abort;
  v1::AbortResponse aborted;
  abort.add_reservation_ids(1);
  ASSERT_TRUE(Call(&Stub::Abort, abort, &aborted).ok());
  EXPECT_EQ(aborted.aborted(), 0u);
  v1::AcquireRequest acquire;
  v1::AcquireResponse acquired;
  acquire.set_ttl_ms(1);
  ASSERT_TRUE(Call(&Stub::Acquire, acquire, &acquired).ok());
  EXPECT_EQ(acquired.lease_id(), 0u);
  v1::ListRequest list;
  v1::ListResponse listed;
  list.set_page_token("nonsense");
  EXPECT_EQ(Call(&Stub::List, list, &listed).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  list.clear_page_token();
  list.set_limit(UINT32_MAX);
  EXPECT_TRUE(Call(&Stub::List, list, &listed).ok());
}

TEST_F(ServiceTest, OversizedMessagesAndBatchesAreRefused) {
  v1::LookupRequest lookup;
  v1::LookupResponse found;
  for (int i = 0; i < 70000; ++i) lookup.add_keys(std::string(32, 'k'));
  EXPECT_EQ(Call(&Stub::Lookup, lookup, &found).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::CommitRequest commit;
  v1::CommitResponse committed;
  commit.add_planes()->set_header(std::string(size_t{65} << 20, 'x'));
  EXPECT_EQ(Call(&Stub::Commit, commit, &committed).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, MutatedHeadersAreNeverCommitted) {
  const TestPlane p = MakePlane(1, 5000);
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) {
    std::string header = p.encoded();
    if (i % 3 == 0) header.resize(random() % header.size());
    if (!header.empty()) header[random() % header.size()] ^= static_cast<char>(1 + random() % 255);
    v1::ReserveRequest reserve;
    v1::ReserveResponse reserved;
    reserve.set_ttl_ms(10000);
    auto* plane = reserve.add_planes();
    plane->mutable_id()->set_key(p.id.key.digest.data(), 32);
    plane->mutable_id()->set_kind(v1::PLANE_KIND_DISTANT);
    plane->set_payload_bytes(5000);
    ASSERT_TRUE(Call(&Stub::Reserve, reserve, &reserved).ok());
    Poke(reserved.planes(0).remote_address(), p.payload);
    v1::CommitRequest commit;
    v1::CommitResponse committed;
    commit.add_planes()->set_reservation_id(reserved.planes(0).reservation_id());
    commit.mutable_planes(0)->set_header(header);
    ASSERT_TRUE(Call(&Stub::Commit, commit, &committed).ok());
    ASSERT_NE(committed.planes(0).code(), 0);
  }
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
