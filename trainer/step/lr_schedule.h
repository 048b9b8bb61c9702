// The learning rate as a pure function of the step.
#pragma once

#include <cstdint>

#include "configs/schema/config.h"

namespace lamina {

// Steps count from 1 to num_steps. With W = warmup_steps, D = decay_steps, N = num_steps, r = min_lr_ratio:
//   warm-up, all schedules:  lr s / W                                       for s <= W, so step W is the first at the
//   full rate constant:                lr wsd:                     lr until N - D, then lr (1 - (1 - r) (s - (N - D)) /
//   D): the last step is at r lr cosine:                  lr (r + (1 - r) (1 + cos(pi (s - W) / (N - W))) / 2)
// wsd with D = 0 has no decay. A step beyond num_steps has the rate of the last one.
double learning_rate(double lr, const LrScheduleConfig& schedule, int64_t num_steps, int64_t step);

}  // namespace lamina
