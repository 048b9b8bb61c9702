// A step of the engine: data-parallel layouts against one rank, and the sharded optimizer against an unsharded one.
#include "trainer/step/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>

#include "core/base/rng.h"
#include "parallel/comm/thread.h"

namespace lamina {
namespace {

Config small(Precision precision, Residual residual = Residual::block_attnres) {
  Config c;
  c.run.seed = 3;
  c.model.vocab_size = 61;
  c.model.hidden_size = 32;
  c.model.num_hidden_layers = 3;
  c.model.residual = residual;
  c.model.attn_res_block_size = 2;
  c.model.num_attention_heads = 2;
  c.model.kv_lora_rank = 12;
  c.model.qk_nope_head_dim = 8;
  c.model.qk_rope_head_dim = 4;
  c.model.v_head_dim = 8;
  c.model.intermediate_size = 40;
  c.model.initializer_range = 0.2;
  c.data.seq_len = 10;
  c.train.global_batch_size = 12;
  c.train.micro_batch_size = 1;
  c.train.precision = precision;
  c.train.optimizer.lr = 1e-2;
  return c;
}

std::vector<int32_t> random_tokens(const Config& c, const char* stream) {
  const CounterRng rng(9, stream);
  std::vector<int32_t> tokens(static_cast<size_t>(c.train.global_batch_size * c.data.seq_len));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(c.model.vocab_size)));
  return tokens;
}

double element(const TensorView& x, int64_t i) {
  if (x.dtype == DType::f64) return static_cast<double*>(x.data)[i];
  if (x.dtype == DType::bf16) return static_cast<double>(static_cast<bf16*>(x.data)[i]);
  return static_cast<double>(static_cast<float*>(x.data)[i]);
}

using Tensors = std::map<std::string, std::vector<double>>;
struct Outcome {
  std::vector<double> losses;                  // per step
  std::vector<Tensors> gradients, parameters;  // per step: reduced gradients, parameters after the update
};

void collect_owned(Engine& engine, Tensors& out) {
  for (const OwnedSlice& slice : engine.optimizer().owned()) {
    const auto& spec = engine.parameters().specs()[static_cast<size_t>(slice.parameter)];
    std::vector<double>& values = out[spec.name];
    values.resize(static_cast<size_t>(spec.shape.num_elements()), std::nan(""));
    for (int64_t i = slice.begin; i < slice.end; ++i)
      values[static_cast<size_t>(i)] = element(slice.gradient, i - slice.begin);
  }
}

void collect_values(Engine& engine, Tensors& out) {
  for (size_t p = 0; p < engine.parameters().specs().size(); ++p) {
    const TensorView value = engine.parameters().value(static_cast<int>(p));
    std::vector<double>& values = out[engine.parameters().specs()[p].name];
    for (int64_t i = 0; i < value.num_elements(); ++i) values.push_back(element(value, i));
  }
}

Outcome train(const Config& c, int ranks, int steps) {
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  Outcome outcome;
  outcome.losses.resize(static_cast<size_t>(steps));
  outcome.gradients.resize(static_cast<size_t>(steps));
  outcome.parameters.resize(static_cast<size_t>(steps));
  std::mutex mutex;
  comm::run_threads(ranks, [&](comm::Communicator& comm) {
    Engine engine(c, comm, nullptr);
    engine.initialise();
    const size_t share = tokens.size() / static_cast<size_t>(comm.size()),
                 at = share * static_cast<size_t>(comm.rank());
    for (int step = 0; step < steps; ++step) {
      const auto s = static_cast<size_t>(step);
      double loss =
          engine.accumulate_gradients(std::span(tokens).subspan(at, share), std::span(targets).subspan(at, share),
                                      1.0 / static_cast<double>(tokens.size()));
      Stream stream;
      comm.all_reduce(TensorView(&loss, DType::f64, {1}), comm::ReduceOp::sum, stream).wait();
      {
        const std::lock_guard lock(mutex);
        collect_owned(engine, outcome.gradients[s]);
        outcome.losses[s] = loss / static_cast<double>(tokens.size());
      }
      engine.update(step + 1, c.train.optimizer.lr, 0.5);
      if (comm.rank() == comm.size() - 1) collect_values(engine, outcome.parameters[s]);
    }
  });
  return outcome;
}

double relative(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

void expect_close(const Tensors& a, const Tensors& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, values] : a) {
    ASSERT_EQ(values.size(), b.at(name).size()) << name;
    EXPECT_LE(relative(values, b.at(name)), tolerance) << name;
  }
}

// In double only the order of the sums over sequences differs: 1e-12. In fp32 it is a few roundings of each gradient.
TEST(Engine, DataParallelEqualsOneRank) {
  for (Residual residual : {Residual::standard, Residual::full_attnres, Residual::block_attnres, Residual::mhc}) {
    for (const auto& [precision, tolerance] : {std::pair{Precision::fp64, 1e-12}, std::pair{Precision::fp32, 2e-6}}) {
      const Config config = small(precision, residual);
      const Outcome one = train(config, 1, 2);
      for (int ranks : {2, 3, 4}) {
        const Outcome many = train(config, ranks, 2);
        EXPECT_NEAR(many.losses[0], one.losses[0], tolerance);
        EXPECT_NEAR(many.losses[1], one.losses[1], tolerance * 10);
        expect_close(many.gradients[0], one.gradients[0], tolerance);
      }
    }
  }
}

