#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/stop.h"
#include "core/io/file.h"
#include "launch/commands.h"
#include "launch/process.h"
#include "launch/text_options.h"
#include "trainer/evaluate_checkpoint.h"

namespace lamina {
namespace {

using nlohmann::ordered_json;

struct EvalOptions {
  std::string config, checkpoint, per_item;
  std::vector<std::string> overrides;
  int64_t context = 0;
  bool as_json = false, with_probes = false;
  evaluation::ProbeOptions probes;
  EvaluationOrder order;
};

// The first word without an option is the experiment file, unless it is a key with its value already.
Config asked_config(EvalOptions& options) {
  options.order.checkpoint = options.checkpoint;
  std::string& first = options.config;
  if (first.find('=') != std::string::npos && !std::filesystem::exists(first))
    options.overrides.insert(options.overrides.begin(), std::exchange(first, ""));
  return first.empty() ? stored_config(options.order.checkpoint, options.overrides)
                       : load_config(first, options.overrides);
}

void check(const Config& config, EvalOptions& options) {
  EvaluationOrder& order = options.order;
  if (options.with_probes) order.probes = options.probes;
  if (order.validation.empty() && order.texts.empty() && order.tasks.empty() && !order.probes) {
    if (config.data.validation.path.empty())
      throw Error(
          "data.validation.path: found nothing, expected the folder of the text to evaluate on, or --text, "
          "--tasks, --probes or --validation");
    order.validation = {config.data.validation.path};
  }
  if (std::count(order.texts.begin(), order.texts.end(), "-") > 1)
    throw Error("--text: found - twice, expected it once: standard input can be read once");
  if (options.context > 0) order.context = options.context;
  if (!options.per_item.empty() && order.tasks.empty())
    throw Error("--per-item: found no items, expected --tasks beside it");
  if (!order.write_text.empty() && order.validation.size() != 1)
    throw Error("--write-text: found {} validation sets, expected one", order.validation.size());
  if (!order.ablate_sources) return;
  if (order.validation.empty()) throw Error("--ablate-sources: found no validation set, expected one");
  if (!config.model.has_depth_reads())
    throw Error(
        "--ablate-sources: found model.residual: {}, expected full_attnres or block_attnres: it has no sources to "
        "choose from",
        name_of(config.model.residual));
}

void print(const evaluation::Perplexity& found) {
  fmt::print("loss {:.6f}\nperplexity {:.4f}\nbits_per_byte {:.6f}\ntokens {}\nbytes {}\n", found.loss,
             found.perplexity, found.bits_per_byte, found.num_tokens, found.num_bytes);
}

std::string text_of(const evaluation::Mean& mean) {
  return std::isnan(mean.error) ? fmt::format("{:.4f}", mean.value)
                                : fmt::format("{:.4f} +- {:.4f}", mean.value, mean.error);
}

void print(const CheckpointEvaluation& found, bool with_names) {
  for (const ValidationResult& result : found.validation) {
    if (with_names) fmt::print("validation {}\n", result.path);
    print(result.all);
    for (const auto& [source, loss] : result.ablated)
      fmt::print("without {:<22} loss {:.6f}, {:+.6f}\n", source, loss, loss - result.all.loss);
  }
  for (const auto& [path, result] : found.texts) {
    fmt::print("text {}\n", path);
    print(result);
  }
  for (const auto& [task, result] : found.tasks)
    fmt::print("task {}\nitems {}\nacc {}\nacc_norm {}\nacc_bytes {}\nlogprob {}\n", task.path, result.num_items,
               text_of(result.acc), text_of(result.acc_norm), text_of(result.acc_bytes), text_of(result.logprob));
}

// A line per length with the accuracy at each depth.
void print_probes(const CheckpointEvaluation& found) {
  std::string begun;  // of the line
  for (const auto& [probe, result] : found.probes) {
    const std::string line = fmt::format("{} of {} tokens:", probe.name, probe.length);
    if (line != begun) fmt::print("{}{}", begun.empty() ? "" : "\n", line);
    begun = line;
    fmt::print(" {:.2f} at {}", result.acc.value, probe.depth);
  }
  if (!begun.empty()) fmt::print("\n");
}

ordered_json json_of(const std::string& path, const evaluation::Perplexity& found) {
  return {{"path", path},
          {"loss", found.loss},
          {"perplexity", found.perplexity},
          {"bits_per_byte", found.bits_per_byte},
          {"tokens", found.num_tokens},
          {"bytes", found.num_bytes}};
}

void add(ordered_json& out, const std::string& name, const evaluation::Mean& mean) {
  out[name] = mean.value;
  out[name + "_stderr"] = mean.error;  // null where there is none
}

ordered_json json_of(const CheckpointEvaluation& found) {
  ordered_json out = {{"checkpoint", found.checkpoint.string()}, {"step", found.step}, {"context", found.context}};
  for (const ValidationResult& result : found.validation) {
    ordered_json set = json_of(result.path, result.all);
    for (const auto& [source, loss] : result.ablated) set["loss_without"][source] = loss;
    out["validation"].push_back(std::move(set));
  }
  for (const auto& [path, result] : found.texts) out["texts"].push_back(json_of(path, result));
  for (const auto& [task, result] : found.tasks) {
    ordered_json one = {{"path", task.path}, {"items", result.num_items}};
    add(one, "acc", result.acc);
    add(one, "acc_norm", result.acc_norm);
    add(one, "acc_bytes", result.acc_bytes);
    add(one, "logprob", result.logprob);
    out["tasks"].push_back(std::move(one));
  }
  for (const auto& [probe, result] : found.probes) {
    ordered_json one = {
        {"probe", probe.name}, {"length", probe.length}, {"depth", probe.depth}, {"items", result.num_items}};
    add(one, "acc", result.acc);
    add(one, "logprob", result.logprob);
    out["probes"].push_back(std::move(one));
  }
  return out;
}

void report(const CheckpointEvaluation& found, const EvalOptions& options) {
  if (!options.per_item.empty()) {
    std::string lines;
    for (const auto& [task, result] : found.tasks) lines += evaluation::items_as_json_lines(task, result);
    io::write_file_atomically(options.per_item, lines);
  }
  const bool is_one_set =
      found.validation.size() == 1 && found.texts.empty() && found.tasks.empty() && found.probes.empty();
  if (options.as_json) {
    fmt::print("{}\n", json_of(found).dump());
  } else {
    print(found, !is_one_set);
    print_probes(found);
  }
}

void evaluate(EvalOptions& options) {
  const Config config = asked_config(options);
  check(config, options);
  bool stopped = false;
  const auto evaluate_here = [&](World& world) {
    const auto found = evaluate_checkpoint(config, options.order, world.comm, world.device.index);
    stopped = !found;
    if (found && world.rank == 0) report(*found, options);
  };
  run_in_world(config.run, evaluate_here, config.parallel);
  if (stopped) throw Stopped("nothing was evaluated");
}

}  // namespace

void register_eval(CLI::App& app) {
  auto options = std::make_shared<EvalOptions>();
  EvaluationOrder& order = options->order;
  CLI::App* command = app.add_subcommand(
      "eval", "Loss, perplexity and bits per byte of a checkpoint on texts, and its answers to multiple-choice items");
  command->footer(
      "Examples:\n  mpirun -n 2 lamina eval --checkpoint runs/tiny\n"
      "  lamina eval --checkpoint runs/tiny --text book.txt --context 4096 --tasks hellaswag.jsonl piqa.jsonl --json");
  command->add_option("config", options->config,
                      "Experiment file: data, batch, precision and layout are taken from it; without one, from the "
                      "checkpoint");
  command->add_option("--checkpoint", options->checkpoint, "A checkpoint, or a run folder (its newest)")->required();
  command->add_option("--validation", order.validation,
                      "Token folders in place of data.validation.path: of each its last data.validation.num_sequences "
                      "sequences");
  command->add_option("--text", order.texts, text_inputs_help);
  command->add_option("--tasks", order.tasks, "Files of multiple-choice items (docs/formats.md)");
  CLI::Option* probes = command->add_flag(
      "--probes", options->with_probes,
      "Questions about long contexts, made on the fly: a needle in filler, and recall of pairs, by length and depth");
  command
      ->add_option("--probe-lengths", options->probes.lengths,
                   "Tokens of their contexts; default: data.seq_len, twice and four times that")
      ->check(CLI::PositiveNumber)
      ->needs(probes);
  command->add_option("--probe-items", options->probes.num_items, "Questions of each probe, length and depth")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->needs(probes);
  command->add_option("--probe-seed", options->probes.seed, "Same seed, same questions")
      ->capture_default_str()
      ->needs(probes);
  command
      ->add_option("--context", options->context,
                   "Tokens in view, in place of data.seq_len; longer items lose their beginning")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->as_json, "One JSON object on standard output");
  command->add_option("--per-item", options->per_item,
                      "With --tasks: also write each item's answer and log-probabilities to this file, as JSON lines");
  command->add_option("--write-text", order.write_text, "Also write the validation set's text to this file");
  command->add_flag("--allow-trained", order.allow_trained,
                    "Also evaluate sequences that the checkpoint was trained on, which are refused otherwise");
  command->add_flag(
      "--ablate-sources", order.ablate_sources,
      "Also the loss without each source of the depth reads in turn: the embedding, and each block's sum where "
      "later reads see it (reads of the first block keep the embedding)");
  add_text_options(*command, order.format);
  command->add_option("overrides", options->overrides, "key.path=value, each replaces one key");
  command->callback([options] {
    stop::catch_signals();
    evaluate(*options);
  });
}

}  // namespace lamina
