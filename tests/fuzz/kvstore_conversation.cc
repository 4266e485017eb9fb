#include "kvstore_conversation.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/test/server_context_test_spouse.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "kvstore/quick_calls.h"
#include "kvstore/service.h"
#include "kvstore/store.h"
#include "perigee/v1/kvstore.grpc.pb.h"

namespace perigee::kvstore {
namespace {

constexpr size_t kSlabBytes = 64 << 10;
constexpr uint64_t kPayloadBytes = 3000;  // Of the planes whose headers fit.

void Expect(bool condition) {
  if (!condition) std::abort();
}

pod::BlockKey KeyOf(uint8_t n) { return pod::BlockKey{Sha256(absl::StrCat("block ", static_cast<int>(n)))}; }

// Of the distant plane of KeyOf(n), with a payload of zeros.
std::string HeaderOf(uint8_t n) {
  const std::vector<std::byte> payload(kPayloadBytes);
  pod::PlaneHeader h;
  h.kind = pod::PlaneKind::kDistant;
  h.key = h.root = KeyOf(n);
  h.tenant = n % 2 == 0 ? "even" : "odd";
  h.shape = {.layers = 2, .kv_heads = 2, .head_dim = 64};
  h.block_tokens = h.tokens = 64;
  h.payload_bytes = kPayloadBytes;
  h.sections.push_back({static_cast<uint32_t>(kPayloadBytes), Crc32c(payload)});
  return pod::EncodePlaneHeader(h);
}

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};

class Client {
 public:
  explicit Client(StoreOptions options) {
    Expect(slab_ != nullptr);
    std::memset(slab_.get(), 0, kSlabBytes);
    options.now = options.wall = [this] { return absl::FromUnixMillis(now_ms_); };
    auto store = Store::Open(options, {slab_.get(), kSlabBytes});
    Expect(store.ok());
    store_ = *std::move(store);
    DataPlane data;
    data.epoch = 7;
    data.port = 1;
    // What the store asks of the transport is about its slab.
    data.forget_puts = [this](std::span<const std::byte> bytes) { ExpectInSlab(bytes); };
    data.unsummed_bytes = [this](std::span<const std::byte> bytes) {
      ExpectInSlab(bytes);
      return bytes.size();
    };
    service_ = MakeStoreService(store_.get(), &sessions_, data);
    stub_ = static_cast<v1::KvStore::Service*>(service_.grpc.get());
    trusted_token_ = Hello("s");
    token_ = Hello("u");
  }

  void Run(absl::string_view input) {
    ByteReader r(input);
    while (r.remaining() > 0) {
      const uint8_t method = r.U8();
      const uint16_t bytes = r.U16();
      const absl::string_view request = r.Raw(std::min<size_t>(bytes, r.remaining()));
      Say(method, std::string(request));
    }
  }

  void GiveBack() {
    token_ = trusted_token_;
    quick_ = std::nullopt;
    v1::AbortRequest abort;
    for (const uint64_t id : reservations_) abort.add_reservation_ids(id);
    v1::AbortResponse aborted;
    Expect(Call(&v1::KvStore::Service::Abort, abort, &aborted));
    for (const uint64_t id : leases_) {
      v1::ReleaseRequest release;
      release.set_lease_id(id);
      v1::ReleaseResponse released;
      Call(&v1::KvStore::Service::Release, release, &released);
    }
    now_ms_ += absl::ToInt64Milliseconds(absl::Hours(2));  // Reservations that were aborted with writes on their way.
    std::vector<pod::BlockKey> keys;
    std::string page;
    do {
      auto listed = store_->List(page, 0, "");
      Expect(listed.ok());
      for (const ListedPlane& plane : listed->planes) keys.push_back(plane.id.key);
      page = listed->next_page_token;
    } while (!page.empty());
    Expect(store_->Delete(keys).ok());
    // What the store moves between its tiers by itself may be on its way.
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    StoreStats stats = store_->Stats();
    while (!IsEmpty(stats) && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
      stats = store_->Stats();
    }
    Expect(IsEmpty(stats));
    Expect(stats.reservations == 0 && stats.leases == 0);
  }

 private:
  static bool IsEmpty(const StoreStats& stats) {
    return stats.slab_used_bytes == 0 && stats.reserved_bytes == 0 && stats.leased_bytes == 0 &&
           stats.ssd.live_bytes == 0;
  }
  void ExpectInSlab(std::span<const std::byte> bytes) const {
    const auto begin = static_cast<size_t>(bytes.data() - slab_.get());
    Expect(begin <= kSlabBytes && bytes.size() <= kSlabBytes - begin);
  }

