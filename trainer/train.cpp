#include "trainer/train.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "configs/schema/decode.h"
#include "core/base/clock.h"
#include "core/base/here.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/device/cpu/parallel_for.h"
#include "data/passed_batches.h"
#include "data/sampler.h"
#include "evaluation/tasks.h"
#include "model/cost_model.h"
#include "model/update_rules.h"
#include "parallel/comm/cores.h"
#include "trainer/bf16_choice.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_comm.h"
#include "trainer/console_text.h"
#include "trainer/engine.h"
#include "trainer/engine_dump.h"
#include "trainer/evaluate.h"
#include "trainer/identity.h"
#include "trainer/layer_stats.h"
#include "trainer/lr_schedule.h"
#include "trainer/metrics.h"
#include "trainer/peak_rate.h"
#include "trainer/pipeline_stats.h"
#include "trainer/restore.h"
#include "trainer/run_folder.h"
#include "trainer/spike_log.h"
#include "trainer/spike_watch.h"
#include "trainer/step_tracer.h"
#include "trainer/task_metrics.h"
#include "trainer/tensorboard/event_writer.h"
#include "trainer/version.h"

namespace lamina {
namespace {

// As in the row of a step that validates.
JsonRow validation_row(const Evaluation& evaluation) {
  return JsonRow().add("validation_loss", evaluation.loss).add("validation_bits_per_byte", evaluation.bits_per_byte);
}

// Thrown by all ranks: the run ends here.
class DivergedAt : public Diverged {
 public:
  DivergedAt(int64_t step, const std::string& what) : Diverged(fmt::format("step {}: {}", step, what)), step_(step) {}
  int64_t step() const { return step_; }

 private:
  int64_t step_;
};

class Trainer {
 public:
  // `lock` is rank 0's.
  Trainer(const Config& config, comm::Communicator& comm, const TrainProcess& process, const Sampler& sampler,
          const std::vector<evaluation::Task>& tasks, const RunFolder& folder, io::FolderLock* lock)
      : config_(config),
        comm_(comm),
        sampler_(sampler),
        tasks_(tasks),
        folder_(folder),
        lock_(lock),
        tracer_(config, comm, folder.traces()),
        engine_(config, comm, &ledger_, process.device_index),
        depth_reads_(config.model),
        spikes_(config.train.spike_threshold),
        place_(engine_.place()),
        threads_(threads_of_ranks(comm)),
        origin_(process.origin) {
    begin_stage(0);
  }
  TrainResult run();

 private:
  void describe() const;
  void begin_stage(size_t stage);
  void stand_in_stage();
  void enter_stage_of(int64_t batch);
  TrainEnd train();
  void check_writable();
  void resume();
  CheckpointInfo load(const std::filesystem::path& checkpoint);
  void pass_over_as_before(const CheckpointInfo* info);
  void begin_writing();
  void write_start() const;
  void open_logs();
  void warn_of_other_threads(const CheckpointInfo& saved) const;
  void measure_peak();
  void step();
  std::string where_not_finite();
  bool passes_over(double loss, double grad_norm);
  bool rewind(Spike& spike);
  CommBytes sum_bytes_sent();
  double bias_rate() const;  // of the step that runs
  PipelineStats measure_pipeline();
  JsonRow peak_bytes();
  bool logs_step() const;  // of the step that was just completed
  std::optional<EngineDump> begin_dump();
  LayerStats observe_layers(const std::vector<model::LayerSums>& sums);
  void write_layer_stats(const LayerStats& stats);
  void console_line(const StepMetrics& metrics, const std::optional<Evaluation>& evaluation, double rate);
  double rate_since_logged() const;
  bool is_due(int64_t interval) const;
  bool validation_due() const;
  bool tasks_due() const;
  std::optional<Evaluation> validate();
  std::optional<JsonRow> answer_tasks();
  bool lacks_in_last_row(const std::string& key);
  std::optional<Evaluation> validate_again_if_interrupted();
  std::optional<JsonRow> answer_again_if_interrupted();
  bool checkpoint_due() const;
  void save_checkpoint();
  void remove_older(int64_t step);
  void check_last_row();
  void check_last_validation(const std::optional<Evaluation>& evaluation);
  TrainResult end_diverged(const DivergedAt& found);
  bool agree_to_stop();
  TrainEnd end_early();
  double sum_over_ranks(std::span<double> values);
  int64_t tokens_per_step() const { return engine_.batch().tokens_per_batch(); }
  int64_t tokens_after(int64_t step) const;

