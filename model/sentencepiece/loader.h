// Opens the sentencepiece module (module.h). Internal to model/.
#ifndef PERIGEE_MODEL_SENTENCEPIECE_LOADER_H_
#define PERIGEE_MODEL_SENTENCEPIECE_LOADER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/sentencepiece/module.h"

namespace perigee::model {

// The module stays loaded for the process's life. NOT_FOUND when its file is neither beside the program nor where it
// was built. Any thread.
absl::StatusOr<std::unique_ptr<SentencePiece>> NewSentencePieceObject();

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_SENTENCEPIECE_LOADER_H_
