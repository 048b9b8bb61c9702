// Run folders made up row by row.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/io/file.h"
#include "launch/study/run_data.h"
#include "tests/trainer/checkpoint_support.h"

namespace lamina::testing_report {

using nlohmann::json;
using testing_checkpoint::message_of;
using testing_checkpoint::TemporaryFolder;
namespace fs = std::filesystem;

struct MadeUp {
  std::string name = "made-up";
  std::string residual = "block_attnres";
  std::string lr = "1.0e-3";
  int64_t num_steps = 4;  // of the configuration
};

// Three layers, blocks of two: the second block is short.
inline Config config_of(const MadeUp& made_up) {
  Config config = parse_config(fmt::format(R"(
run: {{name: made-up, seed: 3}}
model: {{vocab_size: 256, hidden_size: 32, num_hidden_layers: 3, residual: {}, num_attention_heads: 2,
  kv_lora_rank: 8, qk_nope_head_dim: 8, qk_rope_head_dim: 4, v_head_dim: 8, intermediate_size: 48, num_experts: 2,
  num_experts_per_token: 1, moe_intermediate_size: 8}}
data: {{seq_len: 16, train: [{{path: data/a, weight: 1.0}}]}}
train: {{num_steps: {}, global_batch_size: 4, micro_batch_size: 2, optimizer: {{name: adamw, lr: {}}},
  lr_schedule: {{name: constant}}}}
)",
                                           made_up.residual, made_up.num_steps, made_up.lr),
                               "test.yaml");
  config.run.name = made_up.name;
  return config;
}

inline json metric_row(int64_t step) {
  const auto x = static_cast<double>(step);
  return {{"step", step},
          {"loss", 5.0 / x},
          {"grad_norm", 1.0 + 0.1 * x},
          {"lr", 0.001},
          {"tokens", 64 * step},
          {"tokens_per_second", 1000.0},
          {"comm_bytes", {{"pipeline_hidden", 0}, {"pipeline_blocks", 0}, {"data", 12 * step}, {"expert", 0}}}};
}

inline json layer_row(int64_t step, int64_t layer, const std::string& sublayer, double value) {
  json row = {{"step", step}, {"layer", layer}, {"sublayer", sublayer}, {"hidden_rms", value}};
  if (sublayer != "output") row["grad_norm"] = value / 7;
  return row;
}

// A run whose rows can be changed before it is read.
struct MadeRun {
  fs::path folder;
  std::string name;
  Config config;
  std::vector<json> metrics, layers;

  operator study::RunData() const {  // NOLINT(google-explicit-constructor): stands for one
    return {folder, name, config, reader_of(metrics), reader_of(layers), metrics.empty() ? json() : metrics.back()};
  }

 private:
  static std::function<study::RowReader()> reader_of(const std::vector<json>& rows) {
    return [rows]() -> study::RowReader {
      return [rows, next = size_t{0}]() mutable {
        return next < rows.size() ? std::optional(rows[next++]) : std::nullopt;
      };
    };
  }
};

inline MadeRun make_run(const MadeUp& made_up = {}) {
  MadeRun run;
  run.folder = "runs/" + made_up.name;
  run.name = made_up.name;
  run.config = config_of(made_up);
  for (int64_t step = 1; step <= 4; ++step) run.metrics.push_back(metric_row(step));
  for (int64_t step : {2, 4}) {
    for (int64_t layer = 0; layer < 3; ++layer)
      for (const char* sublayer : {"mixer", "mlp"})
        run.layers.push_back(layer_row(step, layer, sublayer, static_cast<double>(10 * step + layer)));
    run.layers.push_back(layer_row(step, 3, "output", static_cast<double>(step)));
  }
  return run;
}

inline std::string lines(const std::vector<json>& rows) {
  std::string text;
  for (const json& row : rows) text += row.dump() + "\n";
  return text;
}

// As `lamina train` leaves it.
inline void write_run(const MadeRun& run, const fs::path& folder) {
  fs::create_directories(folder);
  io::write_file_atomically(folder / "config.yaml", to_yaml(run.config));
  io::write_file_atomically(folder / "metrics.jsonl", lines(run.metrics));
  io::write_file_atomically(folder / "layers.jsonl", lines(run.layers));
}

}  // namespace lamina::testing_report
