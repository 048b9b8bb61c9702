// The real stages of a pipeline, in threads and in double, with hooks for faults; and what one rank computes.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "parallel/comm/thread.h"
#include "tests/model/model_support.h"

namespace lamina::model {

using pipeline::ActionKind;
using GradientsByName = std::map<std::string, std::vector<double>>;

struct Layout {
  Residual residual = Residual::block_attnres;
  int64_t block_size = 1;
  std::vector<int64_t> layers = {1, 1, 1, 1};
  int num_ranks = 2, num_microbatches = 3;
  ScheduleName schedule = ScheduleName::interleaved_1f1b;
  BlockTransport transport = BlockTransport::cached;

  int num_chunks() const { return static_cast<int>(layers.size()); }
  ModelConfig config() const {
    int64_t sum = 0;
    for (int64_t count : layers) sum += count;
    ModelConfig c = small_config(residual, sum, block_size);
    c.vocab_size = 11;
    c.hidden_size = 8;
    return c;
  }
  pipeline::Program program() const {
    return pipeline::lower(pipeline::make_schedule(schedule, num_ranks, num_chunks(), num_microbatches), num_chunks());
  }
};

// A stage whose messages a test may change on their way out.
class Tampering final : public pipeline::ChunkRunner {
 public:
  using Hook = std::function<void(int chunk, int microbatch, pipeline::HopViews& views)>;
  explicit Tampering(Stage& stage) : stage_(stage) {}
  void run(const pipeline::Action& action) override {
    stage_.run(action);
    if (after) after(action);
  }
  void receive_forward(int c, int m, pipeline::HopViews& views) override { stage_.receive_forward(c, m, views); }
  void send_forward(int c, int m, pipeline::HopViews& views) override {
    stage_.send_forward(c, m, views);
    if (forward) forward(c, m, views);
  }
  void sent_forward(int c, int m) override { stage_.sent_forward(c, m); }
  void receive_backward(int c, int m, pipeline::HopViews& views) override { stage_.receive_backward(c, m, views); }
  void send_backward(int c, int m, pipeline::HopViews& views) override {
    stage_.send_backward(c, m, views);
    if (backward) backward(c, m, views);
  }
  void sent_backward(int c, int m) override { stage_.sent_backward(c, m); }

  Hook forward, backward;
  std::function<void(const pipeline::Action&)> after;

 private:
  Stage& stage_;
};

struct Faults {
  std::function<void(StagePlan&)> plan = {};
  std::function<void(Tampering&, Stage&)> runner = {};  // of every rank
  const pipeline::Program* program = nullptr;
  double timeout_seconds = 60;
};

inline void randomise(Parameters& parameters) {
  for (size_t p = 0; p < parameters.specs().size(); ++p) {
    const ParameterSpec& spec = parameters.specs()[p];
    if (!parameters.is_held(static_cast<int>(p))) continue;
    const TensorView value = parameters.value(static_cast<int>(p));
    const CounterRng rng(11, spec.name);
    for (int64_t i = 0; i < value.num_elements(); ++i)
      set(value, i, (spec.init == Init::ones ? 1.0 : 0.0) + 0.4 * rng.normal(static_cast<uint64_t>(i)));
  }
}

// One rank of a pipeline, in double.
class Rank {
 public:
  Rank(const Layout& layout, const StagePlan& plan, int rank)
      : config_(layout.config()),
        scratch_({}, &ledger, "scratch"),
        ctx_{stream_, scratch_, refusals_, ops::Backend::fastest},
        parameters(config_, local_parameters(config_, plan, rank), DType::f64, {}, {}, &ledger),
        stage({config_, DType::f64, Recompute::none, {}, &ledger}, plan, rank, shape_.num_tokens(), parameters),
        tokens_(static_cast<size_t>(shape_.num_tokens() * layout.num_microbatches)),
        targets_(tokens_.size()),
        losses_(tokens_.size()) {
    randomise(parameters);
    const CounterRng rng(5, "tokens");
    for (size_t i = 0; i < tokens_.size(); ++i) {
      tokens_[i] = static_cast<int32_t>(rng.below(2 * i, static_cast<uint64_t>(config_.vocab_size)));
      targets_[i] = static_cast<int32_t>(rng.below(2 * i + 1, static_cast<uint64_t>(config_.vocab_size)));
    }
    pass_.shape = shape_;
    pass_.num_microbatches = layout.num_microbatches;
    const auto count = static_cast<int64_t>(tokens_.size());
    pass_.tokens = TensorView(tokens_.data(), DType::i32, {count});
    pass_.targets = TensorView(targets_.data(), DType::i32, {count});
    pass_.token_loss = TensorView(losses_.data(), DType::f64, {count});
    pass_.grad_scale = 1.0 / static_cast<double>(count);
  }

