#include "model/cost_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "configs/schema/batch_plan.h"
#include "core/ops/hyper_connections/hyper_connections.h"
#include "model/optimizers/optimizer.h"
#include "model/parameters.h"
#include "parallel/pipeline/block_routes.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/simulate.h"

namespace lamina::model {
namespace {

// Two cores with AVX-512 do about this many bf16 operations in the time of moving a byte. Splits balanced with it are the same
// on every machine.
constexpr double flops_per_byte = 16;

int64_t qk_head_dim(const ModelConfig& c) {
  return c.qk_nope_head_dim + c.qk_rope_head_dim;
}

// Elements of the mixer's matrices; a token is multiplied with each once.
int64_t mixer_matrices(const ModelConfig& c, int64_t layer) {
  const int64_t d = c.hidden_size, heads = c.num_attention_heads;
  if (c.mixer(layer) == Mixer::kda) {
    const int64_t width = c.linear_num_heads * c.linear_head_dim, rank = c.linear_head_dim;
    return 4 * d * width + 2 * (d * rank + rank * width) + d * c.linear_num_heads;  // q, k, v, o; f, g; beta
  }
  const int64_t q = c.q_lora_rank ? *c.q_lora_rank * (d + heads * qk_head_dim(c)) : d * heads * qk_head_dim(c);
  return q + d * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim) +
         heads * c.v_head_dim * d;
}

int64_t convolution_elements(const ModelConfig& c, int64_t layer) {
  if (c.mixer(layer) == Mixer::mla) return 0;
  return 3 * c.linear_num_heads * c.linear_head_dim * c.short_conv_kernel_size;
}

int64_t mixer_vectors(const ModelConfig& c, int64_t layer) {
  if (c.mixer(layer) == Mixer::mla) return c.kv_lora_rank + c.q_lora_rank.value_or(0);
  // A_log, dt_bias and the output norm that the heads share.
  return convolution_elements(c, layer) + c.linear_num_heads + c.linear_num_heads * c.linear_head_dim +
         c.linear_head_dim;
}

// Of the residual scheme, per sublayer; norms not counted.
struct SchemeTensors {
  int64_t count = 0, elements = 0;
};
SchemeTensors scheme_tensors(const ModelConfig& c) {
  if (c.has_depth_reads()) return {2, 2 * c.hidden_size};
  if (c.residual != Residual::mhc) return {};
  const int64_t rows = ops::num_projections(c.num_streams());
  return {3, rows * c.num_streams() * c.hidden_size + rows + 3};  // W, b, alpha
}

int64_t expert_elements(const ModelConfig& c) {
  return 3 * c.hidden_size * c.moe_intermediate_size;
}

// Shared experts and the router, or the dense MLP.
int64_t mlp_matrices(const ModelConfig& c, int64_t layer) {
  if (!c.is_moe(layer)) return 3 * c.hidden_size * c.intermediate_size;
  return c.num_experts * c.hidden_size + c.num_shared_experts * expert_elements(c);
}

// Widths of one token's intermediates, by what becomes of them.
struct Intermediates {
  double expensive = 0;      // products and attention, compute dtype
  double expensive_acc = 0;  // the same, accumulation dtype
  double cheap = 0, cheap_acc = 0;
  double indices = 0;  // i32, kept with the expensive ones

