// Scaling laws over the finished runs of a sweep: loss against training compute, per variant; how much compute one variant saves
// over another; and, where several sizes share a budget of compute, the best size per budget.
//
//   power         L = A C^-alpha           C in PFLOP/s-days (8.64e19 FLOP), so A is the loss at one of them
//   irreducible   L = E + A C^-alpha       A > 0, alpha > 0, E >= 0
//
// Both by least squares on log L: the first in closed form, the second by Levenberg-Marquardt from several starting points.
//
// Intervals (95 %) are over seeds: what other seeds would have given at the same sizes. Seeds are resampled within each cell (one
// variant at one size), the same draw for all variants of a size whose seeds match: a seed is an order of the data, and variants
// share its luck. Plain percentiles over three seeds are too narrow (a slope over four sizes lies within in 83 % of studies),
// for two reasons that are mended here: a resampled mean of S seeds varies (S - 1) / S as much as a real one, so deviations from the
// cell's mean are widened by the root of S / (S - 1); and the spread itself is known from few degrees of freedom, so percentiles
// are stretched by Student's quantile over the normal one, with Welch and Satterthwaite's count of degrees of freedom: cells may
// differ in their noise. What hangs on a cell with one seed has no interval.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/study/run_data.h"

namespace lamina::study {

constexpr double pflops_day = 8.64e19;  // FLOP

struct FitPoint {
  std::string variant;
  std::string size;  // "" where there is no ladder
  uint64_t seed = 0;
  double parameters = 0;  // active ones (model/cost_model.h), or those of the table
  double tokens = 0;
  double compute = 0;  // FLOP
  double loss = 0;
};

enum class FitMetric { validation_loss, loss };
struct MetricOptions {
  FitMetric metric = FitMetric::validation_loss;  // the last one; `loss`: the mean over the last `window` steps
  int64_t window = 50;
  bool force = false;  // other data than the first run's is a warning, not an Error
};

// One per finished run: one whose rows reach train.num_steps. The others are named in `warnings`, each with its reason. Compute is
// what model/cost_model.h counts: training_flops_per_token x tokens. Error: a run folder that cannot be read, no loss of that name,
// losses of other tokens than the first run's (its tokenizer, its validation data).
std::vector<FitPoint> sweep_points(const SweepData& sweep, const MetricOptions& options,
                                   std::vector<std::string>& warnings);

// A table with a header: variant, loss, and compute [FLOP] or parameters and tokens; size and seed are optional. Counted compute is
//   (6 N + 3 layers heads seq_len (qk_head_dim + v_head_dim)) D
// the second term, causal attention with seq_len / 2 keys on average as in model/cost_model.h, with the five columns seq_len,
// attention_layers, attention_heads, qk_head_dim, v_head_dim: all or none. Error names the file and the line.
std::vector<FitPoint> table_points(const std::filesystem::path& file);

struct Interval {
  double low = 0, high = 0;
};
struct Estimate {
  double value = 0;
  std::optional<Interval> interval;  // absent: StudyFit::interval_problem. `high` may be infinite
};

struct CurvePoint {
  double compute = 0;  // FLOP
  Estimate loss;
};
struct LawFit {
  Estimate a, alpha;
  std::optional<Estimate> e;  // of the irreducible form only
  double rms = 0;             // of the residuals of log L, over cells
  std::vector<CurvePoint> curve;
  double loss(double compute_flop) const;            // of the fitted values
  std::optional<double> compute(double loss) const;  // FLOP for it; absent: no compute is enough (loss <= E)
};
struct VariantFit {
  std::string variant;
  size_t num_points = 0, num_cells = 0, min_seeds = 0, max_seeds = 0;  // seeds: per cell
  double min_compute = 0, max_compute = 0;                             // FLOP, measured
  bool over_isoflop_minima = false;  // the laws go through the minima of the isoFLOP curves, not through all cells
  std::optional<LawFit> power, irreducible;
  std::string power_problem, irreducible_problem;  // why they are absent
};

// C_b(L_v(C)) / C: how many times the compute C the baseline needs for the loss that the variant has with C.
struct GainFit {
  std::string variant, baseline;
  std::string form;       // "power", "irreducible"
  double compute = 0;     // C, FLOP
  bool infinite = false;  // no compute gives the baseline this loss (not above its E); the estimate then means nothing
  Estimate gain;
  std::string note;  // what is read outside the measured range of compute; "" when nothing is
};

struct IsoFlopCurve {                              // L = c0 + c1 x + c2 x^2, x = log(N / centre)
  double compute = 0;                              // FLOP, geometric mean of its cells
  std::vector<double> parameters, tokens, losses;  // of its cells (geometric means over seeds), by parameters
  double centre = 1, c0 = 0, c1 = 0, c2 = 0;
  std::string problem;  // "" or why there is no optimum: no minimum, or one outside the sizes
  Estimate parameters_opt, tokens_opt, loss_opt;
};
struct IsoFlopFit {
  std::string variant;
  std::vector<IsoFlopCurve> curves;                              // by compute; at least one
  std::optional<Estimate> parameters_exponent, tokens_exponent;  // N_opt ~ C^a, D_opt ~ C^b; two budgets at least
};

struct FitOptions {
  std::string loss_name = "loss";  // for the text: validation_loss, loss
  std::string baseline;            // "": `standard` if there is one, else the first variant
  double at = 0;                   // FLOP, where the gain is taken; 0: the largest compute of all points
  int num_resamples = 1000;        // 0: no intervals
  uint64_t seed = 1;               // of the resampling
};
struct StudyFit {
  std::vector<FitPoint> points;      // as given
  FitOptions options;                // with baseline and `at` filled in
  std::vector<VariantFit> variants;  // in the order of their first point
  std::vector<GainFit> gains;        // of each variant but the baseline, power first
  std::vector<IsoFlopFit> isoflop;   // of the variants that have curves
  bool paired = false;               // seeds match between variants, and are resampled together
  std::string interval_problem;      // why there are no intervals; "" when there are
};

// Error: no points; a loss or compute that is not positive and finite; a variant with fewer than three values of compute
// that differ by 1 % (with isoFLOP curves: power_problem says so); the same seed twice in a cell; an unknown baseline. The order
// of the points changes nothing but the order of the variants.
StudyFit fit_study(std::vector<FitPoint> points, const FitOptions& options = {});

std::string to_text(const StudyFit& fit);
nlohmann::json to_json(const StudyFit& fit);  // what fit.json holds (docs/formats.md)

// "5.6 PFLOP/s-days", "5.6 PF-days", "4.8e20 FLOP", "4.8e20": in FLOP. Error with what was found.
double parse_compute(const std::string& text);

}  // namespace lamina::study
