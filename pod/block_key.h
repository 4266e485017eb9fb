// Block keys: what a block is called, everywhere and forever.
//
// A key is SHA-256 over a canonical encoding (docs/formats.md section 2) of tenant, salt, model fingerprint, plan id,
// block size, shard, the parent block's key or "root", and the block's token ids. Two blocks with the same key hold the
// same meaning; anything that changes the meaning changes the key. A block with fewer tokens than the block size (the
// end of a prompt) has a key of its own.
#ifndef PERIGEE_POD_BLOCK_KEY_H_
#define PERIGEE_POD_BLOCK_KEY_H_

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/status/statusor.h"
#include "base/bytes.h"

namespace perigee::pod {

struct BlockKey {
  Digest digest{};

  std::string ToString() const { return ToHex(digest); }
  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& key) {
    return H::combine(std::move(h), key.digest);
  }
};

absl::StatusOr<BlockKey> BlockKeyFromBytes(absl::string_view raw);

// What all blocks of one prompt have in common.
struct Identity {
  std::string tenant;  // At most 256 bytes.
  std::string salt;    // At most 256 bytes. Readers with another salt never find the block.
  Digest model_fingerprint{};
  Digest plan_id{};
  int block_tokens = 0;
  uint32_t shard = 0;  // Blocks are the whole model's, whatever the tensor-parallel degree (pod/head_shard.h): 0.
};

absl::Status ValidateIdentity(const Identity& identity);

// parent: nullptr for the first block. The identity is valid (ValidateIdentity); so too for DeriveChain.
BlockKey DeriveBlockKey(const Identity& identity, const BlockKey* parent, std::span<const int32_t> tokens);

// Keys of the blocks of tokens[0..n), each the next one's parent. The last one covers n % block_tokens tokens where
// that is not 0.
std::vector<BlockKey> DeriveChain(const Identity& identity, std::span<const int32_t> tokens);

}  // namespace perigee::pod

#endif  // PERIGEE_POD_BLOCK_KEY_H_
