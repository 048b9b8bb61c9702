#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "launch/commands.h"
#include "launch/study/scaling_law.h"

namespace lamina {
namespace {

struct FitArguments {
  std::string sweep, table, output;
  std::string metric = "validation_loss";
  std::string at;
  int64_t window = 50;
  bool force = false;
  study::FitOptions fit;
};

std::vector<study::FitPoint> read_points(const FitArguments& options) {
  if (options.sweep.empty() == options.table.empty())
    throw Error("fit: found {}, expected one of them (lamina fit --help)",
                options.sweep.empty() ? "neither a sweep's folder nor --table" : "a sweep's folder and --table");
  if (!options.table.empty()) return study::table_points(options.table);
  study::MetricOptions metric;
  metric.metric = options.metric == "loss" ? study::FitMetric::loss : study::FitMetric::validation_loss;
  metric.window = options.window;
  metric.force = options.force;
  std::vector<std::string> warnings;
  const study::SweepData sweep = study::read_sweep(options.sweep);
  std::vector<study::FitPoint> points = study::sweep_points(sweep, metric, warnings);
  for (const std::string& warning : warnings) log::warning("{}", warning);
  if (points.empty())
    throw Error("{}: found no finished run of {}, expected runs to fit", options.sweep, sweep.runs.size());
  return points;
}

void fit(FitArguments options) {
  if (!options.at.empty()) {
    try {
      options.fit.at = study::parse_compute(options.at);
    } catch (const Error& failure) {
      throw Error("--at: {}", failure.what());
    }
  }
  options.fit.loss_name = options.table.empty() ? options.metric : "loss";
  const study::StudyFit result = study::fit_study(read_points(options), options.fit);
  std::filesystem::path output = options.output;
  if (output.empty() && !options.sweep.empty()) output = std::filesystem::path(options.sweep) / "fit.json";
  if (!output.empty()) io::write_file_atomically(output, study::to_json(result).dump(1) + "\n");
  fmt::print("{}", study::to_text(result));
  if (!output.empty()) fmt::print("\nwritten      {}\n", output.string());
}

}  // namespace

void register_fit(CLI::App& app) {
  auto options = std::make_shared<FitArguments>();
  CLI::App* command = app.add_subcommand(
      "fit", "Fit scaling laws to a sweep: loss over compute, gains between variants, the best size per budget");
  command->footer(
      "Examples:\n"
      "  lamina fit runs/ladder                                        # also writes runs/ladder/fit.json\n"
      "  lamina fit runs/ladder --baseline standard --at '2e-5 PFLOP/s-days'\n"
      "  lamina fit --table docs/examples/attnres_table2.csv --baseline baseline --at '5.6 PFLOP/s-days'\n"
      "A table is comma-separated with a header. Columns: variant, loss, and either compute (FLOP) or parameters and\n"
      "tokens, of which 6 N D is counted, and attention too with all of seq_len, attention_layers, attention_heads,\n"
      "qk_head_dim, v_head_dim; size and seed are optional. Lines that begin with # are comments.");
  command->add_option("sweep", options->sweep, "Folder that `lamina sweep` wrote");
  command->add_option("--table", options->table, "Points of a table instead of a sweep");
  command->add_option("--metric", options->metric, "validation_loss: the last one; loss: of training, see --window")
      ->capture_default_str()
      ->check(CLI::IsMember({"validation_loss", "loss"}));
  command->add_option("--window", options->window, "Steps at the end over which --metric loss is the mean")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40).description("N"));
  command->add_flag("--force", options->force, "Also runs whose tokenizer or validation data is not the first run's");
  command->add_option("--baseline", options->fit.baseline,
                      "Variant that gains are over; `standard`, or the first one, when not given");
  command->add_option("--at", options->at,
                      "Compute at which gains are taken, in FLOP or 'X PFLOP/s-days'; the largest one when not given");
  command->add_option("--resamples", options->fit.num_resamples, "Of the seeds, for the intervals; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000000).description("N"));
  command->add_option("--output", options->output, "JSON file; fit.json in the sweep's folder when not given");
  command->callback([options] { fit(*options); });
}

}  // namespace lamina
