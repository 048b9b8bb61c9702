// Muon over ranks: the parameters of one rank, which are those of the algorithm written out; each matrix orthogonalised once in
// the job; state that is saved at one layout and continues at another.
#include "model/optimizers/muon.h"

#include <set>

#include "core/ops/optimizer/implementations.h"
#include "tests/trainer/checkpoint_support.h"
#include "tests/trainer/muon_support.h"

namespace lamina {
namespace {

constexpr RankLayout layouts[] = {{1, 2, 1}, {1, 2, 2}, {1, 3, 1}, {1, 4, 1}, {1, 4, 2}, {1, 4, 4}, {2, 2, 2}};

bool ends_with_any(const std::string& name, std::initializer_list<const char*> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](const char* ending) { return name.ends_with(ending); });
}

// The matrices of linear layers, by their names: neither embedding nor head, nor depth queries and convolutions.
bool takes_muon(const std::string& name) {
  if (ends_with_any(name, {"_res_proj.weight"})) return false;
  return ends_with_any(
      name, {"_proj.weight", "kv_a_proj_with_mqa.weight", "gate.weight", ".w1.weight", ".w2.weight", ".w3.weight"});
}
bool is_bias(const std::string& name) {
  return name.ends_with("e_score_correction_bias");
}

void expect_close(const Tensors& found, const Tensors& expected, double tolerance, const std::string& where) {
  const auto [difference, name] = worst_difference(found, expected);
  EXPECT_EQ(found.size(), expected.size()) << where;
  EXPECT_LE(difference, tolerance) << name << " at " << where;
}

class Orthogonaliser {
 public:
  std::vector<double> operator()(std::vector<double> x, int64_t rows, int64_t columns) {
    ops::ref::newton_schulz(ctx_, {TensorView(x.data(), DType::f64, {1, rows, columns}), DType::f64});
    return x;
  }

 private:
  Stream stream_;
  Arena scratch_{{}, nullptr, "scratch"};
  ops::RefusalLog refusals_;
  ops::OpContext ctx_{stream_, scratch_, refusals_, ops::Backend::reference};
};

// Depth queries and their norms; at this width and rate the default factor would be one.
constexpr double depth_factor = 0.2;

struct Rule {
  bool muon = false;
  double lr_factor = 1, weight_decay = 0;
};

Rule plain_rule(const std::string& name, const OptimizerConfig& o) {
  const bool is_depth = ends_with_any(name, {"_res_proj.weight", "_res_norm.weight"});
  return {takes_muon(name), is_depth ? depth_factor : 1,
          ends_with_any(name, {"A_log", "dt_bias"}) ? 0 : o.weight_decay};
}

// What groups_of_all_kinds() asks for, by hand.
Rule grouped_rule(const std::string& name, const OptimizerConfig& o) {
  Rule rule = plain_rule(name, o);
  if (name == "model.layers.2.mlp_res_proj.weight") rule.lr_factor = 3;
  if (name.find("layers.1.") != std::string::npos) rule.weight_decay = 0.5;
  if (name.find(".experts.") != std::string::npos) {
    rule.lr_factor = 0.5;
    if (name.ends_with("w2.weight")) rule.muon = false;
  }
  if (name == "lm_head.weight") {
    rule.muon = true;
    rule.lr_factor = 0.25;
  }
  if (name == "model.embed_tokens.weight") rule.lr_factor = 0;
  return rule;
}

Config groups_of_all_kinds(Config c) {
  OptimizerConfig& o = c.train.optimizer;
  o.attn_res_lr_factor = depth_factor;
  o.groups = {{"*.experts.*", 0.5, {}, {}},
              {"*.experts.*.w2.weight", {}, {}, OptimizerName::adamw},
              {"model.layers.1.*", {}, 0.5, {}},
              {"model.layers.2.mlp_res_proj.weight", 3, {}, {}},
              {"lm_head.weight", 0.25, {}, OptimizerName::muon},
              {"model.embed_tokens.weight", 0, {}, {}}};
  return c;
}

// One tensor under the rules of arXiv 2502.16982 (algorithm 1 and section 2.2) and 1711.05101.
class Unsharded {
 public:
  Unsharded(const OptimizerConfig& config, const Rule& rule, const Shape& shape, std::vector<double> initial)
      : config_(config), rule_(rule), shape_(shape), w_(std::move(initial)), m_(w_.size()), v_(w_.size()) {}

