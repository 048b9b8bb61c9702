#include "model/plan.h"

#include <algorithm>
#include <map>
#include <set>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/ops/hyper_connections/hyper_connections.h"
#include "model/optimizers/optimizer.h"
#include "model/parameters.h"
#include "model/plan_pipeline.h"
#include "parallel/pipeline/block_routes.h"

namespace lamina::model {
namespace {

// Tokens whose logits the head has at one time.
constexpr double head_piece = 1024;

struct Sizes {
  ElementSizes element;
  double tokens = 0, hidden = 0;
  double row() const { return hidden * element.compute; }
};

ParameterCount chunk_parameters(const ModelConfig& model, const ChunkPlan& chunk, int num_chunks) {
  ParameterCount count;
  if (chunk.chunk == 0) count += embedding_parameters(model);
  for (int64_t i = 0; i < chunk.num_layers; ++i) count += layer_parameters(model, chunk.first_layer + i);
  if (chunk.chunk + 1 == num_chunks) count += head_parameters(model);
  return count;
}

double chunk_flops(const PlanInputs& inputs, const Plan& plan, const ChunkPlan& chunk, int num_chunks) {
  const ModelConfig& model = inputs.config.model;
  double flops = 0;
  for (int64_t layer = chunk.first_layer; layer < chunk.first_layer + chunk.num_layers; ++layer)
    flops +=
        3 * (layer_forward_flops(model, layer, inputs.config.data.seq_len).total() + residual_flops(model, layer)) +
        recompute_flops(model, layer, inputs.config.data.seq_len, plan.recompute);
  if (chunk.chunk + 1 == num_chunks) flops += 3 * head_forward_flops(model).total();
  return flops * static_cast<double>(plan.tokens_per_microbatch);
}

std::vector<ChunkPlan> make_chunks(const PlanInputs& inputs, const Plan& plan, const pipeline::ChunkCosts& costs) {
  const Config& config = inputs.config;
  const ElementSizes sizes = element_sizes(config.train.precision);
  const auto num_chunks = static_cast<int>(plan.parallel.split.size());
  std::vector<ChunkPlan> chunks(plan.parallel.split.size());
  int64_t layer = 0;
  for (int c = 0; c < num_chunks; ++c) {
    ChunkPlan& chunk = chunks[static_cast<size_t>(c)];
    chunk.chunk = c;
    chunk.first_layer = layer;
    chunk.num_layers = plan.parallel.split[static_cast<size_t>(c)];
    layer += chunk.num_layers;
    chunk.parameters = chunk_parameters(config.model, chunk, num_chunks).total();
    chunk.activation_bytes =
        static_cast<double>(plan.tokens_per_microbatch) *
        chunk_activation_bytes(
            config.model, {static_cast<int>(2 * chunk.first_layer), static_cast<int>(2 * layer), c + 1 == num_chunks},
            sizes, plan.recompute, plan.parallel.expert);
    if (config.parallel.schedule == ScheduleName::zero_bubble)
      for (int64_t i = chunk.first_layer; i < layer; ++i)
        chunk.deferred_bytes += static_cast<double>(plan.tokens_per_microbatch) *
                                layer_deferred_bytes(config.model, i, sizes, plan.recompute);
    const auto i = static_cast<size_t>(c);
    chunk.forward_seconds = costs.forward[i];
    chunk.backward_seconds = costs.backward_input[i] + costs.backward_weight[i];
  }
  return chunks;
}

// What the pass that runs needs, once per rank: the largest sublayer's temporaries and their gradients, the residual scheme's,
// a piece of logits.
double workspace_bytes(const PlanInputs& inputs, const Plan& plan, const RankPlan& rank, const Sizes& s) {
  const ModelConfig& model = inputs.config.model;
  double sublayer = 0, experts = 0, logits = 0;
  for (const ChunkPlan& chunk : rank.chunks) {
    for (int64_t i = 2 * chunk.first_layer; i < 2 * (chunk.first_layer + chunk.num_layers); ++i) {
      sublayer = std::max(sublayer, sublayer_activation_bytes(model, static_cast<int>(i), s.element, Recompute::none,
                                                              plan.parallel.expert));
      if (model.is_moe(i / 2)) experts = expert_workspace_bytes(model, s.element, plan.parallel.expert);
    }
    if (chunk.chunk + 1 == static_cast<int>(plan.parallel.split.size()))
      logits = std::min(head_piece, s.tokens) * static_cast<double>(model.vocab_size) * s.element.accumulation;
  }
  if (plan.recompute != Recompute::none) sublayer *= 2;  // made again, and its gradient
  // Output, read, normalised input and the output's gradient; the input made again, and its gradient; the open sum's gradient.
  double residual = 6 * s.row() + s.hidden * s.element.accumulation;
  // The means of a block's reads over its summaries, and the gradients of what was read; the output's read is one of them.
  if (model.residual == Residual::block_attnres)
    residual += 2 * static_cast<double>(2 * std::min(model.attn_res_block_size, model.num_hidden_layers) + 1) * s.row();
  if (model.residual == Residual::full_attnres) residual += 4 * s.row();
  // The gradients of streams and input; streams in the accumulation dtype; gradients of the coefficients and what they are made of.
  if (model.residual == Residual::mhc) {
    const int64_t n = model.num_streams();
    const double wide = static_cast<double>(n) * s.hidden, copy = s.element.compute < s.element.accumulation ? wide : 0;
    residual += (wide + s.hidden + copy + static_cast<double>(ops::num_projections(n) + ops::num_coefficients(n))) *
                s.element.accumulation;
  }
  const auto num_streams = static_cast<double>(model.num_streams());
  const double streams = plan.parallel.pipeline > 1 ? 6 * num_streams * s.row() : 0;  // on their way, both directions
  return s.tokens * (sublayer + experts + residual + streams) + logits;
}

// Bytes of the optimizers' state for what one rank holds, before data-parallel ranks share it out; `experts` is of its share.
struct StateBytes {
  double dense = 0, experts = 0;
};

StateBytes state_bytes(const Config& config, const ParallelConfig& parallel, const RankPlan& rank,
                       double accumulation) {
  const OptimizerConfig& optimizer = config.train.optimizer;
  const bool has_rules = std::any_of(optimizer.groups.begin(), optimizer.groups.end(),
                                     [](const OptimizerGroupConfig& group) { return group.rule.has_value(); });
  if (!has_rules) {  // the counts say it: models of many experts have tens of thousands of tensors
    const double linear = optimizer_of(optimizer.name).state_bytes(accumulation),
                 rest = optimizer_of_the_rest(optimizer.name).state_bytes(accumulation);
    const ParameterCount& held = rank.parameters;
    return {static_cast<double>(held.linear) * linear +
                static_cast<double>(held.matrices - held.linear + held.vectors) * rest,
            static_cast<double>(held.experts) * linear};
  }
  const std::vector<ParameterSpec> specs = parameter_specs(config.model);
  const std::vector<UpdateRule> rules = update_rules(config, specs);
  const auto is_held = [&](const ParameterSpec& spec) {
    const int64_t last = config.model.num_hidden_layers;
    return std::any_of(rank.chunks.begin(), rank.chunks.end(), [&](const ChunkPlan& chunk) {
      const int64_t end = chunk.first_layer + chunk.num_layers;
      const bool has_head = chunk.chunk + 1 == static_cast<int>(parallel.split.size());
      if (spec.site < 0) return chunk.chunk == 0 || (has_head && config.model.tie_word_embeddings);
      if (spec.site == 2 * last) return has_head;
      return chunk.first_layer <= spec.site / 2 && spec.site / 2 < end;
    });
  };
  StateBytes bytes;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!rules[i].optimizer || !is_held(specs[i])) continue;
    const double of_spec =
        static_cast<double>(specs[i].shape.num_elements()) * rules[i].optimizer->state_bytes(accumulation);
    if (specs[i].group == Group::experts)
      bytes.experts += of_spec / parallel.expert;
    else
      bytes.dense += of_spec;
  }
  return bytes;
}

