#include "launch/study/scaling_law.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "launch/study/scaling_solver.h"

namespace lamina::study {
namespace {

namespace fs = std::filesystem;

using ::testing::HasSubstr;

struct Law {
  double a, alpha, e = 0;
  double loss(double compute) const { return e + a * std::pow(compute / pflops_day, -alpha); }
  double compute(double loss) const { return pflops_day * std::pow((loss - e) / a, -1 / alpha); }
};

// A ladder: sizes in steps of 2.5 of compute, noise of log L: one part that the variants share (the order of the data), one of their own.
struct Ladder {
  int num_sizes = 4, num_seeds = 3;
  double shared_noise = 0, own_noise = 0;
  double first_compute = 1e13;
  uint64_t study = 0;
};
std::vector<FitPoint> make_points(const std::vector<std::pair<std::string, Law>>& variants, const Ladder& ladder) {
  std::vector<FitPoint> points;
  const CounterRng shared(ladder.study, "shared"), own(ladder.study, "own");
  uint64_t index = 0;
  for (const auto& [name, law] : variants)
    for (int k = 0; k < ladder.num_sizes; ++k)
      for (int seed = 0; seed < ladder.num_seeds; ++seed) {
        const double compute = ladder.first_compute * std::pow(2.5, k);
        const double noise = ladder.shared_noise * shared.normal(static_cast<uint64_t>(k * ladder.num_seeds + seed)) +
                             ladder.own_noise * own.normal(index++);
        points.push_back({name, fmt::format("s{}", k), static_cast<uint64_t>(seed), 1e5 * (k + 1), 1e7 * (k + 1),
                          compute, law.loss(compute) * std::exp(noise)});
      }
  return points;
}

FitOptions with_resamples(int num_resamples) {
  FitOptions options;
  options.num_resamples = num_resamples;
  return options;
}
FitOptions with_baseline(const std::string& baseline) {
  FitOptions options;
  options.baseline = baseline;
  return options;
}
FitOptions with_compute(double at) {
  FitOptions options;
  options.at = at;
  return options;
}

std::string message(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& failure) {
    return failure.what();
  }
  return "nothing was thrown";
}

bool holds(const Estimate& estimate, double truth) {
  return estimate.interval && estimate.interval->low <= truth && truth <= estimate.interval->high;
}

const Law standard_law{1.9, 0.057}, better_law{1.85, 0.058};

TEST(ScalingSolver, StudentsQuantilesAreThoseOfTheTables) {
  EXPECT_NEAR(student_quantile(0.975, 1), 12.7062047, 1e-6);
  EXPECT_NEAR(student_quantile(0.975, 2), 4.30265273, 1e-7);
  EXPECT_NEAR(student_quantile(0.975, 8), 2.30600414, 1e-7);
  EXPECT_NEAR(student_quantile(0.95, 5), 2.01504837, 1e-7);
  EXPECT_NEAR(student_quantile(0.975, 1e5), 1.95998, 5e-5);
  EXPECT_GT(student_quantile(0.975, 2.5), student_quantile(0.975, 3));
}

TEST(ScalingSolver, WeightsAreRepetitions) {
  const std::vector<WeightedPoint> once = {{30, 1, 2}, {31, 0.8, 1}, {33, 0.5, 3}, {34, 0.45, 1}};
  std::vector<WeightedPoint> repeated;
  for (const WeightedPoint& point : once)
    for (int i = 0; i < point.weight; ++i) repeated.push_back({point.x, point.y, 1});
  for (const int degree : {1, 2}) {
    const auto a = polynomial_fit(once, degree), b = polynomial_fit(repeated, degree);
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-9 * std::abs(b[i]));
  }
  const auto line = polynomial_fit(std::vector<WeightedPoint>{{1, 5, 1}, {2, 7, 4}, {4, 11, 2}}, 1);
  EXPECT_NEAR(line[0], 3, 1e-12);
  EXPECT_NEAR(line[1], 2, 1e-12);
}

