#include "launch/study/sweep_runner.h"

#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <deque>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "configs/schema/decode.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "core/io/file.h"
#include "core/io/folder_lock.h"
#include "data/sampler.h"
#include "launch/study/child_process.h"
#include "launch/study/sweep_early_stop.h"
#include "launch/study/sweep_estimate.h"

namespace lamina::study {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int starts_without_progress = 3;

// What is not in the runs' folders: which of them are being run, and why others failed.
void write_state(const SweepPlan& plan, const std::vector<RunStatus>& status) {
  json runs = json::object();
  for (size_t i = 0; i < status.size(); ++i) {
    if (status[i].state == RunState::running) runs[plan.runs[i].id.name] = {{"state", "running"}};
    if (status[i].state == RunState::failed)
      runs[plan.runs[i].id.name] = {{"state", "failed"}, {"reason", status[i].reason}};
    if (status[i].state == RunState::stopped)
      runs[plan.runs[i].id.name] = {{"state", "stopped"}, {"reason", status[i].reason}};
  }
  io::write_file_atomically(state_file(plan.folder), json{{"runs", runs}}.dump(1) + "\n");
}

void write_configs(const SweepPlan& plan) {
  std::error_code error;
  for (const char* folder : {"configs", "logs"}) {
    fs::create_directories(plan.folder / folder, error);
    if (error) throw Error("{}: can't create: {}", (plan.folder / folder).string(), error.message());
  }
  for (const PlannedRun& run : plan.runs) io::write_file_atomically(config_file(plan, run), to_yaml(run.config));
}

void write_plan(const SweepPlan& plan) {
  write_configs(plan);
  write_sweep(plan.data());
}

// As their folders say, and of those that are not done which ones were stopped early; a sweep without early_stop goes on with these.
std::vector<RunStatus> stored_status(const SweepPlan& plan) {
  const auto stopped = plan.early_stop ? read_stopped(plan.folder) : std::map<std::string, std::string>();
  std::vector<RunStatus> all;
  for (const PlannedRun& run : plan.runs) {
    all.push_back(read_status(run));
    const auto reason = stopped.find(run.id.name);
    if (reason == stopped.end() || has_ended(all.back().state)) continue;
    all.back().state = RunState::stopped;
    all.back().reason = reason->second;
  }
  return all;
}

std::string clock_text() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return fmt::format("{:02}:{:02}:{:02}", local.tm_hour, local.tm_min, local.tm_sec);
}

class Runner {
 public:
  // `later` is the work that comes after this plan's.
  Runner(const SweepPlan& plan, const SweepOptions& options, const io::FolderLock& lock, SweepClock& clock, Work later)
      : plan_(plan),
        options_(options),
        lock_(lock),
        clock_(clock),
        later_(std::move(later)),
        hopeless_(plan),
        status_(stored_status(plan)),
        starts_(plan.runs.size()),
        slots_(static_cast<size_t>(options.jobs)) {
    for (const PlannedRun& run : plan.runs) {
      name_width_ = std::max(name_width_, run.id.name.size());
      flops_.push_back(run_flops(run.config));
    }
    for (size_t i = 0; i < status_.size(); ++i)
      if (!has_ended(status_[i].state)) queue_.push_back(i);
  }

