// What a training run says of its multiple-choice items.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "evaluation/tasks.h"
#include "trainer/record/metrics.h"

namespace lamina {

// {"tasks": {<name>: {"acc": .., "acc_norm": .., "acc_bytes": .., "logprob": ..}, ..}}, for the row of `step`, and a line of each task in
// the log. Collective. Absent when a stop was agreed on.
std::optional<JsonRow> task_metrics(std::span<const evaluation::Task> tasks, const evaluation::Model& model,
                                    int64_t step);

}  // namespace lamina
