#include "trainer/trainer.h"

#include <algorithm>
#include <cmath>

#include "core/base/here.h"
#include "core/base/log.h"
#include "parallel/comm/agreement.h"
#include "trainer/record/console_text.h"
#include "trainer/step/lr_schedule.h"
#include "trainer/step/peak_rate.h"

namespace lamina {

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

}  // namespace lamina