  double bytes(const ElementSizes& sizes, Recompute recompute) const {
    if (recompute == Recompute::full) return 0;
    const double kept = expensive * sizes.compute + expensive_acc * sizes.accumulation + indices * 4;
    if (recompute == Recompute::selective) return kept;
    return kept + cheap * sizes.compute + cheap_acc * sizes.accumulation;
  }
};

Intermediates mla_intermediates(const ModelConfig& c) {
  const auto heads = static_cast<double>(c.num_attention_heads), d_qk = static_cast<double>(qk_head_dim(c));
  const double latent = static_cast<double>(c.kv_lora_rank), shared = static_cast<double>(c.qk_rope_head_dim);
  const double rank = static_cast<double>(c.q_lora_rank.value_or(0)), d_v = static_cast<double>(c.v_head_dim);
  Intermediates m;
  m.expensive = (rank > 0 ? rank : 0) + heads * d_qk + latent + shared + heads * d_v;
  m.expensive_acc = (rank > 0 ? 1 : 0) + 1 + heads;  // rstd, lse
  m.cheap = rank + latent + heads * (static_cast<double>(c.qk_nope_head_dim) + d_v) + (shared > 0 ? heads * d_qk : 0);
  return m;
}

Intermediates kda_intermediates(const ModelConfig& c) {
  const auto heads = static_cast<double>(c.linear_num_heads), head = static_cast<double>(c.linear_head_dim);
  const double width = heads * head;
  Intermediates m;
  m.expensive = 3 * width + 2 * head + heads + 2 * width + width;  // q, k, v, f and g latents, beta; f and g; output
  m.expensive_acc = heads;                                         // rstd of the output norm
  m.cheap = 3 * width;                                             // convolved and normalised
  m.cheap_acc = width + 3 * heads;                                 // decay, beta, lengths of queries and keys
  return m;
}

Intermediates moe_intermediates(const ModelConfig& c, int expert_ranks) {
  const auto experts = static_cast<double>(c.num_experts_per_token),
             width = static_cast<double>(c.moe_intermediate_size);
  Intermediates m;
  m.expensive = 2 * width * (experts + static_cast<double>(c.num_shared_experts));
  m.expensive_acc = static_cast<double>(c.num_experts) + experts;  // scores; weights
  m.indices = experts;                                             // chosen
  double rows = 1;                                                 // of this rank's experts, per token of this rank
  if (expert_ranks > 1) {
    rows = expected_expert_ranks(c, expert_ranks);
    m.expensive += rows * static_cast<double>(c.hidden_size);
    m.expensive_acc += rows * experts;  // weights and choices travel with the rows
    m.indices += rows * experts;
  }
  m.expensive_acc += rows * experts;  // weight of each pair
  m.indices += 2 * rows * experts;    // row of each pair, and the way back
  return m;
}

Intermediates sublayer_intermediates(const ModelConfig& c, int sublayer, int expert_ranks) {
  const int64_t layer = sublayer / 2;
  if (sublayer % 2 == 0) return c.mixer(layer) == Mixer::kda ? kda_intermediates(c) : mla_intermediates(c);
  if (c.is_moe(layer)) return moe_intermediates(c, expert_ranks);
  Intermediates m;
  m.expensive = 2 * static_cast<double>(c.intermediate_size);
  return m;
}

int num_sublayers(const ModelConfig& c) {
  return static_cast<int>(2 * c.num_hidden_layers);
}

// Sources of the read before `site`: the finished summaries, and the open sum unless the site opens a block.
int num_sources(const pipeline::BlockLayout& blocks, int site, int sublayers) {
  const int block = blocks.block_of(std::min(site, sublayers - 1));
  const bool opens = site < sublayers && blocks.opens_block(site);
  return block + 1 + (opens ? 0 : 1);
}

double attn_res_bytes(const ModelConfig& c, int begin, int end, bool is_last, const ElementSizes& sizes,
                      Recompute recompute) {
  const pipeline::BlockLayout blocks = pipeline::make_block_layout(c);
  const int sublayers = num_sublayers(c);
  const double row = static_cast<double>(c.hidden_size) * sizes.compute;
  double bytes = 0, queries = 0;
  const auto close_part = [&](int site) {  // statistics of the reads that one pass over the summaries serves
    const double sources = blocks.block_of(std::min(site, sublayers - 1)) + 1;
    bytes += (sources + queries * sources + queries) * sizes.accumulation;
    queries = 0;
  };
  const int last = is_last ? sublayers : end - 1;
  for (int site = begin; site <= last; ++site) {
    const bool opens = site < sublayers && blocks.opens_block(site);
    if (site > begin && opens) close_part(site - 1);
    if (site > 0) queries += 1;
    // The open sum that this read sees: its own copy, or the stream that came in.
    if (!opens) bytes += row;
    bytes += (opens ? 2 : 4) * sizes.accumulation;  // rstd and log-sum-exp, and of the open sum
    if (recompute == Recompute::none) bytes += (site > 0 ? row : 0) + (site < sublayers ? row : 0);
  }
  if (last >= begin && queries > 0) close_part(last);
  return bytes;
}

double standard_bytes(const ModelConfig& c, int begin, int end, bool is_last, const ElementSizes& sizes,
                      Recompute recompute) {
  const double row = static_cast<double>(c.hidden_size) * sizes.compute;
  const double sites = end - begin + (is_last ? 1 : 0), inputs = recompute == Recompute::none ? end - begin : 0;
  return sites * (row + sizes.accumulation) + inputs * row;
}

double mhc_bytes(const ModelConfig& c, int begin, int end, bool is_last, const ElementSizes& sizes,
                 Recompute recompute) {
  const int64_t n = c.num_streams();
  const double row = static_cast<double>(c.hidden_size) * sizes.compute, sublayers = end - begin;
  const double streams = (sublayers + (is_last ? 1 : 0)) * (static_cast<double>(n) * row + sizes.accumulation);
  // The output, what the coefficients are made of and they themselves; with `none` the input, before its norm and after it.
  const auto numbers = static_cast<double>(ops::num_projections(n) + 1 + ops::num_coefficients(n));
  return streams + sublayers * (row + numbers * sizes.accumulation + (recompute == Recompute::none ? 2 * row : 0));
}

}  // namespace

