#include "pod/block_key.h"

#include <algorithm>

#include "base/status.h"

namespace perigee::pod {

absl::StatusOr<BlockKey> BlockKeyFromBytes(absl::string_view raw) {
  BlockKey key;
  if (raw.size() != key.digest.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a block key has ", key.digest.size(), " bytes, this has ", raw.size()));
  }
  std::copy(raw.begin(), raw.end(), key.digest.begin());
  return key;
}

absl::Status ValidateIdentity(const Identity& identity) {
  if (identity.tenant.size() > 256 || identity.salt.size() > 256) {
    return absl::InvalidArgumentError(absl::StrCat("tenant and salt have at most 256 bytes each; these have ",
                                                   identity.tenant.size(), " and ", identity.salt.size()));
  }
  if (identity.block_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat("block_tokens is ", identity.block_tokens));
  }
  return absl::OkStatus();
}

BlockKey DeriveBlockKey(const Identity& identity, const BlockKey* parent, std::span<const int32_t> tokens) {
  ByteWriter w;
  w.Raw("perigee.block.v1");
  w.Counted(identity.tenant);
  w.Counted(identity.salt);
  w.Raw(AsView(identity.model_fingerprint));
  w.Raw(AsView(identity.plan_id));
  w.U32(static_cast<uint32_t>(identity.block_tokens));
  w.U32(identity.shard);
  w.Counted(parent == nullptr ? absl::string_view("root") : AsView(parent->digest));
  w.U32(static_cast<uint32_t>(tokens.size()));
  for (int32_t token : tokens) w.U32(static_cast<uint32_t>(token));
  return BlockKey{Sha256(w.bytes())};
}

std::vector<BlockKey> DeriveChain(const Identity& identity, std::span<const int32_t> tokens) {
  std::vector<BlockKey> chain;
  if (identity.block_tokens < 1) return chain;
  const size_t block = static_cast<size_t>(identity.block_tokens);
  chain.reserve(tokens.size() / block + 1);
  for (size_t begin = 0; begin < tokens.size(); begin += block) {
    const BlockKey* parent = chain.empty() ? nullptr : &chain.back();
    chain.push_back(DeriveBlockKey(identity, parent, tokens.subspan(begin, std::min(block, tokens.size() - begin))));
  }
  return chain;
}

}  // namespace perigee::pod
