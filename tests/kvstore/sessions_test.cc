// Sessions of a store: who is let in, what a token is worth, and that bytes are reached only under a reservation or
// lease.
#include "kvstore/sessions.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "absl/time/clock.h"
#include "kvstore/client.h"
#include "kvstore/server.h"
#include "kvstore/service.h"
#include "perigee/v1/kvstore.grpc.pb.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

constexpr char kOperator[] = "operator-secret-0123";
constexpr char kAcme[] = "acme-secret-01234567";

std::vector<Credential> TwoCredentials() { return {{kOperator, "", true}, {kAcme, "acme", false}}; }

std::string PrivateFile(const std::string& name, const std::string& text, mode_t mode = 0600) {
  const std::string path = testing::TempDir() + "/sessions_test_" + name;
  std::ofstream(path) << text;
  chmod(path.c_str(), mode);
  return path;
}

TEST(CredentialsTest, AFileOfSecretsIsRead) {
  const auto read = ReadCredentials(PrivateFile("good",
                                                "[[credential]]\nsecret = \"0123456789abcdef\"\ntrusted = true\n"
                                                "[[credential]]\nsecret = \"fedcba9876543210\"\ntenant = \"a\"\n"));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 2u);
  EXPECT_TRUE((*read)[0].trusted);
  EXPECT_EQ((*read)[1].tenant, "a");
  EXPECT_FALSE((*read)[1].trusted);
  EXPECT_EQ(*ReadSecret(PrivateFile("secret", "  0123456789abcdef\n")), "0123456789abcdef");
}

TEST(CredentialsTest, WhatIsWrongIsNamed) {
  const auto error = [](const std::string& text) {
    return std::string(ReadCredentials(PrivateFile("bad", text)).status().message());
  };
  EXPECT_THAT(error(""), HasSubstr("has no"));
  EXPECT_THAT(error("[[credential]]\nsecret = \"short\"\n"), HasSubstr("16 characters"));
  EXPECT_THAT(error("[[credential]]\nsecret = \"0123456789abcdef\"\nrole = \"x\"\n"), HasSubstr("'role'"));
  EXPECT_THAT(error("credential = 3\n"), HasSubstr("[[credential]]"));
  EXPECT_THAT(error("[[credential]\n"), HasSubstr(":1:"));
  EXPECT_THAT(error("[[credential]]\nsecret = \"0123456789abcdef\"\ntrusted = true\ntenant = \"a\"\n"),
              HasSubstr("leave tenant out"));
  EXPECT_THAT(error("[[credential]]\nsecret = \"0123456789abcdef\"\n[[credential]]\nsecret = \"0123456789abcdef\"\n"),
              HasSubstr("another credential's"));
  EXPECT_TRUE(absl::IsPermissionDenied(
      ReadCredentials(PrivateFile("open", "[[credential]]\nsecret = \"0123456789abcdef\"\n", 0644)).status()));
}

TEST(SessionTableTest, ASecretDecidesTenantAndTrust) {
  transport::GrantTable grants;
  SessionTable table(TwoCredentials(), &grants);
  const auto trusted = table.Open(kOperator, "", "ctx");
  ASSERT_TRUE(trusted.ok());
  EXPECT_TRUE(trusted->trusted);
  const auto narrowed = table.Open(kOperator, "zeta", "ctx");  // asks for less than it could have
  ASSERT_TRUE(narrowed.ok());
  EXPECT_FALSE(narrowed->trusted);
  EXPECT_EQ(narrowed->tenant, "zeta");
  const auto acme = table.Open(kAcme, "", "ctx");
  ASSERT_TRUE(acme.ok());
  EXPECT_EQ(acme->tenant, "acme");
  EXPECT_FALSE(acme->trusted);
  EXPECT_TRUE(absl::IsPermissionDenied(table.Open(kAcme, "zeta", "ctx").status()));
  EXPECT_TRUE(absl::IsUnauthenticated(table.Open("", "", "ctx").status()));
  EXPECT_TRUE(absl::IsUnauthenticated(table.Open("operator-secret-0124", "", "ctx").status()));
}

