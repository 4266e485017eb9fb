// Makes a small sentencepiece model with Llama 2's settings (BPE, byte fallback, dummy prefix) from a few sentences. In
// a file of its own because sentencepiece's headers and Abseil's cannot be included together.
#ifndef PERIGEE_TESTS_MODEL_SENTENCEPIECE_TRAINER_H_
#define PERIGEE_TESTS_MODEL_SENTENCEPIECE_TRAINER_H_

#include <string>
#include <vector>

namespace perigee::model::testing {

// The serialised model, or "" and an error text.
std::string TrainTinySentencePiece(std::string* error);
// What the library itself makes of the text and of its ids.
std::vector<int> ReferenceEncode(const std::string& model, const std::string& text);
std::string ReferenceDecode(const std::string& model, const std::vector<int>& ids);

}  // namespace perigee::model::testing

#endif  // PERIGEE_TESTS_MODEL_SENTENCEPIECE_TRAINER_H_
