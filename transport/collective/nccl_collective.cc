#include "transport/collective/nccl_collective.h"

#include <dlfcn.h>
#include <nccl.h>

#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "transport/collective/ucx_collective.h"
#include "transport/cuda/cuda_handles.h"

namespace perigee::transport {
namespace {

using internal::CudaError;

static_assert(sizeof(ncclUniqueId) == kMaxGroupBlobBytes);

constexpr int kOldestVersion = NCCL_VERSION(2, 14, 3);   // calls that do not block
constexpr absl::Duration kLook = absl::Milliseconds(2);  // how often a waiting rank looks at the others
constexpr absl::Duration kFarewell = absl::Seconds(5);   // for a healthy communicator's orderly end

// NCCL's functions, from its library.
struct Nccl {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommFinalize) comm_finalize = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
};

absl::StatusOr<Nccl> OpenNccl() {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  std::string why = library == nullptr ? dlerror() : "";
  // Where it was when this program was built.
  if (library == nullptr) library = dlopen(PERIGEE_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot open NCCL: ", why, "; install it or set LD_LIBRARY_PATH to its folder"));
  }
  Nccl nccl;
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) missing = name;
  };
  find(nccl.get_version, "ncclGetVersion");
  find(nccl.get_error_string, "ncclGetErrorString");
  find(nccl.get_unique_id, "ncclGetUniqueId");
  find(nccl.comm_init_rank_config, "ncclCommInitRankConfig");
  find(nccl.comm_get_async_error, "ncclCommGetAsyncError");
  find(nccl.comm_finalize, "ncclCommFinalize");
  find(nccl.comm_destroy, "ncclCommDestroy");
  find(nccl.comm_abort, "ncclCommAbort");
  find(nccl.all_reduce, "ncclAllReduce");
  find(nccl.all_gather, "ncclAllGather");
  find(nccl.broadcast, "ncclBroadcast");
  int version = 0;
  if (missing != nullptr || nccl.get_version(&version) != ncclSuccess || version < kOldestVersion) {
    return absl::UnavailableError(
        absl::StrCat("libnccl.so.2 is too old (version ", version, "), ", kOldestVersion, " or later is needed"));
  }
  return nccl;
}

// Opened once and never closed: its threads may outlive a group.
const absl::StatusOr<Nccl>& TheNccl() {
  static const auto* nccl = new absl::StatusOr<Nccl>(OpenNccl());
  return *nccl;
}

class NcclCollective final : public Collective {
 public:
  NcclCollective(const Nccl& nccl, int device) : nccl_(nccl), device_(device) {}

  absl::Status Init(GroupOptions options, absl::Time deadline) {
    PERIGEE_RETURN_IF_ERROR(internal::UseDevice(device_));
    PERIGEE_ASSIGN_OR_RETURN(stream_, internal::MakeStream());
    PERIGEE_ASSIGN_OR_RETURN(event_, internal::MakeEvent());
    ncclUniqueId id{};
    if (options.rank == 0) {
      PERIGEE_RETURN_IF_ERROR(Error("make a group's id", nccl_.get_unique_id(&id)));
      options.blob.assign(id.internal, sizeof(id.internal));
    }
    PERIGEE_ASSIGN_OR_RETURN(group_, UcxCollective::Create(options, deadline));
    if (group_->blob().size() != sizeof(id.internal)) {
      return absl::FailedPreconditionError("rank 0 has not made this group for NCCL");
    }
    std::memcpy(id.internal, group_->blob().data(), sizeof(id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return Run(
        "join the NCCL group",
        [&] { return nccl_.comm_init_rank_config(&comm_, options.size, id, options.rank, &config); }, deadline);
  }

  ~NcclCollective() override {
    if (comm_ == nullptr) return;
    cudaSetDevice(device_);
    // A peer may still need this rank to forward bytes: leave in order where that is possible.
    ncclResult_t state = nccl_.comm_finalize(comm_);
    for (const absl::Time until = absl::Now() + kFarewell; state == ncclInProgress && absl::Now() < until;) {
      std::this_thread::yield();
      if (nccl_.comm_get_async_error(comm_, &state) != ncclSuccess) state = ncclInternalError;
      if (state == ncclInProgress && !group_->CheckPeers().ok()) break;
    }
    state == ncclSuccess ? nccl_.comm_destroy(comm_) : nccl_.comm_abort(comm_);
  }

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }

  absl::Status AllReduceSum(std::span<float> values, absl::Time deadline) override {
    PERIGEE_RETURN_IF_ERROR(CheckBuffer(std::as_bytes(values)));
    return Run(
        "AllReduceSum",
        [&] {
          return nccl_.all_reduce(values.data(), values.data(), values.size(), ncclFloat, ncclSum, comm_,
                                  stream_.get());
        },
        deadline);
  }

  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all, absl::Time deadline) override {
    if (all.size() % size() != 0 || all.size() / size() != mine.size()) {
      return absl::InvalidArgumentError(absl::StrCat("AllGather of ", mine.size(), " bytes from each of ", size(),
                                                     " ranks into ", all.size(), " bytes; give ", size(),
                                                     " times as many"));
    }
    PERIGEE_RETURN_IF_ERROR(CheckBuffer(mine));
    PERIGEE_RETURN_IF_ERROR(CheckBuffer(all));
    return Run(
        "AllGather",
        [&] { return nccl_.all_gather(mine.data(), all.data(), mine.size(), ncclInt8, comm_, stream_.get()); },
        deadline);
  }

