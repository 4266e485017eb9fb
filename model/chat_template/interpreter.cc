#include "model/chat_template/interpreter.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "base/status.h"
#include "model/chat_template/builtins.h"

namespace perigee::model::jinja {
namespace {

constexpr int kMaxDepth = 600;  // Of nodes inside each other, through macros.
constexpr int kMaxMacroDepth = 12;

// Names of one block; those around it are seen through it.
struct Scope {
  const Scope* around = nullptr;
  Dict variables;

  const Value* Find(absl::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->around) {
      for (const auto& [key, value] : scope->variables) {
        if (key.bytes() == name) return &value;
      }
    }
    return nullptr;
  }
  void Set(absl::string_view name, Value value) {
    for (auto& [key, old] : variables) {
      if (key.bytes() == name) {
        old = std::move(value);
        return;
      }
    }
    variables.emplace_back(Text::Own(name), std::move(value));
  }
};

enum class Flow { kNext, kBreak, kContinue };

class Renderer {
 public:
  Renderer(int64_t now_s, const RenderLimits& limits)
      : now_s_(now_s), budget_(limits.budget), max_output_bytes_(limits.output_bytes) {}

  absl::StatusOr<Text> Run(const Node& root, Dict variables) {
    top_.variables = std::move(variables);
    Text out;
    PERIGEE_ASSIGN_OR_RETURN(const Flow flow, Execute(root, top_, out));
    (void)flow;
    return out;
  }

 private:
  class Deeper {
   public:
    explicit Deeper(int& depth) : depth_(depth) { ++depth_; }
    ~Deeper() { --depth_; }

   private:
    int& depth_;
  };

  // Errors get the line of the innermost node that knows it.
  static absl::Status AtLine(const absl::Status& status, const Node& node) {
    if (absl::StartsWith(status.message(), "line ")) return status;
    return Annotate(status, absl::StrCat("line ", node.line));
  }

  absl::Status Print(const Text& text, Text& out) {
    PERIGEE_RETURN_IF_ERROR(budget_.ChargeBytes(text.size()));
    if (out.size() + text.size() > max_output_bytes_) {
      return absl::InvalidArgumentError(
          absl::StrCat("the chat template makes more than the ", max_output_bytes_, " bytes allowed"));
    }
    out.Append(text);
    return absl::OkStatus();
  }

  // ---- Statements.
  absl::StatusOr<Flow> Execute(const Node& node, Scope& scope, Text& out) {
    const Deeper deeper(depth_);
    PERIGEE_RETURN_IF_ERROR(Enter());
    switch (node.kind) {
      case NodeKind::kBody:
        for (const auto& child : node.children) {
          PERIGEE_ASSIGN_OR_RETURN(const Flow flow, Execute(*child, scope, out));
          if (flow != Flow::kNext) return flow;
        }
        return Flow::kNext;
      case NodeKind::kText:
        PERIGEE_RETURN_IF_ERROR(Print(node.constant.text(), out));
        return Flow::kNext;
      case NodeKind::kPrint: {
        PERIGEE_ASSIGN_OR_RETURN(const Value value, Evaluate(*node.children[0], scope));
        const absl::StatusOr<Text> text = Printed(value);
        if (!text.ok()) return AtLine(text.status(), node);
        PERIGEE_RETURN_IF_ERROR(Print(*text, out));
        return Flow::kNext;
      }
      case NodeKind::kIf:
        for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
          PERIGEE_ASSIGN_OR_RETURN(const Value condition, Evaluate(*node.children[i], scope));
          if (Truthy(condition)) return Execute(*node.children[i + 1], scope, out);
        }
        if (node.children.size() % 2 == 1) return Execute(*node.children.back(), scope, out);
        return Flow::kNext;
      case NodeKind::kFor:
        return Loop(node, scope, out);
      case NodeKind::kBreak:
        return Flow::kBreak;
      case NodeKind::kContinue:
        return Flow::kContinue;
      default:
        PERIGEE_RETURN_IF_ERROR(Assign(node, scope));
        return Flow::kNext;
    }
  }

