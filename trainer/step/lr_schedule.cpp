#include "trainer/step/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/error.h"

namespace lamina {

double learning_rate(double lr, const LrScheduleConfig& schedule, int64_t num_steps, int64_t step) {
  LAMINA_CHECK(step >= 1, "step {}", step);
  const int64_t warmup = schedule.warmup_steps;
  const int64_t decay = schedule.name == LrScheduleName::wsd ? schedule.decay_steps : 0;
  if (warmup < 0 || decay < 0 || warmup + decay > num_steps)
    throw Error("train.lr_schedule: warmup_steps {} and decay_steps {} found, expected a sum of at most num_steps {}",
                warmup, decay, num_steps);

  if (step <= warmup) return lr * static_cast<double>(step) / static_cast<double>(warmup);
  const double floor = schedule.min_lr_ratio;
  const int64_t s = std::min(step, num_steps);
  switch (schedule.name) {
    case LrScheduleName::constant:
      return lr;
    case LrScheduleName::wsd: {
      const int64_t into_decay = s - (num_steps - decay);
      if (into_decay <= 0) return lr;
      return lr * (1.0 - (1.0 - floor) * static_cast<double>(into_decay) / static_cast<double>(decay));
    }
    case LrScheduleName::cosine: {
      if (s == warmup) return lr;  // the whole run was warm-up, and this step lies beyond it
      const double progress = static_cast<double>(s - warmup) / static_cast<double>(num_steps - warmup);
      return lr * (floor + (1.0 - floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
    }
  }
  LAMINA_CHECK(false, "schedule {}", static_cast<int>(schedule.name));
  return lr;
}

}  // namespace lamina