void fill_memory(const PlanInputs& inputs, const Plan& plan, RankPlan& rank, const Sizes& s) {
  const ParameterCount& held = rank.parameters;
  const auto trained = static_cast<double>(held.matrices + held.experts + held.vectors);
  const double vectors = static_cast<double>(held.vectors + held.buffers);
  MemoryPlan& memory = rank.memory;
  memory.parameters =
      static_cast<double>(held.matrices + held.experts) * s.element.compute + vectors * s.element.accumulation;
  memory.gradients = trained * s.element.accumulation;
  const int data = plan.parallel.data;
  const double shared = static_cast<double>(data) / plan.parallel.expert;  // ranks with the same experts
  const StateBytes state = state_bytes(inputs.config, plan.parallel, rank, s.element.accumulation);
  memory.optimizer = state.dense / data + state.experts / shared;
  // The masters of what is stored in the accumulation dtype are the parameters themselves.
  if (s.element.compute < s.element.accumulation)
    memory.optimizer += (static_cast<double>(held.matrices) / data + static_cast<double>(held.experts) / shared) *
                        s.element.accumulation;
  memory.summaries = rank.peak_summaries * s.tokens * s.row();
  memory.summary_gradients = rank.peak_summary_gradients * s.tokens * s.hidden * s.element.accumulation;
  memory.workspace = workspace_bytes(inputs, plan, rank, s);
}

