#include "launch/report/layer_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <set>

#include "core/base/error.h"
#include "launch/report/series.h"
#include "parallel/pipeline/block_routes.h"
#include "trainer/run_folder.h"

namespace lamina::report {
namespace {

using nlohmann::json;
using study::RunData;

constexpr std::array scalars = {"hidden_rms",    "output_rms",     "grad_rms",     "grad_norm",    "weight_norm",
                                "depth_entropy", "depth_largest",  "query_norm",   "query_update", "max_logit",
                                "max_violation", "router_entropy", "balance_loss", "dead_experts"};

double six_digits(double value) {
  return std::strtod(fmt::format("{:.6g}", value).c_str(), nullptr);
}

// Sublayers are numbered from 0: mixer 0, MLP 0, mixer 1, ..; the output read comes last.
class LayerRows {
 public:
  explicit LayerRows(const RunData& run) : path_(RunFolder{run.folder}.layers().string()) {
    for (const json& row : run.layers) {
      const int64_t step = row["step"].get<int64_t>();
      const int site = site_of(row, step, run.config.model.num_hidden_layers);
      if (!rows_[step].emplace(site, &row).second)
        throw Error("{}: step {}: found layer {} {} twice", path_, step, row["layer"].dump(), row["sublayer"].dump());
      sites_.insert(site);
    }
    for (const auto& [step, sites] : rows_) steps_.push_back(step);
  }
  const std::string& path() const { return path_; }
  const std::vector<int64_t>& steps() const { return steps_; }
  const std::set<int>& sites() const { return sites_; }
  // null: this step has no such row, or the row no such key.
  const json* find(int64_t step, int site, const char* key) const {
    const auto& sites = rows_.at(step);
    const auto row = sites.find(site);
    if (row == sites.end()) return nullptr;
    const auto value = row->second->find(key);
    return value == row->second->end() ? nullptr : &*value;
  }
  // Of the sites with an array `key` in some row.
  std::set<int> sites_with(const char* key) const {
    std::set<int> found;
    for (const auto& [step, sites] : rows_)
      for (const auto& [site, row] : sites)
        if (row->contains(key)) found.insert(site);
    return found;
  }

 private:
  int site_of(const json& row, int64_t step, int64_t num_layers) const {
    const auto layer = row.find("layer"), sublayer = row.find("sublayer");
    if (layer != row.end() && layer->is_number_integer() && sublayer != row.end() && sublayer->is_string()) {
      const int64_t number = layer->get<int64_t>();
      const std::string name = sublayer->get<std::string>();
      if (name == "output" && number == num_layers) return static_cast<int>(2 * number);
      if ((name == "mixer" || name == "mlp") && number >= 0 && number < num_layers)
        return static_cast<int>(2 * number + (name == "mlp" ? 1 : 0));
    }
    throw Error(
        "{}: step {}: found layer {} with sublayer {}, expected mixer or mlp of a layer below {}, or output of {}",
        path_, step, row.value("layer", json()).dump(), row.value("sublayer", json()).dump(), num_layers, num_layers);
  }

