#include "trainer/export/export.h"

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "configs/schema/decode.h"
#include "core/base/here.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "model/parameters.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/export/export_code.h"
#include "trainer/export/export_tokenizer.h"
#include "trainer/export/export_values.h"
#include "trainer/export/hf_config.h"
#include "trainer/export/model_card.h"
#include "trainer/record/identity.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

constexpr const char* no_tokenizer = "the checkpoint has none, and its training data is not there";

DType exported_dtype(const std::string& name, DType dtype) {
  const bool is_decay = name.ends_with(".A_log") || name.ends_with(".dt_bias");
  return is_decay ? DType::f32 : dtype;
}

// A folder that gets its name when everything in it is on the disk, and goes when that doesn't happen.
class NewFolder {
 public:
  explicit NewFolder(const fs::path& path) : path_(path), temporary_(path) {
    temporary_ += ".lamina-tmp";
    if (fs::exists(path_) && !(fs::is_directory(path_) && fs::is_empty(path_)))
      throw Error("{}: exists, expected a new folder or an empty one", path_.string());
    std::error_code error;
    fs::remove_all(temporary_, error);  // of a process that was killed
    if (!error) fs::create_directories(temporary_, error);
    if (error) throw Error("{}: can't create: {}", temporary_.string(), error.message());
  }
  ~NewFolder() {
    std::error_code ignored;
    if (!published_) fs::remove_all(temporary_, ignored);
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  const fs::path& path() const { return temporary_; }
  void publish() {
    io::fsync_directory(temporary_);
    io::rename_durably(temporary_, path_);
    published_ = true;
  }

 private:
  fs::path path_, temporary_;
  bool published_ = false;
};

HfModel describe(const fs::path& checkpoint, const CheckpointInfo& info, const Config& config,
                 const ExportOptions& options, const Tokenizer* tokenizer) {
  HfModel hf{config.model, config.data.seq_len, options.dtype, stored_tokenizer(info), config.model.tie_word_embeddings,
             std::nullopt};
  if (tokenizer && hf.tokenizer.ids.eos.empty()) hf.tokenizer = identity_of(*tokenizer);
  if (config.data.document_mask) {
    if (hf.tokenizer.ids.eos.size() != 1)
      throw Error(
          "{}: data.document_mask: the token that ends a document is unknown, without which nothing else can compute "
          "the model: neither the checkpoint nor its training data {} says it",
          checkpoint.string(), config.data.train.front().path);
    hf.document_end = hf.tokenizer.ids.eos.front();
  }
  return hf;
}

// What was done to the weights by this export, and by the one that the checkpoint was imported from; empty: nothing.
std::string rounding_of(const CheckpointInfo& info, const ExportOptions& options) {
  const auto before = info.extra.find(rounded_weights);
  std::string text = options.quantization ? describe(*options.quantization) : "";
  if (before != info.extra.end()) text += (text.empty() ? "" : "; before that ") + before->second;
  return text;
}

DType stored_dtype(const std::vector<CheckpointTensor>& stored, const std::string& name) {
  for (const CheckpointTensor& tensor : stored)
    if (tensor.name == name) return tensor.dtype;
  return DType::f32;  // missing: load() says so
}

// Who exported, and of the checkpoint who trained it, on what.
std::string origin_text(const fs::path& checkpoint, const CheckpointInfo& info, const ExportOptions& options) {
  nlohmann::ordered_json origin{{"program", options.program}, {"time", utc_now()}};
  for (const auto& [key, value] : options.origin) origin[key] = value;
  nlohmann::ordered_json from{{"path", fs::absolute(checkpoint).lexically_normal().string()},
                              {"step", info.step},
                              {"written", info.written_at},
                              {"program", info.program_version},
                              {"ranks", info.world_size}};
  for (const char* key : {"commit", "command", "hosts", "libraries", "imported_from"})
    if (const auto found = info.extra.find(key); found != info.extra.end()) from[key] = found->second;
  from["tokenizer_hash"] = stored_tokenizer(info).hash;
  from["data"] = info.sampler_fingerprint;
  origin["checkpoint"] = std::move(from);
  return origin.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

std::vector<ExportShard> make_export_shards(const ModelConfig& model, const ExportOptions& options) {
  LAMINA_CHECK(options.dtype == DType::bf16 || options.dtype == DType::f32, "{}", name_of(options.dtype));
  std::vector<ExportShard> shards;
  int64_t bytes = 0;
  const auto add = [&](const std::string& name, const Shape& shape) {
    const SafetensorsEntry entry{name, exported_dtype(name, options.dtype), shape};
    if (shards.empty() || bytes + entry.num_bytes() > options.max_shard_bytes) {
      if (shards.empty() || !shards.back().tensors.empty()) shards.emplace_back();
      bytes = 0;
    }
    shards.back().tensors.push_back(entry);
    bytes += entry.num_bytes();
  };
  const std::vector<model::ParameterSpec> specs = model::parameter_specs(model);
  for (const model::ParameterSpec& spec : specs) add(spec.name, spec.shape);
  if (model.tie_word_embeddings) add(head_tensor, {model.vocab_size, model.hidden_size});
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].name = fmt::format("model-{:05d}-of-{:05d}.safetensors", i + 1, shards.size());
  return shards;
}

ExportSummary export_checkpoint(const fs::path& checkpoint, const fs::path& output, const ExportOptions& options) {
  CheckpointReader reader(checkpoint);
  const Config config = trained_config(reader.info(), checkpoint.string());
  const std::vector<CheckpointTensor> stored = reader.tensors();
  const std::vector<model::ParameterSpec> specs = model::parameter_specs(config.model);
  check_parameters(checkpoint.string(), stored, specs);
  const DType stored_as = stored_dtype(stored, "parameters/" + specs.front().name);

  const auto tokenizer = find_tokenizer(reader.info(), checkpoint.string());
  const HfModel hf = describe(checkpoint, reader.info(), config, options, tokenizer.get());
  const TokenizerFiles tokenizer_parts = tokenizer ? tokenizer_files(*tokenizer) : TokenizerFiles{{}, no_tokenizer};
  ExportSummary summary;
  summary.reasons = reasons_against_kimi_linear(hf);
  summary.has_token_ids = !hf.tokenizer.ids.eos.empty();
  summary.no_tokenizer = tokenizer_parts.reason;
  if (options.quantization && options.quantization->depth_queries && !config.model.has_depth_reads())
    throw Error("{}: model.residual: found {}, which has no depth queries to quantize", checkpoint.string(),
                name_of(config.model.residual));
  std::set<std::string> quantized;
  if (options.quantization)
    for (const std::string& name : quantized_tensors(config.model, *options.quantization)) quantized.insert(name);
  summary.num_quantized = static_cast<int64_t>(quantized.size());
  NewFolder folder(output);
  ModelHash hash;
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  for (const ExportShard& shard : make_export_shards(config.model, options)) {
    SafetensorsWriter writer(folder.path() / shard.name, shard.tensors);
    for (const SafetensorsEntry& entry : writer.tensors()) {
      std::vector<char> values(static_cast<size_t>(entry.shape.num_elements() * size_of(stored_as)));
      const TensorView view(values.data(), stored_as, {entry.shape.num_elements()});
      const bool is_tied_head = config.model.tie_word_embeddings && entry.name == head_tensor;
      reader.load({fmt::format("parameters/{}", is_tied_head ? embedding_tensor : entry.name), entry.shape, 0,
                   entry.shape.num_elements(), view});
      DType dtype = stored_as;
      if (quantized.contains(entry.name)) {
        convert_values(values, dtype, DType::f64);
        dtype = DType::f64;
        const auto count = static_cast<size_t>(entry.shape.num_elements());
        quantize_values({reinterpret_cast<double*>(values.data()), count}, entry.shape[-1], *options.quantization,
                        entry.name);
      }
      convert_values(values, dtype, entry.dtype);
      writer.write(values.data(), static_cast<int64_t>(values.size()));
      hash.add(entry, values);
      weight_map[entry.name] = shard.name;
      ++summary.num_tensors;
      summary.num_parameters += entry.shape.num_elements();
      summary.num_bytes += entry.num_bytes();
    }
    writer.finish();
    ++summary.num_shards;
  }
  summary.hash = hash.digest();
  nlohmann::ordered_json index;
  index["metadata"] = {{"total_size", summary.num_bytes}, {"total_parameters", summary.num_parameters}};
  const std::string rounding = rounding_of(reader.info(), options);
  if (!rounding.empty()) index["metadata"][rounded_weights] = rounding;
  index["weight_map"] = std::move(weight_map);
  std::map<std::string, std::string> texts = tokenizer_parts.contents;
  texts["model.safetensors.index.json"] = index.dump(2) + "\n";
  texts["config.json"] = to_hf_config(hf);
  texts["generation_config.json"] = to_generation_config(hf.tokenizer.ids);
  texts["README.md"] = model_card(
      checkpoint, reader.info(), config, hf,
      {options.program, tokenizer ? tokenizer->name() : "", tokenizer_parts.reason.empty(), rounding,
       options.quantization ? quantized_kinds(config.model, *options.quantization) : std::vector<std::string>{}});
  if (!summary.reasons.empty()) texts[modeling_file] = modeling_code();
  if (!options.origin.empty()) texts[export_origin_file] = origin_text(checkpoint, reader.info(), options);
  for (const auto& [name, text] : texts) io::write_file_atomically(folder.path() / name, text);
  folder.publish();
  return summary;
}

}  // namespace lamina
