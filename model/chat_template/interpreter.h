// Renders a parsed chat template. Internal to model/chat_template.
#ifndef PERIGEE_MODEL_CHAT_TEMPLATE_INTERPRETER_H_
#define PERIGEE_MODEL_CHAT_TEMPLATE_INTERPRETER_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "model/chat_template/syntax.h"
#include "model/chat_template/value.h"

namespace perigee::model::jinja {

struct RenderLimits {
  int64_t budget = 0;       // See Budget.
  size_t output_bytes = 0;  // Of what is printed, in all.
};

// `variables` are what the template can name. INVALID_ARGUMENT: the template cannot take these values, or refuses them
// (raise_exception), or costs too much; UNIMPLEMENTED names what is not supported. Errors say the line.
absl::StatusOr<Text> RenderTemplate(const Node& root, Dict variables, int64_t now_s, const RenderLimits& limits);

}  // namespace perigee::model::jinja

#endif  // PERIGEE_MODEL_CHAT_TEMPLATE_INTERPRETER_H_
