#include "trainer/export/hf_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/ops/hyper_connections/hyper_connections.h"

namespace lamina {
namespace {

using nlohmann::json;

const std::vector<std::pair<Residual, const char*>> residual_names = {{Residual::standard, "standard"},
                                                                      {Residual::full_attnres, "full_attnres"},
                                                                      {Residual::block_attnres, "block_attnres"},
                                                                      {Residual::mhc, "mhc"}};

// The one that other programs have built in, and Lamina's own.
constexpr const char* kimi_linear = "kimi_linear";
constexpr const char* own_model_type = "lamina";
constexpr double latent_eps = 1e-6;  // of kimi_linear's norms inside MLA, whatever rms_norm_eps is

const char* name_of_residual(Residual residual) {
  for (const auto& [value, name] : residual_names)
    if (value == residual) return name;
  return "?";
}

// What every model of this architecture has.
const std::vector<std::pair<const char*, json>> fixed_keys = {
    {"hidden_act", "silu"}, {"mla_use_nope", true}, {"num_nextn_predict_layers", 0}};
const std::vector<std::pair<const char*, json>> fixed_keys_of_experts = {
    {"moe_layer_freq", 1}, {"moe_router_activation_func", "sigmoid"}, {"num_expert_group", 1}, {"topk_group", 1}};

bool has_mixer(const ModelConfig& c, Mixer mixer) {
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer)
    if (c.mixer(layer) == mixer) return true;
  return false;
}

std::vector<int64_t> layers_with(const ModelConfig& c, Mixer mixer) {
  std::vector<int64_t> layers;  // counted from 1
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer)
    if (c.mixer(layer) == mixer) layers.push_back(layer + 1);
  return layers;
}

// Where transformers finds the classes, with trust_remote_code.
void add_code(nlohmann::ordered_json& out) {
  const std::string module = std::string(modeling_file).substr(0, std::string_view(modeling_file).size() - 3);
  for (const auto& [key, name] : {std::pair{"AutoConfig", "LaminaConfig"}, std::pair{"AutoModel", "LaminaModel"},
                                  std::pair{"AutoModelForCausalLM", "LaminaForCausalLM"}})
    out["auto_map"][key] = module + "." + name;
}

void add_attention(nlohmann::ordered_json& out, const ModelConfig& c) {
  const bool has_mla = has_mixer(c, Mixer::mla);
  // Other programs divide by the number of heads, whatever the layers are.
  out["num_attention_heads"] = out["num_key_value_heads"] = has_mla ? c.num_attention_heads : c.linear_num_heads;
  out["mla_use_nope"] = true;
  if (has_mla) {
    out["q_lora_rank"] = c.q_lora_rank ? nlohmann::ordered_json(*c.q_lora_rank) : nlohmann::ordered_json();
    out["kv_lora_rank"] = c.kv_lora_rank;
    out["qk_nope_head_dim"] = c.qk_nope_head_dim;
    out["qk_rope_head_dim"] = c.qk_rope_head_dim;
    out["v_head_dim"] = c.v_head_dim;
    out["kv_a_layernorm_eps"] = c.kv_a_layernorm_eps;
  }
  nlohmann::ordered_json& linear = out["linear_attn_config"];
  linear["kda_layers"] = layers_with(c, Mixer::kda);
  linear["full_attn_layers"] = layers_with(c, Mixer::mla);
  if (!has_mixer(c, Mixer::kda)) return;
  linear["num_heads"] = c.linear_num_heads;
  linear["head_dim"] = c.linear_head_dim;
  linear["short_conv_kernel_size"] = c.short_conv_kernel_size;
  if (c.gate_lower_bound) linear["gate_lower_bound"] = *c.gate_lower_bound;
}

void add_mlp(nlohmann::ordered_json& out, const ModelConfig& c) {
  out["intermediate_size"] = c.intermediate_size;
  out["num_experts"] = c.num_experts;
  if (c.num_experts == 0) {
    out["first_k_dense_replace"] = c.num_hidden_layers;  // by which kimi_linear tells dense layers
    return;
  }
  out["first_k_dense_replace"] = c.first_k_dense_replace;
  out["num_experts_per_token"] = c.num_experts_per_token;
  out["num_shared_experts"] = c.num_shared_experts;
  out["moe_intermediate_size"] = c.moe_intermediate_size;
  out["routed_scaling_factor"] = c.routed_scaling_factor;
  out["moe_renormalize"] = c.moe_renormalize;
  out["use_grouped_topk"] = true;
  for (const auto& [key, value] : fixed_keys_of_experts) out[key] = value;
  out["aux_loss_alpha"] = c.aux_loss_alpha;
}