  std::string Hello(const char* secret) {
    v1::HelloRequest hello;
    hello.set_protocol_version(kProtocolVersion);
    hello.set_secret(secret);
    v1::HelloResponse session;
    grpc::ServerContext context;
    Expect(stub_->Hello(&context, &hello, &session).ok());
    return session.session_token();
  }

  template <typename Method, typename Request, typename Response>
  bool Call(Method method, const Request& request, Response* response) {
    if (quick_) {
      const std::string header = std::string(1, static_cast<char>(*quick_)) + token_;
      const absl::StatusOr<std::string> answer = Send(header, request.SerializeAsString());
      if (!answer.ok() || (*answer)[0] != 0) return false;
      Expect(response->ParseFromString(answer->substr(1)));
      return true;
    }
    grpc::ServerContext context;
    grpc::testing::ServerContextTestSpouse spouse(&context);
    spouse.AddClientMetadata(kSessionMetadata, token_);
    const grpc::Status status = (stub_->*method)(&context, &request, response);
    if (!status.ok()) Expect(!status.error_message().empty() && response->ByteSizeLong() == 0);
    return status.ok();
  }
  // By message. Whatever is refused is refused with words.
  absl::StatusOr<std::string> Send(absl::string_view header, absl::string_view payload) {
    absl::StatusOr<std::string> answer = service_.quick(header, payload);
    if (!answer.ok()) {
      Expect(!answer.status().message().empty());
    } else {
      Expect(!answer->empty() && (*answer)[0] >= 0 && (*answer)[0] <= 16 && ((*answer)[0] == 0 || answer->size() > 1));
      Expect(answer->size() <= kMaxQuickBytes + 1);
    }
    return answer;
  }
  // Parses, puts real names in, calls.
  template <typename Request, typename Response, typename Method, typename Mend>
  bool Try(Method method, const std::string& bytes, Request* request, Response* response, Mend mend) {
    if (!request->ParseFromString(bytes)) return false;
    mend(*request);
    return Call(method, *request, response);
  }

  static void MendKey(std::string* key) {
    if (key->size() != 1) return;
    const pod::BlockKey real = KeyOf(static_cast<uint8_t>((*key)[0]));
    key->assign(reinterpret_cast<const char*>(real.digest.data()), real.digest.size());
  }
  static uint64_t Real(const std::vector<uint64_t>& ids, uint64_t id) {
    return id < 256 && !ids.empty() ? ids[id % ids.size()] : id;
  }

  static std::optional<QuickCall> QuickCallOf(uint8_t method) {
    switch (method) {
      case 1:
        return QuickCall::kReserve;
      case 2:
        return QuickCall::kCommit;
      case 5:
        return QuickCall::kAcquire;
      case 7:
        return QuickCall::kRelease;
      default:
        return std::nullopt;
    }
  }

  void SayRaw(const std::string& bytes) {
    ByteReader r(bytes);
    const uint8_t length = r.U8();
    std::string header(r.Raw(std::min<size_t>(length, r.remaining())));
    if (header.size() == 1) header += token_;
    (void)Send(header, r.Raw(r.remaining()));
  }

