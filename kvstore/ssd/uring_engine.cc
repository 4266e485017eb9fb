#include <liburing.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "kvstore/ssd/io_engine.h"

namespace perigee::kvstore {
namespace {

// The kernel's limit for one registered buffer.
constexpr size_t kMaxBufferBytes = size_t{1} << 30;

// Submitters fill the ring under a lock; one thread waits for completions, calls back and refills the ring.
class UringEngine : public IoEngine {
 public:
  explicit UringEngine(unsigned depth) : depth_(depth) {}
  ~UringEngine() override {
    if (!started_) return;
    {
      absl::MutexLock lock(&mu_);
      stop_ = true;
      SubmitNop();  // Wakes the thread.
    }
    thread_.join();
    io_uring_queue_exit(&ring_);
  }

  absl::Status Init(std::span<std::byte> memory) {
    const int made = io_uring_queue_init(2 * depth_ + 8, &ring_, 0);
    if (made < 0) {
      return absl::UnavailableError(absl::StrCat("io_uring is refused here: ", std::strerror(-made)));
    }
    // What the kernel knows may still be forbidden by a filter: one operation tells.
    io_uring_cqe* cqe = nullptr;
    int ran = SubmitNop();
    if (ran >= 0) ran = io_uring_wait_cqe(&ring_, &cqe);
    if (ran < 0) {
      io_uring_queue_exit(&ring_);
      return absl::UnavailableError(absl::StrCat("io_uring does not run here: ", std::strerror(-ran)));
    }
    io_uring_cqe_seen(&ring_, cqe);
    std::vector<iovec> buffers;
    for (size_t at = 0; at < memory.size(); at += kMaxBufferBytes) {
      buffers.push_back({memory.data() + at, std::min(kMaxBufferBytes, memory.size() - at)});
    }
    if (!buffers.empty()) {
      const int registered = io_uring_register_buffers(&ring_, buffers.data(), static_cast<unsigned>(buffers.size()));
      if (registered == 0) {
        memory_ = memory;
      } else {
        spdlog::info("io_uring cannot register {} bytes of memory ({}); transfers work without", memory.size(),
                     std::strerror(-registered));
      }
    }
    started_ = true;
    thread_ = std::thread([this] { Complete(); });
    return absl::OkStatus();
  }

  void Start(std::vector<std::unique_ptr<IoJob>> jobs) override {
    absl::MutexLock lock(&mu_);
    for (auto& job : jobs) {
      // Writes stay whole: pinning their memory costs less than another operation does.
      if (!job->is_write() && job->piece_count() == 2 && BufferOf(job->pieces[1]) >= 0) {
        Split(std::move(job));
      } else {
        waiting_.push_back(std::move(job));
      }
    }
    Fill();
  }
  std::string Describe() const override {
    return absl::StrCat("io_uring, depth ", depth_, memory_.empty() ? "" : ", registered memory");
  }

 private:
  int SubmitNop() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, nullptr);  // An entry keeps the data of its last use.
    return io_uring_submit(&ring_);
  }

  // The registered buffer that holds the whole range; -1: none.
  int BufferOf(const iovec& piece) const {
    const auto* begin = static_cast<const std::byte*>(piece.iov_base);
    if (memory_.empty() || begin < memory_.data() || begin + piece.iov_len > memory_.data() + memory_.size()) return -1;
    const size_t at = static_cast<size_t>(begin - memory_.data());
    const size_t index = at / kMaxBufferBytes;
    return (at + piece.iov_len - 1) / kMaxBufferBytes == index ? static_cast<int>(index) : -1;
  }

  // Registered memory takes operations of one piece only: two of them, whose ends are one.
  void Split(std::unique_ptr<IoJob> job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    struct Both {
      std::function<void(absl::Status)> done;
      absl::Mutex mu;
      int left ABSL_GUARDED_BY(mu) = 2;
      absl::Status status ABSL_GUARDED_BY(mu);
    };
    auto both = std::make_shared<Both>();
    both->done = std::move(job->transfer.done);
    const auto one_done = [both](const absl::Status& status) {
      absl::Status result;
      {
        absl::MutexLock lock(&both->mu);
        both->status.Update(status);
        if (--both->left > 0) return;
        result = both->status;
      }
      both->done(std::move(result));
    };
    FileTransfer head = job->transfer, payload = job->transfer;
    head.second = {};
    payload.offset_bytes += payload.first.size();
    payload.first = {};
    head.done = payload.done = one_done;
    auto rider = std::make_unique<IoJob>(std::move(head), job->fd);
    rider->counts = false;  // One transfer is one operation, for whoever set the depth.
    waiting_.push_back(std::move(rider));
    waiting_.push_back(std::make_unique<IoJob>(std::move(payload), job->fd));
  }

