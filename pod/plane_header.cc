#include "pod/plane_header.h"

#include <algorithm>

#include "base/crc32c.h"
#include "base/status.h"

namespace perigee::pod {
namespace {

constexpr char kMagic[] = "PGPLANE1";
constexpr uint16_t kVersion = 2;                // Version 1, without the root, is read too.
constexpr size_t kPrefixBytes = 8 + 2 + 4 + 4;  // Magic, version, body length, body checksum.
constexpr uint32_t kMaxBodyBytes = 64 << 20;

Digest ReadDigest(ByteReader& r) {
  Digest d{};
  const absl::string_view raw = r.Raw(d.size());
  std::copy(raw.begin(), raw.end(), d.begin());
  return d;
}

absl::Status Mismatch(absl::string_view field, absl::string_view stored, absl::string_view expected) {
  return absl::FailedPreconditionError(
      absl::StrCat("plane header: ", field, " is ", stored, ", the reader expects ", expected));
}

}  // namespace

std::string EncodePlaneHeader(const PlaneHeader& h) {
  ByteWriter body;
  body.U8(static_cast<uint8_t>(h.kind));
  body.U8(static_cast<uint8_t>(h.near_codec));
  body.U8(h.has_parent ? 1 : 0);
  body.U8(0);
  body.Raw(AsView(h.key.digest));
  body.Raw(AsView(h.parent.digest));
  if (h.has_root()) body.Raw(AsView(h.root.digest));
  body.Raw(AsView(h.model_fingerprint));
  body.Raw(AsView(h.plan_id));
  body.Counted(h.tenant);
  body.U32(static_cast<uint32_t>(h.shape.layers));
  body.U32(static_cast<uint32_t>(h.shape.kv_heads));
  body.U32(static_cast<uint32_t>(h.shape.head_dim));
  body.U32(static_cast<uint32_t>(h.block_tokens));
  body.U32(static_cast<uint32_t>(h.tokens));
  body.U32(h.shard);
  body.U64(static_cast<uint64_t>(h.base_position));
  body.U64(h.payload_bytes);
  body.U32(static_cast<uint32_t>(h.sections.size()));
  for (const SectionSum& s : h.sections) {
    body.U32(s.bytes);
    body.U32(s.crc32c);
  }
  ByteWriter out;
  out.Raw(absl::string_view(kMagic, 8));
  out.U16(h.has_root() ? kVersion : 1);
  out.U32(static_cast<uint32_t>(body.bytes().size()));
  out.U32(Crc32c(AsBytes(body.bytes())));
  out.Raw(body.bytes());
  return out.Take();
}

absl::StatusOr<PlaneHeader> DecodePlaneHeader(absl::string_view bytes, size_t* encoded_bytes) {
  ByteReader prefix(bytes);
  const absl::string_view magic = prefix.Raw(8);
  if (prefix.ok() && magic != absl::string_view(kMagic, 8)) {
    return absl::FailedPreconditionError("plane header: wrong magic; this is not a Perigee plane");
  }
  const uint16_t version = prefix.U16();
  if (!prefix.ok()) return absl::DataLossError(absl::StrCat("plane header: truncated to ", bytes.size(), " bytes"));
  if (version < 1 || version > kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("plane header: version ", version, " is not known; this build reads versions 1 to ", kVersion));
  }
  const uint32_t body_bytes = prefix.U32();
  const uint32_t crc = prefix.U32();
  if (body_bytes > kMaxBodyBytes) {
    return absl::DataLossError(absl::StrCat("plane header: impossible body length ", body_bytes));
  }
  const absl::string_view body = prefix.Raw(body_bytes);
  if (!prefix.ok()) return absl::DataLossError(absl::StrCat("plane header: truncated to ", bytes.size(), " bytes"));
  if (Crc32c(AsBytes(body)) != crc) return absl::DataLossError("plane header: checksum does not match");

  ByteReader r(body);
  PlaneHeader h;
  const uint8_t kind = r.U8();
  const uint8_t near_codec = r.U8();
  const uint8_t has_parent = r.U8();
  const uint8_t reserved = r.U8();
  h.key.digest = ReadDigest(r);
  h.parent.digest = ReadDigest(r);
  if (version > 1) h.root.digest = ReadDigest(r);
  h.model_fingerprint = ReadDigest(r);
  h.plan_id = ReadDigest(r);
  h.tenant = std::string(r.Counted());
  h.shape.layers = static_cast<int>(r.U32());
  h.shape.kv_heads = static_cast<int>(r.U32());
  h.shape.head_dim = static_cast<int>(r.U32());
  h.block_tokens = static_cast<int32_t>(r.U32());
  h.tokens = static_cast<int32_t>(r.U32());
  h.shard = r.U32();
  h.base_position = static_cast<int64_t>(r.U64());
  h.payload_bytes = r.U64();
  const uint32_t sections = r.U32();
  if (!r.ok() || r.remaining() != size_t{8} * sections) {
    return absl::DataLossError(absl::StrCat("plane header: body of ", body_bytes, " bytes does not fit its fields"));
  }
  uint64_t sum_bytes = 0;
  h.sections.resize(sections);
  for (SectionSum& s : h.sections) {
    s.bytes = r.U32();
    s.crc32c = r.U32();
    sum_bytes += s.bytes;
  }
  const auto impossible = [](absl::string_view field, auto value) {
    return absl::DataLossError(absl::StrCat("plane header: impossible ", field, " ", value));
  };
  if (kind < 1 || kind > 3) return impossible("kind", static_cast<int>(kind));
  h.kind = static_cast<PlaneKind>(kind);
  const std::optional<Codec> codec = CodecFromId(near_codec);
  if (!codec) return impossible("codec id", static_cast<int>(near_codec));
  h.near_codec = *codec;
  if (has_parent > 1) return impossible("parent flag", static_cast<int>(has_parent));
  if (reserved != 0) return impossible("reserved byte", static_cast<int>(reserved));
  h.has_parent = has_parent == 1;
  if (!h.has_parent && h.parent != BlockKey{}) return impossible("parent of a first block", h.parent.ToString());
  if (version > 1 && (!h.has_root() || (h.root == h.key) == h.has_parent)) return impossible("root", h.root.ToString());
  if (h.tenant.size() > 256) return impossible("tenant length", h.tenant.size());
  if (const absl::Status shape = ValidateShape(h.shape); !shape.ok()) {
    return absl::DataLossError(absl::StrCat("plane header: ", shape.message()));
  }
  if (h.block_tokens < 1 || h.block_tokens > 1024) return impossible("block_tokens", h.block_tokens);
  if (h.tokens < 1 || h.tokens > h.block_tokens) return impossible("tokens", h.tokens);
  if (h.base_position < 0) return impossible("base_position", h.base_position);
  if (h.payload_bytes != sum_bytes) return impossible("payload_bytes", h.payload_bytes);
  if (encoded_bytes != nullptr) *encoded_bytes = kPrefixBytes + body_bytes;
  return h;
}

