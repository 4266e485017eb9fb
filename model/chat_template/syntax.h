// A chat template as a tree. Internal to model/chat_template.
#ifndef PERIGEE_MODEL_CHAT_TEMPLATE_SYNTAX_H_
#define PERIGEE_MODEL_CHAT_TEMPLATE_SYNTAX_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/chat_template/value.h"

namespace perigee::model::jinja {

enum class NodeKind {
  // Expressions. `children` and others are said behind each; optional children may be null.
  kConstant,     // constant
  kName,         // name
  kList,         // items
  kDict,         // key, value, key, value...
  kAttribute,    // object; name
  kSubscript,    // object, key
  kSlice,        // object, begin?, end?, step?
  kCall,         // callee, arguments...; keywords
  kFilter,       // input, arguments...; name, keywords
  kTest,         // input, arguments...; name
  kUnary,        // operand; name: "-", "+", "not"
  kBinary,       // left, right; name: the operator
  kCompare,      // operands; names: the operators between them
  kConditional,  // condition, then, otherwise?
  // Statements.
  kBody,          // statements
  kText,          // constant
  kPrint,         // expression
  kIf,            // condition, body, condition, body..., [otherwise]
  kFor,           // iterable, condition?, body, otherwise?; names: the targets
  kSet,           // expression; names: the targets
  kSetAttribute,  // expression; name: the namespace's, names: the field's
  kSetBlock,      // body; names: the target
  kMacro,         // body; name, names: the parameters, keywords: their defaults
  kBreak,
  kContinue,
};

struct Node {
  NodeKind kind = NodeKind::kBody;
  int line = 1;
  int height = 1;  // Of the tree below: recursion over it is bounded.
  std::string name;
  std::vector<std::string> names;
  Value constant;
  std::vector<std::unique_ptr<Node>> children;
  std::vector<std::pair<std::string, std::unique_ptr<Node>>> keywords;
};

// UNIMPLEMENTED names what of Jinja is not supported: tags, filters, tests, functions and methods; INVALID_ARGUMENT is
// for what is no template.
absl::StatusOr<std::unique_ptr<Node>> ParseTemplate(absl::string_view source);

}  // namespace perigee::model::jinja

#endif  // PERIGEE_MODEL_CHAT_TEMPLATE_SYNTAX_H_
