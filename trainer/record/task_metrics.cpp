#include "trainer/record/task_metrics.h"

#include <string>

#include "core/base/log.h"

namespace lamina {

std::optional<JsonRow> task_metrics(std::span<const evaluation::Task> tasks, const evaluation::Model& model,
                                    int64_t step) {
  JsonRow all;
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (i > 0 && model.stop_agreed()) return std::nullopt;
    const std::optional<evaluation::TaskResult> found = evaluation::evaluate_task(tasks[i], model);
    if (!found) return std::nullopt;
    const std::string name = evaluation::task_name(tasks[i].path);
    log::info("step {} {}: acc {:.4f} +- {:.4f}, acc_norm {:.4f} +- {:.4f}, log-probability of the answer {:.4f}", step,
              name, found->acc.value, found->acc.error, found->acc_norm.value, found->acc_norm.error,
              found->logprob.value);
    all.add(name, JsonRow()
                      .add("acc", found->acc.value)
                      .add("acc_norm", found->acc_norm.value)
                      .add("acc_bytes", found->acc_bytes.value)
                      .add("logprob", found->logprob.value));
  }
  return JsonRow().add("tasks", all);
}

}  // namespace lamina
