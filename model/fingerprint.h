// The model fingerprint: which model a key or value came from, by content, never by name or path.
//
// SHA-256 over a canonical little-endian encoding: "perigee.model.fingerprint.v1", the config fields that change what
// the model computes (family, sizes, rms_norm_eps, rope, biases, QK norm, tying; not the context limit, the special
// tokens or torch_dtype), then for every tensor in name order its name, dtype, shape and SHA-256 of its bytes, then the
// adapter (empty so far: a count of 0). How the tensors are spread over files does not enter. A tensor's own digest
// enters instead of its bytes so that cores can hash tensors side by side.
#ifndef PERIGEE_MODEL_FINGERPRINT_H_
#define PERIGEE_MODEL_FINGERPRINT_H_

#include <string>

#include "absl/status/statusor.h"
#include "base/bytes.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace perigee::model {

// Reads every weight byte, on all cores. Remembers nothing.
Digest ComputeFingerprint(const ModelConfig& config, const Checkpoint& checkpoint);

// Where a fingerprint is remembered beside the checkpoint.
inline constexpr char kFingerprintFile[] = ".perigee_fingerprint.json";

struct FingerprintResult {
  Digest fingerprint;
  bool remembered = false;  // true: taken from kFingerprintFile, no weight byte was read
};

// As ComputeFingerprint, but trusts kFingerprintFile where every file's name, size, mtime (ns), ctime (ns) and inode
// and the config's encoding are as remembered; otherwise computes and writes it. A damaged file is ignored; a folder
// that cannot be written is no error. Weights changed in place with the times set back are not noticed: delete the
// file. Errors: only a checkpoint file that cannot be stat'ed.
absl::StatusOr<FingerprintResult> FingerprintOf(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_FINGERPRINT_H_
