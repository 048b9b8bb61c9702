#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/device/cuda_device.h"
#include "core/ops/hyper_connections/hyper_connections.h"
#include "core/tensor/host_copy.h"
#include "model/width_rule.h"

namespace lamina::model {
namespace {

// About 16 MiB of fp32 gradients: large enough for bandwidth, small enough to start while backward still runs.
constexpr int64_t bucket_elements = int64_t{4} << 20;

class SpecList {
 public:
  explicit SpecList(std::vector<ParameterSpec>& out) : out_(out) {}
  void at_site(int64_t site) { site_ = static_cast<int>(site); }
  void at_expert(int64_t expert) { expert_ = static_cast<int>(expert); }

  void embedding(const std::string& name, int64_t rows, int64_t columns) {
    add(name, {rows, columns}, Init::normal, Group::matrices);
  }
  void head(const std::string& name, int64_t rows, int64_t columns) {
    add(name, {rows, columns}, Init::normal, Group::matrices).wide_in = true;
  }
  ParameterSpec& linear(const std::string& name, int64_t rows, int64_t columns, bool joined = false) {
    ParameterSpec& spec =
        add(name, {rows, columns}, Init::normal, expert_ >= 0 ? Group::experts : Group::matrices, joined);
    spec.is_linear = spec.wide_in = spec.wide_out = true;
    spec.expert = expert_;
    return spec;
  }
  // To a number of outputs that the width does not change, and from one.
  void narrowing(const std::string& name, int64_t rows, int64_t columns, bool joined = false) {
    linear(name, rows, columns, joined).wide_out = false;
  }
  void widening(const std::string& name, int64_t rows, int64_t columns) { linear(name, rows, columns).wide_in = false; }
  ParameterSpec& vector(const std::string& name, const Shape& shape, Init init, bool joined = false) {
    return add(name, shape, init, Group::vectors, joined);
  }
  void ones(const std::string& name, int64_t dim) { vector(name, {dim}, Init::ones); }
  void query(const std::string& name, int64_t dim) { vector(name, {1, dim}, Init::zeros); }
  // W is small, and its products are sums of acc: it stays in acc, as the paper keeps it.
  void mixing(const std::string& name, int64_t num_streams, int64_t dim) {
    const int64_t rows = ops::num_projections(num_streams);
    vector(name + ".weight", {rows, num_streams * dim}, Init::zeros).wide_in = true;
    vector(name + ".bias", {rows}, Init::mixing_bias).decays = false;
    vector(name + ".alpha", {3}, Init::mixing_gate).decays = false;
  }

 private:
  ParameterSpec& add(const std::string& name, const Shape& shape, Init init, Group group, bool joined = false) {
    ParameterSpec spec;
    spec.name = name;
    spec.shape = shape;
    spec.init = init;
    spec.group = group;
    spec.joined_with_previous = joined;
    spec.site = site_;
    out_.push_back(std::move(spec));
    return out_.back();
  }

