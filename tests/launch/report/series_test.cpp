#include "launch/report/series.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "launch/report/metrics_digest.h"
#include "tests/launch/report/report_support.h"

namespace lamina::report {
namespace {

using nlohmann::json;
using testing::ElementsAre;

constexpr double none = std::numeric_limits<double>::quiet_NaN();

std::vector<Point> wave(size_t count) {
  std::vector<Point> points;
  for (size_t i = 0; i < count; ++i) {
    const auto step = static_cast<int64_t>(i) + 1;
    points.push_back({step, 100 * step, none, std::sin(0.37 * static_cast<double>(i)) + 1e-6 * static_cast<double>(i)});
  }
  return points;
}

Series thin(const std::vector<Point>& points, size_t max_points) {
  Thinner thinner(max_points);
  for (const Point& point : points) thinner.add(point);
  return thinner.series();
}

std::vector<double> values(const Series& series) {
  std::vector<double> out;
  for (const Point& point : series.points) out.push_back(point.value);
  return out;
}

TEST(Series, FindsTheKeysOfARow) {
  const json row = {{"step", 3}, {"loss", 2.5}, {"lr", nullptr}, {"bytes", {{"data", 7}}}, {"a.b", 4}};
  EXPECT_EQ(value_at(row, "loss"), 2.5);
  EXPECT_TRUE(std::isnan(value_at(row, "lr").value()));
  EXPECT_EQ(value_at(row, "bytes.data"), 7);
  EXPECT_EQ(value_at(row, "a.b"), 4);
  EXPECT_FALSE(value_at(row, "bytes.expert"));
  EXPECT_FALSE(value_at(row, "loss.data"));
}

TEST(Series, IsWrittenWithItsTimesAndGaps) {
  const Series series = thin({{1, 10, 1000.5, 2.5}, {3, 30, none, none}}, 8);
  EXPECT_EQ(to_json(series, 1000).dump(),
            R"({"rows":2,"step":[1,3],"stretch":1,"time":[0.5,null],"tokens":[10,30],"value":[2.5,null]})");
}

TEST(Series, ThinningKeepsTheEndsAndEachStretchsExtremes) {
  std::vector<Point> points = wave(100000);
  points[54321].value = 40;   // a spike of one step
  points[54322].value = -40;  // and a hole
  const Series thinned = thin(points, 500);
  EXPECT_EQ(thinned.stretch, 512u);
  EXPECT_GE(thinned.points.size(), 2 * 100000u / 512);
  EXPECT_LE(thinned.points.size(), 502u);
  EXPECT_EQ(thinned.num_rows, 100000u);
  EXPECT_EQ(thinned.points.front().step, 1);
  EXPECT_EQ(thinned.points.back().step, 100000);
  const std::vector<double> kept = values(thinned);
  EXPECT_EQ(*std::max_element(kept.begin(), kept.end()), 40);
  EXPECT_EQ(*std::min_element(kept.begin(), kept.end()), -40);
  for (size_t i = 0; i < thinned.points.size(); ++i) {  // each is a row, and they stay in order
    const Point& point = thinned.points[i];
    EXPECT_EQ(point.value, points[static_cast<size_t>(point.step - 1)].value);
    EXPECT_EQ(point.tokens, 100 * point.step);
    EXPECT_GT(point.step, i > 0 ? thinned.points[i - 1].step : 0);
    const size_t begin = static_cast<size_t>(point.step - 1) / 512 * 512, end = std::min<size_t>(begin + 512, 100000);
    double low = INFINITY, high = -INFINITY, sum = 0;
    for (size_t row = begin; row < end; ++row) {
      low = std::min(low, points[row].value);
      high = std::max(high, points[row].value);
      sum += points[row].value;
    }
    const bool is_end = point.step == 1 || point.step == 100000;
    EXPECT_TRUE(is_end || point.value == low || point.value == high) << point.step;
    EXPECT_NEAR(thinned.mean[i], sum / static_cast<double>(end - begin), 1e-12);
  }
}

TEST(Series, ShortOnesStayWhole) {
  const std::vector<Point> points = wave(500);
  const Series same = thin(points, 500);
  ASSERT_EQ(same.points.size(), 500u);
  for (size_t i = 0; i < 500; ++i) EXPECT_EQ(same.points[i].value, points[i].value);
  EXPECT_EQ(same.stretch, 1u);
}

TEST(Series, ThinningPassesOverGapsButKeepsAStretchOfThem) {
  std::vector<Point> points = wave(1024);
  for (size_t i = 384; i < 640; ++i) points[i].value = none;  // two stretches
  points[100].value = none;
  const Series thinned = thin(points, 16);  // eight stretches of 128
  EXPECT_EQ(thinned.stretch, 128u);
  const std::vector<double> kept = values(thinned);
  EXPECT_EQ(std::count_if(kept.begin(), kept.end(), [](double v) { return std::isnan(v); }), 2);
  Thinner thinner(8);
  for (const Point& point : points) thinner.add(point);
  thinner.add({2000, 0, none, none});
  EXPECT_EQ(thinner.last_number(), points.back().value);
}

// What is held, and what is written, are bounded by `max_points` alone.
TEST(Series, AMillionStepsAreHeldInTheMemoryOfAFew) {
  for (const size_t count : {size_t{5000}, size_t{1000000}}) {
    Thinner thinner(4000);
    size_t most = 0;
    for (const Point& point : wave(count)) {
      thinner.add(point);
      most = std::max(most, thinner.num_held());
    }
    EXPECT_LE(most, 2 * 4096 + 2u);  // a vector's capacity doubles
    EXPECT_LT(to_json(thinner.series()).dump().size(), 300000u);
  }
}

// ---- metrics.jsonl in one pass ----

json timed(int64_t step, const std::string& time, int64_t start, double rate = 64) {
  json row = testing_report::metric_row(step);
  row["time"] = time;
  row["start"] = start;
  row["tokens_per_second"] = rate;  // a step has 64 tokens: one second
  return row;
}

TEST(MetricsDigest, TellsStartsAndTimesThatRunWithoutThePauses) {
  testing_report::MadeRun run = testing_report::make_run();
  run.metrics = {timed(1, "2026-11-30T23:59:58Z", 1), timed(2, "2026-12-01T00:00:08Z", 1),
                 timed(3, "2026-12-02T00:00:00Z", 2, 6.4), timed(4, "2026-12-02T00:00:05Z", 2)};
  const MetricsDigest digest = digest_metrics(run, {"loss"}, false, 100);
  const double zero = 1796083198;  // date -d 2026-11-30T23:59:58Z +%s
  EXPECT_EQ(digest.first_time(), zero);
  ASSERT_EQ(digest.starts.size(), 2u);
  EXPECT_EQ(digest.starts[1].number, 2);
  EXPECT_EQ(digest.starts[1].step, 3);
  EXPECT_EQ(digest.starts[1].time, zero + 86402);
  EXPECT_EQ(digest.starts[0].running, 1);  // the first step's own second
  EXPECT_EQ(digest.starts[1].running,
            1 + 10 + 10);  // the first start, and the ten seconds of the second one's first step
  std::vector<double> times;
  for (const Point& point : digest.find("loss")->series().points) times.push_back(point.time - zero);
  EXPECT_THAT(times, ElementsAre(0, 10, 86402, 86407));
  EXPECT_EQ(digest.seconds_in_steps, 13);
}

TEST(MetricsDigest, SpreadsStepsWithinTheirSecond) {
  testing_report::MadeRun run = testing_report::make_run();
  run.metrics.clear();
  for (int64_t step = 1; step <= 8; ++step)  // a quarter of a second each
    run.metrics.push_back(timed(step, step <= 4 ? "2026-11-30T00:00:00Z" : "2026-11-30T00:00:02Z", 1, 256));
  const Series series = digest_metrics(run, {"loss"}, false, 100).find("loss")->series();
  std::vector<double> times;
  for (const Point& point : series.points) times.push_back(point.time - series.points[0].time);
  EXPECT_THAT(times, ElementsAre(0, 0.25, 0.5, 0.75, 2, 2.25, 2.5, 2.75));
}

TEST(MetricsDigest, SaysNothingWithoutTimes) {
  testing_report::MadeRun run = testing_report::make_run();
  const MetricsDigest digest = digest_metrics(run, {"loss"}, false, 100);
  ASSERT_EQ(digest.starts.size(), 1u);
  EXPECT_TRUE(std::isnan(digest.starts[0].time));
  EXPECT_EQ(to_json(digest.starts, 0)[0]["running"], json());
  EXPECT_FALSE(to_json(digest.find("loss")->series()).contains("time"));
  run.metrics[1]["time"] = "yesterday";
  EXPECT_TRUE(std::isnan(digest_metrics(run, {"loss"}, false, 100).find("loss")->series().points[1].time));
}

TEST(MetricsDigest, HoldsNoRows) {
  study::RunData run = testing_report::make_run();
  run.metrics = []() -> study::RowReader {
    return [step = int64_t{0}]() mutable -> std::optional<json> {
      if (step == 50000) return std::nullopt;
      json row = testing_report::metric_row(++step);
      if (step == 12345) row["loss"] = 1000;
      return row;
    };
  };
  const MetricsDigest digest = digest_metrics(run, {"loss", "grad_norm", "comm_bytes.data"}, false, 500);
  EXPECT_EQ(digest.series.size(), 3u);
  size_t held = 0;
  for (const auto& [key, series] : digest.series) held += series.num_held();
  EXPECT_LE(held, 3 * (2 * 512 + 2u));
  const std::vector<double> kept = values(digest.find("loss")->series());
  EXPECT_EQ(*std::max_element(kept.begin(), kept.end()), 1000);
}

}  // namespace
}  // namespace lamina::report
