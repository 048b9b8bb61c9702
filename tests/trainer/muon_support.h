// Some optimizer steps of a tiny Kimi Linear at any layout, in threads: gradients, observations, parameters and state.
#pragma once

#include <algorithm>

#include "core/device/cpu/parallel_for.h"
#include "tests/trainer/layout_support.h"
#include "trainer/checkpoint/checkpoint.h"

namespace lamina {

struct RankLayout {
  int pipeline = 1, data = 1, expert = 1;
  int num_ranks() const { return pipeline * data; }
};

inline std::string describe(const RankLayout& layout) {
  return fmt::format("pipeline {} data {} expert {}", layout.pipeline, layout.data, layout.expert);
}

// Both mixers, experts from the second layer on; a batch that 1, 2, 3 and 4 data-parallel ranks divide.
inline Config muon_config(Precision precision) {
  Config c = tiny_kimi_config(Residual::block_attnres, 4, 2);
  c.train.precision = precision;
  c.train.global_batch_size = 12;
  c.train.optimizer.name = OptimizerName::muon;
  return c;
}

inline Config with_ranks(Config c, const RankLayout& layout) {
  c.parallel.pipeline = layout.pipeline;
  c.parallel.data = layout.data;
  c.parallel.expert = layout.expert;
  return c;
}

// Elements [begin, end) of whole tensors, from wherever they are; each must come once.
inline void add_range(Tensors& out, const std::string& name, const Shape& shape, int64_t begin, int64_t end,
                      const TensorView& data) {
  const HostCopy host(data);
  std::vector<double>& values = out[name];
  values.resize(static_cast<size_t>(shape.num_elements()), std::nan(""));
  for (int64_t i = begin; i < end; ++i) {
    EXPECT_TRUE(std::isnan(values[static_cast<size_t>(i)])) << name << "[" << i << "] came twice";
    values[static_cast<size_t>(i)] = element_of(host.view(), i - begin);
  }
}

struct Training {
  struct Step {
    Tensors gradients, state;
    std::map<std::string, std::vector<double>> parameters;  // as every rank computes with them
    std::map<int64_t, std::vector<double>> expert_counts;   // by layer
  };
  std::vector<Step> steps;
};

// What the ranks run with is the same on all that hold it.
inline void collect_step(Engine& engine, Training::Step& step) {
  engine.context().stream.synchronize();
  const model::Parameters& parameters = engine.parameters();
  for (size_t p = 0; p < parameters.specs().size(); ++p) {
    if (!parameters.is_held(static_cast<int>(p))) continue;
    const HostCopy copy(parameters.value(static_cast<int>(p)));
    const TensorView& value = copy.view();
    std::vector<double> values;
    for (int64_t i = 0; i < value.num_elements(); ++i) values.push_back(element_of(value, i));
    const auto [at, is_new] = step.parameters.try_emplace(parameters.specs()[p].name, values);
    EXPECT_TRUE(is_new || at->second == values) << at->first;
  }
  for (const TensorPiece& piece : engine.optimizer().primary_state())
    add_range(step.state, piece.name, piece.shape, piece.begin, piece.end, piece.data);
  const std::vector<model::SublayerStats>& sublayers = engine.observations().sublayers;
  for (size_t s = 0; s < sublayers.size(); ++s)
    if (!sublayers[s].expert_counts.empty())
      step.expert_counts[static_cast<int64_t>(s) / 2] = sublayers[s].expert_counts;
}

inline void collect_gradients(Engine& engine, Tensors& out) {
  engine.context().stream.synchronize();
  for (const OwnedSlice& slice : engine.optimizer().owned()) {
    if (!engine.parameters().is_primary(slice.parameter)) continue;
    const model::ParameterSpec& spec = engine.parameters().specs()[static_cast<size_t>(slice.parameter)];
    add_range(out, spec.name, spec.shape, slice.begin, slice.end, slice.gradient);
  }
}

struct TrainingOptions {
  int64_t first_step = 1, last_step = 3;
  double grad_scale = 0.5, bias_rate = 1e-2;
  std::function<void(Engine&)> before, after;  // on each rank
};

inline Training train(const Config& base, const RankLayout& layout, const TrainingOptions& options = {}) {
  const Config c = with_ranks(base, layout);
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  Training training;
  training.steps.resize(static_cast<size_t>(options.last_step - options.first_step + 1));
  std::mutex mutex;
  comm::run_threads(layout.num_ranks(), [&](comm::Communicator& host) {
    cpu::set_num_threads(1);  // ranks are threads already
    const std::unique_ptr<comm::Communicator> staged = staged_for(c, host);
    comm::Communicator& comm = staged ? *staged : host;
    Engine engine(c, comm, nullptr);
    engine.initialise();
    if (options.before) options.before(engine);
    const size_t share = tokens.size() / static_cast<size_t>(layout.data);
    const size_t at = share * static_cast<size_t>(engine.place().dp_rank);
    for (int64_t step = options.first_step; step <= options.last_step; ++step) {
      engine.accumulate_gradients(std::span(tokens).subspan(at, share), std::span(targets).subspan(at, share),
                                  1.0 / static_cast<double>(tokens.size()));
      Training::Step& out = training.steps[static_cast<size_t>(step - options.first_step)];
      {
        const std::lock_guard lock(mutex);
        collect_gradients(engine, out.gradients);
      }
      engine.update(step, c.train.optimizer.lr, options.grad_scale, options.bias_rate);
      const std::lock_guard lock(mutex);
      collect_step(engine, out);
    }
    if (options.after) options.after(engine);
  });
  return training;
}

}  // namespace lamina