  std::string path_;
  std::map<int64_t, std::map<int, const json*>> rows_;  // by step, then site
  std::vector<int64_t> steps_;
  std::set<int> sites_;
};

json place(int site, int num_sites) {
  return {{"layer", site / 2}, {"sublayer", site == num_sites ? "output" : (site % 2 == 0 ? "mixer" : "mlp")}};
}

std::vector<int64_t> choose(const std::vector<int64_t>& steps, size_t count) {
  std::vector<int64_t> chosen;
  for (size_t i : spread(steps.size(), std::max<size_t>(count, 2))) chosen.push_back(steps[i]);
  return chosen;
}

// An array of numbers at (step, site), rounded; an Error unless it has `count` of them.
json numbers_at(const LayerRows& rows, int64_t step, int site, const char* key, size_t count) {
  const json* found = rows.find(step, site, key);
  if (!found) return nullptr;
  if (!found->is_array() || found->size() != count)
    throw Error("{}: step {}: found '{}' for {} of sublayer {}, expected {} numbers", rows.path(), step,
                found->dump().substr(0, 60), key, site, count);
  json values = json::array();
  for (const json& value : *found) values.push_back(value.is_number() ? json(six_digits(value.get<double>())) : json());
  return values;
}

// The embedding and the finished blocks; then the last block, or in the columns of all reads the open sum.
json source_names(const ModelConfig& model, const pipeline::BlockLayout& blocks, bool has_open_sum) {
  const bool is_full = model.residual == Residual::full_attnres;
  json names = {"embedding"};
  for (int block = 0; block < blocks.num_blocks(); ++block) {
    const bool is_open = has_open_sum && !is_full && block + 1 == blocks.num_blocks();
    names.push_back(is_full   ? fmt::format("{} {}", block / 2, block % 2 == 0 ? "mixer" : "mlp")
                    : is_open ? std::string("open sum")
                              : fmt::format("block {}", block));
  }
  return names;
}

json depth_document(const LayerRows& rows, const ModelConfig& model, const Limits& limits) {
  const std::set<int> reads = rows.sites_with("depth_weights");
  const pipeline::BlockLayout blocks = pipeline::make_block_layout(model);
  if (reads.empty() || blocks.num_blocks() == 0) return nullptr;
  const int num_sites = blocks.begin.back();
  const json sources = source_names(model, blocks, true);
  json places = json::array(), columns = json::array(), weights = json::array();
  const int open_column = blocks.num_blocks();
  std::vector<size_t> counts;
  size_t total = 0;
  for (int site : reads) {
    const bool is_output = site == num_sites;
    const int finished = blocks.block_of(std::min(site, num_sites - 1)) + 1;
    json column = json::array();
    for (int k = 0; k < finished; ++k) column.push_back(k);
    if (is_output || !blocks.opens_block(site)) column.push_back(open_column);
    counts.push_back(column.size());
    total += column.size();
    columns.push_back(std::move(column));
    places.push_back(place(site, num_sites));
  }
  const std::vector<int64_t> steps = choose(rows.steps(), limits.map_values / std::max<size_t>(total, 1));
  for (int64_t step : steps) {
    json of_step = json::array();
    size_t index = 0;
    for (int site : reads) of_step.push_back(numbers_at(rows, step, site, "depth_weights", counts[index++]));
    weights.push_back(std::move(of_step));
  }
  return {{"steps", steps}, {"sources", sources}, {"reads", places}, {"columns", columns}, {"weights", weights}};
}

// Of every two sources of the output read.
json cosine_document(const LayerRows& rows, const ModelConfig& model, const Limits& limits) {
  const pipeline::BlockLayout blocks = pipeline::make_block_layout(model);
  const std::set<int> sites = rows.sites_with("source_cosines");
  if (sites.empty() || blocks.num_blocks() == 0) return nullptr;
  const auto num_sources = static_cast<size_t>(blocks.num_blocks()) + 1,
             num_pairs = num_sources * (num_sources - 1) / 2;
  const std::vector<int64_t> steps = choose(rows.steps(), limits.map_values / num_pairs);
  json cosines = json::array();
  for (int64_t step : steps) cosines.push_back(numbers_at(rows, step, *sites.begin(), "source_cosines", num_pairs));
  return {{"steps", steps}, {"sources", source_names(model, blocks, false)}, {"cosines", cosines}};
}

json expert_document(const LayerRows& rows, const ModelConfig& model, const Limits& limits) {
  const std::set<int> sites = rows.sites_with("expert_load");
  if (sites.empty()) return nullptr;
  const auto num_experts = static_cast<size_t>(model.num_experts);
  const std::vector<int64_t> steps =
      choose(rows.steps(), limits.map_values / std::max<size_t>(sites.size() * num_experts, 1));
  json layers = json::array(), load = json::array();
  for (int site : sites) layers.push_back(site / 2);
  for (int64_t step : steps) {
    json of_step = json::array();
    for (int site : sites) of_step.push_back(numbers_at(rows, step, site, "expert_load", num_experts));
    load.push_back(std::move(of_step));
  }
  return {{"steps", steps}, {"layers", layers}, {"load", load}};
}

}  // namespace

json layer_document(const RunData& run, const Limits& limits) {
  if (run.layers.empty()) return nullptr;
  const LayerRows rows(run);
  const int num_sites = static_cast<int>(2 * run.config.model.num_hidden_layers);
  const std::vector<int64_t> steps =
      choose(rows.steps(), std::clamp<size_t>(limits.map_cells / rows.sites().size(), 12, 240));
  json places = json::array();
  for (int site : rows.sites()) places.push_back(place(site, num_sites));
  json quantities = json::object();
  for (const char* key : scalars) {
    json map = json::array();
    bool any = false;
    for (int site : rows.sites()) {
      json line = json::array();
      for (int64_t step : steps) {
        const json* value = rows.find(step, site, key);
        const bool is_number = value && value->is_number();
        line.push_back(is_number ? json(six_digits(value->get<double>())) : json());
        any = any || is_number;
      }
      map.push_back(std::move(line));
    }
    if (any) quantities[key] = std::move(map);
  }
  return {{"logged", rows.steps().size()},
          {"steps", steps},
          {"rows", places},
          {"quantities", quantities},
          {"depth", depth_document(rows, run.config.model, limits)},
          {"cosines", cosine_document(rows, run.config.model, limits)},
          {"experts", expert_document(rows, run.config.model, limits)}};
}

}  // namespace lamina::report