TEST(ScalingLaw, WithoutNoiseThePlantedLawIsExact) {
  const StudyFit fit = fit_study(make_points({{"standard", standard_law}, {"block", better_law}}, {}));
  ASSERT_EQ(fit.variants.size(), 2u);
  ASSERT_TRUE(fit.variants[0].power && fit.variants[1].power);
  EXPECT_NEAR(fit.variants[0].power->a.value, 1.9, 1e-9);
  EXPECT_NEAR(fit.variants[0].power->alpha.value, 0.057, 1e-9);
  EXPECT_NEAR(fit.variants[1].power->alpha.value, 0.058, 1e-9);
  EXPECT_LT(fit.variants[0].power->rms, 1e-12);
  // There is no irreducible term, and none is made up.
  EXPECT_FALSE(fit.variants[0].irreducible);
  EXPECT_NE(fit.variants[0].irreducible_problem, "");

  ASSERT_EQ(fit.gains.size(), 1u);
  const double at = 1e13 * std::pow(2.5, 3);  // the largest
  EXPECT_EQ(fit.options.at, at);
  EXPECT_EQ(fit.gains[0].compute, at);
  EXPECT_NEAR(fit.gains[0].gain.value, standard_law.compute(better_law.loss(at)) / at, 1e-9);
  EXPECT_THAT(fit.gains[0].note, HasSubstr("standard is read at"));  // it needs more than was measured
  ASSERT_TRUE(fit.gains[0].gain.interval);
  EXPECT_NEAR(fit.gains[0].gain.interval->high, fit.gains[0].gain.value, 1e-9);

  ASSERT_EQ(fit.variants[0].power->curve.size(), 40u);
  for (const CurvePoint& point : fit.variants[0].power->curve)
    EXPECT_NEAR(point.loss.value, standard_law.loss(point.compute), 1e-9);
  EXPECT_NEAR(fit.variants[0].power->curve.back().compute, at, 1e-9 * at);
}

TEST(ScalingLaw, WithoutNoiseThePlantedIrreducibleLawIsExact) {
  const Law base{0.08, 0.2, 1.4}, better{0.07, 0.21, 1.3};
  FitOptions options;
  options.num_resamples = 50;
  const StudyFit fit = fit_study(make_points({{"standard", base}, {"block", better}}, {5, 2}), options);
  ASSERT_TRUE(fit.variants[0].irreducible) << fit.variants[0].irreducible_problem;
  EXPECT_NEAR(fit.variants[0].irreducible->e->value, 1.4, 1e-9);
  EXPECT_NEAR(fit.variants[0].irreducible->a.value, 0.08, 1e-9);
  EXPECT_NEAR(fit.variants[0].irreducible->alpha.value, 0.2, 1e-9);
  ASSERT_EQ(fit.gains.size(), 2u);
  EXPECT_EQ(fit.gains[1].form, "irreducible");
  const double at = fit.options.at;
  EXPECT_NEAR(fit.gains[1].gain.value, base.compute(better.loss(at)) / at, 1e-6);

  // The same with one seed, where the residuals speak for E.
  const StudyFit single = fit_study(make_points({{"standard", base}}, {5, 1}));
  ASSERT_TRUE(single.variants[0].irreducible) << single.variants[0].irreducible_problem;
  EXPECT_NEAR(single.variants[0].irreducible->e->value, 1.4, 1e-9);
  EXPECT_EQ(single.interval_problem, "no cell has a second seed");
  EXPECT_FALSE(single.variants[0].power->alpha.interval);
}

TEST(ScalingLaw, ThreeComputesDetermineNoIrreducibleTerm) {
  const StudyFit fit = fit_study(make_points({{"standard", {0.08, 0.2, 1.4}}}, {3, 3}));
  EXPECT_TRUE(fit.variants[0].power);
  EXPECT_THAT(fit.variants[0].irreducible_problem, HasSubstr("3 value(s) of compute, at least 4"));
  EXPECT_THAT(to_text(fit), HasSubstr("standard: not determined by these points: 3 value(s)"));
}

