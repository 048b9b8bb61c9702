#include "model/parameters.h"

#include <cstring>

#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"

namespace lamina::model {
namespace {

// About 16 MiB of fp32 gradients: large enough for bandwidth, small enough to start while backward still runs.
constexpr int64_t bucket_elements = int64_t{4} << 20;

class SpecList {
 public:
  explicit SpecList(std::vector<ParameterSpec>& out) : out_(out) {}
  void at_site(int64_t site) { site_ = static_cast<int>(site); }
  void matrix(const std::string& name, int64_t rows, int64_t columns, bool joined = false) {
    out_.push_back({name, {rows, columns}, Init::normal, true, joined, site_});
  }
  void ones(const std::string& name, int64_t dim) { out_.push_back({name, {dim}, Init::ones, false, false, site_}); }
  void query(const std::string& name, int64_t dim) {
    out_.push_back({name, {1, dim}, Init::zeros, false, false, site_});
  }

 private:
  std::vector<ParameterSpec>& out_;
  int site_ = -1;
};

void add_mla(SpecList& list, const std::string& prefix, const ModelConfig& c) {
  const int64_t heads = c.num_attention_heads, d_qk = c.qk_nope_head_dim + c.qk_rope_head_dim;
  const int64_t kv_rows = c.kv_lora_rank + c.qk_rope_head_dim;
  if (c.q_lora_rank) {
    list.matrix(prefix + "q_a_proj.weight", *c.q_lora_rank, c.hidden_size);
    list.matrix(prefix + "kv_a_proj_with_mqa.weight", kv_rows, c.hidden_size, true);
    list.ones(prefix + "q_a_layernorm.weight", *c.q_lora_rank);
    list.matrix(prefix + "q_b_proj.weight", heads * d_qk, *c.q_lora_rank);
  } else {
    list.matrix(prefix + "q_proj.weight", heads * d_qk, c.hidden_size);
    list.matrix(prefix + "kv_a_proj_with_mqa.weight", kv_rows, c.hidden_size, true);
  }
  list.ones(prefix + "kv_a_layernorm.weight", c.kv_lora_rank);
  list.matrix(prefix + "kv_b_proj.weight", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
  list.matrix(prefix + "o_proj.weight", c.hidden_size, heads * c.v_head_dim);
}

}  // namespace

std::vector<ParameterSpec> parameter_specs(const ModelConfig& c) {
  std::vector<ParameterSpec> specs;
  SpecList list(specs);
  const bool attn_res = c.residual != Residual::standard;
  list.matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size);
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
    list.ones(prefix + "input_layernorm.weight", c.hidden_size);
    add_mla(list, prefix + "self_attn.", c);
    list.at_site(mlp);
    list.ones(prefix + "post_attention_layernorm.weight", c.hidden_size);
    list.matrix(prefix + "mlp.gate_proj.weight", c.intermediate_size, c.hidden_size);
    list.matrix(prefix + "mlp.up_proj.weight", c.intermediate_size, c.hidden_size, true);
    list.matrix(prefix + "mlp.down_proj.weight", c.hidden_size, c.intermediate_size);
  }
  list.at_site(2 * c.num_hidden_layers);
  if (attn_res) {
    list.ones("model.output_attn_res_norm.weight", c.hidden_size);
    list.query("model.output_attn_res_proj.weight", c.hidden_size);
  }
  list.ones("model.norm.weight", c.hidden_size);
  if (!c.tie_word_embeddings) list.matrix("lm_head.weight", c.vocab_size, c.hidden_size);
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
  return {gradients.data(), accumulation_dtype(dtype), {shards.num_padded}, gradients.device()};
}

LocalParameters all_parameters(const ModelConfig& config) {
  const size_t count = parameter_specs(config).size();
  return {std::vector<bool>(count, true), std::vector<bool>(count, true)};
}

Parameters::Parameters(const ModelConfig& config, DType compute, int dp_size, Device device, MemoryLedger* ledger)
    : Parameters(config, all_parameters(config), compute, dp_size, device, ledger) {}

