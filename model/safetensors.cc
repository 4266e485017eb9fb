#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "base/bytes.h"
#include "base/status.h"
#include "model/json_reader.h"

namespace perigee::model {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read as they lie in the file");

constexpr uint64_t kMaxHeaderBytes = uint64_t{32} << 20;  // 100,000 tensors take about 12 MiB
constexpr size_t kMaxIndexBytes = size_t{32} << 20;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 1024;
constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

absl::StatusOr<TensorView> ParseEntry(const std::string& name, const Json& entry, std::span<const std::byte> data) {
  const auto fail = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\": ", parts...));
  };
  if (name.empty() || name.size() > kMaxNameBytes) return fail("a name has 1 to ", kMaxNameBytes, " bytes");
  if (!entry.is_object() || entry.size() != 3)
    return fail("its header entry must hold dtype, shape and data_offsets and nothing else");
  const Json* dtype = FindValue(entry, "dtype");
  const Json* shape = FindValue(entry, "shape");
  const Json* offsets = FindValue(entry, "data_offsets");
  if (dtype == nullptr || !dtype->is_string()) return fail("\"dtype\" is missing or not a string");
  if (shape == nullptr || !shape->is_array()) return fail("\"shape\" is missing or not a list");
  if (offsets == nullptr || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return fail("\"data_offsets\" is missing or not a pair of whole numbers");
  }
  TensorView view;
  const std::string& dtype_name = dtype->get_ref<const std::string&>();
  if (dtype_name == "F32") {
    view.dtype = Dtype::kF32;
  } else if (dtype_name == "F16") {
    view.dtype = Dtype::kF16;
  } else if (dtype_name == "BF16") {
    view.dtype = Dtype::kBf16;
  } else {
    return absl::UnimplementedError(absl::StrCat("tensor \"", name, "\": dtype ", Shown(*dtype),
                                                 " is not supported; supported are BF16, F16 and F32"));
  }
  if (shape->size() > kMaxRank)
    return fail("it has ", shape->size(), " dimensions; at most ", kMaxRank, " are supported");
  uint64_t elements = 1;
  for (const Json& size : *shape) {
    if (!size.is_number_unsigned()) return fail("its shape is ", Shown(*shape), "; sizes are whole numbers");
    uint64_t product;
    if (__builtin_mul_overflow(elements, size.get<uint64_t>(), &product) || product > (uint64_t{1} << 60) ||
        size.get<uint64_t>() > (uint64_t{1} << 60)) {
      return fail("its shape ", Shown(*shape), " is impossibly large");
    }
    elements = product;
    view.shape.push_back(static_cast<int64_t>(size.get<uint64_t>()));
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > data.size()) {
    return fail("data_offsets ", Shown(*offsets), " do not lie within the file's ", data.size(), " data bytes");
  }
  if (elements * DtypeBytes(view.dtype) != end - begin) {
    return fail("shape ", Shown(*shape), " of ", dtype_name, " takes ", elements * DtypeBytes(view.dtype),
                " bytes, data_offsets span ", end - begin);
  }
  view.elements = static_cast<int64_t>(elements);
  view.bytes = data.subspan(begin, end - begin);
  return view;
}

}  // namespace

absl::string_view DtypeName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return "F32";
    case Dtype::kF16:
      return "F16";
    case Dtype::kBf16:
      return "BF16";
  }
  return "?";
}

size_t DtypeBytes(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

absl::StatusOr<TensorMap> ParseSafetensors(std::span<const std::byte> file) {
  if (file.size() < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file has ", file.size(), " bytes; a safetensors file starts with an 8-byte length"));
  }
  const uint64_t header_bytes = ByteReader(AsView(file.first(8))).U64();
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header length is ", header_bytes, "; at most ", kMaxHeaderBytes, " is accepted"));
  }
  if (header_bytes > file.size() - 8) {
    return absl::InvalidArgumentError(absl::StrCat("the header length is ", header_bytes, " but only ", file.size() - 8,
                                                   " bytes follow; the file is cut short"));
  }
  PERIGEE_ASSIGN_OR_RETURN(const Json header,
                           ParseJsonObject(AsView(file.subspan(8, header_bytes)), "the safetensors header", 4));
  const std::span<const std::byte> data = file.subspan(8 + header_bytes);

  TensorMap tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return absl::InvalidArgumentError("__metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return absl::InvalidArgumentError(absl::StrCat("__metadata__ \"", key, "\" is not a string"));
      }
      continue;
    }
    PERIGEE_ASSIGN_OR_RETURN(tensors[name], ParseEntry(name, entry, data));
  }

  // The ranges must tile the data exactly: then no byte is read twice and none is hidden.
  std::vector<const TensorMap::value_type*> by_offset;
  for (const auto& tensor : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto* a, const auto* b) {
    const auto a_begin = a->second.bytes.data(), b_begin = b->second.bytes.data();
    return a_begin != b_begin ? a_begin < b_begin : a->second.bytes.size() < b->second.bytes.size();
  });
  size_t expected = 0;
  for (const auto* tensor : by_offset) {
    const size_t begin = static_cast<size_t>(tensor->second.bytes.data() - data.data());
    if (begin != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", tensor->first, "\" starts at data byte ", begin,
                       begin < expected ? ", inside the tensor before it, which ends at "
                                        : ", leaving a hole after the tensor before it, which ends at ",
                       expected));
    }
    expected += tensor->second.bytes.size();
  }
  if (expected != data.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tensors end at data byte ", expected, " but the file has ", data.size()));
  }
  return tensors;
}

absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(absl::string_view json) {
  PERIGEE_ASSIGN_OR_RETURN(const Json index, ParseJsonObject(json, "the safetensors index", 8));
  const Json* weight_map = FindValue(index, "weight_map");
  if (weight_map == nullptr || !weight_map->is_object() || weight_map->empty()) {
    return absl::InvalidArgumentError("\"weight_map\" is missing, empty or not an object");
  }
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, value] : weight_map->items()) {
    if (!value.is_string())
      return absl::InvalidArgumentError(absl::StrCat("weight_map \"", tensor, "\" is not a file name"));
    const std::string& file = value.get_ref<const std::string&>();
    if (file.size() > 255 || file.find_first_of(std::string("/\\\0", 3)) != std::string::npos ||
        absl::StrContains(file, "..") || file[0] == '.' || !absl::EndsWith(file, ".safetensors")) {
      return absl::InvalidArgumentError(absl::StrCat("weight_map \"", tensor, "\" names ", Shown(value),
                                                     "; only plain *.safetensors names beside the index are accepted"));
    }
    shard_of[tensor] = file;
  }
  return shard_of;
}

void ConvertToFloat(const TensorView& tensor, std::span<float> out) {
  const std::byte* in = tensor.bytes.data();
  const size_t n = std::min(out.size(), static_cast<size_t>(tensor.elements));
  switch (tensor.dtype) {
    case Dtype::kF32:
      if (n > 0) std::memcpy(out.data(), in, n * 4);
      return;
    case Dtype::kBf16:
      for (size_t i = 0; i < n; ++i) {
        uint16_t bits;
        std::memcpy(&bits, in + 2 * i, 2);
        out[i] = std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
      }
      return;
    case Dtype::kF16:
      for (size_t i = 0; i < n; ++i) {
        uint16_t bits;
        std::memcpy(&bits, in + 2 * i, 2);
        const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
        const uint32_t magnitude = bits & 0x7FFF;
        if (magnitude >= 0x7C00) {  // infinity and NaN
          out[i] = std::bit_cast<float>(sign | 0x7F800000 | ((magnitude & 0x3FF) << 13));
        } else {
          // Placed in f32's fields, the exponent is 112 too small; multiplying by 2^112 repairs it, subnormals
          // included, exactly.
          const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1.0p112f;
          out[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | sign);
        }
      }
      return;
  }
}

const TensorView* Checkpoint::Find(absl::string_view name) const {
  const auto it = tensors_.find(std::string(name));
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& folder) {
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  std::map<std::string, std::string> shard_of;  // empty for a single file
  absl::StatusOr<MappedFile> single = MappedFile::Open(folder + "/" + kSingleFile);
  if (single.ok()) {
    checkpoint.files_.push_back(kSingleFile);
    checkpoint.mappings_.push_back(*std::move(single));
  } else if (!absl::IsNotFound(single.status())) {
    return single.status();
  } else {
    const std::string index_path = folder + "/" + kIndexFile;
    absl::StatusOr<std::string> index = ReadFile(index_path, kMaxIndexBytes);
    if (absl::IsNotFound(index.status())) {
      return absl::NotFoundError(absl::StrCat("neither ", kSingleFile, " nor ", kIndexFile, " is in ", folder));
    }
    if (!index.ok()) return index.status();
    auto parsed = ParseSafetensorsIndex(*index);
    if (!parsed.ok()) return Annotate(parsed.status(), index_path);
    shard_of = *std::move(parsed);
    std::set<std::string> names;
    for (const auto& [tensor, file] : shard_of) names.insert(file);
    checkpoint.files_.assign(names.begin(), names.end());
    for (const std::string& file : checkpoint.files_) {
      PERIGEE_ASSIGN_OR_RETURN(MappedFile mapping, MappedFile::Open(folder + "/" + file));
      checkpoint.mappings_.push_back(std::move(mapping));
    }
  }
  for (size_t i = 0; i < checkpoint.files_.size(); ++i) {
    const std::string path = folder + "/" + checkpoint.files_[i];
    auto tensors = ParseSafetensors(checkpoint.mappings_[i].bytes());
    if (!tensors.ok()) return Annotate(tensors.status(), path);
    for (auto& [name, view] : *tensors) {
      const auto listed = shard_of.find(name);
      if (!shard_of.empty() && (listed == shard_of.end() || listed->second != checkpoint.files_[i])) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, " holds tensor \"", name, "\", which ", kIndexFile,
            listed == shard_of.end() ? std::string(" does not list") : absl::StrCat(" places in ", listed->second)));
      }
      checkpoint.tensors_.emplace(name, std::move(view));
    }
  }
  for (const auto& [name, file] : shard_of) {
    if (!checkpoint.tensors_.contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, "/", file, " lacks tensor \"", name, "\", which ", kIndexFile, " places there"));
    }
  }
  return checkpoint;
}

}  // namespace perigee::model