TEST(ScalingLaw, BelowTheBaselinesFloorNoComputeIsEnough) {
  const Law base{0.08, 0.2, 1.9}, better{0.07, 0.2, 1.2};
  const auto points = make_points({{"standard", base}, {"block", better}}, {5, 2});
  FitOptions options;
  options.num_resamples = 20;
  options.at = 1e16;
  const StudyFit fit = fit_study(points, options);
  ASSERT_EQ(fit.gains.size(), 2u);
  EXPECT_LT(better.loss(1e16), 1.9);
  EXPECT_TRUE(fit.gains[1].infinite);
  EXPECT_THAT(fit.gains[1].note, HasSubstr("block is read at 25.6 times its largest measured compute"));
  EXPECT_THAT(to_text(fit), HasSubstr("more than any compute"));
  EXPECT_TRUE(to_json(fit)["gains"][1]["gain"].is_null());
  EXPECT_FALSE(fit.gains[0].infinite);
}

TEST(ScalingLaw, OrderOfRowsChangesNothing) {
  const auto points = make_points({{"standard", standard_law}, {"block", better_law}}, {4, 3, 0.002, 0.002});
  FitOptions options;
  options.num_resamples = 100;
  const StudyFit once = fit_study(points, options);
  std::vector<FitPoint> other(points.rbegin(), points.rend());
  std::rotate(other.begin(), other.begin() + 7, other.end());
  StudyFit again = fit_study(other, options);
  if (again.variants[0].variant != "standard") std::swap(again.variants[0], again.variants[1]);
  again.points = once.points;
  EXPECT_EQ(to_json(again), to_json(once));
  options.seed = 2;
  EXPECT_NE(to_json(fit_study(points, options)), to_json(once));
}

TEST(ScalingLaw, SharedLuckDoesNotWidenTheGain) {
  FitOptions options;
  options.num_resamples = 200;
  auto points = make_points({{"standard", standard_law}, {"block", better_law}}, {4, 3, 0.01, 0.0002});
  const auto width = [](const StudyFit& fit) {
    return fit.gains[0].gain.interval->high - fit.gains[0].gain.interval->low;
  };
  const StudyFit paired = fit_study(points, options);
  EXPECT_TRUE(paired.paired);
  for (FitPoint& point : points)
    if (point.variant == "block") point.seed += 100;
  const StudyFit apart = fit_study(points, options);
  EXPECT_FALSE(apart.paired);
  EXPECT_EQ(apart.gains[0].gain.value, paired.gains[0].gain.value);
  EXPECT_GT(width(apart), 4 * width(paired));  // what is left: the baseline's alpha, by which a loss becomes compute
  EXPECT_TRUE(
      holds(paired.gains[0].gain, standard_law.compute(better_law.loss(paired.options.at)) / paired.options.at));
}

// Of so many studies, each with other noise: in how many the interval holds the planted value.
struct Coverage {
  int alpha = 0, a = 0, loss = 0, gain = 0;
};
Coverage coverage(const Ladder& shape, int num_studies) {
  Coverage count;
  FitOptions options;
  options.num_resamples = 200;
  for (int study = 0; study < num_studies; ++study) {
    Ladder ladder = shape;
    ladder.study = static_cast<uint64_t>(study);
    const auto points = make_points({{"standard", standard_law}, {"block", better_law}}, ladder);
    const StudyFit fit = fit_study(points, options);
    const LawFit& law = *fit.variants[0].power;
    count.alpha += holds(law.alpha, standard_law.alpha) ? 1 : 0;
    count.a += holds(law.a, standard_law.a) ? 1 : 0;
    const CurvePoint& point = law.curve[10];
    count.loss += holds(point.loss, standard_law.loss(point.compute)) ? 1 : 0;
    count.gain +=
        holds(fit.gains[0].gain, standard_law.compute(better_law.loss(fit.options.at)) / fit.options.at) ? 1 : 0;
  }
  return count;
}

TEST(ScalingLaw, IntervalsHoldThePlantedValuesAsOftenAsTheySay) {
  constexpr int num_studies = 100;
  for (const int num_seeds : {2, 3, 5}) {
    const Coverage c = coverage({num_seeds == 3 ? 4 : 3, num_seeds, 0.003, 0.003}, num_studies);
    std::printf("%d seeds: alpha %d, A %d, loss %d, gain %d of %d\n", num_seeds, c.alpha, c.a, c.loss, c.gain,
                num_studies);
    for (const int count : {c.alpha, c.a, c.loss, c.gain}) {
      EXPECT_GE(count, 87) << num_seeds << " seeds";
      EXPECT_LE(count, num_seeds == 2 ? 100 : 99) << num_seeds << " seeds";
    }
  }
}

