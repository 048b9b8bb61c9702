#include "model/stage.h"

#include <algorithm>

#include "core/ops/cross_entropy.h"
#include "core/ops/elementwise.h"
#include "core/ops/embedding.h"

namespace lamina::model {
namespace {

double square_sum(ops::OpContext& ctx, const TensorView& x) {
  double result = 0;
  ops::sum_squares(ctx, {x, &result});
  return result;
}

}  // namespace

Stage::Stage(const StageOptions& options, Parameters& parameters)
    : config_(options.config),
      dtype_(options.dtype),
      recompute_(options.recompute),
      parameters_(parameters),
      keep_(options.device, options.ledger, "activations") {
  build_sites(config_, parameters);
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer)
    layers_.push_back({Mla(config_, parameters, layer), Mlp(config_, parameters, layer)});
  saved_.resize(layers_.size());
  for (size_t sublayer = 0; sublayer + 1 < sites_.size(); ++sublayer) {
    const Layer& layer = layers_[sublayer / 2];
    std::vector<int> used = sublayer % 2 == 0 ? layer.mixer.parameters() : layer.mlp.parameters();
    const Site& site = sites_[sublayer];
    used.insert(used.end(), site.norm_parameters.begin(), site.norm_parameters.end());
    used.insert(used.end(), site.query_parameters.begin(), site.query_parameters.end());
    sublayer_parameters_.push_back(std::move(used));
  }
  embedding_index_ = parameters.index_of("model.embed_tokens.weight");
  head_index_ = config_.tie_word_embeddings ? embedding_index_ : parameters.index_of("lm_head.weight");
  embedding_ = parameters.value(embedding_index_);
  d_embedding_ = parameters.gradient(embedding_index_);
  head_ = parameters.value(head_index_);
  d_head_ = parameters.gradient(head_index_);
  pass_ = make_residual_pass({config_, dtype_, recompute_, options.device, options.ledger}, sites_);
}

Stage::~Stage() = default;

void Stage::build_sites(const ModelConfig& config, Parameters& parameters) {
  const bool attn_res = config.residual != Residual::standard;
  const auto add = [&](const std::string& norm, const std::string& res) {
    Site site;
    site.norm_eps = config.rms_norm_eps;
    const auto use = [&](const std::string& name, std::vector<int>& list) {
      list.push_back(parameters.index_of(name));
      return list.back();
    };
    const int index = use(norm, site.norm_parameters);
    site.norm_weight = parameters.value(index);
    site.d_norm_weight = parameters.gradient(index);
    if (attn_res) {
      const int g = use(res + "_norm.weight", site.query_parameters),
                w = use(res + "_proj.weight", site.query_parameters);
      const Shape flat{config.hidden_size};
      site.query = {parameters.value(g), parameters.value(w).reshaped(flat)};
      site.d_query = {parameters.gradient(g), parameters.gradient(w).reshaped(flat)};
    }
    sites_.push_back(std::move(site));
  };
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    add(prefix + "input_layernorm.weight", prefix + "self_attention_res");
    add(prefix + "post_attention_layernorm.weight", prefix + "mlp_res");
  }
  add("model.norm.weight", "model.output_attn_res");
}

const std::vector<int>& Stage::sublayer_parameters(int sublayer) const {
  return sublayer_parameters_[static_cast<size_t>(sublayer)];
}

std::vector<int> Stage::uses_per_parameter() const {
  std::vector<int> uses(parameters_.specs().size(), 1);
  if (head_index_ == embedding_index_) uses[static_cast<size_t>(embedding_index_)] = 2;
  return uses;
}

void Stage::run_sublayer(ops::OpContext& ctx, const BatchShape& shape, int sublayer, TensorView x, TensorView y) {
  const auto layer = static_cast<size_t>(sublayer / 2);
  const ArenaScope scope(ctx.scratch);
  const ActivationArenas arenas{recompute_ == Recompute::full ? ctx.scratch : keep_,
                                recompute_ == Recompute::none ? keep_ : ctx.scratch};
  if (sublayer % 2 == 0)
    layers_[layer].mixer.forward(ctx, shape, x, y, saved_[layer].mixer, arenas);
  else
    layers_[layer].mlp.forward(ctx, shape, x, y, saved_[layer].mlp, arenas);
}

