#include "launch/report/layer_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "launch/report/series.h"
#include "parallel/pipeline/block_routes.h"
#include "trainer/record/run_folder.h"

namespace lamina::report {
namespace {

using nlohmann::json;
using study::RunData;

constexpr std::array scalars = {"hidden_rms",    "output_rms",     "grad_rms",     "grad_norm",    "weight_norm",
                                "depth_entropy", "depth_largest",  "query_norm",   "query_update", "max_logit",
                                "max_violation", "router_entropy", "balance_loss", "dead_experts"};

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

// Sublayers are numbered from 0: mixer 0, MLP 0, mixer 1, ..; the output read comes last.
json place(int site, int num_sites) {
  return {{"layer", site / 2}, {"sublayer", site == num_sites ? "output" : (site % 2 == 0 ? "mixer" : "mlp")}};
}

// The numbers of one key in every sublayer at some of the logged steps: every `stride`-th, and the last. Where they are more than may be,
// every second one goes.
class Frames {
 public:
  // `count(site)` numbers are expected; at most `max_values` are held.
  Frames(const char* key, std::vector<size_t> counts, size_t max_values) : key_(key), counts_(std::move(counts)) {
    size_t of_a_step = 1;
    for (const size_t count : counts_) of_a_step += count;
    max_frames_ = std::max<size_t>(2, max_values / of_a_step);
  }
  void begin_step(int64_t step) {
    keep();
    now_ = {step, {}};
  }
  void add(const json& row, int site, const std::string& path) {
    const auto found = row.find(key_);
    if (found == row.end() || static_cast<size_t>(site) >= counts_.size()) return;
    if (!found->is_array() || found->size() != counts_[site])
      throw Error("{}: step {}: found '{}' for {} of sublayer {}, expected {} numbers", path, now_.step,
                  found->dump().substr(0, 60), key_, site, counts_[site]);
    json values = json::array();
    for (const json& value : *found) values.push_back(value.is_number() ? six_digits(value.get<double>()) : json());
    now_.values[site] = std::move(values);
    sites_.insert(site);
  }
  const std::set<int>& sites() const { return sites_; }
  // steps, and values [step][site of sites()].
  std::pair<json, json> document() {
    if (index_ >= 0) kept_.push_back(std::move(now_));
    json steps = json::array(), values = json::array();
    for (const Frame& frame : kept_) {
      steps.push_back(frame.step);
      json of_step = json::array();
      for (const int site : sites_) of_step.push_back(frame.values.contains(site) ? frame.values.at(site) : json());
      values.push_back(std::move(of_step));
    }
    return {std::move(steps), std::move(values)};
  }

 private:
  struct Frame {
    int64_t step = 0;
    std::map<int, json> values;  // by site
  };
  // The step that has ended.
  void keep() {
    if (const int64_t ended = index_++; ended < 0 || ended % stride_ != 0) return;
    kept_.push_back(std::move(now_));
    if (kept_.size() <= max_frames_) return;
    for (size_t i = 0; i < kept_.size(); i += 2) kept_[i / 2] = std::move(kept_[i]);
    kept_.resize((kept_.size() + 1) / 2);
    stride_ *= 2;
  }

