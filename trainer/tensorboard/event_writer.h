// TensorBoard's event files, from the rows that go to metrics.jsonl and layers.jsonl, so both have the same numbers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "core/io/append_file.h"
#include "trainer/record/metrics.h"

namespace lamina::tensorboard {

// Writes folder/events.out.tfevents.<seconds>.<host>.<process>.<n>, a new file per start. Move-only. Default-constructed it
// writes nothing. What was written is with the operating system when a call returns; Error on a full disk.
class EventWriter {
 public:
  EventWriter() = default;
  // first_step: steps completed before this start. TensorBoard forgets what earlier files say of later ones. The name sorts
  // after all event files of the folder, the order in which TensorBoard reads them.
  EventWriter(const std::filesystem::path& folder, int64_t first_step);

  // The run's configuration: `yaml` as the text `configuration`, and its keys as hyperparameters, by which TensorBoard sorts and filters
  // runs: numbers, true and false as such, everything else as text. Of step 0.
  void write_configuration(const std::string& yaml, const std::map<std::string, std::string>& values);
  // Scalars: every number of the row under its key, of nested rows as outer/inner, of lists as key/index. Not the step.
  void write_metrics(int64_t step, const JsonRow& row);
  // The rows of one step, by sublayer: numbers as scalars layers/<quantity>/<layer>.<sublayer>, lists as histograms of the same
  // tag; and over all sublayers the histograms layers/<quantity> of hidden_rms, output_rms, grad_rms and depth_weights.
  void write_layers(int64_t step, std::span<const JsonRow> rows);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  io::AppendFile file_;
};

}  // namespace lamina::tensorboard