  std::vector<ParameterSpec>& out_;
  int site_ = -1, expert_ = -1;
};

void add_mla(SpecList& list, const std::string& prefix, const ModelConfig& c) {
  const int64_t heads = c.num_attention_heads, d_qk = c.qk_nope_head_dim + c.qk_rope_head_dim;
  const int64_t kv_rows = c.kv_lora_rank + c.qk_rope_head_dim;
  if (c.q_lora_rank) {
    list.narrowing(prefix + "q_a_proj.weight", *c.q_lora_rank, c.hidden_size);
    list.narrowing(prefix + "kv_a_proj_with_mqa.weight", kv_rows, c.hidden_size, true);
    list.ones(prefix + "q_a_layernorm.weight", *c.q_lora_rank);
    list.widening(prefix + "q_b_proj.weight", heads * d_qk, *c.q_lora_rank);
  } else {
    list.linear(prefix + "q_proj.weight", heads * d_qk, c.hidden_size);
    list.narrowing(prefix + "kv_a_proj_with_mqa.weight", kv_rows, c.hidden_size, true);
  }
  list.ones(prefix + "kv_a_layernorm.weight", c.kv_lora_rank);
  list.widening(prefix + "kv_b_proj.weight", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
  list.linear(prefix + "o_proj.weight", c.hidden_size, heads * c.v_head_dim);
}

void add_kda(SpecList& list, const std::string& prefix, const ModelConfig& c) {
  const int64_t heads = c.linear_num_heads, head = c.linear_head_dim, width = heads * head;
  bool joined = false;
  for (const char* x : {"q", "k", "v"}) {
    list.linear(fmt::format("{}{}_proj.weight", prefix, x), width, c.hidden_size, joined);
    joined = true;
  }
  list.narrowing(prefix + "f_a_proj.weight", head, c.hidden_size, true);
  list.narrowing(prefix + "g_a_proj.weight", head, c.hidden_size, true);
  list.linear(prefix + "b_proj.weight", heads, c.hidden_size, true);
  list.widening(prefix + "f_b_proj.weight", width, head);
  list.widening(prefix + "g_b_proj.weight", width, head);
  joined = false;
  for (const char* x : {"q", "k", "v"}) {
    list.vector(fmt::format("{}{}_conv1d.weight", prefix, x), {width, 1, c.short_conv_kernel_size}, Init::convolution,
                joined);
    joined = true;
  }
  // With the bounded gate, exp(A_log) scales the sigmoid's argument and starts at one.
  list.vector(prefix + "A_log", {1, 1, heads, 1}, c.gate_lower_bound ? Init::zeros : Init::log_decay).decays = false;
  list.vector(prefix + "dt_bias", {width}, Init::decay_bias).decays = false;
  list.ones(prefix + "o_norm.weight", head);
  list.linear(prefix + "o_proj.weight", c.hidden_size, width);
}

void add_gated_mlp(SpecList& list, const std::string& prefix, int64_t hidden, int64_t width) {
  list.linear(prefix + "gate_proj.weight", width, hidden);
  list.linear(prefix + "up_proj.weight", width, hidden, true);
  list.linear(prefix + "down_proj.weight", hidden, width);
}

void add_moe(SpecList& list, const std::string& prefix, const ModelConfig& c) {
  const int64_t width = c.moe_intermediate_size;
  list.narrowing(prefix + "gate.weight", c.num_experts, c.hidden_size);
  ParameterSpec& bias = list.vector(prefix + "gate.e_score_correction_bias", {c.num_experts}, Init::zeros);
  bias.decays = false;
  bias.is_trained = false;
  for (int64_t expert = 0; expert < c.num_experts; ++expert) {
    const std::string name = fmt::format("{}experts.{}.", prefix, expert);
    list.at_expert(expert);
    list.linear(name + "w1.weight", width, c.hidden_size);
    list.linear(name + "w3.weight", width, c.hidden_size, true);
    list.linear(name + "w2.weight", c.hidden_size, width);
  }
  list.at_expert(-1);
  if (c.num_shared_experts > 0)
    add_gated_mlp(list, prefix + "shared_experts.", c.hidden_size, width * c.num_shared_experts);
}

}  // namespace

std::vector<ParameterSpec> parameter_specs(const ModelConfig& c) {
  std::vector<ParameterSpec> specs;
  SpecList list(specs);
  const bool attn_res = c.has_depth_reads(), mhc = c.residual == Residual::mhc;
  list.embedding("model.embed_tokens.weight", c.vocab_size, c.hidden_size);
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const int64_t mixer = 2 * layer, mlp = mixer + 1;
    if (attn_res) {
      list.at_site(mixer);
      list.ones(prefix + "self_attention_res_norm.weight", c.hidden_size);
      list.query(prefix + "self_attention_res_proj.weight", c.hidden_size);
      list.at_site(mlp);
      list.ones(prefix + "mlp_res_norm.weight", c.hidden_size);
      list.query(prefix + "mlp_res_proj.weight", c.hidden_size);
    }
    list.at_site(mixer);
    if (mhc) list.mixing(prefix + "self_attention_mhc", c.num_residual_streams, c.hidden_size);
    list.ones(prefix + "input_layernorm.weight", c.hidden_size);
    (c.mixer(layer) == Mixer::kda ? add_kda : add_mla)(list, prefix + "self_attn.", c);
    list.at_site(mlp);
    if (mhc) list.mixing(prefix + "mlp_mhc", c.num_residual_streams, c.hidden_size);
    list.ones(prefix + "post_attention_layernorm.weight", c.hidden_size);
    if (c.is_moe(layer))
      add_moe(list, prefix + "block_sparse_moe.", c);
    else
      add_gated_mlp(list, prefix + "mlp.", c.hidden_size, c.intermediate_size);
  }
  list.at_site(2 * c.num_hidden_layers);
  if (attn_res) {
    list.ones("model.output_attn_res_norm.weight", c.hidden_size);
    list.query("model.output_attn_res_proj.weight", c.hidden_size);
  }
  list.ones("model.norm.weight", c.hidden_size);
  if (!c.tie_word_embeddings) list.head("lm_head.weight", c.vocab_size, c.hidden_size);
  for (ParameterSpec& spec : specs) spec.init_scale = width_factors(c, spec).init;
  return specs;
}

int64_t num_parameters(const ModelConfig& config) {
  int64_t sum = 0;
  for (const ParameterSpec& spec : parameter_specs(config)) sum += spec.shape.num_elements();
  return sum;
}

TensorView ParameterGroup::all_values() const {
  return {values.data(), dtype, {shards.num_padded}, values.device()};
}
TensorView ParameterGroup::all_gradients() const {
  return {gradients.data(), accumulation_dtype(dtype), {shards.num_padded}, values.device()};
}

LocalParameters all_parameters(const ModelConfig& config) {
  const size_t count = parameter_specs(config).size();
  return {std::vector<bool>(count, true), std::vector<bool>(count, true)};
}

Parameters::Parameters(const ModelConfig& config, DType compute, int dp_size, Device device, MemoryLedger* ledger,
                       Gradients gradients)
    : Parameters(config, all_parameters(config), compute, {dp_size, dp_size}, device, ledger, gradients) {}

Parameters::Parameters(const ModelConfig& config, const LocalParameters& local, DType compute, const Replicas& replicas,
                       Device device, MemoryLedger* ledger, Gradients gradients)
    : specs_(parameter_specs(config)), local_(local), gradients_(gradients) {
  LAMINA_CHECK(local.held.size() == specs_.size() && local.primary.size() == specs_.size());
  group(Group::matrices).dtype = group(Group::experts).dtype = compute;
  group(Group::vectors).dtype = accumulation_dtype(compute);
  for (size_t i = 0; i < specs_.size(); ++i) {
    const ParameterSpec& spec = specs_[i];
    index_[spec.name] = static_cast<int>(i);
    place_.push_back(-1);
    if (!local_.held[i]) continue;
    ParameterGroup& own = group(spec.group);
    place_.back() = static_cast<int>(own.flat.size());
    own.flat.push_back({spec.name, spec.shape.num_elements(), spec.joined_with_previous});
    own.spec_of.push_back(static_cast<int>(i));
  }
  for (ParameterGroup& each : groups_) {
    const int num_owners = &each == &group(Group::experts) ? replicas.expert_data : replicas.data;
    each.shards = zero::make_shard_map(each.flat, num_owners, bucket_elements);
    const int64_t count = each.shards.num_padded;
    each.values = Buffer(count * size_of(each.dtype), device, ledger, "parameters");
    if (has_gradients())
      each.gradients = Buffer(count * size_of(accumulation_dtype(each.dtype)), device, ledger, "gradients");
  }
}

int Parameters::index_of(const std::string& name) const {
  const auto found = index_.find(name);
  LAMINA_CHECK(found != index_.end(), "no parameter named {}", name);
  return found->second;
}

int64_t Parameters::offset_in_group(int index) const {
  const ParameterSpec& spec = specs_[static_cast<size_t>(index)];
  LAMINA_CHECK(is_held(index), "{} is not held by this rank", spec.name);
  return groups_[static_cast<size_t>(spec.group)]
      .shards.offsets[static_cast<size_t>(place_[static_cast<size_t>(index)])];
}

namespace {

// `shape` from an element of a flat buffer on; where there is no buffer, of nothing.
TensorView part_of(const TensorView& flat, int64_t offset, const Shape& shape) {
  if (flat.empty()) return {nullptr, flat.dtype, shape, flat.device};
  return flat.slice(0, offset, offset + shape.num_elements()).reshaped(shape);
}

}  // namespace

TensorView Parameters::value(int index) const {
  const ParameterSpec& spec = specs_[static_cast<size_t>(index)];
  return part_of(groups_[static_cast<size_t>(spec.group)].all_values(), offset_in_group(index), spec.shape);
}
TensorView Parameters::gradient(int index) const {
  const ParameterSpec& spec = specs_[static_cast<size_t>(index)];
  return part_of(groups_[static_cast<size_t>(spec.group)].all_gradients(), offset_in_group(index), spec.shape);
}

Shape Parameters::fused_shape(int first, int last) const {
  const Shape& head = specs_[static_cast<size_t>(first)].shape;
  const int64_t width = head.num_elements() / head[0];
  const int64_t count =
      offset_in_group(last) + specs_[static_cast<size_t>(last)].shape.num_elements() - offset_in_group(first);
  int64_t joined = head.num_elements();
  for (int i = first + 1; i <= last; ++i) {
    const ParameterSpec& spec = specs_[static_cast<size_t>(i)];
    if (spec.joined_with_previous && spec.shape.num_elements() == spec.shape[0] * width)
      joined += spec.shape.num_elements();
  }
  LAMINA_CHECK(count == joined, "{} and {} are not adjacent", specs_[static_cast<size_t>(first)].name,
               specs_[static_cast<size_t>(last)].name);
  return {count / width, width};
}

TensorView Parameters::fused_value(const std::string& first, const std::string& last) const {
  const TensorView head = value(first);
  return {head.data, head.dtype, fused_shape(index_of(first), index_of(last)), head.device};
}
TensorView Parameters::fused_gradient(const std::string& first, const std::string& last) const {
  const TensorView head = gradient(first);
  return {head.data, head.dtype, fused_shape(index_of(first), index_of(last)), head.device};
}

namespace {

// Elements of b: of H_pre, H_post, and the weights of the permutations, of which the first is the identity.
double initial_mixing_bias(const ParameterSpec& spec, uint64_t index) {
  int64_t n = 2;
  while (n < ops::max_streams && ops::num_projections(n) != spec.shape[0]) ++n;
  const auto row = static_cast<int64_t>(index);
  const auto logit = [](double share) { return std::log(share / (1 - share)); };
  if (row < n) return logit(row == spec.site % n ? 0.75 : 0.25 / static_cast<double>(n - 1));
  return row <= 2 * n ? 0.0 : -8.0;
}

double initial_value(const ParameterSpec& spec, const CounterRng& rng, double initializer_range, uint64_t index) {
  switch (spec.init) {
    case Init::normal:
      return initializer_range * spec.init_scale * rng.normal(index);
    case Init::ones:
      return 1.0;
    case Init::zeros:
      return 0.0;
    case Init::convolution:
      return (2.0 * rng.uniform(index) - 1.0) / std::sqrt(static_cast<double>(spec.shape[-1]));
    case Init::log_decay:
      return std::log(1.0 + 15.0 * rng.uniform(index));
    case Init::decay_bias: {
      const double step = std::exp(std::log(1e-3) + rng.uniform(index) * std::log(1e2));
      return step + std::log(-std::expm1(-step));
    }
    case Init::mixing_bias:
      return initial_mixing_bias(spec, index);
    case Init::mixing_gate:
      return 0.01;
  }
  return 0.0;
}

}  // namespace

void initialise_range(const ParameterSpec& spec, uint64_t seed, double initializer_range, int64_t begin, TensorView out,
                      Stream& stream) {
  constexpr int64_t piece = int64_t{16} << 20;  // elements that a GPU's values take of the host's memory at a time
  const CounterRng rng(seed, spec.name);
  for (int64_t at = 0; at < out.num_elements(); at += piece) {
    HostRoom room(out.slice(0, at, std::min(at + piece, out.num_elements())), stream);
    cpu::parallel_for(room->num_elements(), 1 << 14, [&](int64_t from, int64_t to) {
      for (int64_t e = from; e < to; ++e)
        set_element(room.view(), e, initial_value(spec, rng, initializer_range, static_cast<uint64_t>(begin + at + e)));
    });
    room.upload();
  }
}

void Parameters::initialise(uint64_t seed, double initializer_range) {
  Stream stream(groups_.front().values.device());
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (!local_.held[i]) continue;
    const TensorView out = value(static_cast<int>(i));
    initialise_range(specs_[i], seed, initializer_range, 0, out.reshaped({out.num_elements()}), stream);
  }
  stream.synchronize();
}

void Parameters::zero_gradients(Stream& stream) {
  for (ParameterGroup& each : groups_) {
    char* data = static_cast<char*>(each.gradients.data());
    if (each.gradients.device().kind == DeviceKind::cuda) {
      cuda::fill_zero(data, each.gradients.num_bytes(), stream);
      continue;
    }
    cpu::parallel_for(each.gradients.num_bytes(), 1 << 20, [&](int64_t begin, int64_t end) {
      std::memset(data + begin, 0, static_cast<size_t>(end - begin));
    });
  }
}

}  // namespace lamina::model
