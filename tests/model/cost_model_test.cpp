#include "model/cost_model.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>
#include <random>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "model/kda.h"
#include "model/mla.h"
#include "model/mlp.h"
#include "model/moe.h"
#include "tests/model/model_support.h"

namespace lamina::model {
namespace {

// Kimi Linear 48B-A3B; the numbers below are those of the released checkpoint's index and of an independent program.
ModelConfig kimi_linear(Residual residual = Residual::standard) {
  ModelConfig c;
  c.vocab_size = 163840;
  c.hidden_size = 2304;
  c.num_hidden_layers = 27;
  c.residual = residual;
  c.attn_res_block_size = 3;
  for (int layer = 0; layer < 27; ++layer) c.mixers.push_back(layer % 4 == 3 || layer == 26 ? Mixer::mla : Mixer::kda);
  c.num_attention_heads = 32;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.linear_num_heads = 32;
  c.linear_head_dim = 128;
  c.intermediate_size = 9216;
  c.num_experts = 256;
  c.num_experts_per_token = 8;
  c.moe_intermediate_size = 1024;
  return c;
}

Config with_optimizer(const ModelConfig& model, OptimizerName name) {
  Config config;
  config.model = model;
  config.train.optimizer.name = name;
  return config;
}

TEST(CostModel, ParametersOfTheReleased48B) {
  const ModelConfig c = kimi_linear();
  const int64_t norms = 2 * 2304;
  EXPECT_EQ(model_parameters(c).total(), 49122681728);
  EXPECT_EQ(layer_parameters(c, 0).total(), 39514272 + 63700992 + norms);     // KDA, dense
  EXPECT_EQ(layer_parameters(c, 1).total(), 39514272 + 1819607296 + norms);   // KDA, MoE
  EXPECT_EQ(layer_parameters(c, 26).total(), 29114880 + 1819607296 + norms);  // MLA, MoE
  EXPECT_EQ(layer_parameters(c, 26).experts, 256 * int64_t{7077888});
  EXPECT_EQ(layer_parameters(c, 26).buffers, 256);
  EXPECT_EQ(embedding_parameters(c).total(), 377487360);
  EXPECT_EQ(head_parameters(c).total(), 377487360 + 2304);
  // Matrices that an optimizer for matrices takes, and the rest: embedding, head, norms, convolutions, decays.
  const ParameterCount all = model_parameters(c);
  EXPECT_EQ(all.matrices + all.experts - 2 * int64_t{377487360}, 48366501888);
  EXPECT_EQ(all.vectors + 2 * int64_t{377487360}, 756173184);
  EXPECT_EQ(all.buffers, 6656);
  EXPECT_EQ(optimizer_counts(with_optimizer(c, OptimizerName::muon))[OptimizerName::muon].elements, 48366501888);
  EXPECT_EQ(optimizer_counts(with_optimizer(c, OptimizerName::muon))[OptimizerName::adamw].elements, 756173184);
  EXPECT_EQ(optimizer_counts(with_optimizer(c, OptimizerName::adamw)).size(), 1u);
  EXPECT_EQ(optimizer_counts(with_optimizer(c, OptimizerName::adamw))[OptimizerName::adamw].elements,
            48366501888 + 756173184);
  EXPECT_EQ(num_tensors(c), 20493);
  EXPECT_EQ(num_tensors(kimi_linear(Residual::block_attnres)), 20493 + 4 * 27 + 2);
  EXPECT_EQ(active_parameters(c), 3106972544);
  EXPECT_EQ(active_parameters(kimi_linear(Residual::block_attnres)), 3106972544 + 253440);
  // Depth queries: a norm and a projection for each of two reads per layer, and the output's.
  EXPECT_EQ(model_parameters(kimi_linear(Residual::block_attnres)).total(), 49122681728 + 253440);
  EXPECT_EQ(model_parameters(load_config(LAMINA_SOURCE_DIR "/configs/kimi_linear_48b.yaml").model).total(),
            49122681728 + 253440);
}

TEST(CostModel, OperationsOfTheReleased48B) {
  const ModelConfig c = kimi_linear();
  const FlopsPerToken flops = training_flops_per_token(c, 4096);
  EXPECT_EQ(flops.matrices, 6.0 * 3106750464);
  // Per token and layer: heads x 4096 x (192 + 128), and heads x (6 x 128^2 + 3 x 64 x 128 + 64^2).
  EXPECT_EQ(flops.mla, 3 * 7 * 32.0 * 4096 * 320);
  EXPECT_EQ(flops.kda, 3 * 20 * 32.0 * (98304 + 24576 + 4096));
  EXPECT_EQ(flops.num_multiplied(), 3106750464);
  EXPECT_NEAR(flops.total() / 1e9, 19.765, 5e-4);
  EXPECT_NEAR(training_flops_per_token(c, 32768).total() / 1e9, 25.93, 5e-3);
  // Per matrix, 5 (4 m^2 n + 2 m^3): the sum over all of them from an independent program.
  EXPECT_NEAR(optimizer_counts(with_optimizer(c, OptimizerName::muon))[OptimizerName::muon].flops / 1e12, 1241.6, 0.1);
  // The published counts of the depth read: 4 d per source, over 54 sublayers in blocks of 6.
  const ModelConfig blocks = kimi_linear(Residual::block_attnres);
  double reads = 0;
  for (int64_t layer = 0; layer < 27; ++layer) reads += residual_flops(blocks, layer);
  double sources = 0;  // the embedding and finished blocks; and the open sum where the block has begun
  for (int sublayer = 0; sublayer < 54; ++sublayer) sources += sublayer / 6 + 1 + (sublayer % 6 == 0 ? 0 : 1);
  EXPECT_EQ(reads, 4 * 2304 * sources);
  EXPECT_EQ(residual_flops(c, 5), 0);
}

TEST(CostModel, CountsWhatTheProgramHolds) {
  for (const bool tied : {false, true})
    for (const Residual residual : {Residual::standard, Residual::block_attnres, Residual::full_attnres})
      for (const int64_t rank : {0, 8}) {
        ModelConfig c = small_config(residual, 3);
        c.tie_word_embeddings = tied;
        if (rank > 0) c.q_lora_rank = rank;
        EXPECT_EQ(model_parameters(c).total(), num_parameters(c));
        EXPECT_EQ(num_tensors(c), static_cast<int64_t>(parameter_specs(c).size()));
        EXPECT_EQ(active_parameters(c), num_parameters(c) - (tied ? 0 : c.vocab_size * c.hidden_size));
        int64_t matrices = 0, vectors = 0;
        for (const ParameterSpec& spec : parameter_specs(c))
          (spec.group == Group::vectors ? vectors : matrices) += spec.shape.num_elements();
        EXPECT_EQ(model_parameters(c).matrices, matrices);
        EXPECT_EQ(model_parameters(c).vectors, vectors);
      }
}

// KDA and MLA, a dense layer and mixtures.
ModelConfig small_kimi(Residual residual) {
  ModelConfig c = small_config(residual, 4);
  c.mixers = {Mixer::kda, Mixer::kda, Mixer::mla};
  c.linear_num_heads = 2;
  c.linear_head_dim = 16;
  c.num_experts = 6;
  c.num_experts_per_token = 3;
  c.moe_intermediate_size = 10;
  return c;
}

TEST(CostModel, CountsWhatAHybridHolds) {
  for (const Residual residual : {Residual::standard, Residual::block_attnres, Residual::mhc})
    for (const int64_t shared : {0, 1, 2}) {
      ModelConfig c = small_kimi(residual);
      c.num_shared_experts = shared;
      const ParameterCount count = model_parameters(c);
      EXPECT_EQ(count.total(), num_parameters(c));
      EXPECT_EQ(num_tensors(c), static_cast<int64_t>(parameter_specs(c).size()));
      int64_t linear = 0, experts = 0, untrained = 0, idle = 0;
      for (const ParameterSpec& spec : parameter_specs(c)) {
        const int64_t elements = spec.shape.num_elements();
        linear += spec.is_linear ? elements : 0;
        experts += spec.group == Group::experts ? elements : 0;
        untrained += spec.is_trained ? 0 : elements;
        idle += spec.expert >= c.num_experts_per_token ? elements : 0;
      }
      std::map<OptimizerName, OptimizerCount> muon = optimizer_counts(with_optimizer(c, OptimizerName::muon));
      EXPECT_EQ(muon[OptimizerName::muon].elements, linear);
      EXPECT_EQ(muon[OptimizerName::adamw].elements, num_parameters(c) - linear - untrained);
      EXPECT_EQ(count.experts, experts);
      EXPECT_EQ(count.buffers, untrained);
      EXPECT_EQ(active_parameters(c), num_parameters(c) - idle - c.vocab_size * c.hidden_size);
    }
}

// What Kda and Moe save, and what they leave for deferred weight gradients.
TEST(CostModel, HybridSublayersKeepWhatIsCounted) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const ModelConfig c = small_kimi(Residual::standard);
    Parameters parameters(c, dtype, 1, {}, nullptr);
    parameters.initialise(3, 0.1);
    Stream stream;
    ops::RefusalLog refusals;
    Arena scratch({}, nullptr, "scratch"), expensive({}, nullptr, "kept"), cheap({}, nullptr, "kept");
    ops::OpContext ctx{stream, scratch, refusals, ops::Backend::fastest};
    const Batch shape{2, 32};
    Arena data({}, nullptr, "data");
    const auto take = [&] { return data.take(dtype, {64, c.hidden_size}); };
    const TensorView x = take(), y = take(), dy = take(), dx = take();
    for (int64_t i = 0; i < x.num_elements(); ++i) {
      set(x, i, 0.01 * static_cast<double>(i % 17));
      set(dy, i, 0.01 * static_cast<double>(i % 13));
    }
    const ElementSizes sizes = element_sizes(dtype == DType::bf16 ? Precision::bf16 : Precision::fp32);
    // `once`: however many tokens there are, which the cost model leaves out.
    const auto expect_kept = [&](int sublayer, int64_t once) {
      EXPECT_EQ(static_cast<double>(expensive.used_bytes() - once),
                64 * sublayer_activation_bytes(c, sublayer, sizes, Recompute::selective));
      EXPECT_EQ(static_cast<double>(expensive.used_bytes() + cheap.used_bytes() - once),
                64 * sublayer_activation_bytes(c, sublayer, sizes, Recompute::none));
    };
    WeightGradients weights({}, nullptr);
    weights.begin(true);

