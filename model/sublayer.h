// A sublayer: the mixer or the MLP of a decoder layer, without its PreNorm and without knowing which residual scheme
// feeds it. x is the normalised input [tokens, hidden_size], y the output.
//
// forward() leaves in `Saved` (the named struct of each sublayer) what backward() needs. Where an intermediate lives
// depends on the recomputation mode: `expensive` ones (outputs of large products, attention) and `cheap` ones go to arenas
// that the caller chooses; what did not survive until backward is made again by recompute().
#pragma once

#include <cstdint>
#include <span>

#include "configs/schema/config.h"
#include "core/ops/op.h"
#include "model/observations.h"
#include "model/parameters.h"
#include "model/sequence_cache.h"
#include "model/weight_gradients.h"

namespace lamina::model {

// A micro-batch: sequences of seq_len tokens, flattened to rows. Or, with `runs`, rows that go on in sequences computed before
// (num_sequences is 1 then), without backward.
struct Batch {
  int64_t num_sequences = 0;
  int64_t seq_len = 0;
  TensorView document_starts =
      {};                 // [num_sequences, seq_len] i32 (core/ops/short_conv/short_conv.h); empty: one document each
  double grad_scale = 0;  // the weight of one token's loss in the total
  SublayerProbes probes = {};  // of the sublayer that runs
  std::span<const SequenceRun> runs = {};
  int64_t num_tokens() const { return num_sequences * seq_len; }
};

// Arenas for the intermediates of one forward.
struct ActivationArenas {
  Arena& expensive;
  Arena& cheap;
};

}  // namespace lamina::model
