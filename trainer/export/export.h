// Models in the format that other programs read: safetensors shards, their index and config.json, with the tensor names and shapes
// of the released Kimi Linear, which are also a checkpoint's. Export and import hold one tensor at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "trainer/export/quantize.h"
#include "trainer/export/safetensors.h"

namespace lamina {

struct ExportOptions {
  DType dtype = DType::bf16;  // or f32; A_log and dt_bias are always f32
  int64_t max_shard_bytes = 5'000'000'000;
  std::string program = "lamina";  // that exports, for the folder's README.md
  std::optional<Quantization> quantization = {};
  // Of this process, for origin.json, which also says where the checkpoint comes from; empty: none is written.
  std::map<std::string, std::string> origin = {};
};

// A tied model's head is written out: its tensor has the embedding's values.
inline constexpr const char* embedding_tensor = "model.embed_tokens.weight";
inline constexpr const char* head_tensor = "lm_head.weight";

struct ExportShard {
  std::string name;  // model-00001-of-00020.safetensors
  std::vector<SafetensorsEntry> tensors;
};

// The tensors of a model in depth order, a new shard where the next one would make it larger than the limit. Pure.
std::vector<ExportShard> make_export_shards(const ModelConfig& model, const ExportOptions& options);

struct ExportSummary {
  int64_t num_tensors = 0, num_parameters = 0;
  int64_t num_bytes = 0;  // of the tensors
  int64_t num_shards = 0;
  std::vector<std::string>
      reasons;                // of an export: why it is written as Lamina's own architecture; empty: as kimi_linear
  bool has_token_ids = true;  // of an export: false where the checkpoint doesn't know its tokenizer
  int64_t num_quantized = 0;  // tensors
  std::string no_tokenizer;   // of an export: why AutoTokenizer finds none in the folder; empty: it finds one
  size_t num_new = 0;  // of an import: parameters that the model there doesn't have (check_model_to_start_from())
  uint64_t hash = 0;   // XXH3 over names, dtypes, shapes and bytes of all tensors, however they are cut into shards
};

// `checkpoint`: of any layout. `output` must not exist, or be an empty folder; it appears whole or not at all. Any element is
// rounded once, to nearest; of a quantized tensor what it was rounded to before.
ExportSummary export_checkpoint(const std::filesystem::path& checkpoint, const std::filesystem::path& output,
                                const ExportOptions& options);

// Makes a committed checkpoint of an exported or released model's parameters: for `lamina eval`, `sample`, `inspect`, `export` and
// checkpoint.init_from, not to resume from. The configuration is `experiment`, whose model must be that of config.json, or that with
// Attention Residuals instead of the standard residual; without one, config.json's model and placeholders for data and training.
// `checkpoint` must not exist. Its `extra` gets `origin`. What the model was trained on is known where the folder has an origin.json.
ExportSummary import_model(const std::filesystem::path& from, const std::filesystem::path& checkpoint,
                           const std::optional<Config>& experiment,
                           const std::map<std::string, std::string>& origin = {});

// In an exported folder's index (metadata), and in CheckpointInfo::extra of a checkpoint that was imported from it: how its weights were
// rounded before they were written (describe(Quantization)).
inline constexpr const char* rounded_weights = "rounded_weights";

// CheckpointInfo::extra["contents"] of a checkpoint that import_model made.
inline constexpr const char* parameters_only = "parameters";

inline constexpr const char* export_origin_file = "origin.json";

}  // namespace lamina
