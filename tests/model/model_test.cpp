#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "model/cost_model.h"
#include "tests/model/model_support.h"

namespace lamina::model {
namespace {

struct Case {
  Residual residual;
  int64_t layers, block_size;
  bool tied;
  int64_t q_rank, shared;
  enum { dense, hybrid, hybrid_bounded } kind = dense;
  int64_t streams = 4;  // of mhc
};

std::vector<Case> cases() {
  return {{Residual::standard, 3, 1, false, 0, 4},
          {Residual::standard, 2, 1, true, 7, 4},
          {Residual::full_attnres, 3, 1, false, 0, 4},
          {Residual::block_attnres, 3, 1, false, 0, 4},
          {Residual::block_attnres, 5, 2, true, 7, 4},
          {Residual::block_attnres, 5, 3, false, 0, 0},
          {Residual::block_attnres, 2, 4, false, 7, 4},
          {Residual::full_attnres, 1, 1, false, 0, 4},
          {Residual::block_attnres, 3, 2, false, 0, 4, Case::hybrid},
          {Residual::standard, 2, 1, true, 7, 0, Case::hybrid_bounded},
          {Residual::mhc, 3, 1, false, 0, 4},
          {Residual::mhc, 2, 1, true, 7, 4, Case::hybrid, 3}};
}

ModelConfig config_of(const Case& c) {
  ModelConfig config = c.kind == Case::dense
                           ? small_config(c.residual, c.layers, c.block_size)
                           : hybrid_config(c.residual, c.layers, c.block_size, c.kind == Case::hybrid_bounded);
  config.tie_word_embeddings = c.tied;
  if (c.q_rank > 0) config.q_lora_rank = c.q_rank;
  config.qk_rope_head_dim = c.shared;
  config.num_residual_streams = c.streams;
  return config;
}

// Central differences in double along a random direction of every tensor.
TEST(Model, GradientsEqualFiniteDifferencesInDouble) {
  for (const Case& c : cases()) {
    SmallModel model(config_of(c), DType::f64);
    model.loss_and_gradients();
    for (size_t p = 0; p < model.parameters.specs().size(); ++p) {
      const auto index = static_cast<int>(p);
      const ParameterSpec& spec = model.parameters.specs()[p];
      const TensorView value = model.parameters.value(index);
      const std::vector<double> gradient = model.gradient(index);
      const CounterRng rng(17, spec.name);
      const double h = 1e-5 / std::sqrt(static_cast<double>(gradient.size()));
      double analytic = 0;
      const auto shifted = [&](double sign) {
        for (size_t i = 0; i < gradient.size(); ++i)
          set(value, static_cast<int64_t>(i), get(value, static_cast<int64_t>(i)) + sign * h * rng.normal(i));
        return model.loss();
      };
      for (size_t i = 0; i < gradient.size(); ++i) analytic += gradient[i] * rng.normal(i);
      const double up = shifted(1), down = shifted(-2);
      shifted(1);
      const double numeric = (up - down) / (2 * h);
      EXPECT_NEAR(numeric, analytic, 2e-6 * (std::abs(analytic) + 1e-2))
          << spec.name << " residual " << static_cast<int>(c.residual);
    }
  }
}

// The first read has one source: its query is dead, exactly.
TEST(Model, QueryOfTheFirstReadHasNoGradient) {
  for (Residual residual : {Residual::full_attnres, Residual::block_attnres}) {
    SmallModel model(small_config(residual, 3), DType::f32);
    model.loss_and_gradients();
    for (double g : model.gradient(model.parameters.index_of("model.layers.0.self_attention_res_proj.weight")))
      EXPECT_EQ(g, 0.0);
    double other = 0;
    for (double g : model.gradient(model.parameters.index_of("model.layers.0.mlp_res_proj.weight"))) other += g * g;
    EXPECT_GT(other, 0.0);
  }
}

// arXiv 2603.15031: zero queries average the sources, and PreNorm is scale invariant, so the loss and the gradients of all
// shared parameters are those of the standard residual.
TEST(Model, ZeroQueriesEqualTheStandardResidual) {
  ModelConfig standard = small_config(Residual::standard, 5);
  standard.rms_norm_eps = 1e-14;  // the identity holds up to eps
  SmallModel base(standard, DType::f64);
  const double expected = base.loss_and_gradients();
  for (const auto& [residual, size] : std::vector<std::pair<Residual, int64_t>>{{Residual::full_attnres, 1},
                                                                                {Residual::block_attnres, 1},
                                                                                {Residual::block_attnres, 2},
                                                                                {Residual::block_attnres, 3}}) {
    ModelConfig config = small_config(residual, 5, size);
    config.rms_norm_eps = 1e-14;
    SmallModel model(config, DType::f64);
    for (size_t p = 0; p < model.parameters.specs().size(); ++p) {
      const ParameterSpec& spec = model.parameters.specs()[p];
      if (spec.name.find("_res_") == std::string::npos) continue;
      const TensorView value = model.parameters.value(static_cast<int>(p));
      for (int64_t i = 0; i < value.num_elements(); ++i) set(value, i, spec.init == Init::ones ? 1.0 : 0.0);
    }
    EXPECT_NEAR(model.loss_and_gradients(), expected, 1e-11);
    for (size_t p = 0; p < base.parameters.specs().size(); ++p) {
      const std::string& name = base.parameters.specs()[p].name;
      EXPECT_LT(relative_error(model.gradient(model.parameters.index_of(name)), base.gradient(static_cast<int>(p))),
                1e-9)
          << name;
    }
  }
}

// Hyper-connections begin as the standard residual: their streams are equal, H_pre and H_post add up to it, and H_res, whose rows add
// up to one, leaves equal streams alone. The gradients of the shared parameters are the same too. But the streams must not stay equal:
// what they are given in the first step differs.
TEST(Model, HyperConnectionsBeginAsTheStandardResidual) {
  for (const int64_t streams : {2, 3, 4}) {
    ModelConfig standard = hybrid_config(Residual::standard, 3, 1, false), config = standard;
    config.residual = Residual::mhc;
    config.num_residual_streams = streams;
    SmallModel base(standard, DType::f64), model(config, DType::f64);
    base.parameters.initialise(7, 0.3);
    model.parameters.initialise(7, 0.3);
    EXPECT_NEAR(model.loss_and_gradients(), base.loss_and_gradients(), 1e-12);
    for (size_t p = 0; p < base.parameters.specs().size(); ++p) {
      const std::string& name = base.parameters.specs()[p].name;
      EXPECT_LT(relative_error(model.gradient(model.parameters.index_of(name)), base.gradient(static_cast<int>(p))),
                1e-11)
          << name;
    }
    const std::vector<double> bias = model.gradient(model.parameters.index_of("model.layers.0.mlp_mhc.bias"));
    const auto post = bias.begin() + streams;
    EXPECT_GT(std::abs(*std::max_element(post, post + streams) / *std::min_element(post, post + streams) - 1), 1e-3);
    double weight = 0;
    for (double g : model.gradient(model.parameters.index_of("model.layers.0.mlp_mhc.weight"))) weight += g * g;
    EXPECT_GT(weight, 0.0);
  }
}

// Recomputation runs the same kernels on the same inputs: not a bit may differ.
TEST(Model, RecomputationGivesTheSameBits) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (const Case& c : cases()) {
      SmallModel kept(config_of(c), dtype, Recompute::none);
      const double expected = kept.loss_and_gradients();
      for (Recompute mode : {Recompute::selective, Recompute::full}) {
        SmallModel model(config_of(c), dtype, mode);
        EXPECT_EQ(model.loss_and_gradients(), expected);
        for (size_t p = 0; p < model.parameters.specs().size(); ++p)
          EXPECT_EQ(model.gradient(static_cast<int>(p)), kept.gradient(static_cast<int>(p)))
              << model.parameters.specs()[p].name << " mode " << static_cast<int>(mode) << " residual "
              << static_cast<int>(c.residual);
      }
    }
  }
}

