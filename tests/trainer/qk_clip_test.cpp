// QK-Clip (MuonClip, Kimi K2, algorithm 1): after an update, a head whose largest logit exceeded the threshold reaches it on the
// same tokens; other heads, values and everything else stay as they are.
#include "tests/trainer/muon_support.h"

namespace lamina {
namespace {

constexpr RankLayout layouts[] = {{1, 1, 1}, {1, 3, 1}, {1, 4, 2}, {2, 2, 1}};

// The first layer's mixer is MLA: what it sees doesn't change when weights above it do.
Config clip_config(bool low_rank_query) {
  Config c = muon_config(Precision::fp64);
  c.model.mixers = {Mixer::mla, Mixer::kda, Mixer::mla};
  c.model.num_attention_heads = 3;
  c.model.initializer_range = 0.6;
  if (low_rank_query) c.model.q_lora_rank = 6;
  c.train.optimizer.lr = 0;  // the update itself changes nothing
  return c;
}

using LayerLogits = std::map<size_t, std::vector<double>>;  // sublayer -> [heads]

// Largest logits of a step, of that after it, and the heads that the update clipped, over all pipeline ranks.
struct Clipped {
  LayerLogits before, after;
  int heads = 0;
  Training training;
};

Clipped clip(Config c, const RankLayout& layout, double threshold) {
  c.train.optimizer.qk_clip = threshold;
  Clipped result;
  std::mutex mutex;
  const auto collect = [&](Engine& engine, LayerLogits& out) {
    const std::lock_guard lock(mutex);
    for (size_t s = 0; s < engine.observations().sublayers.size(); ++s) {
      const std::vector<double>& logits = engine.observations().sublayers[s].max_logits;
      if (logits.empty()) continue;
      EXPECT_TRUE(!out.contains(s) || out[s] == logits) << "the ranks of one layer see the same";
      out[s] = logits;
    }
  };
  TrainingOptions options;
  options.last_step = 1;
  options.bias_rate = 0;
  options.after = [&](Engine& engine) {
    collect(engine, result.before);
    {
      const std::lock_guard lock(mutex);
      if (engine.place().dp_rank == 0) result.heads += engine.observations().clipped_heads;
    }
    const Config& config = engine.config();
    const std::vector<int32_t> tokens = random_tokens(config, "tokens"), targets = random_tokens(config, "targets");
    const size_t share = tokens.size() / static_cast<size_t>(layout.data);
    const size_t at = share * static_cast<size_t>(engine.place().dp_rank);
    engine.accumulate_gradients(std::span(tokens).subspan(at, share), std::span(targets).subspan(at, share), 1);
    collect(engine, result.after);
  };
  result.training = train(c, layout, options);
  return result;
}

// Rows of one head of a matrix [heads * rows of a head, columns], times `factor` where one is expected.
void expect_rows(const std::vector<double>& found, const std::vector<double>& initial, int64_t begin, int64_t end,
                 int64_t columns, double factor, const std::string& what) {
  for (int64_t i = begin * columns; i < end * columns; ++i) {
    const auto at = static_cast<size_t>(i);
    if (factor == 1)
      ASSERT_EQ(found[at], initial[at]) << what;
    else
      ASSERT_NEAR(found[at], factor * initial[at], 1e-15) << what;
  }
}

void expect_scaled_weights(const Config& c, const Clipped& clipped, double threshold, const std::string& where) {
  model::Parameters initial(c.model, DType::f64, 1, {}, nullptr);
  initial.initialise(c.run.seed, c.model.initializer_range);
  const int64_t nope = c.model.qk_nope_head_dim, rope = c.model.qk_rope_head_dim, v = c.model.v_head_dim;
  for (const auto& [name, found] : clipped.training.steps[0].parameters) {
    const TensorView value = initial.value(name);
    const std::vector<double> before(value.as<double>(), value.as<double>() + value.num_elements());
    const int64_t layer = initial.specs()[static_cast<size_t>(initial.index_of(name))].site / 2;
    const auto logits = clipped.before.find(static_cast<size_t>(2 * layer));
    const bool query = name.ends_with(c.model.q_lora_rank ? "q_b_proj.weight" : "self_attn.q_proj.weight");
    const bool key = name.ends_with("kv_b_proj.weight");
    if ((!query && !key) || logits == clipped.before.end()) {
      ASSERT_EQ(found, before) << name << " at " << where;
      continue;
    }
    const int64_t columns = value.size(1);
    for (int64_t head = 0; head < c.model.num_attention_heads; ++head) {
      const double logit = logits->second[static_cast<size_t>(head)];
      const double factor = logit > threshold ? threshold / logit : 1, root = factor == 1 ? 1 : std::sqrt(factor);
      const std::string what = fmt::format("{} head {} at {}", name, head, where);
      const int64_t row = head * (nope + (query ? rope : v));
      expect_rows(found, before, row, row + nope, columns, root, what);
      if (query)
        expect_rows(found, before, row + nope, row + nope + rope, columns, factor, what + ", the shared part");
      else
        expect_rows(found, before, row + nope, row + nope + v, columns, 1, what + ", values");
    }
  }
}

TEST(QkClip, HeadsAboveTheThresholdReachIt) {
  for (const bool low_rank_query : {false, true}) {
    const Config c = clip_config(low_rank_query);
    const Clipped untouched = clip(c, {1, 1, 1}, 1e6);
    EXPECT_EQ(untouched.heads, 0);
    EXPECT_EQ(untouched.after, untouched.before);
    ASSERT_EQ(untouched.before.size(), 3u);  // layers 0, 2 and 3
    const std::vector<double>& logits = untouched.before.at(0);
    std::vector<double> sorted = logits;
    std::sort(sorted.begin(), sorted.end());
    ASSERT_GT(sorted[0], 0);
    const double threshold = (sorted[0] + sorted[1]) / 2;  // one head below, two above
    int above = 0;
    for (const auto& [sublayer, of_heads] : untouched.before)
      for (double logit : of_heads) above += logit > threshold;
    for (const RankLayout& layout : layouts) {
      const std::string where =
          fmt::format("{}, {}", describe(layout), low_rank_query ? "low-rank query" : "one query");
      const Clipped clipped = clip(c, layout, threshold);
      EXPECT_EQ(clipped.heads, above) << where;
      for (size_t head = 0; head < logits.size(); ++head) {
        EXPECT_NEAR(clipped.before.at(0)[head], logits[head], 1e-12 * logits[head]) << where;
        EXPECT_NEAR(clipped.after.at(0)[head], std::min(logits[head], threshold), 1e-12 * threshold) << where;
      }
      expect_scaled_weights(c, clipped, threshold, where);
    }
  }
}

// The masters are what continues: a bf16 run scales them, and rounds the parameters from them.
TEST(QkClip, ScalesMasters) {
  Config c = clip_config(false);
  c.train.precision = Precision::bf16;
  const Clipped untouched = clip(c, {1, 2, 1}, 1e6);
  double threshold = INFINITY;
  for (double logit : untouched.before.at(0)) threshold = std::min(threshold, 0.9 * logit);
  ASSERT_GT(threshold, 0);
  const Clipped clipped = clip(c, {1, 2, 1}, threshold);
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  const std::vector<double>& master = clipped.training.steps[0].state.at("parameters/" + name);
  const std::vector<double>& before = untouched.training.steps[0].state.at("parameters/" + name);
  const std::vector<double>& value = clipped.training.steps[0].parameters.at(name);
  const int64_t d_qk = c.model.qk_nope_head_dim + c.model.qk_rope_head_dim;
  for (size_t i = 0; i < master.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / c.model.hidden_size;
    const double factor = threshold / clipped.before.at(0)[static_cast<size_t>(row / d_qk)];
    ASSERT_LT(factor, 1);
    const double expected = before[i] * (row % d_qk < c.model.qk_nope_head_dim ? std::sqrt(factor) : factor);
    ASSERT_NEAR(master[i], expected, 2e-7 * std::abs(expected));
    ASSERT_EQ(value[i], static_cast<double>(bf16(static_cast<float>(master[i]))));
  }
}

TEST(QkClip, ZeroTurnsItOff) {
  const Config c = clip_config(false);
  EXPECT_EQ(clip(c, {1, 1, 1}, 0).heads, 0);
  Config adamw = c;
  adamw.train.optimizer.name = OptimizerName::adamw;
  EXPECT_EQ(clip(adamw, {1, 1, 1}, 1e-3).heads, 0);
}

}  // namespace
}  // namespace lamina
