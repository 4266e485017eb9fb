// The demo's last part: documents that are registered as contexts, and questions that combine them in any order.
#ifndef PERIGEE_CLUSTER_CLI_DEMO_RAG_H_
#define PERIGEE_CLUSTER_CLI_DEMO_RAG_H_

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace perigee::cli {

// Asks the gateway at host:port over HTTP, prints a table, and returns what it says. Needs 6,000 bytes of prose, one
// line. INTERNAL where an answer is wrong.
absl::StatusOr<nlohmann::ordered_json> AskAboutDocuments(const std::string& gateway, const std::string& model,
                                                         const std::string& prose);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_DEMO_RAG_H_