absl::Status CheckPlaneHeader(const PlaneHeader& h, const Layout& layout, const Identity& identity, const BlockKey& key,
                              PlaneKind kind, const BlockKey* root) {
  const Plan& plan = layout.plan();
  if (h.key != key) return Mismatch("block key", h.key.ToString(), key.ToString());
  if (h.kind != kind) return Mismatch("plane", PlaneKindName(h.kind), PlaneKindName(kind));
  if (root != nullptr && h.has_root() && h.root != *root) {
    return Mismatch("root", h.root.ToString(), root->ToString());
  }
  if (h.tenant != identity.tenant) return Mismatch("tenant", h.tenant, identity.tenant);
  if (h.model_fingerprint != identity.model_fingerprint) {
    return Mismatch("model fingerprint", ToHex(h.model_fingerprint), ToHex(identity.model_fingerprint));
  }
  if (h.plan_id != plan.id()) return Mismatch("plan id", ToHex(h.plan_id), ToHex(plan.id()));
  if (h.shape != plan.shape()) {
    return Mismatch("shape", absl::StrCat(h.shape.layers, "x", h.shape.kv_heads, "x", h.shape.head_dim),
                    absl::StrCat(plan.shape().layers, "x", plan.shape().kv_heads, "x", plan.shape().head_dim));
  }
  if (h.near_codec != plan.near_codec())
    return Mismatch("codec", CodecName(h.near_codec), CodecName(plan.near_codec()));
  if (h.block_tokens != layout.block_tokens()) {
    return Mismatch("block_tokens", absl::StrCat(h.block_tokens), absl::StrCat(layout.block_tokens()));
  }
  if (h.shard != identity.shard) return Mismatch("shard", absl::StrCat(h.shard), absl::StrCat(identity.shard));
  const std::vector<Section>& sections = layout.sections(kind);
  if (h.payload_bytes != layout.plane_bytes(kind) || h.sections.size() != sections.size()) {
    return Mismatch("payload", absl::StrCat(h.payload_bytes, " bytes in ", h.sections.size(), " sections"),
                    absl::StrCat(layout.plane_bytes(kind), " in ", sections.size()));
  }
  for (size_t i = 0; i < sections.size(); ++i) {
    if (h.sections[i].bytes != sections[i].bytes) {
      return Mismatch(absl::StrCat("section ", i), absl::StrCat(h.sections[i].bytes, " bytes"),
                      absl::StrCat(sections[i].bytes));
    }
  }
  return absl::OkStatus();
}

std::vector<SectionSum> SumSections(const Layout& layout, PlaneKind kind, std::span<const std::byte> payload) {
  std::vector<SectionSum> sums;
  for (const Section& s : layout.sections(kind)) {
    sums.push_back({static_cast<uint32_t>(s.bytes), Crc32c(payload.subspan(s.offset_bytes, s.bytes))});
  }
  return sums;
}

absl::Status VerifyPayload(const PlaneHeader& header, std::span<const std::byte> payload) {
  return VerifyPayload(header, payload, [](std::span<const std::byte> bytes) { return Crc32c(bytes); });
}

absl::Status VerifyPayload(const PlaneHeader& h, std::span<const std::byte> payload,
                           absl::FunctionRef<uint32_t(std::span<const std::byte>)> sum) {
  if (payload.size() != h.payload_bytes) {
    return absl::DataLossError(absl::StrCat("plane ", h.key.ToString(), "/", PlaneKindName(h.kind), ": ",
                                            payload.size(), " bytes arrived, the header says ", h.payload_bytes));
  }
  size_t offset = 0;
  for (size_t i = 0; i < h.sections.size(); ++i) {
    if (h.sections[i].bytes > payload.size() - offset)
      break;  // Only in a header that did not come from DecodePlaneHeader.
    const uint32_t crc = sum(payload.subspan(offset, h.sections[i].bytes));
    if (crc != h.sections[i].crc32c) {
      return absl::DataLossError(absl::StrCat("plane ", h.key.ToString(), "/", PlaneKindName(h.kind), ": section ", i,
                                              " has CRC32C ", crc, ", the header says ", h.sections[i].crc32c));
    }
    offset += h.sections[i].bytes;
  }
  if (offset != payload.size()) {
    return absl::DataLossError(absl::StrCat("plane ", h.key.ToString(), "/", PlaneKindName(h.kind),
                                            ": its sections cover ", offset, " of ", payload.size(), " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace perigee::pod
