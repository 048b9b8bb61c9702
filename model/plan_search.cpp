#include <algorithm>
#include <array>

#include "core/base/error.h"
#include "model/plan.h"

namespace lamina::model {
namespace {

constexpr int most_virtual_stages = 4;

std::vector<int> divisors(int64_t number, int64_t most) {
  std::vector<int> result;
  for (int64_t d = 1; d <= std::min(number, most); ++d)
    if (number % d == 0) result.push_back(static_cast<int>(d));
  return result;
}

std::vector<int> expert_sizes(const ModelConfig& model, int data) {
  std::vector<int> sizes;
  for (int expert : divisors(data, model.num_experts == 0 ? 1 : model.num_experts))
    if (model.num_experts % expert == 0) sizes.push_back(expert);
  return sizes;
}

}  // namespace

std::vector<Plan> search_layouts(const PlanInputs& inputs) {
  const Config& config = inputs.config;
  const int64_t most_chunks = config.model.num_hidden_layers + 2;
  const BatchPlan batches(config);
  std::vector<Plan> plans;
  for (int pipeline : divisors(inputs.num_ranks, most_chunks)) {
    const int data = inputs.num_ranks / pipeline;
    if (std::any_of(batches.stages().begin(), batches.stages().end(), [data](const BatchStage& stage) {
          return stage.global_batch_size % (stage.micro_batch_size * data) != 0;
        }))
      continue;
    const bool one_chunk = pipeline == 1 || config.parallel.schedule == ScheduleName::one_f_one_b;
    const int most_stages = one_chunk ? 1 : std::max(config.parallel.virtual_stages, most_virtual_stages);
    for (int stages = 1; stages <= most_stages && int64_t{stages} * pipeline <= most_chunks; ++stages) {
      // The exchange makes the layers with experts dearer, about the same for every group of one kind and however much is
      // recomputed.
      std::array<std::vector<int64_t>, 3> splits;
      for (Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
        PlanInputs candidate = inputs;
        ParallelConfig& parallel = candidate.config.parallel;
        parallel.pipeline = pipeline;
        parallel.virtual_stages = stages;
        parallel.data = data;
        candidate.config.train.recompute = recompute;
        for (int expert : expert_sizes(config.model, data)) {
          parallel.expert = expert;
          std::vector<int64_t>& split = splits[expert == 1 ? 0 : expert <= inputs.device.ranks_per_node ? 1 : 2];
          if (split.empty()) split = choose_split(device_costs(candidate), parallel);
          parallel.split = split;
          plans.push_back(make_plan(candidate));
        }
      }
    }
  }
  std::stable_sort(plans.begin(), plans.end(), [&](const Plan& a, const Plan& b) {
    const bool a_fits = a.fits(inputs.device), b_fits = b.fits(inputs.device);
    if (a_fits != b_fits) return a_fits;
    return a_fits ? a.step_seconds() < b.step_seconds() : a.peak_bytes() < b.peak_bytes();
  });
  return plans;
}

std::vector<Plan> compare_schedules(const PlanInputs& inputs) {
  const ParallelConfig& parallel = inputs.config.parallel;
  const bool blocks_travel = inputs.config.model.has_depth_reads() && parallel.pipeline > 1;
  std::vector<Plan> plans;
  for (ScheduleName schedule :
       {ScheduleName::gpipe, ScheduleName::one_f_one_b, ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble}) {
    // With one chunk per rank interleaved_1f1b is 1f1b.
    const auto other = parallel.virtual_stages > 1 ? ScheduleName::one_f_one_b : ScheduleName::interleaved_1f1b;
    if (schedule == other) continue;
    for (BlockTransport transport : {BlockTransport::cached, BlockTransport::full}) {
      if (transport == BlockTransport::full && !blocks_travel) continue;
      PlanInputs candidate = inputs;
      candidate.config.parallel.schedule = schedule;
      candidate.config.parallel.block_transport = transport;
      plans.push_back(make_plan(candidate));
    }
  }
  return plans;
}

}  // namespace lamina::model
