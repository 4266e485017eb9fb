#include "kvstore/ssd/ssd_index.h"

#include <rocksdb/db.h>

#include <atomic>

#include "base/status.h"

namespace perigee::kvstore {
namespace {

rocksdb::Slice AsSlice(absl::string_view s) { return rocksdb::Slice(s.data(), s.size()); }
absl::string_view AsAbsl(const rocksdb::Slice& s) { return absl::string_view(s.data(), s.size()); }

absl::Status FromRocks(const rocksdb::Status& s, absl::string_view what) {
  if (s.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", s.ToString());
  if (s.IsNoSpace()) return absl::ResourceExhaustedError(absl::StrCat(message, "; free space on the store's disk"));
  if (s.IsCorruption()) return absl::DataLossError(message);
  return absl::InternalError(message);
}

class RocksIndex : public SsdIndex {
 public:
  explicit RocksIndex(rocksdb::DB* db) : db_(db) {}

  absl::Status Write(std::span<const Change> changes, bool synced) override {
    if (failed_) {  // RocksDB refuses writes after an error until it is resumed.
      PERIGEE_RETURN_IF_ERROR(FromRocks(db_->Resume(), "the store's index cannot resume after a write error"));
      failed_ = false;
    }
    rocksdb::WriteBatch batch;
    for (const Change& change : changes) {
      change.value ? batch.Put(AsSlice(change.key), AsSlice(*change.value)) : batch.Delete(AsSlice(change.key));
    }
    rocksdb::WriteOptions options;
    options.sync = synced;
    const rocksdb::Status s = db_->Write(options, &batch);
    failed_ = !s.ok();
    if (!s.ok()) ever_failed_ = true;
    return FromRocks(s, "the store's index cannot be written");
  }

  absl::Status ForEach(const std::function<absl::Status(absl::string_view, absl::string_view)>& visit) override {
    rocksdb::ReadOptions options;
    options.readahead_size = size_t{2} << 20;
    const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(options));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      PERIGEE_RETURN_IF_ERROR(visit(AsAbsl(it->key()), AsAbsl(it->value())));
    }
    return FromRocks(it->status(), "read the store's index");
  }

  absl::StatusOr<std::string> Get(absl::string_view key) override {
    std::string value;
    const rocksdb::Status s = db_->Get(rocksdb::ReadOptions(), AsSlice(key), &value);
    if (s.IsNotFound()) return absl::NotFoundError(absl::StrCat("the store's index has no ", key));
    PERIGEE_RETURN_IF_ERROR(FromRocks(s, "read the store's index"));
    return value;
  }

  std::optional<uint64_t> sequence() const override {
    if (ever_failed_) return std::nullopt;
    return db_->GetLatestSequenceNumber();
  }

 private:
  const std::unique_ptr<rocksdb::DB> db_;
  std::atomic<bool> failed_{false}, ever_failed_{false};
};

}  // namespace

absl::StatusOr<std::unique_ptr<SsdIndex>> SsdIndex::Open(const std::string& path) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.write_buffer_size = size_t{16} << 20;
  options.max_total_wal_size = uint64_t{64} << 20;
  options.keep_log_file_num = 2;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.allow_fallocate = false;  // Preallocated logs would be the first to fail on a nearly full disk.
  options.manifest_preallocation_size = size_t{64} << 10;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened = rocksdb::DB::Open(options, path + "/index", &db);
  if (opened.IsIOError() && opened.ToString().find("lock") != std::string::npos) {
    return absl::FailedPreconditionError(absl::StrCat("the store's folder ", path,
                                                      " is in use by another store; stop it or give this one its own (",
                                                      opened.ToString(), ")"));
  }
  PERIGEE_RETURN_IF_ERROR(FromRocks(opened, absl::StrCat("open the store's index ", path, "/index")));
  return std::make_unique<RocksIndex>(db);
}

}  // namespace perigee::kvstore
