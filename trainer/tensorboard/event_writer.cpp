#include "trainer/tensorboard/event_writer.h"

#include <event.pb.h>
#include <unistd.h>
#include <charconv>
#include <sstream>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/here.h"
#include "trainer/tensorboard/record.h"

namespace lamina::tensorboard {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::string_view prefix = "events.out.tfevents.";
constexpr int num_buckets = 30;
constexpr std::string_view over_layers[] = {"hidden_rms", "output_rms", "grad_rms", "depth_weights"};

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string record_of(const proto::Event& event) {
  return framed(event.SerializeAsString());
}

// Now, or later than every event file of the folder: two starts may fall into one second, and clocks may be set back.
int64_t seconds_for_name(const fs::path& folder) {
  auto seconds = static_cast<int64_t>(wall_time());
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    const std::string digits = name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
    if (digits.empty() || digits.size() > 12 || digits.find_first_not_of("0123456789") != std::string::npos) continue;
    seconds = std::max(seconds, static_cast<int64_t>(std::stoll(digits)) + 1);
  }
  return seconds;
}

proto::Event event_at(int64_t step) {
  proto::Event event;
  event.set_wall_time(wall_time());
  event.set_step(step);
  return event;
}

void add_scalar(proto::Summary& summary, const std::string& tag, double value) {
  proto::Summary::Value& added = *summary.add_value();
  added.set_tag(tag);
  added.set_simple_value(static_cast<float>(value));
}

void add_scalars(proto::Summary& summary, const std::string& tag, const ordered_json& value) {
  if (value.is_number()) {
    add_scalar(summary, tag, value.get<double>());
  } else if (value.is_object()) {
    for (const auto& [key, inner] : value.items()) add_scalars(summary, fmt::format("{}/{}", tag, key), inner);
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) add_scalars(summary, fmt::format("{}/{}", tag, i), value[i]);
  }
}

// Buckets of the same width from the least value to the greatest.
void add_histogram(proto::Summary& summary, const std::string& tag, const std::vector<double>& values) {
  if (values.empty()) return;
  proto::Summary::Value& added = *summary.add_value();
  added.set_tag(tag);
  proto::HistogramProto& histogram = *added.mutable_histo();
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  const double low = *least, high = *greatest, width = (high - low) / num_buckets;
  std::vector<double> counts(width > 0 ? num_buckets : 1);
  double sum = 0, sum_squares = 0;
  for (const double value : values) {
    const double at = width > 0 ? (value - low) / width : 0.0;
    ++counts[std::min(static_cast<size_t>(at), counts.size() - 1)];
    sum += value;
    sum_squares += value * value;
  }
  histogram.set_min(low);
  histogram.set_max(high);
  histogram.set_num(static_cast<double>(values.size()));
  histogram.set_sum(sum);
  histogram.set_sum_squares(sum_squares);
  for (size_t bucket = 0; bucket < counts.size(); ++bucket) {
    const bool is_last = bucket + 1 == counts.size();
    histogram.add_bucket_limit(is_last ? high : low + width * static_cast<double>(bucket + 1));
    histogram.add_bucket(counts[bucket]);
  }
}

// A value without a JSON number (null) is left out.
std::vector<double> numbers(const ordered_json& value) {
  std::vector<double> found;
  if (value.is_number()) found.push_back(value.get<double>());
  if (!value.is_array()) return found;
  for (const ordered_json& item : value)
    if (item.is_number()) found.push_back(item.get<double>());
  return found;
}

// Markdown, as TensorBoard shows texts: four spaces make a line one of code.
std::string as_code(const std::string& text) {
  std::string code;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) code += "    " + line + "\n";
  return code;
}

// From the form that YAML files have.
proto::Value hyperparameter(const std::string& text) {
  proto::Value value;
  double number = 0;
  const auto [stop, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text == "true" || text == "false") {
    value.set_bool_value(text == "true");
  } else if (code == std::errc() && stop == text.data() + text.size()) {
    value.set_number_value(number);
  } else {
    const bool quoted = text.size() >= 2 && text.front() == '"' && text.back() == '"';
    value.set_string_value(quoted ? text.substr(1, text.size() - 2) : text);
  }
  return value;
}

}  // namespace