std::vector<double> errors_against(SmallModel& model, SmallModel& reference) {
  std::vector<double> errors;
  for (size_t p = 0; p < model.parameters.specs().size(); ++p)
    errors.push_back(relative_error(model.gradient(static_cast<int>(p)), reference.gradient(static_cast<int>(p))));
  return errors;
}

// fp32 against float64. Gradients of depth queries are small differences of large sums, so at some of these points plain
// fp32 loops stray as far as 1e-5: the fast kernels must be as good as those, or within 1e-5.
TEST(Model, FloatGradientsEqualDouble) {
  for (const Case& c : cases()) {
    SmallModel reference(config_of(c), DType::f64), model(config_of(c), DType::f32), plain(config_of(c), DType::f32);
    plain.ctx.backend = ops::Backend::reference;
    for (size_t p = 0; p < model.parameters.specs().size(); ++p) {  // the same parameters, rounded
      const TensorView from = model.parameters.value(static_cast<int>(p)),
                       to = reference.parameters.value(static_cast<int>(p));
      for (int64_t i = 0; i < from.num_elements(); ++i) set(to, i, get(from, i));
    }
    const double expected = reference.loss_and_gradients();
    EXPECT_NEAR(model.loss_and_gradients(), expected, 1e-6);
    plain.loss_and_gradients();
    const std::vector<double> plain_errors = errors_against(plain, reference);
    const double limit = std::max(1e-5, 3 * *std::max_element(plain_errors.begin(), plain_errors.end()));
    const std::vector<double> errors = errors_against(model, reference);
    for (size_t p = 0; p < errors.size(); ++p) EXPECT_LT(errors[p], limit) << model.parameters.specs()[p].name;
  }
}

