#include "model/chunk.h"

#include "core/ops/cross_entropy/cross_entropy.h"
#include "core/ops/elementwise/elementwise.h"
#include "core/ops/embedding/embedding.h"

namespace lamina::model {
namespace {

void add_to(std::vector<double>& sums, const std::vector<double>& values) {
  sums.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) sums[i] += values[i];
}

}  // namespace

Chunk::Slot::Slot(const Chunk& chunk, const ChunkOptions& options, ResidualWorkspace& workspace)
    : keep_(options.device, options.ledger, "activations"),
      pass_(make_residual_pass(chunk.residual_, chunk.range_, chunk.sites_, workspace)),
      layers_(chunk.layers_.size()),
      weights_(options.device, options.ledger) {}

Chunk::Chunk(const ChunkOptions& options, const ChunkRange& range, Parameters& parameters)
    : range_(range),
      residual_{options.config, options.dtype, options.recompute},
      hidden_size_(options.config.hidden_size) {
  build_sites(options.config, parameters);
  for (int sublayer = range.begin; sublayer < range.end; sublayer += 2)
    layers_.push_back(make_layer(options, parameters, sublayer / 2));
  for (int sublayer = range.begin; sublayer < range.end; ++sublayer) {
    const Layer& layer = layers_[local_layer(sublayer)];
    const auto parameters_of = [](const auto& module) { return module.parameters(); };
    std::vector<int> used =
        sublayer % 2 == 0 ? std::visit(parameters_of, layer.mixer) : std::visit(parameters_of, layer.mlp);
    const Site& site = sites_[static_cast<size_t>(sublayer - range.begin)];
    used.insert(used.end(), site.norm_parameters.begin(), site.norm_parameters.end());
    reported_.push_back(std::move(used));
  }
  for (const Site& site : sites_)
    queries_.insert(queries_.end(), site.query_parameters.begin(), site.query_parameters.end());
  if (has_embedding()) {
    embedding_index_ = parameters.index_of("model.embed_tokens.weight");
    embedding_ = parameters.value(embedding_index_);
    d_embedding_ = parameters.gradient(embedding_index_);
  }
  if (range.is_last) {
    head_index_ =
        parameters.index_of(options.config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
    head_ = parameters.value(head_index_);
    d_head_ = parameters.gradient(head_index_);
  }
}

Chunk::Layer Chunk::make_layer(const ChunkOptions& options, Parameters& parameters, int64_t layer) const {
  const ModelConfig& config = options.config;
  const auto mixer = [&]() -> std::variant<Mla, Kda> {
    if (config.mixer(layer) == Mixer::kda) return Kda(config, parameters, layer);
    return Mla(config, parameters, layer);
  };
  const auto mlp = [&]() -> std::variant<Mlp, Moe> {
    if (config.is_moe(layer)) return Moe(config, parameters, layer, options.experts);
    return Mlp(parameters, fmt::format("model.layers.{}.mlp.", layer));
  };
  return {mixer(), mlp()};
}

void Chunk::build_sites(const ModelConfig& config, Parameters& parameters) {
  const auto add = [&](const std::string& norm, const std::string& name) {
    Site site;
    site.norm_eps = config.rms_norm_eps;
    const auto use = [&](const std::string& tensor, std::vector<int>& list) {
      list.push_back(parameters.index_of(tensor));
      return list.back();
    };
    const int index = use(norm, site.norm_parameters);
    site.norm_weight = parameters.value(index);
    site.d_norm_weight = parameters.gradient(index);
    if (const std::string mixing = name + "_mhc"; parameters.has(mixing + ".weight")) {
      const auto views = [&](const char* tensor, TensorView& value, TensorView& gradient) {
        const int mixing_index = use(mixing + tensor, site.norm_parameters);
        value = parameters.value(mixing_index);
        gradient = parameters.gradient(mixing_index);
      };
      views(".weight", site.mixing.weight, site.d_mixing.weight);
      views(".bias", site.mixing.bias, site.d_mixing.bias);
      views(".alpha", site.mixing.alpha, site.d_mixing.alpha);
    }
    if (config.has_depth_reads()) {
      const int g = use(name + "_res_norm.weight", site.query_parameters),
                w = use(name + "_res_proj.weight", site.query_parameters);
      const Shape flat{config.hidden_size};
      site.query = {parameters.value(g), parameters.value(w).reshaped(flat)};
      site.d_query = {parameters.gradient(g), parameters.gradient(w).reshaped(flat)};
    }
    sites_.push_back(std::move(site));
  };
  for (int sublayer = range_.begin; sublayer < range_.end; ++sublayer) {
    const std::string prefix = fmt::format("model.layers.{}.", sublayer / 2);
    if (sublayer % 2 == 0)
      add(prefix + "input_layernorm.weight", prefix + "self_attention");
    else
      add(prefix + "post_attention_layernorm.weight", prefix + "mlp");
  }
  if (range_.is_last) add("model.norm.weight", "model.output_attn");
}

template <class Action>
void Chunk::with_sublayer(Slot& slot, int sublayer, const Action& action) const {
  const Layer& layer = layers_[local_layer(sublayer)];
  LayerSaved& saved = slot.layers_[local_layer(sublayer)];
  if (sublayer % 2 == 0) {
    if (const Kda* kda = std::get_if<Kda>(&layer.mixer))
      action(*kda, saved.kda);
    else
      action(std::get<Mla>(layer.mixer), saved.mla);
  } else if (const Moe* moe = std::get_if<Moe>(&layer.mlp)) {
    action(*moe, saved.moe);
  } else {
    action(std::get<Mlp>(layer.mlp), saved.dense);
  }
}

void Chunk::run_sublayer(ops::OpContext& ctx, Slot& slot, const Batch& batch, int sublayer, TensorView x,
                         TensorView y) {
  const ArenaScope scope(ctx.scratch);
  const ActivationArenas arenas{residual_.recompute == Recompute::full ? ctx.scratch : slot.keep_,
                                residual_.recompute == Recompute::none ? slot.keep_ : ctx.scratch};
  with_sublayer(slot, sublayer,
                [&](const auto& module, auto& saved) { module.forward(ctx, batch, x, y, saved, arenas); });
}

void Chunk::observe(ops::OpContext& ctx, const Slot& slot, const Input& input, int site) const {
  if (input.sums == nullptr) return;
  LayerSums& sum = (*input.sums)[static_cast<size_t>(site)];
  sum.hidden_square += ops::sum_squares(ctx, slot.pass_->hidden(site));
  const DepthWeights depth = slot.pass_->depth_weights(ctx, site);
  add_to(sum.depth_weights, depth.weights);
  sum.depth_entropy += depth.entropy;
  sum.depth_largest += depth.largest;
  if (range_.is_last && site == range_.end) add_to(sum.source_cosines, slot.pass_->source_cosines(ctx));
}

TensorView Chunk::run_sublayers(ops::OpContext& ctx, Slot& slot, const Input& input,
                                const ResidualPass::Streams& streams, const Summaries& summaries) {
  slot.keep_.reset();
  ResidualPass& pass = *slot.pass_;
  Batch batch = input.batch;
  pass.begin_forward(batch, slot.keep_, streams, summaries);
  if (has_embedding()) {
    ops::embedding_forward(ctx, {input.tokens, embedding_, pass.embedding_buffer()});
    pass.embed(ctx);
  }
  for (int sublayer = range_.begin; sublayer < range_.end; ++sublayer) {
    const TensorView x = pass.read(ctx, sublayer);
    observe(ctx, slot, input, sublayer);
    const TensorView y = pass.output_buffer(sublayer);
    if (input.observer != nullptr)
      batch.probes = input.observer->probes(sublayer, input.first_sequence, batch.num_sequences);
    run_sublayer(ctx, slot, batch, sublayer, x, y);
    if (input.sums != nullptr) (*input.sums)[static_cast<size_t>(sublayer)].output_square += ops::sum_squares(ctx, y);
    if (input.progress) input.progress();
  }
  if (!range_.is_last) {
    pass.finish_stream(ctx);
    return {};
  }
  const TensorView x = pass.read(ctx, range_.end);
  observe(ctx, slot, input, range_.end);
  return x;
}

void Chunk::forward(ops::OpContext& ctx, Slot& slot, const Input& input, const ResidualPass::Streams& streams,
                    const Summaries& summaries) {
  const TensorView x = run_sublayers(ctx, slot, input, streams, summaries);
  if (!range_.is_last) return;
  ops::LinearCrossEntropy head{x, head_, input.targets, input.token_loss, input.batch.grad_scale, {}, {}};
  if (input.train) {
    slot.d_head_input_ = slot.keep_.take(residual_.dtype, {input.batch.num_tokens(), hidden_size_});
    head.dx = slot.d_head_input_;
    head.dweight = d_head_;
  }
  ops::linear_cross_entropy(ctx, head);
}

TensorView Chunk::forward_hidden(ops::OpContext& ctx, Slot& slot, const Input& input,
                                 const ResidualPass::Streams& streams, const Summaries& summaries) {
  LAMINA_CHECK(range_.is_last);
  return run_sublayers(ctx, slot, input, streams, summaries);
}

void Chunk::sublayer_backward(ops::OpContext& ctx, Slot& slot, const Batch& batch, int sublayer) {
  const ArenaScope scope(ctx.scratch);
  const TensorView dx = ctx.scratch.take(residual_.dtype, {batch.num_tokens(), hidden_size_});
  Arena& operands = slot.weights_.operands(ctx);
  const TensorView x = slot.pass_->reread(ctx, sublayer, operands);
  TensorView dy = slot.pass_->output_gradient(ctx, sublayer);
  if (slot.weights_.deferred()) {  // the scheme goes on adding to its gradient
    const TensorView copy = operands.take(dy.dtype, dy.shape);
    ops::cast(ctx, {dy, copy});
    dy = copy;
  }
  with_sublayer(slot, sublayer, [&](const auto& module, auto& saved) {
    module.recompute(ctx, batch, x, saved, residual_.recompute, operands);
    module.backward(ctx, batch, saved, x, dy, dx, slot.weights_);
  });
  slot.pass_->read_backward(ctx, sublayer, dx);
}

void Chunk::backward(ops::OpContext& ctx, Slot& slot, const Input& input, bool defer_weights,
                     const FillGradient& outgoing, const std::function<void(const std::vector<int>&)>& done) {
  slot.weights_.begin(defer_weights);
  ResidualPass& pass = *slot.pass_;
  pass.begin_backward();
  if (range_.is_last) {
    done({head_index_});
    pass.read_backward(ctx, range_.end, slot.d_head_input_);
    done(sites_.back().norm_parameters);
  } else {
    outgoing(pass.outgoing_gradient());
  }
  for (int sublayer = range_.end - 1; sublayer >= range_.begin; --sublayer) {
    if (input.sums != nullptr)
      (*input.sums)[static_cast<size_t>(sublayer)].gradient_square +=
          ops::sum_squares(ctx, pass.output_gradient(ctx, sublayer));
    sublayer_backward(ctx, slot, input.batch, sublayer);
    done(reported_[static_cast<size_t>(sublayer - range_.begin)]);
    if (input.progress) input.progress();
  }
  // Depth queries are served per block, at the block's start; they are reported together at the end.
  done(queries_);
  if (!has_embedding()) return;
  ops::embedding_backward(ctx, {input.tokens, pass.embedding_gradient(ctx), d_embedding_});
  done({embedding_index_});
}

}  // namespace lamina::model
