#include "trainer/verify.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>

#include "configs/schema/decode.h"
#include "configs/schema/nearest.h"
#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "data/sampler.h"
#include "model/cost_model.h"
#include "model/plan.h"
#include "parallel/comm/thread.h"
#include "parallel/pipeline/block_routes.h"
#include "parallel/pipeline/simulate.h"
#include "trainer/restore.h"

namespace lamina {
namespace {

using Clock = std::chrono::steady_clock;
using Gradients = std::map<std::string, std::vector<double>>;

constexpr int max_virtual_stages = 4;  // of `all`
constexpr ScheduleName all_schedules[] = {ScheduleName::gpipe, ScheduleName::one_f_one_b,
                                          ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble};
constexpr Recompute all_recompute[] = {Recompute::none, Recompute::selective, Recompute::full};

std::vector<std::string> split_text(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<int> to_number(const std::string& text, int least) {
  int number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc{} || end != text.data() + text.size() || number < least || number > 9999)
    return std::nullopt;
  return number;
}

template <class Names>
std::vector<std::string> names_of(const Names& values) {
  std::vector<std::string> names;
  for (const auto value : values) names.push_back(name_of(value));
  return names;
}

// "key=value" of the configuration that one option of a layout stands for.
std::string to_override(const std::string& option, const std::string& item) {
  std::vector<std::string> words = names_of(all_schedules);
  if (std::count(words.begin(), words.end(), option) > 0) return "parallel.schedule=" + option;
  if (option == "cached" || option == "full") return "parallel.block_transport=" + option;
  const size_t equals = option.find('=');
  const std::string key = option.substr(0, equals),
                    value = equals == std::string::npos ? "" : option.substr(equals + 1);
  if (key == "recompute") {
    const std::vector<std::string> modes = names_of(all_recompute);
    if (std::count(modes.begin(), modes.end(), value) > 0) return "train.recompute=" + value;
    throw Error("--layouts: found '{}' in '{}', expected recompute={}", option, item, fmt::join(modes, "|"));
  }
  if (key == "split") {
    std::vector<int> layers;
    for (const std::string& part : split_text(value, '/')) {
      const std::optional<int> number = to_number(part, 0);
      if (!number)
        throw Error("--layouts: found '{}' in '{}', expected the layers of each chunk, such as split=3/3/1/1", option,
                    item);
      layers.push_back(*number);
    }
    return fmt::format("parallel.split=[{}]", fmt::join(layers, ","));
  }
  const std::string schedules = fmt::format("{}", fmt::join(words, "|"));
  for (const char* word : {"cached", "full", "recompute", "split"}) words.emplace_back(word);
  const auto near = nearest_name(key, words);
  throw Error(
      "--layouts: found '{}' in '{}', expected {}, cached|full, recompute=none|selective|full or split=3/3/1/1{}",
      option, item, schedules, near ? "; did you mean " + *near + "?" : "");
}

std::vector<std::string> to_overrides(const std::vector<std::string>& options, const std::string& item) {
  std::vector<std::string> overrides;
  for (const std::string& option : options) {
    const std::string next = to_override(option, item);
    const std::string key = next.substr(0, next.find('=') + 1);
    for (const std::string& other : overrides)
      if (other.starts_with(key))
        throw Error("--layouts: found two values of {} in '{}', expected one", key.substr(0, key.size() - 1), item);
    overrides.push_back(next);
  }
  return overrides;
}

bool is_possible(const Config& config, const Layout& layout) {
  try {
    with_layout(config, layout);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// One pipeline x virtual stages x data of `all`, with every schedule.
void add_schedules(const Config& config, const Layout& base, const std::string& suffix, std::vector<Layout>& layouts) {
  bool possible = false;
  for (const ScheduleName schedule : all_schedules) {
    if (schedule == ScheduleName::one_f_one_b && base.virtual_stages > 1) continue;
    if (schedule == ScheduleName::interleaved_1f1b && base.virtual_stages == 1) continue;
    Layout layout = base;
    layout.name = fmt::format("{}:{}{}", base.name, name_of(schedule), suffix);
    layout.overrides.push_back("parallel.schedule=" + name_of(schedule));
    if (!is_possible(config, layout)) continue;
    possible = true;
    layouts.push_back(layout);
  }
  if (possible) return;
  // The reason is the same with each schedule; gpipe has no rule of its own.
  Layout layout = base;
  layout.name += suffix;
  layout.overrides.emplace_back("parallel.schedule=gpipe");
  layouts.push_back(layout);
}

void expand_all(const Config& config, const std::vector<std::string>& options, const std::string& item, int max_ranks,
                std::vector<Layout>& layouts) {
  const std::vector<std::string> overrides = to_overrides(options, item);
  for (const std::string& text : overrides)
    if (!text.starts_with("parallel.block_transport") && !text.starts_with("train.recompute"))
      throw Error("--layouts: found {} in '{}', expected only cached|full and recompute=.. with all", text, item);
  std::string suffix;
  for (const std::string& option : options) suffix += ":" + option;
  for (int ranks = 1; ranks <= max_ranks; ++ranks)
    for (int pipeline = 1; pipeline <= ranks; ++pipeline) {
      if (ranks % pipeline != 0) continue;
      for (int virtual_stages = 1; virtual_stages <= max_virtual_stages; ++virtual_stages) {
        const int data = ranks / pipeline;
        add_schedules(
            config,
            {fmt::format("{}x{}x{}", pipeline, virtual_stages, data), pipeline, virtual_stages, data, overrides, true},
            suffix, layouts);
      }
    }
}

Layout parse_layout(const std::string& item, const std::string& shape, const std::vector<std::string>& options) {
  const std::vector<std::string> factors = split_text(shape, 'x');
  Layout layout;
  layout.name = item;
  int* const fields[] = {&layout.pipeline, &layout.virtual_stages, &layout.data};
  for (size_t i = 0; i < 3; ++i) {
    const std::optional<int> number = factors.size() == 3 ? to_number(factors[i], 1) : std::nullopt;
    if (!number)
      throw Error("--layouts: found '{}', expected all or PIPELINExVIRTUAL_STAGESxDATA, each at least 1, such as 2x2x1",
                  shape);
    *fields[i] = *number;
  }
  layout.overrides = to_overrides(options, item);
  return layout;
}

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

double element_of(const TensorView& x, int64_t i) {
  return x.dtype == DType::f64 ? x.as<double>()[i] : static_cast<double>(x.as<float>()[i]);
}

template <class Body>
void for_each_owned_gradient(Engine& engine, Body&& body) {
  for (const OwnedSlice& slice : engine.optimizer().owned())
    if (engine.parameters().is_primary(slice.parameter))
      body(engine.parameters().specs()[static_cast<size_t>(slice.parameter)], slice);
}

Pieces compare_owned(Engine& engine, const Gradients& expected) {
  Pieces pieces;
  for_each_owned_gradient(engine, [&](const model::ParameterSpec& spec, const OwnedSlice& slice) {
    const std::vector<double>& values = expected.at(spec.name);
    Piece piece{slice.begin, slice.end, 0, 0};
    for (int64_t i = slice.begin; i < slice.end; ++i) {
      const double theirs = values[static_cast<size_t>(i)];
      const double difference = element_of(slice.gradient, i - slice.begin) - theirs;
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

class Verifier {
 public:
  Verifier(const Config& config, const VerifyOptions& options);
  Verification run(const std::vector<Layout>& layouts);

 private:
  struct Sent {
    double loss = 0;
    int64_t stream_bytes = 0, summary_bytes = 0;
    std::vector<int> held;
  };
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
  Gradients expected_;
  double floor_ = 0;
};

Verifier::Verifier(const Config& config, const VerifyOptions& options) : config_(config), options_(options) {
  LAMINA_CHECK(config.model.vocab_size > 0);
  const Sampler sampler(config.data, config.run.seed, config.train.global_batch_size, config.model.vocab_size);
  const auto count = static_cast<size_t>(config.train.global_batch_size * config.data.seq_len);
  batch_ = {std::vector<int32_t>(count), std::vector<int32_t>(count)};
  sampler.load(options_.step - 1, 0, config.train.global_batch_size, batch_.tokens, batch_.targets);
  if (!options_.checkpoint.empty()) {
    const auto self = comm::make_self_communicator();
    options_.checkpoint = resolve_checkpoint(options_.checkpoint, *self);
  }
  result_.step = options_.step;
  result_.tolerance = options_.tolerance > 0 ? options_.tolerance : default_tolerance(config.train.precision);
}

std::unique_ptr<Engine> Verifier::make_engine(const Config& config, comm::Communicator& comm) const {
  if (!options_.checkpoint.empty())
    return restore_parameters(options_.checkpoint, comm, [&](Config& stored) { stored = config; }).engine;
  auto engine = std::make_unique<Engine>(config, comm, nullptr);
  engine->initialise();
  move_depth_queries(*engine);
  return engine;
}

// `after` is called on each rank once the gradients are there.
Verifier::Sent Verifier::run_step(const Config& config, int num_ranks, const std::function<void(Engine&)>& before,
                                  const std::function<void(Engine&)>& after) const {
  const int threads =
      config.run.num_threads > 0 ? config.run.num_threads : std::max(1, options_.num_threads / num_ranks);
  const double scale = 1.0 / static_cast<double>(batch_.tokens.size());
  std::vector<Sent> ranks(static_cast<size_t>(num_ranks));
  comm::run_threads(num_ranks, [&](comm::Communicator& comm) {
    cpu::set_num_threads(threads);
    const std::unique_ptr<Engine> engine = make_engine(config, comm);
    if (before) before(*engine);
    const size_t share = batch_.tokens.size() / static_cast<size_t>(engine->mesh().data);
    const size_t first = share * static_cast<size_t>(engine->place().dp_rank);
    const double loss =
        engine->accumulate_gradients(std::span<const int32_t>(batch_.tokens).subspan(first, share),
                                     std::span<const int32_t>(batch_.targets).subspan(first, share), scale);
    after(*engine);
    const pipeline::ExecutionReport& execution = engine->last_execution();
    ranks[static_cast<size_t>(comm.rank())] = {
        loss * scale, execution.stream_bytes_sent, execution.summary_bytes_sent, {engine->stage().peak_summaries()}};
  });
  Sent all;
  for (const Sent& rank : ranks) {
    all.loss += rank.loss;
    all.stream_bytes += rank.stream_bytes;
    all.summary_bytes += rank.summary_bytes;
    all.held.push_back(rank.held.front());
  }
  return all;
}

void Verifier::run_one_rank() {
  // Nothing that the layouts are tested for: no messages, no chunks, nothing computed twice.
  const Config config =
      with_layout(config_, {"1x1x1", 1, 1, 1, {"parallel.schedule=interleaved_1f1b", "train.recompute=none"}, false});
  double square = 0;
  result_.loss = run_step(config, 1, {}, [&](Engine& engine) {
                   for_each_owned_gradient(engine, [&](const model::ParameterSpec& spec, const OwnedSlice& slice) {
                     std::vector<double>& values = expected_[spec.name];
                     values.resize(static_cast<size_t>(spec.shape.num_elements()));
                     for (int64_t i = slice.begin; i < slice.end; ++i) {
                       const double value = element_of(slice.gradient, i - slice.begin);
                       values[static_cast<size_t>(i)] = value;
                       square += value * value;
                     }
                   });
                 }).loss;
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
  report.planned_stream_bytes = 2 * num_hops * bytes;
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
  for (const auto& [name, values] : expected_) {
    const double difference = relative_difference(pieces[name], static_cast<int64_t>(values.size()), floor_);
    if (!report.worst_tensor.empty() && difference <= report.gradient_difference) continue;
    report.gradient_difference = difference;
    report.worst_tensor = name;
  }
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
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

// The rank that shows most: one that is not at its bound, or the one that holds most.
size_t telling_rank(const LayoutReport& report) {
  for (size_t rank = 0; rank < report.held.size(); ++rank)
    if (report.held[rank] != report.bound[rank]) return rank;
  return static_cast<size_t>(std::max_element(report.held.begin(), report.held.end()) - report.held.begin());
}

}  // namespace

std::vector<Layout> parse_layouts(const std::string& text, const Config& config, int max_ranks) {
  std::vector<Layout> layouts;
  for (const std::string& item : split_text(text, ',')) {
    std::vector<std::string> options = split_text(item, ':');
    const std::string shape = options.front();
    options.erase(options.begin());
    if (shape == "all")
      expand_all(config, options, item, max_ranks, layouts);
    else
      layouts.push_back(parse_layout(item, shape, options));
  }
  return layouts;
}

Config with_layout(const Config& config, const Layout& layout) {
  Config base = config;
  const auto num_chunks = static_cast<size_t>(layout.pipeline) * static_cast<size_t>(layout.virtual_stages);
  if (base.parallel.split.size() != num_chunks) base.parallel.split.clear();
  std::vector<std::string> overrides = {fmt::format("parallel.pipeline={}", layout.pipeline),
                                        fmt::format("parallel.virtual_stages={}", layout.virtual_stages),
                                        fmt::format("parallel.data={}", layout.data)};
  overrides.insert(overrides.end(), layout.overrides.begin(), layout.overrides.end());
  try {
    const Config result = parse_config(to_yaml(base), "the configuration", overrides);
    resolve_data_parallel(result, layout.num_ranks());
    return result;
  } catch (const Error& failure) {
    // The user wrote a layout, not the keys that it stands for.
    std::string reason = failure.what();
    for (const std::string& text : overrides)
      if (const std::string prefix = "command line: " + text + ": "; reason.starts_with(prefix))
        reason.erase(0, prefix.size());
    throw Error(reason);
  }
}

void move_depth_queries(Engine& engine) {
  const model::Parameters& parameters = engine.parameters();
  for (size_t p = 0; p < parameters.specs().size(); ++p) {
    const model::ParameterSpec& spec = parameters.specs()[p];
    if (spec.init != model::Init::zeros || !parameters.is_held(static_cast<int>(p))) continue;
    const CounterRng rng(17, spec.name);
    const TensorView value = parameters.value(static_cast<int>(p));
    // Keys have a root mean square of one.
    const double scale = 1.0 / std::sqrt(static_cast<double>(value.num_elements()));
    for (int64_t i = 0; i < value.num_elements(); ++i) {
      const double x = scale * rng.normal(static_cast<uint64_t>(i));
      if (value.dtype == DType::f64)
        value.as<double>()[i] = x;
      else
        value.as<float>()[i] = static_cast<float>(x);
    }
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

std::string fault_of(const LayoutReport& report, double tolerance) {
  if (!report.refusal.empty()) return report.layout.may_be_refused ? "" : "refused: " + report.refusal;
  if (!report.failure.empty()) return report.failure;
  if (!(report.gradient_difference <= tolerance))
    return fmt::format("the gradient of {} differs from one rank's by {:.2g} of its norm, expected at most {:.2g}",
                       report.worst_tensor, report.gradient_difference, tolerance);
  if (!(report.loss_difference <= tolerance))
    return fmt::format("found loss {:.9g}, a relative difference to one rank's of {:.2g}, expected at most {:.2g}",
                       report.loss, report.loss_difference, tolerance);
  if (report.summary_bytes != report.planned_summary_bytes)
    return fmt::format("found {} bytes of block summaries sent, planned are {}", report.summary_bytes,
                       report.planned_summary_bytes);
  if (report.stream_bytes != report.planned_stream_bytes)
    return fmt::format("found {} bytes of hidden stream sent, planned are {}", report.stream_bytes,
                       report.planned_stream_bytes);
  if (report.held != report.bound) {
    const size_t rank = telling_rank(report);
    return fmt::format("rank {} held {} block summaries, planned are {}", rank, report.held[rank], report.bound[rank]);
  }
  return "";
}

std::string Verification::fault() const {
  std::string first;
  int count = 0;
  for (const bool refused : {false, true})  // a wrong gradient is more to know than a layout that can't be
    for (const LayoutReport& report : layouts) {
      const std::string fault = report.refusal.empty() == refused ? "" : fault_of(report, tolerance);
      if (!fault.empty() && ++count == 1) first = fmt::format("{}: {}", report.layout.name, fault);
    }
  return count > 1 ? fmt::format("{} (and {} more layout{})", first, count - 1, count == 2 ? "" : "s") : first;
}

std::string to_text(const Verification& verification) {
  struct Row {
    std::string layout, sent, held;
  };
  std::vector<Row> rows;
  Row width{"layout", "blocks sent/planned", "held/bound"};
  for (const LayoutReport& report : verification.layouts) {
    Row row{report.layout.name, "", ""};
    if (!report.held.empty()) {
      const size_t rank = telling_rank(report);
      row.sent = fmt::format("{}/{}", report.summary_bytes, report.planned_summary_bytes);
      row.held = fmt::format("{}/{}", report.held[rank], report.bound[rank]);
    }
    if (row.layout.size() > width.layout.size()) width.layout = row.layout;
    if (row.sent.size() > width.sent.size()) width.sent = row.sent;
    rows.push_back(row);
  }
  const size_t layout = width.layout.size(), sent = width.sent.size();
  std::string text =
      fmt::format("{:<{}} {:>5} {:>10} {:>9} {:>9}  {:>{}} {:>10}  verdict  worst tensor\n", "layout", layout, "ranks",
                  "loss", "loss diff", "grad diff", "blocks sent/planned", sent, "held/bound");
  for (size_t i = 0; i < rows.size(); ++i) {
    const LayoutReport& report = verification.layouts[i];
    text += fmt::format("{:<{}} {:>5} ", report.layout.name, layout, report.layout.num_ranks());
    if (!report.refusal.empty()) {
      text += fmt::format("refused: {}\n", report.refusal);
    } else if (!report.failure.empty()) {
      text += fmt::format("FAILED: {}\n", report.failure);
    } else {
      text += fmt::format("{:>10.6f} {:>9.1e} {:>9.1e}  {:>{}} {:>10}  {:<7}  {}\n", report.loss,
                          report.loss_difference, report.gradient_difference, rows[i].sent, sent, rows[i].held,
                          fault_of(report, verification.tolerance).empty() ? "ok" : "FAILED",
                          report.gradient_difference == 0 ? "none, all are equal" : report.worst_tensor);
    }
  }
  return text;
}

Verification verify_layouts(const Config& config, const std::vector<Layout>& layouts, const VerifyOptions& options) {
  return Verifier(config, options).run(layouts);
}

}  // namespace lamina