  const Clock::time_point begin_ = Clock::now();
  const Config& config_;
  comm::Communicator& comm_;
  const Sampler& sampler_;
  const std::vector<evaluation::Task>& tasks_;
  const RunFolder& folder_;
  io::FolderLock* lock_;
  MemoryLedger ledger_;
  StepTracer tracer_;
  Engine engine_;
  MetricsWriter metrics_, layers_;
  DepthReadWatch depth_reads_;
  SpikeWatch spikes_;
  SpikeLog spike_log_;
  PassedBatches passed_;
  tensorboard::EventWriter events_;
  int64_t step_ = 0;           // completed
  int64_t first_step_ = 0;     // completed when this process began
  int64_t start_number_ = 1;   // of this process among those that have worked on the run
  bool stopping_ = false;      // the ranks have agreed to stop early
  bool time_to_save_ = false;  // the ranks have agreed that checkpoint.minutes are over
  bool is_proven_ = false;     // a finite loss and gradient have followed from the parameters of the newest checkpoint
  std::optional<Divergence> diverged_before_;
  std::optional<Evaluation> last_evaluation_;
  mesh::Coordinates place_;
  size_t stage_ = 0;             // of the plan, that the engine is set to
  int64_t local_sequences_ = 0;  // of this data-parallel rank
  std::vector<int32_t> tokens_, targets_;
  int64_t logged_step_ = 0;          // completed at the last console line
  Clock::time_point logged_;         // when that was
  Clock::time_point start_, saved_;  // of the first step; of the last checkpoint, or start_
  double flops_per_token_ = 0;
  std::string threads_;                        // of the ranks
  std::map<std::string, std::string> origin_;  // of this process
  double peak_gflops_ = 0;                     // of one rank
};

void Trainer::describe() const {
  const BatchStage& first = sampler_.plan().stages().front();
  const int64_t num_stages = std::ssize(sampler_.plan().stages()), num_steps = config_.train.num_steps;
  log::info("{}: {} parameters, {} layers, {} x {} tokens per step{}, {} steps ({} tokens), {} rank{}, {}",
            config_.run.name, count_text(static_cast<double>(model::num_parameters(config_.model))),
            config_.model.num_hidden_layers, first.global_batch_size, first.seq_len,
            num_stages > 1 ? fmt::format(" at first, {} stages", num_stages) : "", num_steps,
            count_text(static_cast<double>(sampler_.plan().num_tokens(1, num_steps))), comm_.size(),
            comm_.size() == 1 ? "" : "s", name_of(compute_dtype(config_.train.precision)));
  const ParallelConfig& parallel = config_.parallel;
  if (parallel.pipeline * parallel.virtual_stages > 1) {
    const pipeline::ChunkSplit& split = engine_.plan().split;
    std::string layers;
    for (int c = 0; c < split.num_chunks(); ++c)
      layers += fmt::format(" {}", (split.begin[static_cast<size_t>(c) + 1] - split.begin[static_cast<size_t>(c)]) / 2);
    log::info("pipeline {} x {} virtual stages x data {}, {}, layers per chunk{}", parallel.pipeline,
              parallel.virtual_stages, engine_.mesh().data, name_of(parallel.schedule), layers);
  }
  for (const std::string& note : config_.notes)
    if (comm_.rank() == 0) log::warning("{}", note);
  for (const std::string& rule : model::describe_update_rules(config_)) log::info("updates: {}", rule);
  for (const evaluation::Task& task : tasks_) log::info("task {}", evaluation::describe(task, config_.data.seq_len));
  log::info("run folder {}", folder_.root.string());
}

// What a step takes from now on.
void Trainer::begin_stage(size_t stage) {
  const BatchStage& batch = sampler_.plan().stages()[stage];
  stage_ = stage;
  engine_.set_stage(batch);
  local_sequences_ = batch.global_batch_size / engine_.mesh().data;
  tokens_.resize(static_cast<size_t>(local_sequences_ * batch.seq_len));
  targets_.resize(tokens_.size());
  flops_per_token_ = model::training_flops_per_token(config_.model, batch.seq_len).total();
}

// Where the completed steps have come to.
void Trainer::stand_in_stage() {
  begin_stage(step_ > 0 ? sampler_.plan().stage_of(passed_.batch_of(step_)) : 0);
}

// Before the next step. What it takes may be compared with other steps' loss and gradient norm no more.
void Trainer::enter_stage_of(int64_t batch) {
  const std::vector<BatchStage>& stages = sampler_.plan().stages();
  const size_t stage = sampler_.plan().stage_of(batch);
  for (size_t begun = step_ > 0 ? sampler_.plan().stage_of(passed_.batch_of(step_)) : stage; begun < stage; ++begun) {
    const BatchStage &before = stages[begun], &next = stages[begun + 1];
    if (!has_same_mixture(before, next) || before.seq_len != next.seq_len ||
        before.global_batch_size > next.global_batch_size)
      spikes_ = SpikeWatch(config_.train.spike_threshold);
  }
  if (stage == stage_) return;
  begin_stage(stage);
  log::info("step {}: stage {} of {}: {}{}", step_ + 1, stage + 1, stages.size(), to_text(stages[stage]),
            batch == step_ + 1 ? "" : fmt::format("; {} batches were passed over before", batch - step_ - 1));
}

// Seen in the steps up to this one.
int64_t Trainer::tokens_after(int64_t step) const {
  const BatchPlan& plan = sampler_.plan();
  const int64_t last = passed_.batch_of(step);
  int64_t tokens = plan.num_tokens(1, last);
  const PassedBatches passed = passed_.before(last);
  for (const StepRange& range : passed.ranges()) tokens -= plan.num_tokens(range.first, range.last);
  return tokens;
}

// What would only show when it is to be written.
void Trainer::check_writable() {
  if (config_.debug.dump_step == 0) return;
  run_and_agree(comm_, [&] {
    if (comm_.rank() == 0 && !config_.debug.dump_path.empty())
      check_can_write("debug.dump_path", std::filesystem::path(config_.debug.dump_path).parent_path());
  });
}

// With the constructor, all that can refuse a start; nothing is written.
void Trainer::resume() {
  const auto checkpoint = find_checkpoint(folder_.checkpoints(), comm_);
  CheckpointInfo info;
  if (!checkpoint && !config_.checkpoint.init_from.empty()) {
    const size_t num_new = load_parameters(config_.checkpoint.init_from, engine_, sampler_, comm_);
    log::info("parameters from {}{}", config_.checkpoint.init_from,
              num_new == 0 ? "" : "; new: " + describe_new(num_new));
  } else if (!checkpoint) {
    engine_.initialise();
  } else {
    info = load(*checkpoint);
    log::info("resumed from {} at step {}", checkpoint->string(), step_);
    warn_of_other_threads(info);
  }
  pass_over_as_before(checkpoint ? &info : nullptr);
  stand_in_stage();
  if (const std::string line = choose_bf16_products(engine_, checkpoint ? &info : nullptr); !line.empty())
    log::info("{}", line);
  first_step_ = step_;
  run_and_agree(comm_, [&] {
    if (comm_.rank() == 0) diverged_before_ = read_divergence(folder_);
  });
}

CheckpointInfo Trainer::load(const std::filesystem::path& checkpoint) {
  CheckpointInfo info;
  run_and_agree(comm_, [&] {
    info = read_checkpoint_info(checkpoint);
    if (!sampler_.continues(info.sampler_fingerprint, trained_batches(info)))
      throw Error("{}: was trained on other data: expected {}, found {}", checkpoint.string(), info.sampler_fingerprint,
                  sampler_.fingerprint());
    load_checkpoint(checkpoint, engine_.optimizer().state());
    step_ = info.step;
    const auto seen = info.extra.find("spike_window");
    spikes_.restore(seen == info.extra.end() ? "" : seen->second);
  });
  engine_.publish();
  return info;
}

// The batches that the run has passed over, and those that it shall.
void Trainer::pass_over_as_before(const CheckpointInfo* info) {
  spike_log_ = SpikeLog(folder_.spikes(), comm_);
  passed_ = PassedBatches(parse_step_ranges(config_.train.skip_steps));
  passed_.add(spike_log_.passed());
  if (!info) return;
  const PassedBatches before = passed_batches(*info);
  passed_.add(before);
  const int64_t reached = before.batch_of(step_);
  if (passed_.before(reached + 1) != before)
    throw Error("train.skip_steps: found {}, but {} has trained on the batches up to {}{}, expected later ones",
                config_.train.skip_steps, checkpoint_folder_name(step_), reached,
                before.ranges().empty() ? "" : fmt::format(" without {}", to_text(before.ranges())));
}

// Rank 0's.
void Trainer::write_start() const {
  JsonRow row;
  row.add("start", start_number_).add("step", step_).add("time", utc_now()).add("program", program_version);
  for (const auto& [key, value] : origin_) row.add(key, value);
  row.add("ranks", comm_.size()).add("tokenizer_hash", sampler_.tokenizer().hash()).add("data", sampler_.fingerprint());
  io::AppendFile(folder_.starts()).append(row.to_string() + "\n");
}

void Trainer::begin_writing() {
  prepare_run_folder(config_, comm_);
  run_and_agree(comm_, [&] { log::add_file(folder_.log()); });
  run_and_agree(comm_, [&] {
    if (comm_.rank() != 0) return;
    start_number_ = last_start(folder_) + 1;
    truncate_metrics(folder_, step_);
    write_start();
    if (!diverged_before_) return;
    log::warning("the last start diverged ({}): with nothing changed this one does so too", diverged_before_->reason);
    remove_divergence(folder_);
  });
  run_and_agree(comm_, [&] {
    if (comm_.rank() != 0) return;
    spike_log_.begin_writing(step_);
  });
  if (!passed_.ranges().empty()) log::info("batches passed over: {}", to_text(passed_.ranges()));
  const std::optional<Evaluation> again = validate_again_if_interrupted();
  check_last_validation(again);
  const std::optional<JsonRow> answers = answer_again_if_interrupted();
  open_logs();
  if (again) events_.write_metrics(step_, validation_row(*again));
  if (answers) events_.write_metrics(step_, *answers);
}

// Rank 0's, from the last completed step on.
void Trainer::open_logs() {
  run_and_agree(comm_, [&] {
    if (comm_.rank() != 0) return;
    metrics_ = MetricsWriter();
    layers_ = MetricsWriter();
    truncate_metrics(folder_, step_);
    metrics_ = MetricsWriter(folder_.metrics());
    layers_ = MetricsWriter(folder_.layers());
    if (!config_.logging.tensorboard) return;
    events_ = tensorboard::EventWriter(folder_.root, step_);
    const std::string yaml = to_yaml(config_);
    events_.write_configuration(yaml, flatten_config(yaml));
  });
}

// Of everything that a step computes on a CPU only oneDNN's products depend on the number of threads: of fp32 and bf16.
void Trainer::warn_of_other_threads(const CheckpointInfo& saved) const {
  const auto before = saved.extra.find("threads");
  if (config_.run.device != "cpu" || config_.train.precision == Precision::fp64 || saved.world_size != comm_.size() ||
      before == saved.extra.end() || before->second == threads_) {
    return;
  }
  log::warning(
      "resumed with {} thread(s) per rank, saved with {}: matrix products may add in another order, so these are not "
      "the "
      "same bits as of a run that never stopped; run.num_threads sets the number",
      threads_, before->second);
}

// Sums in place; returns the first value.
double Trainer::sum_over_ranks(std::span<double> values) {
  Stream stream;
  const TensorView view(values.data(), DType::f64, {static_cast<int64_t>(values.size())});
  comm_.all_reduce(view, comm::ReduceOp::sum, stream).wait();
  return values.front();
}

CommBytes Trainer::sum_bytes_sent() {
  const pipeline::ExecutionReport& execution = engine_.last_execution();
  double bytes[4] = {static_cast<double>(execution.stream_bytes_sent),
                     static_cast<double>(execution.summary_bytes_sent), static_cast<double>(engine_.take_data_bytes()),
                     static_cast<double>(engine_.take_expert_bytes())};
  sum_over_ranks(bytes);
  return {std::llround(bytes[0]), std::llround(bytes[1]), std::llround(bytes[2]), std::llround(bytes[3])};
}

// The last stretch of training keeps the experts' selection as it is (Moonlight, arXiv 2502.16982, section 3.3).
double Trainer::bias_rate() const {
  if (config_.model.num_experts == 0) return 0;
  const LrScheduleConfig& schedule = config_.train.lr_schedule;
  const bool decays =
      schedule.name == LrScheduleName::wsd && step_ + 1 > config_.train.num_steps - schedule.decay_steps;
  return decays ? 0 : config_.train.router_bias_rate;
}

// Peak bytes of what depends on the layout, per rank.
JsonRow Trainer::peak_bytes() {
  static constexpr const char* purposes[] = {"activations", "block summaries", "block summary gradients",
                                             "hidden streams"};
  const auto entries = ledger_.entries();
  JsonRow row;
  for (const char* purpose : purposes) {
    std::vector<double> bytes(static_cast<size_t>(comm_.size()));
    const auto found = entries.find(purpose);
    if (found != entries.end())
      bytes[static_cast<size_t>(comm_.rank())] = static_cast<double>(found->second.peak_bytes);
    sum_over_ranks(bytes);
    std::string key = purpose;
    std::replace(key.begin(), key.end(), ' ', '_');
    row.add(key, std::span<const double>(bytes));
  }
  return row;
}

bool Trainer::logs_step() const {
  return step_ % config_.logging.interval == 0 || step_ == first_step_ + 1 || step_ == config_.train.num_steps;
}

PipelineStats Trainer::measure_pipeline() {
  if (engine_.mesh().pipeline == 1) return {};
  return pipeline_stats(comm_, engine_.schedule(), engine_.last_execution(), place_.pp_rank,
                        engine_.plan().num_chunks(), engine_.mesh().data);
}

// Collective. In which tensor a value that is not finite was first seen; all get the same text.
std::string Trainer::where_not_finite() {
  const std::string mine = engine_.first_non_finite_gradient();
  const auto all =
      gather_text(comm_, mine.empty() ? "" : fmt::format("{} in the shard of rank {}", mine, comm_.rank()));
  std::string where = "every gradient is finite";
  for (const std::string& found : all) {
    if (found.empty()) continue;
    where = "first non-finite gradient " + found;
    break;
  }
  return broadcast_text(comm_, where);
}

// Collective, between the pass and the update: whether the step's batch is passed over as a spike. Nothing has come of it then, and the
// loop goes on with the step after step_, whose batch is another. All ranks have the same numbers.
bool Trainer::passes_over(double loss, double grad_norm) {
  std::optional<std::string> reason = spikes_.judge(loss, grad_norm);
  if (!reason) {
    spikes_.accept(loss, grad_norm);
    return false;
  }
  const bool is_finite = std::isfinite(loss) && std::isfinite(grad_norm);
  if (!is_finite) *reason += "; " + where_not_finite();
  Spike spike{step_ + 1, passed_.batch_of(step_ + 1), config_.train.on_spike, {}, *reason};
  if (spike.action == OnSpike::warn) {
    if (!is_finite) throw DivergedAt(spike.step, *reason);
    if (comm_.rank() == 0) log::warning("step {}: {} (train.on_spike: warn)", spike.step, *reason);
    run_and_agree(comm_, [&] { spike_log_.add(spike, comm_.rank() == 0); });
    spikes_.accept(loss, grad_norm);
    return false;
  }
  if (const int64_t recent = spike_log_.num_recent(spike.batch, SpikeWatch::window); recent >= config_.train.max_spikes)
    throw DivergedAt(spike.step,
                     fmt::format("{}; {} spikes within the {} batches before were passed over (train.max_spikes)",
                                 *reason, recent, SpikeWatch::window));
  tracer_.release(engine_);
  spike.passed = {{spike.batch, spike.batch}};
  const bool rewinds = spike.action == OnSpike::rewind && rewind(spike);
  if (!rewinds) spike.action = OnSpike::skip;
  for (const StepRange& range : spike.passed) passed_.add(range);
  run_and_agree(comm_, [&] { spike_log_.add(spike, comm_.rank() == 0); });
  if (comm_.rank() == 0)
    log::warning("step {}: {}; {}batch {} passed over", spike.step, *reason,
                 rewinds ? fmt::format("back to step {}, ", step_) : "", to_text(spike.passed));
  return true;
}

// Collective. Back to the newest checkpoint; the batches since then are `spike.passed`. False without a checkpoint: nothing has changed.
bool Trainer::rewind(Spike& spike) {
  const auto checkpoint = find_checkpoint(folder_.checkpoints(), comm_);
  if (!checkpoint) return false;
  load(*checkpoint);
  stand_in_stage();
  spike.passed = {{passed_.batch_of(step_ + 1), spike.batch}};
  depth_reads_ = DepthReadWatch(config_.model);
  first_step_ = std::min(first_step_, step_);
  logged_step_ = std::min(logged_step_, step_);
  open_logs();
  return true;
}

// Of a run that was killed just before it could end so.
void Trainer::check_last_row() {
  double is_infinite[1] = {0};
  run_and_agree(comm_, [&] {
    if (comm_.rank() == 0) is_infinite[0] = has_infinite_validation(folder_, step_) ? 1 : 0;
  });
  if (sum_over_ranks(is_infinite) > 0) throw DivergedAt(step_, "no finite validation loss at the last step");
}

void Trainer::check_last_validation(const std::optional<Evaluation>& evaluation) {
  if (step_ < config_.train.num_steps || !evaluation || std::isfinite(evaluation->loss)) return;
  throw DivergedAt(step_,
                   fmt::format("validation loss {} at the last step, expected a finite number", evaluation->loss));
}

std::optional<EngineDump> Trainer::begin_dump() {
  if (config_.debug.dump_step != step_ + 1) return std::nullopt;
  const std::filesystem::path path = config_.debug.dump_path.empty()
                                         ? folder_.root / fmt::format("dump-step-{}.h5", step_ + 1)
                                         : std::filesystem::path(config_.debug.dump_path);
  return std::make_optional<EngineDump>(config_, engine_, &ledger_, path, step_ + 1, tokens_, targets_);
}

LayerStats Trainer::observe_layers(const std::vector<model::LayerSums>& sums) {
  const LayerStatsTotals totals{tokens_per_step(),
                                engine_.batch().global_batch_size / engine_.batch().micro_batch_size};
  return layer_stats(engine_, comm_, step_ + 1, config_.model.hidden_size, sums, totals);
}

void Trainer::write_layer_stats(const LayerStats& stats) {
  for (const JsonRow& row : stats.rows) layers_.write(row);
  events_.write_layers(step_ + 1, stats.rows);
  for (const std::string& line : depth_reads_.observe(step_ + 1, stats.reads)) log::warning("{}", line);
}

// Completes the next step, or finds that its batch is passed over.
void Trainer::step() {
  if (lock_) lock_->check();
  const int64_t batch = passed_.batch_of(step_ + 1);
  enter_stage_of(batch);
  tracer_.begin(step_ + 1, engine_);
  const auto started = Clock::now();
  engine_.take_data_bytes();
  engine_.take_expert_bytes();
  const int64_t first = place_.dp_rank * local_sequences_;
  {
    const trace::Scope scope(tracer_.recorder(), trace::Track::phases, "load data");
    sampler_.load(batch - 1, first, first + local_sequences_, tokens_, targets_);
  }
  std::optional<EngineDump> dump = begin_dump();

  const int64_t interval = config_.logging.layer_stats_interval;
  const bool stats = interval > 0 && ((step_ + 1) % interval == 0 || step_ == 0);
  std::vector<model::LayerSums> sums(stats ? static_cast<size_t>(engine_.num_sites()) : 0);
  std::vector<double> token_losses(dump ? tokens_.size() : 0);
  const double loss_sum = engine_.accumulate_gradients(tokens_, targets_, 1.0 / static_cast<double>(tokens_per_step()),
                                                       stats ? &sums : nullptr, token_losses);
  const PipelineStats stats_of_pipeline = measure_pipeline();
  const StepObservations& seen = engine_.observations();
  // Every data-parallel rank has seen the same balance losses.
  double totals[3] = {loss_sum, engine_.owned_gradient_square(), place_.dp_rank == 0 ? seen.aux_loss : 0.0};
  sum_over_ranks(totals);
  StepMetrics metrics;
  metrics.step = step_ + 1;
  metrics.loss = totals[0] / static_cast<double>(tokens_per_step());
  metrics.grad_norm = std::sqrt(totals[1]);
  if (config_.model.aux_loss_alpha > 0) metrics.aux_loss = totals[2];
  metrics.lr =
      learning_rate(config_.train.optimizer.lr, config_.train.lr_schedule, config_.train.num_steps, step_ + 1) *
      engine_.batch().lr_factor;
  if (passes_over(metrics.loss, metrics.grad_norm)) return;
  LayerStats layers;
  std::optional<QueryUpdates> queries;
  if (stats) {
    layers = observe_layers(sums);
    queries.emplace(engine_);
  }
  if (dump) dump->add_gradients(metrics.loss, totals[2], token_losses);

  const double clip = config_.train.grad_clip;
  const double scale = clip > 0 && metrics.grad_norm > clip ? clip / metrics.grad_norm : 1.0;
  engine_.update(step_ + 1, metrics.lr, scale, bias_rate());
  if (queries) {
    queries->add_to(layers.rows, comm_);
    write_layer_stats(layers);
  }
  metrics.comm_bytes = sum_bytes_sent();
  if (dump) dump->finish();
  ++step_;
  const double seconds = seconds_since(started);
  metrics.tokens = tokens_after(step_);
  metrics.tokens_per_second = static_cast<double>(tokens_per_step()) / seconds;
  metrics.mfu = flops_per_token_ * metrics.tokens_per_second / 1e9 / (peak_gflops_ * comm_.size());
  tracer_.release(engine_);
  std::optional<Evaluation> evaluation;
  if (validation_due()) evaluation = validate();
  last_evaluation_ = evaluation;
  std::optional<JsonRow> answers;
  if (tasks_due() && !stopping_) answers = answer_tasks();
  if (evaluation) metrics.validation_loss = evaluation->loss;
  JsonRow row = to_row(metrics);
  if (engine_.mesh().pipeline > 1) {
    JsonRow pipeline;
    pipeline.add("bubble", stats_of_pipeline.bubble).add("bubble_bound", stats_of_pipeline.bubble_bound);
    pipeline.add("efficiency", stats_of_pipeline.efficiency);
    row.add("pipeline", pipeline);
  }
  const double interval_rate = rate_since_logged();
  if (logs_step()) row.add("peak_bytes", peak_bytes()).add("interval_tokens_per_second", interval_rate);
  if (batch != step_) row.add("batch", batch);
  if (sampler_.plan().stages().size() > 1)
    row.add("stage", static_cast<int64_t>(stage_ + 1))
        .add("sequences", engine_.batch().global_batch_size)
        .add("seq_len", engine_.batch().seq_len);
  row.add("gflops", flops_per_token_ * metrics.tokens_per_second / 1e9);
  if (evaluation) row.add("validation_bits_per_byte", evaluation->bits_per_byte);
  if (answers) row.append(*answers);
  row.add("time", utc_now()).add("host", host_name()).add("start", start_number_);
  metrics_.write(row);
  events_.write_metrics(step_, row);
  console_line(metrics, evaluation, interval_rate);
}

// Tokens per second since the last console line: what a step waits for between two steps counts too.
double Trainer::rate_since_logged() const {
  return static_cast<double>(tokens_after(step_) - tokens_after(logged_step_)) / seconds_since(logged_);
}

void Trainer::console_line(const StepMetrics& metrics, const std::optional<Evaluation>& evaluation, double rate) {
  if (evaluation)
    log::info("step {} validation: loss {:.4f}, perplexity {:.2f}, {:.4f} bits per byte", step_, evaluation->loss,
              evaluation->perplexity, evaluation->bits_per_byte);
  if (!logs_step()) return;
  logged_step_ = step_;
  logged_ = Clock::now();
  const int64_t seen = tokens_after(step_);
  const double per_token = seconds_since(start_) / static_cast<double>(seen - tokens_after(first_step_));
  const double left = per_token * static_cast<double>(tokens_after(config_.train.num_steps) - seen);
  const double gflops = flops_per_token_ * rate / 1e9;
  log::info("step {}/{} ({:.0f} %)  loss {:.4f}  grad norm {:.3f}  lr {:.2e}  {} tokens/s  {:.1f} GFLOP/s  {}  {} left",
            step_, config_.train.num_steps,
            100.0 * static_cast<double>(step_) / static_cast<double>(config_.train.num_steps), metrics.loss,
            metrics.grad_norm, metrics.lr, count_text(rate), gflops,
            mfu_text(gflops / (peak_gflops_ * comm_.size()), config_.logging.peak_gflops == 0), duration_text(left));
}

// At every interval's end, and at the last step.
bool Trainer::is_due(int64_t interval) const {
  return step_ > 0 && (step_ == config_.train.num_steps || (interval > 0 && step_ % interval == 0));
}

bool Trainer::validation_due() const {
  return sampler_.num_validation_sequences() > 0 && is_due(config_.data.validation.interval);
}

bool Trainer::tasks_due() const {
  return !tasks_.empty() && is_due(config_.train.eval.interval);
}

// Absent when a stop was agreed on meanwhile.
std::optional<Evaluation> Trainer::validate() {
  const trace::Scope scope(tracer_.recorder(), trace::Track::phases, "validation");
  return evaluate(engine_, sampler_, config_, comm_, [this] { return agree_to_stop(); });
}

// Absent when a stop was agreed on meanwhile.
std::optional<JsonRow> Trainer::answer_tasks() {
  const trace::Scope scope(tracer_.recorder(), trace::Track::phases, "tasks");
  const evaluation::Model model = evaluation_model(engine_, comm_, sampler_.end_of_document(), engine_.max_tokens(),
                                                   [this] { return agree_to_stop(); });
  return task_metrics(tasks_, model, step_);
}

// Collective: whether the last row is this step's, without `key`.
bool Trainer::lacks_in_last_row(const std::string& key) {
  double found[1] = {0};
  run_and_agree(comm_, [&] {
    if (comm_.rank() == 0) found[0] = lacks(folder_, step_, key) ? 1 : 0;
  });
  return sum_over_ranks(found) > 0;
}

// A stop during a validation leaves the row of its step without one: it is made up for, so that the metrics are those of a run
// that was not stopped.
std::optional<Evaluation> Trainer::validate_again_if_interrupted() {
  if (!validation_due() || !lacks_in_last_row("validation_loss")) return std::nullopt;
  log::info("the validation of step {} was interrupted: running it again", step_);
  const std::optional<Evaluation> evaluation = validate();
  if (!evaluation) return std::nullopt;
  run_and_agree(comm_, [&] {
    if (comm_.rank() == 0) add_to_last_row(folder_, validation_row(*evaluation));
  });
  return evaluation;
}

// The same of the tasks.
std::optional<JsonRow> Trainer::answer_again_if_interrupted() {
  if (stopping_ || !tasks_due() || !lacks_in_last_row("tasks")) return std::nullopt;
  log::info("the tasks of step {} were interrupted: answering them again", step_);
  const std::optional<JsonRow> answers = answer_tasks();
  if (!answers) return std::nullopt;
  run_and_agree(comm_, [&] {
    if (comm_.rank() == 0) add_to_last_row(folder_, *answers);
  });
  return answers;
}

bool Trainer::checkpoint_due() const {
  const int64_t interval = config_.checkpoint.interval;
  return step_ == config_.train.num_steps || (interval > 0 && step_ % interval == 0) || time_to_save_;
}

// Collective: whether any rank was asked to stop. Limits of time, checkpoint.minutes too, are judged by rank 0's clock.
bool Trainer::agree_to_stop() {
  const auto is_over = [&](double minutes, Clock::time_point since) {
    return minutes > 0 && comm_.rank() == 0 && seconds_since(since) >= 60 * minutes;
  };
  if (is_over(config_.train.max_minutes, begin_)) stop::request("train.max_minutes");
  time_to_save_ = is_over(config_.checkpoint.minutes, saved_);
  stopping_ = stop_requested_anywhere(comm_, &time_to_save_) || stopping_;
  return stopping_;
}

// Collective, after agree_to_stop().
TrainEnd Trainer::end_early() {
  for (const std::string& reason : gather_text(comm_, stop::reason())) {
    if (reason.empty()) continue;
    log::info("stopping at step {} of {}: {}", step_, config_.train.num_steps, reason);
    break;
  }
  return TrainEnd::stopped;
}

void Trainer::save_checkpoint() {
  CheckpointInfo info;
  info.step = step_;
  info.config_yaml = to_yaml(config_);
  info.sampler_fingerprint = sampler_.fingerprint();
  const int64_t batch = passed_.batch_of(step_);
  info.sequences_consumed = sampler_.plan().num_sequences(1, batch);
  info.seed = config_.run.seed;
  info.data_parallel = engine_.mesh().data;
  info.program_version = program_version;
  info.extra["threads"] = threads_;
  info.extra["spike_window"] = spikes_.to_text();
  store_passed_batches(info, passed_.before(batch));
  info.extra["tokens"] = std::to_string(tokens_after(step_));
  info.extra.insert(origin_.begin(), origin_.end());
  store_bf16_products(info, engine_);
  store_tokenizer(info, sampler_.tokenizer());
  const trace::Scope scope(tracer_.recorder(), trace::Track::phases, "checkpoint");
  const auto started = Clock::now();
  engine_.context().stream.synchronize();
  run_and_agree(comm_, [&] {
    if (lock_) lock_->refresh();
  });
  try {
    // Older ones are deleted when this one has proven good (remove_older).
    lamina::save_checkpoint(folder_.checkpoints(), info, engine_.optimizer().primary_state(), comm_, /*keep=*/0);
  } catch (const NotFinite& found) {
    throw DivergedAt(step_, found.what());
  }
  is_proven_ = false;
  log::info("saved {} in {:.2f} s", (folder_.checkpoints() / checkpoint_folder_name(step_)).string(),
            seconds_since(started));
  saved_ = Clock::now();
}

// Collective. The newest checkpoint, of `step`, is finite, but huge parameters can be that too: the ones before it go when the step
// after it, or the last validation, has shown that a finite loss follows from it.
void Trainer::remove_older(int64_t step) {
  run_and_agree(comm_, [&] {
    if (comm_.rank() == 0) remove_older_checkpoints(folder_.checkpoints(), step, config_.checkpoint.keep);
  });
  is_proven_ = true;
}

// The ranks measure at the same time, as they compute. Threads that outnumber the cores do only what the cores do.
void Trainer::measure_peak() {
  peak_gflops_ = config_.logging.peak_gflops;
  if (peak_gflops_ > 0) return;
  ops::OpContext& ctx = engine_.context();
  const double cores = comm::share_of_cores(comm::gather_cores(comm_), comm_.rank());
  double peak[1] = {measure_peak_gflops(config_.train.precision, ctx.stream, ctx.bf16_products)};
  if (config_.run.device == "cpu") peak[0] *= std::min(1.0, cores / cpu::num_threads());
  peak_gflops_ = sum_over_ranks(peak) / comm_.size();
}

// Collective.
TrainResult Trainer::end_diverged(const DivergedAt& found) {
  std::string newest;
  run_and_agree(comm_, [&] {
    if (comm_.rank() != 0) return;
    lock_->refresh();
    // No start gets past a checkpoint that this followed from.
    set_checkpoint_aside(folder_.checkpoints(), step_);
    write_divergence(folder_, {found.step(), found.what()});
    const auto left = list_committed_checkpoints(folder_.checkpoints());
    newest = left.empty() ? "There is no good checkpoint: the same command begins anew"
                          : fmt::format("The newest good checkpoint is {}: the same command goes on from it",
                                        left.back().filename().string());
  });
  return {
      TrainEnd::diverged,
      fmt::format(
          "diverged: {}. {}, and ends here again unless something changes; a lower train.optimizer.lr or a longer "
          "warm-up usually helps, train.on_spike: skip passes such batches over, train.skip_steps those that it names",
          found.what(), broadcast_text(comm_, newest))};
}

TrainResult Trainer::run() {
  try {
    return {train(), ""};
  } catch (const DivergedAt& found) {
    return end_diverged(found);
  } catch (...) {
    if (lock_) lock_->release();  // before other ranks that failed too end this one
    throw;
  }
}

TrainEnd Trainer::train() {
  describe();
  if (config_.data.document_mask) engine_.set_end_of_document(sampler_.end_of_document());
  check_writable();
  resume();
  begin_writing();
  if (step_ >= config_.train.num_steps) {
    check_last_row();
    if (stopping_) return end_early();  // in the last validation, once more
    log::info("already at step {} of {}: nothing to do", step_, config_.train.num_steps);
    return TrainEnd::done;
  }
  if (agree_to_stop()) return end_early();
  measure_peak();
  if (agree_to_stop()) return end_early();
  saved_ = start_ = logged_ = Clock::now();
  logged_step_ = step_;
  while (step_ < config_.train.num_steps) {
    const int64_t before = step_;
    step();
    if (step_ != before + 1) continue;  // passed over
    if (!is_proven_) remove_older(step_ - 1);
    const bool interrupted = stopping_;  // in a validation
    const bool saves = agree_to_stop() || checkpoint_due();
    if (saves) save_checkpoint();
    tracer_.finish(engine_);
    // A request that came while saving finds nothing new to save; one that comes where nothing was saved waits for the next step. At
    // the last step there is nothing left to stop.
    if (interrupted || (saves && step_ < config_.train.num_steps && agree_to_stop())) return end_early();
  }
  check_last_validation(last_evaluation_);
  remove_older(step_);
  for (size_t source = 0; source < config_.data.train.size(); ++source)
    log::info("data: {:.2f} epochs of {}", sampler_.epochs(passed_.batch_of(step_))[source],
              config_.data.train[source].path);
  log::info("done: {} steps in {}; logs in {}", step_ - first_step_, duration_text(seconds_since(start_)),
            folder_.root.string());
  log::debug("{}", ledger_.report());
  return TrainEnd::done;
}

}  // namespace

TrainResult train(Config config, comm::Communicator& comm, const TrainProcess& process) {
  std::optional<Sampler> sampler;
  std::vector<evaluation::Task> tasks;
  run_and_agree(comm, [&] {
    if (config.model.vocab_size == 0) config.model.vocab_size = data_vocab_size(config.data);
    sampler.emplace(config);
    tasks = evaluation::load_tasks(config.train.eval.tasks, sampler->tokenizer(), config.data.seq_len);
  });
  const RunFolder folder = run_folder_of(config);
  std::unique_ptr<io::FolderLock> lock;  // rank 0's
  if (!lock_run_folder(folder, comm, lock)) return {TrainEnd::stopped, ""};
  check_run_folder(folder, config, comm);
  return Trainer(config, comm, process, *sampler, tasks, folder, lock.get()).run();
}

}  // namespace lamina
