// A run in progress, on one rank: what train() does. Declared here for the sources of this folder that define it: trainer_start.cpp (from the
// configuration to the first step), trainer_step.cpp (a step, and what is measured around it), train.cpp (validation, saves, the run).
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/stop.h"
#include "data/passed_batches.h"
#include "data/sampler.h"
#include "evaluation/tasks.h"
#include "parallel/comm/communicator.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/record/depth_read_watch.h"
#include "trainer/record/metrics.h"
#include "trainer/record/pipeline_stats.h"
#include "trainer/record/run_folder.h"
#include "trainer/record/spike_log.h"
#include "trainer/record/spike_watch.h"
#include "trainer/step/engine.h"
#include "trainer/step/engine_dump.h"
#include "trainer/step/evaluate.h"
#include "trainer/step/layer_stats.h"
#include "trainer/step/step_tracer.h"
#include "trainer/tensorboard/event_writer.h"
#include "trainer/train.h"

namespace lamina {

// Thrown by all ranks: the run ends here.
class DivergedAt : public Diverged {
 public:
  DivergedAt(int64_t step, const std::string& what) : Diverged(fmt::format("step {}: {}", step, what)), step_(step) {}
  int64_t step() const { return step_; }

 private:
  int64_t step_;
};

// As in the row of a step that validates.
JsonRow validation_row(const Evaluation& evaluation);

class Trainer {
 public:
  // `lock` is rank 0's.
  Trainer(const Config& config, comm::Communicator& comm, const TrainProcess& process, const Sampler& sampler,
          const std::vector<evaluation::Task>& tasks, const RunFolder& folder, io::FolderLock* lock);
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

}  // namespace lamina
