// A client of one prefill and one decode node: the whole way of a request, with its retries and its measurements.
#ifndef PERIGEE_CLUSTER_CLIENT_H_
#define PERIGEE_CLUSTER_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "perigee/v1/decode.grpc.pb.h"
#include "perigee/v1/prefill.grpc.pb.h"

namespace perigee::cluster {

// Where the processes of a cluster listen; kept as a small JSON file by `perigee up`.
struct ClusterAddresses {
  std::string store;
  std::string prefill;
  std::string decode;
  std::string store_secret_file = "";   // "": the store asks for none.
  std::string gateway = "";             // Of its HTTP API; "": there is none.
  std::string members = "";             // The membership's spec (cluster/membership/open_membership.h).
  std::vector<std::string> admin = {};  // Processes that operators' verbs may ask (cluster/admin/).

  static absl::StatusOr<ClusterAddresses> Read(const std::string& path);
  absl::Status Write(const std::string& path) const;
};

struct GenerateOptions {
  std::string tenant;
  std::string salt;
  std::vector<std::string> segments;  // Text, in order; each border is a branch point.
  std::vector<int32_t> token_ids;     // Instead of segments, where not empty.
  bool no_bos = false;
  uint32_t max_tokens = 64;
  double temperature = 0;
  double top_p = 0;
  uint32_t top_k = 0;
  uint64_t seed = 0;
  bool ignore_eos = false;
  bool return_logits = false;
  std::vector<std::string> stop;
  absl::Duration timeout = absl::Seconds(120);  // For the whole request.
};

struct GenerateResult {
  v1::PrefillResponse prefill;  // Of the last attempt.
  v1::GenerateEvent::Started started;
  v1::GenerateEvent::Finished finished;
  std::vector<int32_t> token_ids;
  std::vector<std::vector<float>> logits;  // One row per token, where asked for.
  std::string text;
  absl::Duration time_to_first_token;  // From the call to the first token's arrival here.
  double tokens_per_s = 0;             // Of the tokens after the first.
  int attempts = 1;                    // More than one: planes were missing or wrong and were computed again.
};

// Any thread may call.
class ClusterClient {
 public:
  explicit ClusterClient(const ClusterAddresses& addresses);

  // Prefill, then decode. Planes that vanish or prove corrupt between the two are prefilled again, at most twice.
  // on_text, where given, receives the answer's pieces as they arrive; a retry happens only before the first piece.
  // INVALID_ARGUMENT for texts that are not UTF-8.
  absl::StatusOr<GenerateResult> Generate(const GenerateOptions& options,
                                          const std::function<void(absl::string_view)>& on_text = nullptr);

  absl::StatusOr<v1::NodeInfo> PrefillInfo(absl::Duration timeout = absl::Seconds(10));
  absl::StatusOr<v1::NodeInfo> DecodeInfo(absl::Duration timeout = absl::Seconds(10));

 private:
  absl::Status Decode(const GenerateOptions& options, const v1::GenerateRequest& request, absl::Time start,
                      absl::Time deadline, const std::function<void(absl::string_view)>& on_text,
                      GenerateResult& result);
  const ClusterAddresses addresses_;
  std::unique_ptr<v1::PrefillNode::Stub> prefill_;
  std::unique_ptr<v1::DecodeNode::Stub> decode_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CLIENT_H_
