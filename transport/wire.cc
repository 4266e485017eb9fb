#include "transport/wire.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"

namespace perigee::transport::internal {
namespace {

constexpr uint32_t kMagic = 0x50544750;  // "PGTP"
constexpr size_t kMaxHelloBytes = 16 << 10;
constexpr size_t kMaxRails = 64;
constexpr uint16_t kMaxPorts = 64;

absl::string_view View(const ContextId& id) { return {reinterpret_cast<const char*>(id.data()), id.size()}; }

void WritePorts(ByteWriter& writer, const std::vector<uint16_t>& ports) {
  writer.U16(static_cast<uint16_t>(ports.size()));
  for (const uint16_t port : ports) writer.U16(port);
}

std::vector<uint16_t> ReadPorts(ByteReader& reader) {
  std::vector<uint16_t> ports;
  uint16_t count = reader.U16();
  if (count > kMaxPorts) reader.Raw(reader.remaining() + 1);  // refused
  for (; count > 0 && reader.ok(); --count) ports.push_back(reader.U16());
  return ports;
}

absl::Status Malformed(size_t bytes) {
  return absl::InvalidArgumentError(absl::StrCat("the peer's hello of ", bytes, " bytes is not in this protocol"));
}

}  // namespace

bool ReadPieces(const OpHeader& header, const void* payload, size_t length, std::vector<WirePiece>* pieces) {
  if (header.size == 0 || header.size > kOpBytes || header.pieces == 0 || header.pieces > kMaxPieces) return false;
  if (header.pieces == 1) {
    *pieces = {{header.address, header.size}};
    return true;
  }
  if (length < header.pieces * sizeof(WirePiece)) return false;
  pieces->resize(header.pieces);
  std::memcpy(pieces->data(), payload, header.pieces * sizeof(WirePiece));
  uint64_t total = 0;
  for (const WirePiece& piece : *pieces) {
    if (piece.size == 0 || piece.size > kOpBytes) return false;
    total += piece.size;
  }
  return total == header.size;
}

std::string EncodeHello(const Hello& hello) {
  ByteWriter writer;
  writer.U32(kMagic);
  writer.U16(hello.version_min);
  writer.U16(hello.version_max);
  writer.Raw(View(hello.context_id));
  writer.U64(hello.channel);
  writer.Counted(hello.machine);
  writer.Counted(hello.token);
  WritePorts(writer, hello.ports);
  return writer.Take();
}

// Later versions may append fields: what follows is ignored.
absl::StatusOr<Hello> DecodeHello(absl::string_view bytes) {
  if (bytes.size() > kMaxHelloBytes) return Malformed(bytes.size());
  ByteReader reader(bytes);
  Hello hello;
  const uint32_t magic = reader.U32();
  hello.version_min = reader.U16();
  hello.version_max = reader.U16();
  const absl::string_view id = reader.Raw(hello.context_id.size());
  hello.channel = reader.U64();
  hello.machine = std::string(reader.Counted());
  hello.token = std::string(reader.Counted());
  if (reader.remaining() > 0) hello.ports = ReadPorts(reader);  // appended after the version's first release
  if (!reader.ok() || magic != kMagic || hello.channel == 0) return Malformed(bytes.size());
  std::copy(id.begin(), id.end(), hello.context_id.begin());
  return hello;
}

std::string EncodeHelloAnswer(const HelloAnswer& answer) {
  ByteWriter writer;
  writer.U32(kMagic);
  writer.U32(answer.code);
  writer.Counted(answer.message);
  writer.U16(answer.version);
  writer.Raw(View(answer.context_id));
  writer.U64(answer.channel);
  writer.Counted(answer.machine);
  writer.U16(static_cast<uint16_t>(answer.rail_ports.size()));
  for (size_t i = 0; i < answer.rail_ports.size(); ++i) {
    writer.U16(answer.rail_ports[i]);
    writer.Counted(answer.rail_hosts[i]);
  }
  WritePorts(writer, answer.ports);
  return writer.Take();
}

absl::StatusOr<HelloAnswer> DecodeHelloAnswer(absl::string_view bytes) {
  if (bytes.size() > kMaxHelloBytes) return Malformed(bytes.size());
  ByteReader reader(bytes);
  HelloAnswer answer;
  const uint32_t magic = reader.U32();
  answer.code = reader.U32();
  answer.message = std::string(reader.Counted());
  answer.version = reader.U16();
  const absl::string_view id = reader.Raw(answer.context_id.size());
  answer.channel = reader.U64();
  answer.machine = std::string(reader.Counted());
  const uint16_t rails = reader.U16();
  if (!reader.ok() || magic != kMagic || rails > kMaxRails) return Malformed(bytes.size());
  for (uint16_t i = 0; i < rails; ++i) {
    answer.rail_ports.push_back(reader.U16());
    answer.rail_hosts.emplace_back(reader.Counted());
  }
  if (reader.remaining() > 0) answer.ports = ReadPorts(reader);
  if (!reader.ok()) return Malformed(bytes.size());
  std::copy(id.begin(), id.end(), answer.context_id.begin());
  return answer;
}

absl::StatusOr<uint16_t> AgreeOnVersion(uint16_t min, uint16_t max, const Hello& hello) {
  const uint16_t version = std::min(max, hello.version_max);
  if (version >= min && version >= hello.version_min) return version;
  return absl::FailedPreconditionError(absl::StrCat("no common data plane protocol: one side speaks versions ", min,
                                                    " to ", max, ", the other ", hello.version_min, " to ",
                                                    hello.version_max, "; upgrade the older one"));
}

}  // namespace perigee::transport::internal
