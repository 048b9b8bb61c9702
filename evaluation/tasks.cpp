#include "evaluation/tasks.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::evaluation {
namespace {

using nlohmann::json;

constexpr const char* expected_keys = "context, choices, answer and, if wanted, id";

std::string kind_of(const json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "true or false";
  if (value.is_number_integer()) return fmt::format("the number {}", value.dump());
  if (value.is_number()) return fmt::format("{}", value.dump());
  if (value.is_string()) return "a text";
  return value.is_array() ? "a list" : "an object";
}

// One record of a file: what is wrong in it is said with file, line and key.
class ItemReader {
 public:
  ItemReader(const std::string& path, int64_t line, const std::string& text)
      : place_(fmt::format("{}:{}", path, line)) {
    record_ = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!record_.is_object())
      throw Error("{}: found {}, expected an object with {}", place_,
                  record_.is_discarded() ? "no JSON" : kind_of(record_), expected_keys);
    for (const auto& [key, value] : record_.items())
      if (key != "context" && key != "choices" && key != "answer" && key != "id")
        throw Error("{}: found the key {}, expected {}", place_, json(key).dump(-1, ' ', true), expected_keys);
    item_.line = line;
  }

  TaskItem read() {
    if (record_.contains("id")) item_.id = text_of(record_["id"], "id");
    item_.context = text_of(at("context", "a text"), "context");
    read_choices(at("choices", "a list of texts"));
    const json& answer = at("answer", "the index of the right choice");
    const int64_t last = static_cast<int64_t>(item_.choices.size()) - 1;
    if (!answer.is_number_integer() || answer < 0 || answer > last)
      throw Error("{}: answer: found {}, expected the index of the right choice, 0 to {}", place_, kind_of(answer),
                  last);
    item_.answer = answer.get<int64_t>();
    return item_;
  }

 private:
  const json& at(const char* key, const char* expected) const {
    if (!record_.contains(key)) throw Error("{}: {}: found nothing, expected {}", place_, key, expected);
    return record_[key];
  }

  std::string text_of(const json& value, const std::string& key) const {
    if (!value.is_string()) throw Error("{}: {}: found {}, expected a text", place_, key, kind_of(value));
    return value.get<std::string>();
  }

  void read_choices(const json& choices) {
    if (!choices.is_array()) throw Error("{}: choices: found {}, expected a list of texts", place_, kind_of(choices));
    if (choices.size() < 2)
      throw Error("{}: choices: found a list of {}, expected at least two texts", place_, choices.size());
    for (size_t i = 0; i < choices.size(); ++i) {
      const std::string key = fmt::format("choices[{}]", i);
      item_.choices.push_back(text_of(choices[i], key));
      if (item_.choices.back().empty()) throw Error("{}: {}: found an empty text, expected one to score", place_, key);
    }
  }

  std::string place_;
  json record_;
  TaskItem item_;
};

// Of UTF-8.
int64_t num_characters(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

// The first of the largest.
int64_t largest(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

struct Chosen {
  int64_t plain = 0, by_characters = 0, by_bytes = 0;
};

Chosen choose(const TaskItem& item, const std::vector<double>& log_probabilities) {
  std::vector<double> by_characters, by_bytes;
  for (size_t i = 0; i < item.choices.size(); ++i) {
    by_characters.push_back(log_probabilities[i] / static_cast<double>(num_characters(item.choices[i])));
    by_bytes.push_back(log_probabilities[i] / static_cast<double>(item.choices[i].size()));
  }
  return {largest(log_probabilities), largest(by_characters), largest(by_bytes)};
}

}  // namespace

std::string task_name(const std::string& path) {
  return std::filesystem::path(path).stem().string();
}

std::vector<TaskItem> read_task_file(const std::string& path) {
  if (std::filesystem::is_directory(path)) throw Error("{}: found a folder, expected a file of items", path);
  const std::string text = io::read_file(path);
  std::vector<TaskItem> items;
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string record = text.substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (record.find_first_not_of(" \t\r") == std::string::npos) continue;
    items.push_back(ItemReader(path, line, record).read());
  }
  if (items.empty()) throw Error("{}: found no items, expected JSON lines with {}", path, expected_keys);
  return items;
}

