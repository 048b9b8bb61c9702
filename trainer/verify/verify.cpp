#include "trainer/verify/verify.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <set>

#include "configs/schema/decode.h"
#include "core/base/clock.h"
#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/tensor/host_copy.h"
#include "data/sampler.h"
#include "model/cost_model.h"
#include "model/plan.h"
#include "parallel/comm/staged.h"
#include "parallel/comm/thread.h"
#include "parallel/pipeline/block_routes.h"
#include "parallel/pipeline/simulate.h"
#include "trainer/record/identity.h"
#include "trainer/step/bf16_choice.h"
#include "trainer/step/restore.h"

namespace lamina {
namespace {

using Gradients = std::map<std::string, std::vector<double>>;

// ---- One step ----

struct Batch {
  std::vector<int32_t> tokens, targets;
};

// What one rank contributes to the comparison of a tensor.
struct Piece {
  int64_t begin = 0, end = 0;
  double difference_square = 0, norm_square = 0;
};
using Pieces = std::map<std::string, std::vector<Piece>>;

template <class Body>
void for_each_owned_gradient(Engine& engine, Body&& body) {
  engine.context().stream.synchronize();
  for (const OwnedSlice& slice : engine.optimizer().owned())
    if (engine.parameters().is_primary(slice.parameter))
      body(engine.parameters().specs()[static_cast<size_t>(slice.parameter)], slice);
}

Pieces compare_owned(Engine& engine, const Gradients& expected) {
  Pieces pieces;
  for_each_owned_gradient(engine, [&](const model::ParameterSpec& spec, const OwnedSlice& slice) {
    const std::vector<double>& values = expected.at(spec.name);
    const HostCopy gradient(slice.gradient);
    Piece piece{slice.begin, slice.end, 0, 0};
    for (int64_t i = slice.begin; i < slice.end; ++i) {
      const double theirs = values[static_cast<size_t>(i)];
      const double difference = element_of(gradient.view(), i - slice.begin) - theirs;
      piece.difference_square += difference * difference;
      piece.norm_square += theirs * theirs;
    }
    pieces[spec.name].push_back(piece);
  });
  return pieces;
}

// Norm of the difference over norm; infinite when an element is nobody's, or two ranks', or not finite.
double relative_difference(std::vector<Piece> pieces, int64_t num_elements, double floor) {
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  int64_t end = 0;
  double difference = 0, norm = 0;
  for (const Piece& piece : pieces) {
    if (piece.begin != end) return INFINITY;
    end = piece.end;
    difference += piece.difference_square;
    norm += piece.norm_square;
  }
  if (end != num_elements || !std::isfinite(difference)) return INFINITY;
  if (difference == 0) return 0;
  return std::sqrt(difference) / std::max(std::sqrt(norm), floor);
}

using Choices =
    std::vector<std::vector<int32_t>>;  // [sublayer]: the experts of every token, [tokens * k]; empty without

Choices choices_of(const Engine& engine) {
  Choices choices;
  for (const model::SublayerStats& stats : engine.observations().sublayers) choices.push_back(stats.choices);
  return choices;
}

// Rows for experts on other ranks, by the routing: one for each distinct rank that a token's experts lie on.
int64_t count_remote_rows(const Choices& choices, const ModelConfig& model, int expert, int ep_rank) {
  const auto per_token = static_cast<size_t>(model.num_experts_per_token);
  const int64_t per_rank = model.num_experts / expert;
  int64_t rows = 0;
  for (const std::vector<int32_t>& chosen : choices)
    for (size_t begin = 0; begin < chosen.size(); begin += per_token) {
      std::set<int64_t> ranks;
      for (size_t i = begin; i < begin + per_token; ++i) ranks.insert(chosen[i] / per_rank);
      ranks.erase(ep_rank);
      rows += static_cast<int64_t>(ranks.size());
    }
  return rows;
}

// Tokens, over all layers, whose experts differ from those that one rank chose; `mine` are a rank's share of the sequences.
int64_t count_moved(const Choices& mine, const Choices& one_rank, const ModelConfig& model, int data, int dp_rank) {
  const auto per_token = static_cast<size_t>(model.num_experts_per_token);
  int64_t moved = 0;
  for (size_t s = 0; s < mine.size(); ++s) {
    const size_t share = one_rank[s].size() / static_cast<size_t>(data), first = share * static_cast<size_t>(dp_rank);
    for (size_t i = 0; i < mine[s].size(); i += per_token) {
      const auto token = mine[s].begin() + static_cast<int64_t>(i);
      const auto theirs = one_rank[s].begin() + static_cast<int64_t>(first + i);
      moved += !std::is_permutation(token, token + static_cast<int64_t>(per_token), theirs);
    }
  }
  return moved;
}

class Verifier {
 public:
  Verifier(const Config& config, const VerifyOptions& options);
  Verification run(const std::vector<Layout>& layouts);

