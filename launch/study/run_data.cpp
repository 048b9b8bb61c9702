#include "launch/study/run_data.h"

#include <fmt/format.h>

#include <cerrno>
#include <fstream>
#include <map>
#include <memory>

#include "configs/schema/batch_plan.h"
#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/lines_from_end.h"
#include "model/cost_model.h"
#include "trainer/checkpoint/checkpoint.h"

namespace lamina::study {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* sweep_file = "sweep.json";

bool is_row(const json& row) {
  return row.is_object() && row.contains("step") && row["step"].is_number_integer();
}

// Of the first `size` bytes. What stands behind the last line's end is being written.
class RowFile {
 public:
  RowFile(fs::path path, uintmax_t size) : path_(std::move(path)), in_(path_, std::ios::binary), left_(size) {
    if (!in_) throw Error("{}: can't open: {}", path_.string(), io::describe_errno(errno));
  }
  std::optional<json> next() {
    if (left_ == 0 || !std::getline(in_, line_) || in_.eof() || line_.size() >= left_) return std::nullopt;
    left_ -= line_.size() + 1;
    ++number_;
    json row = json::parse(line_, nullptr, /*allow_exceptions=*/false);
    if (!is_row(row))
      throw Error("{}:{}: found '{}', expected a JSON object with a step", path_.string(), number_,
                  line_.substr(0, 60));
    return row;
  }

 private:
  fs::path path_;
  std::ifstream in_;
  uintmax_t left_;  // bytes
  std::string line_;
  int64_t number_ = 0;
};

std::function<RowReader()> rows_of(const fs::path& path) {
  if (!fs::exists(path)) return [] { return [] { return std::optional<json>(); }; };
  return [path, size = fs::file_size(path)]() -> RowReader {
    return [file = std::make_shared<RowFile>(path, size)] { return file->next(); };
  };
}

// null where there is none. A last line that is no row is told by a reader, which knows its number.
json last_row_of(const fs::path& path, const std::function<RowReader()>& rows) {
  const std::optional<io::Line> line = io::LinesFromEnd(path).next();
  if (!line) return nullptr;
  json row = json::parse(line->text, nullptr, /*allow_exceptions=*/false);
  if (is_row(row)) return row;
  for (const RowReader next = rows(); next();) continue;
  throw Error("{}: found '{}' in the last line, expected a JSON object with a step", path.string(),
              line->text.substr(0, 60));
}

std::string text_of(const json& object, const char* key, const fs::path& path) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string())
    throw Error("{}: found no text '{}', expected a file written by `lamina sweep`", path.string(), key);
  return found->get<std::string>();
}

}  // namespace

RunData read_run(const fs::path& folder) {
  if (!fs::is_directory(folder)) throw Error("{}: no such folder, expected a run folder", folder.string());
  const RunFolder files{folder};
  for (const fs::path& file : {files.config(), files.metrics()})
    if (!fs::exists(file))
      throw Error("{}: not a run folder: found no {}, expected one written by `lamina train`", folder.string(),
                  file.filename().string());
  RunData run;
  run.folder = folder;
  run.config = parse_config(io::read_file(files.config()), files.config().string());
  run.name = run.config.run.name;
  run.metrics = rows_of(files.metrics());
  run.layers = rows_of(files.layers());
  run.last_row = last_row_of(files.metrics(), run.metrics);
  if (run.last_row.is_null()) {
    const std::optional<Divergence> divergence = read_divergence(files);
    throw Error("{}: found no rows{}, expected at least one step", files.metrics().string(),
                divergence ? fmt::format(" (diverged: {})", divergence->reason) : "");
  }
  return run;
}

RunIdentity read_identity(const fs::path& folder) {
  RunIdentity identity;
  json last;
  const RowReader next = rows_of(RunFolder{folder}.starts())();
  while (std::optional<json> row = next()) last = std::move(*row);
  if (last.is_null()) return identity;
  identity.tokenizer_hash = last.value("tokenizer_hash", "");
  identity.data = parse_data_identity(last.value("data", ""));
  return identity;
}