  const char* key_;
  std::vector<size_t> counts_;  // by site
  size_t max_frames_ = 2;
  int64_t index_ = -1, stride_ = 1;  // of the step under way, among the logged ones
  Frame now_;
  std::vector<Frame> kept_;
  std::set<int> sites_;
};

// Every scalar in every sublayer over the steps. A column stands for as many logged steps as keep the columns few, a power of two, and has
// the smallest and the largest value of them: the highest peak is seen.
class Maps {
 public:
  Maps(size_t num_sites, size_t max_columns) : num_sites_(num_sites), max_columns_(max_columns) {}
  void begin_step(int64_t step) {
    ++num_logged_;
    if (columns_.empty() || columns_.back().num_steps == width_) {
      while (columns_.size() == max_columns_) halve();
      if (columns_.empty() || columns_.back().num_steps == width_) columns_.push_back(make_column(step));
    }
    columns_.back().last_step = step;
    ++columns_.back().num_steps;
  }
  void add(const json& row, int site) {
    sites_.insert(site);
    for (size_t q = 0; q < scalars.size(); ++q)
      if (const auto value = row.find(scalars[q]); value != row.end() && value->is_number())
        columns_.back().cells[site * scalars.size() + q].take(value->get<double>());
  }
  const std::set<int>& sites() const { return sites_; }
  json document() const {
    json steps = json::array(), ends = json::array(), places = json::array(), largest = json::object(),
         smallest = json::object();
    for (const Column& column : columns_) {
      steps.push_back(column.first_step);
      ends.push_back(column.last_step);
    }
    for (const int site : sites_) places.push_back(place(site, static_cast<int>(num_sites_) - 1));
    for (size_t q = 0; q < scalars.size(); ++q) {
      json high = json::array(), low = json::array();
      bool any = false;
      for (const int site : sites_) {
        json high_line = json::array(), low_line = json::array();
        for (const Column& column : columns_) {
          const Cell& cell = column.cells[site * scalars.size() + q];
          any = any || cell.low <= cell.high;
          high_line.push_back(six_digits(cell.high));
          low_line.push_back(six_digits(cell.low));
        }
        high.push_back(std::move(high_line));
        low.push_back(std::move(low_line));
      }
      if (!any) continue;
      largest[scalars[q]] = std::move(high);
      if (width_ > 1) smallest[scalars[q]] = std::move(low);
    }
    json out = {
        {"logged", num_logged_}, {"per_column", width_}, {"steps", steps}, {"rows", places}, {"quantities", largest}};
    if (width_ > 1) {
      out["last_steps"] = std::move(ends);
      out["smallest"] = std::move(smallest);
    }
    return out;
  }

 private:
  struct Cell {  // high < low: no number yet
    double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
    void take(double value) {
      low = std::min(low, value);
      high = std::max(high, value);
    }
  };
  struct Column {
    int64_t first_step = 0, last_step = 0;
    size_t num_steps = 0;
    std::vector<Cell> cells;  // [site][scalar]
  };
  Column make_column(int64_t step) const { return {step, step, 0, std::vector<Cell>(num_sites_ * scalars.size())}; }
  void halve() {
    for (size_t i = 0; i < columns_.size(); i += 2) {
      Column both = std::move(columns_[i]);
      if (i + 1 < columns_.size()) {
        const Column& next = columns_[i + 1];
        both.last_step = next.last_step;
        both.num_steps += next.num_steps;
        for (size_t c = 0; c < both.cells.size(); ++c) {
          both.cells[c].low = std::min(both.cells[c].low, next.cells[c].low);
          both.cells[c].high = std::max(both.cells[c].high, next.cells[c].high);
        }
      }
      columns_[i / 2] = std::move(both);
    }
    columns_.resize((columns_.size() + 1) / 2);
    width_ *= 2;
  }