TEST(SessionTableTest, ATokenWorksForItsOwnContextOnlyAndNotForever) {
  transport::GrantTable grants;
  std::vector<std::string> dismissed;
  SessionTable table({}, &grants, [&](const std::string& host) { dismissed.push_back(host); });
  const auto session = table.Open("", "", "context-a");
  ASSERT_TRUE(session.ok());
  EXPECT_TRUE(table.Authenticate(session->token, "context-a").ok());
  EXPECT_TRUE(absl::IsPermissionDenied(table.Authenticate(session->token, "context-b").status()));
  EXPECT_TRUE(absl::IsPermissionDenied(table.Authenticate("guess", "context-a").status()));
  table.GrantReservation(*session, 5, 4096, 100, absl::InfiniteFuture());
  EXPECT_EQ(grants.size(), 1u);
  table.AddHost(session->token, "10.0.0.1");
  table.AddHost(session->token, "10.0.0.2");
  table.Reap(absl::Hours(1));
  EXPECT_EQ(table.size(), 1u);
  EXPECT_TRUE(dismissed.empty());
  table.Reap(absl::ZeroDuration());
  EXPECT_EQ(dismissed, (std::vector<std::string>{"10.0.0.1", "10.0.0.2"}));
  table.AddHost(session->token, "10.0.0.3");
  EXPECT_EQ(dismissed.back(), "10.0.0.3") << "too late";
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(grants.size(), 0u);
  EXPECT_TRUE(absl::IsUnauthenticated(table.Find(session->token).status()));
}

absl::Status StorePlane(StoreClient& client, const TestPlane& plane) {
  const PlaneRequest request = plane.request();
  absl::StatusOr<WriteBatch> batch = client.Reserve({&request, 1});
  if (!batch.ok()) return batch.status();
  const absl::Status put = batch->Put(0, 0, plane.payload);
  if (!put.ok()) return put;
  const auto statuses = batch->Commit({&plane.header, 1});
  return statuses.ok() ? (*statuses)[0] : statuses.status();
}

absl::StatusOr<std::vector<std::byte>> FetchPlane(StoreClient& client, const TestPlane& plane) {
  absl::StatusOr<ReadLease> lease = client.Acquire({&plane.id, 1});
  if (!lease.ok()) return lease.status();
  std::vector<std::byte> bytes(plane.payload.size());
  const FetchRequest request{.plane = 0, .destination = bytes};
  const std::vector<absl::Status> statuses = lease->Fetch({&request, 1});
  if (!statuses[0].ok()) return statuses[0];
  return bytes;
}

class SessionsTest : public testing::Test {
 protected:
  void SetUp() override {
    ServerOptions options;
    options.port = 0;
    options.slab_bytes = 4 << 20;
    options.transport.transports = "shm,tcp";
    options.credentials = TwoCredentials();
    auto server = StoreServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto engine = transport::Context::Create({.transports = "shm,tcp"});
    ASSERT_TRUE(engine.ok());
    engine_ = *std::move(engine);
  }
  std::unique_ptr<StoreClient> Client(const std::string& secret) {
    ClientOptions options;
    options.secret = secret;
    auto client = StoreClient::Connect(server_->address(), engine_.get(), options);
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  std::unique_ptr<StoreServer> server_;
  std::unique_ptr<transport::Context> engine_;
};

TEST_F(SessionsTest, NobodyTalksWithoutASecret) {
  const absl::Status status = StoreClient::Connect(server_->address(), engine_.get(), {}).status();
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--store-secret-file"));
}

TEST_F(SessionsTest, ATenantWritesAndReadsItsOwnAndNobodyElses) {
  const auto acme = Client(kAcme), nodes = Client(kOperator);
  const TestPlane own = MakePlane(1, 1000, pod::PlaneKind::kDistant, "acme"),
                  foreign = MakePlane(2, 1000, pod::PlaneKind::kDistant, "zeta");
  ASSERT_TRUE(StorePlane(*acme, own).ok());
  ASSERT_TRUE(StorePlane(*nodes, foreign).ok());
  EXPECT_EQ(*FetchPlane(*acme, own), own.payload);
  EXPECT_EQ(*FetchPlane(*nodes, own), own.payload);
  EXPECT_TRUE(absl::IsNotFound(FetchPlane(*acme, foreign).status()));
  EXPECT_TRUE(absl::IsPermissionDenied(StorePlane(*acme, MakePlane(3, 1000, pod::PlaneKind::kDistant, "zeta"))));
  const std::vector<pod::BlockKey> keys = {own.header.key, foreign.header.key};
  EXPECT_EQ(*acme->Delete(keys), 1u);
  EXPECT_EQ(*FetchPlane(*nodes, foreign), foreign.payload);
}

// The data plane does not believe the client: it knows the session's reservations and leases itself.
TEST_F(SessionsTest, BytesAreReachedOnlyUnderAReservationOrALease) {
  // A session of the store's own protocol, spoken by hand.
  const auto channel = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
  const auto stub = v1::KvStore::NewStub(channel);
  const auto call = [&](auto method, const auto& request, auto* response, const std::string& token) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    if (!token.empty()) context.AddMetadata(kSessionMetadata, token);
    return (stub.get()->*method)(&context, request, response);
  };
  using Stub = v1::KvStore::Stub;
  v1::HelloRequest hello;
  v1::HelloResponse session;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_secret(kAcme);
  hello.set_context_id(std::string(engine_->id()));
  ASSERT_TRUE(call(&Stub::Hello, hello, &session, "").ok());
  EXPECT_FALSE(session.trusted());

  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  const auto port = static_cast<uint16_t>(session.data_port());
  EXPECT_TRUE(absl::IsPermissionDenied(engine_->Connect("127.0.0.1", port, deadline, "guess").status()));
  auto endpoint = engine_->Connect("127.0.0.1", port, deadline, session.session_token());
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  auto slab = endpoint->UnpackRemoteKey(session.remote_key());
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ(slab->path(), "messages");

