// Rows of layers.jsonl: norms per sublayer, the same numbers at any layout.
//   hidden_rms     of the input that the residual scheme hands over, before the PreNorm
//   output_rms     of the sublayer's output;  grad_rms: of the loss's gradient with respect to it
//   weight_norm, grad_norm   over the sublayer's parameters (PreNorm and depth query included), gradients before clipping
//   depth_weights  mean softmax weight per source (AttnRes): embedding, finished blocks, open partial sum
//   max_logit      of an MLA mixer, where QK-Clip watches it: the largest attention logit of the step
//   expert_load    of a mixture of experts: tokens of each expert over the mean; max_violation its maximum less one;
//                  dead_experts those without a token; balance_loss the sequences' mean, without its weight; router_entropy of
//                  the normalised scores, mean over tokens, nats
#pragma once

#include <vector>

#include "trainer/engine.h"
#include "trainer/metrics.h"

namespace lamina {

struct LayerStatsTotals {
  int64_t num_tokens = 0;         // global batch
  int64_t num_micro_batches = 0;  // over all ranks
};

// Collective; call after accumulate_gradients and before update. The rows are the same on every rank.
std::vector<JsonRow> layer_stats_rows(Engine& engine, comm::Communicator& comm, int64_t step, int64_t hidden_size,
                                      const std::vector<model::LayerSums>& sums, const LayerStatsTotals& totals);

}  // namespace lamina