  SweepEnd run() {
    say(status_sums(status_));
    while (!queue_.empty() || !active_.empty()) {
      if (lock_.is_lost()) stop::request("another sweep has taken this one's folder over");
      if (stop::requested() && !stopping_) tell_to_stop();
      while (!stopping_ && !queue_.empty() && static_cast<int>(active_.size()) < options_.jobs) start_next();
      reap();
      stop_hopeless();
      draw();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    draw(/*force=*/true);
    write_state(plan_, status_);
    SweepEnd end;
    end.runs = static_cast<int>(status_.size());
    for (const RunStatus& one : status_) {
      end.failed += one.state == RunState::failed;
      end.diverged += one.state == RunState::diverged;
      end.stopped_early += one.state == RunState::stopped;
    }
    end.is_stopped = stopping_;
    if (!options_.show_table) say(status_sums(status_));
    return end;
  }

 private:
  struct Active {
    size_t run;
    ChildProcess process;
    int64_t step;  // at its start
    Clock::time_point start;
    size_t slot;         // of the runs at a time
    std::string reason;  // it was told to stop early
  };

  const PlannedRun& planned(size_t run) const { return plan_.runs[run]; }

  // All of them in pieces of equal size, neighbours together: they tend to share caches and memory.
  std::vector<int> cores_of(size_t slot) const {
    const std::vector<int> cores = usable_cores();
    if (!options_.bind) return cores;
    const size_t jobs = slots_.size();
    return {cores.begin() + static_cast<std::ptrdiff_t>(cores.size() * slot / jobs),
            cores.begin() + static_cast<std::ptrdiff_t>(cores.size() * (slot + 1) / jobs)};
  }

  std::vector<std::string> command(const PlannedRun& run, size_t slot) const {
    std::vector<std::string> words;
    if (plan_.ranks > 1) {
      std::istringstream launcher(options_.launcher);
      for (std::string word; launcher >> word;) words.push_back(word);
      words.insert(words.end(), {"-n", std::to_string(plan_.ranks)});
    }
    words.insert(words.end(), {options_.program, "train", config_file(plan_, run).string()});
    // Runs side by side share the cores.
    if (run.config.run.num_threads == 0) {
      const int cores = static_cast<int>(cores_of(slot).size()), sharers = options_.bind ? 1 : options_.jobs;
      words.push_back(fmt::format("run.num_threads={}", std::max(1, cores / (sharers * plan_.ranks))));
    }
    return words;
  }

  void start_next() {
    const size_t run = queue_.front();
    queue_.pop_front();
    RunStatus& status = status_[run];
    status.state = RunState::running;
    status.reason.clear();
    const fs::path log = log_file(plan_, planned(run));
    {
      std::ofstream mark(log, std::ios::app);
      mark << "--- started by lamina sweep\n";
      if (!mark.flush()) throw Error("{}: can't write", log.string());
    }
    const auto free = std::find(slots_.begin(), slots_.end(), false);
    const auto slot = static_cast<size_t>(free - slots_.begin());
    *free = true;
    active_.push_back(
        {run, ChildProcess(command(planned(run), slot), log, options_.bind ? cores_of(slot) : std::vector<int>()),
         status.step, Clock::now(), slot, ""});
    say(fmt::format("{}: {}", planned(run).id.name,
                    status.step > 0 ? fmt::format("goes on after step {}", status.step) : "started"));
    write_state(plan_, status_);
  }

  void tell_to_stop() {
    stopping_ = true;
    queue_.clear();
    say(fmt::format("{}: the runs save and end; the same command goes on", stop::reason()));
    for (Active& active : active_) active.process.signal(SIGUSR1);
  }

  void stop_hopeless() {
    if (!plan_.early_stop || stopping_ || seconds_since(looked_at_) < 0.5) return;
    looked_at_ = Clock::now();
    for (Active& active : active_) {
      if (!active.reason.empty()) continue;
      active.reason = hopeless_.reason(active.run);
      if (!active.reason.empty()) active.process.signal(SIGUSR1);
    }
  }

  void reap() {
    for (size_t i = 0; i < active_.size();) {
      const std::optional<int> ended = active_[i].process.poll();
      if (!ended) {
        ++i;
        continue;
      }
      const Active active = std::move(active_[i]);
      slots_[active.slot] = false;
      active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
      judge(active, *ended);
      write_state(plan_, status_);
    }
  }

  void judge(const Active& active, int wait_status) {
    RunStatus& status = status_[active.run];
    const std::string& name = planned(active.run).id.name;
    const bool asks_to_resume = WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == exit_resume;
    const bool is_good = WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0;
    status = read_status(planned(active.run));
    clock_.measured(planned(active.run).id.size, work_of(active.run, active.step), seconds_since(active.start));
    if (status.state == RunState::done) {
      say(fmt::format("{}: done in {:.0f} s, loss {:.4f}{}", name, seconds_since(active.start), status.loss,
                      status.validation_loss > 0 ? fmt::format(", validation {:.4f}", status.validation_loss) : ""));
      say(progress());
      return;
    }
    if (status.state == RunState::diverged) {
      say(fmt::format("{}: diverged: {}", name, status.reason));
      return;
    }
    if (!active.reason.empty() && asks_to_resume) {
      status.state = RunState::stopped;
      status.reason = active.reason;
      say(fmt::format("{}: stopped early at step {}: {}", name, status.step, status.reason));
      return;
    }
    status.state = RunState::waiting;
    if (stopping_ && !is_good && (asks_to_resume || WIFSIGNALED(wait_status))) return;
    if (asks_to_resume) {
      starts_[active.run] = status.step > active.step ? 0 : starts_[active.run] + 1;
      if (starts_[active.run] < starts_without_progress) {
        if (!stopping_) queue_.push_back(active.run);
        return;
      }
    }
    status.state = RunState::failed;
    status.reason =
        asks_to_resume ? fmt::format("asked to be resumed {} times without a step of progress", starts_without_progress)
        : is_good      ? "ended without the checkpoint of its last step"
                       : failure_reason(log_file(plan_, planned(active.run)), wait_status);
    say(fmt::format("{}: failed: {} ({})", name, status.reason, log_file(plan_, planned(active.run)).string()));
  }

  // FLOP of the steps that a run has done since `step`.
  double work_of(size_t run, int64_t step) const {
    return flops_[run] * static_cast<double>(status_[run].step - step) /
           static_cast<double>(planned(run).config.train.num_steps);
  }

  std::string progress() {
    SweepClock now = clock_;
    for (const Active& active : active_) {
      const int64_t step = std::max(read_status(planned(active.run)).step, active.step);
      status_[active.run].step = step;
      now.measured(planned(active.run).id.size, work_of(active.run, active.step), seconds_since(active.start));
    }
    Work left = later_;
    for (size_t run = 0; run < status_.size(); ++run)
      if (!has_ended(status_[run].state)) left[planned(run).id.size] += flops_[run] - work_of(run, 0);
    return now.text(left);
  }

  // A line for each change, or a table that shows it by itself.
  void say(const std::string& text) {
    if (options_.show_table) return;
    fmt::print("{} {}\n", clock_text(), text);
    std::fflush(stdout);
  }

  void draw(bool force = false) {
    if (!force && seconds_since(drawn_at_) < (options_.show_table ? 1 : 300)) return;
    drawn_at_ = Clock::now();
    if (!options_.show_table) return force ? void() : say(progress());
    std::string table;
    int lines = 1;
    for (size_t i = 0; i < status_.size(); ++i) {
      if (status_[i].state == RunState::waiting || status_[i].state == RunState::done) continue;
      if (status_[i].state == RunState::running) {
        status_[i] = read_status(planned(i));
        status_[i].state = RunState::running;
      }
      table += status_line(planned(i), status_[i], name_width_) + "\x1b[K\n";
      ++lines;
    }
    table += fmt::format("{}; {}\x1b[K\n\x1b[J", status_sums(status_), progress());
    if (drawn_lines_ > 0) fmt::print("\x1b[{}A", drawn_lines_);
    fmt::print("{}", table);
    std::fflush(stdout);
    drawn_lines_ = lines;
  }

  const SweepPlan& plan_;
  const SweepOptions& options_;
  const io::FolderLock& lock_;
  SweepClock& clock_;
  Work later_;
  EarlyStopper hopeless_;
  std::vector<RunStatus> status_;
  std::vector<double> flops_;  // of whole runs
  std::vector<int> starts_;    // in a row, without progress
  std::deque<size_t> queue_;
  std::vector<Active> active_;
  std::vector<bool> slots_;  // taken
  bool stopping_ = false;
  size_t name_width_ = 0;
  int drawn_lines_ = 0;
  Clock::time_point drawn_at_ = Clock::now(), looked_at_{};
};

// The runs of a sweep that was killed save and end. One that goes on is not this sweep's to start.
void wait_for_runs(const SweepPlan& plan) {
  const auto begin = Clock::now();
  for (const PlannedRun& run : plan.runs) {
    if (has_ended(read_status(run).state)) continue;
    while (const std::optional<io::LockHolder> holder = io::FolderLock::holder(run.config.run.output_dir)) {
      stop::check();
      if (seconds_since(begin) > 30)
        throw Error("{}: {} works on this run, expected nobody; stop it, or let it end", run.id.name,
                    holder->to_string());
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
}

std::string job_name(const SweepPlan& plan, const PlannedRun& run) {
  return fmt::format("{}/{}", plan.name, run.id.name);
}

// Job name -> state, of this user's jobs; empty where there is no Slurm.
std::map<std::string, std::string> slurm_queue() {
  std::map<std::string, std::string> jobs;
  const CommandOutput queue = run_command({"squeue", "--me", "--noheader", "--format=%j %T"});
  if (queue.exit_status != 0) return jobs;
  std::istringstream in(queue.text);
  for (std::string name, state; in >> name >> state;) jobs[name] = state;
  return jobs;
}

void say_all(const std::string& text) {
  fmt::print("{}", text);
  std::fflush(stdout);
}

// Trains rung after rung until every cell's value is chosen, and gives it to the study's runs. Ended early when runs failed, or on request.
SweepEnd tune(SweepPlan& plan, const SweepOptions& options, const io::FolderLock& lock, SweepClock& clock) {
  for (;;) {
    const std::vector<CellTuning> tuning = read_tuning(plan);
    write_tuning(plan, tuning);
    for (size_t cell = 0; cell < tuning.size(); ++cell)
      if (tuning[cell].is_failed)
        throw Error("tune: {}: every {} diverged, expected one that trains (tuning.md in {})",
                    plan.tune->cells[cell].name, plan.tune->key, plan.folder.string());
    if (is_complete(tuning)) {
      apply_tuning(plan, tuning);
      say_all(tuning_text(plan, tuning) + "\n");
      for (const std::string& warning : tuning_warnings(plan, tuning)) log::warning("{}", warning);
      return {};
    }
    const SweepPlan rung = next_rung(plan, tuning);
    wait_for_runs(rung);
    write_configs(rung);
    Work later = later_tuning_work(plan, tuning);
    for (const PlannedRun& run : plan.runs) later[run.id.size] += run_flops(run.config);
    say_all(fmt::format("tuning {}: {} run{} of this rung are open\n", plan.tune->key, rung.runs.size(),
                        rung.runs.size() == 1 ? "" : "s"));
    const SweepEnd end = Runner(rung, options, lock, clock, std::move(later)).run();
    if (end.is_stopped || end.failed > 0) return end;
  }
}

int submit_runs(const SweepPlan& plan, const SweepOptions& options) {
  std::error_code error;
  fs::create_directories(plan.folder / "slurm", error);
  if (error) throw Error("{}: can't create: {}", (plan.folder / "slurm").string(), error.message());
  ::setenv("LAMINA_BINARY", options.program.c_str(), /*overwrite=*/0);  // for launch/slurm.sbatch; sbatch passes it on
  const std::map<std::string, std::string> jobs = slurm_queue();
  int submitted = 0;
  for (const PlannedRun& run : plan.runs) {
    const RunState state = read_status(run).state;
    if (jobs.count(job_name(plan, run)) > 0 || has_ended(state) || state == RunState::running) continue;
    std::vector<std::string> words = {"sbatch",
                                      "--parsable",
                                      "--job-name=" + job_name(plan, run),
                                      "--output=" + log_file(plan, run).string(),
                                      "--open-mode=append",
                                      fmt::format("--ntasks={}", plan.ranks)};
    words.insert(words.end(), options.slurm_options.begin(), options.slurm_options.end());
    words.insert(words.end(), {options.slurm_script, config_file(plan, run).string()});
    const CommandOutput done = run_command(words);
    if (done.exit_status != 0)
      throw Error("{}: sbatch failed with exit status {}: {}", run.id.name, done.exit_status, done.text);
    io::write_file_atomically(plan.folder / "slurm" / run.id.name, done.text);
    ++submitted;
  }
  return submitted;
}

}  // namespace

void check_sweep(const SweepPlan& plan) {
  for (const PlannedRun& run : plan.runs) {
    try {
      Config config = run.config;
      resolve_data_parallel(config, plan.ranks);
      if (config.model.vocab_size == 0) config.model.vocab_size = data_vocab_size(config.data);
      const Sampler sampler(config);
      if (!run.awaits_tuning) check_same_run(run);
    } catch (const Error& failure) {
      throw Error("{}: {}", run.id.name, failure.what());
    }
  }
}

std::vector<RunStatus> sweep_status(const SweepPlan& plan) {
  json state;
  if (fs::exists(state_file(plan.folder)))
    state = json::parse(io::read_file(state_file(plan.folder)), nullptr, /*allow_exceptions=*/false);
  const json runs = state.is_object() ? state.value("runs", json::object()) : json::object();
  const bool is_running = io::FolderLock::holder(plan.folder).has_value();
  const std::map<std::string, std::string> jobs =
      fs::exists(plan.folder / "slurm") ? slurm_queue() : std::map<std::string, std::string>();
  std::vector<RunStatus> all = stored_status(plan);
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    const PlannedRun& run = plan.runs[i];
    RunStatus& status = all[i];
    const auto job = jobs.find(job_name(plan, run));
    const json one = runs.value(run.id.name, json::object());
    const bool is_open = !has_ended(status.state);
    if (is_open && job != jobs.end()) {
      status.state = job->second == "RUNNING" || job->second == "COMPLETING" ? RunState::running : RunState::waiting;
      status.reason = "Slurm: " + job->second;
    } else if (is_open && status.state != RunState::running) {
      if (one.value("state", "") == "failed") {
        status.state = RunState::failed;
        status.reason = one.value("reason", "");
      } else if (one.value("state", "") == "running" && is_running) {
        status.state = RunState::running;
      }
    }
  }
  return all;
}

SweepEnd run_sweep(SweepPlan plan, const SweepOptions& options) {
  LAMINA_CHECK(options.jobs >= 1 && !options.program.empty());
  io::FolderLock lock(plan.folder, "lamina sweep");
  lock.take();
  double total = plan.tune ? sum(tuning_work(plan)) : 0;
  for (const PlannedRun& run : plan.runs) total += run_flops(run.config);
  SweepClock clock(total, options.jobs);
  if (plan.tune) {
    const SweepEnd end = tune(plan, options, lock, clock);
    if (end.is_stopped || end.failed > 0) return end;
    check_sweep(plan);  // the study's folders, now that the values are known
  }
  wait_for_runs(plan);
  write_plan(plan);
  clock.measured(plan, stored_status(plan));
  return Runner(plan, options, lock, clock, {}).run();
}

int submit_sweep(SweepPlan plan, const SweepOptions& options) {
  if (plan.early_stop) throw Error("early_stop: found it with --slurm, expected none: nobody watches the jobs");
  if (plan.tune) {
    const std::vector<CellTuning> tuning = read_tuning(plan);
    fs::create_directories(plan.folder);
    write_tuning(plan, tuning);
    if (!is_complete(tuning)) {
      const SweepPlan rung = next_rung(plan, tuning);
      write_configs(rung);
      return submit_runs(rung, options);
    }
    apply_tuning(plan, tuning);
    check_sweep(plan);
  }
  write_plan(plan);
  return submit_runs(plan, options);
}

}  // namespace lamina::study