  const TestPlane plane = MakePlane(7, 1000, pod::PlaneKind::kDistant, "acme");
  std::vector<std::byte> bytes(1000);
  const auto put = [&](uint64_t address, size_t size) {
    const transport::PutTransfer transfer{std::span(plane.payload).first(size), address, &*slab};
    return endpoint->Put({&transfer, 1}, deadline);
  };
  const auto get = [&](uint64_t address, size_t size) {
    const transport::GetTransfer transfer{std::span(bytes).first(size), address, &*slab};
    return endpoint->Get({&transfer, 1}, deadline);
  };
  EXPECT_TRUE(absl::IsPermissionDenied(put(slab->address(), 8)));
  EXPECT_TRUE(absl::IsPermissionDenied(get(slab->address(), 8)));

  v1::ReserveRequest reserve;
  v1::ReserveResponse reserved;
  reserve.set_ttl_ms(60000);
  auto* wanted = reserve.add_planes();
  wanted->mutable_id()->set_key(plane.id.key.digest.data(), 32);
  wanted->mutable_id()->set_kind(v1::PLANE_KIND_DISTANT);
  wanted->set_payload_bytes(1000);
  ASSERT_TRUE(call(&Stub::Reserve, reserve, &reserved, session.session_token()).ok());
  const uint64_t address = reserved.planes(0).remote_address();
  EXPECT_TRUE(put(address, 1000).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(put(address + 1, 1000)));  // one byte past its end
  EXPECT_TRUE(absl::IsPermissionDenied(put(address + 8192, 8)));
  EXPECT_TRUE(absl::IsPermissionDenied(get(address, 8)));  // writing is not reading

  v1::CommitRequest commit;
  v1::CommitResponse committed;
  commit.add_planes()->set_reservation_id(reserved.planes(0).reservation_id());
  commit.mutable_planes(0)->set_header(plane.encoded());
  // Another session cannot commit it.
  v1::HelloResponse other;
  ASSERT_TRUE(call(&Stub::Hello, hello, &other, "").ok());
  ASSERT_TRUE(call(&Stub::Commit, commit, &committed, other.session_token()).ok());
  EXPECT_EQ(committed.planes(0).code(), static_cast<int>(absl::StatusCode::kNotFound));
  ASSERT_TRUE(call(&Stub::Commit, commit, &committed, session.session_token()).ok());
  EXPECT_EQ(committed.planes(0).code(), 0) << committed.planes(0).message();
  EXPECT_TRUE(absl::IsPermissionDenied(put(address, 1000)));  // what is committed does not change

  v1::AcquireRequest acquire;
  v1::AcquireResponse lease;
  acquire.set_ttl_ms(60000);
  *acquire.add_planes() = wanted->id();
  ASSERT_TRUE(call(&Stub::Acquire, acquire, &lease, session.session_token()).ok());
  EXPECT_TRUE(get(lease.planes(0).remote_address(), 1000).ok());
  EXPECT_EQ(bytes, plane.payload);
  EXPECT_TRUE(absl::IsPermissionDenied(get(lease.planes(0).remote_address() + 8, 1000)));
  v1::ReleaseRequest release;
  v1::ReleaseResponse released;
  release.set_lease_id(lease.lease_id());
  EXPECT_EQ(call(&Stub::Release, release, &released, other.session_token()).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(get(lease.planes(0).remote_address(), 1000).ok());
  ASSERT_TRUE(call(&Stub::Release, release, &released, session.session_token()).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(get(lease.planes(0).remote_address(), 8)));

  // Nothing is said to those who have not said Hello.
  v1::StatResponse stat;
  EXPECT_EQ(call(&Stub::Stat, v1::StatRequest(), &stat, "").error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace perigee::kvstore
