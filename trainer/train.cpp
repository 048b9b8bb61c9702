#include "trainer/train.h"

#include <algorithm>
#include <memory>

#include "configs/schema/decode.h"
#include "core/base/log.h"
#include "core/device/cpu/parallel_for.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/cores.h"
#include "trainer/checkpoint/version.h"
#include "trainer/record/console_text.h"
#include "trainer/record/identity.h"
#include "trainer/record/task_metrics.h"
#include "trainer/step/bf16_choice.h"
#include "trainer/step/peak_rate.h"
#include "trainer/trainer.h"

namespace lamina {

// As in the row of a step that validates.
JsonRow validation_row(const Evaluation& evaluation) {
  return JsonRow().add("validation_loss", evaluation.loss).add("validation_bits_per_byte", evaluation.bits_per_byte);
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