  absl::Status Broadcast(std::span<std::byte> bytes, int root, absl::Time deadline) override {
    if (root < 0 || root >= size()) {
      return absl::InvalidArgumentError(absl::StrCat("root ", root, " in a group of ", size()));
    }
    PERIGEE_RETURN_IF_ERROR(CheckBuffer(bytes));
    return Run(
        "Broadcast",
        [&] { return nccl_.broadcast(bytes.data(), bytes.data(), bytes.size(), ncclInt8, root, comm_, stream_.get()); },
        deadline);
  }

  absl::Status BroadcastString(std::string* text, int root, absl::Time deadline) override {
    return Host(group_->BroadcastString(text, root, deadline));
  }
  absl::Status Barrier(absl::Time deadline) override { return Host(group_->Barrier(deadline)); }

 private:
  absl::Status Error(absl::string_view what, ncclResult_t result) const {
    if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
    const std::string text = absl::StrCat(what, ": NCCL says: ", nccl_.get_error_string(result));
    switch (result) {
      case ncclSystemError:
      case ncclRemoteError:
        return absl::UnavailableError(text);
      default:
        return absl::InternalError(text);
    }
  }

  absl::Status CheckBuffer(std::span<const std::byte> buffer) const {
    if (buffer.empty()) return absl::OkStatus();
    cudaPointerAttributes attributes{};
    PERIGEE_RETURN_IF_ERROR(CudaError("look up a buffer", cudaPointerGetAttributes(&attributes, buffer.data())));
    if (attributes.type != cudaMemoryTypeDevice || attributes.device != device_) {
      return absl::InvalidArgumentError(absl::StrCat("a buffer at ", reinterpret_cast<uintptr_t>(buffer.data()),
                                                     " is not memory of CUDA device ", device_));
    }
    return absl::OkStatus();
  }

  // A failed host operation has broken the group; NCCL's half goes with it.
  absl::Status Host(absl::Status status) {
    if (!status.ok() && !absl::IsInvalidArgument(status)) Abort();
    return status;
  }

  void Abort() {
    if (comm_ != nullptr) nccl_.comm_abort(comm_);
    comm_ = nullptr;
    broken_ = true;
  }

  // Enqueues one operation and waits until the device has done it.
  absl::Status Run(absl::string_view what, absl::FunctionRef<ncclResult_t()> enqueue, absl::Time deadline) {
    if (broken_) {
      return absl::FailedPreconditionError(
          absl::StrCat("the group is broken, make a new one with all ranks; it broke "
                       "because: ",
                       group_->CheckPeers().message()));
    }
    absl::Status status = CudaError("use the device", cudaSetDevice(device_));
    if (status.ok()) status = Wait(what, enqueue(), deadline);
    if (status.ok()) return status;
    group_->Abandon(status);
    Abort();  // ends the kernel, if one still waits for a rank that will not come
    return group_->CheckPeers();
  }

  absl::Status Wait(absl::string_view what, ncclResult_t state, absl::Time deadline) {
    bool recorded = false;
    absl::Time look = absl::Now() + kLook;
    while (true) {
      PERIGEE_RETURN_IF_ERROR(Error(what, state));
      if (state == ncclSuccess && !recorded) {
        PERIGEE_RETURN_IF_ERROR(CudaError(what, cudaEventRecord(event_.get(), stream_.get())));
        recorded = true;
      }
      if (recorded) {
        PERIGEE_ASSIGN_OR_RETURN(const bool done, internal::Happened(event_));
        if (done) return absl::OkStatus();
      }
      const absl::Time now = absl::Now();
      if (now >= look) {
        look = now + kLook;
        PERIGEE_RETURN_IF_ERROR(group_->CheckPeers());
        if (now >= deadline) {
          return absl::DeadlineExceededError(absl::StrCat(what, " on rank ", rank(), " had not ended by the deadline"));
        }
      }
      std::this_thread::yield();
      if (nccl_.comm_get_async_error(comm_, &state) != ncclSuccess) state = ncclInternalError;
    }
  }

  const Nccl& nccl_;
  const int device_;
  internal::Stream stream_;
  internal::Event event_;
  std::unique_ptr<UcxCollective> group_;
  ncclComm_t comm_ = nullptr;
  bool broken_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Collective>> CreateNcclCollective(const GroupOptions& options, int device,
                                                                 absl::Time deadline) {
  if (!options.blob.empty()) return absl::InvalidArgumentError("options.blob is NCCL's own; leave it empty");
  PERIGEE_RETURN_IF_ERROR(internal::UseDevice(device));
  PERIGEE_RETURN_IF_ERROR(TheNccl().status());
  auto group = std::make_unique<NcclCollective>(*TheNccl(), device);
  PERIGEE_RETURN_IF_ERROR(group->Init(options, deadline));
  return group;
}

}  // namespace perigee::transport
