#include "trainer/record/run_folder.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <sstream>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "configs/schema/batch_plan.h"
#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "core/io/lines_from_end.h"
#include "model/optimizers/optimizer.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/thread.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/record/identity.h"
#include "trainer/record/metrics.h"
#include "trainer/record/spike_log.h"

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
                                              "train.bf16_products",
                                              "train.recompute",
                                              "train.grad_clip",
                                              "train.max_minutes",
                                              "train.on_spike",
                                              "train.spike_threshold",
                                              "train.max_spikes",
                                              "train.skip_steps",
                                              "train.optimizer.lr",
                                              "train.optimizer.beta1",
                                              "train.optimizer.beta2",
                                              "train.optimizer.eps",
                                              "train.optimizer.weight_decay",
                                              "train.optimizer.attn_res_lr_factor",
                                              "train.optimizer.groups[].",
                                              "train.lr_schedule.",
                                              "stages[].micro_batch_size",
                                              "stages[].lr_factor",
                                              "train.eval.",
                                              "checkpoint.",
                                              "logging.",
                                              "debug.",
                                              "data.train[].path",
                                              "data.validation.path",
                                              "data.validation.interval"};

// What says which batches there are: may change for those that are to come.
constexpr std::string_view batch_keys[] = {"stages[].", "train.batch_ramp.", "train.global_batch_size",
                                           "data.piece_len", "data.train[].weight"};

// "data.train[0].path" is matched as "data.train[].path".
bool is_one_of(std::span<const std::string_view> keys, const std::string& key) {
  std::string general;
  bool inside = false;
  for (char c : key) {
    inside = inside && c != ']';
    if (!inside) general += c;
    inside = inside || c == '[';
  }
  return std::any_of(keys.begin(), keys.end(), [&](std::string_view known) {
    return known.back() == '.' ? general.starts_with(known) : general == known;
  });
}

bool has_rows(const fs::path& path) {
  return fs::exists(path) && fs::file_size(path) > 0;
}

bool has_results(const RunFolder& folder) {
  return !list_committed_checkpoints(folder.checkpoints()).empty() || has_rows(folder.metrics());
}

// What a run that goes on changes.
std::vector<std::string> check(const RunFolder& folder, const Config& config) {
  check_can_write("run.output_dir", folder.root);
  if (!fs::exists(folder.config()) || !has_results(folder)) return {};
  return check_same_experiment(io::read_file(folder.config()), folder.config().string(), config, last_batch(folder));
}

void prepare(const RunFolder& folder, const Config& config) {
  const std::vector<std::string> differences = check(folder, config);
  std::error_code error;
  fs::create_directories(folder.checkpoints(), error);
  if (error) throw Error("run.output_dir: {}: can't create: {}", folder.checkpoints().string(), error.message());
  for (const std::string& difference : differences) log::info("the run goes on with {}", difference);
  io::write_file_atomically(folder.config(), to_yaml(config));  // also proves that the folder can be written
}

// Empty for a line that is no row: half written when the process died.
std::optional<int64_t> step_of(const std::string& line) {
  const nlohmann::json row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) return std::nullopt;
  return row["step"].get<int64_t>();
}

// Steps rise, so what is to go is the file's end: cut off, nothing before it is read or written.
void truncate_rows(const fs::path& path, int64_t last_step) {
  if (!fs::exists(path)) return;
  int64_t end = 0;  // of what stays
  size_t num_dropped = 0;
  io::LinesFromEnd lines(path);
  while (const std::optional<io::Line> line = lines.next()) {
    const std::optional<int64_t> step = step_of(line->text);
    if (step && *step <= last_step) {
      end = line->begin + static_cast<int64_t>(line->text.size()) + 1;
      break;
    }
    ++num_dropped;
  }
  std::error_code error;
  if (static_cast<int64_t>(fs::file_size(path)) == end) return;
  fs::resize_file(path, static_cast<uintmax_t>(end), error);
  if (error) throw Error("{}: can't cut off the rows after step {}: {}", path.string(), last_step, error.message());
  io::fsync_file(path);
  log::info("{}: dropped {} rows after step {}", path.string(), num_dropped, last_step);
}

// Null where there is none.
nlohmann::json last_row(const fs::path& path) {
  if (!fs::exists(path)) return {};
  const std::optional<io::Line> line = io::LinesFromEnd(path).next();
  if (!line || !step_of(line->text)) return {};
  return nlohmann::json::parse(line->text);
}

