// The KV store's control messages to a store with an SSD and a remote tier: what is deleted is on neither any more,
// also after the next start.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "kvstore/remote/folder_tier.h"
#include "kvstore_conversation.h"
#include "spdlog/spdlog.h"

namespace {

namespace fs = std::filesystem;
using namespace perigee::kvstore;  // NOLINT

constexpr uint64_t kSegmentBytes = 16 << 10;

void Expect(bool condition) {
  if (!condition) std::abort();
}

// In memory where there is such a file system, since every input syncs.
std::string MakeFolder() {
  std::error_code error;
  std::string path = fs::is_directory("/dev/shm", error) ? "/dev/shm" : fs::temp_directory_path().string();
  path += "/perigee_fuzz_XXXXXX";
  Expect(::mkdtemp(path.data()) != nullptr);
  return path;
}

// Little room, so that there is something to make room for.
SsdOptions SsdIn(const std::string& folder) {
  return {.path = folder + "/ssd",
          .segment_bytes = kSegmentBytes,
          .capacity_bytes = 4 * kSegmentBytes,
          .reserve_bytes = 0,
          .engine = IoEngineKind::kThreads,
          .io_depth = 2,
          .direct = false};
}

StoreOptions TiersIn(const std::string& folder) {
  StoreOptions options;
  options.ssd = SsdIn(folder);
  FolderOptions remote;
  remote.path = folder;
  remote.create = true;
  remote.threads = 2;
  auto tier = OpenFolderTier(remote);
  Expect(tier.ok());
  options.remote = *std::move(tier);
  return options;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  [[maybe_unused]] static const bool quiet = (spdlog::set_level(spdlog::level::off), true);
  const std::string folder = MakeFolder();
  PlayConversation({reinterpret_cast<const char*>(data), size}, TiersIn(folder));
  auto tier = SsdTier::Open(SsdIn(folder), [](const IndexEntry&, const SsdRecord&) { Expect(false); });
  Expect(tier.ok() && (*tier)->Stats().lost_at_start == 0);
  *tier = nullptr;
  for (const auto& entry : fs::recursive_directory_iterator(folder + "/perigee")) {
    Expect(entry.is_directory() || entry.path().filename() == "FORMAT");
  }
  fs::remove_all(folder);
  return 0;
}
