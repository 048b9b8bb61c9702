#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/io/file.h"
#include "data/sampler.h"
#include "launch/commands.h"
#include "launch/process.h"
#include "trainer/checkpoint_comm.h"
#include "trainer/depth_read_watch.h"
#include "trainer/evaluate.h"
#include "trainer/restore.h"

namespace lamina {
namespace {

struct EvalOptions {
  std::string config, checkpoint, text;
  std::vector<std::string> overrides;
  bool allow_trained = false, ablate_sources = false;
};

// The loss with all sources of the depth reads, then without each in turn.
struct Evaluations {
  Evaluation all;
  struct Ablated {
    std::string source;
    double loss = 0;
  };
  std::vector<Ablated> ablated;
};

// The text that the validation targets stand for, so that other compressors can be measured on the same bytes.
void write_text(const Sampler& sampler, const std::string& path) {
  std::vector<int32_t> tokens(static_cast<size_t>(sampler.seq_len()));
  std::vector<int32_t> targets(tokens.size());
  std::string text;
  for (int64_t i = 0; i < sampler.num_validation_sequences(); ++i) {
    sampler.load_validation(i, i + 1, tokens, targets);
    for (size_t k = 0; k < targets.size(); ++k) text += sampler.tokenizer().text_of(targets[k], tokens[k]);
  }
  io::write_file_atomically(path, text);
}

// Any layout gives the same loss: the configuration's pipeline when the ranks allow it, otherwise every rank holds the model.
void choose_layout(const ParallelConfig& asked, int world_size, Config& config) {
  config.parallel = asked;
  if (world_size % asked.pipeline != 0) {
    log::info("{} rank{}, not a multiple of parallel.pipeline ({}): every rank holds the whole model", world_size,
              world_size == 1 ? "" : "s", asked.pipeline);
    config.parallel = {};
  }
  config.parallel.data = world_size / config.parallel.pipeline;
  if (config.parallel.data % config.parallel.expert != 0) {
    log::info("{} data-parallel rank{}, not a multiple of parallel.expert ({}): every rank holds all experts",
              config.parallel.data, config.parallel.data == 1 ? "" : "s", config.parallel.expert);
    config.parallel.expert = 1;
  }
  config.train.global_batch_size = config.train.micro_batch_size * config.parallel.data;
}

// The model is the checkpoint's, and must be the configuration's; the data, the batch and the precision are the configuration's.
std::optional<Evaluations> evaluate_checkpoint(const Config& asked, const EvalOptions& options, const World& world) {
  comm::Communicator& comm = world.comm;
  const auto adjust = [&](Config& config) {
    const int64_t vocab_size = config.model.vocab_size;
    config.model = asked.model;
    if (config.model.vocab_size == 0) config.model.vocab_size = vocab_size;
    config.data = asked.data;
    config.train.micro_batch_size = asked.train.micro_batch_size;
    config.train.precision = asked.train.precision;
    choose_layout(asked.parallel, comm.size(), config);
  };
  Restored restored = restore_parameters(options.checkpoint, comm, adjust, world.device.index);
  const Sampler sampler(asked.data, asked.run.seed, asked.train.global_batch_size, restored.config.model.vocab_size);
  if (sampler.num_validation_sequences() == 0)
    throw Error("data.validation.path: found nothing, expected the folder of the text to evaluate on");
  check_evaluation_data(sampler, asked.data, restored.info, restored.checkpoint.string(), options.allow_trained);
  if (!options.text.empty() && comm.rank() == 0) write_text(sampler, options.text);
  restored.engine->set_end_of_document(sampler.end_of_document());
  const auto run = [&] {
    return evaluate(*restored.engine, sampler, restored.config, comm, [&] { return stop_requested_anywhere(comm); });
  };
  const std::optional<Evaluation> all = run();
  if (!all) return std::nullopt;
  Evaluations found{*all, {}};
  if (!options.ablate_sources) return found;
  const DepthReadWatch names(restored.config.model);
  const int num_sources = restored.engine->plan().blocks.num_blocks() + 1;
  for (int source = 0; source < num_sources; ++source) {
    restored.engine->ablate_source(source);
    const std::optional<Evaluation> without = run();
    if (!without) return std::nullopt;
    found.ablated.push_back({names.name_of_source(source), without->loss});
  }
  return found;
}

void print(const Evaluations& found) {
  const Evaluation& all = found.all;
  std::printf("loss %.6f\nperplexity %.4f\nbits_per_byte %.6f\ntokens %lld\nbytes %lld\n", all.loss, all.perplexity,
              all.bits_per_byte, static_cast<long long>(all.num_tokens), static_cast<long long>(all.num_bytes));
  for (const Evaluations::Ablated& ablated : found.ablated)
    fmt::print("without {:<22} loss {:.6f}, {:+.6f}\n", ablated.source, ablated.loss, ablated.loss - all.loss);
}

}  // namespace

void register_eval(CLI::App& app) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Validation loss, perplexity and bits per byte of a checkpoint");
  command->footer("Example:\n  mpirun -n 2 lamina eval configs/tiny.yaml --checkpoint runs/tiny");
  command->add_option("config", options->config, "Experiment file: data and batch sizes are taken from it")->required();
  command->add_option("--checkpoint", options->checkpoint, "A checkpoint, or a run folder (its newest)")->required();
  command->add_option("--write-text", options->text, "Also write the evaluated text to this file");
  command->add_flag("--allow-trained", options->allow_trained,
                    "Also evaluate sequences that the checkpoint was trained on, which are refused otherwise");
  command->add_flag(
      "--ablate-sources", options->ablate_sources,
      "Also the loss without each source of the depth reads in turn: the embedding, and each block's sum where "
      "later reads see it (reads of the first block keep the embedding)");
  command->add_option("overrides", options->overrides, "key.path=value, each replaces one key");
  command->callback([options] {
    stop::catch_signals();
    const Config config = load_config(options->config, options->overrides);
    if (options->ablate_sources && config.model.residual == Residual::standard)
      throw Error(
          "--ablate-sources: found model.residual: standard, expected full_attnres or block_attnres: the standard "
          "residual has no sources to choose from");
    bool stopped = false;
    const auto evaluate_here = [&](World& world) {
      const std::optional<Evaluations> result = evaluate_checkpoint(config, *options, world);
      stopped = !result;
      if (result && world.rank == 0) print(*result);
    };
    run_in_world(config.run, evaluate_here, config.parallel);
    if (stopped) throw Stopped("nothing was evaluated");
  });
}

}  // namespace lamina