TensorView Stage::run_sublayers(ops::OpContext& ctx, const BatchShape& shape, TensorView tokens,
                                std::vector<LayerSums>* sums) {
  keep_.reset();
  pass_->begin(shape, keep_);
  ops::embedding_forward(ctx, {tokens, embedding_, pass_->embedding_buffer()});
  const int num_sublayers = num_sites() - 1;
  const auto observe = [&](int site) {
    if (sums == nullptr) return;
    LayerSums& sum = (*sums)[static_cast<size_t>(site)];
    sum.hidden_square += square_sum(ctx, pass_->hidden(site));
    const std::vector<double> weights = pass_->depth_weights(ctx, site);
    sum.depth_weights.resize(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) sum.depth_weights[i] += weights[i];
  };
  for (int sublayer = 0; sublayer < num_sublayers; ++sublayer) {
    const TensorView x = pass_->read(ctx, sublayer);
    observe(sublayer);
    const TensorView y = pass_->output_buffer(sublayer);
    run_sublayer(ctx, shape, sublayer, x, y);
    if (sums != nullptr) (*sums)[static_cast<size_t>(sublayer)].output_square += square_sum(ctx, y);
  }
  const TensorView x = pass_->read(ctx, num_sublayers);
  observe(num_sublayers);
  return x;
}

void Stage::forward(ops::OpContext& ctx, const Batch& batch, bool train, std::vector<LayerSums>* sums) {
  const TensorView x = run_sublayers(ctx, batch.shape, batch.tokens, sums);
  ops::LinearCrossEntropy head{x, head_, batch.targets, batch.token_loss, batch.grad_scale, {}, {}};
  if (train) {
    d_head_input_ = keep_.take(dtype_, {batch.shape.num_tokens(), config_.hidden_size});
    head.dx = d_head_input_;
    head.dweight = d_head_;
  }
  ops::linear_cross_entropy(ctx, head);
}

void Stage::sublayer_backward(ops::OpContext& ctx, const BatchShape& shape, int sublayer) {
  const auto layer = static_cast<size_t>(sublayer / 2);
  const ArenaScope scope(ctx.scratch);
  const TensorView dx = ctx.scratch.take(dtype_, {shape.num_tokens(), config_.hidden_size});
  const TensorView x = pass_->reread(ctx, sublayer);
  const TensorView dy = pass_->output_gradient(ctx, sublayer);
  const auto run = [&](const auto& module, auto& saved) {
    module.recompute(ctx, shape, x, saved, recompute_, ctx.scratch);
    module.backward(ctx, shape, saved, x, dy, dx);
  };
  if (sublayer % 2 == 0)
    run(layers_[layer].mixer, saved_[layer].mixer);
  else
    run(layers_[layer].mlp, saved_[layer].mlp);
  pass_->read_backward(ctx, sublayer, dx);
}

void Stage::backward(ops::OpContext& ctx, const Batch& batch, const std::function<void(int)>& ready,
                     std::vector<LayerSums>* sums) {
  const auto report = [&](const std::vector<int>& parameters) {
    if (!ready) return;
    for (int parameter : parameters) ready(parameter);
  };
  const int num_sublayers = num_sites() - 1;
  report({head_index_});
  pass_->read_backward(ctx, num_sublayers, d_head_input_);
  report(sites_.back().norm_parameters);
  for (int sublayer = num_sublayers - 1; sublayer >= 0; --sublayer) {
    if (sums != nullptr)
      (*sums)[static_cast<size_t>(sublayer)].gradient_square += square_sum(ctx, pass_->output_gradient(ctx, sublayer));
    sublayer_backward(ctx, batch.shape, sublayer);
    const std::vector<int>& used = sublayer_parameters_[static_cast<size_t>(sublayer)];
    report({used.begin(),
            used.end() - static_cast<int64_t>(sites_[static_cast<size_t>(sublayer)].query_parameters.size())});
  }
  // Depth queries are served per block, at the block's start; they are reported together at the end.
  for (const Site& site : sites_) report(site.query_parameters);
  ops::embedding_backward(ctx, {batch.tokens, pass_->embedding_gradient(), d_embedding_});
  report({embedding_index_});
}

TensorView Stage::forward_hidden(ops::OpContext& ctx, const BatchShape& shape, TensorView tokens) {
  return run_sublayers(ctx, shape, tokens, nullptr);
}

}  // namespace lamina::model
