// What a program built without librados answers.
#include "kvstore/remote/rados_tier.h"

namespace perigee::kvstore {

absl::StatusOr<std::unique_ptr<RemoteTier>> OpenRadosTier(const RadosOptions&) {
  return absl::UnimplementedError(
      "this program was built without librados; build it where CMake finds rados/librados.hpp and librados (Debian: "
      "apt-get install libradospp-dev)");
}

}  // namespace perigee::kvstore