    Kda::Saved kda;
    const Kda mixer(c, parameters, 1);
    mixer.forward(ctx, shape, x, y, kda, {expensive, cheap});
    expect_kept(2, 0);
    mixer.backward(ctx, shape, kda, x, dy, dx, weights);
    expensive.reset();
    cheap.reset();
    Moe::Saved moe;
    const Moe mlp(c, parameters, 1, nullptr);
    mlp.forward(ctx, shape, x, y, moe, {expensive, cheap});
    ASSERT_LT(c.num_experts, 16);
    expect_kept(3, 64);  // where each expert's rows begin
    mlp.backward(ctx, shape, moe, x, dy, dx, weights);
    const double gradients = 2 * static_cast<double>(dy.num_bytes());  // of both outputs, which the stage keeps
    EXPECT_EQ(static_cast<double>(weights.operands(ctx).used_bytes()) + gradients,
              64 * layer_deferred_bytes(c, 1, sizes, Recompute::none));
    weights.run(ctx);
  }
}

// The arenas round every tensor up to 64 bytes; with 64 tokens nothing is rounded.
TEST(CostModel, SublayersKeepWhatIsCounted) {
  for (const int64_t rank : {0, 8})
    for (const int64_t shared : {0, 4})
      for (const DType dtype : {DType::bf16, DType::f32}) {
        ModelConfig c = small_config(Residual::standard, 1);
        c.qk_rope_head_dim = shared;
        if (rank > 0) c.q_lora_rank = rank;
        Parameters parameters(c, dtype, 1, {}, nullptr);
        parameters.initialise(3, 0.1);
        Stream stream;
        ops::RefusalLog refusals;
        Arena scratch({}, nullptr, "scratch"), expensive({}, nullptr, "kept"), cheap({}, nullptr, "kept");
        ops::OpContext ctx{stream, scratch, refusals, ops::Backend::fastest};
        const Batch shape{2, 32};
        Arena data({}, nullptr, "data");
        const TensorView x = data.take(dtype, {64, c.hidden_size}), y = data.take(dtype, {64, c.hidden_size});
        for (int64_t i = 0; i < x.num_elements(); ++i) set(x, i, 0.01 * static_cast<double>(i % 17));
        const ElementSizes sizes = element_sizes(dtype == DType::bf16 ? Precision::bf16 : Precision::fp32);

        Mla::Saved mla;
        Mla(c, parameters, 0).forward(ctx, shape, x, y, mla, {expensive, cheap});
        EXPECT_EQ(static_cast<double>(expensive.used_bytes()),
                  64 * sublayer_activation_bytes(c, 0, sizes, Recompute::selective));
        EXPECT_EQ(static_cast<double>(expensive.used_bytes() + cheap.used_bytes()),
                  64 * sublayer_activation_bytes(c, 0, sizes, Recompute::none));
        expensive.reset();
        cheap.reset();
        Mlp::Saved mlp;
        Mlp(parameters, "model.layers.0.mlp.").forward(ctx, shape, x, y, mlp, {expensive, cheap});
        EXPECT_EQ(static_cast<double>(expensive.used_bytes()),
                  64 * sublayer_activation_bytes(c, 1, sizes, Recompute::selective));
        EXPECT_EQ(static_cast<double>(expensive.used_bytes() + cheap.used_bytes()),
                  64 * sublayer_activation_bytes(c, 1, sizes, Recompute::none));
        EXPECT_EQ(sublayer_activation_bytes(c, 0, sizes, Recompute::full), 0);
      }
}

