// Reading checkpoints in the safetensors format: one model.safetensors, or shards listed by
// model.safetensors.index.json.
//
// File layout (https://huggingface.co/docs/safetensors): u64 little-endian header length, a JSON header {name: {dtype,
// shape, data_offsets: [begin, end)}, "__metadata__": {string: string}}, then the data; offsets count from the data's
// first byte. Refused, naming file and tensor: a header that is cut short, over 32 MiB or not JSON; duplicate names;
// dtypes other than BF16, F16, F32; a shape whose size is not its byte range's; ranges out of the file, overlapping or
// leaving holes; bytes after the last tensor. Index files may only name plain *.safetensors files beside them, and must
// agree with the shards tensor by tensor.
//
// Files are mapped, not read: opening touches only headers. Errors: NOT_FOUND (no file), INVALID_ARGUMENT (damaged),
// UNIMPLEMENTED (dtype). A file that another process truncates while mapped kills the reader (SIGBUS); replace
// checkpoints by renaming.
#ifndef PERIGEE_MODEL_SAFETENSORS_H_
#define PERIGEE_MODEL_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/file.h"

namespace perigee::model {

enum class Dtype { kF32, kF16, kBf16 };
absl::string_view DtypeName(Dtype dtype);  // as in the file: "F32", "F16", "BF16"
size_t DtypeBytes(Dtype dtype);

// A tensor's place in somebody else's bytes, row-major, little-endian, not necessarily aligned to its element.
struct TensorView {
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  int64_t elements = 0;
  std::span<const std::byte> bytes;
};

using TensorMap = std::map<std::string, TensorView>;  // sorted by name

// Parses one file's bytes; the views point into `file`.
absl::StatusOr<TensorMap> ParseSafetensors(std::span<const std::byte> file);

// The names of an index file's shards and which tensor each holds: weight_map, checked.
absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(absl::string_view json);

// out[elements] = the tensor as f32 (exact for all three dtypes). `out` must have `elements` floats.
void ConvertToFloat(const TensorView& tensor, std::span<float> out);

// A folder's tensors, with the mappings they point into. Movable; any thread may read.
class Checkpoint {
 public:
  // model.safetensors where it exists, else model.safetensors.index.json.
  static absl::StatusOr<Checkpoint> Open(const std::string& folder);

  const TensorMap& tensors() const { return tensors_; }
  const TensorView* Find(absl::string_view name) const;  // null where there is none
  const std::string& folder() const { return folder_; }
  // The safetensors files, by name relative to the folder, sorted.
  const std::vector<std::string>& files() const { return files_; }

 private:
  Checkpoint() = default;
  std::string folder_;
  std::vector<std::string> files_;
  std::vector<MappedFile> mappings_;
  TensorMap tensors_;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_SAFETENSORS_H_
