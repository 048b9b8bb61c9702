#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "data/foreign_tokenizer.h"
#include "data/tokenizer.h"
#include "model/parameters.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/version.h"
#include "trainer/export/export.h"
#include "trainer/export/export_tokenizer.h"
#include "trainer/export/export_values.h"
#include "trainer/export/hf_config.h"
#include "trainer/export/tensor_sources.h"
#include "trainer/record/identity.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* index_file = "model.safetensors.index.json";
constexpr const char* single_file = "model.safetensors";

// The shards of an exported model, opened and checked against the index and the model.
class ExportedModel {
 public:
  // `wanted`: every tensor of the model.
  ExportedModel(const fs::path& folder, const std::map<std::string, Shape>& wanted, const ModelConfig& model)
      : folder_(folder) {
    if (fs::exists(folder_ / index_file)) {
      read_index();
      // Transformers reads the single file then, and leaves either behind when it saves over the other.
      if (fs::exists(folder_ / single_file) && !shards_.contains(single_file))
        throw Error(
            "{}: found beside {}, which does not name it, expected one of the two: two saves lie in this folder",
            (folder_ / single_file).string(), index_file);
    } else if (fs::exists(folder_ / single_file))
      open_shard(single_file);
    else
      throw Error("{}: not found, expected an exported model's index, or {} alone", (folder_ / index_file).string(),
                  single_file);
    check_tensors(find_tensors(wanted, model));
  }

  std::pair<std::vector<char>, DType> values_of(const std::string& wanted, int64_t num_elements) const {
    const TensorSource& source = sources_.at(wanted);
    const SafetensorsFile& file = shards_.at(place_.at(source.tensor));
    const DType dtype = file.entry(source.tensor).dtype;
    std::vector<char> values(static_cast<size_t>(num_elements * size_of(dtype)));
    file.read(source.tensor, source.begin * size_of(dtype), values);
    return {std::move(values), dtype};
  }
  int64_t num_shards() const { return static_cast<int64_t>(shards_.size()); }
  const std::string& rounding() const { return rounding_; }  // rounded_weights of the index

 private:
  void read_index() {
    const std::string path = (folder_ / index_file).string();
    const json index = json::parse(io::read_file(path), nullptr, /*allow_exceptions=*/false);
    if (!index.is_object() || !index.contains("weight_map") || !index.at("weight_map").is_object())
      throw Error("{}: no weight_map in it, expected a JSON object with the file of each tensor", path);
    for (const auto& [tensor, file] : index.at("weight_map").items()) {
      const std::string name = file.is_string() ? file.get<std::string>() : "";
      if (name.empty() || name.find('/') != std::string::npos || !name.ends_with(".safetensors"))
        throw Error("{}: weight_map of tensor {}: found {}, expected a safetensors file beside it", path, tensor,
                    file.dump());
      if (!shards_.contains(name)) open_shard(name);
      if (!shards_.at(name).has(tensor))
        throw Error("{}: tensor {} is not in {}, where the index has it", path, tensor, name);
    }
    int64_t bytes = 0;
    for (const auto& [tensor, name] : place_) {
      bytes += shards_.at(name).entry(tensor).num_bytes();
      if (!index.at("weight_map").contains(tensor))
        throw Error("{}: tensor {} is not in the index", (folder_ / name).string(), tensor);
    }
    const json metadata = index.value("metadata", json::object());
    if (metadata.is_object() && metadata.contains("total_size") && metadata.at("total_size") != bytes)
      throw Error("{}: total_size {} found, expected the {} bytes of its tensors", path,
                  metadata.at("total_size").dump(), bytes);
    if (metadata.is_object() && metadata.contains(rounded_weights) && metadata.at(rounded_weights).is_string())
      rounding_ = metadata.at(rounded_weights);
  }

  void open_shard(const std::string& name) {
    const SafetensorsFile& file = shards_.emplace(name, SafetensorsFile(folder_ / name)).first->second;
    for (const SafetensorsEntry& entry : file.tensors())
      if (const auto [at, is_new] = place_.emplace(entry.name, name); !is_new)
        throw Error("{}: tensor {} is also in {}", file.path().string(), entry.name, at->second);
  }

