// A model from a checkpoint with its tokenizer, ready to write text (inference/generator.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "inference/decoder.h"
#include "trainer/step/restore.h"

namespace lamina {

class TextModel {
 public:
  // A checkpoint, or a run folder (its newest). The tokenizer is that of the token folder `data_path`; if empty the checkpoint's own, or
  // that of its training data where it has none. `device`: where it computes, wherever the checkpoint was trained: cpu, cuda, or auto for
  // cuda unless the model is in fp64. On GPUs it is the first.
  TextModel(const std::filesystem::path& checkpoint, const std::string& data_path, const std::string& device);

  const Config& config() const { return restored_.config; }
  DType dtype() const { return decoder_->dtype(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  inference::Decoder& decoder() { return *decoder_; }
  // The prompt as the model saw texts in training: behind the token that ends a document.
  std::vector<int32_t> tokens_of(std::string_view prompt) const;

 private:
  std::unique_ptr<comm::Communicator> comm_;
  Restored restored_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<inference::Decoder> decoder_;
};

}  // namespace lamina
