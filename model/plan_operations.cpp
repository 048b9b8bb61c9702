// How long each operation of a step is predicted to take, and the table.
#include <fmt/ranges.h>

#include <algorithm>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "model/plan.h"

namespace lamina::model {
namespace {

const char* pass_name(Phase phase) {
  switch (phase) {
    case Phase::forward:
      return "forward";
    case Phase::again:
      return "again";
    case Phase::backward:
      return "backward";
    case Phase::update:
      return "update";
  }
  return "";
}

double rate_of(KernelClass kernels, const PlanDevice& device) {
  switch (kernels) {
    case KernelClass::products:
      return 1e12 * device.tflops;
    case KernelClass::experts:
      return 1e12 * device.experts_tflops;
    case KernelClass::attention:
      return 1e12 * device.attention_tflops;
    case KernelClass::kda:
      return 1e12 * device.kda_tflops;
  }
  return 0;
}

// The operations of a step as they are added up; those of one name, pass and kind of call become one.
class Step {
 public:
  explicit Step(const PlanDevice& device) : device_(device) {}

  void add(const Operation& operation, double times) {
    const Work& work = operation.work;
    const double compute = work.flops / rate_of(operation.kernels, device_),
                 memory = work.bytes / (1e9 * device_.memory_gbps);
    const double calls = times * operation.calls;
    OperationTime& time = entry(operation.name, operation.op, pass_name(operation.phase));
    time.calls += calls;
    time.work += calls * work;
    (compute > memory ? time.compute : time.memory) += calls * std::max(compute, memory);
    time.launches += calls * work.launches * 1e-6 * device_.launch_us;
  }
  void send(const std::string& name, double messages, double bytes, double bytes_per_second) {
    if (bytes == 0) return;
    OperationTime& time = entry(name, "", "sent");
    time.calls += messages;
    time.work.bytes += bytes;
    time.network += bytes / bytes_per_second;
  }
  std::vector<OperationTime> all() { return std::move(times_); }

 private:
  OperationTime& entry(const std::string& name, const char* op, const char* pass) {
    const auto found = std::find_if(times_.begin(), times_.end(), [&](const OperationTime& time) {
      return time.name == name && std::string_view(time.op) == op && std::string_view(time.pass) == pass;
    });
    return found != times_.end() ? *found : times_.emplace_back(OperationTime{name, op, pass, 0, {}});
  }

  const PlanDevice& device_;
  std::vector<OperationTime> times_;
};

double sum_of(const std::vector<OperationTime>& times, double OperationTime::*part) {
  double sum = 0;
  for (const OperationTime& time : times) sum += time.*part;
  return sum;
}
double sum_of(const std::vector<OperationTime>& times) {
  double sum = 0;
  for (const OperationTime& time : times) sum += time.seconds();
  return sum;
}

// For a table one row per name and pass.
std::vector<OperationTime> joined(const std::vector<OperationTime>& times) {
  std::vector<OperationTime> rows;
  for (const OperationTime& time : times) {
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const OperationTime& other) {
      return other.name == time.name && std::string_view(other.pass) == time.pass;
    });
    if (row == rows.end()) {
      rows.push_back(time);
      continue;
    }
    row->calls += time.calls;
    row->work += time.work;
    row->compute += time.compute, row->memory += time.memory;
    row->launches += time.launches, row->network += time.network;
  }
  return rows;
}

std::string figure_text(const DeviceFigure& figure) {
  return fmt::format("{:.5g} ({})", figure.value, name_of(figure.basis));
}

}  // namespace

