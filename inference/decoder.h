// Continues sequences with a model: gives the logits of each one's next token, computing only what is new.
//
// Nothing here depends on a token's position, for any option of `model`: Kimi Delta Attention is a recurrence, MLA's keys are not rotated,
// Attention Residuals read within a token. So a sequence may be longer than those of training, as long as memory allows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "configs/schema/config.h"
#include "core/tensor/host_copy.h"
#include "model/sequence_cache.h"
#include "model/stage.h"

namespace lamina::inference {

// The tokens seen so far, as the model remembers them.
class Sequence {
 public:
  // In the memory of the stream's device.
  Sequence(const ModelConfig& config, DType dtype, const Stream& stream) : cache_(config, dtype, stream, nullptr) {}
  int64_t num_tokens() const { return num_tokens_; }
  void assign(const Sequence& other);  // becomes a copy

 private:
  friend class Decoder;
  model::SequenceCache cache_;
  int64_t num_tokens_ = 0;
  bool ended_ = false;  // its last token ended a document, and the next one sees nothing of it
};

struct DecoderOptions {
  ops::Bf16Products bf16_products = {};
  ops::Backend backend = ops::Backend::fastest;
  // Of a model trained with data.document_mask: the token that ends a document. What comes after it starts anew.
  std::optional<int32_t> document_end;
  int64_t tokens_per_pass = 512;  // of all sequences together: bounds the memory for what is computed at a time
};

class Decoder {
 public:
  // The whole model, on the device where its parameters lie. config and parameters must outlive the decoder.
  Decoder(const ModelConfig& config, model::Parameters& parameters, const DecoderOptions& options);

  Sequence make_sequence() const { return {config_, dtype_, stream_}; }

  // Logits of what follows some of a feed's tokens, [rows, vocab_size] acc, the first row's being those after tokens[first]; in the host's
  // memory, as those that feed() returns. Valid in the call only.
  using EachLogits = std::function<void(int64_t first, const TensorView& logits)>;
  struct Feed {
    Sequence* sequence;               // each at most once in a call
    std::span<const int32_t> tokens;  // its next ones, at least one, all below vocab_size
    EachLogits each = {};             // where there is one, it gets the logits after every token, in order
  };
  // Logits of what follows the last token of each feed: [feeds, vocab_size] acc, valid until the next call. Error when memory does not
  // suffice; the sequences are of no use then.
  TensorView feed(std::span<const Feed> feeds);

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  int64_t num_waits() const { return stream_.num_waits(); }  // Stream::num_waits()

 private:
  struct Pending {
    const Feed* feed;
    size_t index, done = 0;
    std::span<const int32_t> rest() const { return feed->tokens.subspan(done); }
  };
  std::span<const int32_t> next_piece(const Pending& pending, int64_t room) const;
  void pass(std::vector<Pending>& pending, const TensorView& last);
  void show_each(const Pending& pending, int64_t first, const TensorView& hidden);

  const ModelConfig& config_;
  DType dtype_;
  std::optional<int32_t> document_end_;
  int64_t tokens_per_pass_;
  Device device_;
  Stream stream_;
  Arena scratch_, results_;
  std::optional<HostCopy> logits_;  // of the last call
  ops::RefusalLog refusals_;
  ops::OpContext ctx_;
  model::StagePlan plan_;
  model::Stage stage_;
  std::vector<int32_t> tokens_;           // of a pass
  std::vector<model::SequenceRun> runs_;  // of a pass
};

}  // namespace lamina::inference