TEST(ScalingLaw, PlantedIrreducibleTermLiesInItsInterval) {
  int determined = 0, held = 0;
  FitOptions options;
  options.num_resamples = 100;
  for (uint64_t study = 0; study < 20; ++study) {
    const StudyFit fit =
        fit_study(make_points({{"standard", {0.02, 0.3, 1.5}}}, {6, 3, 0.0005, 0, 1e13, study}), options);
    if (!fit.variants[0].irreducible) continue;
    ++determined;
    held += holds(*fit.variants[0].irreducible->e, 1.5) ? 1 : 0;
  }
  EXPECT_GE(determined, 18);
  EXPECT_GE(held, determined - 3);
}

TEST(ScalingLaw, NoiseThatHidesTheFloorIsSaid) {
  const StudyFit fit = fit_study(make_points({{"standard", {1.5, 0.06, 0.3}}}, {4, 3, 0.01, 0}), with_resamples(200));
  EXPECT_FALSE(fit.variants[0].irreducible);
  EXPECT_THAT(fit.variants[0].irreducible_problem,
              ::testing::AnyOf(HasSubstr("interval reaches zero"), HasSubstr("E = 0 fits best"),
                               HasSubstr("cannot be told apart")));
}

TEST(ScalingLaw, ACellWithOneSeedTakesTheIntervalsOfWhatHangsOnIt) {
  auto points = make_points({{"standard", standard_law}, {"block", better_law}}, {4, 3, 0.002, 0.001});
  std::erase_if(points, [](const FitPoint& p) { return p.variant == "block" && p.size == "s2" && p.seed > 0; });
  const StudyFit fit = fit_study(points, with_resamples(100));
  EXPECT_EQ(fit.interval_problem, "block at size s2 has one seed: no interval for what hangs on it");
  EXPECT_TRUE(fit.variants[0].power->alpha.interval);
  EXPECT_FALSE(fit.variants[1].power->alpha.interval);
  EXPECT_FALSE(fit.gains[0].gain.interval);
  EXPECT_THAT(to_text(fit), HasSubstr("block at size s2 has one seed"));
  EXPECT_THAT(to_text(fit), HasSubstr("1-3"));
}

TEST(ScalingLaw, ALossThatDoesNotFallHasNoLaw) {
  const StudyFit fit =
      fit_study(make_points({{"standard", standard_law}, {"block", {1.9, -0.02}}}, {4, 2}), with_resamples(10));
  EXPECT_TRUE(fit.variants[0].power);
  EXPECT_FALSE(fit.variants[1].power);
  EXPECT_EQ(fit.variants[1].power_problem, "the loss does not fall with compute (alpha -0.02)");
  EXPECT_TRUE(fit.gains.empty());
}

// L = 1.5 + 0.02 log(N / N_opt)^2 + 0.3 C^-0.1, N_opt = 1e5 (C / 1e13)^0.55, C = 6 N D.
std::vector<FitPoint> isoflop_points(int num_budgets, int num_sizes, double shift = 0) {
  std::vector<FitPoint> points;
  for (int b = 0; b < num_budgets; ++b)
    for (int k = 0; k < num_sizes; ++k)
      for (uint64_t seed = 0; seed < 2; ++seed) {
        const double budget = 1e13 * std::pow(4.0, b), best = 1e5 * std::pow(budget / 1e13, 0.55);
        const double n = best * std::pow(1.7, k - (num_sizes - 1) / 2) * std::exp(shift);
        const double u = std::log(n / best);
        points.push_back({"standard", fmt::format("n{}", k), seed, n, budget / (6 * n), budget,
                          1.5 + 0.02 * u * u + 0.3 * std::pow(budget / 1e13, -0.1)});
      }
  return points;
}

