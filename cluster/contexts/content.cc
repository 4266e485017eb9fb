#include "cluster/contexts/content.h"

namespace perigee::cluster {

std::string PackContent(const StoredContent& stored) {
  ByteWriter out;
  if (const auto* text = std::get_if<std::string>(&stored.content)) {
    out.U8('T');
    out.Raw(*text);
    return out.Take();
  }
  out.U8('I');
  out.Raw(AsView(stored.tokenizer));
  for (const int32_t id : std::get<std::vector<int32_t>>(stored.content)) out.U32(static_cast<uint32_t>(id));
  return out.Take();
}

absl::StatusOr<StoredContent> UnpackContent(absl::string_view bytes) {
  ByteReader in(bytes);
  StoredContent stored;
  const uint8_t kind = in.U8();
  if (kind == 'T') {
    stored.content = std::string(in.Raw(in.remaining()));
    return stored;
  }
  const absl::string_view tokenizer = in.Raw(stored.tokenizer.size());
  if (kind != 'I' || !in.ok() || in.remaining() % 4 != 0) {
    return absl::DataLossError("the stored content is neither a text nor token ids: put the context again");
  }
  std::copy(tokenizer.begin(), tokenizer.end(), stored.tokenizer.begin());
  std::vector<int32_t> ids;
  ids.reserve(in.remaining() / 4);
  while (in.remaining() > 0) ids.push_back(static_cast<int32_t>(in.U32()));
  stored.content = std::move(ids);
  return stored;
}

}  // namespace perigee::cluster