  size_t num_sites_, max_columns_, width_ = 1, num_logged_ = 0;
  std::vector<Column> columns_;
  std::set<int> sites_;
};

// Which sources every read sees, as columns of source_names().
std::vector<std::vector<int>> columns_of_reads(const pipeline::BlockLayout& blocks) {
  std::vector<std::vector<int>> columns;
  if (blocks.num_blocks() == 0) return columns;
  const int num_sites = blocks.begin.back(), open_column = blocks.num_blocks();
  for (int site = 0; site <= num_sites; ++site) {
    const bool is_output = site == num_sites;
    std::vector<int> column(blocks.block_of(std::min(site, num_sites - 1)) + 1);
    std::iota(column.begin(), column.end(), 0);
    if (is_output || !blocks.opens_block(site)) column.push_back(open_column);
    columns.push_back(std::move(column));
  }
  return columns;
}

json depth_document(Frames& frames, const ModelConfig& model, const std::vector<std::vector<int>>& columns) {
  if (frames.sites().empty()) return nullptr;
  json places = json::array(), seen = json::array();
  for (const int site : frames.sites()) {
    places.push_back(place(site, static_cast<int>(columns.size()) - 1));
    seen.push_back(columns[site]);
  }
  auto [steps, weights] = frames.document();
  return {{"steps", steps},
          {"sources", source_names(model, pipeline::make_block_layout(model), true)},
          {"reads", places},
          {"columns", seen},
          {"weights", weights}};
}

// Of every two sources of the output read.
json cosine_document(Frames& frames, const ModelConfig& model) {
  if (frames.sites().empty()) return nullptr;
  auto [steps, values] = frames.document();
  json cosines = json::array();
  for (json& of_step : values) cosines.push_back(std::move(of_step[0]));
  return {{"steps", steps},
          {"sources", source_names(model, pipeline::make_block_layout(model), false)},
          {"cosines", cosines}};
}

json expert_document(Frames& frames) {
  if (frames.sites().empty()) return nullptr;
  json layers = json::array();
  for (const int site : frames.sites()) layers.push_back(site / 2);
  auto [steps, load] = frames.document();
  return {{"steps", steps}, {"layers", layers}, {"load", load}};
}

int site_of(const json& row, int64_t step, int64_t num_layers, const std::string& path) {
  const auto layer = row.find("layer"), sublayer = row.find("sublayer");
  if (layer != row.end() && layer->is_number_integer() && sublayer != row.end() && sublayer->is_string()) {
    const int64_t number = layer->get<int64_t>();
    const std::string name = sublayer->get<std::string>();
    if (name == "output" && number == num_layers) return static_cast<int>(2 * number);
    if ((name == "mixer" || name == "mlp") && number >= 0 && number < num_layers)
      return static_cast<int>(2 * number + (name == "mlp" ? 1 : 0));
  }
  throw Error(
      "{}: step {}: found layer {} with sublayer {}, expected mixer or mlp of a layer below {}, or output of {}", path,
      step, row.value("layer", json()).dump(), row.value("sublayer", json()).dump(), num_layers, num_layers);
}

}  // namespace

json layer_document(const RunData& run, const Limits& limits) {
  const ModelConfig& model = run.config.model;
  const std::string path = RunFolder{run.folder}.layers().string();
  const auto num_sites = static_cast<size_t>(2 * model.num_hidden_layers + 1);
  const pipeline::BlockLayout blocks = pipeline::make_block_layout(model);
  const std::vector<std::vector<int>> columns = columns_of_reads(blocks);
  std::vector<size_t> reads, pairs, experts(num_sites, static_cast<size_t>(model.num_experts));
  for (const std::vector<int>& column : columns) reads.push_back(column.size());
  if (!reads.empty()) {
    const auto num_sources = static_cast<size_t>(blocks.num_blocks()) + 1;
    pairs.assign(num_sites, 0);
    pairs.back() = num_sources * (num_sources - 1) / 2;
  }
  Maps maps(num_sites, std::clamp<size_t>(limits.map_cells / num_sites, 12, 240));
  Frames depth("depth_weights", reads, limits.map_values), cosines("source_cosines", pairs, limits.map_values),
      load("expert_load", experts, limits.map_values);
  int64_t last_step = 0;
  std::set<int> seen;  // of the step
  const study::RowReader next = run.layers();
  while (const std::optional<json> row = next()) {
    const int64_t step = (*row)["step"].get<int64_t>();
    const int site = site_of(*row, step, model.num_hidden_layers, path);
    if (step < last_step || step < 1)
      throw Error("{}: found step {} after step {}, expected steps that rise from 1", path, step, last_step);
    if (step > last_step) {
      seen.clear();
      maps.begin_step(step);
      for (Frames* frames : {&depth, &cosines, &load}) frames->begin_step(step);
    }
    last_step = step;
    if (!seen.insert(site).second)
      throw Error("{}: step {}: found layer {} {} twice", path, step, (*row)["layer"].dump(),
                  (*row)["sublayer"].dump());
    maps.add(*row, site);
    for (Frames* frames : {&depth, &cosines, &load}) frames->add(*row, site, path);
  }
  if (last_step == 0) return nullptr;
  json out = maps.document();
  out["depth"] = depth_document(depth, model, columns);
  out["cosines"] = cosine_document(cosines, model);
  out["experts"] = expert_document(load);
  return out;
}

}  // namespace lamina::report