TEST(CostModel, ActivationsOfTheSchemes) {
  // d = 24 elements of 2 bytes, statistics of 4 bytes. Standard: the stream and its rstd per read; the head's gradient.
  const ElementSizes sizes = element_sizes(Precision::bf16);
  const ModelConfig standard = small_config(Residual::standard, 2);
  const double row = 48;
  EXPECT_EQ(chunk_activation_bytes(standard, {0, 4, true}, sizes, Recompute::full), 5 * (row + 4) + row);
  EXPECT_EQ(chunk_activation_bytes(standard, {0, 2, false}, sizes, Recompute::full), 2 * (row + 4));
  EXPECT_EQ(chunk_activation_bytes(standard, {4, 4, true}, sizes, Recompute::full), (row + 4) + row);
  // Blocks of 2 layers = 4 sublayers: reads 1, 2, 3 see an open sum; 0 and 4 open a block; the statistics of phase 1 are
  // those of 3 queries over 1 source (read 0 has no query), and of 4 queries and the output's over 2 sources.
  const ModelConfig blocks = small_config(Residual::block_attnres, 4, 2);
  const double first = 3 * row + (2 + 3 * 4) * 4 + (1 + 3 + 3) * 4;
  const double second = 4 * row + (2 + 4 * 4) * 4 + (2 + 5 * 2 + 5) * 4;
  EXPECT_EQ(chunk_activation_bytes(blocks, {0, 4, false}, sizes, Recompute::full), first);
  EXPECT_EQ(chunk_activation_bytes(blocks, {4, 8, true}, sizes, Recompute::full), second + row);
  EXPECT_EQ(chunk_activation_bytes(blocks, {0, 8, true}, sizes, Recompute::full), first + second + row);
  // A boundary inside a block: the part after it reads the summaries again, and its open sum is the stream that came in.
  EXPECT_EQ(chunk_activation_bytes(blocks, {2, 4, false}, sizes, Recompute::full),
            2 * row + 2 * 4 * 4 + (1 + 2 + 2) * 4);
  EXPECT_EQ(chunk_activation_bytes(blocks, {0, 0, false}, sizes, Recompute::none), 0);
  // Four streams: they and the norm's rstd per read; of a sublayer its output, W x of 32 rows, their rstd, and 24 coefficients.
  const ModelConfig streams = small_config(Residual::mhc, 2);
  EXPECT_EQ(chunk_activation_bytes(streams, {0, 4, true}, sizes, Recompute::full),
            5 * (4 * row + 4) + 4 * (row + (32 + 1 + 24) * 4) + row);
  EXPECT_EQ(chunk_activation_bytes(streams, {0, 2, false}, sizes, Recompute::none),
            2 * (4 * row + 4) + 2 * (3 * row + (32 + 1 + 24) * 4) +
                sublayer_activation_bytes(streams, 0, sizes, Recompute::none) +
                sublayer_activation_bytes(streams, 1, sizes, Recompute::none));
  EXPECT_EQ(residual_flops(streams, 1), 2 * 2 * 24.0 * (32 * 4 + 4 + 4 * 5));
  // What less recomputation keeps is never less.
  for (const ModelConfig& c : {standard, blocks, kimi_linear(Residual::block_attnres)}) {
    const double none = chunk_activation_bytes(c, {0, 4, false}, sizes, Recompute::none);
    const double selective = chunk_activation_bytes(c, {0, 4, false}, sizes, Recompute::selective);
    const double full = chunk_activation_bytes(c, {0, 4, false}, sizes, Recompute::full);
    EXPECT_GT(none, selective);
    EXPECT_GT(selective, full);
    EXPECT_EQ(recompute_flops(c, 1, 64, Recompute::none), 0);
    EXPECT_GT(recompute_flops(c, 1, 64, Recompute::full), recompute_flops(c, 1, 64, Recompute::selective));
    EXPECT_LT(recompute_flops(c, 1, 64, Recompute::full), layer_forward_flops(c, 1, 64).total() + residual_flops(c, 1));
  }
}

