// Rows of layers.jsonl: norms per sublayer, the same numbers at any layout.
//   hidden_rms     of the input that the residual scheme hands over, before the PreNorm
//   output_rms     of the sublayer's output;  grad_rms: of the loss's gradient with respect to it
//   weight_norm, grad_norm   over the sublayer's parameters (PreNorm and depth query included), gradients before clipping
//   depth_weights  mean softmax weight per source (AttnRes): embedding, finished blocks, open partial sum
//   depth_entropy, depth_largest   of a token's weights: their entropy in nats and the largest one, means over tokens
//   query_norm     of the depth query before the step; query_update: of what the step adds to it
//   source_cosines of the output read: mean cosine of each pair of sources, (0, 1), (0, 2), .., (1, 2), .., over up to 256 tokens of
//                  each micro-batch
//   max_logit      of an MLA mixer: the largest attention logit of the step
//   expert_load    of a mixture of experts: tokens of each expert over the mean; max_violation its maximum less one;
//                  dead_experts those without a token; balance_loss the sequences' mean, without its weight; router_entropy of
//                  the normalised scores, mean over tokens, nats
#pragma once

#include <vector>

#include "trainer/record/depth_read_watch.h"
#include "trainer/record/metrics.h"
#include "trainer/step/engine.h"

namespace lamina {

struct LayerStatsTotals {
  int64_t num_tokens = 0;         // global batch
  int64_t num_micro_batches = 0;  // over all ranks
};

struct LayerStats {
  std::vector<JsonRow> rows;     // [site]
  std::vector<DepthRead> reads;  // of the sites that have depth weights
};

// Collective; call after accumulate_gradients and before update. The same on every rank.
LayerStats layer_stats(Engine& engine, comm::Communicator& comm, int64_t step, int64_t hidden_size,
                       const std::vector<model::LayerSums>& sums, const LayerStatsTotals& totals);

// The depth queries of this rank's shards as they are when it is made, to see what an update does to them.
class QueryUpdates {
 public:
  explicit QueryUpdates(Engine& engine);
  // Collective, after the update: query_norm and query_update into the rows of layer_stats().
  void add_to(std::vector<JsonRow>& rows, comm::Communicator& comm);

 private:
  struct Before {
    const OwnedSlice* slice;
    Buffer negated;
  };
  Engine& engine_;
  std::vector<Before> before_;
  std::vector<double> squares_;  // [site]: of the queries, then of their updates
};

}  // namespace lamina
