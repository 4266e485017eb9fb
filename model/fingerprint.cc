#include "model/fingerprint.h"

#include <sys/stat.h>

#include <bit>
#include <cerrno>
#include <vector>

#include "base/file.h"
#include "base/parallel.h"
#include "base/status.h"
#include "model/json_reader.h"
#include "spdlog/spdlog.h"

namespace perigee::model {
namespace {

constexpr int kVersion = 1;

void PutDouble(ByteWriter& out, double value) { out.U64(std::bit_cast<uint64_t>(value)); }

std::string EncodeConfig(const ModelConfig& config) {
  ByteWriter out;
  out.Counted("perigee.model.fingerprint.v1");
  out.Counted(FamilyName(config.family));
  for (const int value :
       {config.layers, config.hidden, config.ffn, config.q_heads, config.kv_heads, config.head_dim, config.vocab}) {
    out.U32(static_cast<uint32_t>(value));
  }
  PutDouble(out, config.rms_norm_eps);
  PutDouble(out, config.rope.theta);
  out.U8(static_cast<uint8_t>(config.rope.scaling));
  // Fields that the scaling does not use are not meaning: written as zero.
  const bool scaled = config.rope.scaling != RopeScaling::kNone, llama3 = config.rope.scaling == RopeScaling::kLlama3;
  PutDouble(out, scaled ? config.rope.factor : 0);
  PutDouble(out, llama3 ? config.rope.low_freq_factor : 0);
  PutDouble(out, llama3 ? config.rope.high_freq_factor : 0);
  out.U32(llama3 ? static_cast<uint32_t>(config.rope.original_max_positions) : 0);
  for (const bool flag : {config.qkv_bias, config.o_bias, config.qk_norm, config.tied_embeddings}) out.U8(flag);
  return out.Take();
}

std::vector<Digest> TensorDigests(const Checkpoint& checkpoint) {
  std::vector<const TensorView*> views;
  for (const auto& [name, view] : checkpoint.tensors()) views.push_back(&view);
  std::vector<Digest> digests(views.size());
  ParallelFor(views.size(), [&](size_t i) { digests[i] = Sha256(AsView(views[i]->bytes)); });
  return digests;
}

// What must be unchanged for a remembered fingerprint to hold.
absl::StatusOr<Json> DescribeFiles(const Checkpoint& checkpoint) {
  Json files = Json::array();
  for (const std::string& name : checkpoint.files()) {
    const std::string path = checkpoint.folder() + "/" + name;
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) return ErrnoStatus("stat", path, errno);
    const auto nanoseconds = [](const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; };
    files.push_back({{"name", name},
                     {"size_bytes", static_cast<int64_t>(info.st_size)},
                     {"mtime_ns", nanoseconds(info.st_mtim)},
                     {"ctime_ns", nanoseconds(info.st_ctim)},
                     {"inode", static_cast<uint64_t>(info.st_ino)}});
  }
  return files;
}

}  // namespace

Digest ComputeFingerprint(const ModelConfig& config, const Checkpoint& checkpoint) {
  const std::vector<Digest> digests = TensorDigests(checkpoint);
  ByteWriter out;
  out.Counted(EncodeConfig(config));
  out.U32(static_cast<uint32_t>(digests.size()));
  size_t i = 0;
  for (const auto& [name, view] : checkpoint.tensors()) {
    out.Counted(name);
    out.Counted(DtypeName(view.dtype));
    out.U32(static_cast<uint32_t>(view.shape.size()));
    for (const int64_t size : view.shape) out.U64(static_cast<uint64_t>(size));
    out.Raw(AsView(digests[i++]));
  }
  out.Counted("adapter");
  out.U32(0);
  return Sha256(out.bytes());
}

absl::StatusOr<FingerprintResult> FingerprintOf(const ModelConfig& config, const Checkpoint& checkpoint) {
  const std::string path = checkpoint.folder() + "/" + kFingerprintFile;
  PERIGEE_ASSIGN_OR_RETURN(const Json files, DescribeFiles(checkpoint));
  const Digest config_digest = Sha256(EncodeConfig(config));
  const std::string config_hex = ToHex(config_digest);

  if (const absl::StatusOr<std::string> text = ReadFile(path, size_t{4} << 20); text.ok()) {
    const absl::StatusOr<Json> known = ParseJsonObject(*text, kFingerprintFile, 8);
    if (known.ok() && known->value("version", Json()) == kVersion && known->value("config", Json()) == config_hex &&
        known->value("files", Json()) == files) {
      const Json* hex = FindValue(*known, "fingerprint");
      if (hex != nullptr && hex->is_string()) {
        if (const auto digest = DigestFromHex(hex->get_ref<const std::string&>()); digest.ok()) {
          return FingerprintResult{*digest, true};
        }
      }
    }
    spdlog::debug("{} does not describe the checkpoint as it is now; hashing it", path);
  }

  FingerprintResult result{ComputeFingerprint(config, checkpoint), false};
  // A file that changed while it was hashed must not be remembered under its new times.
  PERIGEE_ASSIGN_OR_RETURN(const Json files_after, DescribeFiles(checkpoint));
  if (files_after != files) return result;
  const Json remembered = {
      {"version", kVersion}, {"config", config_hex}, {"files", files}, {"fingerprint", ToHex(result.fingerprint)}};
  if (const absl::Status written = WriteFileAtomically(path, remembered.dump(1) + "\n"); !written.ok()) {
    spdlog::debug("the model fingerprint is not remembered: {}", std::string(written.message()));
  }
  return result;
}

}  // namespace perigee::model
