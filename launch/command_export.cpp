#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/hash.h"
#include "launch/commands.h"
#include "launch/origin.h"
#include "launch/program.h"
#include "parallel/comm/thread.h"
#include "trainer/export/export.h"
#include "trainer/record/identity.h"
#include "trainer/step/restore.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

// "runs/a/" ends in an empty name, which can't get a suffix.
fs::path without_slash(const std::string& text) {
  fs::path path = fs::path(text).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

void print(const char* what, const fs::path& path, const ExportSummary& summary) {
  fmt::print("{:<14} {}\ntensors        {}\nparameters     {}\nbytes          {} in {} shard{}\nhash           {}\n",
             what, path.string(), summary.num_tensors, summary.num_parameters, summary.num_bytes, summary.num_shards,
             summary.num_shards == 1 ? "" : "s", hash_to_hex(summary.hash));
}

}  // namespace

void register_export(CLI::App& app) {
  struct Options {
    std::string checkpoint, output, dtype = "bf16";
    double max_shard_gb = 5;
    std::string quantize;
    int64_t group_size = 128;
    bool quantize_depth_queries = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("export", "Write a checkpoint's model as safetensors shards with Hugging Face names");
  command->footer(
      "Examples:\n"
      "  lamina export --checkpoint runs/tiny --output exported/tiny\n"
      "  lamina export --checkpoint runs/tiny/checkpoints/step-00000400 --output exported/tiny-fp32 --dtype fp32\n"
      "  lamina export --checkpoint runs/tiny --output exported/tiny-int4 --quantize int4 --group-size 64\n"
      "Writes model-00001-of-000NN.safetensors .., model.safetensors.index.json, config.json and\n"
      "generation_config.json, from any layout.\n"
      "A model that transformers' built-in kimi_linear computes is written as that. Any other (Attention Residuals, a\n"
      "bounded gate, documents apart, other epsilons) is Lamina's own architecture, and the folder has its code in "
      "one\n"
      "file: transformers loads it with trust_remote_code=True and refuses it without. `lamina import` reads both.");
  command->add_option("--checkpoint", options->checkpoint, "A checkpoint, or a run folder (its newest)")->required();
  command->add_option("--output", options->output, "Folder to make")->required();
  command
      ->add_option("--dtype", options->dtype, "bf16, or fp32 for the exact masters; A_log and dt_bias are always fp32")
      ->capture_default_str()
      ->check(CLI::IsMember({"bf16", "fp32"}));
  command->add_option("--max-shard-size", options->max_shard_gb, "Largest file of tensors, GB (10^9 bytes)")
      ->capture_default_str()
      ->check(CLI::PositiveNumber.description("X"));
  CLI::Option* quantize =
      command
          ->add_option(
              "--quantize", options->quantize,
              "Round the matrices of attention, MLPs and experts to int8 or int4, a scale per group, and write the\n"
              "rounded values in --dtype: no packed integers, the folder is no smaller, and every reader shows what\n"
              "quantization costs. Kept are embedding, head, norms, convolutions, routers and gates")
          ->check(CLI::IsMember({"int8", "int4"}));
  command
      ->add_option("--group-size", options->group_size,
                   "With --quantize: input channels that share a scale; a row's last group may have fewer")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->needs(quantize);
  command
      ->add_flag("--quantize-depth-queries", options->quantize_depth_queries,
                 "With --quantize: the queries of Attention Residuals too, which are kept otherwise")
      ->needs(quantize);
  command->callback([options] {
    const auto comm = comm::make_self_communicator();
    ExportOptions how;
    if (!options->quantize.empty())
      how.quantization = {options->quantize == "int4" ? 4 : 8, options->group_size, options->quantize_depth_queries};
    how.dtype = options->dtype == "fp32" ? DType::f32 : DType::bf16;
    how.program = program_name();
    how.origin = program_origin();
    how.max_shard_bytes = static_cast<int64_t>(std::min(options->max_shard_gb * 1e9, 9e18));
    const fs::path output = without_slash(options->output);
    const ExportSummary summary = export_checkpoint(resolve_checkpoint(options->checkpoint, *comm), output, how);
    fmt::print("architecture   {}\n",
               summary.reasons.empty() ? "kimi_linear, which transformers has built in"
                                       : "Lamina's own, whose code is in the folder (trust_remote_code), because of");
    for (const std::string& reason : summary.reasons) fmt::print("               {}\n", reason);
    if (!summary.has_token_ids)
      fmt::print(
          "token ids      null: the checkpoint doesn't know its tokenizer, and its training data is not there\n");
    if (!summary.no_tokenizer.empty()) fmt::print("tokenizer      not for AutoTokenizer: {}\n", summary.no_tokenizer);
    if (how.quantization)
      fmt::print("rounded        {} tensors: {}; written in {}\n", summary.num_quantized, describe(*how.quantization),
                 options->dtype);
    print("exported", output, summary);
  });
}

void register_import(CLI::App& app) {
  struct Options {
    std::string from, output, config;
    std::vector<std::string> overrides;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("import", "Make a checkpoint of an exported or released model");
  command->footer(
      "Examples:\n"
      "  lamina import --from exported/tiny --output imported/tiny --config configs/tiny.yaml\n"
      "  lamina sample --checkpoint imported/tiny --prompt \"The sea\"\n"
      "  lamina train configs/tiny.yaml run.output_dir=runs/more checkpoint.init_from=imported/tiny\n"
      "The checkpoint has parameters only: a run can start from it, but not resume it.");
  command->add_option("--from", options->from, "Folder with config.json and safetensors files")->required();
  command->add_option("--output", options->output, "Checkpoint folder to make")->required();
  command->add_option("--config", options->config,
                      "Experiment file that the checkpoint gets; its model must be that of config.json, or that with\n"
                      "Attention Residuals instead of the standard residual");
  command->add_option("overrides", options->overrides, "key.path=value, each replaces one key of --config");
  command->callback([options] {
    std::optional<Config> experiment;
    if (!options->config.empty())
      experiment = load_config(options->config, options->overrides);
    else if (!options->overrides.empty())
      throw Error("{}: an override needs --config", options->overrides.front());
    const fs::path output = without_slash(options->output);
    const ExportSummary summary = import_model(options->from, output, experiment, program_origin());
    print("imported", output, summary);
    if (summary.num_new > 0) fmt::print("new            {}\n", describe_new(summary.num_new));
  });
}

}  // namespace lamina
