// The filters, tests and methods of chat templates, as Jinja and Python define them. What is not in the lists is
// refused by name when a template is read. Internal to model/chat_template.
#ifndef PERIGEE_MODEL_CHAT_TEMPLATE_BUILTINS_H_
#define PERIGEE_MODEL_CHAT_TEMPLATE_BUILTINS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/chat_template/value.h"

namespace perigee::model::jinja {

bool IsFilter(absl::string_view name);
bool IsTest(absl::string_view name);
bool IsMethod(absl::string_view name);
bool IsFunction(absl::string_view name);

// What rendering may still cost: a unit is a node, a step of a loop or 16 bytes of text made.
class Budget {
 public:
  explicit Budget(int64_t units) : left_(units) {}
  absl::Status Charge(int64_t units);
  absl::Status ChargeBytes(size_t bytes) { return Charge(static_cast<int64_t>(bytes / 16) + 1); }

 private:
  int64_t left_;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input, const Arguments& arguments,
                                  Budget& budget);
absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& input, const Arguments& arguments);
absl::StatusOr<Value> CallMethod(absl::string_view name, const Value& object, const Arguments& arguments,
                                 Budget& budget);
// range, namespace and dict; raise_exception always fails; strftime_now with the given Unix time, in UTC.
absl::StatusOr<Value> CallFunction(absl::string_view name, const Arguments& arguments, int64_t now_s, Budget& budget);

// Characters, items or fields; 0 of what is undefined.
absl::StatusOr<int64_t> Length(const Value& value);
// The items as printed, in a row.
absl::StatusOr<Value> Joined(const List& list, const Text& separator, Budget& budget);
// object[key] and, with a text as key, object.key; undefined where there is none.
absl::StatusOr<Value> GetItem(const Value& object, const Value& key);
absl::StatusOr<Value> Slice(const Value& object, const Value& begin, const Value& end, const Value& step,
                            Budget& budget);
absl::StatusOr<bool> Contains(const Value& container, const Value& item);
// What a loop goes over: items, keys, characters.
absl::StatusOr<List> Iterated(const Value& value, Budget& budget);

}  // namespace perigee::model::jinja

#endif  // PERIGEE_MODEL_CHAT_TEMPLATE_BUILTINS_H_