std::string first_data_difference(const RunIdentity& a, const RunIdentity& b, bool validation_only) {
  if (a.tokenizer_hash.empty() || b.tokenizer_hash.empty() || !a.data || !b.data) return "";
  if (a.tokenizer_hash != b.tokenizer_hash)
    return fmt::format("tokenizer {}, not {}", a.tokenizer_hash, b.tokenizer_hash);
  const auto text = [](const DataIdentity::Source& source) {
    return fmt::format("{} tokens with hash {}", source.num_tokens, source.tokens_hash);
  };
  for (size_t i = 0; !validation_only && i < std::max(a.data->train.size(), b.data->train.size()); ++i) {
    const std::string first = i < a.data->train.size() ? text(a.data->train[i]) : "none";
    const std::string second = i < b.data->train.size() ? text(b.data->train[i]) : "none";
    if (first != second) return fmt::format("data.train.{}: {}, not {}", i, first, second);
  }
  const std::string first = a.data->validation ? text(*a.data->validation) : "none";
  const std::string second = b.data->validation ? text(*b.data->validation) : "none";
  return first == second ? "" : fmt::format("data.validation: {}, not {}", first, second);
}

RunProgress read_progress(const fs::path& folder) {
  const RunFolder files{folder};
  RunProgress progress;
  if (!fs::exists(files.config())) return progress;
  progress.num_steps = parse_config(io::read_file(files.config()), files.config().string()).train.num_steps;
  const auto checkpoints = list_committed_checkpoints(files.checkpoints());
  if (!checkpoints.empty()) progress.step = read_checkpoint_info(checkpoints.back()).step;
  return progress;
}

std::optional<Divergence> find_divergence(const RunFolder& folder, const json& last_row, int64_t num_steps) {
  if (std::optional<Divergence> told = read_divergence(folder)) return told;
  if (!last_row.is_object() || last_row["step"].get<int64_t>() < num_steps) return std::nullopt;
  for (const char* key : {"loss", "validation_loss"})
    if (const auto found = last_row.find(key); found != last_row.end() && found->is_null())
      return Divergence{num_steps, fmt::format("step {}: no finite {} at the last step", num_steps, key)};
  return std::nullopt;
}

std::optional<Divergence> find_divergence(const RunData& run) {
  return find_divergence(RunFolder{run.folder}, run.last_row, run.config.train.num_steps);
}

double training_flops(const RunData& run) {
  const auto per_token = [&](int64_t seq_len) {
    return model::training_flops_per_token(run.config.model, seq_len).total();
  };
  if (BatchPlan(run.config).stages().size() == 1)
    return per_token(run.config.data.seq_len) * run.last_row.value("tokens", 0.0);
  std::map<int64_t, double> tokens_of_length;
  double before = 0;
  const RowReader next = run.metrics();
  while (const std::optional<json> row = next()) {
    const double tokens = row->value("tokens", before);
    tokens_of_length[row->value("seq_len", run.config.data.seq_len)] += tokens - before;
    before = tokens;
  }
  double flops = 0;
  for (const auto& [seq_len, tokens] : tokens_of_length) flops += per_token(seq_len) * tokens;
  return flops;
}

bool is_sweep(const fs::path& folder) {
  return fs::exists(folder / sweep_file);
}

SweepData read_sweep(const fs::path& folder) {
  const fs::path path = folder / sweep_file;
  if (!fs::exists(path))
    throw Error("{}: not a sweep's folder: found no {}, expected one written by `lamina sweep`", folder.string(),
                sweep_file);
  const json document = json::parse(io::read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!document.is_object() || !document.contains("runs") || !document["runs"].is_array())
    throw Error("{}: found no list of runs, expected a file written by `lamina sweep`", path.string());
  SweepData sweep;
  sweep.folder = folder;
  sweep.name = text_of(document, "name", path);
  for (const json& entry : document["runs"]) {
    SweepRun run{text_of(entry, "name", path), text_of(entry, "size", path), text_of(entry, "variant", path), 0};
    if (!entry.contains("seed") || !entry["seed"].is_number_unsigned())
      throw Error("{}: {}: found no seed, expected a file written by `lamina sweep`", path.string(), run.name);
    run.seed = entry["seed"].get<uint64_t>();
    sweep.runs.push_back(std::move(run));
  }
  return sweep;
}

void write_sweep(const SweepData& sweep) {
  json document = {{"name", sweep.name}, {"runs", json::array()}};
  for (const SweepRun& run : sweep.runs)
    document["runs"].push_back({{"name", run.name}, {"size", run.size}, {"variant", run.variant}, {"seed", run.seed}});
  io::write_file_atomically(sweep.folder / sweep_file, document.dump(1) + "\n");
}

}  // namespace lamina::study
