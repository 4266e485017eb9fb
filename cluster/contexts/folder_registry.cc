#include "cluster/contexts/folder_registry.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

constexpr size_t kMaxRecordBytes = size_t{16} << 10;
constexpr char kRecordEnding[] = ".json";
constexpr absl::Duration kLockDeadline = absl::Seconds(5);

// The folder cannot be used just now; that says nothing about what is in it.
absl::Status Unreachable(const absl::Status& status) {
  if (status.ok() || absl::IsNotFound(status) || absl::IsResourceExhausted(status)) return status;
  return absl::UnavailableError(
      absl::StrCat("the folder of contexts cannot be used: ", status.message(), "; see to it and try again"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<FolderContextRegistry>> FolderContextRegistry::Open(const std::string& folder,
                                                                                   const ContextLimits& limits) {
  std::error_code error;
  const bool made = std::filesystem::create_directories(folder, error);
  // Tenants' texts are nobody else's on this machine.
  if (made) std::filesystem::permissions(folder, std::filesystem::perms::owner_all, error);
  if (error) return ErrnoStatus("create", folder, error.value());
  return std::unique_ptr<FolderContextRegistry>(new FolderContextRegistry(folder, limits));
}

std::string FolderContextRegistry::TenantFolder(const std::string& tenant) const {
  return absl::StrCat(folder_, "/", TenantKey(tenant));
}

std::string FolderContextRegistry::RecordFile(const std::string& tenant, const std::string& id) const {
  return absl::StrCat(TenantFolder(tenant), "/", ToHex(Sha256(id)), kRecordEnding);
}

std::string FolderContextRegistry::ContentFile(const ContextRecord& record) const {
  return absl::StrCat(TenantFolder(record.tenant), "/", ToHex(Sha256(record.id)), ".", ToHex(record.content));
}

absl::Status FolderContextRegistry::Change(absl::FunctionRef<absl::Status()> change) {
  const absl::MutexLock lock(&mu_);
  const std::string path = absl::StrCat(folder_, "/lock");
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return Unreachable(absl::InternalError(ErrnoStatus("open", path, errno).message()));
  const absl::Time deadline = absl::Now() + kLockDeadline;
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return Unreachable(ErrnoStatus("lock", path, errno));
    if (absl::Now() > deadline) {
      return absl::UnavailableError(
          absl::StrCat("another process has held ", path, " for ", absl::FormatDuration(kLockDeadline), "; try again"));
    }
    absl::SleepFor(absl::Milliseconds(2));  // The lock cannot be waited for with a deadline.
  }
  return Unreachable(change());
}

size_t FolderContextRegistry::Count(const std::string& tenant) const {
  size_t count = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator at(TenantFolder(tenant), error), end; !error && at != end;
       at.increment(error)) {
    count += at->path().extension() == kRecordEnding;
  }
  return count;
}

absl::StatusOr<ContextRegistry::PutResult> FolderContextRegistry::Put(const NewContext& context) {
  PERIGEE_RETURN_IF_ERROR(CheckNewContext(context, limits_));
  PutResult result;
  PERIGEE_RETURN_IF_ERROR(Change([&]() -> absl::Status {
    const absl::StatusOr<ContextRecord> before = Get(context.tenant, context.id);
    // One that cannot be read is replaced.
    if (!before.ok() && !absl::IsNotFound(before.status()) && !absl::IsDataLoss(before.status())) {
      return before.status();
    }
    result = NextVersion(context, before.ok() ? &*before : nullptr, absl::Now());
    if (!result.changed) return absl::OkStatus();
    if (result.created && Count(context.tenant) >= limits_.contexts) return TooManyContexts(limits_);
    std::error_code error;
    std::filesystem::create_directories(TenantFolder(context.tenant), error);
    if (error) return ErrnoStatus("create", TenantFolder(context.tenant), error.value());
    PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(ContentFile(result.record), context.content));
    PERIGEE_RETURN_IF_ERROR(
        WriteFileAtomically(RecordFile(context.tenant, context.id), ContextRecordToJson(result.record)));
    if (before.ok()) std::filesystem::remove(ContentFile(*before), error);
    return absl::OkStatus();
  }));
  return result;
}

absl::StatusOr<ContextRecord> FolderContextRegistry::Get(const std::string& tenant, const std::string& id) {
  PERIGEE_RETURN_IF_ERROR(CheckContextId(id));
  const absl::StatusOr<std::string> text = ReadFile(RecordFile(tenant, id), kMaxRecordBytes);
  if (absl::IsNotFound(text.status())) return NoSuchContext(id);
  PERIGEE_RETURN_IF_ERROR(Unreachable(text.status()));
  return ContextRecordFromJson(*text, tenant, id);
}

absl::StatusOr<std::string> FolderContextRegistry::Content(const ContextRecord& record) {
  absl::StatusOr<std::string> content = ReadFile(ContentFile(record), std::max<size_t>(record.bytes, 1));
  if (absl::IsNotFound(content.status())) return NoSuchContext(record.id);
  PERIGEE_RETURN_IF_ERROR(Unreachable(content.status()));
  PERIGEE_RETURN_IF_ERROR(CheckContent(record, *content));
  return content;
}

absl::StatusOr<std::vector<ContextRecord>> FolderContextRegistry::List(const std::string& tenant,
                                                                       const std::string& after, size_t limit) {
  std::vector<ContextRecord> records;
  std::error_code error;
  std::filesystem::directory_iterator at(TenantFolder(tenant), error);
  if (error == std::errc::no_such_file_or_directory) return records;
  for (const std::filesystem::directory_iterator end; !error && at != end; at.increment(error)) {
    if (at->path().extension() != kRecordEnding) continue;
    const absl::StatusOr<std::string> text = ReadFile(at->path().string(), kMaxRecordBytes);
    if (absl::IsNotFound(text.status())) continue;  // Deleted just now.
    PERIGEE_RETURN_IF_ERROR(Unreachable(text.status()));
    const absl::StatusOr<std::string> id = ContextIdOf(*text);
    if (!id.ok()) return Annotate(id.status(), at->path().string());
    PERIGEE_ASSIGN_OR_RETURN(ContextRecord record, ContextRecordFromJson(*text, tenant, *id));
    if (record.id > after) records.push_back(std::move(record));
  }
  if (error) return Unreachable(ErrnoStatus("list", TenantFolder(tenant), error.value()));
  std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  if (records.size() > limit) records.resize(limit);
  return records;
}

absl::Status FolderContextRegistry::Delete(const std::string& tenant, const std::string& id) {
  PERIGEE_RETURN_IF_ERROR(CheckContextId(id));
  return Change([&]() -> absl::Status {
    const absl::StatusOr<ContextRecord> record = Get(tenant, id);
    if (!record.ok() && !absl::IsDataLoss(record.status())) return record.status();
    std::error_code error;
    std::filesystem::remove(RecordFile(tenant, id), error);
    if (error) return ErrnoStatus("remove", RecordFile(tenant, id), error.value());
    if (record.ok()) std::filesystem::remove(ContentFile(*record), error);
    return absl::OkStatus();
  });
}

}  // namespace perigee::cluster