TEST(Model, GradientsAccumulateOverBackwards) {
  for (const Case& c : cases()) {
    SmallModel once(config_of(c), DType::f64), twice(config_of(c), DType::f64);
    once.loss_and_gradients();
    twice.loss_and_gradients();
    twice.loss_and_gradients();
    for (size_t p = 0; p < once.parameters.specs().size(); ++p) {
      std::vector<double> doubled = once.gradient(static_cast<int>(p));
      for (double& g : doubled) g *= 2;
      EXPECT_LT(relative_error(twice.gradient(static_cast<int>(p)), doubled), 1e-14) << once.parameters.specs()[p].name;
    }
  }
}

// Each parameter is reported as often as it is used, and never before its gradient is final.
TEST(Model, ReadyMeansFinal) {
  for (const Case& c : cases()) {
    SmallModel model(config_of(c), DType::f64);
    const std::vector<int> uses = model.stage.uses_per_parameter();
    std::vector<int> seen(uses.size(), 0);
    std::map<int, std::vector<double>> at_ready;
    model.loss_and_gradients(nullptr, [&](int parameter) {
      if (++seen[static_cast<size_t>(parameter)] == uses[static_cast<size_t>(parameter)])
        at_ready[parameter] = model.gradient(parameter);
    });
    EXPECT_EQ(seen, uses);
    for (const auto& [parameter, gradient] : at_ready)
      EXPECT_EQ(gradient, model.gradient(parameter)) << model.parameters.specs()[static_cast<size_t>(parameter)].name;
  }
}

TEST(Model, SteadyStateAllocatesNothing) {
  for (const Residual residual : {Residual::block_attnres, Residual::mhc})
    for (Recompute mode : {Recompute::none, Recompute::selective, Recompute::full}) {
      SmallModel model(small_config(residual, 5), DType::f32, mode, 8, 64);
      for (int warm_up = 0; warm_up < 3; ++warm_up) model.loss_and_gradients();
      const int64_t before = model.ledger.num_allocations();
      for (int step = 0; step < 3; ++step) model.loss_and_gradients();
      EXPECT_EQ(model.ledger.num_allocations(), before) << "mode " << static_cast<int>(mode);
    }
}

// What the sublayers report of a pass: every token has its experts, and recomputation reports nothing again.
TEST(Model, SublayersReportTheirPass) {
  for (Recompute mode : {Recompute::none, Recompute::full}) {
    const ModelConfig config = hybrid_config(Residual::block_attnres, 4, 2, false);
    SmallModel model(config, DType::f64, mode);
    model.loss_and_gradients();
    for (size_t sublayer = 0; sublayer < model.stats.size(); ++sublayer) {
      const SublayerStats& seen = model.stats[sublayer];
      const auto layer = static_cast<int64_t>(sublayer / 2);
      const bool is_mla = sublayer % 2 == 0 && config.mixer(layer) == Mixer::mla;
      const bool is_moe = sublayer % 2 == 1 && config.is_moe(layer);
      EXPECT_EQ(seen.max_logits.size(), is_mla ? static_cast<size_t>(config.num_attention_heads) : 0u);
      EXPECT_EQ(seen.expert_counts.size(), is_moe ? static_cast<size_t>(config.num_experts) : 0u);
      double tokens = 0;
      for (double count : seen.expert_counts) tokens += count;
      EXPECT_EQ(tokens, is_moe ? 14 * config.num_experts_per_token : 0);
      // f and P are both one on average, so the balance of a sequence is near one; there are two.
      if (is_moe) {
        EXPECT_GT(seen.balance_loss, 1.0);
      }
    }
  }
}