// What `deferred weight gradients` in the log of a run shows: configs/tiny.yaml on two pipeline ranks with zero_bubble, per
// token and layer.
TEST(CostModel, OperandsOfDeferredWeightGradients) {
  const ModelConfig tiny = load_config(LAMINA_SOURCE_DIR "/configs/tiny.yaml").model;
  const ElementSizes sizes = element_sizes(Precision::bf16);
  // Gradients of both outputs, of q | c | k_shared and of k_nope | v; the activation.
  const double none = 2 * (2 * 256 + (4 * 64 + 64 + 16) + 4 * (48 + 64) + 768);
  // Both inputs, the normalised latent, keys and values, packed keys.
  const double selective = none + 2 * (2 * 256 + 64 + 4 * (48 + 64) + 4 * 64);
  // The projections, attention's output, and its statistics; gate and up.
  const double full = selective + 2 * (4 * 64 + 64 + 16 + 4 * 64 + 2 * 768) + 4 * (1 + 4);
  EXPECT_EQ(layer_deferred_bytes(tiny, 0, sizes, Recompute::none), none);
  EXPECT_EQ(layer_deferred_bytes(tiny, 0, sizes, Recompute::selective), selective);
  EXPECT_EQ(layer_deferred_bytes(tiny, 0, sizes, Recompute::full), full);
}

