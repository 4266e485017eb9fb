// A cluster of real processes on which things go wrong: no wrong tokens, no hang, nothing committed lost, and payload
// crosses UCX only.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "cluster/local_cluster.h"
#include "kvstore/client.h"
#include "kvstore/sessions.h"
#include "program.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::vector<int32_t> Ids(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = 2 + static_cast<int32_t>(random() % 1000);
  return ids;
}

class FailureTest : public ::testing::Test {
 protected:
  void Start(std::function<void(cluster::LocalClusterOptions&)> change = nullptr) {
    cluster::LocalClusterOptions options;
    options.keep_planes = false;
    options.executable = PERIGEE_PROGRAM;
    options.model_folder = PERIGEE_SOURCE_DIR "/models/podling";
    options.state_folder = folder_.path() + "/state";
    options.dram_mib = 64;
    options.pool_mib = 64;
    options.log_level = "warn";
    if (change) change(options);
    state_ = options.state_folder;
    auto cluster = cluster::LocalCluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
    client_ = std::make_unique<cluster::ClusterClient>(cluster_->addresses());
  }
  absl::StatusOr<cluster::GenerateResult> Ask(const std::vector<int32_t>& prompt,
                                              absl::Duration timeout = absl::Seconds(40)) {
    cluster::GenerateOptions options;
    options.token_ids = prompt;
    options.max_tokens = 8;
    options.ignore_eos = true;
    options.timeout = timeout;
    return client_->Generate(options);
  }
  kvstore::StoreStats StoreStats(uint64_t* grpc_bytes = nullptr) {
    auto engine = transport::Context::Create({});
    EXPECT_TRUE(engine.ok()) << engine.status();
    kvstore::ClientOptions options;
    options.secret = kvstore::ReadSecret(cluster_->addresses().store_secret_file).value_or("");
    auto store = kvstore::StoreClient::Connect(cluster_->addresses().store, engine->get(), options);
    EXPECT_TRUE(store.ok()) << store.status();
    if (!store.ok()) return {};
    const auto stat = (*store)->GetStat();
    EXPECT_TRUE(stat.ok()) << stat.status();
    if (grpc_bytes != nullptr) *grpc_bytes = stat->grpc_message_bytes;
    return stat->store;
  }
  std::vector<fs::path> SegmentFiles() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(state_ + "/store/segments")) files.push_back(entry.path());
    return files;
  }
  void TearDown() override {
    if (cluster_ != nullptr) {
      const absl::Status stopped = cluster_->Stop();
      EXPECT_TRUE(stopped.ok()) << stopped;
    }
  }

  TempFolder folder_;
  std::string state_;
  std::unique_ptr<cluster::LocalCluster> cluster_;
  std::unique_ptr<cluster::ClusterClient> client_;
};

// Bytes of the TCP connections that `pid` opened (not those it accepted), by the peer's port, as `ss -tinp` would show
// them.
struct TcpBytes {
  uint64_t sent = 0, received = 0;
};
absl::StatusOr<std::map<uint16_t, TcpBytes>> TcpBytesByPeerPort(pid_t pid, uint16_t own_port) {
  std::map<uint16_t, TcpBytes> out;
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) return ErrnoStatus("pidfd_open", absl::StrCat(pid), errno);
  for (const auto& entry : fs::directory_iterator(absl::StrCat("/proc/", pid, "/fd"))) {
    std::error_code error;
    if (!absl::StartsWith(fs::read_symlink(entry.path(), error).string(), "socket:")) continue;
    const UniqueFd fd(
        static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), std::stoi(entry.path().filename()), 0)));
    if (!fd) return ErrnoStatus("pidfd_getfd", entry.path().string(), errno);
    sockaddr_storage own{}, peer{};
    socklen_t own_length = sizeof(own), peer_length = sizeof(peer);
    if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &own_length) != 0) continue;
    if (::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &peer_length) != 0) continue;
    const auto port = [](const sockaddr_storage& a) {
      return ntohs(a.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(a).sin6_port
                                           : reinterpret_cast<const sockaddr_in&>(a).sin_port);
    };
    if ((own.ss_family != AF_INET && own.ss_family != AF_INET6) || port(own) == own_port) continue;
    tcp_info info{};
    socklen_t length = sizeof(info);
    if (::getsockopt(fd.get(), IPPROTO_TCP, TCP_INFO, &info, &length) != 0) continue;
    out[port(peer)].sent += info.tcpi_bytes_acked;
    out[port(peer)].received += info.tcpi_bytes_received;
  }
  return out;
}
uint16_t PortOf(const std::string& address) {
  return static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)));
}

