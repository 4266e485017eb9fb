// Inside of transport/: what two contexts say to each other, in UCX active messages (docs/formats.md, "Data plane").
//
// Headers are little-endian structs that travel as they lie in memory. All but the hello begin with the *receiver's*
// channel number for the connection: random, told to the peer once in the hello exchange, so that nobody can speak for
// another.
#ifndef PERIGEE_TRANSPORT_WIRE_H_
#define PERIGEE_TRANSPORT_WIRE_H_

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "transport/remote_key.h"

namespace perigee::transport::internal {

static_assert(std::endian::native == std::endian::little, "the headers travel as they lie in memory");

// Version 1 had no hello of this form, no channels and one extent per message; version 2 had smaller segments.
inline constexpr uint16_t kProtocolMin = 3;
inline constexpr uint16_t kProtocolMax = 3;

// UCX's active-message ids.
enum AmId : unsigned {
  kHelloId = 1,
  kHelloAnswerId = 2,
  kPingId = 3,
  kMessageId = 4,
  kPutId = 5,
  kGetId = 6,
  kGetDataId = 7,
  kAnswerId = 8,
  kCopiedId = 9,  // since a later release of version 3: others do not hear it
};

inline constexpr size_t kOpBytes = size_t{1} << 20;         // the most that one put or get message carries
inline constexpr size_t kMaxPieces = 4096;                  // and in how many pieces
inline constexpr size_t kPackedBytes = size_t{112} << 10;   // the most that several runs share; measured
inline constexpr size_t kSegmentBytes = size_t{384} << 10;  // UCX's, over tcp: both sides' have to be equal

// Up to this many bytes a payload comes with its message, in one segment of UCX's; more waits for the receiver to say
// where it belongs (rendezvous).
inline constexpr size_t kEagerBytes = size_t{320} << 10;
static_assert(kPackedBytes + kMaxPieces * 16 <= kEagerBytes, "what is packed is eager");
static_assert(kEagerBytes + 4096 <= kSegmentBytes && kSegmentBytes / 2 <= kEagerBytes, "see Transfer::Plan");
inline constexpr bool IsLong(size_t payload_bytes) { return payload_bytes > kEagerBytes; }

struct PingHeader {
  uint64_t channel = 0;
  uint64_t is_answer = 0;
};

enum class MessageKind : uint16_t { kOneWay = 1, kRequest = 2, kReply = 3 };

// Then the handler's header and payload.
struct MessageHeader {
  uint64_t channel = 0;
  uint64_t call = 0;
  MessageKind kind{};
  uint16_t handler = 0;
  uint32_t code = 0;  // absl::StatusCode of a reply
  uint32_t header_bytes = 0;
  uint32_t reserved = 0;
};

// Put: the data follows; get: nothing does. With more than one piece, a table of them comes first. Copied: the peer has
// written these bytes itself, through a mapping of the region; op is 0, and nothing answers.
struct OpHeader {
  uint64_t channel = 0;
  uint64_t op = 0;
  uint64_t region = 0;
  uint64_t address = 0;  // of the only piece
  uint64_t size = 0;     // of all pieces together
  uint32_t pieces = 1;
  uint32_t reserved = 0;
};
struct WirePiece {
  uint64_t address = 0;
  uint64_t size = 0;
};

// Ends a put (any code), or a get that failed.
struct AnswerHeader {
  uint64_t channel = 0;
  uint64_t op = 0;
  uint32_t code = 0;
  uint32_t reserved = 0;
};

struct GetDataHeader {
  uint64_t channel = 0;
  uint64_t op = 0;
};

template <typename Header>
bool ReadHeader(const void* bytes, size_t length, Header* header) {
  if (length != sizeof(Header)) return false;
  std::memcpy(header, bytes, sizeof(Header));
  return true;
}

// False unless there are between 2 and kMaxPieces pieces whose table fits in `length` bytes, whose sizes are not 0 and
// add up to header.size, which is at most kOpBytes. Also false for a single piece of an impossible size.
bool ReadPieces(const OpHeader& header, const void* payload, size_t length, std::vector<WirePiece>* pieces);

struct Hello {
  uint16_t version_min = 0, version_max = 0;
  ContextId context_id{};
  uint64_t channel = 0;
  std::string machine;  // equal for processes that can share memory
  std::string token;
  std::vector<uint16_t> ports;  // on which the speaker's UCX listens
};
struct HelloAnswer {
  uint32_t code = 0;  // absl::StatusCode
  std::string message;
  uint16_t version = 0;
  ContextId context_id{};
  uint64_t channel = 0;
  std::string machine;
  std::vector<uint16_t> rail_ports;  // of the rails after the first ...
  std::vector<std::string> rail_hosts;
  std::vector<uint16_t> ports;
};

std::string EncodeHello(const Hello& hello);
absl::StatusOr<Hello> DecodeHello(absl::string_view bytes);
std::string EncodeHelloAnswer(const HelloAnswer& answer);
absl::StatusOr<HelloAnswer> DecodeHelloAnswer(absl::string_view bytes);

// The newest version that both speak; FAILED_PRECONDITION, naming both ranges, when there is none.
absl::StatusOr<uint16_t> AgreeOnVersion(uint16_t min, uint16_t max, const Hello& hello);

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_WIRE_H_
