#include "trainer/export/model_card.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "model/optimizers/optimizer.h"
#include "model/parameters.h"
#include "trainer/export/export.h"
#include "trainer/record/identity.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

struct Losses {
  std::optional<double> training;                        // of the checkpoint's step
  std::optional<std::pair<int64_t, double>> validation;  // the last one up to it, with its step
};

// From metrics.jsonl. A line that is no JSON object is passed over: this is a report, not a check.
Losses losses_of(const fs::path& run, int64_t step) {
  Losses losses;
  std::ifstream file(run / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    const auto row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !row.contains("step") || !row.at("step").is_number_integer()) continue;
    const int64_t at = row.at("step");
    const auto number = [&](const char* key) { return row.contains(key) && row.at(key).is_number(); };
    if (at == step && number("loss")) losses.training = row.at("loss").get<double>();
    if (at <= step && number("validation_loss")) losses.validation = {at, row.at("validation_loss").get<double>()};
  }
  return losses;
}

std::string architecture_of(const HfModel& hf) {
  const ModelConfig& c = hf.model;
  std::string text = fmt::format("{} layers of width {}, mixers", c.num_hidden_layers, c.hidden_size);
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) text += c.mixer(layer) == Mixer::kda ? " kda" : " mla";
  text += c.residual == Residual::standard ? "; standard residual"
          : c.residual == Residual::mhc
              ? fmt::format("; manifold-constrained hyper-connections (mHC) of {} streams", c.num_residual_streams)
          : c.residual == Residual::full_attnres
              ? "; Full Attention Residuals"
              : fmt::format("; Attention Residuals over blocks of {} layers", c.attn_res_block_size);
  if (c.num_experts > 0)
    text += fmt::format("; {} of {} experts and {} shared from layer {} on", c.num_experts_per_token, c.num_experts,
                        c.num_shared_experts, c.first_k_dense_replace + 1);
  return text;
}

std::string data_of(const CheckpointInfo& info, const Config& config) {
  const std::optional<DataIdentity> trained = stored_data(info);
  std::string text;
  for (size_t i = 0; i < config.data.train.size(); ++i) {
    text += fmt::format("{}`{}`, weight {}", text.empty() ? "" : "; ", config.data.train[i].path,
                        config.data.train[i].weight);
    if (trained && i < trained->train.size())
      text += fmt::format(", {} tokens (hash {})", trained->train[i].num_tokens, trained->train[i].tokens_hash);
  }
  return text;
}

std::string loss_of(const fs::path& checkpoint, const CheckpointInfo& info) {
  const Losses losses = losses_of(fs::absolute(checkpoint).lexically_normal().parent_path().parent_path(), info.step);
  std::string text = losses.training ? fmt::format("{:.4f} in step {}", *losses.training, info.step) : "";
  if (losses.validation)
    text += fmt::format("{}{:.4f} in the validation of step {}", text.empty() ? "" : ", ", losses.validation->second,
                        losses.validation->first);
  return text.empty() ? "not known: the checkpoint lies in no run folder" : text + " (nats per token)";
}

std::string training_of(const CheckpointInfo& info, const Config& config) {
  const char* precision = config.train.precision == Precision::fp32   ? "fp32"
                          : config.train.precision == Precision::bf16 ? "bf16"
                                                                      : "fp64";
  const auto stored =
      info.extra.find("tokens");  // absent in checkpoints of older programs, whose sequences are all as long
  const std::string tokens =
      stored == info.extra.end() ? std::to_string(info.sequences_consumed * config.data.seq_len) : stored->second;
  const bool is_staged = BatchPlan(parse_config(info.config_yaml, "config")).stages().size() > 1;
  return fmt::format("{} of {} steps, {} sequences of {}{} tokens ({} tokens); {}, learning rate {}, {}, seed {}",
                     info.step, config.train.num_steps, info.sequences_consumed, is_staged ? "up to " : "",
                     config.data.seq_len, tokens, model::optimizer_of(config.train.optimizer.name).facts().title,
                     config.train.optimizer.lr, precision, info.seed);
}

}  // namespace

std::string model_card(const fs::path& checkpoint, const CheckpointInfo& info, const Config& config, const HfModel& hf,
                       const ExportFacts& facts) {
  const bool is_own = !reasons_against_kimi_linear(hf).empty();
  const auto extra = [&](const char* key) {
    const auto found = info.extra.find(key);
    return found == info.extra.end() ? std::string() : found->second;
  };
  std::string text =
      fmt::format("---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {}\n\n", config.run.name);
  text += fmt::format("A language model of {} parameters, trained with Lamina.\n\n| | |\n|---|---|\n",
                      model::num_parameters(hf.model));
  const auto row = [&](const char* what, const std::string& value) {
    text += fmt::format("| {} | {} |\n", what, value);
  };
  row("model", architecture_of(hf));
  row("dtype", hf.dtype == DType::bf16 ? "bfloat16 (`A_log` and `dt_bias` float32)" : "float32");
  if (!facts.rounded_weights.empty()) {
    std::string kinds;
    for (const std::string& kind : facts.rounded_kinds)
      kinds += fmt::format("{}`{}`", kinds.empty() ? ". Of " : ", ", kind);
    row("rounded weights", fmt::format("{}; the values are written in the dtype above, not as packed integers{}",
                                       facts.rounded_weights, kinds));
  }
  if (extra("contents") == parameters_only) {
    row("from",
        fmt::format("imported from `{}`; what it was trained on is for that model to say", extra("imported_from")));
  } else {
    row("training", training_of(info, config));
    row("loss", loss_of(checkpoint, info));
    row("data", data_of(info, config) + ". What text that is, and under which licence, is for its owner to add");
  }
  row("tokenizer", facts.tokenizer.empty() ? "not known" : facts.tokenizer);
  const std::string commit = extra("commit");
  row("programs", fmt::format("checkpoint by lamina {}{}, exported by {}", info.program_version,
                              commit.empty() ? "" : " (" + commit + ")", facts.program));
  text += fmt::format("\n```python\nfrom transformers import AutoModelForCausalLM{}\n\n",
                      facts.has_tokenizer_json ? ", AutoTokenizer" : "");
  text +=
      fmt::format("model = AutoModelForCausalLM.from_pretrained(FOLDER{})\n", is_own ? ", trust_remote_code=True" : "");
  if (facts.has_tokenizer_json) text += "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n";
  text += "```\n";
  if (is_own) {
    text +=
        fmt::format("\nThe code is `{}`. transformers' own kimi_linear can't compute this model:\n\n", modeling_file);
    for (const std::string& reason : reasons_against_kimi_linear(hf)) text += "- " + reason + "\n";
  }
  return text;
}

}  // namespace lamina