EventWriter::EventWriter(const fs::path& folder, int64_t first_step) {
  const std::string stem = fmt::format("{}{:010}.{}.{}.", prefix, seconds_for_name(folder), host_name(), ::getpid());
  int number = 0;
  while (fs::exists(folder / fmt::format("{}{}", stem, number))) ++number;
  path_ = folder / fmt::format("{}{}", stem, number);
  file_ = io::AppendFile(path_, io::AppendFile::Mode::create);
  proto::Event version = event_at(0);
  version.set_file_version("brain.Event:2");
  proto::Event start = event_at(first_step + 1);
  start.mutable_session_log()->set_status(proto::SessionLog::START);
  file_.append(record_of(version) + record_of(start));
}

void EventWriter::write_configuration(const std::string& yaml, const std::map<std::string, std::string>& values) {
  if (!file_.is_open()) return;
  proto::Event event = event_at(0);
  proto::Summary::Value& text = *event.mutable_summary()->add_value();
  text.set_tag("configuration");
  text.mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  text.mutable_tensor()->set_dtype(proto::TensorProto::DT_STRING);
  text.mutable_tensor()->mutable_tensor_shape();  // one text
  text.mutable_tensor()->add_string_val(as_code(yaml));

  proto::HParamsPluginData data;
  proto::HParamsPluginData::SessionStartInfo& session = *data.mutable_session_start_info();
  session.set_start_time_secs(event.wall_time());
  for (const auto& [key, value] : values) (*session.mutable_hparams())[key] = hyperparameter(value);
  proto::Summary::Value& start = *event.mutable_summary()->add_value();
  start.set_tag("_hparams_/session_start_info");
  start.mutable_metadata()->mutable_plugin_data()->set_plugin_name("hparams");
  start.mutable_metadata()->mutable_plugin_data()->set_content(data.SerializeAsString());
  start.mutable_tensor()->set_dtype(proto::TensorProto::DT_FLOAT);  // all that is said stands in the metadata
  start.mutable_tensor()->mutable_tensor_shape()->add_dim()->set_size(0);
  file_.append(record_of(event));
}

void EventWriter::write_metrics(int64_t step, const JsonRow& row) {
  if (!file_.is_open()) return;
  proto::Event event = event_at(step);
  const ordered_json values = ordered_json::parse(row.to_string());
  for (const auto& [key, value] : values.items())
    if (key != "step") add_scalars(*event.mutable_summary(), key, value);
  file_.append(record_of(event));
}

void EventWriter::write_layers(int64_t step, std::span<const JsonRow> rows) {
  if (!file_.is_open()) return;
  proto::Event event = event_at(step);
  proto::Summary& summary = *event.mutable_summary();
  std::map<std::string_view, std::vector<double>> all;
  for (const JsonRow& row : rows) {
    const ordered_json values = ordered_json::parse(row.to_string());
    const std::string sublayer =
        fmt::format("{:03}.{}", values.at("layer").get<int64_t>(), values.at("sublayer").get<std::string>());
    for (const auto& [key, value] : values.items()) {
      if (key == "step" || key == "layer" || key == "sublayer") continue;
      const std::string tag = fmt::format("layers/{}/{}", key, sublayer);
      const std::vector<double> found = numbers(value);
      if (value.is_array()) add_histogram(summary, tag, found);
      if (value.is_number()) add_scalar(summary, tag, found.front());
      const auto* quantity = std::find(std::begin(over_layers), std::end(over_layers), key);
      if (quantity != std::end(over_layers)) all[*quantity].insert(all[*quantity].end(), found.begin(), found.end());
    }
  }
  for (const auto& [quantity, values] : all) add_histogram(summary, fmt::format("layers/{}", quantity), values);
  file_.append(record_of(event));
}

}  // namespace lamina::tensorboard