Parameters::Parameters(const ModelConfig& config, const LocalParameters& local, DType compute, int dp_size,
                       Device device, MemoryLedger* ledger)
    : specs_(parameter_specs(config)), local_(local) {
  LAMINA_CHECK(local.held.size() == specs_.size() && local.primary.size() == specs_.size());
  matrices_.dtype = compute;
  vectors_.dtype = accumulation_dtype(compute);
  for (size_t i = 0; i < specs_.size(); ++i) {
    const ParameterSpec& spec = specs_[i];
    index_[spec.name] = static_cast<int>(i);
    place_.push_back(-1);
    if (!local_.held[i]) continue;
    ParameterGroup& group = spec.is_matrix ? matrices_ : vectors_;
    place_.back() = static_cast<int>(group.flat.size());
    group.flat.push_back({spec.name, spec.shape.num_elements(), spec.joined_with_previous});
    group.spec_of.push_back(static_cast<int>(i));
  }
  for (ParameterGroup* group : {&matrices_, &vectors_}) {
    group->shards = zero::make_shard_map(group->flat, dp_size, bucket_elements);
    const int64_t count = group->shards.num_padded;
    group->values = Buffer(count * size_of(group->dtype), device, ledger, "parameters");
    group->gradients = Buffer(count * size_of(accumulation_dtype(group->dtype)), device, ledger, "gradients");
  }
}

int Parameters::index_of(const std::string& name) const {
  const auto found = index_.find(name);
  LAMINA_CHECK(found != index_.end(), "no parameter named {}", name);
  return found->second;
}

TensorView Parameters::view(int index, bool gradient) const {
  const ParameterSpec& spec = specs_[static_cast<size_t>(index)];
  LAMINA_CHECK(is_held(index), "{} is not held by this rank", spec.name);
  const ParameterGroup& group = spec.is_matrix ? matrices_ : vectors_;
  const TensorView flat = gradient ? group.all_gradients() : group.all_values();
  const int64_t offset = group.shards.offsets[static_cast<size_t>(place_[static_cast<size_t>(index)])];
  return flat.slice(0, offset, offset + spec.shape.num_elements()).reshaped(spec.shape);
}

TensorView Parameters::value(int index) const {
  return view(index, false);
}
TensorView Parameters::gradient(int index) const {
  return view(index, true);
}

TensorView Parameters::fused(const std::string& first, const std::string& last, bool gradient) const {
  const TensorView head = view(index_of(first), gradient), tail = view(index_of(last), gradient);
  const int64_t gap = static_cast<char*>(tail.data) - static_cast<char*>(head.data);
  LAMINA_CHECK(gap == head.num_bytes() && head.size(1) == tail.size(1), "{} and {} are not adjacent", first, last);
  return {head.data, head.dtype, {head.size(0) + tail.size(0), head.size(1)}, head.device};
}

TensorView Parameters::fused_value(const std::string& first, const std::string& last) const {
  return fused(first, last, false);
}
TensorView Parameters::fused_gradient(const std::string& first, const std::string& last) const {
  return fused(first, last, true);
}

void initialise_range(const ParameterSpec& spec, uint64_t seed, double initializer_range, int64_t begin,
                      TensorView out) {
  const CounterRng rng(seed, spec.name);
  cpu::parallel_for(out.num_elements(), 1 << 14, [&](int64_t from, int64_t to) {
    for (int64_t e = from; e < to; ++e) {
      double x = spec.init == Init::ones ? 1.0 : 0.0;
      if (spec.init == Init::normal) x = initializer_range * rng.normal(static_cast<uint64_t>(begin + e));
      // Through float on the way to bf16, as an fp32 master would round.
      switch (out.dtype) {
        case DType::f64:
          static_cast<double*>(out.data)[e] = x;
          break;
        case DType::bf16:
          static_cast<bf16*>(out.data)[e] = bf16(static_cast<float>(x));
          break;
        default:
          static_cast<float*>(out.data)[e] = static_cast<float>(x);
      }
    }
  });
}

void Parameters::initialise(uint64_t seed, double initializer_range) {
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (!local_.held[i]) continue;
    const TensorView out = value(static_cast<int>(i));
    initialise_range(specs_[i], seed, initializer_range, 0, out.reshaped({out.num_elements()}));
  }
}

void Parameters::zero_gradients() {
  for (ParameterGroup* group : {&matrices_, &vectors_}) {
    char* data = static_cast<char*>(group->gradients.data());
    cpu::parallel_for(group->gradients.num_bytes(), 1 << 20, [&](int64_t begin, int64_t end) {
      std::memset(data + begin, 0, static_cast<size_t>(end - begin));
    });
  }
}

}  // namespace lamina::model