TEST(Model, LayerSumsEqualDirectSums) {
  for (const Case& c : cases()) {
    SmallModel model(config_of(c), DType::f64);
    std::vector<LayerSums> sums(static_cast<size_t>(2 * config_of(c).num_hidden_layers + 1));
    model.loss_and_gradients(&sums);
    // The first site reads the embedding rows.
    const Stage::Pass batch = model.pass(false);
    const TensorView table = model.parameters.value("model.embed_tokens.weight");
    double expected = 0;
    for (int64_t t = 0; t < batch.tokens.num_elements(); ++t)
      for (int64_t d = 0; d < table.size(1); ++d)
        expected += std::pow(get(table, batch.tokens.as<int32_t>()[t] * table.size(1) + d), 2);
    // Hyper-connections read equal streams there, each with its weight.
    if (c.residual != Residual::mhc) {
      EXPECT_NEAR(sums[0].hidden_square, expected, 1e-12 * expected);
    }
    for (size_t site = 0; site < sums.size(); ++site) {
      EXPECT_GT(sums[site].hidden_square, 0);
      if (site + 1 < sums.size()) {
        EXPECT_GT(sums[site].output_square, 0);
        EXPECT_GT(sums[site].gradient_square, 0);
      }
      if (c.residual == Residual::standard || c.residual == Residual::mhc) {
        EXPECT_TRUE(sums[site].depth_weights.empty());
        continue;
      }
      double total = 0;
      for (double w : sums[site].depth_weights) total += w;
      EXPECT_NEAR(total, 1.0, 1e-12) << "site " << site;
      const auto n = static_cast<double>(sums[site].depth_weights.size());
      EXPECT_LE(sums[site].depth_entropy, std::log(n) + 1e-12) << "site " << site;
      EXPECT_GE(sums[site].depth_largest, 1 / n - 1e-12) << "site " << site;
      const bool is_output = site + 1 == sums.size();
      EXPECT_EQ(sums[site].source_cosines.size(), is_output ? static_cast<size_t>(n * (n - 1) / 2) : 0u);
      if (c.residual == Residual::full_attnres) {
        EXPECT_EQ(sums[site].depth_weights.size(), site + 1);
      }
    }
  }
}

// One rank that holds several chunks, their boundaries anywhere, and a backward pass in two halves.
TEST(Model, ChunksAndSplitBackwardChangeNothing) {
  for (const Case& c : cases()) {
    const int64_t layers = config_of(c).num_hidden_layers;
    std::vector<std::vector<int64_t>> splits = {{layers}, {1, layers - 1}, {0, layers}, {layers, 0}, {0, layers, 0}};
    splits.emplace_back(static_cast<size_t>(layers), 1);
    for (Recompute mode : {Recompute::none, Recompute::selective, Recompute::full}) {
      SmallModel whole(config_of(c), DType::f64, mode);
      const double loss = whole.loss_and_gradients();
      for (const auto& split : splits) {
        for (bool split_backward : {false, true}) {
          SmallModel parts(config_of(c), DType::f64, mode, 2, 7, split);
          EXPECT_NEAR(parts.loss_and_gradients(nullptr, {}, split_backward), loss, 1e-13);
          EXPECT_NEAR(parts.loss(), loss, 1e-13);
          for (size_t p = 0; p < whole.parameters.specs().size(); ++p)
            EXPECT_LT(relative_error(parts.gradient(static_cast<int>(p)), whole.gradient(static_cast<int>(p))), 1e-12)
                << whole.parameters.specs()[p].name << ", " << split.size() << " chunks, first " << split[0];
        }
      }
    }
  }
}

TEST(Parameters, InitialValuesDoNotDependOnTheLayout) {
  const ModelConfig config = small_config(Residual::block_attnres, 3);
  Parameters one(config, DType::f32, 1, {}, nullptr), three(config, DType::f32, 3, {}, nullptr);
  one.initialise(7, 0.02);
  three.initialise(7, 0.02);
  for (size_t p = 0; p < one.specs().size(); ++p) {
    const TensorView a = one.value(static_cast<int>(p)), b = three.value(static_cast<int>(p));
    for (int64_t i = 0; i < a.num_elements(); ++i) ASSERT_EQ(get(a, i), get(b, i)) << one.specs()[p].name;
    if (one.specs()[p].init == Init::zeros) {
      EXPECT_EQ(get(a, 0), 0.0);
    }
  }
  Parameters other(config, DType::f32, 1, {}, nullptr);
  other.initialise(8, 0.02);
  EXPECT_NE(get(one.value("lm_head.weight"), 0), get(other.value("lm_head.weight"), 0));
}