void fill_traffic(const PlanInputs& inputs, const Plan& plan, const pipeline::BlockRoutes& routes, RankPlan& rank,
                  const Sizes& s) {
  const ModelConfig& model = inputs.config.model;
  const auto num_chunks = static_cast<int>(routes.chunks.size());
  const auto microbatches = static_cast<double>(plan.num_microbatches);
  for (const ChunkPlan& chunk : rank.chunks) {
    const pipeline::ChunkRoutes& route = routes.chunks[static_cast<size_t>(chunk.chunk)];
    if (plan.parallel.pipeline > 1) {  // forward over the hop out, backward over the hop in
      rank.pipeline_hidden_bytes += microbatches * plan.stream_message_bytes *
                                    ((chunk.chunk + 1 < num_chunks ? 1 : 0) + (chunk.chunk > 0 ? 1 : 0));
      rank.pipeline_block_bytes +=
          microbatches * plan.summary_message_bytes * static_cast<double>(route.sent.size() + route.received.size());
    }
    for (int64_t layer = chunk.first_layer; layer < chunk.first_layer + chunk.num_layers; ++layer)
      if (model.is_moe(layer))
        rank.expert_bytes += (plan.recompute == Recompute::full ? 5 : 4) * microbatches * s.tokens *
                             expert_exchange_bytes(model, plan.parallel.expert, s.element);
    rank.flops += microbatches * chunk_flops(inputs, plan, chunk, num_chunks);
    rank.busy_seconds += microbatches * (chunk.forward_seconds + chunk.backward_seconds);
  }
  // A ring's share: gradients scattered in the accumulation dtype, parameters gathered in their own.
  const double data = plan.parallel.data, same_experts = data / plan.parallel.expert;
  const ParameterCount& held = rank.parameters;
  const double matrix = s.element.accumulation + s.element.compute;
  rank.data_bytes =
      (static_cast<double>(held.matrices) * matrix + static_cast<double>(held.vectors) * 2 * s.element.accumulation) *
          (1 - 1 / data) +
      static_cast<double>(held.experts) * matrix * (1 - 1 / same_experts);
}

double data_seconds(const PlanInputs& inputs, const Plan& plan) {
  double slowest = 0;
  for (const RankPlan& rank : plan.ranks) slowest = std::max(slowest, rank.data_bytes);
  return slowest / inputs.device.group_bandwidth(plan.parallel.data);
}

// Each rank's parameters; a tied embedding is also on the last pipeline rank.
ParameterCount rank_parameters(const ModelConfig& model, const Plan& plan, const RankPlan& rank) {
  const auto num_chunks = static_cast<int>(plan.parallel.split.size());
  ParameterCount count;
  for (const ChunkPlan& chunk : rank.chunks) count += chunk_parameters(model, chunk, num_chunks);
  if (model.tie_word_embeddings && plan.parallel.pipeline > 1 && rank.pp_rank + 1 == plan.parallel.pipeline)
    count += embedding_parameters(model);
  count.experts /= plan.parallel.expert;
  return count;
}

}  // namespace

double Plan::peak_bytes() const {
  double peak = 0;
  for (const RankPlan& rank : ranks) peak = std::max(peak, rank.memory.total());
  return peak;
}

bool Plan::fits(const PlanDevice& device) const {
  return peak_bytes() <= device.memory_gib * 1024 * 1024 * 1024;
}