TEST_F(FailureTest, PayloadCrossesUcxAndNotGrpc) {
  Start([](auto& options) { options.transports = "tcp"; });
  uint64_t fetched = 0, written = 0;
  for (uint32_t i = 0; i < 3; ++i) {
    const auto answer = Ask(Ids(2000, i));
    ASSERT_TRUE(answer.ok()) << answer.status();
    fetched += answer->started.bytes_fetched();
    written += answer->prefill.bytes_written();
  }
  ASSERT_GT(written, uint64_t{6} << 20);
  ASSERT_GT(fetched, uint64_t{6} << 20);

  // By the processes' own counters: all payload one-sided, and gRPC's messages a small part of it.
  uint64_t grpc_bytes = 0;
  const kvstore::StoreStats store = StoreStats(&grpc_bytes);
  EXPECT_EQ(store.committed_bytes, written);
  EXPECT_EQ(store.fetched_bytes, fetched);
  EXPECT_LT(grpc_bytes, (written + fetched) / 20);
  const auto prefill = client_->PrefillInfo();
  const auto decode = client_->DecodeInfo();
  ASSERT_TRUE(prefill.ok() && decode.ok());
  EXPECT_EQ(prefill->payload_bytes(), written);
  EXPECT_EQ(decode->payload_bytes(), fetched);
  EXPECT_LT(prefill->control_bytes(), written / 20);
  EXPECT_LT(decode->control_bytes(), fetched / 20);

  // By the kernel's: the connection to the store's gRPC port against all others.
  const uint16_t grpc_port = PortOf(cluster_->addresses().store);
  const auto writer = TcpBytesByPeerPort(cluster_->prefill_pid(), PortOf(cluster_->addresses().prefill));
  const auto reader = TcpBytesByPeerPort(cluster_->decode_pid(), PortOf(cluster_->addresses().decode));
  if (!writer.ok() || !reader.ok())
    GTEST_SKIP() << "the kernel's half is not shown: " << writer.status() << ", " << reader.status();
  ASSERT_EQ(writer->count(grpc_port), 1u);
  ASSERT_EQ(reader->count(grpc_port), 1u);
  uint64_t data_sent = 0, data_received = 0;
  for (const auto& [port, bytes] : *writer) data_sent += port == grpc_port ? 0 : bytes.sent;
  for (const auto& [port, bytes] : *reader) data_received += port == grpc_port ? 0 : bytes.received;
  EXPECT_GE(data_sent, written);
  EXPECT_GE(data_received, fetched);
  EXPECT_LT(writer->at(grpc_port).sent, written / 20);
  EXPECT_LT(reader->at(grpc_port).received, fetched / 20);
}

TEST_F(FailureTest, AFlippedByteOnDiskIsDetectedCountedAndComputedAgain) {
  Start();
  const auto prompt = Ids(1000, 1);
  const auto before = Ask(prompt);
  ASSERT_TRUE(before.ok()) << before.status();
  cluster_->KillStore();
  const std::vector<fs::path> segments = SegmentFiles();
  ASSERT_FALSE(segments.empty());
  {
    std::fstream file(segments[0], std::ios::in | std::ios::out | std::ios::binary);
    char head[32];
    file.read(head, sizeof(head));
    ASSERT_EQ(std::string(head, 8), "PGREC001");
    uint64_t payload_offset = 0;
    std::memcpy(&payload_offset, head + 24, sizeof(payload_offset));
    file.seekg(static_cast<std::streamoff>(payload_offset + 1000));
    const char byte = static_cast<char>(file.get() ^ 0x10);
    file.seekp(static_cast<std::streamoff>(payload_offset + 1000));
    file.put(byte);
  }
  ASSERT_TRUE(cluster_->StartStore().ok());
  const auto after = Ask(prompt);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->token_ids, before->token_ids);
  EXPECT_GE(StoreStats().checksum_failures, 1u);
  // Mended for good.
  const auto again = Ask(prompt);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->token_ids, before->token_ids);
  EXPECT_EQ(again->attempts, 1);
  EXPECT_EQ(again->prefill.prefilled_tokens(), 0u);
}