PlanDevice plan_device(const DeviceConfig& device) {
  const DeviceRates& rates = device.rates;
  const DeviceShares& shares = device.attainable;
  const auto usable = [](const DeviceFigure& rate, const DeviceFigure& share) { return rate.value * share.value; };
  PlanDevice result;
  result.name = device.name;
  result.tflops = usable(rates.bf16_tflops, shares.products);
  result.experts_tflops = usable(rates.bf16_tflops, shares.experts);
  result.attention_tflops = usable(rates.bf16_tflops, shares.attention);
  result.kda_tflops = usable(rates.bf16_tflops, shares.kda);
  result.peak_tflops = rates.bf16_tflops.value;
  result.memory_gib = usable(device.memory_gib, shares.capacity);
  result.memory_gbps = usable(rates.memory_gbps, shares.memory);
  result.bandwidth_gbps = usable(rates.network_gbps, shares.network);
  result.node_gbps = usable(rates.node_gbps, shares.node);
  result.ranks_per_node = device.ranks_per_node;
  result.launch_us = device.launch_us.value;
  const auto product = [](const DeviceFigure& rate, const DeviceFigure& share) {
    return figure_text(rate) + " x " + figure_text(share);
  };
  result.basis = fmt::format("TFLOP/s {}, GiB {}, GB/s {}; in a node {}, between nodes {}",
                             product(rates.bf16_tflops, shares.products), product(device.memory_gib, shares.capacity),
                             product(rates.memory_gbps, shares.memory), product(rates.node_gbps, shares.node),
                             product(rates.network_gbps, shares.network));
  return result;
}

const char* OperationTime::bound_by() const {
  const double most = std::max({compute, memory, launches, network});
  return most == compute ? "compute" : most == memory ? "memory" : most == launches ? "launches" : "network";
}

std::vector<OperationTime> predict_operations(const PlanInputs& inputs, const Plan& plan, const RankPlan& rank) {
  const Config config = config_of(inputs.config, plan.batch);
  const PlanDevice& device = inputs.device;
  LAMINA_CHECK(device.launch_us > 0, "{} is not of a device file", device.name);
  const auto microbatches = static_cast<double>(plan.num_microbatches);
  const auto num_chunks = static_cast<int>(plan.parallel.split.size());
  Step step(device);
  double exchanges = 0;
  for (const ChunkPlan& chunk : rank.chunks) {
    const int64_t end = chunk.first_layer + chunk.num_layers;
    ChunkPass pass;
    pass.range = {static_cast<int>(2 * chunk.first_layer), static_cast<int>(2 * end), chunk.chunk + 1 == num_chunks};
    pass.is_first = chunk.chunk == 0;
    pass.tokens = static_cast<double>(plan.tokens_per_microbatch);
    pass.seq_len = config.data.seq_len;
    pass.sizes = element_sizes(config.train.precision);
    pass.recompute = plan.recompute;
    pass.expert_ranks = plan.parallel.expert;
    pass.defers_weights = plan.parallel.schedule == ScheduleName::zero_bubble;
    pass.num_received = chunk.num_received, pass.num_sent = chunk.num_sent;
    for (const Operation& operation : chunk_operations(config.model, pass)) step.add(operation, microbatches);
    for (int64_t layer = chunk.first_layer; layer < end; ++layer)
      if (config.model.is_moe(layer)) exchanges += (plan.recompute == Recompute::full ? 5 : 4) * microbatches;
  }
  const bool one_node = inputs.num_ranks <= device.ranks_per_node;
  const double hop = 1e9 * (one_node ? device.node_gbps : device.bandwidth_gbps);
  step.send("hops: hidden stream", rank.pipeline_hidden_bytes / plan.stream_message_bytes, rank.pipeline_hidden_bytes,
            hop);
  step.send("hops: summaries", rank.pipeline_block_bytes / plan.summary_message_bytes, rank.pipeline_block_bytes, hop);
  step.send("experts: rows", exchanges, rank.expert_bytes, device.group_bandwidth(plan.parallel.expert));
  step.send("gradients, parameters", 2, rank.data_bytes, device.group_bandwidth(plan.parallel.data));
  for (const Operation& operation : update_operations(config, plan.num_ranks)) step.add(operation, 1);
  return step.all();
}

