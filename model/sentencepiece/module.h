// sentencepiece, kept apart: a module that is loaded when the first tokenizer.model is read. Internal to model/.
//
// Debian's libsentencepiece carries its own copy of protobuf-lite and exports it. In one process with gRPC's
// libprotobuf each binds to the other's symbols and both crash while the program starts. So nothing of ours links to
// it: this module does, and it is opened with its own symbols first (RTLD_DEEPBIND). Its header also puts
// std::string_view into namespace absl, where Abseil has a type of that name.
#ifndef PERIGEE_MODEL_SENTENCEPIECE_MODULE_H_
#define PERIGEE_MODEL_SENTENCEPIECE_MODULE_H_

#include <cstddef>
#include <string>
#include <vector>

namespace perigee::model {

class SentencePiece {
 public:
  virtual ~SentencePiece() = default;
  // Each returns an error text, "" when all went well.
  virtual std::string Load(const std::string& serialized) = 0;
  virtual std::string Encode(const char* text, size_t bytes, std::vector<int>& ids) const = 0;

  enum class Kind { kNormal, kUnknown, kControl, kByte, kUnused };
  virtual int size() const = 0;
  virtual Kind KindOf(int id) const = 0;
  virtual std::string PieceOf(int id) const = 0;
  virtual int bos_id() const = 0;  // -1: none
  virtual int eos_id() const = 0;
  virtual int unk_id() const = 0;
};

// The module's one exported symbol, by this name: a new object, the caller's to delete.
inline constexpr char kNewSentencePiece[] = "perigee_new_sentencepiece";
using NewSentencePiece = SentencePiece*();

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_SENTENCEPIECE_MODULE_H_
