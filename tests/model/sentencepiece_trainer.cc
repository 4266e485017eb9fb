#include "sentencepiece_trainer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

namespace perigee::model::testing {
namespace {

class Corpus : public sentencepiece::SentenceIterator {
 public:
  bool done() const override { return at_ == lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  size_t at_ = 0;
  std::vector<std::string> lines_ = {
      "the nearest point of an orbit is called the perigee",
      "near tokens keep everything and far tokens share their keys",
      "a block is sixty four consecutive tokens of one text",
      "the store keeps blocks in memory and on disk",
      "a reader fetches the planes that it needs and no more",
      "numbers such as 12 and 345 are split into digits",
  };
};

}  // namespace

std::string TrainTinySentencePiece(std::string* error) {
  std::string model;
  Corpus corpus;
  const auto status = sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                                  {"vocab_size", "360"},
                                                                  {"byte_fallback", "true"},
                                                                  {"split_digits", "true"},
                                                                  {"normalization_rule_name", "identity"},
                                                                  {"remove_extra_whitespaces", "false"},
                                                                  {"add_dummy_prefix", "true"},
                                                                  {"hard_vocab_limit", "false"},
                                                                  {"num_threads", "1"},
                                                                  {"minloglevel", "2"}},
                                                                 &corpus, &model);
  *error = status.ok() ? "" : status.ToString();
  return model;
}

std::vector<int> ReferenceEncode(const std::string& model, const std::string& text) {
  sentencepiece::SentencePieceProcessor processor;
  std::vector<int> ids;
  if (processor.LoadFromSerializedProto(model).ok()) (void)processor.Encode(text, &ids).ok();
  return ids;
}

std::string ReferenceDecode(const std::string& model, const std::vector<int>& ids) {
  sentencepiece::SentencePieceProcessor processor;
  std::string text;
  if (processor.LoadFromSerializedProto(model).ok()) (void)processor.Decode(ids, &text).ok();
  return text;
}

}  // namespace perigee::model::testing
