// Slower tiers that do what a test says: operations held back, failed, refused and counted. Around real ones.
#ifndef PERIGEE_TESTS_KVSTORE_HELD_TIERS_H_
#define PERIGEE_TESTS_KVSTORE_HELD_TIERS_H_

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "kvstore/remote/folder_tier.h"
#include "kvstore/ssd/file_layer.h"
#include "planes.h"

namespace perigee::kvstore {

// Asks again and again, until true or the time is over.
inline bool Eventually(const std::function<bool()>& is_so, absl::Duration limit = absl::Seconds(30)) {
  for (const absl::Time end = absl::Now() + limit; absl::Now() < end; absl::SleepFor(absl::Milliseconds(2))) {
    if (is_so()) return true;
  }
  return is_so();
}

// The machine's files, whose reads can be held back; these count.
class HeldFiles : public FileLayer {
 public:
  HeldFiles() : base_(*OpenRealFiles({})) {}

  void Hold() {
    absl::MutexLock lock(&mu_);
    holding_ = true;
  }
  void LetGo() {
    std::vector<FileTransfer> ready;
    {
      absl::MutexLock lock(&mu_);
      holding_ = false;
      ready.swap(held_);
    }
    if (!ready.empty()) base_->Start(std::move(ready));
  }
  size_t held() const {
    absl::MutexLock lock(&mu_);
    return held_.size();
  }
  uint64_t reads() const { return reads_; }

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, bool create) override {
    return base_->Open(path, create);
  }
  void Start(std::vector<FileTransfer> transfers) override {
    std::vector<FileTransfer> now;
    {
      absl::MutexLock lock(&mu_);
      for (FileTransfer& t : transfers) {
        const bool read = t.kind == FileTransfer::Kind::kRead;
        reads_ += read;
        (read && holding_ ? held_ : now).push_back(std::move(t));
      }
    }
    if (!now.empty()) base_->Start(std::move(now));
  }
  absl::Status Unlink(const std::string& path) override { return base_->Unlink(path); }
  absl::Status SyncFolder(const std::string& path) override { return base_->SyncFolder(path); }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override { return base_->FreeBytes(path); }
  std::string Describe() const override { return "held"; }

 private:
  const std::unique_ptr<FileLayer> base_;
  std::atomic<uint64_t> reads_ = 0;
  mutable absl::Mutex mu_;
  bool holding_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<FileTransfer> held_ ABSL_GUARDED_BY(mu_);
};

// A folder as the remote tier.
class HeldRemote : public RemoteTier {
 public:
  enum class Call : uint8_t { kPut, kGet, kDelete, kStat, kList };

  explicit HeldRemote(const std::string& path) : base_(Folder(path)), thread_([this] { Run(); }) {}
  ~HeldRemote() override {
    {
      absl::MutexLock lock(&mu_);
      for (auto& [id, held] : held_) {
        ready_.push_back([end = std::move(held.end)]() mutable { end(absl::CancelledError("shut down")); });
      }
      held_.clear();
      stop_ = true;
    }
    thread_.join();
  }

  void Hold(Call call) {
    absl::MutexLock lock(&mu_);
    of(call).hold = true;
  }
  void LetGo(Call call) {
    absl::MutexLock lock(&mu_);
    of(call).hold = false;
    for (auto it = held_.begin(); it != held_.end();) {
      if (it->second.call != call) {
        ++it;
        continue;
      }
      ready_.push_back([end = std::move(it->second.end)]() mutable { end(absl::OkStatus()); });
      held_.erase(it++);
    }
  }
  // OK: no longer.
  void Fail(Call call, absl::Status status) {
    absl::MutexLock lock(&mu_);
    of(call).failure = std::move(status);
  }
  // The next so many are refused for want of room, at once.
  void Refuse(Call call, int times) {
    absl::MutexLock lock(&mu_);
    of(call).refusals = times;
  }
  uint64_t count(Call call) const {
    absl::MutexLock lock(&mu_);
    return calls_[static_cast<size_t>(call)].count;
  }
  size_t held(Call call) const {
    absl::MutexLock lock(&mu_);
    size_t n = 0;
    for (const auto& [id, held] : held_) n += held.call == call;
    return n;
  }