// The ids always: where they are absent, kimi_linear takes the released model's, which a small vocabulary doesn't have.
void add_token_ids(nlohmann::ordered_json& out, const TokenIds& ids) {
  const auto id_or_null = [](const std::optional<int64_t>& id) {
    return id ? nlohmann::ordered_json(*id) : nlohmann::ordered_json();
  };
  out["bos_token_id"] = id_or_null(ids.bos);
  if (ids.eos.size() > 1)
    out["eos_token_id"] = ids.eos;
  else
    out["eos_token_id"] = id_or_null(ids.eos.empty() ? std::nullopt : std::optional(ids.eos.front()));
  out["pad_token_id"] = id_or_null(ids.pad);
}

// Keys of one JSON object, with the place for messages.
class Keys {
 public:
  Keys(const json& node, std::string file, std::string prefix)
      : node_(node), file_(std::move(file)), prefix_(std::move(prefix)) {
    if (!node_.is_object()) throw Error("{}: {}found {}, expected a JSON object", file_, prefix_, node_.dump());
  }

  bool has(const char* key) const { return node_.contains(key) && !node_.at(key).is_null(); }
  const json& at(const char* key) const {
    if (!has(key)) throw Error("{}: {}{}: required key is missing", file_, prefix_, key);
    return node_.at(key);
  }
  template <class T>
  void read(const char* key, T& out) const {
    const json& value = at(key);
    const bool fits = std::is_same_v<T, bool>     ? value.is_boolean()
                      : std::is_same_v<T, double> ? value.is_number()
                                                  : value.is_number_integer();
    if (!fits)
      throw fault(key, value,
                  std::is_same_v<T, bool>     ? "true or false"
                  : std::is_same_v<T, double> ? "a number"
                                              : "an integer");
    out = value.get<T>();
  }
  template <class T>
  void read_optional(const char* key, T& out) const {
    if (has(key)) read(key, out);
  }
  void must_be(const char* key, const json& expected) const {
    if (has(key) && node_.at(key) != expected) throw fault(key, node_.at(key), expected.dump());
  }
  Error fault(const char* key, const json& value, const std::string& expected) const {
    return Error("{}: {}{}: found {}, expected {}", file_, prefix_, key, value.dump(), expected);
  }

 private:
  const json& node_;
  std::string file_, prefix_;
};

// An id that is null or outside the vocabulary is none.
void parse_tokenizer(const Keys& keys, int64_t vocab_size, TokenizerIdentity& tokenizer) {
  const auto is_token = [&](int64_t id) { return id >= 0 && id < vocab_size; };
  const auto read_id = [&](const char* key, std::optional<int64_t>& id) {
    int64_t value = -1;
    keys.read_optional(key, value);
    if (is_token(value)) id = value;
  };
  read_id("bos_token_id", tokenizer.ids.bos);
  read_id("pad_token_id", tokenizer.ids.pad);
  if (keys.has("eos_token_id")) {
    const json& eos = keys.at("eos_token_id");
    for (const json& id : eos.is_array() ? eos : json::array({eos})) {
      if (!id.is_number_integer()) throw keys.fault("eos_token_id", eos, "an integer or a list of integers");
      if (is_token(id.get<int64_t>())) tokenizer.ids.eos.push_back(id.get<int64_t>());
    }
  }
  if (!keys.has("tokenizer_hash")) return;
  const json& hash = keys.at("tokenizer_hash");
  if (!hash.is_string()) throw keys.fault("tokenizer_hash", hash, "a text");
  tokenizer.hash = hash.get<std::string>();
}

// Each layer in exactly one of the two lists.
std::vector<Mixer> parse_mixers(const Keys& linear, int64_t num_layers) {
  std::vector<int> seen(static_cast<size_t>(num_layers), 0);
  std::vector<Mixer> mixers(seen.size(), Mixer::mla);
  for (const auto& [key, mixer] : {std::pair{"kda_layers", Mixer::kda}, std::pair{"full_attn_layers", Mixer::mla}}) {
    const json& list = linear.at(key);
    if (!list.is_array()) throw linear.fault(key, list, "a list of layers, counted from 1");
    for (const json& layer : list) {
      if (!layer.is_number_integer() || layer.get<int64_t>() < 1 || layer.get<int64_t>() > num_layers)
        throw linear.fault(key, layer, fmt::format("a layer from 1 to {}", num_layers));
      const auto index = static_cast<size_t>(layer.get<int64_t>() - 1);
      if (++seen[index] > 1) throw linear.fault(key, layer, "each layer once, in one of the two lists");
      mixers[index] = mixer;
    }
  }
  for (size_t layer = 0; layer < seen.size(); ++layer)
    if (seen[layer] == 0)
      throw linear.fault("kda_layers", linear.at("kda_layers"),
                         fmt::format("every layer in one of the two lists; {} is in none", layer + 1));
  return mixers;
}