TEST(ScalingLaw, IsoFlopCurvesFindThePlantedOptimum) {
  for (const double shift : {0.0, 0.3}) {
    const StudyFit fit = fit_study(isoflop_points(3, 5, shift), with_resamples(20));
    ASSERT_EQ(fit.isoflop.size(), 1u);
    ASSERT_EQ(fit.isoflop[0].curves.size(), 3u);
    for (const IsoFlopCurve& curve : fit.isoflop[0].curves) {
      EXPECT_EQ(curve.problem, "");
      const double best = 1e5 * std::pow(curve.compute / 1e13, 0.55);
      EXPECT_NEAR(curve.parameters_opt.value, best, 1e-6 * best);
      EXPECT_NEAR(curve.tokens_opt.value, curve.compute / (6 * best), 1e-6 * curve.tokens_opt.value);
      EXPECT_NEAR(curve.loss_opt.value, 1.5 + 0.3 * std::pow(curve.compute / 1e13, -0.1), 1e-9);
      EXPECT_NEAR(curve.c2, 0.02, 1e-9);
    }
    EXPECT_NEAR(fit.isoflop[0].parameters_exponent->value, 0.55, 1e-7);
    EXPECT_NEAR(fit.isoflop[0].tokens_exponent->value, 0.45, 1e-7);
    EXPECT_TRUE(fit.isoflop[0].parameters_exponent->interval);
    EXPECT_TRUE(fit.variants[0].over_isoflop_minima);
    ASSERT_TRUE(fit.variants[0].power);
    EXPECT_THAT(to_text(fit), HasSubstr("over the minima of its isoFLOP curves"));
    EXPECT_THAT(to_text(fit), HasSubstr("N_opt ~ C^0.550"));
  }
}

TEST(ScalingLaw, IsoFlopCurvesWithoutAnOptimumSaySo) {
  const StudyFit outside = fit_study(isoflop_points(2, 3, 2.0), with_resamples(5));
  ASSERT_EQ(outside.isoflop.size(), 1u);
  EXPECT_EQ(outside.isoflop[0].curves[0].problem, "its minimum lies outside the sizes, at 1e+05 parameters");
  EXPECT_FALSE(outside.isoflop[0].parameters_exponent);
  EXPECT_FALSE(outside.variants[0].power);
  EXPECT_EQ(outside.variants[0].power_problem, "0 value(s) of compute with a minimum, at least 3 are needed");

  auto points = isoflop_points(1, 3);
  for (FitPoint& point : points) point.loss = 4 - point.loss;
  const StudyFit upside_down = fit_study(points, with_resamples(5));
  EXPECT_EQ(upside_down.isoflop[0].curves[0].problem, "its losses have no minimum over the sizes");
  EXPECT_TRUE(to_json(upside_down)["isoflop"][0]["curves"][0]["parameters_opt"].is_null());
  EXPECT_THAT(to_text(upside_down), HasSubstr("no minimum over the sizes"));
}

TEST(ScalingLaw, WhatCannotBeFittedIsAnError) {
  EXPECT_EQ(message([] { fit_study({}); }), "found no points to fit, expected finished runs of at least 3 sizes");
  auto points = make_points({{"standard", standard_law}, {"block", better_law}}, {3, 2});
  auto few = points;
  std::erase_if(few, [](const FitPoint& p) { return p.variant == "block" && p.size == "s1"; });
  EXPECT_EQ(message([&] { fit_study(few); }),
            "variant 'block': found 2 different value(s) of compute, expected at least 3 to fit a law");
  auto close = points;
  for (FitPoint& p : close)
    if (p.variant == "block") p.compute = 1e13 * (p.size == "s1" ? 1.001 : p.size == "s2" ? 1.002 : 1);
  EXPECT_THAT(message([&] {
                for (FitPoint& p : close) p.tokens = 0;
                fit_study(close);
              }),
              HasSubstr("variant 'block': found 1 different"));
  for (const double bad : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    auto wrong = points;
    wrong[3].loss = bad;
    EXPECT_THAT(message([&] { fit_study(wrong); }),
                ::testing::AllOf(HasSubstr("variant 'standard', size s1, seed 1: found loss"),
                                 HasSubstr("expected a positive number")));
    wrong = points;
    wrong[3].compute = bad;
    EXPECT_THAT(message([&] { fit_study(wrong); }), HasSubstr("found compute"));
  }
  auto twice = points;
  twice.push_back(points[2]);
  EXPECT_EQ(message([&] { fit_study(twice); }),
            "variant 'standard', size s1, seed 0: found twice with 20000000 tokens, expected each seed once");
  EXPECT_EQ(message([&] { fit_study(points, with_baseline("standart")); }),
            "--baseline: unknown variant 'standart', did you mean standard?");
  EXPECT_EQ(message([&] { fit_study(points, with_baseline("something_else")); }),
            "--baseline: unknown variant 'something_else', expected one of standard, block");
  EXPECT_THAT(message([&] { fit_study(points, with_compute(-1)); }), HasSubstr("--at: found -1 FLOP"));
  EXPECT_THAT(message([&] { fit_study(points, with_resamples(-1)); }), HasSubstr("--resamples: found -1"));
}

