// metrics.jsonl and layers.jsonl: one JSON object per line, flushed per line, in the order the keys were added.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/io/append_file.h"

namespace lamina {

// One JSON object. NaN and infinities have no JSON number and are written as null. Numbers read back to the same
// double.
class JsonRow {
 public:
  JsonRow& add(std::string_view name, double value);
  JsonRow& add(std::string_view name, int64_t value);
  JsonRow& add(std::string_view name, int value) { return add(name, static_cast<int64_t>(value)); }
  JsonRow& add(std::string_view name, bool value);
  JsonRow& add(std::string_view name, std::string_view value);
  JsonRow& add(std::string_view name, const char* value) { return add(name, std::string_view(value)); }
  JsonRow& add(std::string_view name, const JsonRow& value);
  JsonRow& add(std::string_view name, std::span<const double> values);

  JsonRow& append(const JsonRow& more);  // its keys

  std::string to_string() const { return "{" + body_ + "}"; }  // one line

 private:
  void key(std::string_view name);
  std::string body_;
};

// Bytes sent in the step, both directions, summed over ranks.
struct CommBytes {
  int64_t pipeline_hidden = 0;
  int64_t pipeline_blocks = 0;
  int64_t data = 0;
  int64_t expert = 0;
};

struct StepMetrics {
  int64_t step = 0;
  double loss = 0;
  std::optional<double> aux_loss;  // balance losses of the experts, weighted; with aux_loss_alpha
  double grad_norm = 0;
  double lr = 0;
  int64_t tokens = 0;  // seen since the run's first step
  double tokens_per_second = 0;
  std::optional<double> mfu;  // model FLOPs over the ranks' peak; absent: unknown
  CommBytes comm_bytes;
  std::optional<double> validation_loss;  // on steps that validate
};

JsonRow to_row(const StepMetrics& metrics);  // the line of metrics.jsonl; add() what else is known

// Appends lines to a file. Move-only. Without a path (every rank but 0) it writes nothing.
class MetricsWriter {
 public:
  MetricsWriter() = default;
  explicit MetricsWriter(const std::filesystem::path& path) : file_(path) {}  // appends; Error when it can't be opened

  // The line is with the operating system when this returns; Error on a full disk.
  void write(const JsonRow& row) {
    if (file_.is_open()) file_.append(row.to_string() + "\n");
  }

 private:
  io::AppendFile file_;
};

}  // namespace lamina