TEST_F(FailureTest, ATruncatedSegmentLosesOnlyWhatWasInIt) {
  Start();
  const auto prompt = Ids(1000, 1);
  const auto before = Ask(prompt);
  ASSERT_TRUE(before.ok()) << before.status();
  for (const double keep : {0.5, 0.0}) {
    const uint64_t used_bytes = StoreStats().ssd.used_bytes;  // The file is longer: it is allocated ahead.
    cluster_->KillStore();
    for (const fs::path& segment : SegmentFiles()) {
      fs::resize_file(segment, static_cast<uintmax_t>(static_cast<double>(used_bytes) * keep));
    }
    const absl::Status started = cluster_->StartStore();
    ASSERT_TRUE(started.ok()) << started;
    EXPECT_GT(StoreStats().ssd.lost_at_start, 0u);
    const auto after = Ask(prompt);
    ASSERT_TRUE(after.ok()) << after.status();
    EXPECT_EQ(after->token_ids, before->token_ids);
    EXPECT_GT(after->prefill.prefilled_tokens(), 0u);
  }
}

TEST_F(FailureTest, ADeletedIndexIsAClearErrorAndWithoutItsSegmentsAnEmptyStore) {
  Start();
  const auto prompt = Ids(600, 1);
  const auto before = Ask(prompt);
  ASSERT_TRUE(before.ok()) << before.status();
  cluster_->KillStore();
  fs::remove_all(state_ + "/store/index");
  const absl::Status lost = cluster_->StartStore();
  EXPECT_THAT(std::string(lost.message()), HasSubstr(state_ + "/store/index"));
  const absl::Status down = Ask(prompt, absl::Seconds(10)).status();
  EXPECT_TRUE(absl::IsUnavailable(down)) << down;

  // As the message advises.
  fs::rename(state_ + "/store/segments", state_ + "/segments.lost");
  const absl::Status started = cluster_->StartStore();
  ASSERT_TRUE(started.ok()) << started;
  const auto after = Ask(prompt);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->token_ids, before->token_ids);
  EXPECT_EQ(after->prefill.prefilled_tokens(), 599u);
}

TEST_F(FailureTest, AStoreKilledUnderLoadGivesRightAnswersOrClearErrorsAndComesBack) {
  Start();
  constexpr int kThreads = 4;
  constexpr uint32_t kPrompts = 6;
  constexpr absl::Duration kTimeout = absl::Seconds(15);
  std::vector<std::vector<int32_t>> expected;
  for (uint32_t p = 0; p < kPrompts; ++p) {
    const auto answer = Ask(Ids(500, p));
    ASSERT_TRUE(answer.ok()) << answer.status();
    expected.push_back(answer->token_ids);
  }
  std::atomic<int> right{0}, failed{0};
  std::atomic<bool> killed{false}, stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint32_t i = static_cast<uint32_t>(t); !stop; ++i) {
        // Every third is new to the store, so that it is killed among writes too; its answer has no expectation.
        const bool fresh = i % 3 == 2;
        const uint32_t p = i % kPrompts;
        const absl::Time start = absl::Now();
        const auto answer = Ask(fresh ? Ids(500, 1000 * static_cast<uint32_t>(t + 1) + i) : Ids(500, p), kTimeout);
        EXPECT_LT(absl::Now() - start, kTimeout + absl::Seconds(5));
        if (answer.ok()) {
          if (!fresh) {
            EXPECT_EQ(answer->token_ids, expected[p]);
          }
          ++right;
        } else {
          EXPECT_TRUE(killed) << answer.status();
          EXPECT_TRUE(absl::IsUnavailable(answer.status()) || absl::IsDeadlineExceeded(answer.status()) ||
                      absl::IsNotFound(answer.status()))
              << answer.status();
          EXPECT_THAT(std::string(answer.status().message()), HasSubstr("node 127.0.0.1"));
          ++failed;
          absl::SleepFor(
              absl::Milliseconds(20));  // As a client that backs off: a machine full of refusals shows nothing more.
        }
      }
    });
  }
  EXPECT_TRUE(WaitFor([&] { return right >= 8; }));
  killed = true;
  cluster_->KillStore();
  EXPECT_TRUE(WaitFor([&] { return failed >= kThreads; }));
  const absl::Status started = cluster_->StartStore();
  EXPECT_TRUE(started.ok()) << started;
  const int before = right;
  EXPECT_TRUE(WaitFor([&] { return right >= before + 8; })) << "the nodes did not find the store again";
  stop = true;
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(cluster_->FindDead(), std::nullopt);
  // Nothing committed was lost, and nothing is computed that was stored.
  for (uint32_t p = 0; p < kPrompts; ++p) {
    const auto answer = Ask(Ids(500, p));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->token_ids, expected[p]);
    EXPECT_EQ(answer->prefill.prefilled_tokens(), 0u);
  }
}