  void Fill() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    bool any = false;
    while (!waiting_.empty() && counted_ < depth_) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe == nullptr) break;
      IoJob* job = waiting_.front().release();  // The completion owns it.
      waiting_.pop_front();
      Prepare(sqe, job);
      ++in_flight_;
      counted_ += job->counts ? 1 : 0;
      any = true;
    }
    // A refused submission leaves its entries in the ring; they go with the next one, at the latest the next
    // completion.
    if (any) io_uring_submit(&ring_);
  }

  void Prepare(io_uring_sqe* sqe, IoJob* job) const {
    iovec* pieces = job->first_piece();
    const int buffer = job->piece_count() == 1 ? BufferOf(*pieces) : -1;
    const auto length = static_cast<unsigned>(pieces->iov_len);
    if (job->is_sync()) {
      io_uring_prep_fsync(sqe, job->fd, IORING_FSYNC_DATASYNC);
    } else if (buffer >= 0) {
      job->is_write() ? io_uring_prep_write_fixed(sqe, job->fd, pieces->iov_base, length, job->offset_bytes, buffer)
                      : io_uring_prep_read_fixed(sqe, job->fd, pieces->iov_base, length, job->offset_bytes, buffer);
    } else {
      const auto count = static_cast<unsigned>(job->piece_count());
      job->is_write() ? io_uring_prep_writev(sqe, job->fd, pieces, count, job->offset_bytes)
                      : io_uring_prep_readv(sqe, job->fd, pieces, count, job->offset_bytes);
    }
    io_uring_sqe_set_data(sqe, job);
  }

  void Complete() {
    std::vector<std::pair<std::unique_ptr<IoJob>, absl::Status>> ended;
    for (;;) {
      io_uring_cqe* cqe = nullptr;
      const int waited = io_uring_wait_cqe(&ring_, &cqe);
      if (waited == -EINTR || waited == -EAGAIN) continue;
      if (waited < 0) {
        spdlog::critical("io_uring cannot wait for completions: {}", std::strerror(-waited));
        std::abort();  // Nothing that is in flight would ever end.
      }
      ended.clear();
      bool stop;
      {
        absl::MutexLock lock(&mu_);
        do {
          std::unique_ptr<IoJob> job(static_cast<IoJob*>(io_uring_cqe_get_data(cqe)));
          const int result = cqe->res;
          io_uring_cqe_seen(&ring_, cqe);
          if (job == nullptr) continue;
          --in_flight_;
          counted_ -= job->counts ? 1 : 0;
          absl::Status status;
          if (job->Advance(result, &status)) {
            ended.emplace_back(std::move(job), std::move(status));
          } else {
            waiting_.push_front(std::move(job));
          }
        } while (io_uring_peek_cqe(&ring_, &cqe) == 0);
        Fill();
        stop = stop_ && in_flight_ == 0 && waiting_.empty();
      }
      for (auto& [job, status] : ended) {
        job->transfer.done(std::move(status));
        job.reset();
      }
      if (stop) return;
    }
  }

  const unsigned depth_;
  io_uring ring_;
  std::span<std::byte> memory_;
  bool started_ = false;
  absl::Mutex mu_;  // The submission side of the ring; completions are taken by the thread, under it too.
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  unsigned in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  unsigned counted_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<std::unique_ptr<IoJob>> waiting_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> MakeUringEngine(unsigned depth, std::span<std::byte> memory) {
  auto engine = std::make_unique<UringEngine>(std::max(depth, 1u));
  PERIGEE_RETURN_IF_ERROR(engine->Init(memory));
  return engine;
}

}  // namespace perigee::kvstore
