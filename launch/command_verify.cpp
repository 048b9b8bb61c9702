#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "data/sampler.h"
#include "launch/commands.h"
#include "launch/process.h"
#include "trainer/verify/verify.h"

namespace lamina {
namespace {

struct VerifyArguments {
  std::string config, layouts, precision;
  std::vector<std::string> overrides;
  int max_ranks = 4;
  VerifyOptions verify;
};

// fp32 for a bf16 configuration: what bf16 rounds away would hide what a wrong route adds.
std::string choose_precision(const std::string& asked, Config& config) {
  static const std::map<std::string, Precision> named = {
      {"fp32", Precision::fp32}, {"bf16", Precision::bf16}, {"fp64", Precision::fp64}};
  if (!asked.empty()) {
    config.train.precision = named.at(asked);
    if (config.train.precision == Precision::fp64 && config.run.device == "cuda")
      throw Error(
          "lamina verify: found --precision fp64 with run.device: cuda, expected bf16 or fp32; run.device=cpu has it");
  } else if (config.train.precision == Precision::bf16) {
    config.train.precision = Precision::fp32;
    return " instead of the configuration's bf16, whose rounding hides faults (--precision bf16 runs it)";
  }
  if (config.train.precision == Precision::fp64) return ", the reference loops: slow";
  if (config.train.precision == Precision::bf16) return ", whose rounding hides small faults";
  return "";
}

void verify(const VerifyArguments& options) {
  if (const int ranks = launcher_ranks().size; ranks > 1)
    throw Error("lamina verify: found {} ranks, expected one process: it runs the ranks of every layout itself", ranks);
  Config config = load_config(options.config, options.overrides);
  const std::string why = choose_precision(options.precision, config);
  if (config.model.vocab_size == 0) config.model.vocab_size = data_vocab_size(config.data);
  const std::vector<Layout> layouts = parse_layouts(options.layouts, config, options.max_ranks);
  run_in_world(config.run, [&](World& world) {
    VerifyOptions how = options.verify;
    how.num_threads = world.num_threads;
    how.progress = [](const std::string& line) { log::info("{}", line); };
    const double tolerance = how.tolerance > 0 ? how.tolerance : default_tolerance(config.train.precision);
    fmt::print("precision   {}{}\n", name_of(compute_dtype(config.train.precision)), why);
    fmt::print("parameters  {}\n",
               how.checkpoint.empty() ? "initial, depth queries moved away from zero" : how.checkpoint.string());
    const BatchStage batch = BatchPlan(config).at(how.step);
    fmt::print("data        step {}: {} sequences of {} tokens\n", how.step, batch.global_batch_size, batch.seq_len);
    std::fflush(stdout);
    const Verification result = verify_layouts(config, layouts, how);
    log::flush();
    fmt::print("one rank    loss {:.6f}, gradient norm {:.4g}; relative differences of at most {:.2g} pass\n\n{}",
               result.loss, result.gradient_norm, tolerance, to_text(result));
    std::fflush(stdout);
    if (const std::string fault = result.fault(); !fault.empty()) throw Error(fault);
  });
}

}  // namespace

void register_verify(CLI::App& app) {
  auto options = std::make_shared<VerifyArguments>();
  CLI::App* command = app.add_subcommand(
      "verify",
      "Compare loss and every gradient of a step at other layouts with one rank, on the configuration's data");
  command->footer(
      "A layout is PIPELINExVIRTUAL_STAGESxDATA, then in any order :SCHEDULE (gpipe, 1f1b, interleaved_1f1b,\n"
      "zero_bubble), :cached or :full (blocks between ranks), :recompute=none|selective|full, :expert=2 "
      "(data-parallel\n"
      "ranks that share out the experts), :split=3/3/1/1 (layers per chunk); what it leaves out is the "
      "configuration's.\n"
      "`all` (also all:full, all:recompute=full) is every layout up to --max-ranks and 4 virtual stages with every\n"
      "schedule and number of ranks for the experts; those that are not possible are listed.\n"
      "Examples:\n"
      "  lamina verify configs/tiny.yaml --layouts 2x2x1,4x1x1:zero_bubble,2x2x2:full:recompute=selective\n"
      "  lamina verify configs/tiny.yaml --layouts 2x2x1:split=3/3/1/1 --precision fp64 train.global_batch_size=8\n"
      "  lamina verify configs/tiny.yaml --layouts all --max-ranks 2 --checkpoint runs/tiny --step 101\n"
      "The ranks are threads of this process and share its cores. Any difference past the tolerance, any byte or "
      "block\n"
      "summary that the plan or the routing doesn't have, and any layout that is not possible (but those of `all`) "
      "ends\n"
      "it with 1.");
  command->add_option("config", options->config, "Experiment file (docs/configuration.md)")->required();
  command->add_option("overrides", options->overrides, "key.path=value, each replaces one key");
  command->add_option("--layouts", options->layouts, "LAYOUT[,LAYOUT...], or all")->required();
  command->add_option("--max-ranks", options->max_ranks, "Ranks of the largest layout of `all`")
      ->capture_default_str()
      ->check(CLI::Range(1, 64).description("N"));
  command->add_option("--step", options->verify.step, "Training step whose sequences are taken")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40).description("N"));
  command
      ->add_option("--precision", options->precision,
                   "fp32, fp64 (the reference loops: slow) or bf16; the configuration's when not given, fp32 for bf16")
      ->check(CLI::IsMember({"fp32", "fp64", "bf16"}));
  command
      ->add_option("--tolerance", options->verify.tolerance,
                   fmt::format("Relative difference that passes; {:.0e} in fp32, {:.0e} in fp64, {:.0e} in bf16",
                               default_tolerance(Precision::fp32), default_tolerance(Precision::fp64),
                               default_tolerance(Precision::bf16)))
      ->check(CLI::PositiveNumber.description("X"));
  command->add_option("--checkpoint", options->verify.checkpoint,
                      "Take the parameters from a checkpoint, or a run folder (its newest)");
  command->callback([options] { verify(*options); });
}

}  // namespace lamina
