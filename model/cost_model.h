// What a model costs, from its configuration alone: parameters, floating-point operations, bytes of activations, and the time
// of each layer relative to the others. Pure functions, for every architecture that the configuration can name, Kimi Delta
// Attention (KDA) and mixture-of-experts layers (MoE) included.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/pipeline/split.h"

namespace lamina::model {

// ---- Parameters ----

struct ParameterCount {
  int64_t matrices = 0;  // embedding, head and linear layers, in the compute dtype; routed experts not counted
  int64_t experts = 0;   // routed experts, in the compute dtype; expert-parallel ranks share them out
  int64_t vectors =
      0;  // norms, depth queries, convolutions, decays, mixing of streams: always in the accumulation dtype
  int64_t buffers = 0;  // the router's selection bias: neither gradient nor optimizer
  int64_t linear =
      0;  // of `matrices`, those of linear layers other than the head: with `experts`, what an optimizer of matrices has without groups
  int64_t total() const { return matrices + experts + vectors + buffers; }
  ParameterCount& operator+=(const ParameterCount& other);
};
ParameterCount layer_parameters(const ModelConfig& config, int64_t layer);  // norms and the residual scheme included
ParameterCount embedding_parameters(const ModelConfig& config);
// Output read, final norm, projection. A tied head has no matrix of its own; a pipeline whose last rank is not the first one
// keeps a copy of the embedding there.
ParameterCount head_parameters(const ModelConfig& config);
ParameterCount model_parameters(const ModelConfig& config);
int64_t num_tensors(const ModelConfig& config);  // of the exported checkpoint
// Of these, what a token is computed with: the router's choice of experts, and not the look-up of its embedding. A tied
// matrix counts as the head.
int64_t active_parameters(const ModelConfig& config);

// By what updates them (update_rules.h): elements, and the FLOPs of one step's products in the whole job, each matrix once.
struct OptimizerCount {
  int64_t elements = 0;
  double flops = 0;
};
std::map<OptimizerName, OptimizerCount> optimizer_counts(const Config& config);  // of those in use

// ---- Floating-point operations, 2 per multiply-accumulate ----

// Of one token's forward pass. `matmul`: products with parameters, whose gradients cost as much again twice, once for the
// input and once for the weight. `core`: attention without them; its backward costs twice as much, all of it for the inputs.
struct Flops {
  double matmul = 0, core = 0;
  double total() const { return matmul + core; }
  Flops& operator+=(const Flops& other);
};
constexpr double kda_chunk = 64;  // tokens
//   causal attention, T / 2 keys on average       heads T (d_qk + d_v)
//   KDA in chunks of C = 64 tokens                 heads (6 K^2 + 3 C K + C^2)     (arXiv 2510.26692, eq. 13)
//   MoE                                            router, the token's experts and the shared ones
Flops layer_forward_flops(const ModelConfig& config, int64_t layer, int64_t seq_len);
Flops head_forward_flops(const ModelConfig& config);
// Of the residual scheme at both sublayers of a layer; 0 for the standard one.
//   AttnRes   scores and weighted sums over the sources, 4 hidden_size each
//   mhc       the coefficients, the read and the write of n streams, 2 hidden_size (m n + n + n (n + 1)) per sublayer, m = 2 n + n!
double residual_flops(const ModelConfig& config, int64_t layer);
// What the backward pass computes again because it was not kept; the states that KDA's backward always makes again are not counted.
double recompute_flops(const ModelConfig& config, int64_t layer, int64_t seq_len, Recompute recompute);

// Of training one token: forward and backward (twice forward), recomputation and the residual scheme not counted:
//   F(T) = 6 N_mm + 3 (sum of core over the MLA layers + the same over the KDA layers)
// N_mm: elements of all matrices that a token is multiplied with (the head included, the embedding look-up not) and of the
// convolutions.
struct FlopsPerToken {
  double matrices = 0;  // 6 N_mm
  double mla = 0, kda = 0;
  double num_multiplied() const { return matrices / 6; }  // N_mm
  double attention() const { return mla + kda; }
  double total() const { return matrices + attention(); }
};
FlopsPerToken training_flops_per_token(const ModelConfig& config, int64_t seq_len);
// Of so many steps of a run that passes no batch over, each stage with its own seq_len.
double training_flops(const Config& config, int64_t num_steps);

// ---- Bytes ----

struct ElementSizes {
  double compute = 2, accumulation = 4;
};
ElementSizes element_sizes(Precision precision);

// Bytes per token that one micro-batch in flight keeps between its forward and its backward, the finished summaries of the
// blocks not counted (pipeline/block_cache.h): what Mla, Kda, Mlp, Moe and the residual schemes save. KDA keeps its projections,
// gates and output (`selective`), and with `none` also the convolved queries, keys and values and the decays; its backward makes
// the states again. MoE keeps the router's scores and choices, and of each (token, expert) pair its gate and up projections;
// with `expert_ranks` > 1 also the rows received from other ranks. Its figures are those of a balanced load.
double sublayer_activation_bytes(const ModelConfig& config, int sublayer, const ElementSizes& sizes,
                                 Recompute recompute, int expert_ranks = 1);
// Of the sublayers [begin, end) of one chunk, residual scheme included; the last chunk also has the output read and the
// gradient of the head's input.
struct SublayerRange {
  int begin = 0, end = 0;
  bool is_last = false;  // chunk
};
double chunk_activation_bytes(const ModelConfig& config, const SublayerRange& range, const ElementSizes& sizes,
                              Recompute recompute, int expert_ranks = 1);
// Temporaries of the routed experts beyond what they save, at their peak in the backward pass: each pair's row, output, and the
// gradients of both and of the activation; with `expert_ranks` > 1 also rows on their way.
double expert_workspace_bytes(const ModelConfig& config, const ElementSizes& sizes, int expert_ranks);
// Operands of the weight gradients that a split backward pass keeps between its halves: the gradients of the products' results
// (of gate and up in the place of these), the activation that the down projection takes, and what was made again.
double layer_deferred_bytes(const ModelConfig& config, int64_t layer, const ElementSizes& sizes, Recompute recompute);
// Traffic of everything that is not a product: each intermediate is written and read once in forward; read twice, and its
// gradient written and read, in backward. A model, not a measurement.
struct Traffic {
  double forward = 0, backward = 0;
};
Traffic layer_traffic(const ModelConfig& config, int64_t layer, const ElementSizes& sizes, Recompute recompute);
// Ranks among which a token's k experts are found, of R expert ranks under balanced routing: R (1 - (1 - 1/R)^k).
double expected_expert_ranks(const ModelConfig& config, int expert_ranks);
// Bytes that a token's row sends to other ranks in one dispatch to its experts, or one combine: one copy per distinct rank.
double expert_exchange_bytes(const ModelConfig& config, int expert_ranks, const ElementSizes& sizes);

// ---- Relative time ----

// Of one token, forward and backward, in operations: memory traffic counts as the operations that the processor could do in
// the same time. The head's forward holds its whole backward.
pipeline::LayerCosts layer_costs(const ModelConfig& config, int64_t seq_len, Precision precision, Recompute recompute);

// The split for these costs: equal ranks set the pace of the steady state, equal chunks shorten its beginning and end. Of the two
// the one whose schedule (of zero_bubble, interleaved_1f1b) takes less time when simulated over four rounds of micro-batches.
std::vector<int64_t> choose_split(const pipeline::LayerCosts& costs, const ParallelConfig& parallel);

// Decoder layers per chunk: parallel.split, or the chosen one. model.vocab_size must be resolved.
std::vector<int64_t> resolve_split(const Config& config);

}  // namespace lamina::model