  absl::Status Enter() {
    if (depth_ > kMaxDepth) return absl::InvalidArgumentError("the chat template nests too deep");
    return budget_.Charge(1);
  }

  // The statements that give values to names.
  absl::Status Assign(const Node& node, Scope& scope) {
    switch (node.kind) {
      case NodeKind::kSet: {
        PERIGEE_ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[0], scope));
        return AssignTo(node, std::move(value), scope);
      }
      case NodeKind::kSetAttribute: {
        PERIGEE_ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[0], scope));
        const Value* target = scope.Find(node.name);
        if (target == nullptr || target->kind() != Kind::kNamespace) {
          return AtLine(absl::InvalidArgumentError(absl::StrCat("\"", node.name, "\" is no namespace")), node);
        }
        if (value.kind() == Kind::kNamespace) {  // Could hold itself, and never be freed.
          return AtLine(absl::UnimplementedError("a namespace inside of a namespace is not supported"), node);
        }
        Dict& fields = target->namespace_fields();
        for (auto& [key, old] : fields) {
          if (key.bytes() == node.names[0]) {
            old = std::move(value);
            return absl::OkStatus();
          }
        }
        fields.emplace_back(Text::Own(node.names[0]), std::move(value));
        return absl::OkStatus();
      }
      case NodeKind::kSetBlock: {
        Scope inner{.around = &scope, .variables = {}};
        Text text;
        PERIGEE_ASSIGN_OR_RETURN(const Flow flow, Execute(*node.children[0], inner, text));
        (void)flow;
        scope.Set(node.names[0], Value::String(std::move(text)));
        return absl::OkStatus();
      }
      case NodeKind::kMacro:
        if (&scope != &top_)
          return AtLine(absl::UnimplementedError("a macro inside of a block is not supported"), node);
        scope.Set(node.name, Value::Macro(&node));
        return absl::OkStatus();
      default:
        return absl::InternalError("an expression stands where a statement should");
    }
  }

  absl::Status AssignTo(const Node& node, Value value, Scope& scope) {
    if (node.names.size() == 1) {
      scope.Set(node.names[0], std::move(value));
      return absl::OkStatus();
    }
    if (!value.is_list() || value.list().size() != node.names.size()) {
      return AtLine(absl::InvalidArgumentError(absl::StrCat("a ", KindName(value), " cannot be taken apart into ",
                                                            node.names.size(), " names")),
                    node);
    }
    for (size_t i = 0; i < node.names.size(); ++i) scope.Set(node.names[i], value.list()[i]);
    return absl::OkStatus();
  }

  absl::StatusOr<List> LoopItems(const Node& node, Scope& scope) {
    PERIGEE_ASSIGN_OR_RETURN(const Value iterable, Evaluate(*node.children[0], scope));
    absl::StatusOr<List> all = Iterated(iterable, budget_);
    if (!all.ok()) return AtLine(all.status(), node);
    if (node.children[1] == nullptr) return all;
    List items;
    for (const Value& item : *all) {
      Scope inner{.around = &scope, .variables = {}};
      PERIGEE_RETURN_IF_ERROR(AssignTo(node, item, inner));
      PERIGEE_ASSIGN_OR_RETURN(const Value condition, Evaluate(*node.children[1], inner));
      if (Truthy(condition)) items.push_back(item);
    }
    return items;
  }

  static Value LoopVariable(const List& items, size_t i) {
    const auto index = static_cast<int64_t>(i), size = static_cast<int64_t>(items.size());
    Dict loop;
    const auto add = [&](absl::string_view name, Value value) { loop.emplace_back(Text::Own(name), std::move(value)); };
    add("index", Value::Int(index + 1));
    add("index0", Value::Int(index));
    add("first", Value::Bool(i == 0));
    add("last", Value::Bool(index + 1 == size));
    add("length", Value::Int(size));
    add("revindex", Value::Int(size - index));
    add("revindex0", Value::Int(size - index - 1));
    add("previtem", i == 0 ? Value::Undefined("loop.previtem") : items[i - 1]);
    add("nextitem", i + 1 == items.size() ? Value::Undefined("loop.nextitem") : items[i + 1]);
    return Value::OfDict(std::move(loop));
  }

  absl::StatusOr<Flow> Loop(const Node& node, Scope& scope, Text& out) {
    PERIGEE_ASSIGN_OR_RETURN(const List items, LoopItems(node, scope));
    bool finished_one = false;
    for (size_t i = 0; i < items.size(); ++i) {
      PERIGEE_RETURN_IF_ERROR(budget_.Charge(16));
      Scope inner{.around = &scope, .variables = {}};
      inner.Set("loop", LoopVariable(items, i));
      PERIGEE_RETURN_IF_ERROR(AssignTo(node, items[i], inner));
      PERIGEE_ASSIGN_OR_RETURN(const Flow flow, Execute(*node.children[2], inner, out));
      if (flow == Flow::kBreak) break;
      finished_one = finished_one || flow == Flow::kNext;
    }
    // Jinja counts the iterations that reach the end of the body, not those that break or continue leave.
    if (!finished_one && node.children[3] != nullptr) return Execute(*node.children[3], scope, out);
    return Flow::kNext;
  }

  // ---- Expressions.
  absl::StatusOr<Value> Evaluate(const Node& node, Scope& scope) {
    const Deeper deeper(depth_);
    PERIGEE_RETURN_IF_ERROR(Enter());
    absl::StatusOr<Value> value = EvaluateKind(node, scope);
    if (!value.ok()) return AtLine(value.status(), node);
    return value;
  }

  absl::StatusOr<Value> EvaluateKind(const Node& node, Scope& scope) {
    switch (node.kind) {
      case NodeKind::kConstant:
        return node.constant;
      case NodeKind::kName: {
        if (const Value* found = scope.Find(node.name)) return *found;
        // A function is a value only so far that it is defined.
        return IsFunction(node.name) ? Value::Macro(nullptr) : Value::Undefined(node.name);
      }
      case NodeKind::kList: {
        List list;
        for (const auto& child : node.children) {
          PERIGEE_ASSIGN_OR_RETURN(Value item, Evaluate(*child, scope));
          list.push_back(std::move(item));
        }
        return Value::OfList(std::move(list));
      }
      case NodeKind::kDict:
        return MakeDict(node, scope);
      case NodeKind::kAttribute: {
        PERIGEE_ASSIGN_OR_RETURN(const Value object, Evaluate(*node.children[0], scope));
        if ((object.is_dict() || object.is_string()) && IsMethod(node.name) && CallMethodExists(object, node.name)) {
          return absl::UnimplementedError(
              absl::StrCat("the method \"", node.name, "\" without a call is not supported"));
        }
        return GetItem(object, Value::Own(node.name));
      }
      case NodeKind::kSubscript: {
        PERIGEE_ASSIGN_OR_RETURN(const Value object, Evaluate(*node.children[0], scope));
        PERIGEE_ASSIGN_OR_RETURN(const Value key, Evaluate(*node.children[1], scope));
        return GetItem(object, key);
      }
      case NodeKind::kSlice: {
        PERIGEE_ASSIGN_OR_RETURN(const Value object, Evaluate(*node.children[0], scope));
        Value bounds[3] = {Value::None(), Value::None(), Value::None()};
        for (size_t i = 0; i < 3; ++i) {
          if (node.children[i + 1] == nullptr) continue;
          PERIGEE_ASSIGN_OR_RETURN(bounds[i], Evaluate(*node.children[i + 1], scope));
        }
        return Slice(object, bounds[0], bounds[1], bounds[2], budget_);
      }
      case NodeKind::kCall:
        return Call(node, scope);
      case NodeKind::kFilter: {
        PERIGEE_ASSIGN_OR_RETURN(const Value input, Evaluate(*node.children[0], scope));
        PERIGEE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(node, scope));
        return ApplyFilter(node.name, input, arguments, budget_);
      }
      case NodeKind::kTest: {
        PERIGEE_ASSIGN_OR_RETURN(const Value input, Evaluate(*node.children[0], scope));
        PERIGEE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(node, scope));
        PERIGEE_ASSIGN_OR_RETURN(const bool passes, ApplyTest(node.name, input, arguments));
        return Value::Bool(passes);
      }
      case NodeKind::kUnary:
        return Unary(node, scope);
      case NodeKind::kBinary:
        return Binary(node, scope);
      case NodeKind::kCompare:
        return Compare(node, scope);
      case NodeKind::kConditional: {
        PERIGEE_ASSIGN_OR_RETURN(const Value condition, Evaluate(*node.children[0], scope));
        if (Truthy(condition)) return Evaluate(*node.children[1], scope);
        if (node.children[2] != nullptr) return Evaluate(*node.children[2], scope);
        return Value::Undefined("the missing else of an inline if");
      }
      default:
        return absl::InternalError("a statement stands where an expression should");
    }
  }

  // What Jinja would find before a key of that name.
  static bool CallMethodExists(const Value& object, absl::string_view name) {
    const bool of_dicts = name == "items" || name == "keys" || name == "values" || name == "get";
    return object.is_dict() ? of_dicts : !of_dicts && name != "cycle";
  }

  absl::StatusOr<Value> MakeDict(const Node& node, Scope& scope) {
    Scope fields;
    for (size_t i = 0; i < node.children.size(); i += 2) {
      PERIGEE_ASSIGN_OR_RETURN(const Value key, Evaluate(*node.children[i], scope));
      if (!key.is_string()) {
        return absl::UnimplementedError(absl::StrCat("a key that is ", KindName(key), " is not supported"));
      }
      PERIGEE_ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[i + 1], scope));
      const auto same = [&](const auto& field) { return field.first.bytes() == key.bytes(); };
      const auto old = std::find_if(fields.variables.begin(), fields.variables.end(), same);
      if (old != fields.variables.end()) {
        old->second = std::move(value);
      } else {
        fields.variables.emplace_back(key.text(), std::move(value));
      }
    }
    return Value::OfDict(std::move(fields.variables));
  }

  absl::StatusOr<Arguments> EvaluateArguments(const Node& node, Scope& scope) {
    Arguments arguments;
    for (size_t i = 1; i < node.children.size(); ++i) {
      PERIGEE_ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[i], scope));
      arguments.positional.push_back(std::move(value));
    }
    for (const auto& [name, child] : node.keywords) {
      PERIGEE_ASSIGN_OR_RETURN(Value value, Evaluate(*child, scope));
      arguments.named.emplace_back(name, std::move(value));
    }
    return arguments;
  }

  absl::StatusOr<Value> Call(const Node& node, Scope& scope) {
    const Node& callee = *node.children[0];
    if (callee.kind == NodeKind::kAttribute) {
      PERIGEE_ASSIGN_OR_RETURN(const Value object, Evaluate(*callee.children[0], scope));
      PERIGEE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(node, scope));
      return CallMethod(callee.name, object, arguments, budget_);
    }
    PERIGEE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(node, scope));
    const Value* found = scope.Find(callee.name);
    if (found == nullptr) {
      if (IsFunction(callee.name)) return CallFunction(callee.name, arguments, now_s_, budget_);
      return absl::InvalidArgumentError(absl::StrCat("\"", callee.name, "\" is undefined and cannot be called"));
    }
    if (found->kind() != Kind::kMacro) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", callee.name, "\" is ", KindName(*found), " and cannot be called"));
    }
    if (found->macro() == nullptr) {
      return absl::UnimplementedError(
          absl::StrCat("another name for a function (\"", callee.name, "\") is not supported"));
    }
    return CallMacro(*found->macro(), arguments);
  }

  absl::StatusOr<Value> CallMacro(const Node& macro, const Arguments& arguments) {
    const Deeper deeper(macro_depth_);
    if (macro_depth_ > kMaxMacroDepth) return absl::InvalidArgumentError("macros call each other too deep");
    if (arguments.positional.size() > macro.names.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the macro \"", macro.name, "\" takes ", macro.names.size(), " arguments"));
    }
    Scope inner{.around = &top_, .variables = {}};
    for (size_t i = 0; i < arguments.positional.size(); ++i) inner.Set(macro.names[i], arguments.positional[i]);
    for (const auto& [name, value] : arguments.named) {
      const auto at = std::find(macro.names.begin(), macro.names.end(), name);
      if (at == macro.names.end() || at - macro.names.begin() < static_cast<ptrdiff_t>(arguments.positional.size())) {
        return absl::InvalidArgumentError(
            absl::StrCat("the macro \"", macro.name, "\" cannot take the argument \"", name, "\""));
      }
      inner.Set(name, value);
    }
    const auto given = [&](absl::string_view name) {
      return std::any_of(inner.variables.begin(), inner.variables.end(),
                         [&](const auto& v) { return v.first.bytes() == name; });
    };
    for (const std::string& name : macro.names) {
      if (given(name)) continue;
      Value value = Value::Undefined(name);
      for (const auto& [parameter, fallback] : macro.keywords) {
        if (parameter != name) continue;
        PERIGEE_ASSIGN_OR_RETURN(value, Evaluate(*fallback, inner));
      }
      inner.Set(name, std::move(value));
    }
    Text text;
    PERIGEE_ASSIGN_OR_RETURN(const Flow flow, Execute(*macro.children[0], inner, text));
    (void)flow;
    return Value::String(std::move(text));
  }

  absl::StatusOr<Value> Unary(const Node& node, Scope& scope) {
    PERIGEE_ASSIGN_OR_RETURN(const Value operand, Evaluate(*node.children[0], scope));
    if (node.name == "not") return Value::Bool(!Truthy(operand));
    if (!operand.is_number()) {
      return absl::InvalidArgumentError(absl::StrCat("the sign ", node.name, " before a ", KindName(operand)));
    }
    if (!operand.is_whole()) return Value::Float(node.name == "-" ? -operand.number() : operand.number());
    int64_t result = operand.whole();
    if (node.name == "-" && __builtin_sub_overflow(int64_t{0}, result, &result)) return TooLarge();
    return Value::Int(result);
  }

  static absl::Status TooLarge() { return absl::InvalidArgumentError("a whole number is too large"); }

  absl::StatusOr<Value> Binary(const Node& node, Scope& scope) {
    PERIGEE_ASSIGN_OR_RETURN(const Value left, Evaluate(*node.children[0], scope));
    const std::string& op = node.name;
    if (op == "and") return Truthy(left) ? Evaluate(*node.children[1], scope) : left;
    if (op == "or") return Truthy(left) ? left : Evaluate(*node.children[1], scope);
    PERIGEE_ASSIGN_OR_RETURN(const Value right, Evaluate(*node.children[1], scope));
    if (op == "~" || (op == "+" && left.is_string() && right.is_string())) {
      PERIGEE_ASSIGN_OR_RETURN(Text text, Printed(left));
      PERIGEE_ASSIGN_OR_RETURN(const Text tail, Printed(right));
      PERIGEE_RETURN_IF_ERROR(budget_.ChargeBytes(text.size() + tail.size()));
      text.Append(tail);
      return Value::String(std::move(text));
    }
    if (op == "+" && left.is_list() && right.is_list()) {
      List list = left.list();
      list.insert(list.end(), right.list().begin(), right.list().end());
      PERIGEE_RETURN_IF_ERROR(budget_.Charge(static_cast<int64_t>(list.size())));
      return Value::OfList(std::move(list));
    }
    if (left.is_number() && right.is_number()) return Arithmetic(op, left, right);
    if ((op == "%" && left.is_string()) || (op == "*" && (left.is_string() || right.is_string()))) {
      return absl::UnimplementedError(
          absl::StrCat("'", op, "' between ", KindName(left), " and ", KindName(right), " is not supported"));
    }
    const auto shown = [](const Value& value) {
      return value.is_undefined() ? absl::StrCat(value.undefined_name(), ", which is undefined,")
                                  : std::string(KindName(value));
    };
    return absl::InvalidArgumentError(absl::StrCat("'", op, "' between ", shown(left), " and ", shown(right)));
  }

  static absl::StatusOr<Value> Arithmetic(const std::string& op, const Value& left, const Value& right) {
    if ((op == "/" || op == "//" || op == "%") && right.number() == 0) {
      return absl::InvalidArgumentError("a division by zero");
    }
    if (op == "/") return Value::Float(left.number() / right.number());
    if (!left.is_whole() || !right.is_whole()) {
      const double a = left.number(), b = right.number();
      if (op == "+") return Value::Float(a + b);
      if (op == "-") return Value::Float(a - b);
      if (op == "*") return Value::Float(a * b);
      return absl::UnimplementedError(absl::StrCat("'", op, "' of numbers with a fraction is not supported"));
    }
    const int64_t a = left.whole(), b = right.whole();
    int64_t result = 0;
    if (op == "+")
      return __builtin_add_overflow(a, b, &result) ? absl::StatusOr<Value>(TooLarge()) : Value::Int(result);
    if (op == "-")
      return __builtin_sub_overflow(a, b, &result) ? absl::StatusOr<Value>(TooLarge()) : Value::Int(result);
    if (op == "*")
      return __builtin_mul_overflow(a, b, &result) ? absl::StatusOr<Value>(TooLarge()) : Value::Int(result);
    if (b == -1) {  // The one quotient that does not fit.
      if (op == "%") return Value::Int(0);
      return __builtin_sub_overflow(int64_t{0}, a, &result) ? absl::StatusOr<Value>(TooLarge()) : Value::Int(result);
    }
    // Python rounds down.
    const bool down = a % b != 0 && (a < 0) != (b < 0);
    return Value::Int(op == "//" ? a / b - (down ? 1 : 0) : a % b + (down ? b : 0));
  }

  absl::StatusOr<Value> Compare(const Node& node, Scope& scope) {
    PERIGEE_ASSIGN_OR_RETURN(Value left, Evaluate(*node.children[0], scope));
    for (size_t i = 0; i < node.names.size(); ++i) {
      PERIGEE_ASSIGN_OR_RETURN(Value right, Evaluate(*node.children[i + 1], scope));
      PERIGEE_ASSIGN_OR_RETURN(const bool holds, Holds(node.names[i], left, right));
      if (!holds) return Value::Bool(false);
      left = std::move(right);
    }
    return Value::Bool(true);
  }

  static absl::StatusOr<bool> Holds(absl::string_view op, const Value& left, const Value& right) {
    if (op == "==" || op == "!=") {
      PERIGEE_ASSIGN_OR_RETURN(const bool same, Equal(left, right));
      return same == (op == "==");
    }
    if (op == "in" || op == "not in") {
      PERIGEE_ASSIGN_OR_RETURN(const bool found, Contains(right, left));
      return found == (op == "in");
    }
    const bool swapped = op == ">" || op == "<=";
    PERIGEE_ASSIGN_OR_RETURN(const bool less, swapped ? Less(right, left) : Less(left, right));
    return less == (op == "<" || op == ">");
  }

  const int64_t now_s_;
  Budget budget_;
  const size_t max_output_bytes_;
  Scope top_;
  int depth_ = 0;
  int macro_depth_ = 0;
};

}  // namespace

absl::StatusOr<Text> RenderTemplate(const Node& root, Dict variables, int64_t now_s, const RenderLimits& limits) {
  return Renderer(now_s, limits).Run(root, std::move(variables));
}

}  // namespace perigee::model::jinja