TEST(ScalingLaw, BaselineIsStandardElseTheFirst) {
  FitOptions options;
  options.num_resamples = 0;
  EXPECT_EQ(fit_study(make_points({{"block", better_law}, {"standard", standard_law}}, {}), options).options.baseline,
            "standard");
  const StudyFit fit = fit_study(make_points({{"block", better_law}, {"full", standard_law}}, {}), options);
  EXPECT_EQ(fit.options.baseline, "block");
  EXPECT_EQ(fit.interval_problem, "no resamples were asked for");
  EXPECT_FALSE(fit.gains[0].gain.interval);
}

TEST(ScalingLaw, JsonHasPointsCurvesAndBands) {
  const StudyFit fit = fit_study(make_points({{"standard", standard_law}, {"block", better_law}}, {4, 3, 0.002, 0.001}),
                                 with_resamples(50));
  const nlohmann::json document = nlohmann::json::parse(to_json(fit).dump());
  EXPECT_EQ(document["points"].size(), 24u);
  EXPECT_EQ(document["baseline"], "standard");
  const auto& curve = document["variants"][1]["power"]["curve"];
  ASSERT_EQ(curve.size(), 40u);
  for (const auto& point : curve) {
    EXPECT_LE(point["low"], point["value"]);
    EXPECT_GE(point["high"], point["value"]);
  }
  EXPECT_EQ(document["gains"][0]["law"], "power");
  EXPECT_NEAR(document["gains"][0]["gain"]["value"].get<double>(), fit.gains[0].gain.value, 1e-12);
}

// ---- Tables ----

class TableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              fmt::format("lamina-fit-{}", ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string failure(const std::string& text) const {
    const fs::path file = folder_ / "t.csv";
    std::ofstream(file) << text;
    std::string found = message([&] { table_points(file); });
    const std::string prefix = file.string();
    return found.starts_with(prefix) ? found.substr(prefix.size()) : found;
  }
  fs::path folder_;
};

TEST_F(TableTest, PapersTable) {
  const auto points = table_points(fs::path(LAMINA_SOURCE_DIR) / "docs/examples/attnres_table2.csv");
  ASSERT_EQ(points.size(), 20u);
  EXPECT_DOUBLE_EQ(points[0].compute, (6 * 194e6 + 3.0 * 3 * 12 * 8192 * (192 + 128)) * 38.7e9);
  FitOptions options;
  options.baseline = "baseline";
  options.at = parse_compute("5.6 PFLOP/s-days");
  const StudyFit fit = fit_study(points, options);
  ASSERT_EQ(fit.variants.size(), 4u);
  // To the digits of the plain log-log fit; the published one is 1.891 C^-0.057, 1.870 C^-0.058, 1.25.
  EXPECT_NEAR(fit.variants[0].power->a.value, 1.883, 5e-4);
  EXPECT_NEAR(fit.variants[0].power->alpha.value, 0.0563, 5e-5);
  EXPECT_NEAR(fit.variants[1].power->a.value, 1.863, 5e-4);
  EXPECT_NEAR(fit.variants[1].power->alpha.value, 0.0579, 5e-5);
  EXPECT_NEAR(fit.variants[0].power->a.value, 1.891, 0.01);
  EXPECT_NEAR(fit.variants[1].power->a.value, 1.870, 0.01);
  ASSERT_GE(fit.gains.size(), 3u);
  EXPECT_EQ(fit.gains[0].variant, "block_attnres");
  EXPECT_NEAR(fit.gains[0].gain.value, 1.28, 5e-3);
  EXPECT_EQ(fit.gains[0].note,
            "block_attnres is read at 1.09 times its largest measured compute, baseline is read at 1.39 times its "
            "largest measured compute");
  EXPECT_FALSE(fit.variants[0].irreducible);  // five points do not tell it
  EXPECT_EQ(fit.interval_problem, "no cell has a second seed");
}