ParameterCount& ParameterCount::operator+=(const ParameterCount& other) {
  matrices += other.matrices;
  experts += other.experts;
  vectors += other.vectors;
  buffers += other.buffers;
  linear += other.linear;
  return *this;
}

Flops& Flops::operator+=(const Flops& other) {
  matmul += other.matmul;
  core += other.core;
  return *this;
}

ParameterCount layer_parameters(const ModelConfig& c, int64_t layer) {
  ParameterCount count;
  count.matrices = count.linear = mixer_matrices(c, layer) + mlp_matrices(c, layer);
  count.vectors = mixer_vectors(c, layer) + 2 * c.hidden_size + 2 * scheme_tensors(c).elements;
  if (c.is_moe(layer)) {
    count.experts = c.num_experts * expert_elements(c);
    count.buffers = c.num_experts;
  }
  return count;
}

ParameterCount embedding_parameters(const ModelConfig& c) {
  ParameterCount count;
  count.matrices = c.vocab_size * c.hidden_size;
  return count;
}

ParameterCount head_parameters(const ModelConfig& c) {
  ParameterCount count;
  count.matrices = c.tie_word_embeddings ? 0 : c.vocab_size * c.hidden_size;
  count.vectors = c.hidden_size + (c.has_depth_reads() ? 2 * c.hidden_size : 0);
  return count;
}

ParameterCount model_parameters(const ModelConfig& c) {
  ParameterCount count = embedding_parameters(c);
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) count += layer_parameters(c, layer);
  return count += head_parameters(c);
}

int64_t num_tensors(const ModelConfig& c) {
  int64_t count = c.tie_word_embeddings ? 2 : 3;  // embedding, final norm, head
  if (c.has_depth_reads()) count += 2;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    count += 2 + 2 * scheme_tensors(c).count;
    if (c.mixer(layer) == Mixer::kda)
      count += 15;  // q, k, v, their convolutions, A_log, dt_bias, f_a, f_b, b, g_a, g_b, norm, o
    else
      count += c.q_lora_rank ? 7 : 5;
    count += c.is_moe(layer) ? 2 + 3 * c.num_experts + (c.num_shared_experts > 0 ? 3 : 0) : 3;
  }
  return count;
}

int64_t active_parameters(const ModelConfig& c) {
  int64_t count = model_parameters(c).total() - (c.tie_word_embeddings ? 0 : embedding_parameters(c).total());
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer)
    if (c.is_moe(layer)) count -= (c.num_experts - c.num_experts_per_token) * expert_elements(c);
  return count;
}

std::map<OptimizerName, OptimizerCount> optimizer_counts(const Config& config) {
  const std::vector<ParameterSpec> specs = parameter_specs(config.model);
  const std::vector<UpdateRule> rules = update_rules(config, specs);
  std::map<OptimizerName, OptimizerCount> counts;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!rules[i].optimizer) continue;
    const auto [rows, columns] = rows_and_columns(specs[i].shape);
    OptimizerCount& count = counts[rules[i].optimizer->facts().name];
    count.elements += rows * columns;
    count.flops += rules[i].optimizer->flops(rows, columns);
  }
  return counts;
}

