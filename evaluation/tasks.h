// Multiple-choice items: read from JSON lines (docs/formats.md), answered by the likeliest choice, and counted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "evaluation/request.h"
#include "evaluation/score.h"

namespace lamina::evaluation {

struct TaskItem {
  int64_t line = 0;  // of the file, from 1
  std::string id;    // may be empty
  std::string context;
  std::vector<std::string> choices;  // at least two, none empty
  int64_t answer = 0;                // index of the right choice
};

struct Task {
  std::string path;
  std::vector<TaskItem> items;
  std::vector<Request> requests;  // of all items' choices, in order
  int64_t num_cut = 0;            // requests that have lost their beginning
};

// "hellaswag" of "tasks/hellaswag.jsonl": what metrics call it.
std::string task_name(const std::string& path);

// The file's items, at least one. Error naming file, line and key, what was found and what was expected.
std::vector<TaskItem> read_task_file(const std::string& path);

// The same with their tokens. Requests of more than `max_length` inputs lose their beginning; absent: none does. Error naming the
// line of a choice that adds no token to its context.
Task load_task(const std::string& path, const Tokenizer& tokenizer, std::optional<int64_t> max_length);

std::vector<Task> load_tasks(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                             std::optional<int64_t> max_length);

// "hellaswag.jsonl: 10042 items, 40168 choices", and how many were cut, to what.
std::string describe(const Task& task, std::optional<int64_t> max_length);

struct Mean {
  double value = 0;
  double error =
      0;  // standard error of the mean, sqrt(variance / n) with n - 1 in the variance; not a number for one item
};
Mean mean_of(const std::vector<double>& values);

// As lm-eval's metrics of these names. Of equally likely choices the first is taken.
struct TaskResult {
  int64_t num_items = 0;
  Mean acc;                                            // by the log-probability of a choice
  Mean acc_norm;                                       // by that over the choice's characters (code points)
  Mean acc_bytes;                                      // by that over its bytes
  Mean logprob;                                        // of the right answer
  std::vector<std::vector<double>> log_probabilities;  // [item][choice]
};

// log_probabilities: of task.requests, in order.
TaskResult judge(const Task& task, const std::vector<double>& log_probabilities);

// Collective. Absent when a stop was agreed on.
std::optional<TaskResult> evaluate_task(const Task& task, const Model& model);

// One line of JSON per item: its line and id, the right answer, what each of the three ways chose, and the choices' log-probabilities.
std::string items_as_json_lines(const Task& task, const TaskResult& result);

}  // namespace lamina::evaluation
