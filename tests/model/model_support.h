// A small model with every parameter away from special points, and its loss and gradients.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/tensor/host_copy.h"
#include "model/stage.h"

namespace lamina::model {

inline ModelConfig small_config(Residual residual, int64_t layers, int64_t block_size = 2) {
  ModelConfig c;
  c.vocab_size = 37;
  c.hidden_size = 24;
  c.num_hidden_layers = layers;
  c.residual = residual;
  c.attn_res_block_size = block_size;
  c.num_attention_heads = 3;
  c.kv_lora_rank = 10;
  c.qk_nope_head_dim = 6;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 5;
  c.intermediate_size = 20;
  return c;
}

// A small Kimi Linear: both mixers, and mixtures of experts in all layers but the first.
inline ModelConfig hybrid_config(Residual residual, int64_t layers, int64_t block_size, bool bounded_gate) {
  ModelConfig c = small_config(residual, layers, block_size);
  c.mixers = {Mixer::kda, Mixer::mla};
  c.linear_num_heads = 2;
  c.linear_head_dim = 16;
  if (bounded_gate) c.gate_lower_bound = -5.0;
  c.num_experts = 5;
  c.num_experts_per_token = 2;
  c.moe_intermediate_size = 6;
  c.routed_scaling_factor = 1.7;
  c.aux_loss_alpha = 0.3;
  return c;
}

inline double get(const TensorView& x, int64_t i) {
  switch (x.dtype) {
    case DType::f64:
      return static_cast<double*>(x.data)[i];
    case DType::bf16:
      return static_cast<double>(static_cast<bf16*>(x.data)[i]);
    default:
      return static_cast<double>(static_cast<float*>(x.data)[i]);
  }
}

inline void set(const TensorView& x, int64_t i, double value) {
  switch (x.dtype) {
    case DType::f64:
      static_cast<double*>(x.data)[i] = value;
      break;
    case DType::bf16:
      static_cast<bf16*>(x.data)[i] = bf16(static_cast<float>(value));
      break;
    default:
      static_cast<float*>(x.data)[i] = static_cast<float>(value);
  }
}

class SmallModel {
 public:
  // layers_per_chunk: on one rank; empty: one chunk. On a GPU it has no losses: they are read here as the host's.
  SmallModel(const ModelConfig& config, DType dtype, Recompute recompute = Recompute::none, int64_t sequences = 2,
             int64_t seq_len = 7, std::vector<int64_t> layers_per_chunk = {}, Device device = {})
      : config_(config),
        plan_(make_stage_plan(
            config_, layers_per_chunk.empty() ? std::vector<int64_t>{config.num_hidden_layers} : layers_per_chunk, 1,
            BlockTransport::cached)),
        stream_(device),
        scratch_(device, &ledger, "scratch"),
        ctx{stream_, scratch_, refusals_, ops::Backend::fastest},
        parameters(config_, dtype, 1, device, &ledger),
        stage({config_, dtype, recompute, device, &ledger}, plan_, 0, sequences * seq_len, parameters),
        shape_{sequences, seq_len},
        tokens_(static_cast<size_t>(shape_.num_tokens())),
        targets_(tokens_.size()),
        losses_(tokens_.size() * 8),
        observer_(config_, accumulation_dtype(dtype), device, &ledger) {
    const CounterRng rng(5, "tokens");
    for (size_t i = 0; i < tokens_.size(); ++i) {
      tokens_[i] = static_cast<int32_t>(rng.below(2 * i, static_cast<uint64_t>(config.vocab_size)));
      targets_[i] = static_cast<int32_t>(rng.below(2 * i + 1, static_cast<uint64_t>(config.vocab_size)));
    }
    for (size_t p = 0; p < parameters.specs().size(); ++p) randomise(static_cast<int>(p));
    stream_.synchronize();
  }

  Stage::Pass pass(bool train) {
    const int64_t n = shape_.num_tokens();
    const DType acc = accumulation_dtype(parameters.group(Group::matrices).dtype);
    Stage::Pass p;
    p.shape = shape_;
    p.tokens = TensorView(tokens_.data(), DType::i32, {n});
    p.targets = TensorView(targets_.data(), DType::i32, {n});
    p.token_loss = TensorView(losses_.data(), acc, {n});
    p.grad_scale = 1.0 / static_cast<double>(n);
    p.train = train;
    observer_.begin({true, true, false, true}, shape_.num_sequences, ctx.stream);
    p.observer = &observer_;
    return p;
  }

  double loss() { return run(pass(false), pipeline::ActionKind::backward); }

  // split_backward: input gradients first, then weight gradients, as a zero-bubble schedule does.
  double loss_and_gradients(std::vector<LayerSums>* sums = nullptr, const std::function<void(int)>& ready = {},
                            bool split_backward = false) {
    Stage::Pass p = pass(true);
    p.sums = sums;
    p.ready = ready;
    return run(p, split_backward ? pipeline::ActionKind::backward_input : pipeline::ActionKind::backward);
  }

  double run(const Stage::Pass& p, pipeline::ActionKind backward) {
    stage.begin(ctx, p);
    const int num_chunks = plan_.num_chunks();
    for (int c = 0; c < num_chunks; ++c) stage.run({c, pipeline::ActionKind::forward, 0});
    double sum = 0;
    for (int64_t i = 0; i < p.token_loss.num_elements(); ++i) sum += get(p.token_loss, i);
    for (int c = num_chunks - 1; p.train && c >= 0; --c) stage.run({c, backward, 0});
    if (p.train && backward == pipeline::ActionKind::backward_input)
      for (int c = num_chunks - 1; c >= 0; --c) stage.run({c, pipeline::ActionKind::backward_weight, 0});
    stage.end();
    stats = observer_.collect(ctx.stream);
    double balance = 0;
    for (const SublayerStats& each : stats) balance += each.balance_loss;
    return sum * p.grad_scale + config_.aux_loss_alpha * balance / static_cast<double>(shape_.num_sequences);
  }

  std::vector<double> gradient(int parameter) const {
    const TensorView g = parameters.gradient(parameter);
    std::vector<double> out(static_cast<size_t>(g.num_elements()));
    for (size_t i = 0; i < out.size(); ++i) out[i] = get(g, static_cast<int64_t>(i));
    return out;
  }

  MemoryLedger ledger;
  std::vector<SublayerStats> stats;  // of the last pass

 private:
  void randomise(int parameter) {
    const ParameterSpec& spec = parameters.specs()[static_cast<size_t>(parameter)];
    HostRoom room(parameters.value(parameter), stream_);
    const TensorView& value = room.view();
    const CounterRng rng(11, spec.name);
    const double fan_in = static_cast<double>(spec.shape[-1]);
    for (int64_t i = 0; i < value.num_elements(); ++i) {
      const double x = rng.normal(static_cast<uint64_t>(i));
      set(value, i,
          spec.init == Init::ones ? 1.0 + 0.1 * x
                                  : (spec.name == "model.embed_tokens.weight" ? 0.5 * x : x / std::sqrt(fan_in)));
    }
    room.upload();
  }

  ModelConfig config_;
  StagePlan plan_;
  Stream stream_;
  Arena scratch_;
  ops::RefusalLog refusals_;

 public:
  ops::OpContext ctx;
  Parameters parameters;
  Stage stage;

 private:
  Batch shape_;
  std::vector<int32_t> tokens_, targets_;
  std::vector<char> losses_;
  Observer observer_;
};

inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace lamina::model
