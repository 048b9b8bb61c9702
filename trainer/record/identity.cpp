#include "trainer/record/identity.h"

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "data/token_file.h"
#include "trainer/record/run_folder.h"

namespace lamina {
namespace {

using nlohmann::json;

constexpr const char* hash_key = "tokenizer_hash";
constexpr const char* passed_key = "passed_batches";
constexpr const char* ids_key = "token_ids";

// The keys of the model, in one spelling for each model.
std::map<std::string, std::string> keys_of(ModelConfig model) {
  std::vector<Mixer> mixers;
  bool has_kda = false;
  for (int64_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    mixers.push_back(model.mixer(layer));
    has_kda = has_kda || mixers.back() == Mixer::kda;
  }
  model.mixers = has_kda ? mixers : std::vector<Mixer>{};
  model.initializer_range = model.aux_loss_alpha = 0;
  model.mup_base_width.reset();
  Config config;
  config.model = model;
  std::map<std::string, std::string> keys = flatten_config(to_yaml(config));
  std::erase_if(keys, [](const auto& entry) { return !entry.first.starts_with("model."); });
  return keys;
}

json to_json(const std::optional<int64_t>& id) {
  return id ? json(*id) : json();
}

}  // namespace

TokenizerIdentity identity_of(const Tokenizer& tokenizer) {
  TokenizerIdentity identity;
  identity.hash = tokenizer.hash();
  identity.ids.bos = tokenizer.end_of_document();
  identity.ids.eos = {tokenizer.end_of_document()};
  identity.ids.pad = tokenizer.padding();
  return identity;
}

void store_tokenizer(CheckpointInfo& info, const TokenizerIdentity& tokenizer) {
  const TokenIds& ids = tokenizer.ids;
  if (!tokenizer.hash.empty()) info.extra[hash_key] = tokenizer.hash;
  info.extra[ids_key] = json{{"bos", to_json(ids.bos)}, {"eos", ids.eos}, {"pad", to_json(ids.pad)}}.dump();
}

void store_tokenizer(CheckpointInfo& info, const Tokenizer& tokenizer) {
  store_tokenizer(info, identity_of(tokenizer));
  info.tokenizer = StoredTokenizer{tokenizer.name(), tokenizer.model()};
}

std::unique_ptr<Tokenizer> make_tokenizer(const CheckpointInfo& info, const std::string& checkpoint) {
  if (!info.tokenizer) return nullptr;
  return make_stored_tokenizer(info.tokenizer->name, info.tokenizer->model, checkpoint);
}

std::unique_ptr<Tokenizer> find_tokenizer(const CheckpointInfo& info, const std::string& checkpoint) {
  if (auto own = make_tokenizer(info, checkpoint)) return own;
  const std::string hash = stored_tokenizer(info).hash;
  if (hash.empty()) return nullptr;
  try {
    const Config config = parse_config(info.config_yaml, checkpoint);
    auto tokenizer = TokenFile::open(config.data.train.front().path).make_tokenizer();
    if (tokenizer->hash() == hash) return tokenizer;
  } catch (const Error& error) {
    log::debug("the tokenizer of the training data: {}", error.what());
  }
  return nullptr;
}

TokenizerIdentity stored_tokenizer(const CheckpointInfo& info) {
  TokenizerIdentity identity;
  if (const auto hash = info.extra.find(hash_key); hash != info.extra.end())
    identity.hash = hash->second;
  else if (const std::optional<DataIdentity> data = stored_data(info))
    identity.hash = data->tokenizer_hash;
  const auto text = info.extra.find(ids_key);
  if (text == info.extra.end()) return identity;
  const json ids = json::parse(text->second);
  if (!ids.at("bos").is_null()) identity.ids.bos = ids.at("bos").get<int64_t>();
  if (!ids.at("pad").is_null()) identity.ids.pad = ids.at("pad").get<int64_t>();
  identity.ids.eos = ids.at("eos").get<std::vector<int64_t>>();
  return identity;
}

void store_passed_batches(CheckpointInfo& info, const PassedBatches& passed) {
  if (!passed.ranges().empty()) info.extra[passed_key] = to_text(passed.ranges());
}

PassedBatches passed_batches(const CheckpointInfo& info) {
  const auto stored = info.extra.find(passed_key);
  return stored == info.extra.end() ? PassedBatches() : PassedBatches(parse_step_ranges(stored->second));
}

int64_t trained_batches(const CheckpointInfo& info) {
  return passed_batches(info).batch_of(info.step);
}

Config trained_config(const CheckpointInfo& info, const std::string& checkpoint) {
  return trained_config(parse_config(info.config_yaml, checkpoint), trained_batches(info));
}

std::optional<DataIdentity> stored_data(const CheckpointInfo& info) {
  return parse_data_identity(info.sampler_fingerprint);
}

void check_tokenizer(const CheckpointInfo& info, const std::string& checkpoint, const std::string& hash,
                     const std::string& folder) {
  const std::string expected = stored_tokenizer(info).hash;
  if (expected.empty())
    log::info("{}: does not say which tokenizer it belongs to; that of {} ({}) is taken on trust", checkpoint, folder,
              hash);
  else if (hash != expected)
    throw Error("{}: tokenizer {} found, expected {}, with which {} was trained", folder, hash, expected, checkpoint);
}

void check_same_model(const std::string& name, const ModelConfig& found, const ModelConfig& expected) {
  ModelConfig asked = expected;
  if (asked.vocab_size == 0) asked.vocab_size = found.vocab_size;
  const std::map<std::string, std::string> theirs = keys_of(found), ours = keys_of(asked);
  // Those from which others follow come first.
  std::vector<std::string> keys = {"model.num_hidden_layers", "model.residual", "model.mixers", "model.num_experts"};
  for (const auto& all : {ours, theirs})
    for (const auto& [key, value] : all) keys.push_back(key);
  const auto value_in = [](const std::map<std::string, std::string>& values, const std::string& key) {
    const auto found_at = values.find(key);
    return found_at == values.end() ? "(absent)" : found_at->second;
  };
  for (const std::string& key : keys)
    if (const std::string a = value_in(theirs, key), b = value_in(ours, key); a != b)
      throw Error("{}: {}: {} found, expected {} as in the configuration", name, key, a, b);
}

std::vector<model::ParameterSpec> check_model_to_start_from(const std::string& name, const ModelConfig& found,
                                                            const ModelConfig& expected) {
  if (found.residual != Residual::standard || !expected.has_depth_reads()) {
    check_same_model(name, found, expected);
    return {};
  }
  ModelConfig changed = found;
  changed.residual = expected.residual;
  changed.attn_res_block_size = expected.attn_res_block_size;
  check_same_model(name, changed, expected);
  std::set<std::string> old;
  for (const model::ParameterSpec& spec : model::parameter_specs(found)) old.insert(spec.name);
  std::vector<model::ParameterSpec> added;
  for (model::ParameterSpec& spec : model::parameter_specs(changed))
    if (!old.contains(spec.name)) added.push_back(std::move(spec));
  return added;
}

std::string describe_new(size_t num_parameters) {
  return fmt::format("{} tensors of Attention Residuals: queries zero, norms one", num_parameters);
}

void check_parameters(const std::string& checkpoint, const std::vector<CheckpointTensor>& stored,
                      const std::vector<model::ParameterSpec>& specs) {
  const std::string group = "parameters/";
  std::set<std::string> missing, extra;
  for (const model::ParameterSpec& spec : specs) missing.insert(group + spec.name);
  for (const CheckpointTensor& tensor : stored)
    if (tensor.name.starts_with(group) && missing.erase(tensor.name) == 0) extra.insert(tensor.name);
  if (!extra.empty())
    throw Error("{}: tensor {} is not one of the model in its configuration", checkpoint, *extra.begin());
  if (!missing.empty())
    throw Error("{}: tensor {} not found, expected every one of the model", checkpoint, *missing.begin());
}

}  // namespace lamina