  // The tensors that the model's own are read from.
  std::map<std::string, Shape> find_tensors(const std::map<std::string, Shape>& wanted, const ModelConfig& model) {
    std::map<std::string, Shape> expected;
    for (const auto& [name, shape] : wanted) {
      for (TensorSource& source : sources_of(name, shape, model)) {
        if (!place_.contains(source.tensor)) continue;
        expected.emplace(source.tensor, source.shape);
        if (const auto [at, is_new] = sources_.emplace(name, source); !is_new)
          throw Error("{}: tensor {} is there twice, as {} and as {}", folder_.string(), name, at->second.tensor,
                      source.tensor);
      }
      if (!sources_.contains(name))
        throw Error("{}: tensor {} {} not found among its {}", folder_.string(), name, shape.to_string(),
                    place_.size());
    }
    return expected;
  }

  void check_tensors(const std::map<std::string, Shape>& expected) const {
    for (const auto& [tensor, name] : place_) {
      const std::string file = (folder_ / name).string();
      const SafetensorsEntry& entry = shards_.at(name).entry(tensor);
      if (entry.shape.num_elements() == 0)
        continue;  // as transformers keeps the shared experts of a model that has none
      const auto found = expected.find(tensor);
      if (found == expected.end()) throw Error("{}: tensor {} is not one of the model in config.json", file, tensor);
      if (!(entry.shape == found->second))
        throw Error("{}: tensor {}: shape {} found, expected {}", file, tensor, entry.shape.to_string(),
                    found->second.to_string());
      if (entry.dtype == DType::i32) throw Error("{}: tensor {}: I32 found, expected BF16, F32 or F64", file, tensor);
    }
  }

  fs::path folder_;
  std::map<std::string, SafetensorsFile> shards_;
  std::map<std::string, std::string> place_;     // shard of each tensor
  std::map<std::string, TensorSource> sources_;  // of each tensor of the model
  std::string rounding_;
};

Config placeholder_experiment(const HfModel& hf) {
  Config config;
  config.run.name = "imported";
  config.data.seq_len = hf.model_max_length > 0 ? hf.model_max_length : 4096;
  config.data.train = {{"data/none", 1.0}};
  config.train.num_steps = config.train.global_batch_size = config.train.micro_batch_size = 1;
  config.train.optimizer.lr = 1e-3;
  config.train.lr_schedule.name = LrScheduleName::constant;
  config.data.document_mask = hf.document_end.has_value();
  return config;
}

// The one that config.json names by its hash, where the folder has it. Of other programs' models nothing is known to belong together.
std::optional<StoredTokenizer> tokenizer_in(const fs::path& folder, const std::string& hash) {
  if (hash.empty()) return std::nullopt;
  if (hash == make_tokenizer("bytes")->hash()) return StoredTokenizer{"bytes", ""};
  std::string spec;
  for (const auto& [kind, name] : {std::pair("sentencepiece:", sentencepiece_file),
                                   {"sentencepiece:", sentencepiece_file_alone},
                                   {"tiktoken:", tiktoken_file},
                                   {"tiktoken:", tiktoken_file_alone},
                                   {"huggingface:", "tokenizer.json"}})
    if (spec.empty() && fs::exists(folder / name)) spec = kind + (folder / name).string();
  if (spec.empty()) return std::nullopt;
  const auto tokenizer = make_tokenizer(spec);
  if (tokenizer->hash() == hash) return StoredTokenizer{tokenizer->name(), tokenizer->model()};
  // Other programs write a tokenizer.json anew when they save a model.
  if (tokenizer->name() != huggingface_name)
    throw Error("{}: tokenizer {} found, expected {}, tokenizer_hash of config.json", spec, tokenizer->hash(), hash);
  log::warning("{}: tokenizer {} found, expected {}, tokenizer_hash of config.json; the checkpoint gets none", spec,
               tokenizer->hash(), hash);
  return std::nullopt;
}

}  // namespace

namespace {

// The text that the model was trained on, as its checkpoint knew it; "none" where the folder doesn't say.
std::string trained_on(const fs::path& folder) {
  const fs::path path = folder / export_origin_file;
  const std::string none = "none";
  if (!fs::exists(path)) return none;
  const auto origin = nlohmann::json::parse(io::read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!origin.is_object() || !origin.contains("checkpoint") || !origin["checkpoint"].is_object())
    throw Error(
        "{}: found no `checkpoint`, expected what `lamina export` wrote; without the file the text that the model was "
        "trained on "
        "is not known",
        path.string());
  const std::string data = origin["checkpoint"].value("data", none);
  if (data != none && !parse_data_identity(data))
    throw Error("{}: checkpoint.data: `{}` found, expected what `lamina export` wrote", path.string(), data);
  return data;
}

}  // namespace