  void Say(uint8_t method, const std::string& bytes) {
    using S = v1::KvStore::Service;
    quick_ = std::nullopt;
    if (method % 32 == 31) return SayRaw(bytes);
    if (method % 32 >= 16) quick_ = QuickCallOf(method % 16);
    switch (method % 16) {
      case 0: {
        v1::HelloRequest request;
        v1::HelloResponse response;
        if (Try(&S::Hello, bytes, &request, &response, [](auto&) {})) token_ = response.session_token();
        break;
      }
      case 1: {
        v1::ReserveRequest request;
        v1::ReserveResponse response;
        if (!Try(&S::Reserve, bytes, &request, &response, [](auto& r) {
              for (auto& plane : *r.mutable_planes()) MendKey(plane.mutable_id()->mutable_key());
            })) {
          break;
        }
        Expect(response.planes_size() == request.planes_size());
        for (int i = 0; i < response.planes_size(); ++i) {
          const auto& plane = response.planes(i);
          if (plane.already_committed()) continue;
          reservations_.push_back(plane.reservation_id());
          // Where it may write, all of it is the store's.
          const uint64_t begin = plane.remote_address() - reinterpret_cast<uint64_t>(slab_.get());
          Expect(begin < kSlabBytes && request.planes(i).payload_bytes() <= kSlabBytes - begin);
        }
        break;
      }
      case 2: {
        v1::CommitRequest request;
        v1::CommitResponse response;
        if (Try(&S::Commit, bytes, &request, &response, [this](auto& r) {
              for (auto& plane : *r.mutable_planes()) {
                plane.set_reservation_id(Real(reservations_, plane.reservation_id()));
                if (plane.header().size() == 1) plane.set_header(HeaderOf(static_cast<uint8_t>(plane.header()[0])));
              }
            })) {
          Expect(response.planes_size() == request.planes_size());
        }
        break;
      }
      case 3: {
        v1::AbortRequest request;
        v1::AbortResponse response;
        Try(&S::Abort, bytes, &request, &response, [this](auto& r) {
          for (auto& id : *r.mutable_reservation_ids()) id = Real(reservations_, id);
        });
        break;
      }
      case 4: {
        v1::LookupRequest request;
        v1::LookupResponse response;
        if (Try(&S::Lookup, bytes, &request, &response, [](auto& r) {
              for (std::string& key : *r.mutable_keys()) MendKey(&key);
            })) {
          Expect(response.blocks_size() == request.keys_size() ||
                 (request.prefix() && response.blocks_size() < request.keys_size()));
        }
        break;
      }
      case 5: {
        v1::AcquireRequest request;
        v1::AcquireResponse response;
        if (!Try(&S::Acquire, bytes, &request, &response, [](auto& r) {
              for (auto& plane : *r.mutable_planes()) MendKey(plane.mutable_key());
            })) {
          break;
        }
        Expect(response.planes_size() == request.planes_size());
        if (response.lease_id() != 0) leases_.push_back(response.lease_id());
        break;
      }
      case 6: {
        v1::RenewRequest request;
        v1::RenewResponse response;
        Try(&S::Renew, bytes, &request, &response, [this](auto& r) { r.set_lease_id(Real(leases_, r.lease_id())); });
        break;
      }
      case 7: {
        v1::ReleaseRequest request;
        v1::ReleaseResponse response;
        Try(&S::Release, bytes, &request, &response, [this](auto& r) { r.set_lease_id(Real(leases_, r.lease_id())); });
        break;
      }
      case 8: {
        v1::ReportCorruptRequest request;
        v1::ReportCorruptResponse response;
        Try(&S::ReportCorrupt, bytes, &request, &response, [](auto& r) { MendKey(r.mutable_id()->mutable_key()); });
        break;
      }
      case 9: {
        v1::DeleteRequest request;
        v1::DeleteResponse response;
        Try(&S::Delete, bytes, &request, &response, [](auto& r) {
          for (std::string& key : *r.mutable_keys()) MendKey(&key);
        });
        break;
      }
      case 10: {
        v1::ListRequest request;
        v1::ListResponse response;
        Try(&S::List, bytes, &request, &response, [](auto&) {});
        break;
      }
      case 11: {
        v1::StatRequest request;
        v1::StatResponse response;
        if (Try(&S::Stat, bytes, &request, &response, [](auto&) {})) {
          Expect(response.slab_used_bytes() <= response.slab_bytes());
          Expect(response.reserved_bytes() + response.leased_bytes() <= response.slab_used_bytes());
        }
        break;
      }
      case 12: {
        v1::PinRequest request;
        v1::PinResponse response;
        Try(&S::Pin, bytes, &request, &response, [](auto& r) {
          for (std::string& key : *r.mutable_keys()) MendKey(&key);
        });
        break;
      }
      case 13: {
        v1::PromoteRequest request;
        v1::PromoteResponse response;
        Try(&S::Promote, bytes, &request, &response, [](auto& r) {
          for (auto& plane : *r.mutable_planes()) MendKey(plane.mutable_key());
        });
        break;
      }
      case 14: {
        v1::EventsRequest request;
        v1::EventsResponse response;
        Try(&S::Events, bytes, &request, &response, [](auto& r) { r.set_wait_ms(0); });
        break;
      }
      default:  // Time passes.
        now_ms_ += static_cast<int64_t>(bytes.size()) * 100;
        store_->Tidy();
    }
  }

  std::unique_ptr<std::byte, Free> slab_{static_cast<std::byte*>(std::aligned_alloc(kPageBytes, kSlabBytes))};
  std::atomic<int64_t> now_ms_{1'000'000'000};  // the store's own thread asks too
  transport::GrantTable grants_;
  SessionTable sessions_{{{.secret = "s", .tenant = "", .trusted = true},
                          {.secret = "o", .tenant = "odd", .trusted = false},
                          {.secret = "u", .tenant = "", .trusted = false}},
                         &grants_};
  std::unique_ptr<Store> store_;
  StoreService service_;
  v1::KvStore::Service* stub_ = nullptr;
  std::string trusted_token_, token_;
  std::optional<QuickCall> quick_;  // how the call under way goes
  std::vector<uint64_t> reservations_, leases_;
};

}  // namespace

void PlayConversation(absl::string_view input, StoreOptions options) {
  // It would complain of every string that is not UTF-8.
  [[maybe_unused]] static const bool quiet = (google::protobuf::SetLogHandler(nullptr), true);
  Client client(std::move(options));
  client.Run(input);
  client.GiveBack();
}

}  // namespace perigee::kvstore