Flops layer_forward_flops(const ModelConfig& c, int64_t layer, int64_t seq_len) {
  int64_t elements = mixer_matrices(c, layer) + convolution_elements(c, layer) + mlp_matrices(c, layer);
  if (c.is_moe(layer)) elements += c.num_experts_per_token * expert_elements(c);
  Flops flops;
  flops.matmul = 2.0 * static_cast<double>(elements);
  if (c.mixer(layer) == Mixer::kda) {
    const auto head = static_cast<double>(c.linear_head_dim);
    flops.core =
        static_cast<double>(c.linear_num_heads) * (6 * head * head + 3 * kda_chunk * head + kda_chunk * kda_chunk);
  } else {
    flops.core = static_cast<double>(c.num_attention_heads * seq_len * (qk_head_dim(c) + c.v_head_dim));
  }
  return flops;
}

Flops head_forward_flops(const ModelConfig& c) {
  return {2.0 * static_cast<double>(c.vocab_size * c.hidden_size), 0};
}

double residual_flops(const ModelConfig& c, int64_t layer) {
  if (c.residual == Residual::mhc) {
    const auto n = static_cast<double>(c.num_streams()), d = static_cast<double>(c.hidden_size);
    const auto rows = static_cast<double>(ops::num_projections(c.num_streams()));
    return 2 * 2 * (rows * n + n + n * (n + 1)) * d;  // W x, the read, the write
  }
  if (!c.has_depth_reads()) return 0;
  const pipeline::BlockLayout blocks = pipeline::make_block_layout(c);
  double sources = 0;
  for (int64_t site : {2 * layer, 2 * layer + 1})
    sources += num_sources(blocks, static_cast<int>(site), num_sublayers(c));
  return 4.0 * static_cast<double>(c.hidden_size) * sources;
}

namespace {

// Of what backward makes again of residual_flops().
double reread_flops(const ModelConfig& c, int64_t layer) {
  if (c.residual == Residual::mhc) return 2 * 2 * static_cast<double>(c.num_streams() * c.hidden_size);
  return residual_flops(c, layer);
}

}  // namespace

double recompute_flops(const ModelConfig& c, int64_t layer, int64_t seq_len, Recompute recompute) {
  if (recompute == Recompute::none) return 0;
  const Flops forward = layer_forward_flops(c, layer, seq_len);
  const auto d = static_cast<double>(c.hidden_size);
  const bool is_kda = c.mixer(layer) == Mixer::kda;
  if (recompute == Recompute::selective) {
    // Keys and values from their latent; or KDA's convolutions.
    if (is_kda) return 2.0 * static_cast<double>(convolution_elements(c, layer)) + reread_flops(c, layer);
    return 2.0 * static_cast<double>(c.kv_lora_rank * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)) +
           reread_flops(c, layer);
  }
  // All but the products whose results backward doesn't need: the outputs of mixer and MLP.
  const double mixer_out =
      static_cast<double>(is_kda ? c.linear_num_heads * c.linear_head_dim : c.num_attention_heads * c.v_head_dim);
  const double mlp_out =
      static_cast<double>(c.is_moe(layer) ? c.moe_intermediate_size * (c.num_experts_per_token + c.num_shared_experts)
                                          : c.intermediate_size);
  return forward.total() - 2.0 * d * (mixer_out + mlp_out) + reread_flops(c, layer);
}

FlopsPerToken training_flops_per_token(const ModelConfig& c, int64_t seq_len) {
  FlopsPerToken flops{3 * head_forward_flops(c).total()};
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const Flops forward = layer_forward_flops(c, layer, seq_len);
    flops.matrices += 3 * forward.matmul;
    (c.mixer(layer) == Mixer::kda ? flops.kda : flops.mla) += 3 * forward.core;
  }
  return flops;
}

double training_flops(const Config& config, int64_t num_steps) {
  const BatchPlan plan(config);
  double flops = 0;
  for (size_t i = 0; i < plan.stages().size(); ++i) {
    const BatchStage& stage = plan.stages()[i];
    const int64_t end = i + 1 < plan.stages().size() ? plan.stages()[i + 1].first - 1 : num_steps;
    flops += training_flops_per_token(config.model, stage.seq_len).total() *
             static_cast<double>(plan.num_tokens(stage.first, std::min(end, num_steps)));
  }
  return flops;
}