std::string operations_to_text(const PlanInputs& inputs) {
  const Plan plan = make_plan(inputs);
  const PlanDevice& device = inputs.device;
  std::vector<OperationTime> times;
  int slowest = 0;
  for (const RankPlan& rank : plan.ranks) {
    std::vector<OperationTime> of_rank = predict_operations(inputs, plan, rank);
    if (sum_of(of_rank) <= sum_of(times)) continue;
    times = std::move(of_rank);
    slowest = rank.pp_rank;
  }
  times = joined(times);
  const double sum = sum_of(times);
  std::string text = fmt::format(
      "operations   PREDICTED, not measured: one step on pipeline rank {} of {}, the one with the largest sum; {} "
      "micro-batches of {} "
      "tokens, recompute {}\n",
      slowest, plan.parallel.pipeline, plan.num_microbatches, plan.tokens_per_microbatch, name_of(plan.recompute));
  if (BatchPlan(inputs.config).stages().size() > 1)
    text += fmt::format("stage        the one that needs most memory, from step {} on\n", plan.batch.first);
  text += fmt::format(
      "device       {}: products {:.4g} TFLOP/s, experts' {:.4g}, attention {:.4g}, KDA {:.4g}; memory {:.4g} GB/s; "
      "{:.4g} us a launch; "
      "{:.4g} GB/s inside a node of {}, {:.4g} GB/s between nodes\n  of         {}\n\n",
      device.name, device.tflops, device.experts_tflops, device.attention_tflops, device.kda_tflops, device.memory_gbps,
      device.launch_us, device.node_gbps, device.ranks_per_node, device.bandwidth_gbps, device.basis);
  text += fmt::format("{:<30} {:<8} {:>9} {:>10} {:>10} {:>10} {:>9} {:>11} {:>11} {:>7}\n", "operation", "pass",
                      "calls", "TFLOP", "GB", "launches", "bound by", "us a call", "ms", "share");
  Work work;
  for (const OperationTime& time : times) {
    text += fmt::format("{:<30} {:<8} {:>9.0f} {:>10.2f} {:>10.2f} {:>10.0f} {:>9} {:>11.2f} {:>11.3f} {:>6.1f}%\n",
                        time.name, time.pass, time.calls, 1e-12 * time.work.flops, 1e-9 * time.work.bytes,
                        time.work.launches, time.bound_by(), 1e6 * time.seconds() / time.calls, 1e3 * time.seconds(),
                        100 * time.seconds() / sum);
    work += time.work;
  }
  text += fmt::format("{:<30} {:<8} {:>9} {:>10.2f} {:>10.2f} {:>10.0f} {:>9} {:>11} {:>11.3f} {:>6.1f}%\n", "sum", "",
                      "", 1e-12 * work.flops, 1e-9 * work.bytes, work.launches, "", "", 1e3 * sum, 100.0);
  const auto share = [&](double OperationTime::*part) { return 100 * sum_of(times, part) / sum; };
  text += fmt::format("\nsum          compute {:.1f} %, memory {:.1f} %, launches {:.1f} %, network {:.1f} %\n",
                      share(&OperationTime::compute), share(&OperationTime::memory), share(&OperationTime::launches),
                      share(&OperationTime::network));
  const auto largest = std::max_element(times.begin(), times.end(), [](const OperationTime& a, const OperationTime& b) {
    return a.seconds() < b.seconds();
  });
  text += fmt::format("bounds it    {}, {}: {:.1f} % of the sum, by {}\n", largest->name, largest->pass,
                      100 * largest->seconds() / sum, largest->bound_by());
  text += fmt::format(
      "not in it    waits for other pipeline ranks (the plan's bubble is {:.1f} %), waits of the host, logs and "
      "checkpoints\n",
      100 * plan.bubble);
  return text;
}

}  // namespace lamina::model