Task load_task(const std::string& path, const Tokenizer& tokenizer, std::optional<int64_t> max_length) {
  Task task{path, read_task_file(path), {}, 0};
  for (const TaskItem& item : task.items)
    for (size_t i = 0; i < item.choices.size(); ++i) {
      Request request = continuation_request(tokenizer, item.context, item.choices[i]);
      if (request.first >= request.tokens.size())
        throw Error("{}:{}: choices[{}]: found no token beyond those of the context, expected one to score", path,
                    item.line, i);
      if (max_length && cut_beginning(request, *max_length)) ++task.num_cut;
      task.requests.push_back(std::move(request));
    }
  return task;
}

std::vector<Task> load_tasks(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
                             std::optional<int64_t> max_length) {
  std::vector<Task> tasks;
  for (const std::string& path : paths) tasks.push_back(load_task(path, tokenizer, max_length));
  return tasks;
}

std::string describe(const Task& task, std::optional<int64_t> max_length) {
  std::string text = fmt::format("{}: {} items, {} choices", task.path, task.items.size(), task.requests.size());
  if (task.num_cut > 0)
    text += fmt::format("; {} of them with their context are longer than {} tokens and have lost their beginning",
                        task.num_cut, max_length.value_or(0));
  return text;
}

Mean mean_of(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  Mean mean;
  mean.value = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean.value) * (value - mean.value);
  mean.error = values.size() > 1 ? std::sqrt(squares / (count - 1) / count) : std::numeric_limits<double>::quiet_NaN();
  return mean;
}

TaskResult judge(const Task& task, const std::vector<double>& log_probabilities) {
  LAMINA_CHECK(log_probabilities.size() == task.requests.size());
  TaskResult result;
  result.num_items = static_cast<int64_t>(task.items.size());
  std::vector<double> acc, acc_norm, acc_bytes, logprob;
  auto next = log_probabilities.begin();
  for (const TaskItem& item : task.items) {
    const auto end = next + static_cast<int64_t>(item.choices.size());
    const std::vector<double>& found = result.log_probabilities.emplace_back(next, end);
    next = end;
    const Chosen chosen = choose(item, found);
    acc.push_back(chosen.plain == item.answer ? 1 : 0);
    acc_norm.push_back(chosen.by_characters == item.answer ? 1 : 0);
    acc_bytes.push_back(chosen.by_bytes == item.answer ? 1 : 0);
    logprob.push_back(found[static_cast<size_t>(item.answer)]);
  }
  result.acc = mean_of(acc);
  result.acc_norm = mean_of(acc_norm);
  result.acc_bytes = mean_of(acc_bytes);
  result.logprob = mean_of(logprob);
  return result;
}

std::optional<TaskResult> evaluate_task(const Task& task, const Model& model) {
  const std::optional<std::vector<double>> found = score(task.requests, model);
  if (!found) return std::nullopt;
  return judge(task, *found);
}

std::string items_as_json_lines(const Task& task, const TaskResult& result) {
  std::string lines;
  for (size_t i = 0; i < task.items.size(); ++i) {
    const TaskItem& item = task.items[i];
    const Chosen chosen = choose(item, result.log_probabilities[i]);
    nlohmann::ordered_json line = {{"task", task_name(task.path)}, {"line", item.line}};
    if (!item.id.empty()) line["id"] = item.id;
    line["answer"] = item.answer;
    line["chosen"] = chosen.plain;
    line["chosen_norm"] = chosen.by_characters;
    line["chosen_bytes"] = chosen.by_bytes;
    line["logprobs"] = result.log_probabilities[i];
    lines += line.dump() + "\n";
  }
  return lines;
}

}  // namespace lamina::evaluation