ElementSizes element_sizes(Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return {2, 4};
    case Precision::fp32:
      return {4, 4};
    case Precision::fp64:
      return {8, 8};
  }
  return {};
}

double sublayer_activation_bytes(const ModelConfig& c, int sublayer, const ElementSizes& sizes, Recompute recompute,
                                 int expert_ranks) {
  return sublayer_intermediates(c, sublayer, expert_ranks).bytes(sizes, recompute);
}

double chunk_activation_bytes(const ModelConfig& c, const SublayerRange& range, const ElementSizes& sizes,
                              Recompute recompute, int expert_ranks) {
  const auto [begin, end, is_last] = range;
  const auto scheme_bytes = c.has_depth_reads()           ? attn_res_bytes
                            : c.residual == Residual::mhc ? mhc_bytes
                                                          : standard_bytes;
  double bytes = scheme_bytes(c, begin, end, is_last, sizes, recompute);
  for (int sublayer = begin; sublayer < end; ++sublayer)
    bytes += sublayer_activation_bytes(c, sublayer, sizes, recompute, expert_ranks);
  return bytes + (is_last ? static_cast<double>(c.hidden_size) * sizes.compute : 0);
}

double expert_workspace_bytes(const ModelConfig& c, const ElementSizes& sizes, int expert_ranks) {
  const auto pairs = static_cast<double>(c.num_experts_per_token), d = static_cast<double>(c.hidden_size);
  double width = pairs * (3 * d + 2 * static_cast<double>(c.moe_intermediate_size));
  if (expert_ranks > 1) width += 3 * expected_expert_ranks(c, expert_ranks) * d;
  return width * sizes.compute;
}

double layer_deferred_bytes(const ModelConfig& c, int64_t layer, const ElementSizes& sizes, Recompute recompute) {
  const auto d = static_cast<double>(c.hidden_size);
  double width =
      2 * d + (recompute == Recompute::none ? 0 : 2 * d);  // dy of both sublayers, and x where it was made again
  if (c.mixer(layer) == Mixer::kda) {
    const auto heads = static_cast<double>(c.linear_num_heads), head = static_cast<double>(c.linear_head_dim);
    // Gradients of the joined projections and of f and g; the gated norm's output, made again.
    width += 3 * heads * head + 2 * head + heads + 3 * heads * head;
  } else {
    const auto heads = static_cast<double>(c.num_attention_heads),
               rank = static_cast<double>(c.q_lora_rank.value_or(0));
    const double queries = heads * static_cast<double>(qk_head_dim(c));
    width += (rank > 0 ? rank : 0) + queries + static_cast<double>(c.kv_lora_rank + c.qk_rope_head_dim) +
             heads * static_cast<double>(c.qk_nope_head_dim + c.v_head_dim);
  }
  if (c.is_moe(
          layer))  // of each pair its row, the gradient of its output, and the activation; of the router, of its logits
    width +=
        2 * static_cast<double>(c.num_experts_per_token) * d +
        static_cast<double>(c.moe_intermediate_size * (c.num_experts_per_token + c.num_shared_experts) + c.num_experts);
  else
    width += static_cast<double>(c.intermediate_size);
  double bytes = width * sizes.compute;
  for (int64_t sublayer : {2 * layer, 2 * layer + 1})  // what was made again
    bytes += sublayer_activation_bytes(c, static_cast<int>(sublayer), sizes, Recompute::none) -
             sublayer_activation_bytes(c, static_cast<int>(sublayer), sizes, recompute);
  return bytes;
}

Traffic layer_traffic(const ModelConfig& c, int64_t layer, const ElementSizes& sizes, Recompute recompute) {
  const int first = static_cast<int>(2 * layer);
  double bytes = 0;
  for (int sublayer : {first, first + 1}) bytes += sublayer_activation_bytes(c, sublayer, sizes, Recompute::none);
  // Rows gathered for the experts, and their outputs.
  if (c.is_moe(layer)) bytes += 2 * static_cast<double>(c.num_experts_per_token * c.hidden_size) * sizes.compute;
  // Each sublayer's output, what the scheme hands over, and its normalised form; and the sources of the depth reads, which
  // one pass per block serves.
  double rows = 6;
  // The streams are written once, and read for W, the norm, the read and the next write.
  if (c.residual == Residual::mhc) rows += 5 * static_cast<double>(c.num_streams());
  if (c.has_depth_reads()) {
    const pipeline::BlockLayout blocks = pipeline::make_block_layout(c);
    for (int site : {first, first + 1}) {
      const int block = blocks.block_of(site);
      const auto length =
          static_cast<double>(blocks.begin[static_cast<size_t>(block) + 1] - blocks.begin[static_cast<size_t>(block)]);
      rows += (block + 1) / length + 1;
    }
  }
  bytes += rows * static_cast<double>(c.hidden_size) * sizes.compute;
  const double again = recompute == Recompute::none ? 0 : recompute == Recompute::full ? 2 : 1;
  return {2 * bytes, (4 + again) * bytes};
}

