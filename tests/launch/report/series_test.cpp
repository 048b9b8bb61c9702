#include "launch/report/series.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace lamina::report {
namespace {

using nlohmann::json;
using testing::ElementsAre;

Series wave(size_t count) {
  Series series;
  for (size_t i = 0; i < count; ++i) {
    const auto step = static_cast<int64_t>(i) + 1;
    series.step.push_back(step);
    series.tokens.push_back(100 * step);
    series.value.push_back(std::sin(0.37 * static_cast<double>(i)) + 1e-6 * static_cast<double>(i));
  }
  series.num_rows = count;
  return series;
}

TEST(Series, ReadsRowsThatHaveTheKey) {
  const std::vector<json> rows = {{{"step", 1}, {"tokens", 10}, {"loss", 2.5}},
                                  {{"step", 2}, {"tokens", 20}, {"validation_loss", 3.0}},
                                  {{"step", 3}, {"tokens", 30}, {"loss", nullptr}, {"bytes", {{"data", 7}}}}};
  const Series loss = read_series(rows, "loss");
  EXPECT_THAT(loss.step, ElementsAre(1, 3));
  EXPECT_THAT(loss.tokens, ElementsAre(10, 30));
  EXPECT_EQ(loss.value[0], 2.5);
  EXPECT_TRUE(std::isnan(loss.value[1]));
  EXPECT_THAT(read_series(rows, "bytes.data").value, ElementsAre(7));
  EXPECT_TRUE(read_series(rows, "bytes.expert").step.empty());
  EXPECT_TRUE(read_series(rows, "loss.data").step.empty());
  EXPECT_EQ(to_json(loss).dump(), R"({"rows":2,"step":[1,3],"tokens":[10,30],"value":[2.5,null]})");
}

TEST(Series, ThinningKeepsTheEndsAndEachStretchsExtremes) {
  Series series = wave(100000);
  series.value[54321] = 40;   // a spike of one step
  series.value[54322] = -40;  // and a hole
  const Series thinned = thin(series, 500);
  EXPECT_LE(thinned.step.size(), 500u);
  EXPECT_GE(thinned.step.size(), 450u);
  EXPECT_EQ(thinned.num_rows, 100000u);
  EXPECT_TRUE(thinned.is_thinned());
  EXPECT_EQ(thinned.step.front(), 1);
  EXPECT_EQ(thinned.step.back(), 100000);
  EXPECT_EQ(*std::max_element(thinned.value.begin(), thinned.value.end()), 40);
  EXPECT_EQ(*std::min_element(thinned.value.begin(), thinned.value.end()), -40);
  for (size_t i = 0; i < thinned.step.size(); ++i) {  // each is a row, and they stay in order
    const auto at = static_cast<size_t>(thinned.step[i] - 1);
    EXPECT_EQ(thinned.value[i], series.value[at]);
    EXPECT_EQ(thinned.tokens[i], series.tokens[at]);
    const int64_t before = i > 0 ? thinned.step[i - 1] : 0;
    EXPECT_GT(thinned.step[i], before);
  }
}

TEST(Series, ShortOnesStayWhole) {
  const Series series = wave(500);
  const Series same = thin(series, 500);
  EXPECT_EQ(same.step, series.step);
  EXPECT_EQ(same.value, series.value);
  EXPECT_FALSE(same.is_thinned());
}

TEST(Series, ThinningPassesOverGapsButKeepsAStretchOfThem) {
  Series series = wave(1000);
  for (size_t i = 400; i < 700; ++i) series.value[i] = std::numeric_limits<double>::quiet_NaN();
  series.value[100] = std::numeric_limits<double>::quiet_NaN();
  const Series thinned = thin(series, 22);  // ten stretches of a hundred
  const auto num_gaps =
      std::count_if(thinned.value.begin(), thinned.value.end(), [](double v) { return std::isnan(v); });
  EXPECT_GE(num_gaps, 2);
  EXPECT_LE(num_gaps, 3);
}

TEST(Series, AMillionStepsTakeAFewKilobytes) {
  const std::string text = to_json(thin(wave(1000000), 2000)).dump();
  EXPECT_LT(text.size(), 120000u);
}

TEST(Spread, HasTheEndsAndNothingTwice) {
  EXPECT_THAT(spread(5, 9), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(spread(10, 4), ElementsAre(0, 3, 6, 9));
  EXPECT_THAT(spread(3, 1), ElementsAre(2));
  EXPECT_TRUE(spread(0, 3).empty());
  const auto many = spread(1001, 240);
  EXPECT_EQ(std::set<size_t>(many.begin(), many.end()).size(), 240u);
  EXPECT_EQ(many.back(), 1000u);
}

}  // namespace
}  // namespace lamina::report