// Kimi Linear's own starting points: A_log in [0, log 16], a time step softplus(dt_bias) in [1e-3, 1e-1], taps within 1/2.
TEST(Parameters, DecaysStartWhereTheyShould) {
  Parameters parameters(hybrid_config(Residual::standard, 2, 1, false), DType::f32, 1, {}, nullptr);
  parameters.initialise(7, 0.02);
  const auto each = [&](const std::string& name, double least, double most) {
    const TensorView x = parameters.value("model.layers.0.self_attn." + name);
    double smallest = INFINITY, largest = -INFINITY;
    for (int64_t i = 0; i < x.num_elements(); ++i) {
      const double value = name == "dt_bias" ? std::log1p(std::exp(get(x, i))) : get(x, i);
      smallest = std::min(smallest, value);
      largest = std::max(largest, value);
    }
    EXPECT_GE(smallest, least) << name;
    EXPECT_LE(largest, most) << name;
    EXPECT_GT(largest - smallest, (most - least) / 20) << name;
  };
  each("A_log", 0, std::log(16.0));
  each("dt_bias", 0.999e-3, 1.001e-1);
  each("q_conv1d.weight", -0.5, 0.5);
  Parameters bounded(hybrid_config(Residual::standard, 2, 1, true), DType::f32, 1, {}, nullptr);
  bounded.initialise(7, 0.02);
  EXPECT_EQ(get(bounded.value("model.layers.0.self_attn.A_log"), 0), 0.0);
}

TEST(Parameters, FusedMatricesAreTheirParts) {
  ModelConfig config = small_config(Residual::standard, 1);
  Parameters parameters(config, DType::f32, 2, {}, nullptr);
  parameters.initialise(1, 1.0);
  const TensorView gate = parameters.value("model.layers.0.mlp.gate_proj.weight");
  const TensorView both =
      parameters.fused_value("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(both.size(0), 2 * gate.size(0));
  EXPECT_EQ(get(both, gate.num_elements()), get(parameters.value("model.layers.0.mlp.up_proj.weight"), 0));
  const ModelConfig hybrid = hybrid_config(Residual::standard, 2, 1, false);
  Parameters mixed(hybrid, DType::f32, 2, {}, nullptr);
  mixed.initialise(1, 1.0);
  const std::string attention = "model.layers.0.self_attn.";
  const TensorView six = mixed.fused_value(attention + "q_proj.weight", attention + "b_proj.weight");
  EXPECT_EQ(six.shape, (Shape{3 * 32 + 2 * 16 + 2, 24}));
  EXPECT_EQ(get(six, 24 * (3 * 32 + 16)), get(mixed.value(attention + "g_a_proj.weight"), 0));
  const TensorView taps = mixed.fused_value(attention + "q_conv1d.weight", attention + "v_conv1d.weight");
  EXPECT_EQ(taps.shape, (Shape{3 * 32, 4}));
  EXPECT_EQ(get(taps, 2 * 32 * 4), get(mixed.value(attention + "v_conv1d.weight"), 0));
  // f_b_proj begins a matrix of its own.
  EXPECT_THROW(mixed.fused_value(attention + "q_proj.weight", attention + "f_b_proj.weight"), InternalError);
  EXPECT_THROW(parameters.fused_value("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"),
               InternalError);
  EXPECT_THROW((void)parameters.index_of("model.layers.9.mlp.gate_proj.weight"), InternalError);
}

TEST(CostModel, CountsTheMatricesThatATokenMeets) {
  ModelConfig c = small_config(Residual::block_attnres, 2);
  const FlopsPerToken untied = training_flops_per_token(c, 10);
  const double per_layer = 24.0 * (3 * 10 + 10 + 4) + 10.0 * 3 * 11 + 24.0 * 15 + 3.0 * 24 * 20;
  EXPECT_DOUBLE_EQ(untied.matrices, 6 * (2 * per_layer + 37.0 * 24));
  EXPECT_DOUBLE_EQ(untied.attention(), 3.0 * 2 * 3 * 10 * (6 + 4 + 5));
  c.tie_word_embeddings = true;
  EXPECT_DOUBLE_EQ(training_flops_per_token(c, 10).total(), untied.total());
}

}  // namespace
}  // namespace lamina::model