  void step(int64_t step, const std::vector<double>& gradient, double grad_scale, Orthogonaliser& orthogonalise) {
    const OptimizerConfig& o = config_;
    const double lr = o.lr * rule_.lr_factor, decay = 1 - lr * rule_.weight_decay;
    if (rule_.muon) {
      std::vector<double> update(w_.size());
      for (size_t i = 0; i < w_.size(); ++i) {
        m_[i] = o.momentum * m_[i] + grad_scale * gradient[i];
        update[i] = grad_scale * gradient[i] + o.momentum * m_[i];
      }
      update = orthogonalise(update, shape_[0], shape_[1]);
      const double size = 0.2 * std::sqrt(static_cast<double>(std::max(shape_[0], shape_[1])));
      for (size_t i = 0; i < w_.size(); ++i) w_[i] = decay * w_[i] - lr * size * update[i];
      return;
    }
    for (size_t i = 0; i < w_.size(); ++i) {
      const double g = grad_scale * gradient[i], t = static_cast<double>(step);
      m_[i] = o.beta1 * m_[i] + (1 - o.beta1) * g;
      v_[i] = o.beta2 * v_[i] + (1 - o.beta2) * g * g;
      w_[i] = decay * w_[i] -
              lr * (m_[i] / (1 - std::pow(o.beta1, t))) / (std::sqrt(v_[i] / (1 - std::pow(o.beta2, t))) + o.eps);
    }
  }

  // The selection bias: towards the mean load, the biases' mean unchanged (2502.16982, appendix C).
  void balance(const std::vector<double>& counts, double rate) {
    double mean = 0, mean_sign = 0;
    const auto n = static_cast<double>(counts.size());
    for (double count : counts) mean += count;
    mean /= n;
    const auto sign = [&](double count) { return count < mean ? 1.0 : count > mean ? -1.0 : 0.0; };
    for (double count : counts) mean_sign += sign(count) / n;
    for (size_t e = 0; e < counts.size(); ++e) w_[e] += rate * (sign(counts[e]) - mean_sign);
  }

  const std::vector<double>& value() const { return w_; }

 private:
  OptimizerConfig config_;
  Rule rule_;
  Shape shape_;
  std::vector<double> w_, m_, v_;
};

// From the run's own gradients, in double: a few roundings of each sum. Returns how many tensors Muon updated.
int expect_the_algorithm(const Config& config, Rule (*rule_of)(const std::string&, const OptimizerConfig&)) {
  const TrainingOptions options;
  const Training training = train(config, {1, 4, 2});
  model::Parameters initial(config.model, DType::f64, 1, {}, nullptr);
  initial.initialise(config.run.seed, config.model.initializer_range);
  Orthogonaliser orthogonalise;
  int muon = 0, moved_biases = 0;
  for (size_t p = 0; p < initial.specs().size(); ++p) {
    const model::ParameterSpec& spec = initial.specs()[p];
    const TensorView value = initial.value(static_cast<int>(p));
    const Rule rule = rule_of(spec.name, config.train.optimizer);
    Unsharded expected(config.train.optimizer, rule, spec.shape,
                       {value.as<double>(), value.as<double>() + value.num_elements()});
    muon += rule.muon;
    EXPECT_EQ(takes_muon(spec.name), spec.is_linear) << spec.name;
    for (size_t s = 0; s < training.steps.size(); ++s) {
      const Training::Step& step = training.steps[s];
      if (is_bias(spec.name)) {
        const std::vector<double>& counts = step.expert_counts.at(spec.site / 2);
        expected.balance(counts, options.bias_rate);
        double sum = 0, tokens = 0;
        for (double bias : step.parameters.at(spec.name)) sum += bias;
        for (double count : counts) tokens += count;
        EXPECT_NEAR(sum, 0, 1e-15) << spec.name;
        EXPECT_EQ(tokens, static_cast<double>(config.train.global_batch_size * config.data.seq_len *
                                              config.model.num_experts_per_token));
        moved_biases += step.parameters.at(spec.name) != std::vector<double>(counts.size(), 0);
      } else {
        expected.step(static_cast<int64_t>(s) + 1, step.gradients.at(spec.name), options.grad_scale, orthogonalise);
      }
      expect_close({{spec.name, step.parameters.at(spec.name)}}, {{spec.name, expected.value()}}, 1e-12, spec.name);
    }
  }
  EXPECT_EQ(moved_biases, 9);
  return muon;
}

TEST(MuonTraining, ShardedUpdateEqualsTheAlgorithmWrittenOut) {
  Config config = muon_config(Precision::fp64);
  config.train.optimizer.attn_res_lr_factor = depth_factor;
  // Four layers: three of KDA with nine matrices, one of MLA with four; a dense MLP, three MoE with a router, a shared and
  // four experts of three matrices.
  EXPECT_EQ(expect_the_algorithm(config, plain_rule), 3 * 9 + 4 + 3 + 3 * (1 + 3 + 4 * 3));
}