double expected_expert_ranks(const ModelConfig& c, int expert_ranks) {
  return expert_ranks * (1 - std::pow(1 - 1.0 / expert_ranks, static_cast<double>(c.num_experts_per_token)));
}

double expert_exchange_bytes(const ModelConfig& c, int expert_ranks, const ElementSizes& sizes) {
  const double elsewhere = 1.0 - 1.0 / expert_ranks;  // of the ranks that a token goes to
  return expected_expert_ranks(c, expert_ranks) * elsewhere * static_cast<double>(c.hidden_size) * sizes.compute;
}

pipeline::LayerCosts layer_costs(const ModelConfig& c, int64_t seq_len, Precision precision, Recompute recompute) {
  const ElementSizes sizes = element_sizes(precision);
  pipeline::LayerCosts costs;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const Traffic traffic = layer_traffic(c, layer, sizes, recompute);
    costs.layer.push_back(3 * (layer_forward_flops(c, layer, seq_len).total() + residual_flops(c, layer)) +
                          recompute_flops(c, layer, seq_len, recompute) +
                          flops_per_byte * (traffic.forward + traffic.backward));
  }
  // A row is copied in forward and added in backward.
  const auto d = static_cast<double>(c.hidden_size);
  costs.embedding = flops_per_byte * d * (2 * sizes.compute + 3 * sizes.accumulation);
  // Logits are written, read, and turned into their gradient.
  costs.head = 3 * head_forward_flops(c).total() +
               flops_per_byte * (4 * static_cast<double>(c.vocab_size) * sizes.accumulation + 8 * d * sizes.compute);
  return costs;
}

std::vector<int64_t> choose_split(const pipeline::LayerCosts& costs, const ParallelConfig& parallel) {
  const int num_chunks = parallel.pipeline * parallel.virtual_stages;
  if (num_chunks == 1) return {static_cast<int64_t>(costs.layer.size())};
  const std::vector<int64_t> by_rank = balanced_split(costs, parallel.pipeline, parallel.virtual_stages);
  if (parallel.pipeline == 1 || parallel.virtual_stages == 1) return by_rank;
  const std::vector<int64_t> by_chunk = balanced_split(costs, num_chunks, 1);
  // zero_bubble gets the split of interleaved_1f1b, than which it is then never slower. Its own order, made for costs without
  // hops as they are here, finds uneven chunks good that hops spoil.
  const auto name = parallel.schedule == ScheduleName::zero_bubble ? ScheduleName::interleaved_1f1b : parallel.schedule;
  const pipeline::Schedule schedule =
      pipeline::make_schedule(name, parallel.pipeline, num_chunks, 4 * parallel.pipeline);
  const auto makespan = [&](const std::vector<int64_t>& split) {
    pipeline::ChunkCosts chunks;
    auto layer = costs.layer.begin();
    for (int64_t count : split) {
      const double cost = std::accumulate(layer, layer + count, 0.0);
      layer += count;
      for (auto* part : {&chunks.forward, &chunks.backward_input, &chunks.backward_weight}) part->push_back(cost / 3);
    }
    chunks.forward.front() += costs.embedding;
    chunks.forward.back() += costs.head;
    return pipeline::simulate(schedule, chunks).makespan;
  };
  return makespan(by_chunk) < makespan(by_rank) ? by_chunk : by_rank;
}

std::vector<int64_t> resolve_split(const Config& config) {
  if (!config.parallel.split.empty()) return config.parallel.split;
  return choose_split(layer_costs(config.model, config.data.seq_len, config.train.precision, config.train.recompute),
                      config.parallel);
}

}  // namespace lamina::model