ExportSummary import_model(const fs::path& from, const fs::path& checkpoint, const std::optional<Config>& experiment,
                           const std::map<std::string, std::string>& origin) {
  const std::string config_file = (from / "config.json").string();
  const HfModel hf = parse_hf_config(io::read_file(config_file), config_file);
  Config config = experiment ? *experiment : placeholder_experiment(hf);
  std::vector<model::ParameterSpec> added;
  if (experiment) {
    added = check_model_to_start_from(config_file, hf.model, experiment->model);
    if (hf.document_end.has_value() != experiment->data.document_mask)
      throw Error("{}: document_end_token_id: {}, expected {} with data.document_mask: {} in the configuration",
                  config_file, hf.document_end ? std::to_string(*hf.document_end) + " found" : "not found",
                  experiment->data.document_mask ? "a token" : "none", experiment->data.document_mask);
    if (config.model.vocab_size == 0) config.model.vocab_size = hf.model.vocab_size;
  } else {
    config.model = hf.model;
  }
  config = parse_config(to_yaml(config), config_file);  // sizes that can't be are refused here
  const std::vector<model::ParameterSpec> specs = model::parameter_specs(config.model);
  std::map<std::string, Shape> tensors;
  for (const model::ParameterSpec& spec : specs) tensors[spec.name] = spec.shape;
  for (const model::ParameterSpec& spec : added) tensors.erase(spec.name);
  if (hf.tied_head_written_out) tensors[head_tensor] = tensors.at(embedding_tensor);
  const ExportedModel exported(from, tensors, config.model);

  CheckpointInfo info;
  info.config_yaml = to_yaml(config);
  info.sampler_fingerprint = trained_on(from);
  info.seed = config.run.seed;
  info.data_parallel = 1;
  info.program_version = program_version;
  info.extra = origin;
  info.extra["contents"] = parameters_only;
  info.extra["imported_from"] = from.string();
  if (!exported.rounding().empty()) info.extra[rounded_weights] = exported.rounding();
  store_tokenizer(info, hf.tokenizer);
  info.tokenizer = tokenizer_in(from, hf.tokenizer.hash);
  CheckpointWriter writer(checkpoint, info);
  ExportSummary summary;
  ModelHash hash;
  const auto read = [&](const std::string& name) {
    const Shape& shape = tensors.at(name);
    auto values = exported.values_of(name, shape.num_elements());
    const SafetensorsEntry entry{name, values.second, shape};
    hash.add(entry, values.first);
    ++summary.num_tensors;
    summary.num_parameters += entry.shape.num_elements();
    summary.num_bytes += entry.num_bytes();
    return values;
  };
  if (hf.tied_head_written_out) {
    const auto head = read(head_tensor);
    if (head != exported.values_of(embedding_tensor, tensors.at(embedding_tensor).num_elements()))
      throw Error(
          "{}: {} differs from {}, expected the same values with tied_head_written_out; without that key the "
          "model is imported with two matrices",
          config_file, head_tensor, embedding_tensor);
  }
  const DType stored = config.train.precision == Precision::fp64 ? DType::f64 : DType::f32;
  const auto write = [&](const model::ParameterSpec& spec, std::vector<char>& values) {
    const int64_t count = spec.shape.num_elements();
    writer.write({"parameters/" + spec.name, spec.shape, 0, count, TensorView(values.data(), stored, {count})});
  };
  for (const model::ParameterSpec& spec : specs) {
    if (!tensors.contains(spec.name)) continue;
    auto [values, dtype] = read(spec.name);
    convert_values(values, dtype, stored);
    write(spec, values);
  }
  Stream stream;
  for (const model::ParameterSpec& spec : added) {
    const int64_t count = spec.shape.num_elements();
    std::vector<char> values(static_cast<size_t>(count * size_of(stored)));
    model::initialise_range(spec, config.run.seed, config.model.initializer_range, 0,
                            TensorView(values.data(), stored, {count}), stream);
    write(spec, values);
  }
  writer.commit();
  summary.num_new = added.size();
  summary.num_shards = exported.num_shards();
  summary.hash = hash.digest();
  return summary;
}

}  // namespace lamina