TEST(OptimizerGroups, ShardedUpdateEqualsTheAlgorithmWrittenOut) {
  const Config config = groups_of_all_kinds(muon_config(Precision::fp64));
  // Without one of the three matrices of twelve experts, with the head.
  EXPECT_EQ(expect_the_algorithm(config, grouped_rule), 3 * 9 + 4 + 3 + 3 * (1 + 3 + 4 * 3) - 12 + 1);
}

// Depth queries start at zero; so near to it a rounding of AdamW's step would be large beside the value.
void expect_every_layout_alike(const std::function<Config(Config)>& change) {
  TrainingOptions options;
  options.before = move_depth_queries;
  for (const auto& [precision, tolerance] : {std::pair{Precision::fp64, 1e-12}, std::pair{Precision::fp32, 1e-6}}) {
    const Config config = change(muon_config(precision));
    const Training one = train(config, {1, 1, 1}, options);
    for (const RankLayout& layout : layouts) {
      const Training many = train(config, layout, options);
      for (size_t s = 0; s < 3; ++s) {
        EXPECT_EQ(many.steps[s].expert_counts, one.steps[s].expert_counts) << describe(layout);
        expect_close(many.steps[s].parameters, one.steps[s].parameters, tolerance,
                     fmt::format("{}, step {}", describe(layout), s + 1));
      }
    }
  }
}

TEST(MuonTraining, EveryLayoutTrainsTheParametersOfOneRank) {
  expect_every_layout_alike([](Config c) { return c; });
}

TEST(OptimizerGroups, EveryLayoutTrainsTheParametersOfOneRank) {
  expect_every_layout_alike(groups_of_all_kinds);
}

// A tied matrix is updated on the ranks of both ends, by the same bits (collect_step compares all that hold it).
TEST(OptimizerGroups, TheTwoRanksOfATiedEmbeddingStayAlike) {
  for (const OptimizerName rule : {OptimizerName::adamw, OptimizerName::muon})
    for (const Precision precision : {Precision::fp32, Precision::bf16}) {
      Config c = muon_config(precision);
      c.model.tie_word_embeddings = true;
      c.train.optimizer.groups = {{"model.embed_tokens.weight", 0.25, 0.0, rule}};
      const Training training = train(c, {2, 2, 1});
      EXPECT_EQ(training.steps[2].state.contains("optimizer/momentum/model.embed_tokens.weight"),
                rule == OptimizerName::muon);
    }
}

TEST(MuonTraining, NoBiasRateLeavesTheBias) {
  TrainingOptions options;
  options.bias_rate = 0;
  const Training training = train(muon_config(Precision::fp64), {1, 2, 2}, options);
  const std::string name = "model.layers.2.block_sparse_moe.gate.e_score_correction_bias";
  EXPECT_EQ(training.steps[2].parameters.at(name), std::vector<double>(4, 0.0));
}

TEST(MuonTraining, EveryMatrixIsOrthogonalisedOnceInTheJob) {
  for (const RankLayout& layout : layouts) {
    std::mutex mutex;
    std::map<std::string, int> owners;
    std::set<std::string> linear;
    TrainingOptions options;
    options.last_step = 0;
    options.after = [&](Engine& engine) {
      const std::lock_guard lock(mutex);
      const std::vector<model::ParameterSpec>& specs = engine.parameters().specs();
      for (const model::ParameterSpec& spec : specs)
        if (takes_muon(spec.name)) linear.insert(spec.name);
      for (size_t g = 0; g < model::num_groups; ++g) {
        const auto group = static_cast<model::Group>(g);
        const auto* muon =
            dynamic_cast<const model::MuonUpdate*>(engine.optimizer().update(OptimizerName::muon, group));
        if (group == model::Group::vectors) {
          EXPECT_EQ(muon, nullptr);
          continue;
        }
        ASSERT_NE(muon, nullptr);
        const bool experts = group == model::Group::experts;
        const int rank = experts ? engine.place().dp_rank / layout.expert : engine.place().dp_rank;
        EXPECT_EQ(muon->plan().num_ranks, experts ? layout.data / layout.expert : layout.data);
        size_t matrix = 0;
        for (int spec : engine.parameters().group(group).spec_of)
          if (specs[static_cast<size_t>(spec)].is_linear && muon->plan().owner[matrix++] == rank)
            ++owners[specs[static_cast<size_t>(spec)].name];
        EXPECT_EQ(matrix, muon->plan().owner.size());
        std::vector<int> rounds_of(matrix, 0);
        for (const model::MuonPlan::Round& round : muon->plan().rounds)
          for (const std::vector<int>& of_owner : round.matrices)
            for (int m : of_owner) ++rounds_of[static_cast<size_t>(m)];
        EXPECT_EQ(rounds_of, std::vector<int>(matrix, 1));
      }
    };
    train(muon_config(Precision::fp32), layout, options);
    EXPECT_EQ(owners.size(), linear.size()) << describe(layout);
    for (const auto& [name, count] : owners) EXPECT_EQ(count, 1) << name << " at " << describe(layout);
  }
}

