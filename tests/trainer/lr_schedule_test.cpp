#include "trainer/step/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "core/base/error.h"

namespace lamina {
namespace {

constexpr double tolerance = 4 * 2.3e-16;  // a handful of double roundings, relative to a rate of 1

LrScheduleConfig schedule(LrScheduleName name, int64_t warmup, int64_t decay, double floor) {
  LrScheduleConfig config;
  config.name = name;
  config.warmup_steps = warmup;
  config.decay_steps = decay;
  config.min_lr_ratio = floor;
  return config;
}

TEST(LearningRate, WarmsUpLinearlyFromTheFirstStep) {
  for (LrScheduleName name : {LrScheduleName::constant, LrScheduleName::wsd, LrScheduleName::cosine}) {
    const LrScheduleConfig config = schedule(name, 4, name == LrScheduleName::wsd ? 3 : 0, 0.1);
    EXPECT_NEAR(learning_rate(2.0, config, 20, 1), 0.5, tolerance);
    EXPECT_NEAR(learning_rate(2.0, config, 20, 3), 1.5, tolerance);
    EXPECT_EQ(learning_rate(2.0, config, 20, 4), 2.0);
  }
}

TEST(LearningRate, WsdIsStableThenLinear) {
  const LrScheduleConfig config = schedule(LrScheduleName::wsd, 2, 4, 0.2);
  for (int64_t step = 2; step <= 6; ++step) EXPECT_EQ(learning_rate(1.0, config, 10, step), 1.0) << step;
  EXPECT_NEAR(learning_rate(1.0, config, 10, 7), 0.8, tolerance);
  EXPECT_NEAR(learning_rate(1.0, config, 10, 8), 0.6, tolerance);
  EXPECT_NEAR(learning_rate(1.0, config, 10, 9), 0.4, tolerance);
  EXPECT_NEAR(learning_rate(1.0, config, 10, 10), 0.2, tolerance);
  EXPECT_NEAR(learning_rate(1.0, config, 10, 11), 0.2, tolerance);
}

TEST(LearningRate, WsdMayBeAllWarmUpAndDecay) {
  const LrScheduleConfig config = schedule(LrScheduleName::wsd, 3, 2, 0.0);
  EXPECT_EQ(learning_rate(1.0, config, 5, 3), 1.0);
  EXPECT_NEAR(learning_rate(1.0, config, 5, 4), 0.5, tolerance);
  EXPECT_NEAR(learning_rate(1.0, config, 5, 5), 0.0, tolerance);
}

TEST(LearningRate, WsdWithoutWarmUpAndDecayIsConstant) {
  const LrScheduleConfig config = schedule(LrScheduleName::wsd, 0, 0, 0.1);
  for (int64_t step = 1; step <= 12; ++step) EXPECT_EQ(learning_rate(3e-4, config, 10, step), 3e-4);
}

TEST(LearningRate, ConstantIgnoresTheFloor) {
  const LrScheduleConfig config = schedule(LrScheduleName::constant, 0, 0, 0.1);
  EXPECT_EQ(learning_rate(3e-4, config, 10, 1), 3e-4);
  EXPECT_EQ(learning_rate(3e-4, config, 10, 10), 3e-4);
}

TEST(LearningRate, CosineHasItsCorners) {
  const LrScheduleConfig config = schedule(LrScheduleName::cosine, 2, 0, 0.1);
  EXPECT_EQ(learning_rate(1.0, config, 10, 2), 1.0);
  EXPECT_NEAR(learning_rate(1.0, config, 10, 4), 0.1 + 0.9 * (1 + std::numbers::sqrt2 / 2) / 2, tolerance);
  EXPECT_NEAR(learning_rate(1.0, config, 10, 6), 0.55, tolerance);  // half way: the middle of lr and the floor
  EXPECT_NEAR(learning_rate(1.0, config, 10, 10), 0.1, tolerance);
  EXPECT_NEAR(learning_rate(1.0, config, 10, 99), 0.1, tolerance);
  double previous = 2.0;
  for (int64_t step = 2; step <= 10; ++step) {
    EXPECT_LT(learning_rate(1.0, config, 10, step), previous);
    previous = learning_rate(1.0, config, 10, step);
  }
}

TEST(LearningRate, CosineThatIsAllWarmUp) {
  const LrScheduleConfig config = schedule(LrScheduleName::cosine, 5, 0, 0.1);
  EXPECT_EQ(learning_rate(1.0, config, 5, 5), 1.0);
  EXPECT_EQ(learning_rate(1.0, config, 5, 6), 1.0);
}

TEST(LearningRate, RefusesWhatDoesNotFit) {
  try {
    learning_rate(1.0, schedule(LrScheduleName::wsd, 6, 5, 0.1), 10, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "train.lr_schedule: warmup_steps 6 and decay_steps 5 found, expected a sum of at most num_steps 10");
  }
  EXPECT_THROW(learning_rate(1.0, schedule(LrScheduleName::cosine, 11, 0, 0.1), 10, 1), Error);
  EXPECT_THROW(learning_rate(1.0, schedule(LrScheduleName::wsd, 0, 0, 0.1), 10, 0), InternalError);
}

}  // namespace
}  // namespace lamina
