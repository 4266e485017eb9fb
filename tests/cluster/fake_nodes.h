// Nodes that serve no model: their answers are arithmetic, so that any of them can go on with another's, and what
// becomes of each call is the test's to say.
#ifndef PERIGEE_TESTS_CLUSTER_FAKE_NODES_H_
#define PERIGEE_TESTS_CLUSTER_FAKE_NODES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "cluster/membership/membership.h"
#include "perigee/v1/decode.grpc.pb.h"
#include "perigee/v1/prefill.grpc.pb.h"
#include "pod/plan.h"
#include "proto/grpc_server.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {

inline bool Becomes(const std::function<bool()>& so) {
  for (const absl::Time deadline = absl::Now() + absl::Seconds(20); !so(); absl::SleepFor(absl::Milliseconds(1))) {
    if (absl::Now() > deadline) return false;
  }
  return true;
}

// The token behind these.
template <typename Ids>
int32_t NextToken(const Ids& ids, uint64_t seed) {
  uint64_t sum = seed * 7919 + static_cast<uint64_t>(ids.size());
  for (const int32_t id : ids) sum = sum * 31 + static_cast<uint64_t>(id);
  return static_cast<int32_t>(sum % 1000);
}
inline std::string TextOf(int32_t token) { return absl::StrCat(token, " "); }

// What both kinds have.
class FakeInfo {
 public:
  std::atomic<bool> silent{false};  // Accepts calls and says nothing.
  std::atomic<bool> draining{false};
  std::atomic<uint32_t> running{0};
  std::atomic<int> cancelled{0};

 protected:
  grpc::Status Info(grpc::ServerContext* context, v1::NodeInfo* info) {
    if (silent) return Hang(context);
    static const auto* const plan = [] {
      const auto text = ReadFile(PERIGEE_SOURCE_DIR "/models/podling/plan.json");
      EXPECT_TRUE(text.ok()) << text.status();
      return new pod::Plan(*pod::Plan::Parse(*text));
    }();
    info->set_model_name("fake");
    info->set_tokenizer_digest("fake tokenizer");
    info->set_model_fingerprint(std::string(AsView(plan->model_fingerprint())));
    info->set_plan_id(std::string(AsView(plan->id())));
    info->set_plan_json(plan->ToJson());
    info->set_block_tokens(64);
    info->set_max_positions(4096);
    info->mutable_load()->set_running(running);
    info->mutable_load()->set_max_running(8);
    info->mutable_load()->set_draining(draining);
    info->mutable_load()->set_prefill_token_s(1e-3);
    info->mutable_load()->set_answer_token_s(1e-2);
    return grpc::Status::OK;
  }
  grpc::Status Hang(grpc::ServerContext* context) {
    Becomes([&] { return context->IsCancelled(); });
    ++cancelled;
    return {grpc::StatusCode::CANCELLED, "cancelled"};
  }
};

// What becomes of a call.
struct Fate {
  int tokens = INT_MAX;  // Said, over all samples, before
  absl::Status status = absl::OkStatus();
  bool hangs = false;  // Instead of ending with that status.
};

class FakeDecode final : public v1::DecodeNode::Service, public FakeInfo {
 public:
  // By call, from 0. Set before the first one. tokens -1: it fails before it says that it has started.
  std::function<Fate(int call, const v1::GenerateRequest& request)> fate = [](int, const auto&) { return Fate(); };

  std::vector<v1::GenerateRequest> calls() {
    absl::MutexLock lock(&mu_);
    return calls_;
  }

  grpc::Status Info(grpc::ServerContext* context, const v1::NodeInfoRequest*, v1::NodeInfo* info) override {
    return FakeInfo::Info(context, info);
  }
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateEvent>* writer) override {
    int call;
    {
      absl::MutexLock lock(&mu_);
      call = static_cast<int>(calls_.size());
      calls_.push_back(*request);
    }
    if (silent) return Hang(context);
    const Fate fated = fate(call, *request);
    const auto end = [&] { return fated.hangs ? Hang(context) : ToGrpc(fated.status); };
    if (fated.tokens < 0) return end();
    v1::GenerateEvent event;
    event.mutable_started()->set_fetched_tokens(static_cast<uint32_t>(request->token_ids_size()) - 1);
    writer->Write(event);
    std::vector<std::vector<int32_t>> ids(std::max(request->samples(), 1u),
                                          {request->token_ids().begin(), request->token_ids().end()});
    int said = 0;
    for (uint32_t n = request->answered_tokens(); n < request->max_tokens(); ++n) {
      for (uint32_t i = 0; i < ids.size(); ++i) {
        if (said++ == fated.tokens) return end();
        ids[i].push_back(NextToken(ids[i], request->seed() + i));
        event.mutable_token()->set_id(ids[i].back());
        event.mutable_token()->set_text(TextOf(ids[i].back()));
        event.mutable_token()->set_sample(i);
        writer->Write(event);
      }
    }
    if (said == fated.tokens) return end();  // All but the end.
    for (uint32_t i = 0; i < ids.size(); ++i) {
      event.mutable_finished()->set_reason("length");
      event.mutable_finished()->set_sample(i);
      event.mutable_finished()->set_tokens(request->max_tokens());
      writer->Write(event);
    }
    return ToGrpc(said < fated.tokens && fated.tokens != INT_MAX ? fated.status : absl::OkStatus());
  }

 private:
  absl::Mutex mu_;
  std::vector<v1::GenerateRequest> calls_;
};

class FakePrefill final : public v1::PrefillNode::Service, public FakeInfo {
 public:
  std::function<absl::Status(int call, const v1::PrefillRequest& request)> fate = [](int, const auto&) {
    return absl::OkStatus();
  };
  std::vector<v1::PrefillRequest> calls() {
    absl::MutexLock lock(&mu_);
    return calls_;
  }

  grpc::Status Info(grpc::ServerContext* context, const v1::NodeInfoRequest*, v1::NodeInfo* info) override {
    return FakeInfo::Info(context, info);
  }
  grpc::Status Prefill(grpc::ServerContext* context, const v1::PrefillRequest* request,
                       v1::PrefillResponse* response) override {
    int call;
    {
      absl::MutexLock lock(&mu_);
      call = static_cast<int>(calls_.size());
      calls_.push_back(*request);
    }
    if (silent) return Hang(context);
    return ToGrpc(fate(call, *request));
  }

 private:
  absl::Mutex mu_;
  std::vector<v1::PrefillRequest> calls_;
};

// A fake node in the cluster.
template <typename Service>
struct FakeMember {
  Service service;
  std::unique_ptr<GrpcServer> server;
  std::unique_ptr<Registration> registration;

  void Start(Membership& membership, const std::string& id, Role role) {
    auto started = GrpcServer::Start("127.0.0.1:0", {&service});
    ASSERT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
    NodeRecord record;
    record.id = id;
    record.role = role;
    record.address = server->address();
    auto joined = membership.Join(record);
    ASSERT_TRUE(joined.ok()) << joined.status();
    registration = *std::move(joined);
  }
  void Die() { server->Stop(absl::ZeroDuration()); }
};

}  // namespace perigee::cluster

#endif  // PERIGEE_TESTS_CLUSTER_FAKE_NODES_H_
