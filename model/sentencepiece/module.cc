#include "model/sentencepiece/module.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <string_view>

namespace perigee::model {
namespace {

class LibrarySentencePiece final : public SentencePiece {
 public:
  std::string Load(const std::string& serialized) override {
    try {
      const auto status = processor_.LoadFromSerializedProto(serialized);
      return status.ok() ? "" : status.ToString();
    } catch (const std::exception& error) {
      return error.what();
    }
  }

  std::string Encode(const char* text, size_t bytes, std::vector<int>& ids) const override {
    try {
      const auto status = processor_.Encode(std::string_view(text, bytes), &ids);
      return status.ok() ? "" : status.ToString();
    } catch (const std::exception& error) {
      return error.what();
    }
  }

  int size() const override { return processor_.GetPieceSize(); }
  Kind KindOf(int id) const override {
    if (processor_.IsUnknown(id)) return Kind::kUnknown;
    if (processor_.IsControl(id)) return Kind::kControl;
    if (processor_.IsByte(id)) return Kind::kByte;
    if (processor_.IsUnused(id)) return Kind::kUnused;
    return Kind::kNormal;
  }
  std::string PieceOf(int id) const override { return processor_.IdToPiece(id); }
  int bos_id() const override { return processor_.bos_id(); }
  int eos_id() const override { return processor_.eos_id(); }
  int unk_id() const override { return processor_.unk_id(); }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace
}  // namespace perigee::model

extern "C" __attribute__((visibility("default"))) perigee::model::SentencePiece* perigee_new_sentencepiece() {
  return new perigee::model::LibrarySentencePiece;
}
