// What a run will need and take, from its configuration alone: memory, messages, bubble and time of every pipeline rank, for
// models and numbers of ranks far beyond this machine. Pure functions; `lamina plan` prints the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "configs/schema/config.h"
#include "configs/schema/device.h"
#include "model/operations.h"
#include "parallel/pipeline/simulate.h"

namespace lamina::model {

// One rank's device and its network. The defaults are an H100 SXM 80 GB in nodes of eight: dense bf16 and HBM3 as its data
// sheet has them, NVLink in one direction, one 400 Gb/s link per GPU.
struct PlanDevice {
  std::string name = "an H100 SXM as its data sheet has it";
  double tflops = 989.5;       // of matrix products
  double memory_gib = 80;      // that the run may use
  double memory_gbps = 3350;   // 10^9 bytes per second, as the next two
  double bandwidth_gbps = 50;  // sent by one rank to other nodes
  double node_gbps = 450;      // sent by one rank inside its node
  int ranks_per_node = 8;
  // Of a device file; 0 or empty without one. What single operations are predicted with, besides `tflops` and `memory_gbps`:
  double experts_tflops = 0, attention_tflops = 0, kda_tflops = 0, launch_us = 0;
  double peak_tflops = 0;  // of the data sheet: what the MFU counts against, instead of `tflops`
  std::string basis;       // where the figures are from, for people
  bool operator==(const PlanDevice&) const = default;
  // Bytes per second that one rank sends inside a group of `span` neighbours.
  double group_bandwidth(int span) const {
    return 1e9 * (span <= ranks_per_node && ranks_per_node % span == 0 ? node_gbps : bandwidth_gbps);
  }
};

PlanDevice plan_device(const DeviceConfig& device);  // its rates times what is attainable of each

struct PlanInputs {
  Config config;  // model.vocab_size resolved
  int num_ranks = 1;
  PlanDevice device;
};

struct MemoryPlan {  // bytes of one rank at its peak
  double parameters = 0, gradients = 0;
  double optimizer = 0;          // masters and state; shared out over the data-parallel ranks
  double activations = 0;        // places of the micro-batches in flight, summaries not counted
  double summaries = 0;          // block cache: values
  double summary_gradients = 0;  // block cache: accumulators
  double workspace = 0;          // one sublayer's temporaries, the residual scheme's, streams on their way
  double total() const {
    return parameters + gradients + optimizer + activations + summaries + summary_gradients + workspace;
  }
};

struct ChunkPlan {
  int chunk = 0;
  int64_t first_layer = 0, num_layers = 0;
  int64_t parameters = 0;
  double activation_bytes = 0;                       // one micro-batch in flight
  double deferred_bytes = 0;                         // zero_bubble: operands of its weight gradients
  int peak_microbatches = 0;                         // in flight
  double forward_seconds = 0, backward_seconds = 0;  // one micro-batch, exchange with experts included
  int num_sent = 0, num_received = 0;                // summaries on the hops out of this chunk and into it
};

struct RankPlan {
  int pp_rank = 0;
  std::vector<ChunkPlan> chunks;
  ParameterCount parameters;  // held by one rank: its share of the experts
  MemoryPlan memory;
  int peak_summaries = 0, peak_summary_gradients = 0;
  double flops = 0;  // in one step, recomputation included
  // Bytes that one rank sends in a step.
  double pipeline_hidden_bytes = 0, pipeline_block_bytes = 0, data_bytes = 0, expert_bytes = 0;
  double busy_seconds = 0;  // in one step
};

struct Plan {
  BatchStage batch;         // of the run, that this is the plan of
  ParallelConfig parallel;  // data and split resolved
  Recompute recompute = Recompute::none;
  int num_ranks = 1;
  int64_t num_microbatches = 1, tokens_per_microbatch = 0, tokens_per_step = 0;
  int64_t num_parameters = 0;
  std::vector<RankPlan> ranks;  // [pp_rank]; the data-parallel ranks of each are alike
  double stream_message_bytes = 0, summary_message_bytes = 0;
  FlopsPerToken flops_per_token;  // of the model, recomputation not counted
  double flops_per_step = 0;
  double bubble = 0;  // of the schedule: the share of pipeline time in which a rank computes nothing
  double pipeline_seconds = 0, data_seconds = 0;
  double step_seconds() const { return pipeline_seconds + data_seconds; }
  double mfu = 0;  // at most: flops_per_step over what all devices could do in step_seconds
  double peak_bytes() const;
  bool fits(const PlanDevice& device) const;
};

// Of the run's stage that needs most memory; layers per chunk are those that the run begins with. Throws Error with the reason where
// the layout is not possible.
Plan make_plan(const PlanInputs& inputs);

// Seconds per token and layer on `device`, exchange with the experts included, as make_plan() counts them.
pipeline::LayerCosts device_costs(const PlanInputs& inputs);
// Seconds of one micro-batch in the chunks of a split, and on the hops between them.
pipeline::ChunkCosts chunk_costs(const PlanInputs& inputs, const std::vector<int64_t>& split);
// The same on the default device whatever the run's own is: what make_schedule() gets, in a run and in its plan.
pipeline::ChunkCosts schedule_costs(const Config& config, int num_ranks, const std::vector<int64_t>& split);

// Layouts of the same model and batch on the same ranks: every pipeline x virtual_stages x data x expert x recompute that is
// possible with the configured schedule, transport and micro-batch, split for the device's costs. Those that fit come first,
// the quickest first; the others by memory.
std::vector<Plan> search_layouts(const PlanInputs& inputs);

// The configured layout with each schedule and, where blocks travel, both transports: gpipe, 1f1b (one chunk per rank),
// interleaved_1f1b (several), zero_bubble. The split is the configured one.
std::vector<Plan> compare_schedules(const PlanInputs& inputs);

// What an operation, in all its calls in one step of a rank, is predicted to take, by what takes the time. Each call takes its FLOPs or its
// bytes, whichever is longer, and its launches; what is sent takes its bytes over the link.
struct OperationTime {
  std::string name;
  const char* op = "";    // as dispatched; empty: sent to other ranks
  const char* pass = "";  // "forward", "again", "backward", "update", "sent"
  double calls = 0;
  Work work;                                                  // of all calls
  double compute = 0, memory = 0, launches = 0, network = 0;  // seconds
  double seconds() const { return compute + memory + launches + network; }
  const char* bound_by() const;  // "compute", "memory", "launches" or "network", the largest
};
// Of one of `plan`'s ranks, whose device must be of a device file and whose residual scheme must run on GPUs. Nothing overlaps, and no
// rank waits for another.
std::vector<OperationTime> predict_operations(const PlanInputs& inputs, const Plan& plan, const RankPlan& rank);
// Its table, for the pipeline rank with the largest sum.
std::string operations_to_text(const PlanInputs& inputs);

std::string to_text(const Plan& plan, const PlanInputs& inputs);
std::string schedules_to_text(const std::vector<Plan>& plans);
// A table of the first `most`.
std::string to_text(const std::vector<Plan>& layouts, const PlanInputs& inputs, size_t most = 8);

}  // namespace lamina::model
