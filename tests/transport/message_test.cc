#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "transport/context.h"

namespace perigee::transport {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

class MessageTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto server = Context::Create({.transports = GetParam()}), client = Context::Create({.transports = GetParam()});
    ASSERT_TRUE(server.ok() && client.ok());
    server_ = *std::move(server);
    client_ = *std::move(client);
    auto listener = server_->Listen("localhost", 0, TrustEveryone);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    auto connection = client_->Connect("localhost", listener_.port(), Soon());
    ASSERT_TRUE(connection.ok()) << connection.status();
    connection_ = *std::move(connection);
  }
  std::unique_ptr<Context> server_, client_;
  Listener listener_;
  Endpoint connection_;
};

TEST_P(MessageTest, CallBringsTheHandlersAnswer) {
  server_->SetHandler(7, [](absl::string_view header, absl::string_view payload) -> absl::StatusOr<std::string> {
    return absl::StrCat(header, "|", payload);
  });
  for (const size_t size : {size_t{0}, size_t{1}, size_t{5000}, size_t{200000}, kMaxMessageBytes - 8}) {
    const std::string payload(size, 'p');
    const auto answer = connection_.Call(7, "head", payload, Soon());
    ASSERT_TRUE(answer.ok()) << size << " " << answer.status();
    EXPECT_EQ(*answer, "head|" + payload);
  }
}

TEST_P(MessageTest, CallBringsTheHandlersError) {
  server_->SetHandler(7, [](absl::string_view, absl::string_view) -> absl::StatusOr<std::string> {
    return absl::ResourceExhaustedError("full");
  });
  EXPECT_EQ(connection_.Call(7, "", "", Soon()).status(), absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(absl::IsNotFound(connection_.Call(8, "", "", Soon()).status()));
  server_->SetHandler(7, nullptr);
  EXPECT_TRUE(absl::IsNotFound(connection_.Call(7, "", "", Soon()).status()));
  EXPECT_TRUE(connection_.connected());
}

TEST_P(MessageTest, SendArrives) {
  std::promise<void> arrived;
  std::string got;
  server_->SetHandler(1, [&](absl::string_view header, absl::string_view payload) -> absl::StatusOr<std::string> {
    got = absl::StrCat(header, payload);
    arrived.set_value();
    return "";
  });
  ASSERT_TRUE(connection_.Send(1, "a", "b", Soon()).ok());
  ASSERT_EQ(arrived.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(got, "ab");
  EXPECT_EQ(client_->Stats().messages_sent, 1u);
  EXPECT_EQ(server_->Stats().messages_received, 1u);
}

TEST_P(MessageTest, ManyThreadsCallAtOnce) {
  server_->SetHandler(2, [](absl::string_view header, absl::string_view) -> absl::StatusOr<std::string> {
    return std::string(header);
  });
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::string text = absl::StrCat(t, "/", i);
        const auto answer = connection_.Call(2, text, "x", Soon());
        if (!answer.ok() || *answer != text) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(MessageTest, RefusesWhatCannotWork) {
  EXPECT_TRUE(absl::IsInvalidArgument(connection_.Send(1, "x", std::string(kMaxMessageBytes, 'x'), Soon())));
  // Blocking calls from a handler would deadlock the progress thread.
  client_->SetHandler(3, nullptr);
  auto back_listener = client_->Listen("127.0.0.1", 0, TrustEveryone);
  ASSERT_TRUE(back_listener.ok());
  absl::Status inner;
  server_->SetHandler(4, [&](absl::string_view, absl::string_view) -> absl::StatusOr<std::string> {
    inner = server_->Connect("127.0.0.1", back_listener->port(), Soon()).status();
    return "";
  });
  ASSERT_TRUE(connection_.Call(4, "", "", Soon()).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(inner)) << inner;
}

TEST_P(MessageTest, ASilentHandlerMeansDeadlineExceededAndTheConnectionStays) {
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  server_->SetHandler(5, [&](absl::string_view, absl::string_view) -> absl::StatusOr<std::string> {
    released.wait();
    return "late";
  });
  EXPECT_TRUE(absl::IsDeadlineExceeded(connection_.Call(5, "", "", absl::Now() + absl::Milliseconds(100)).status()));
  EXPECT_TRUE(connection_.connected());
  release.set_value();
  EXPECT_EQ(*connection_.Call(5, "", "", Soon()), "late");  // the late answer is not taken for this one's
}

INSTANTIATE_TEST_SUITE_P(Transports, MessageTest, testing::Values("tcp", "shm,tcp"),
                         [](const auto& info) { return info.param == "tcp" ? "Tcp" : "SharedMemory"; });

}  // namespace
}  // namespace perigee::transport
