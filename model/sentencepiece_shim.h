// sentencepiece behind standard types: its header puts std::string_view into namespace absl, where Abseil has a type of
// that name, so that the two cannot be included together. Internal to model/.
#ifndef PERIGEE_MODEL_SENTENCEPIECE_SHIM_H_
#define PERIGEE_MODEL_SENTENCEPIECE_SHIM_H_

#include <memory>
#include <string>
#include <vector>

namespace perigee::model {

class SentencePieceShim {
 public:
  SentencePieceShim();
  ~SentencePieceShim();
  // Each returns an error text, "" when all went well.
  std::string Load(const std::string& serialized);
  std::string Encode(const char* text, size_t bytes, std::vector<int>& ids) const;

  enum class Kind { kNormal, kUnknown, kControl, kByte, kUnused };
  int size() const;
  Kind KindOf(int id) const;
  std::string PieceOf(int id) const;
  int bos_id() const;  // -1: none
  int eos_id() const;
  int unk_id() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_SENTENCEPIECE_SHIM_H_
