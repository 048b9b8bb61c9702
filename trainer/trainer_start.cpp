#include "trainer/trainer.h"

#include "configs/schema/decode.h"
#include "core/base/here.h"
#include "core/base/log.h"
#include "model/cost_model.h"
#include "model/update_rules.h"
#include "parallel/comm/agreement.h"
#include "trainer/checkpoint/version.h"
#include "trainer/record/console_text.h"
#include "trainer/record/identity.h"
#include "trainer/step/bf16_choice.h"
#include "trainer/step/restore.h"

namespace lamina {

Trainer::Trainer(const Config& config, comm::Communicator& comm, const TrainProcess& process, const Sampler& sampler,
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

}  // namespace lamina
