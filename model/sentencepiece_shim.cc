#include "model/sentencepiece_shim.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <string_view>

namespace perigee::model {

struct SentencePieceShim::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceShim::SentencePieceShim() : impl_(std::make_unique<Impl>()) {}
SentencePieceShim::~SentencePieceShim() = default;

std::string SentencePieceShim::Load(const std::string& serialized) {
  try {
    const auto status = impl_->processor.LoadFromSerializedProto(serialized);
    return status.ok() ? "" : status.ToString();
  } catch (const std::exception& error) {
    return error.what();
  }
}

std::string SentencePieceShim::Encode(const char* text, size_t bytes, std::vector<int>& ids) const {
  try {
    const auto status = impl_->processor.Encode(std::string_view(text, bytes), &ids);
    return status.ok() ? "" : status.ToString();
  } catch (const std::exception& error) {
    return error.what();
  }
}

int SentencePieceShim::size() const { return impl_->processor.GetPieceSize(); }
SentencePieceShim::Kind SentencePieceShim::KindOf(int id) const {
  const auto& processor = impl_->processor;
  if (processor.IsUnknown(id)) return Kind::kUnknown;
  if (processor.IsControl(id)) return Kind::kControl;
  if (processor.IsByte(id)) return Kind::kByte;
  if (processor.IsUnused(id)) return Kind::kUnused;
  return Kind::kNormal;
}
std::string SentencePieceShim::PieceOf(int id) const { return impl_->processor.IdToPiece(id); }
int SentencePieceShim::bos_id() const { return impl_->processor.bos_id(); }
int SentencePieceShim::eos_id() const { return impl_->processor.eos_id(); }
int SentencePieceShim::unk_id() const { return impl_->processor.unk_id(); }

}  // namespace perigee::model