  // Sum of the token losses; 0 without the last chunk.
  double run(pipeline::Executor& executor, const std::vector<pipeline::Step>& steps, bool train) {
    pass_.train = train;
    pass_.progress = [&executor] { executor.progress(); };
    {
      Stream stream;
      parameters.zero_gradients(stream);
    }
    std::fill(losses_.begin(), losses_.end(), 0.0);
    stage.begin(ctx_, pass_);
    executor.run(steps, stream_);
    stage.end();
    scratch_.reset();
    double sum = 0;
    for (double loss : losses_) sum += loss;
    return sum * pass_.grad_scale;
  }

  MemoryLedger ledger;

 private:
  ModelConfig config_;
  Batch shape_{1, 5};
  Stream stream_;
  Arena scratch_;
  ops::RefusalLog refusals_;
  ops::OpContext ctx_;

 public:
  Parameters parameters;
  Stage stage;

 private:
  std::vector<int32_t> tokens_, targets_;
  std::vector<double> losses_;
  Stage::Pass pass_;
};

inline StagePlan plan_of(const Layout& layout) {
  return make_stage_plan(layout.config(), layout.layers, layout.num_ranks, layout.transport);
}

inline GradientsByName gradients_of(const Layout& layout, const Faults& faults = {}) {
  StagePlan plan = plan_of(layout);
  if (faults.plan) faults.plan(plan);
  const pipeline::Program program = faults.program ? *faults.program : layout.program();
  GradientsByName out;
  std::mutex mutex;
  comm::CommunicatorOptions options;
  options.timeout_seconds = faults.timeout_seconds;
  comm::run_threads(
      layout.num_ranks,
      [&](comm::Communicator& comm) {
        Rank rank(layout, plan, comm.rank());
        Tampering runner(rank.stage);
        if (faults.runner) faults.runner(runner, rank.stage);
        pipeline::Executor executor(comm, runner, layout.num_chunks());
        const double loss = rank.run(executor, program[static_cast<size_t>(comm.rank())], true);
        const std::lock_guard lock(mutex);
        if (rank.stage.has_last_chunk()) out["loss"] = {loss};
        for (size_t p = 0; p < rank.parameters.specs().size(); ++p) {
          if (!rank.parameters.is_primary(static_cast<int>(p))) continue;
          const TensorView g = rank.parameters.gradient(static_cast<int>(p));
          std::vector<double>& values = out[rank.parameters.specs()[p].name];
          for (int64_t i = 0; i < g.num_elements(); ++i) values.push_back(get(g, i));
        }
      },
      options);
  return out;
}

inline const GradientsByName& one_rank(const Layout& layout) {
  static std::map<std::tuple<Residual, int64_t, std::vector<int64_t>, int>, GradientsByName> results;
  const auto key = std::tuple(layout.residual, layout.block_size, layout.layers, layout.num_microbatches);
  if (const auto found = results.find(key); found != results.end()) return found->second;
  Layout one = layout;
  one.num_ranks = 1;
  one.layers = {layout.config().num_hidden_layers};
  one.schedule = ScheduleName::gpipe;
  return results.emplace(key, gradients_of(one)).first->second;
}

inline double difference(const GradientsByName& found, const GradientsByName& expected) {
  double worst = found.size() == expected.size() ? 0 : INFINITY;
  for (const auto& [name, values] : expected) {
    const auto at = found.find(name);
    if (at == found.end() || at->second.size() != values.size()) return INFINITY;
    const double error = relative_error(at->second, values);
    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
  }
  return worst;
}

// What a fault led to: the message of an error, or how far the gradients are off.
struct Outcome {
  std::string message;
  double error = 0;
};
inline Outcome outcome_of(const Layout& layout, const Faults& faults) {
  try {
    return {"", difference(gradients_of(layout, faults), one_rank(layout))};
  } catch (const std::exception& failure) {
    return {failure.what(), 0};
  }
}

inline constexpr double rounding = 1e-12, visible = 1e-6;

inline const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = [] {
    std::vector<Layout> list(6);
    list[1].schedule = ScheduleName::zero_bubble;
    list[2].transport = BlockTransport::full;
    list[3].residual = Residual::full_attnres;
    list[3].layers = {0, 2, 1, 1};
    list[4].num_ranks = 3;
    list[4].layers = {1, 2, 1, 1, 1, 1};
    list[4].block_size = 2;
    list[5].residual = Residual::mhc;
    list[5].layers = {0, 2, 1, 1};
    list[5].schedule = ScheduleName::zero_bubble;
    return list;
  }();
  return all;
}

}  // namespace lamina::model