TEST(CostModel, ExpertsExchangeRowsWithOthers) {
  const ModelConfig c = kimi_linear();
  const ElementSizes sizes = element_sizes(Precision::bf16);
  EXPECT_EQ(expert_exchange_bytes(c, 1, sizes), 0);
  // One copy per distinct rank: the mean over draws of 8 experts, each on one of 8 ranks.
  std::mt19937 random(3);
  std::uniform_int_distribution<int> rank(0, 7);
  double distinct = 0, elsewhere = 0;
  constexpr int draws = 200000;
  for (int draw = 0; draw < draws; ++draw) {
    unsigned seen = 0;
    for (int choice = 0; choice < 8; ++choice) seen |= 1u << rank(random);
    distinct += std::popcount(seen);
    elsewhere += std::popcount(seen & ~1u);  // for a token of rank 0
  }
  // Fewer than 8 of 8: a standard deviation of less than 1 per draw, 5 of the mean's.
  const double tolerance = 5 / std::sqrt(draws);
  EXPECT_NEAR(expected_expert_ranks(c, 8), distinct / draws, tolerance);
  EXPECT_NEAR(expert_exchange_bytes(c, 8, sizes) / (2304 * 2), elsewhere / draws, tolerance);
  EXPECT_EQ(expected_expert_ranks(c, 1), 1);
  EXPECT_EQ(expert_workspace_bytes(c, sizes, 1), 2 * 8 * (3 * 2304 + 2 * 1024));
  EXPECT_NEAR(expert_workspace_bytes(c, sizes, 8) - expert_workspace_bytes(c, sizes, 1),
              2 * 3 * expected_expert_ranks(c, 8) * 2304, 1e-6);
  // Rows from other ranks are kept with their choices, and the pairs' places are those of the rows.
  const double alone = sublayer_activation_bytes(c, 3, sizes, Recompute::none);
  EXPECT_EQ(alone, 2 * (9 * 2048) + 4 * (256 + 8 + 8) + 4 * (3 * 8));
  const double rows = expected_expert_ranks(c, 8);
  EXPECT_NEAR(sublayer_activation_bytes(c, 3, sizes, Recompute::none, 8),
              2 * (9 * 2048 + rows * 2304) + 4 * (256 + 8 + 2 * rows * 8) + 4 * (8 + 3 * rows * 8), 1e-9 * alone);
}