bool is_of_step(const nlohmann::json& row, int64_t step) {
  return row.is_object() && row["step"].get<int64_t>() == step;
}

}  // namespace

RunFolder run_folder_of(const Config& config) {
  return {config.run.output_dir.empty() ? fmt::format("runs/{}", config.run.name) : config.run.output_dir};
}

void check_can_write(const std::string& key, const fs::path& folder) {
  fs::path existing = fs::absolute(folder).lexically_normal();
  while (!fs::exists(existing) && existing.has_relative_path()) existing = existing.parent_path();
  if (!fs::is_directory(existing))
    throw Error("{}: {}: {} is not a folder, expected one that can be written", key, folder.string(),
                existing.string());
  if (::access(existing.c_str(), W_OK | X_OK) != 0)
    throw Error("{}: {}: can't write to {}: {}", key, folder.string(), existing.string(), io::describe_errno(errno));
}

bool lock_run_folder(const RunFolder& folder, comm::Communicator& comm, std::unique_ptr<io::FolderLock>& lock) {
  std::string waits_for;
  for (;;) {
    int32_t waits = 0;
    run_and_agree(comm, [&] {
      if (comm.rank() != 0) return;
      if (!lock) {
        check_can_write("run.output_dir", folder.root);
        lock = std::make_unique<io::FolderLock>(folder.root, "lamina train");
      }
      waits = lock->try_take() ? 0 : 1;
      if (waits == 0 || lock->waits_for() == waits_for) return;
      waits_for = lock->waits_for();
      log::info("{}", waits_for);
    });
    Stream stream;
    comm.all_reduce(TensorView(&waits, DType::i32, {1}), comm::ReduceOp::max, stream).wait();
    if (waits == 0) return true;
    if (stop_requested_anywhere(comm)) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

void check_run_folder(const RunFolder& folder, const Config& config, comm::Communicator& comm) {
  run_and_agree(comm, [&] {
    if (comm.rank() == 0) check(folder, config);
  });
}

RunFolder prepare_run_folder(const Config& config, comm::Communicator& comm) {
  const RunFolder folder = run_folder_of(config);
  run_and_agree(comm, [&] {
    if (comm.rank() == 0) prepare(folder, config);
  });
  return folder;
}

std::optional<Divergence> read_divergence(const RunFolder& folder) {
  const fs::path path = folder.divergence();
  if (!fs::exists(path)) return std::nullopt;
  const nlohmann::json document = nlohmann::json::parse(io::read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!document.is_object() || !document.contains("step") || !document["step"].is_number_integer() ||
      !document.contains("reason") || !document["reason"].is_string())
    throw Error("{}: found no step and reason, expected a file written by `lamina train`", path.string());
  return Divergence{document["step"].get<int64_t>(), document["reason"].get<std::string>()};
}

void write_divergence(const RunFolder& folder, const Divergence& divergence) {
  const JsonRow row = JsonRow().add("step", divergence.step).add("reason", divergence.reason);
  io::write_file_atomically(folder.divergence(), row.to_string() + "\n");
}

void remove_divergence(const RunFolder& folder) {
  std::error_code error;
  fs::remove(folder.divergence(), error);
  if (error) throw Error("{}: can't remove: {}", folder.divergence().string(), error.message());
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

namespace {

// What a run's configuration meant to the program that wrote it: before there was a factor for depth queries it was one.
Config stored_config(const std::string& yaml, const std::string& name) {
  Config config = parse_config(yaml, name);
  std::optional<double>& factor = config.train.optimizer.attn_res_lr_factor;
  if (factor && !flatten_config(yaml).contains("train.optimizer.attn_res_lr_factor")) factor = 1.0;
  return config;
}

// Groups may change between two starts, but not the rule of a tensor: its state is of another kind. Of another model that is said
// by its keys.
void check_same_rules(const Config& stored, const std::string& name, const Config& config) {
  const std::vector<model::ParameterSpec> specs = model::parameter_specs(config.model);
  const std::vector<model::UpdateRule> before = model::update_rules(stored);
  const std::vector<model::UpdateRule> now = model::update_rules(config, specs);
  if (before.size() != now.size()) return;
  const auto text = [](const model::UpdateRule& rule) {
    return rule.optimizer ? name_of(rule.optimizer->facts().name) : "none";
  };
  for (size_t i = 0; i < specs.size(); ++i)
    if (before[i].optimizer != now[i].optimizer)
      throw Error(
          "{}: train.optimizer.groups: rule {} found for {}, expected {} as this run began; choose another "
          "run.output_dir "
          "for another experiment",
          name, text(now[i]), specs[i].name, text(before[i]));
}

// Why the batches up to `begun` are others than the run's; empty where they are the same.
std::string batch_difference(const Config& began, const Config& config, int64_t begun) {
  const BatchPlan before(began);
  if (before.has_same_batches(BatchPlan(config), begun)) return "";
  std::string why = " as this run began";
  const bool is_staged = before.stages().size() > 1 || !config.stages.empty();
  if (is_staged && begun < std::numeric_limits<int64_t>::max())
    why = fmt::format(": the run has come to batch {}, and stages that have begun stay as they are", begun);
  // A stage longer than all that were planned makes longer pieces of the text from the beginning.
  Config cut = config;
  cut.data.piece_len = before.stages().front().piece_len;
  if (before.has_same_batches(BatchPlan(cut), begun))
    why += fmt::format(
        "; data.piece_len: {} keeps the text's order so far, and longer sequences then begin a new epoch of every "
        "source",
        *cut.data.piece_len);
  return why;
}

}  // namespace

int64_t last_batch(const RunFolder& folder) {
  int64_t last = 0;
  const auto checkpoints = list_committed_checkpoints(folder.checkpoints());
  for (auto checkpoint = checkpoints.rbegin(); checkpoint != checkpoints.rend() && last == 0; ++checkpoint) {
    try {
      last = trained_batches(read_checkpoint_info(*checkpoint));
    } catch (const std::exception& damage) {  // an older one is taken then
      log::debug("{}", damage.what());
    }
  }
  const auto self = comm::make_self_communicator();
  const PassedBatches passed = SpikeLog(folder.spikes(), *self).passed();
  return passed.ranges().empty() ? last : std::max(last, passed.ranges().back().last);
}

std::vector<std::string> check_same_experiment(const std::string& stored_yaml, const std::string& name,
                                               const Config& config, int64_t begun) {
  const Config began = stored_config(stored_yaml, name);
  check_same_rules(began, name, config);
  const std::string other_batches = batch_difference(began, config, begun);
  std::map<std::string, std::string> stored = flatten_config(to_yaml(began));
  std::map<std::string, std::string> current = flatten_config(to_yaml(config));
  constexpr const char* absent = "(absent)";
  for (const auto& [key, value] : current) stored.try_emplace(key, absent);
  for (const auto& [key, value] : stored) current.try_emplace(key, absent);
  std::vector<std::string> differences;
  for (const auto& [key, before] : stored) {
    const std::string& now = current[key];
    if (before == now) continue;
    const bool is_of_batches = is_one_of(batch_keys, key) && !is_one_of(run_time_keys, key);
    if (is_of_batches ? !other_batches.empty() : !is_one_of(run_time_keys, key))
      throw Error("{}: {}: {} found, expected {}{}; choose another run.output_dir for another experiment", name, key,
                  now, before, is_of_batches ? other_batches : " as this run began");
    differences.push_back(fmt::format("{}: {} (was {})", key, now, before));
  }
  return differences;
}

int64_t last_start(const RunFolder& folder) {
  const nlohmann::json row = last_row(folder.metrics());
  if (!row.is_object()) return 0;
  return row.value("start", int64_t{1});  // of an older program
}

bool has_infinite_validation(const RunFolder& folder, int64_t step) {
  const nlohmann::json row = last_row(folder.metrics());
  return is_of_step(row, step) && row.contains("validation_loss") && !row["validation_loss"].is_number();
}

bool lacks(const RunFolder& folder, int64_t step, const std::string& key) {
  const nlohmann::json row = last_row(folder.metrics());
  return is_of_step(row, step) && !row.contains(key);
}

void add_to_last_row(const RunFolder& folder, const JsonRow& added) {
  const nlohmann::json row = last_row(folder.metrics());
  LAMINA_CHECK(row.is_object(), "no row to add to");
  const nlohmann::json more = nlohmann::json::parse(added.to_string());
  for (const auto& [key, value] : more.items()) LAMINA_CHECK(!row.contains(key), "the last row has {} already", key);
  std::string text = io::read_file(folder.metrics());
  text.resize(text.size() - 2);  // "}\n"
  io::write_file_atomically(folder.metrics(), text + ", " + added.to_string().substr(1) + "\n");
}

void truncate_metrics(const RunFolder& folder, int64_t step) {
  truncate_rows(folder.metrics(), step);
  truncate_rows(folder.layers(), step);
}

}  // namespace lamina