namespace {

Plan plan_of_stage(const PlanInputs& inputs) {
  const Config& config = inputs.config;
  LAMINA_CHECK(config.model.vocab_size > 0, "model.vocab_size is not resolved");
  Plan plan;
  plan.parallel = config.parallel;
  plan.parallel.data = resolve_data_parallel(config, inputs.num_ranks);
  plan.parallel.split = resolve_split(config);
  plan.recompute = config.train.recompute;
  plan.num_ranks = inputs.num_ranks;
  plan.num_microbatches = config.train.global_batch_size / (config.train.micro_batch_size * plan.parallel.data);
  plan.tokens_per_microbatch = config.train.micro_batch_size * config.data.seq_len;
  plan.tokens_per_step = config.train.global_batch_size * config.data.seq_len;
  plan.num_parameters = model_parameters(config.model).total();
  plan.flops_per_token = training_flops_per_token(config.model, config.data.seq_len);
  plan.flops_per_step = plan.flops_per_token.total() * static_cast<double>(plan.tokens_per_step);
  const Sizes sizes{element_sizes(config.train.precision), static_cast<double>(plan.tokens_per_microbatch),
                    static_cast<double>(config.model.hidden_size)};
  plan.summary_message_bytes = sizes.tokens * sizes.row();
  plan.stream_message_bytes = static_cast<double>(config.model.num_streams()) * plan.summary_message_bytes;

  const pipeline::ChunkCosts costs = chunk_costs(inputs, plan.parallel.split);
  std::vector<ChunkPlan> chunks = make_chunks(inputs, plan, costs);
  const pipeline::BlockRoutes routes =
      make_block_routes(pipeline::make_chunk_split(plan.parallel.split), pipeline::make_block_layout(config.model),
                        plan.parallel.pipeline, plan.parallel.block_transport);
  // Ordered for what the run takes it for, and simulated for this device.
  const PipelineRun run = run_pipeline({plan.parallel.schedule, plan.parallel.pipeline, plan.num_microbatches,
                                        schedule_costs(config, inputs.num_ranks, plan.parallel.split)},
                                       costs, routes);
  for (int r = 0; r < plan.parallel.pipeline; ++r) {
    RankPlan& rank = plan.ranks.emplace_back();
    rank.pp_rank = r;
    for (size_t c = static_cast<size_t>(r); c < chunks.size(); c += static_cast<size_t>(plan.parallel.pipeline)) {
      chunks[c].peak_microbatches = static_cast<int>(run.peak_microbatches[c]);
      chunks[c].num_sent = static_cast<int>(routes.chunks[c].sent.size());
      chunks[c].num_received = static_cast<int>(routes.chunks[c].received.size());
      rank.chunks.push_back(chunks[c]);
      // A place that a micro-batch has used stays booked for the next one in the same chunk.
      rank.memory.activations += chunks[c].peak_microbatches * (chunks[c].activation_bytes + chunks[c].deferred_bytes);
    }
    const auto i = static_cast<size_t>(r);
    rank.parameters = rank_parameters(config.model, plan, rank);
    rank.peak_summaries = static_cast<int>(run.peak_summaries[i]);
    rank.peak_summary_gradients = static_cast<int>(run.peak_summary_gradients[i]);
    fill_memory(inputs, plan, rank, sizes);
    fill_traffic(inputs, plan, routes, rank, sizes);
  }
  plan.pipeline_seconds = run.makespan;
  double busy = 0;
  for (const RankPlan& rank : plan.ranks) busy += rank.busy_seconds;
  plan.bubble = std::max(0.0, 1 - busy / (plan.parallel.pipeline * run.makespan));  // sums round
  plan.data_seconds = data_seconds(inputs, plan);
  const double peak = inputs.device.peak_tflops > 0 ? inputs.device.peak_tflops : inputs.device.tflops;
  plan.mfu = plan.flops_per_step / (inputs.num_ranks * peak * 1e12 * plan.step_seconds());
  return plan;
}

// That may need most memory: of equal micro-batches, more of them hold no fewer in flight. Those after the run's end are no part of it.
std::vector<BatchStage> large_stages(const Config& config) {
  const BatchPlan plan(config);
  std::vector<BatchStage> large;
  for (const BatchStage& stage : plan.stages()) {
    if (!large.empty() && stage.first > config.train.num_steps) break;
    const auto alike = std::find_if(large.begin(), large.end(), [&](const BatchStage& other) {
      return other.micro_batch_size == stage.micro_batch_size && other.seq_len == stage.seq_len;
    });
    if (alike == large.end())
      large.push_back(stage);
    else if (alike->global_batch_size < stage.global_batch_size)
      *alike = stage;
  }
  return large;
}

}  // namespace

Plan make_plan(const PlanInputs& inputs) {
  resolve_data_parallel(inputs.config, inputs.num_ranks);
  Plan fullest;
  for (const BatchStage& stage : large_stages(inputs.config)) {
    PlanInputs of_stage = inputs;
    of_stage.config = config_of(inputs.config, stage);
    of_stage.config.parallel.split = resolve_split(inputs.config);
    Plan plan = plan_of_stage(of_stage);
    plan.batch = stage;
    if (fullest.ranks.empty() || plan.peak_bytes() > fullest.peak_bytes()) fullest = std::move(plan);
  }
  return fullest;
}

}  // namespace lamina::model
