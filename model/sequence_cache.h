// What a sequence that is computed piece by piece leaves behind for its later tokens: per layer with Kimi Delta Attention the recurrent
// state and the last inputs of the short convolutions, whose size is fixed; per MLA layer one latent [c | k_shared] per token, c being
// normalised. Nothing in it knows a token's position. Attention Residuals leave nothing: they read within a token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "configs/schema/config.h"
#include "core/device/buffer.h"
#include "core/device/stream.h"
#include "core/tensor/view.h"

namespace lamina::model {

class SequenceCache {
 public:
  // In the memory of the stream's device, by whose work it is read and written. `ledger` may be null. A sequence without a token.
  SequenceCache(const ModelConfig& config, DType dtype, const Stream& stream, MemoryLedger* ledger);

  int64_t length() const { return length_; }  // tokens
  // Makes room for `tokens` in all; what is there stays. Error when memory does not suffice. Where there is not room yet, it waits for a
  // GPU; so each time there is made half as much again.
  void reserve(int64_t tokens);
  void advance(int64_t tokens);  // that a pass has added; there must be room
  void clear();                  // back to no token
  // Another sequence of the same model.
  void assign(const SequenceCache& other);

  // Of the layer; for the mixer it has.
  TensorView kda_state(int64_t layer) const;  // [heads, head, head] acc
  TensorView conv_tail(int64_t layer) const;  // [taps - 1, 3 heads head], oldest first
  TensorView latents(int64_t layer) const;    // [room, kv_lora_rank + qk_rope_head_dim]

  // Bytes per sequence, and per token of it.
  static int64_t fixed_bytes(const ModelConfig& config, DType dtype);
  static int64_t bytes_per_token(const ModelConfig& config, DType dtype);

 private:
  TensorView of_kda(int64_t layer, int64_t offset, DType dtype, const Shape& shape) const;

  ModelConfig config_;
  DType dtype_;
  Stream stream_;
  MemoryLedger* ledger_;
  int64_t length_ = 0, room_ = 0;
  std::vector<int64_t> place_;  // of a layer among those with its mixer
  Buffer states_;               // [layers with Kimi Delta Attention][state | tail]
  Buffer latents_;              // [MLA layers][room]
};

// Rows [begin, begin + count) of a pass are the next tokens of a sequence. A pass has at most one run of each sequence, in the order of
// the rows; the sequence's length is that before the pass.
struct SequenceRun {
  SequenceCache* sequence;
  int64_t begin, count;
};

struct Rows {
  int64_t begin, end;
};
inline Rows rows_of(std::span<const SequenceRun> runs) {
  return {runs.front().begin, runs.back().begin + runs.back().count};
}

// steps(runs) for neighbours of one token each, all at once; several(run) for each of the others.
template <class Steps, class Several>
void for_runs(std::span<const SequenceRun> runs, const Steps& steps, const Several& several) {
  for (size_t i = 0; i < runs.size();) {
    size_t end = i;
    while (end < runs.size() && runs[end].count == 1) ++end;
    if (end > i) steps(runs.subspan(i, end - i));
    if (end < runs.size()) several(runs[end++]);
    i = end;
  }
}

}  // namespace lamina::model