void parse_latent_attention(const Keys& keys, ModelConfig& c) {
  keys.read("num_attention_heads", c.num_attention_heads);
  keys.must_be("num_key_value_heads", c.num_attention_heads);
  if (keys.has("q_lora_rank")) {
    int64_t rank = 0;
    keys.read("q_lora_rank", rank);
    c.q_lora_rank = rank;
  }
  keys.read("kv_lora_rank", c.kv_lora_rank);
  keys.read("qk_nope_head_dim", c.qk_nope_head_dim);
  keys.read("qk_rope_head_dim", c.qk_rope_head_dim);
  keys.read("v_head_dim", c.v_head_dim);
  keys.read_optional("kv_a_layernorm_eps", c.kv_a_layernorm_eps);
}

void parse_attention(const Keys& keys, const json& root, const std::string& file, ModelConfig& c) {
  if (keys.has("linear_attn_config"))
    c.mixers = parse_mixers(Keys(root.at("linear_attn_config"), file, "linear_attn_config."), c.num_hidden_layers);
  if (has_mixer(c, Mixer::mla)) parse_latent_attention(keys, c);
  if (!has_mixer(c, Mixer::kda)) {
    c.mixers.clear();
    return;
  }
  const Keys linear(root.at("linear_attn_config"), file, "linear_attn_config.");
  linear.read("num_heads", c.linear_num_heads);
  linear.read("head_dim", c.linear_head_dim);
  linear.read("short_conv_kernel_size", c.short_conv_kernel_size);
  if (linear.has("gate_lower_bound")) {
    double bound = 0;
    linear.read("gate_lower_bound", bound);
    c.gate_lower_bound = bound;
  }
}

void parse_mlp(const Keys& keys, ModelConfig& c) {
  keys.read_optional("num_experts", c.num_experts);
  if (c.num_experts > 0) {
    for (const auto& [key, value] : fixed_keys_of_experts) keys.must_be(key, value);
    keys.read("first_k_dense_replace", c.first_k_dense_replace);
    keys.read("num_experts_per_token", c.num_experts_per_token);
    keys.read("num_shared_experts", c.num_shared_experts);
    keys.read("moe_intermediate_size", c.moe_intermediate_size);
    keys.read("routed_scaling_factor", c.routed_scaling_factor);
    keys.read("moe_renormalize", c.moe_renormalize);
    keys.read_optional("aux_loss_alpha", c.aux_loss_alpha);
    if (c.first_k_dense_replace == 0) return;
  }
  keys.read("intermediate_size", c.intermediate_size);
}

void parse_residual(const Keys& keys, ModelConfig& c) {
  c.residual = Residual::standard;
  if (!keys.has("residual")) return;
  const json& value = keys.at("residual");
  const auto found = std::find_if(residual_names.begin(), residual_names.end(),
                                  [&](const auto& entry) { return value == entry.second; });
  if (found == residual_names.end())
    throw keys.fault("residual", value, "standard, full_attnres, block_attnres or mhc");
  c.residual = found->first;
  if (c.residual == Residual::block_attnres) keys.read("attn_res_block_size", c.attn_res_block_size);
  if (c.residual != Residual::mhc) return;
  keys.read("num_residual_streams", c.num_residual_streams);
  if (c.num_residual_streams < 2 || c.num_residual_streams > ops::max_streams)
    throw keys.fault("num_residual_streams", c.num_residual_streams, fmt::format("2 to {}", ops::max_streams));
}

}  // namespace

std::vector<std::string> reasons_against_kimi_linear(const HfModel& hf) {
  const ModelConfig& c = hf.model;
  std::vector<std::string> reasons;
  const auto add = [&](const std::string& key, const auto& value, const std::string& reason) {
    reasons.push_back(fmt::format("{}: {}: {}", key, value, reason));
  };
  if (c.residual != Residual::standard)
    add("residual", name_of_residual(c.residual),
        c.has_depth_reads() ? "kimi_linear has no Attention Residuals" : "kimi_linear has no hyper-connections");
  if (has_mixer(c, Mixer::kda) && c.gate_lower_bound)
    add("gate_lower_bound", *c.gate_lower_bound, "kimi_linear has the softplus gate only");
  if (!has_mixer(c, Mixer::mla)) add("mixers", "kda", "kimi_linear's cache needs a layer of latent attention");
  if (has_mixer(c, Mixer::mla) && c.kv_a_layernorm_eps != latent_eps)
    add("kv_a_layernorm_eps", c.kv_a_layernorm_eps, fmt::format("kimi_linear's is always {}", latent_eps));
  if (c.q_lora_rank && c.rms_norm_eps != latent_eps)
    add("rms_norm_eps", c.rms_norm_eps,
        fmt::format("with q_lora_rank, kimi_linear's norm of the queries' latent has always {}", latent_eps));
  if (c.num_experts == 1) add("num_experts", c.num_experts, "kimi_linear's router needs two");
  if (hf.document_end) add("document_mask", true, "kimi_linear reads over the ends of documents");
  return reasons;
}

