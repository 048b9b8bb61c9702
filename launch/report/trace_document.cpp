#include "launch/report/trace_document.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::report {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t max_traces = 4;  // of a page: the newest

json field(const json& object, const char* key, const fs::path& path) {
  if (const auto found = object.find(key); found != object.end() && !found->is_null()) return *found;
  throw Error("{}: found no '{}', expected a trace written by `lamina train` (logging.trace_steps)", path.string(),
              key);
}

struct Action {
  int64_t rank = 0, chunk = 0, microbatch = 0;
  std::string kind;
  double start = 0, end = 0;
};

std::vector<Action> read_actions(const json& trace, const char* key, const fs::path& path) {
  std::vector<Action> actions;
  static const std::set<std::string> kinds = {"F", "B", "Bi", "W"};
  for (const json& entry : field(trace, key, path)) {
    Action action;
    try {
      action = {entry.at("rank").get<int64_t>(),       entry.at("chunk").get<int64_t>(),
                entry.at("microbatch").get<int64_t>(), entry.at("kind").get<std::string>(),
                entry.at("start").get<double>(),       entry.at("end").get<double>()};
    } catch (const json::exception&) {
      throw Error("{}: {}: found '{}', expected rank, chunk, microbatch, kind, start and end", path.string(), key,
                  entry.dump().substr(0, 80));
    }
    if (!kinds.contains(action.kind) || !(action.end >= action.start))
      throw Error("{}: {}: found '{}', expected a kind of F, B, Bi or W and an end after its start", path.string(), key,
                  entry.dump().substr(0, 120));
    actions.push_back(std::move(action));
  }
  return actions;
}

json timeline(const std::vector<Action>& actions, int64_t num_ranks, int64_t shown_ranks) {
  double first = INFINITY, last = -INFINITY, busy = 0;
  for (const Action& action : actions) {
    first = std::min(first, action.start);
    last = std::max(last, action.end);
    busy += action.end - action.start;
  }
  json shown = json::array();
  for (const Action& action : actions)
    if (action.rank < shown_ranks)
      shown.push_back(
          {action.rank, action.chunk, action.microbatch, action.kind, action.start - first, action.end - first});
  const double makespan = actions.empty() ? 0 : last - first;
  const double rank_time = makespan * static_cast<double>(num_ranks);
  return {{"actions", shown}, {"makespan", makespan}, {"bubble", rank_time > 0 ? 1 - busy / rank_time : 0}};
}

// Ranks of the simulation: one replica's, where the data-parallel ones are not simulated again.
int64_t ranks_in(const std::vector<Action>& actions) {
  std::set<int64_t> ranks;
  for (const Action& action : actions) ranks.insert(action.rank);
  return static_cast<int64_t>(ranks.size());
}

json read_trace(const fs::path& path, const Limits& limits) {
  const json document = json::parse(io::read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!document.is_object())
    throw Error("{}: found no JSON object, expected a trace written by `lamina train`", path.string());
  const json trace = field(document, "lamina", path);
  const json ranks = field(trace, "ranks", path), step = field(trace, "step", path);
  if (!ranks.is_number_integer() || !step.is_number_integer())
    throw Error("{}: found '{}' ranks at step '{}', expected two numbers", path.string(), ranks.dump(), step.dump());
  const auto shown = std::min<int64_t>(ranks.get<int64_t>(), static_cast<int64_t>(limits.timeline_ranks));
  const std::vector<Action> real = read_actions(trace, "real", path);
  const std::vector<Action> simulated = read_actions(trace, "simulated", path);
  return {{"step", step},
          {"ranks", ranks},
          {"shown_ranks", shown},
          {"pipeline", field(trace, "pipeline", path)},
          {"data", field(trace, "data", path)},
          {"schedule", field(trace, "schedule", path)},
          {"real", timeline(real, ranks.get<int64_t>(), shown)},
          {"simulated", timeline(simulated, ranks_in(simulated), shown)}};
}

}  // namespace

json trace_document(const study::RunData& run, const Limits& limits) {
  const fs::path folder = run.folder / "traces";
  json traces = json::array();
  if (!fs::is_directory(folder)) return traces;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().starts_with("step-") && entry.path().extension() == ".json")
      files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (files.size() > max_traces) files.erase(files.begin(), files.end() - max_traces);
  for (const fs::path& file : files) traces.push_back(read_trace(file, limits));
  return traces;
}

}  // namespace lamina::report
