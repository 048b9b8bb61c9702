#include "trainer/run_folder.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string_view>
#include <system_error>
#include <utility>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_comm.h"
#include "trainer/metrics.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

// What a run may change between two starts. Everything else would make it another experiment, new keys included, until
// they are listed here. Paths of data may change because the sampler's fingerprint of their contents is compared.
constexpr std::string_view run_time_keys[] = {"run.name",
                                              "run.output_dir",
                                              "run.device",
                                              "run.num_threads",
                                              "parallel.",
                                              "train.num_steps",
                                              "train.micro_batch_size",
                                              "train.recompute",
                                              "train.grad_clip",
                                              "train.max_minutes",
                                              "train.optimizer.lr",
                                              "train.optimizer.beta1",
                                              "train.optimizer.beta2",
                                              "train.optimizer.eps",
                                              "train.optimizer.weight_decay",
                                              "train.lr_schedule.",
                                              "checkpoint.",
                                              "logging.",
                                              "debug.",
                                              "data.train[].path",
                                              "data.validation.path",
                                              "data.validation.interval"};

// "data.train[0].path" is matched as "data.train[].path".
bool is_run_time(const std::string& key) {
  std::string general;
  bool inside = false;
  for (char c : key) {
    inside = inside && c != ']';
    if (!inside) general += c;
    inside = inside || c == '[';
  }
  return std::any_of(std::begin(run_time_keys), std::end(run_time_keys), [&](std::string_view known) {
    return known.back() == '.' ? general.starts_with(known) : general == known;
  });
}

bool has_rows(const fs::path& path) {
  return fs::exists(path) && fs::file_size(path) > 0;
}

bool has_results(const RunFolder& folder) {
  return !list_committed_checkpoints(folder.checkpoints()).empty() || has_rows(folder.metrics());
}

void prepare(const RunFolder& folder, const Config& config) {
  std::error_code error;
  fs::create_directories(folder.checkpoints(), error);
  if (error) throw Error("run.output_dir: {}: can't create: {}", folder.checkpoints().string(), error.message());
  if (fs::exists(folder.config()) && has_results(folder)) {
    const std::string name = folder.config().string();
    for (const std::string& difference : check_same_experiment(io::read_file(folder.config()), name, config))
      log::info("the run goes on with {}", difference);
  }
  io::write_file_atomically(folder.config(), to_yaml(config));  // also proves that the folder can be written
}

// Empty for a line that is no row: half written when the process died.
std::optional<int64_t> step_of(const std::string& line) {
  const nlohmann::json row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) return std::nullopt;
  return row["step"].get<int64_t>();
}

void truncate_rows(const fs::path& path, int64_t last_step) {
  if (!fs::exists(path)) return;
  const std::string text = io::read_file(path);
  std::string kept;
  size_t num_dropped = 0;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const std::optional<int64_t> step = step_of(line);
    if (step && *step <= last_step) {
      kept += line + "\n";
    } else {
      ++num_dropped;
    }
  }
  if (kept == text) return;
  log::info("{}: dropped {} rows after step {}", path.string(), num_dropped, last_step);
  io::write_file_atomically(path, kept);
}

struct LastLine {
  size_t begin = 0;  // in the file
  std::string text;
};

LastLine last_line(const std::string& text) {
  if (!text.ends_with('\n')) return {text.size(), ""};
  const size_t before = text.size() < 2 ? std::string::npos : text.rfind('\n', text.size() - 2);
  const size_t begin = before == std::string::npos ? 0 : before + 1;
  return {begin, text.substr(begin, text.size() - 1 - begin)};
}

}  // namespace

RunFolder prepare_run_folder(const Config& config, comm::Communicator& comm) {
  const std::string root =
      config.run.output_dir.empty() ? fmt::format("runs/{}", config.run.name) : config.run.output_dir;
  const RunFolder folder{root};
  run_and_agree(comm, [&] {
    if (comm.rank() == 0) prepare(folder, config);
  });
  return folder;
}

std::map<std::string, std::string> flatten_config(const std::string& yaml) {
  struct Level {
    size_t indent;
    std::string path;
    int items;
  };
  std::map<std::string, std::string> values;
  std::vector<Level> levels{{0, "", 0}};
  std::istringstream in(yaml);
  for (std::string line; std::getline(in, line);) {
    size_t indent = std::min(line.find_first_not_of(' '), line.size());
    const bool is_item = line.compare(indent, 2, "- ") == 0;
    if (is_item) indent += 2;
    const size_t colon = line.find(':', indent);
    if (colon == std::string::npos) continue;
    // An item stands two spaces deeper than its list's key, its keys two more.
    while (levels.size() > 1 && levels.back().indent >= indent) levels.pop_back();
    Level& parent = levels.back();
    if (is_item) ++parent.items;
    const std::string item = parent.items > 0 ? fmt::format("[{}]", parent.items - 1) : "";
    const std::string path =
        fmt::format("{}{}{}{}", parent.path, item, parent.path.empty() ? "" : ".", line.substr(indent, colon - indent));
    const size_t value = line.find_first_not_of(' ', colon + 1);
    if (value == std::string::npos) {
      levels.push_back({indent, path, 0});
    } else {
      values[path] = line.substr(value);
    }
  }
  return values;
}

std::vector<std::string> check_same_experiment(const std::string& stored_yaml, const std::string& name,
                                               const Config& config) {
  std::map<std::string, std::string> stored = flatten_config(to_yaml(parse_config(stored_yaml, name)));
  std::map<std::string, std::string> current = flatten_config(to_yaml(config));
  constexpr const char* absent = "(absent)";
  for (const auto& [key, value] : current) stored.try_emplace(key, absent);
  for (const auto& [key, value] : stored) current.try_emplace(key, absent);
  std::vector<std::string> differences;
  for (const auto& [key, before] : stored) {
    const std::string& now = current[key];
    if (before == now) continue;
    if (!is_run_time(key))
      throw Error(
          "{}: {}: {} found, expected {} as this run began; choose another run.output_dir for another experiment", name,
          key, now, before);
    differences.push_back(fmt::format("{}: {} (was {})", key, now, before));
  }
  return differences;
}

bool lacks_validation(const RunFolder& folder, int64_t step) {
  if (!fs::exists(folder.metrics())) return false;
  const std::string line = last_line(io::read_file(folder.metrics())).text;
  return step_of(line) == step && !nlohmann::json::parse(line).contains("validation_loss");
}

void add_validation(const RunFolder& folder, int64_t step, double loss, double bits_per_byte) {
  LAMINA_CHECK(lacks_validation(folder, step));
  std::string text = io::read_file(folder.metrics());
  JsonRow added;
  added.add("validation_loss", loss).add("validation_bits_per_byte", bits_per_byte);
  text.resize(text.size() - 2);  // "}\n"
  io::write_file_atomically(folder.metrics(), text + ", " + added.to_string().substr(1) + "\n");
}

void truncate_metrics(const RunFolder& folder, int64_t step) {
  truncate_rows(folder.metrics(), step);
  truncate_rows(folder.layers(), step);
}

}  // namespace lamina