 private:
  struct Sent {
    double loss = 0;
    int64_t stream_bytes = 0, summary_bytes = 0, expert_bytes = 0, counted_expert_bytes = 0, moved_choices = 0;
    std::vector<int> held;
  };
  Sent measure(Engine& engine) const;
  std::unique_ptr<Engine> make_engine(const Config& config, comm::Communicator& comm) const;
  Sent run_step(const Config& config, int num_ranks, const std::function<void(Engine&)>& before,
                const std::function<void(Engine&)>& after) const;
  void run_one_rank();
  void run_layout(LayoutReport& report) const;
  void add_plan(const Config& config, LayoutReport& report) const;
  void say(const std::string& text) const {
    if (options_.progress) options_.progress(text);
  }

  Config config_;
  VerifyOptions options_;
  Batch batch_;
  Verification result_;
  int32_t end_of_document_ = -1;
  Gradients expected_;
  Choices choices_;  // of one rank
  double floor_ = 0;
};

Verifier::Verifier(const Config& config, const VerifyOptions& options)
    : config_(config_of(config, BatchPlan(config).at(options.step))), options_(options) {
  LAMINA_CHECK(config.model.vocab_size > 0);
  const Sampler sampler(config);
  const auto count = static_cast<size_t>(config_.train.global_batch_size * config_.data.seq_len);
  batch_ = {std::vector<int32_t>(count), std::vector<int32_t>(count)};
  end_of_document_ = sampler.end_of_document();
  sampler.load(options_.step - 1, 0, config_.train.global_batch_size, batch_.tokens, batch_.targets);
  if (!options_.checkpoint.empty()) {
    const auto self = comm::make_self_communicator();
    options_.checkpoint = resolve_checkpoint(options_.checkpoint, *self);
    check_tokenizer(read_checkpoint_info(options_.checkpoint), options_.checkpoint.string(), sampler.tokenizer().hash(),
                    config.data.train.front().path);
  }
  result_.step = options_.step;
  result_.tolerance = options_.tolerance > 0 ? options_.tolerance : default_tolerance(config.train.precision);
}

std::unique_ptr<Engine> Verifier::make_engine(const Config& config, comm::Communicator& comm) const {
  std::unique_ptr<Engine> engine;
  if (!options_.checkpoint.empty()) {
    const auto adjust = [&](Config& stored) { stored = config; };
    engine = restore_parameters(options_.checkpoint, comm, EngineUse::training, adjust).engine;
  } else {
    engine = std::make_unique<Engine>(config, comm, nullptr);
    engine->initialise();
    choose_bf16_products(*engine, nullptr);
    move_depth_queries(*engine);
  }
  if (config.data.document_mask) engine->set_end_of_document(end_of_document_);
  engine->keep_choices = config.model.num_experts > 0;
  return engine;
}

// What one rank sent and held in the step, and what its routing makes of the rows for experts.
Verifier::Sent Verifier::measure(Engine& engine) const {
  const pipeline::ExecutionReport& execution = engine.last_execution();
  const Config& config = engine.config();
  Sent sent;
  sent.stream_bytes = execution.stream_bytes_sent;
  sent.summary_bytes = execution.summary_bytes_sent;
  sent.held = {engine.stage().peak_summaries()};
  if (config.model.num_experts == 0) return sent;
  const Choices choices = choices_of(engine);
  // There and back, forward and backward; recomputation sends them there again.
  const int64_t journeys = config.train.recompute == Recompute::full ? 5 : 4;
  const int64_t row_bytes = config.model.hidden_size * size_of(compute_dtype(config.train.precision));
  sent.expert_bytes = engine.take_expert_row_bytes();
  sent.counted_expert_bytes =
      journeys * row_bytes * count_remote_rows(choices, config.model, engine.mesh().expert, engine.place().ep_rank);
  if (!choices_.empty())
    sent.moved_choices = count_moved(choices, choices_, config.model, engine.mesh().data, engine.place().dp_rank);
  return sent;
}

// `after` is called on each rank once the gradients are there.
Verifier::Sent Verifier::run_step(const Config& config, int num_ranks, const std::function<void(Engine&)>& before,
                                  const std::function<void(Engine&)>& after) const {
  const int threads =
      config.run.num_threads > 0 ? config.run.num_threads : std::max(1, options_.num_threads / num_ranks);
  const double scale = 1.0 / static_cast<double>(batch_.tokens.size());
  std::vector<Sent> ranks(static_cast<size_t>(num_ranks));
  comm::run_threads(num_ranks, [&](comm::Communicator& host) {
    cpu::set_num_threads(threads);
    // On a GPU, all ranks on the first one.
    const bool on_gpu = config.run.device == "cuda";
    const auto staged = on_gpu ? comm::make_staged_communicator(host, nullptr) : nullptr;
    comm::Communicator& comm = on_gpu ? *staged : host;
    const std::unique_ptr<Engine> engine = make_engine(config, comm);
    if (before) before(*engine);
    const size_t share = batch_.tokens.size() / static_cast<size_t>(engine->mesh().data);
    const size_t first = share * static_cast<size_t>(engine->place().dp_rank);
    const double loss =
        engine->accumulate_gradients(std::span<const int32_t>(batch_.tokens).subspan(first, share),
                                     std::span<const int32_t>(batch_.targets).subspan(first, share), scale);
    after(*engine);
    Sent& sent = ranks[static_cast<size_t>(comm.rank())] = measure(*engine);
    sent.loss = loss * scale;
  });
  Sent all;
  for (const Sent& rank : ranks) {
    all.loss += rank.loss;
    all.stream_bytes += rank.stream_bytes;
    all.summary_bytes += rank.summary_bytes;
    all.expert_bytes += rank.expert_bytes;
    all.counted_expert_bytes += rank.counted_expert_bytes;
    all.moved_choices += rank.moved_choices;
    all.held.push_back(rank.held.front());
  }
  return all;
}

void Verifier::run_one_rank() {
  // Nothing that the layouts are tested for: no messages, no chunks, nothing computed twice.
  const Config config =
      with_layout(config_, {"1x1x1", 1, 1, 1, {"parallel.schedule=interleaved_1f1b", "train.recompute=none"}, false});
  double square = 0;
  Choices choices;
  result_.loss = run_step(config, 1, {}, [&](Engine& engine) {
                   choices = choices_of(engine);
                   for_each_owned_gradient(engine, [&](const model::ParameterSpec& spec, const OwnedSlice& slice) {
                     std::vector<double>& values = expected_[spec.name];
                     values.resize(static_cast<size_t>(spec.shape.num_elements()));
                     const HostCopy gradient(slice.gradient);
                     for (int64_t i = slice.begin; i < slice.end; ++i) {
                       const double value = element_of(gradient.view(), i - slice.begin);
                       values[static_cast<size_t>(i)] = value;
                       square += value * value;
                     }
                   });
                 }).loss;
  choices_ = std::move(choices);
  result_.gradient_norm = std::sqrt(square);
  if (!std::isfinite(result_.loss) || !std::isfinite(result_.gradient_norm))
    throw Error("one rank: found loss {} and gradient norm {}, expected finite ones to compare with", result_.loss,
                result_.gradient_norm);
  floor_ = 1e-3 * default_tolerance(config_.train.precision) * result_.gradient_norm;
}

void Verifier::add_plan(const Config& config, LayoutReport& report) const {
  const ParallelConfig& parallel = config.parallel;
  const int num_chunks = parallel.pipeline * parallel.virtual_stages;
  const std::vector<int64_t> split = model::resolve_split(config);
  const pipeline::BlockRoutes routes =
      pipeline::make_block_routes(pipeline::make_chunk_split(split), pipeline::make_block_layout(config.model),
                                  parallel.pipeline, parallel.block_transport);
  const auto num_microbatches =
      static_cast<int>(config.train.global_batch_size / (config.train.micro_batch_size * parallel.data));
  const pipeline::ChunkCosts costs = model::schedule_costs(config, report.layout.num_ranks(), split);  // as the engine
  const pipeline::Schedule schedule =
      pipeline::make_schedule(parallel.schedule, parallel.pipeline, num_chunks, num_microbatches, &costs);
  const auto bytes = static_cast<int64_t>(batch_.tokens.size()) * config.model.hidden_size *
                     size_of(compute_dtype(config.train.precision));
  const int64_t num_hops = parallel.pipeline > 1 ? num_chunks - 1 : 0;
  report.planned_stream_bytes = 2 * num_hops * bytes * config.model.num_streams();
  report.planned_summary_bytes = 2 * routes.num_sent() * bytes;
  const std::vector<int> bound = pipeline::peak_summaries(routes, schedule);
  for (int rank = 0; rank < report.layout.num_ranks(); ++rank)
    report.bound.push_back(bound[static_cast<size_t>(rank / parallel.data)]);
}

void Verifier::run_layout(LayoutReport& report) const {
  Config config;
  try {
    config = with_layout(config_, report.layout);
  } catch (const Error& failure) {
    report.refusal = failure.what();
    return;
  }
  Pieces pieces;
  std::mutex mutex;
  Sent found;
  try {
    found = run_step(config, report.layout.num_ranks(), options_.before_step, [&](Engine& engine) {
      const Pieces mine = compare_owned(engine, expected_);
      const std::lock_guard lock(mutex);
      for (const auto& [name, parts] : mine) pieces[name].insert(pieces[name].end(), parts.begin(), parts.end());
    });
  } catch (const std::bad_alloc&) {
    report.failure = "out of memory";
    return;
  } catch (const std::exception& failure) {  // one layout's failure says nothing of the others
    report.failure = failure.what();
    return;
  }
  add_plan(config, report);
  report.loss = found.loss;
  report.loss_difference = std::abs(found.loss - result_.loss) / std::abs(result_.loss);
  report.stream_bytes = found.stream_bytes;
  report.summary_bytes = found.summary_bytes;
  report.held = found.held;
  report.expert_bytes = found.expert_bytes;
  report.counted_expert_bytes = found.counted_expert_bytes;
  report.moved_choices = found.moved_choices;
  for (const auto& [name, values] : expected_) {
    const double difference = relative_difference(pieces[name], static_cast<int64_t>(values.size()), floor_);
    if (!report.worst_tensor.empty() && difference <= report.gradient_difference) continue;
    report.gradient_difference = difference;
    report.worst_tensor = name;
  }
}

Verification Verifier::run(const std::vector<Layout>& layouts) {
  const auto start = Clock::now();
  run_one_rank();
  say(fmt::format("one rank: loss {:.6f}, gradient norm {:.4g}, {:.1f} s", result_.loss, result_.gradient_norm,
                  seconds_since(start)));
  const auto first = Clock::now();
  for (const Layout& layout : layouts) {
    LayoutReport& report = result_.layouts.emplace_back();
    report.layout = layout;
    run_layout(report);
    const double spent = seconds_since(first), done = static_cast<double>(result_.layouts.size());
    const std::string fault = fault_of(report, result_.tolerance);
    say(fmt::format("{}/{} {}: {}; {:.0f} s left", result_.layouts.size(), layouts.size(), layout.name,
                    !report.refusal.empty() ? "refused"
                    : fault.empty()         ? fmt::format("ok, {:.1e}", report.gradient_difference)
                                            : "FAILED: " + fault,
                    spent / done * (static_cast<double>(layouts.size()) - done)));
  }
  return std::move(result_);
}

}  // namespace

void move_depth_queries(Engine& engine) {
  const model::Parameters& parameters = engine.parameters();
  for (size_t p = 0; p < parameters.specs().size(); ++p) {
    const model::ParameterSpec& spec = parameters.specs()[p];
    if (spec.init != model::Init::zeros || !parameters.is_held(static_cast<int>(p))) continue;
    const CounterRng rng(17, spec.name);
    const TensorView value = parameters.value(static_cast<int>(p));
    // Keys have a root mean square of one.
    const double scale = 1.0 / std::sqrt(static_cast<double>(value.num_elements()));
    HostRoom room(value, engine.context().stream);
    for (int64_t i = 0; i < value.num_elements(); ++i)
      set_element(room.view(), i, scale * rng.normal(static_cast<uint64_t>(i)));
    room.upload();
  }
}

double default_tolerance(Precision precision) {
  switch (precision) {
    case Precision::fp64:
      return 1e-12;
    case Precision::fp32:
      return 1e-5;
    case Precision::bf16:
      return 2e-2;
  }
  return 0;
}

Verification verify_layouts(const Config& config, const std::vector<Layout>& layouts, const VerifyOptions& options) {
  return Verifier(config, options).run(layouts);
}

}  // namespace lamina
