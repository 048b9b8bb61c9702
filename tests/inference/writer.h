// A model over bytes, with weights that make it write anything.
#pragma once

#include <memory>
#include <string>

#include "inference/generator.h"
#include "tests/model/model_support.h"

namespace lamina::inference {

class Writer {
 public:
  explicit Writer(Device device = {})
      : config_(config()),
        model_(config_, DType::f32, Recompute::none, 1, 8, {}, device),
        tokenizer_(make_tokenizer("bytes")),
        decoder_(config_, model_.parameters, {}) {}

  Request request(const std::string& prompt, uint64_t seed = 1) const {
    Request request;
    request.tokens = {tokenizer_->end_of_document()};
    tokenizer_->encode(prompt, request.tokens);
    request.seed = seed;
    request.max_tokens = 20;
    request.sampling = {1.0, 0, 1.0};
    return request;
  }
  Generator generator(int64_t prompt_tokens_per_pass = 512) { return {decoder_, *tokenizer_, prompt_tokens_per_pass}; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  Decoder& decoder() { return decoder_; }

 private:
  static ModelConfig config() {
    ModelConfig c = model::hybrid_config(Residual::block_attnres, 4, 2, false);
    c.vocab_size = 260;  // three rows pad it
    return c;
  }

  ModelConfig config_;
  model::SmallModel model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Decoder decoder_;
};

}  // namespace lamina::inference