std::string to_hf_config(const HfModel& hf) {
  const ModelConfig& c = hf.model;
  const bool is_own = !reasons_against_kimi_linear(hf).empty();
  nlohmann::ordered_json out;
  out["architectures"] = {is_own ? "LaminaForCausalLM" : "KimiLinearForCausalLM"};
  out["model_type"] = is_own ? own_model_type : kimi_linear;
  if (is_own) add_code(out);
  for (const auto& [key, value] : fixed_keys)
    if (value != json(true)) out[key] = value;
  out["dtype"] = hf.dtype == DType::bf16 ? "bfloat16" : "float32";
  out["hidden_size"] = c.hidden_size;
  out["num_hidden_layers"] = c.num_hidden_layers;
  out["vocab_size"] = c.vocab_size;
  add_token_ids(out, hf.tokenizer.ids);
  if (!hf.tokenizer.hash.empty()) out["tokenizer_hash"] = hf.tokenizer.hash;
  out["tie_word_embeddings"] = c.tie_word_embeddings && !hf.tied_head_written_out;
  if (hf.tied_head_written_out) out["tied_head_written_out"] = true;
  out["initializer_range"] = c.initializer_range;
  out["rms_norm_eps"] = c.rms_norm_eps;
  out["model_max_length"] = hf.model_max_length;
  out["use_cache"] = true;
  add_attention(out, c);
  add_mlp(out, c);
  out["residual"] = name_of_residual(c.residual);
  if (c.residual == Residual::block_attnres) out["attn_res_block_size"] = c.attn_res_block_size;
  if (c.residual == Residual::mhc) out["num_residual_streams"] = c.num_residual_streams;
  if (hf.document_end) out["document_end_token_id"] = *hf.document_end;
  return out.dump(2) + "\n";
}

std::string to_generation_config(const TokenIds& ids) {
  nlohmann::ordered_json out;
  add_token_ids(out, ids);
  return out.dump(2) + "\n";
}

HfModel parse_hf_config(const std::string& text, const std::string& file) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) throw Error("{}: is no JSON", file);
  const Keys keys(root, file, "");
  if (const json& type = keys.at("model_type"); type != kimi_linear && type != own_model_type)
    throw keys.fault("model_type", type, "\"kimi_linear\" or \"lamina\"");
  for (const auto& [key, value] : fixed_keys) keys.must_be(key, value);
  if (keys.has("rope_scaling"))
    throw keys.fault("rope_scaling", keys.at("rope_scaling"), "null: positions are not rotated");
  HfModel hf;
  ModelConfig& c = hf.model;
  keys.read("hidden_size", c.hidden_size);
  keys.read("num_hidden_layers", c.num_hidden_layers);
  if (c.num_hidden_layers < 1 || c.num_hidden_layers > 100000)
    throw keys.fault("num_hidden_layers", keys.at("num_hidden_layers"), "a number of layers");
  keys.read("vocab_size", c.vocab_size);
  parse_tokenizer(keys, c.vocab_size, hf.tokenizer);
  keys.read_optional("tie_word_embeddings", c.tie_word_embeddings);
  keys.read_optional("tied_head_written_out", hf.tied_head_written_out);
  if (hf.tied_head_written_out && c.tie_word_embeddings)
    throw keys.fault("tied_head_written_out", true, "false with tie_word_embeddings: then there is no head to write");
  if (hf.tied_head_written_out) c.tie_word_embeddings = true;
  keys.read_optional("initializer_range", c.initializer_range);
  keys.read("rms_norm_eps", c.rms_norm_eps);
  keys.read_optional("model_max_length", hf.model_max_length);
  parse_attention(keys, root, file, c);
  parse_mlp(keys, c);
  parse_residual(keys, c);
  if (keys.has("document_end_token_id")) {
    int64_t id = -1;
    keys.read("document_end_token_id", id);
    if (id < 0 || id >= c.vocab_size)
      throw keys.fault("document_end_token_id", id, fmt::format("a token from 0 to {}", c.vocab_size - 1));
    if (hf.tokenizer.ids.eos.empty()) hf.tokenizer.ids.eos = {id};
    if (hf.tokenizer.ids.eos != std::vector<int64_t>{id})
      throw keys.fault("document_end_token_id", id, fmt::format("eos_token_id, {}", keys.at("eos_token_id").dump()));
    hf.document_end = id;
  }
  if (keys.has("dtype") && keys.at("dtype") == "float32") hf.dtype = DType::f32;
  return hf;
}

}  // namespace lamina
