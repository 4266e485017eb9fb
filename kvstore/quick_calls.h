// Internal to the room: control calls as messages of the data plane. They are the same calls with the same meaning as
// over gRPC (proto/perigee/v1/kvstore.proto), which takes a tenth of a millisecond and more of both processors for
// each; a message takes a tenth of that. Only calls that the store can answer at once go this way, because handlers run
// on the thread that moves everybody's payload; for others it answers UNIMPLEMENTED, and the client asks by gRPC. A
// store without this handler is asked by gRPC too.
//
//   header   u8 call, the session's token (as in gRPC's metadata)
//   request  the call's protobuf message
//            an empty header is no call: its sender asks whether everything before it has come
//   answer   u8 status code, then the protobuf message (0: OK) or the error's text
#ifndef PERIGEE_KVSTORE_QUICK_CALLS_H_
#define PERIGEE_KVSTORE_QUICK_CALLS_H_

#include <cstddef>
#include <cstdint>

namespace perigee::kvstore {

inline constexpr uint16_t kQuickCallId = 1;  // the transport's message id

// kAcquire: of planes in memory only. kCommit, kRelease: of trusted sessions only, because for others the transport
// must come to rest first. kCommit: where there is no SSD, and of at most kMaxQuickCommitBytes, of which the transport
// has summed all but kMaxQuickSumBytes on arrival.
enum class QuickCall : uint8_t { kReserve = 1, kCommit = 2, kAcquire = 3, kRelease = 4 };

inline constexpr size_t kMaxQuickPlanes = 256;
inline constexpr size_t kMaxQuickBytes = size_t{256} << 10;  // of a request or an answer
// Payload that the store sums within one call: as much as the transport copies by itself before others get their turn.
inline constexpr uint64_t kMaxQuickSumBytes = uint64_t{4} << 20;
inline constexpr uint64_t kMaxQuickCommitBytes = uint64_t{64} << 20;

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_QUICK_CALLS_H_