  absl::StatusOr<OperationId> Put(RemotePut put, absl::Time deadline, PutDone done) override {
    return Begin(Call::kPut, [this, put = std::move(put), deadline, done = std::move(done)](absl::Status s) mutable {
      if (!s.ok()) return done(s);
      Pass(done, [&](auto d) { return base_->Put(std::move(put), deadline, std::move(d)); });
    });
  }
  absl::StatusOr<OperationId> Get(RemoteGet get, absl::Time deadline, GetDone done) override {
    return Begin(Call::kGet, [this, get, deadline, done = std::move(done)](absl::Status s) mutable {
      if (!s.ok()) return done(s);
      Pass(done, [&](auto d) { return base_->Get(get, deadline, std::move(d)); });
    });
  }
  absl::StatusOr<OperationId> Delete(std::vector<PlaneId> ids, absl::Time deadline, DeleteDone done) override {
    return Begin(Call::kDelete, [this, ids, deadline, done = std::move(done)](absl::Status s) mutable {
      if (!s.ok()) return done(std::vector<absl::Status>(ids.size(), s));
      EXPECT_TRUE(base_->Delete(ids, deadline, std::move(done)).ok());
    });
  }
  absl::StatusOr<OperationId> Stat(std::vector<PlaneId> ids, absl::Time deadline, StatDone done) override {
    return Begin(Call::kStat, [this, ids, deadline, done = std::move(done)](absl::Status s) mutable {
      if (!s.ok()) return done(std::vector<absl::StatusOr<RecordHead>>(ids.size(), s));
      EXPECT_TRUE(base_->Stat(ids, deadline, std::move(done)).ok());
    });
  }
  absl::StatusOr<OperationId> List(std::string token, size_t max, absl::Time deadline, ListDone done) override {
    return Begin(Call::kList, [this, token, max, deadline, done = std::move(done)](absl::Status s) mutable {
      if (!s.ok()) return done(s);
      Pass(done, [&](auto d) { return base_->List(token, max, deadline, std::move(d)); });
    });
  }
  void Cancel(OperationId operation) override {
    absl::MutexLock lock(&mu_);
    const auto it = held_.find(operation);
    if (it == held_.end()) return;
    ready_.push_back([end = std::move(it->second.end)]() mutable { end(absl::CancelledError("cancelled")); });
    held_.erase(it);
  }
  RemoteHealth health() const override { return base_->health(); }
  RemoteCapabilities capabilities() const override { return base_->capabilities(); }

 private:
  using End = absl::AnyInvocable<void(absl::Status)>;  // OK: goes on to the folder.
  struct Rule {
    bool hold = false;
    int refusals = 0;
    absl::Status failure;
    uint64_t count = 0;
  };
  struct Held {
    Call call;
    End end;
  };
  Rule& of(Call call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return calls_[static_cast<size_t>(call)]; }

  static std::unique_ptr<RemoteTier> Folder(const std::string& path) {
    FolderOptions options;
    options.path = path;
    options.create = true;
    return *OpenFolderTier(options);
  }
  // `done` gets the answer, or why there is none.
  template <typename Done, typename BeginBase>
  static void Pass(Done& done, BeginBase begin) {
    const auto shared = std::make_shared<Done>(std::move(done));
    const auto begun = begin([shared](auto answer) { (*shared)(std::move(answer)); });
    if (!begun.ok()) (*shared)(begun.status());
  }
  absl::StatusOr<OperationId> Begin(Call call, End end) {
    absl::MutexLock lock(&mu_);
    Rule& rule = of(call);
    ++rule.count;
    if (rule.refusals > 0) {
      --rule.refusals;
      return absl::AbortedError("full for now");
    }
    const OperationId id = next_++;
    if (!rule.failure.ok()) {
      ready_.push_back([end = std::move(end), why = rule.failure]() mutable { end(why); });
    } else if (rule.hold) {
      held_.emplace(id, Held{call, std::move(end)});
    } else {
      ready_.push_back([end = std::move(end)]() mutable { end(absl::OkStatus()); });
    }
    return id;
  }
  void Run() {
    for (;;) {
      absl::AnyInvocable<void()> next;
      {
        absl::MutexLock lock(&mu_);
        const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || !ready_.empty(); };
        mu_.Await(absl::Condition(&some));
        if (ready_.empty()) return;
        next = std::move(ready_.front());
        ready_.pop_front();
      }
      next();
    }
  }

  const std::unique_ptr<RemoteTier> base_;
  mutable absl::Mutex mu_;
  std::array<Rule, 5> calls_ ABSL_GUARDED_BY(mu_);
  std::map<OperationId, Held> held_ ABSL_GUARDED_BY(mu_);
  std::deque<absl::AnyInvocable<void()>> ready_ ABSL_GUARDED_BY(mu_);
  OperationId next_ ABSL_GUARDED_BY(mu_) = 1;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_HELD_TIERS_H_