TEST_F(FailureTest, AStoppedStoreIsADeadlineAndNotAHang) {
  Start();
  ASSERT_TRUE(Ask(Ids(300, 1)).ok());
  ::kill(cluster_->store_pid(), SIGSTOP);
  siginfo_t stopped;  // a signal takes effect some time after kill returns
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(cluster_->store_pid()), &stopped, WSTOPPED | WNOWAIT), 0);
  const absl::Time start = absl::Now();
  const absl::Status status = Ask(Ids(300, 1), absl::Seconds(2)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status)) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  ::kill(cluster_->store_pid(), SIGCONT);
  absl::StatusOr<cluster::GenerateResult> answer = absl::UnknownError("not asked");
  EXPECT_TRUE(WaitFor([&] { return (answer = Ask(Ids(300, 1))).ok(); })) << answer.status();
}

TEST_F(FailureTest, AStoreWithLittleMemoryAnswersFromItsDisk) {
  Start([](auto& options) { options.dram_mib = 4; });
  std::vector<std::vector<int32_t>> first;
  uint64_t written = 0;
  for (uint32_t p = 0; p < 6; ++p) {
    const auto answer = Ask(Ids(1200, p));
    ASSERT_TRUE(answer.ok()) << answer.status();
    first.push_back(answer->token_ids);
    written += answer->prefill.bytes_written();
  }
  ASSERT_GT(written, uint64_t{2} * 4 << 20);
  uint32_t from_disk = 0;
  for (uint32_t p = 0; p < 6; ++p) {
    const auto answer = Ask(Ids(1200, p));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->token_ids, first[p]);
    EXPECT_EQ(answer->prefill.prefilled_tokens(), 0u);
    from_disk += answer->started.planes_from_ssd();
  }
  EXPECT_GT(from_disk, 0u);
  EXPECT_GT(StoreStats().dram_evictions, 0u);
}

TEST_F(FailureTest, AFullDiskIsSaidAndNoOutageAndTakesPlanesAgainWhenThereIsRoom) {
  // A disk of our own, in a mount namespace that ends with this process.
  const std::string disk = folder_.path() + "/disk";
  fs::create_directory(disk);
  if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=160m") != 0) {
    GTEST_SKIP() << "NOT TESTED, needs root to mount a small disk: " << std::strerror(errno);
  }
  Start([&](auto& options) {
    options.state_folder = disk + "/state";
    options.dram_mib = 16;
  });
  const auto prompt = Ids(1000, 1);
  const auto before = Ask(prompt);
  ASSERT_TRUE(before.ok()) << before.status();
  {
    std::ofstream ballast(disk + "/ballast", std::ios::binary);
    const std::string megabyte(1 << 20, 'x');
    while (ballast.write(megabyte.data(), static_cast<std::streamsize>(megabyte.size())).flush()) {
    }
  }
  EXPECT_EQ(StoreStats().ssd.health, kvstore::SsdHealth::kOk) << "nothing has been written yet";
  const auto full = Ask(Ids(1000, 2));  // Memory takes what the disk does not.
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(StoreStats().ssd.health, kvstore::SsdHealth::kFull);
  EXPECT_THAT(StoreStats().ssd.paths.at(0).message, HasSubstr("the disk of " + disk));
  const auto during = Ask(prompt);
  ASSERT_TRUE(during.ok()) << during.status();
  EXPECT_EQ(during->token_ids, before->token_ids);
  EXPECT_EQ(during->prefill.prefilled_tokens(), 0u);
  EXPECT_EQ(cluster_->FindDead(), std::nullopt);

  fs::remove(disk + "/ballast");
  const uint64_t live_bytes = StoreStats().ssd.live_bytes;
  const auto after = Ask(Ids(1000, 3));
  EXPECT_TRUE(after.ok()) << after.status();
  EXPECT_GT(StoreStats().ssd.live_bytes, live_bytes);
  EXPECT_EQ(StoreStats().ssd.health, kvstore::SsdHealth::kOk);
  EXPECT_TRUE(cluster_->Stop().ok());
  cluster_.reset();
  ::umount2(disk.c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace perigee