TEST(CostModel, LayersCostWhatTheyCompute) {
  const pipeline::LayerCosts costs = layer_costs(kimi_linear(), 4096, Precision::bf16, Recompute::none);
  ASSERT_EQ(costs.layer.size(), 27u);
  EXPECT_EQ(costs.layer[1], costs.layer[2]);
  EXPECT_GT(costs.head, 3 * 2.0 * 163840 * 2304);  // both gradients are its forward's
  EXPECT_LT(costs.embedding, costs.layer[0] / 10);
  EXPECT_GT(layer_costs(kimi_linear(), 4096, Precision::bf16, Recompute::full).layer[1], 1.2 * costs.layer[1]);
  for (size_t layer = 0; layer < 27; ++layer)
    EXPECT_GT(costs.layer[layer], 3 * layer_forward_flops(kimi_linear(), static_cast<int64_t>(layer), 4096).total());
}

TEST(CostModel, ResolvesTheSplit) {
  Config config;
  config.model = small_config(Residual::block_attnres, 8);
  config.data.seq_len = 16;
  EXPECT_EQ(resolve_split(config), (std::vector<int64_t>{8}));
  config.parallel.pipeline = 2;
  config.parallel.virtual_stages = 2;
  const std::vector<int64_t> balanced = resolve_split(config);
  EXPECT_EQ(balanced.size(), 4u);
  EXPECT_EQ(std::accumulate(balanced.begin(), balanced.end(), int64_t{0}), 8);
  config.parallel.split = {5, 1, 1, 1};
  EXPECT_EQ(resolve_split(config), config.parallel.split);
}

}  // namespace
}  // namespace lamina::model
