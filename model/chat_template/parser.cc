// Recursive descent over the tokens, in the order of precedence of Jinja's own parser.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "model/chat_template/builtins.h"
#include "model/chat_template/lexer.h"
#include "model/chat_template/syntax.h"

namespace perigee::model::jinja {
namespace {

constexpr int kMaxHeight = 150;  // Of the tree.
constexpr int kMaxNesting = 80;  // Of brackets and of blocks, while parsing.
constexpr size_t kMaxTokens = 200'000;

using NodePtr = std::unique_ptr<Node>;
using Kind = Token::Kind;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<NodePtr> Run() {
    PERIGEE_ASSIGN_OR_RETURN(NodePtr body, Body({}));
    for (const auto& [name, line] : called_) {
      if (!IsFunction(name) && !assigned_.contains(name)) {
        return absl::UnimplementedError(absl::StrCat("line ", line, ": the function \"", name, "\" is not supported"));
      }
    }
    return body;
  }

 private:
  class Deeper {
   public:
    explicit Deeper(int& depth) : depth_(depth) { ++depth_; }
    ~Deeper() { --depth_; }

   private:
    int& depth_;
  };

  // ---- Tokens.
  bool Done() const { return at_ >= tokens_.size(); }
  const Token& Peek(size_t ahead = 0) const {
    static const Token* const end = new Token{.kind = Kind::kText, .text = "the end"};
    return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead] : *end;
  }
  int Line() const { return Done() ? (tokens_.empty() ? 1 : tokens_.back().line) : tokens_[at_].line; }
  bool IsOperator(absl::string_view text) const { return Peek().kind == Kind::kOperator && Peek().text == text; }
  bool IsName(absl::string_view text) const { return Peek().kind == Kind::kName && Peek().text == text; }
  bool TakeOperator(absl::string_view text) { return IsOperator(text) && ++at_ > 0; }
  bool TakeName(absl::string_view text) { return IsName(text) && ++at_ > 0; }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", Line(), ": ", what));
  }
  absl::Status Unsupported(absl::string_view what) const {
    return absl::UnimplementedError(absl::StrCat("line ", Line(), ": ", what, " is not supported"));
  }
  absl::Status Expected(absl::string_view what) const {
    std::string shown = Peek().text;
    if (Peek().kind == Kind::kBlockEnd) shown = "%}";
    if (Peek().kind == Kind::kPrintEnd) shown = "}}";
    return Error(absl::StrCat(what, " is expected before \"", shown.substr(0, 40), "\""));
  }
  absl::Status ExpectOperator(absl::string_view text) {
    return TakeOperator(text) ? absl::OkStatus() : Expected(absl::StrCat("'", text, "'"));
  }
  absl::Status ExpectBlockEnd() {
    if (Peek().kind != Kind::kBlockEnd) return Expected("%}");
    ++at_;
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> ExpectName() {
    if (Peek().kind != Kind::kName) return Expected("a name");
    return tokens_[at_++].text;
  }

  // ---- Nodes.
  NodePtr New(NodeKind kind, std::string name = {}) const {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = Line();
    node->name = std::move(name);
    return node;
  }
  template <typename... Children>
  NodePtr New(NodeKind kind, std::string name, NodePtr first, Children... rest) const {
    NodePtr node = New(kind, std::move(name));
    node->children.push_back(std::move(first));
    (node->children.push_back(std::move(rest)), ...);
    return node;
  }
  absl::StatusOr<NodePtr> Finish(NodePtr node) const {
    for (const NodePtr& child : node->children) {
      if (child != nullptr) node->height = std::max(node->height, child->height + 1);
    }
    for (const auto& keyword : node->keywords) node->height = std::max(node->height, keyword.second->height + 1);
    if (node->height > kMaxHeight) return Error(absl::StrCat("the template nests deeper than ", kMaxHeight, " levels"));
    return node;
  }

  // ---- Statements.
  // Until one of the tags `ends`, whose name is left to be taken; until the end of the template without any.
  absl::StatusOr<NodePtr> Body(std::initializer_list<absl::string_view> ends) {
    const Deeper deeper(depth_);
    if (depth_ > kMaxNesting) return Error("blocks nest too deep");
    NodePtr body = New(NodeKind::kBody);
    while (!Done()) {
      const Token& token = tokens_[at_];
      if (token.kind == Kind::kText) {
        NodePtr text = New(NodeKind::kText);
        text->constant = Value::Own(token.text);
        body->children.push_back(std::move(text));
        ++at_;
      } else if (token.kind == Kind::kPrintBegin) {
        ++at_;
        PERIGEE_ASSIGN_OR_RETURN(NodePtr value, Tuple());
        if (Peek().kind != Kind::kPrintEnd) return Expected("}}");
        PERIGEE_ASSIGN_OR_RETURN(NodePtr print, Finish(New(NodeKind::kPrint, "", std::move(value))));
        body->children.push_back(std::move(print));
        ++at_;
      } else {
        ++at_;  // {%
        if (std::any_of(ends.begin(), ends.end(), [&](absl::string_view end) { return IsName(end); })) {
          return Finish(std::move(body));
        }
        PERIGEE_ASSIGN_OR_RETURN(NodePtr statement, Statement());
        if (statement != nullptr) body->children.push_back(std::move(statement));
      }
    }
    if (ends.size() > 0) return Error(absl::StrCat("the template ends before {% ", *(ends.end() - 1), " %}"));
    return Finish(std::move(body));
  }

  absl::StatusOr<NodePtr> Statement() {
    PERIGEE_ASSIGN_OR_RETURN(const std::string tag, ExpectName());
    if (tag == "if") return If();
    if (tag == "for") return For();
    if (tag == "set") return Set();
    if (tag == "macro") return Macro();
    if (tag == "generation") return Generation();
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) return Error(absl::StrCat("{% ", tag, " %} stands outside of a loop"));
      NodePtr node = New(tag == "break" ? NodeKind::kBreak : NodeKind::kContinue);
      PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
      return node;
    }
    if (tag.substr(0, 3) == "end" || tag == "else" || tag == "elif") {
      return Error(absl::StrCat("{% ", tag, " %} belongs to no block"));
    }
    return Unsupported(absl::StrCat("the tag {% ", tag, " %}"));
  }

  absl::StatusOr<NodePtr> If() {
    NodePtr node = New(NodeKind::kIf);
    for (;;) {
      PERIGEE_ASSIGN_OR_RETURN(NodePtr condition, Or());
      PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
      PERIGEE_ASSIGN_OR_RETURN(NodePtr body, Body({"elif", "else", "endif"}));
      node->children.push_back(std::move(condition));
      node->children.push_back(std::move(body));
      if (TakeName("elif")) continue;
      if (TakeName("else")) {
        PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
        PERIGEE_ASSIGN_OR_RETURN(NodePtr otherwise, Body({"endif"}));
        node->children.push_back(std::move(otherwise));
      }
      ++at_;  // endif
      PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
      return Finish(std::move(node));
    }
  }

  absl::StatusOr<NodePtr> For() {
    NodePtr node = New(NodeKind::kFor);
    PERIGEE_ASSIGN_OR_RETURN(node->names, Targets());
    if (!TakeName("in")) return Expected("'in'");
    PERIGEE_ASSIGN_OR_RETURN(NodePtr iterable, Or());
    NodePtr condition;
    if (TakeName("if")) {
      PERIGEE_ASSIGN_OR_RETURN(condition, Expression());
    }
    if (IsName("recursive")) return Unsupported("a recursive loop");
    PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
    ++loops_;
    PERIGEE_ASSIGN_OR_RETURN(NodePtr body, Body({"else", "endfor"}));
    --loops_;
    NodePtr otherwise;
    if (TakeName("else")) {
      PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
      PERIGEE_ASSIGN_OR_RETURN(otherwise, Body({"endfor"}));
    }
    ++at_;  // endfor
    PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
    node->children.push_back(std::move(iterable));
    node->children.push_back(std::move(condition));
    node->children.push_back(std::move(body));
    node->children.push_back(std::move(otherwise));
    return Finish(std::move(node));
  }

  absl::StatusOr<std::vector<std::string>> Targets() {
    std::vector<std::string> names;
    const bool bracket = TakeOperator("(");
    do {
      PERIGEE_ASSIGN_OR_RETURN(std::string name, ExpectName());
      if (name == "loop") return Error("\"loop\" cannot be assigned to");
      assigned_.insert(name);
      names.push_back(std::move(name));
    } while (TakeOperator(","));
    if (bracket) PERIGEE_RETURN_IF_ERROR(ExpectOperator(")"));
    return names;
  }

  absl::StatusOr<NodePtr> Set() {
    NodePtr node = New(NodeKind::kSet);
    if (Peek(1).kind == Kind::kOperator && Peek(1).text == ".") {
      node->kind = NodeKind::kSetAttribute;
      PERIGEE_ASSIGN_OR_RETURN(node->name, ExpectName());
      ++at_;  // .
      PERIGEE_ASSIGN_OR_RETURN(std::string field, ExpectName());
      node->names.push_back(std::move(field));
    } else {
      PERIGEE_ASSIGN_OR_RETURN(node->names, Targets());
    }
    if (TakeOperator("=")) {
      PERIGEE_ASSIGN_OR_RETURN(NodePtr value, Tuple());
      PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
      node->children.push_back(std::move(value));
      return Finish(std::move(node));
    }
    if (IsOperator("|")) return Unsupported("a filter on a {% set %} block");
    if (node->kind == NodeKind::kSetAttribute || node->names.size() != 1) return Expected("'='");
    node->kind = NodeKind::kSetBlock;
    PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
    PERIGEE_ASSIGN_OR_RETURN(NodePtr body, InnerBody("endset"));
    node->children.push_back(std::move(body));
    return Finish(std::move(node));
  }

  // A body that no break or continue leaves, and its end tag.
  absl::StatusOr<NodePtr> InnerBody(absl::string_view end) {
    const int loops = std::exchange(loops_, 0);
    PERIGEE_ASSIGN_OR_RETURN(NodePtr body, Body({end}));
    loops_ = loops;
    ++at_;
    PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
    return body;
  }

  absl::StatusOr<NodePtr> Macro() {
    NodePtr node = New(NodeKind::kMacro);
    PERIGEE_ASSIGN_OR_RETURN(node->name, ExpectName());
    assigned_.insert(node->name);
    PERIGEE_RETURN_IF_ERROR(ExpectOperator("("));
    while (!IsOperator(")")) {
      PERIGEE_ASSIGN_OR_RETURN(std::string parameter, ExpectName());
      assigned_.insert(parameter);
      if (TakeOperator("=")) {
        PERIGEE_ASSIGN_OR_RETURN(NodePtr fallback, Expression());
        node->keywords.emplace_back(parameter, std::move(fallback));
      }
      node->names.push_back(std::move(parameter));
      if (!TakeOperator(",")) break;
    }
    PERIGEE_RETURN_IF_ERROR(ExpectOperator(")"));
    PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
    PERIGEE_ASSIGN_OR_RETURN(NodePtr body, InnerBody("endmacro"));
    node->children.push_back(std::move(body));
    return Finish(std::move(node));
  }

  // What marks the assistant's tokens while training; prints what it holds.
  absl::StatusOr<NodePtr> Generation() {
    PERIGEE_RETURN_IF_ERROR(ExpectBlockEnd());
    return InnerBody("endgeneration");
  }

  // ---- Expressions.
  // a, b: a list, as Python's tuples are used here.
  absl::StatusOr<NodePtr> Tuple() {
    PERIGEE_ASSIGN_OR_RETURN(NodePtr first, Expression());
    if (!IsOperator(",")) return first;
    NodePtr list = New(NodeKind::kList, "", std::move(first));
    while (TakeOperator(",")) {
      if (Peek().kind == Kind::kPrintEnd || Peek().kind == Kind::kBlockEnd || IsOperator(")")) break;
      PERIGEE_ASSIGN_OR_RETURN(NodePtr item, Expression());
      list->children.push_back(std::move(item));
    }
    return Finish(std::move(list));
  }

  absl::StatusOr<NodePtr> Expression() {
    const Deeper deeper(depth_);
    if (depth_ > kMaxNesting) return Error("expressions nest too deep");
    PERIGEE_ASSIGN_OR_RETURN(NodePtr value, Or());
    while (TakeName("if")) {
      PERIGEE_ASSIGN_OR_RETURN(NodePtr condition, Or());
      NodePtr otherwise;
      if (TakeName("else")) {
        PERIGEE_ASSIGN_OR_RETURN(otherwise, Expression());
      }
      PERIGEE_ASSIGN_OR_RETURN(
          value, Finish(New(NodeKind::kConditional, "", std::move(condition), std::move(value), std::move(otherwise))));
    }
    return value;
  }

  absl::StatusOr<NodePtr> Or() {
    PERIGEE_ASSIGN_OR_RETURN(NodePtr left, And());
    while (TakeName("or")) {
      PERIGEE_ASSIGN_OR_RETURN(NodePtr right, And());
      PERIGEE_ASSIGN_OR_RETURN(left, Finish(New(NodeKind::kBinary, "or", std::move(left), std::move(right))));
    }
    return left;
  }

  absl::StatusOr<NodePtr> And() {
    PERIGEE_ASSIGN_OR_RETURN(NodePtr left, Not());
    while (TakeName("and")) {
      PERIGEE_ASSIGN_OR_RETURN(NodePtr right, Not());
      PERIGEE_ASSIGN_OR_RETURN(left, Finish(New(NodeKind::kBinary, "and", std::move(left), std::move(right))));
    }
    return left;
  }

  absl::StatusOr<NodePtr> Not() {
    if (!TakeName("not")) return Compare();
    const Deeper deeper(depth_);
    if (depth_ > kMaxNesting) return Error("expressions nest too deep");
    PERIGEE_ASSIGN_OR_RETURN(NodePtr operand, Not());
    return Finish(New(NodeKind::kUnary, "not", std::move(operand)));
  }

  std::string TakeComparison() {
    for (const absl::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (TakeOperator(op)) return std::string(op);
    }
    if (TakeName("in")) return "in";
    if (IsName("not") && Peek(1).kind == Kind::kName && Peek(1).text == "in") {
      at_ += 2;
      return "not in";
    }
    return "";
  }

  absl::StatusOr<NodePtr> Compare() {
    PERIGEE_ASSIGN_OR_RETURN(NodePtr first, Sum());
    std::string op = TakeComparison();
    if (op.empty()) return first;
    NodePtr node = New(NodeKind::kCompare, "", std::move(first));
    for (; !op.empty(); op = TakeComparison()) {
      PERIGEE_ASSIGN_OR_RETURN(NodePtr operand, Sum());
      node->children.push_back(std::move(operand));
      node->names.push_back(std::move(op));
    }
    return Finish(std::move(node));
  }

  using Level = absl::StatusOr<NodePtr> (Parser::*)();
  absl::StatusOr<NodePtr> LeftToRight(std::initializer_list<absl::string_view> operators, Level operand) {
    PERIGEE_ASSIGN_OR_RETURN(NodePtr left, (this->*operand)());
    for (;;) {
      const auto op =
          std::find_if(operators.begin(), operators.end(), [&](absl::string_view o) { return TakeOperator(o); });
      if (op == operators.end()) return left;
      PERIGEE_ASSIGN_OR_RETURN(NodePtr right, (this->*operand)());
      PERIGEE_ASSIGN_OR_RETURN(left,
                               Finish(New(NodeKind::kBinary, std::string(*op), std::move(left), std::move(right))));
    }
  }
  absl::StatusOr<NodePtr> Sum() { return LeftToRight({"+", "-"}, &Parser::Concatenation); }
  absl::StatusOr<NodePtr> Concatenation() { return LeftToRight({"~"}, &Parser::Product); }
  absl::StatusOr<NodePtr> Product() { return LeftToRight({"*", "//", "/", "%"}, &Parser::Power); }
  absl::StatusOr<NodePtr> Power() {
    PERIGEE_ASSIGN_OR_RETURN(NodePtr value, Unary(/*with_filters=*/true));
    if (IsOperator("**")) return Unsupported("the operator **");
    return value;
  }

  absl::StatusOr<NodePtr> Unary(bool with_filters) {
    const Deeper deeper(depth_);
    if (depth_ > kMaxNesting) return Error("expressions nest too deep");
    NodePtr value;
    if (IsOperator("-") || IsOperator("+")) {
      const std::string sign = tokens_[at_++].text;
      PERIGEE_ASSIGN_OR_RETURN(NodePtr operand, Unary(/*with_filters=*/false));
      PERIGEE_ASSIGN_OR_RETURN(value, Finish(New(NodeKind::kUnary, sign, std::move(operand))));
    } else {
      PERIGEE_ASSIGN_OR_RETURN(value, Primary());
    }
    PERIGEE_ASSIGN_OR_RETURN(value, Postfix(std::move(value)));
    if (!with_filters) return value;
    for (;;) {
      if (TakeOperator("|")) {
        PERIGEE_ASSIGN_OR_RETURN(value, Filter(std::move(value)));
      } else if (TakeName("is")) {
        PERIGEE_ASSIGN_OR_RETURN(value, Test(std::move(value)));
      } else if (IsOperator("(")) {
        PERIGEE_ASSIGN_OR_RETURN(value, Call(std::move(value)));
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<NodePtr> Primary() {
    const Token& token = Peek();
    NodePtr node = New(NodeKind::kConstant);
    if (Done()) return Expected("an expression");
    switch (token.kind) {
      case Kind::kName:
        ++at_;
        if (token.text == "true" || token.text == "True") {
          node->constant = Value::Bool(true);
        } else if (token.text == "false" || token.text == "False") {
          node->constant = Value::Bool(false);
        } else if (token.text == "none" || token.text == "None") {
          node->constant = Value::None();
        } else {
          for (const absl::string_view word : {"if", "else", "elif", "in", "is", "and", "or", "not"}) {
            if (token.text == word) return Error(absl::StrCat("\"", word, "\" is not expected here"));
          }
          node->kind = NodeKind::kName;
          node->name = token.text;
        }
        return node;
      case Kind::kString: {
        std::string joined;
        while (Peek().kind == Kind::kString) joined += tokens_[at_++].text;
        node->constant = Value::Own(joined);
        return node;
      }
      case Kind::kInt:
        ++at_;
        node->constant = Value::Int(token.whole);
        return node;
      case Kind::kFloat:
        ++at_;
        node->constant = Value::Float(token.number);
        return node;
      default:
        break;
    }
    if (TakeOperator("(")) {
      if (TakeOperator(")")) {
        node->kind = NodeKind::kList;
        return node;
      }
      PERIGEE_ASSIGN_OR_RETURN(node, Tuple());
      PERIGEE_RETURN_IF_ERROR(ExpectOperator(")"));
      return node;
    }
    if (TakeOperator("[")) {
      node->kind = NodeKind::kList;
      while (!IsOperator("]")) {
        PERIGEE_ASSIGN_OR_RETURN(NodePtr item, Expression());
        node->children.push_back(std::move(item));
        if (!TakeOperator(",")) break;
      }
      PERIGEE_RETURN_IF_ERROR(ExpectOperator("]"));
      return Finish(std::move(node));
    }
    if (TakeOperator("{")) {
      node->kind = NodeKind::kDict;
      while (!IsOperator("}")) {
        PERIGEE_ASSIGN_OR_RETURN(NodePtr key, Expression());
        PERIGEE_RETURN_IF_ERROR(ExpectOperator(":"));
        PERIGEE_ASSIGN_OR_RETURN(NodePtr value, Expression());
        node->children.push_back(std::move(key));
        node->children.push_back(std::move(value));
        if (!TakeOperator(",")) break;
      }
      PERIGEE_RETURN_IF_ERROR(ExpectOperator("}"));
      return Finish(std::move(node));
    }
    return Expected("an expression");
  }

  absl::StatusOr<NodePtr> Postfix(NodePtr value) {
    for (;;) {
      if (TakeOperator(".")) {
        if (Peek().kind == Kind::kInt) {
          NodePtr index = New(NodeKind::kConstant);
          index->constant = Value::Int(tokens_[at_++].whole);
          PERIGEE_ASSIGN_OR_RETURN(value, Finish(New(NodeKind::kSubscript, "", std::move(value), std::move(index))));
          continue;
        }
        PERIGEE_ASSIGN_OR_RETURN(std::string name, ExpectName());
        PERIGEE_ASSIGN_OR_RETURN(value, Finish(New(NodeKind::kAttribute, std::move(name), std::move(value))));
      } else if (TakeOperator("[")) {
        PERIGEE_ASSIGN_OR_RETURN(value, Subscript(std::move(value)));
      } else if (IsOperator("(")) {
        PERIGEE_ASSIGN_OR_RETURN(value, Call(std::move(value)));
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<NodePtr> Subscript(NodePtr object) {
    NodePtr parts[3];
    size_t part = 0;
    bool slice = false;
    while (!IsOperator("]")) {
      if (TakeOperator(":")) {
        slice = true;
        if (++part > 2) return Expected("']'");
        continue;
      }
      if (parts[part] != nullptr) return Expected("']'");
      PERIGEE_ASSIGN_OR_RETURN(parts[part], Expression());
    }
    ++at_;  // ]
    if (slice) {
      return Finish(
          New(NodeKind::kSlice, "", std::move(object), std::move(parts[0]), std::move(parts[1]), std::move(parts[2])));
    }
    if (parts[0] == nullptr) return Error("a subscript is empty");
    return Finish(New(NodeKind::kSubscript, "", std::move(object), std::move(parts[0])));
  }

  // The arguments behind '(', into the node.
  absl::Status Arguments(Node& node) {
    PERIGEE_RETURN_IF_ERROR(ExpectOperator("("));
    while (!IsOperator(")")) {
      if (IsOperator("*")) return Unsupported("an unpacked argument");
      if (Peek().kind == Kind::kName && Peek(1).kind == Kind::kOperator && Peek(1).text == "=") {
        const std::string name = tokens_[at_].text;
        at_ += 2;
        PERIGEE_ASSIGN_OR_RETURN(NodePtr value, Expression());
        node.keywords.emplace_back(name, std::move(value));
      } else {
        if (!node.keywords.empty()) return Error("an argument without a name follows one with a name");
        PERIGEE_ASSIGN_OR_RETURN(NodePtr value, Expression());
        node.children.push_back(std::move(value));
      }
      if (!TakeOperator(",")) break;
    }
    return ExpectOperator(")");
  }

  absl::StatusOr<NodePtr> Call(NodePtr callee) {
    if (callee->kind == NodeKind::kAttribute) {
      if (!IsMethod(callee->name)) return Unsupported(absl::StrCat("the method \"", callee->name, "\""));
    } else if (callee->kind == NodeKind::kName) {
      called_.emplace_back(callee->name, Line());
    } else {
      return Unsupported("calling the value of an expression");
    }
    NodePtr node = New(NodeKind::kCall, "", std::move(callee));
    PERIGEE_RETURN_IF_ERROR(Arguments(*node));
    return Finish(std::move(node));
  }

  absl::StatusOr<NodePtr> Filter(NodePtr input) {
    PERIGEE_ASSIGN_OR_RETURN(std::string name, ExpectName());
    if (!IsFilter(name)) return Unsupported(absl::StrCat("the filter \"", name, "\""));
    NodePtr node = New(NodeKind::kFilter, std::move(name), std::move(input));
    if (IsOperator("(")) PERIGEE_RETURN_IF_ERROR(Arguments(*node));
    // Names of filters and tests in arguments are looked at here, not only when they are used.
    const bool takes_test = node->name == "select" || node->name == "reject";
    const bool takes_second = node->name == "selectattr" || node->name == "rejectattr";
    const size_t place = takes_second ? 2 : 1;
    if ((takes_test || takes_second) && node->children.size() > place) {
      const Node& test = *node->children[place];
      if (test.kind != NodeKind::kConstant || !test.constant.is_string()) return Unsupported("a computed test's name");
      if (!IsTest(test.constant.bytes())) {
        return Unsupported(absl::StrCat("the test \"", test.constant.bytes(), "\""));
      }
    }
    return Finish(std::move(node));
  }

  absl::StatusOr<NodePtr> Test(NodePtr input) {
    const bool negated = TakeName("not");
    PERIGEE_ASSIGN_OR_RETURN(std::string name, ExpectName());
    if (!IsTest(name)) return Unsupported(absl::StrCat("the test \"", name, "\""));
    NodePtr node = New(NodeKind::kTest, std::move(name), std::move(input));
    const Token& next = Peek();
    if (IsOperator("(")) {
      PERIGEE_RETURN_IF_ERROR(Arguments(*node));
      if (!node->keywords.empty()) return Unsupported("a named argument of a test");
    } else if (next.kind == Kind::kString || next.kind == Kind::kInt || next.kind == Kind::kFloat || IsOperator("[") ||
               IsOperator("{") ||
               (next.kind == Kind::kName && next.text != "else" && next.text != "or" && next.text != "and" &&
                next.text != "if" && next.text != "is" && next.text != "in" && next.text != "not")) {
      PERIGEE_ASSIGN_OR_RETURN(NodePtr argument, Primary());
      PERIGEE_ASSIGN_OR_RETURN(argument, Postfix(std::move(argument)));
      node->children.push_back(std::move(argument));
    }
    PERIGEE_ASSIGN_OR_RETURN(node, Finish(std::move(node)));
    if (!negated) return node;
    return Finish(New(NodeKind::kUnary, "not", std::move(node)));
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  absl::flat_hash_set<std::string> assigned_;  // What a called name may stand for besides the functions.
  std::vector<std::pair<std::string, int>> called_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Node>> ParseTemplate(absl::string_view source) {
  PERIGEE_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  if (tokens.size() > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the template has ", tokens.size(), " tokens; at most ", kMaxTokens, " are allowed"));
  }
  return Parser(std::move(tokens)).Run();
}

}  // namespace perigee::model::jinja