TEST_F(TableTest, ColumnsInAnyOrderWithComputeAndSeeds) {
  const fs::path file = folder_ / "t.csv";
  std::ofstream(file) << "# comment\r\nloss, seed ,variant,compute\r\n\r\n2.5, 7 ,a,1e15\r\n2.25,8,a,1e15\r\n";
  const auto points = table_points(file);
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[0].seed, 7u);
  EXPECT_EQ(points[1].loss, 2.25);
  EXPECT_EQ(points[1].compute, 1e15);
  EXPECT_EQ(points[0].variant, "a");
  EXPECT_EQ(points[0].size, "");
}

TEST_F(TableTest, EveryMistakeNamesItsLine) {
  EXPECT_EQ(failure("variant,los,compute\n"), ":1: unknown column 'los', did you mean loss?");
  EXPECT_EQ(failure("variant,bananas\n"), ":1: unknown column 'bananas', expected those of `lamina fit --help`");
  EXPECT_EQ(failure("variant,loss,loss,compute\n"), ":1: found the column 'loss' twice, expected it once");
  EXPECT_EQ(failure("variant,compute\n"), ":1: found no column 'loss', expected one");
  EXPECT_EQ(failure("loss,compute\n"), ":1: found no column 'variant', expected one");
  EXPECT_THAT(failure("variant,loss,tokens\n"), HasSubstr(":1: found neither a column 'compute' nor both"));
  EXPECT_THAT(failure("variant,loss,tokens,parameters,seq_len\n"), HasSubstr(":1: found 1 of the five columns"));
  EXPECT_THAT(failure("variant,loss,compute,seq_len\n"), HasSubstr(":1: found 'compute' and columns of attention"));
  EXPECT_EQ(failure("variant,loss,compute\n\na,2\n"), ":3: found 2 fields, expected 3 as in the header");
  EXPECT_EQ(failure("variant,loss,compute\na,2x,1\n"), ":2: loss: found '2x', expected a positive number");
  EXPECT_EQ(failure("variant,loss,compute\na,nan,1\n"), ":2: loss: found 'nan', expected a positive number");
  EXPECT_EQ(failure("variant,loss,compute\na,2,-1\n"), ":2: compute: found '-1', expected a positive number");
  EXPECT_EQ(failure("variant,loss,compute,seed\na,2,1,1.5\n"), ":2: seed: found '1.5', expected a whole number");
  EXPECT_EQ(failure("variant,loss,compute\n,2,1\n"), ":2: variant: found nothing, expected a name");
  EXPECT_THAT(failure("variant,loss,compute\na,2,1\na,2.1,1\n"), HasSubstr("t.csv:2 again, expected a column 'seed'"));
  EXPECT_EQ(failure("# only this\n"), ": found no header, expected the columns' names");
  EXPECT_EQ(failure("variant,loss,compute\n"), ": found no rows below the header, expected points");
  EXPECT_THAT(message([&] { table_points(folder_ / "none.csv"); }), HasSubstr("none.csv"));
}

TEST(ScalingLaw, ComputeIsReadWithItsUnit) {
  EXPECT_EQ(parse_compute("4.8e20"), 4.8e20);
  EXPECT_EQ(parse_compute("4.8e20 FLOP"), 4.8e20);
  EXPECT_EQ(parse_compute(" 2 PFLOP/s-days "), 2 * 8.64e19);
  EXPECT_EQ(parse_compute("2PF-days"), 2 * 8.64e19);
  for (const char* wrong : {"", "x", "-1", "0", "3 days", "nan", "1e999", "PFLOP/s-days"})
    EXPECT_THAT(message([&] { parse_compute(wrong); }), HasSubstr("expected a positive number of FLOP or PFLOP/s-days"))
        << wrong;
}

}  // namespace
}  // namespace lamina::study