TEST(MuonTraining, AdamWHasNoMatricesToOrthogonalise) {
  Config config = muon_config(Precision::fp32);
  config.train.optimizer.name = OptimizerName::adamw;
  TrainingOptions options;
  options.after = [&](Engine& engine) {
    for (size_t g = 0; g < model::num_groups; ++g)
      EXPECT_EQ(engine.optimizer().update(OptimizerName::muon, static_cast<model::Group>(g)), nullptr);
    EXPECT_EQ(engine.observations().clipped_heads, 0);
  };
  const Training training = train(config, {1, 2, 2}, options);
  for (const auto& [name, values] : training.steps[0].state)
    EXPECT_FALSE(name.starts_with("optimizer/momentum")) << name;
}

// Momentum of the matrices, both moments of the rest, none of the bias; whole tensors, each element from one rank.
TEST(MuonTraining, StateIsWholeAndNamedByItsRule) {
  for (const RankLayout& layout : layouts) {
    const Training training = train(muon_config(Precision::bf16), layout);
    const Tensors& state = training.steps[0].state;
    std::set<std::string> expected;
    for (const auto& [name, values] : training.steps[0].parameters) {
      expected.insert("parameters/" + name);
      if (takes_muon(name)) {
        expected.insert("optimizer/momentum/" + name);
      } else if (!is_bias(name)) {
        expected.insert("optimizer/m/" + name);
        expected.insert("optimizer/v/" + name);
      }
    }
    std::set<std::string> found;
    for (const auto& [name, values] : state) {
      found.insert(name);
      for (double value : values) EXPECT_TRUE(std::isfinite(value)) << name << " at " << describe(layout);
    }
    EXPECT_EQ(found, expected) << describe(layout);
  }
}

// Saved after two steps, the third is bit for bit what it would have been at the same layout, and within rounding at another.
void expect_state_to_continue(const Config& config) {
  const testing_checkpoint::TemporaryFolder folder;
  const RankLayout from{1, 2, 2};
  TrainingOptions two;
  two.last_step = 2;
  two.after = [&](Engine& engine) {
    CheckpointInfo info;
    info.step = 2;
    save_checkpoint(folder.path(), info, engine.optimizer().primary_state(), engine.world(), 0);
  };
  const Training saved = train(config, from, two), whole = train(config, from);
  for (const RankLayout& layout : {from, RankLayout{1, 1, 1}, RankLayout{1, 4, 4}, RankLayout{2, 3, 1}}) {
    std::mutex mutex;
    Tensors loaded;
    TrainingOptions third;
    third.first_step = 3;
    third.before = [&](Engine& engine) {
      load_checkpoint(folder.path() / "step-00000002", engine.optimizer().state());
      engine.publish();
      const std::lock_guard lock(mutex);
      for (const TensorPiece& piece : engine.optimizer().primary_state())
        add_range(loaded, piece.name, piece.shape, piece.begin, piece.end, piece.data);
    };
    const Training rest = train(config, layout, third);
    EXPECT_EQ(loaded, saved.steps[1].state) << describe(layout);
    if (layout.num_ranks() == from.num_ranks()) {
      EXPECT_EQ(rest.steps[0].parameters, whole.steps[2].parameters);
      EXPECT_EQ(rest.steps[0].state, whole.steps[2].state);
    } else {
      expect_close(rest.steps[0].parameters, whole.steps[2].parameters, 1e-12, describe(layout));
    }
  }
}

TEST(MuonTraining, StateContinuesAtAnotherLayout) {
  expect_state_to_continue(muon_config(Precision::fp64));
}

TEST(OptimizerGroups, StateContinuesAtAnotherLayout) {
  expect_state_to_continue(groups_of_all_kinds(muon_config(Precision::fp64)));
}

}  // namespace
}  // namespace lamina
