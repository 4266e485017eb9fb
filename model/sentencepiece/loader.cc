#include "model/sentencepiece/loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>

#include "base/status.h"

namespace perigee::model {
namespace {

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer refuses RTLD_DEEPBIND; its builds can read a tokenizer.model only where libprotobuf is not in the
// process.
constexpr int kMode = RTLD_NOW | RTLD_LOCAL;
#else
constexpr int kMode = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif

absl::StatusOr<NewSentencePiece*> Open() {
  std::error_code error;
  const std::filesystem::path built = PERIGEE_SENTENCEPIECE_MODULE;
  const std::filesystem::path beside =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / built.filename();
  const std::string path = std::filesystem::exists(beside, error) ? beside.string() : built.string();
  void* module = ::dlopen(path.c_str(), kMode);
  if (module == nullptr) {
    const char* why = ::dlerror();
    return absl::NotFoundError(absl::StrCat("tokenizer.model needs the module ", built.filename().string(),
                                            " beside the program: ", why == nullptr ? "cannot be opened" : why));
  }
  auto* create = reinterpret_cast<NewSentencePiece*>(::dlsym(module, kNewSentencePiece));
  if (create == nullptr) return absl::InternalError(absl::StrCat(path, " has no ", kNewSentencePiece));
  return create;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SentencePiece>> NewSentencePieceObject() {
  static const absl::StatusOr<NewSentencePiece*> create = Open();
  if (!create.ok()) return create.status();
  return std::unique_ptr<SentencePiece>((*create)());
}

}  // namespace perigee::model
