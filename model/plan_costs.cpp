// Seconds of a micro-batch in each chunk and on each hop: what the plan simulates and what a schedule is made for.
#include "configs/schema/decode.h"
#include "model/plan.h"
#include "parallel/pipeline/block_routes.h"

namespace lamina::model {
namespace {

struct Layers {
  int64_t first = 0, count = 0;
  bool with_embedding = false, with_head = false;
};

struct Seconds {
  double forward = 0, backward_input = 0, backward_weight = 0;
};

// Of one token.
Seconds seconds_of(const PlanInputs& inputs, const Layers& layers) {
  const Config& config = inputs.config;
  const ModelConfig& model = config.model;
  const ElementSizes sizes = element_sizes(config.train.precision);
  const Recompute recompute = config.train.recompute;
  const double flops = inputs.device.tflops * 1e12, bytes = inputs.device.memory_gbps * 1e9;
  const double exchange = expert_exchange_bytes(model, config.parallel.expert, sizes) /
                          inputs.device.group_bandwidth(config.parallel.expert);
  Seconds s;
  for (int64_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    const Flops forward = layer_forward_flops(model, layer, config.data.seq_len);
    const Traffic traffic = layer_traffic(model, layer, sizes, recompute);
    const double reads = residual_flops(model, layer);
    s.forward += (forward.total() + reads) / flops + traffic.forward / bytes;
    s.backward_input += (forward.matmul + 2 * forward.core + 2 * reads +
                         recompute_flops(model, layer, config.data.seq_len, recompute)) /
                            flops +
                        traffic.backward / bytes;
    s.backward_weight += forward.matmul / flops;
    if (model.is_moe(layer)) {  // dispatch and combine; their gradients; with full recomputation the dispatch again
      s.forward += 2 * exchange;
      s.backward_input += (recompute == Recompute::full ? 3 : 2) * exchange;
    }
  }
  if (layers.with_embedding) {
    s.forward += 2 * static_cast<double>(model.hidden_size) * sizes.compute / bytes;
    s.backward_weight += 3 * static_cast<double>(model.hidden_size) * sizes.accumulation / bytes;
  }
  // The head's loss, its input's gradient and its weight's are one pass over the logits, in forward.
  if (layers.with_head)
    s.forward += 3 * head_forward_flops(model).total() / flops +
                 4 * static_cast<double>(model.vocab_size) * sizes.accumulation / bytes;
  return s;
}

}  // namespace

pipeline::LayerCosts device_costs(const PlanInputs& inputs) {
  const auto total = [&](const Layers& layers) {
    const Seconds s = seconds_of(inputs, layers);
    return s.forward + s.backward_input + s.backward_weight;
  };
  pipeline::LayerCosts costs;
  for (int64_t layer = 0; layer < inputs.config.model.num_hidden_layers; ++layer)
    costs.layer.push_back(total({layer, 1}));
  costs.embedding = total({0, 0, true, false});
  costs.head = total({0, 0, false, true});
  return costs;
}

pipeline::ChunkCosts chunk_costs(const PlanInputs& inputs, const std::vector<int64_t>& split) {
  const Config& config = inputs.config;
  const auto tokens = static_cast<double>(config.train.micro_batch_size * config.data.seq_len);
  pipeline::ChunkCosts costs;
  int64_t layer = 0;
  for (size_t c = 0; c < split.size(); layer += split[c++]) {
    const Seconds s = seconds_of(inputs, {layer, split[c], c == 0, c + 1 == split.size()});
    costs.forward.push_back(s.forward * tokens);
    costs.backward_input.push_back(s.backward_input * tokens);
    costs.backward_weight.push_back(s.backward_weight * tokens);
  }
  if (config.parallel.pipeline == 1) return costs;
  const pipeline::BlockRoutes routes =
      make_block_routes(pipeline::make_chunk_split(split), pipeline::make_block_layout(config.model),
                        config.parallel.pipeline, config.parallel.block_transport);
  const bool one_node = inputs.num_ranks <= inputs.device.ranks_per_node;
  const double rate = 1e9 * (one_node ? inputs.device.node_gbps : inputs.device.bandwidth_gbps);
  const double message =
      tokens * static_cast<double>(config.model.hidden_size) * element_sizes(config.train.precision).compute;
  for (size_t c = 0; c + 1 < split.size(); ++c) {  // the hidden stream and the summaries that go with it
    const double bytes =
        static_cast<double>(config.model.num_streams() + static_cast<int64_t>(routes.chunks[c].sent.size())) * message;
    costs.hop_forward.push_back(bytes / rate);
    costs.hop_backward.push_back(bytes / rate);
  }
  return costs;
}

pipeline::ChunkCosts schedule_costs(const Config& config, int num_ranks, const std::vector<int64_t>& split) {
  return chunk_costs({config, num_ranks, PlanDevice{}}, split);
}

}  // namespace lamina::model