TEST(Engine, MicroBatchSizeChangesOnlyTheRounding) {
  Config config = small(Precision::fp64);
  const Outcome one = train(config, 1, 1);
  for (int64_t micro : {2, 3, 6, 12}) {
    config.train.micro_batch_size = micro;
    expect_close(train(config, 1, 1).gradients[0], one.gradients[0], 1e-12);
  }
}

TEST(Engine, TheSameLayoutGivesTheSameBits) {
  for (Precision precision : {Precision::fp32, Precision::bf16}) {
    const Config config = small(precision);
    const Outcome a = train(config, 3, 3), b = train(config, 3, 3);
    EXPECT_EQ(a.losses, b.losses);
    EXPECT_EQ(a.parameters, b.parameters);
  }
}

// ZeRO-1 against AdamW on whole tensors (arXiv 1711.05101), from the run's own gradients. Depth queries have a rate of their own.
TEST(Engine, ShardedUpdateEqualsUnshardedAdamW) {
  Config config = small(Precision::fp64);
  OptimizerConfig& o = config.train.optimizer;
  o.attn_res_lr_factor = 0.2;
  const Outcome outcome = train(config, 3, 3);
  model::Parameters initial(config.model, DType::f64, 1, {}, nullptr);
  initial.initialise(config.run.seed, config.model.initializer_range);
  for (size_t p = 0; p < initial.specs().size(); ++p) {
    const std::string& name = initial.specs()[p].name;
    const TensorView value = initial.value(static_cast<int>(p));
    const double lr = o.lr * (name.find("_res_") == std::string::npos ? 1.0 : 0.2);
    for (int64_t i = 0; i < value.num_elements(); ++i) {
      double w = element(value, i), m = 0, v = 0;
      for (size_t step = 0; step < 3; ++step) {
        const double g = 0.5 * outcome.gradients[step].at(name)[static_cast<size_t>(i)];
        const double t = static_cast<double>(step + 1);
        m = o.beta1 * m + (1 - o.beta1) * g;
        v = o.beta2 * v + (1 - o.beta2) * g * g;
        w = w * (1 - lr * o.weight_decay) -
            lr * (m / (1 - std::pow(o.beta1, t))) / (std::sqrt(v / (1 - std::pow(o.beta2, t))) + o.eps);
        ASSERT_NEAR(outcome.parameters[step].at(name)[static_cast<size_t>(i)], w, 1e-12 * (1 + std::abs(w)))
            << name << "[" << i << "]";
      }
    }
  }
}

// A bf16 run trains fp32 masters: the parameters are their roundings, whatever the number of ranks.
TEST(Engine, Bf16ParametersAreRoundedMasters) {
  const Config config = small(Precision::bf16);
  comm::run_threads(2, [&](comm::Communicator& comm) {
    Engine engine(config, comm, nullptr);
    engine.initialise();
    const std::vector<int32_t> tokens = random_tokens(config, "tokens");
    const size_t share = tokens.size() / 2, at = share * static_cast<size_t>(comm.rank());
    for (int step = 1; step <= 2; ++step) {
      engine.accumulate_gradients(std::span(tokens).subspan(at, share), std::span(tokens).subspan(at, share), 0.01);
      engine.update(step, 1e-2, 1.0);
      for (const OwnedSlice& slice : engine.optimizer().owned())
        for (int64_t i = 0; i < slice.value.num_elements(); ++i) {
          const double master = element(slice.master, i), value = element(slice.value, i);
          const double expected =
              slice.value.dtype == DType::bf16 ? static_cast<double>(bf16(static_cast<float>(master))) : master;
          ASSERT_EQ(value, expected);
        }
    }
  });
}

TEST(Engine, NamesTheFirstNonFiniteGradient) {
  const Config config = small(Precision::fp32);
  const auto comm = comm::make_self_communicator();
  Engine engine(config, *comm, nullptr);
  engine.initialise();
  const std::vector<int32_t> tokens = random_tokens(config, "tokens");
  engine.accumulate_gradients(tokens, tokens, 0.01);
  EXPECT_EQ(engine.first_non_finite_gradient(), "");
  static_cast<float*>(engine.parameters().gradient("model.layers.1.mlp.down_proj.weight").data)[3] = std::nanf("");
  static_cast<float*>(engine.parameters().gradient("model.norm.weight").data)[0] = INFINITY;
  EXPECT_EQ(engine.first_non_finite_gradient(), "model.layers.1.mlp.down_proj.weight");
}

TEST(Engine, LogitsIgnoreWhatComesAfter) {
  const Config config = small(Precision::fp32);
  const auto comm = comm::make_self_communicator();
  Engine engine(config, *comm, nullptr);
  engine.initialise();
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  const std::vector<float> logits = engine.next_token_logits(tokens);
  EXPECT_EQ(logits.size(), 61u);
  EXPECT_EQ(engine.next_token_logits(tokens), logits);
  EXPECT_NE(engine.next_token_logits(std::span(tokens).first(3)), logits);
}

}  // namespace
}  // namespace lamina
