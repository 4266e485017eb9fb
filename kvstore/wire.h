// Internal to the room: protobuf messages of what store.h has, and back. Client and service share it.
#ifndef PERIGEE_KVSTORE_WIRE_H_
#define PERIGEE_KVSTORE_WIRE_H_

#include "absl/status/statusor.h"
#include "kvstore/plane_id.h"
#include "perigee/v1/kvstore.pb.h"

namespace perigee::kvstore {

inline absl::StatusOr<pod::PlaneKind> KindFromWire(int kind) {
  if (kind < 1 || kind > 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("plane kind ", kind, " is not known: 1 distant, 2 proximal, 3 summary"));
  }
  return static_cast<pod::PlaneKind>(kind);
}

inline absl::StatusOr<PlaneId> PlaneIdFromWire(const v1::PlaneId& wire) {
  PlaneId id;
  const absl::StatusOr<pod::BlockKey> key = pod::BlockKeyFromBytes(wire.key());
  if (!key.ok()) return key.status();
  const absl::StatusOr<pod::PlaneKind> kind = KindFromWire(wire.kind());
  if (!kind.ok()) return kind.status();
  id.key = *key;
  id.kind = *kind;
  return id;
}

inline void PlaneIdToWire(const PlaneId& id, v1::PlaneId* wire) {
  wire->set_key(id.key.digest.data(), id.key.digest.size());
  wire->set_kind(static_cast<v1::PlaneKind>(id.kind));
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_WIRE_H_
