#include "launch/study/sweep_estimate.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "configs/schema/batch_plan.h"
#include "data/sampler.h"
#include "model/cost_model.h"

namespace lamina::study {
namespace {

double tokens_of(const Config& config) {
  return static_cast<double>(BatchPlan(config).num_tokens(1, config.train.num_steps));
}

Config with_vocabulary(Config config) {
  if (config.model.vocab_size == 0) config.model.vocab_size = data_vocab_size(config.data);
  return config;
}

}  // namespace

double sum(const Work& work) {
  double all = 0;
  for (const auto& [size, flops] : work) all += flops;
  return all;
}

double run_flops(const Config& config) {
  return model::training_flops(with_vocabulary(config), config.train.num_steps);
}

Work work_left(const SweepPlan& plan, const std::vector<RunStatus>& status) {
  Work left;
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    if (has_ended(status[i].state)) continue;
    const double steps = static_cast<double>(plan.runs[i].config.train.num_steps);
    left[plan.runs[i].id.size] +=
        run_flops(plan.runs[i].config) * std::max(0.0, 1 - static_cast<double>(status[i].step) / steps);
  }
  return left;
}

std::vector<int> usable_cores() {
  std::vector<int> cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int core = 0; core < CPU_SETSIZE; ++core)
      if (CPU_ISSET(core, &set)) cores.push_back(core);
  if (cores.empty())  // more cores than a set holds
    for (int core = 0; core < static_cast<int>(std::thread::hardware_concurrency()); ++core) cores.push_back(core);
  return cores;
}

std::string crowding(const SweepPlan& plan, int jobs) {
  const int cores = static_cast<int>(usable_cores().size());
  int threads = 0;
  for (const PlannedRun& run : plan.runs)
    if (run.config.run.device == "cpu") threads = std::max({threads, 1, run.config.run.num_threads});
  const int at_a_time = std::min<int>(jobs, static_cast<int>(plan.runs.size()));
  if (at_a_time * plan.ranks * threads <= cores) return "";
  return fmt::format("{} run{} at a time with {} thread{} each on {} cores: they take the cores from each other",
                     at_a_time, at_a_time == 1 ? "" : "s", plan.ranks * threads, plan.ranks * threads == 1 ? "" : "s",
                     cores);
}

void SweepClock::measured(const std::string& size, double flops, double seconds) {
  if (flops <= 0 || seconds <= 0) return;
  rates_[size].flops += flops;
  rates_[size].seconds += seconds;
}

void SweepClock::measured(const SweepPlan& plan, const std::vector<RunStatus>& status) {
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    if (status[i].tokens_per_second <= 0) continue;
    const double seconds = tokens_of(plan.runs[i].config) / status[i].tokens_per_second;
    measured(plan.runs[i].id.size, run_flops(plan.runs[i].config), seconds);
  }
}

std::optional<double> SweepClock::seconds_left(const Work& left) const {
  if (rates_.empty()) return std::nullopt;
  Rate all;
  for (const auto& [size, rate] : rates_) {
    all.flops += rate.flops;
    all.seconds += rate.seconds;
  }
  double seconds = 0;
  for (const auto& [size, flops] : left) {
    const auto own = rates_.find(size);
    const Rate& rate = own != rates_.end() ? own->second : all;
    seconds += flops * rate.seconds / rate.flops;
  }
  return seconds / jobs_;
}

std::string SweepClock::text(const Work& left) const {
  const double share = total_ > 0 ? std::clamp(1 - sum(left) / total_, 0.0, 1.0) : 1;
  std::string text = fmt::format("{:.1f} % of {:.3g} FLOP", 100 * share, total_);
  const std::optional<double> seconds = seconds_left(left);
  if (seconds && sum(left) > 0) text += fmt::format(", about {} left", duration_text(*seconds));
  return text;
}

double planned_seconds(const Config& config, int ranks, int jobs, model::PlanDevice machine) {
  const int cores = static_cast<int>(usable_cores().size());
  const int threads = config.run.num_threads > 0 ? config.run.num_threads : std::max(1, cores / (jobs * ranks));
  const double share = std::min(static_cast<double>(threads) / cores, 1.0 / (jobs * ranks));
  machine.tflops *= share;
  for (double* rate : {&machine.memory_gbps, &machine.node_gbps, &machine.bandwidth_gbps}) *rate /= jobs * ranks;
  machine.ranks_per_node = ranks;
  const model::Plan plan = model::make_plan({with_vocabulary(config), ranks, machine});
  return plan.step_seconds() * static_cast<double>(config.train.num_steps);
}

std::string duration_text(double seconds) {
  const auto whole = std::llround(seconds);
  if (whole < 60) return fmt::format("{} s", whole);
  const auto minutes = std::llround(seconds / 60);
  if (minutes < 60) return fmt::format("{} min", minutes);
  if (minutes < 48 * 60) return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
  const auto hours = std::llround(seconds / 3600);
  return fmt::format("{} d {:02} h", hours / 24, hours % 24);
}

}  // namespace lamina::study
