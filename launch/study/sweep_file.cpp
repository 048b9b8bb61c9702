#include "launch/study/sweep_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "configs/schema/decode.h"
#include "configs/schema/files.h"
#include "configs/schema/nearest.h"
#include "configs/schema/value.h"
#include "core/base/error.h"
#include "model/update_rules.h"

namespace lamina::study {
namespace {

namespace fs = std::filesystem;
using schema::Entry;
using schema::Value;

// Keys that stand together under a name: a size of the ladder, a choice of an axis, a variant.
struct Choice {
  std::string name;
  std::string origin;
  std::string file;                     // an experiment file in place of the base; of sizes only
  std::vector<Entry> keys;              // "key.path" and its value
  std::vector<std::string> parts = {};  // of a variant: the axes' choices
};

class Reader {
 public:
  Reader(const std::string& yaml, std::string name) : name_(std::move(name)), root_(schema::parse_yaml(yaml, name_)) {}

  SweepPlan read() {
    check_keys();
    SweepPlan plan;
    plan.name = checked_name(text("name"), place("name"));
    const Entry* output = root_.find("output_dir");
    plan.folder = output ? text("output_dir") : "runs/" + plan.name;
    plan.ranks = static_cast<int>(integer(root_.find("ranks"), 1, 1));
    if (const Entry* set = root_.find("set")) set_ = keys_of(set->value, "set");
    const std::vector<Choice> sizes = read_ladder(), variants = read_variants();
    const Entry* seeds = root_.find("seeds");
    const std::vector<uint64_t> seed_list = seeds ? read_seeds(*seeds) : std::vector<uint64_t>{1};
    if (const Entry* tune = root_.find("tune")) plan.tune = read_tune(*tune);
    for (const Choice& size : sizes)
      for (const Choice& variant : variants)
        for (const uint64_t seed : seed_list) add_run(plan, size, variant, seed);
    if (plan.tune) finish_tune(plan, root_.find("tune")->value);
    if (const Entry* stop = root_.find("early_stop")) plan.early_stop = read_early_stop(plan, *stop);
    return plan;
  }

 private:
  void check_keys() const {
    if (root_.kind != Value::Kind::section)
      throw Error("{}: found {}, expected a sweep's sections", name_, root_.found());
    check_keys(root_, "",
               {"name", "output_dir", "base", "set", "ladder", "axes", "seeds", "ranks", "tune", "early_stop"});
  }

  // `prefix` is the section's name with a dot.
  static void check_keys(const Value& section, const std::string& prefix, const std::vector<std::string>& known) {
    for (const Entry& entry : section.entries) {
      if (std::find(known.begin(), known.end(), entry.key) != known.end()) continue;
      const auto near = nearest_name(entry.key, known);
      throw Error("{}: {}{}: unknown key, {}", entry.origin, prefix, entry.key,
                  near ? "did you mean " + *near + "?" : fmt::format("expected one of {}", fmt::join(known, ", ")));
    }
  }

  std::string place(const char* key) {
    const Entry* entry = root_.find(key);
    return entry ? fmt::format("{}: {}", entry->origin, key) : fmt::format("{}: {}", name_, key);
  }

  std::string text(const char* key) {
    const Entry* entry = root_.find(key);
    if (!entry) throw Error("{}: {}: missing, expected a text", name_, key);
    if (entry->value.kind != Value::Kind::scalar || entry->value.scalar.empty())
      throw Error("{}: {}: found {}, expected a text", entry->origin, key, entry->value.found());
    return entry->value.scalar;
  }

  static uint64_t integer_of(const Value& value, const std::string& place, uint64_t least) {
    const std::string& digits = value.scalar;
    const bool is_integer = value.kind == Value::Kind::scalar && !value.quoted && !digits.empty() &&
                            digits.size() < 19 && digits.find_first_not_of("0123456789") == std::string::npos;
    if (!is_integer || std::stoull(digits) < least)
      throw Error("{}: found {}, expected an integer, at least {}", place, value.found(), least);
    return std::stoull(digits);
  }

  static uint64_t integer(const Entry* entry, uint64_t absent, uint64_t least) {
    if (!entry) return absent;
    return integer_of(entry->value, fmt::format("{}: {}", entry->origin, entry->key), least);
  }

  // Names become folders, and are joined by '-'.
  static std::string checked_name(const std::string& name, const std::string& place) {
    const auto allowed = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
             c == '+' || c == '-';
    };
    if (name.empty() || name.front() == '.' || name.front() == '-' || !std::all_of(name.begin(), name.end(), allowed))
      throw Error("{}: found '{}', expected a name of letters, digits and _ + . - that can be a folder's", place, name);
    return name;
  }

  static std::vector<Entry> keys_of(const Value& value, const std::string& what) {
    if (value.kind == Value::Kind::null) return {};
    if (value.kind != Value::Kind::section)
      throw Error("{}: {}: found {}, expected a section of keys like train.num_steps: 100", value.origin, what,
                  value.found());
    return value.entries;
  }

  std::vector<Choice> read_ladder() {
    const Entry* ladder = root_.find("ladder");
    if (!ladder) {
      text("base");  // there must be one
      return {Choice{}};
    }
    if (ladder->value.kind != Value::Kind::section || ladder->value.entries.empty())
      throw Error("{}: ladder: found {}, expected named sizes, each an experiment file or a section of keys",
                  ladder->origin,
                  ladder->value.kind == Value::Kind::section ? "an empty section" : ladder->value.found());
    std::vector<Choice> sizes;
    for (const Entry& entry : ladder->value.entries) {
      Choice size{checked_name(entry.key, entry.origin + ": ladder"), entry.origin, "", {}};
      if (entry.value.kind == Value::Kind::scalar) {
        size.file = entry.value.scalar;
      } else {
        text("base");
        size.keys = keys_of(entry.value, "ladder." + entry.key);
      }
      sizes.push_back(std::move(size));
    }
    const bool needs_base =
        std::any_of(sizes.begin(), sizes.end(), [](const Choice& size) { return size.file.empty(); });
    if (const Entry* base = root_.find("base"); base && !needs_base)
      throw Error("{}: base: has no effect, every size of the ladder is an experiment file; remove it", base->origin);
    return sizes;
  }

  static std::vector<Choice> read_axis(const Entry& axis) {
    std::vector<Choice> choices;
    if (axis.value.kind == Value::Kind::section) {
      for (const Entry& entry : axis.value.entries)
        choices.push_back({checked_name(entry.key, entry.origin + ": axes." + axis.key), entry.origin, "",
                           keys_of(entry.value, fmt::format("axes.{}.{}", axis.key, entry.key))});
    } else if (axis.value.kind == Value::Kind::list) {
      const std::string last = axis.key.substr(axis.key.rfind('.') + 1);
      for (const Value& value : axis.value.items) {
        const std::string place = fmt::format("{}: axes.{}", value.origin, axis.key);
        if (value.kind != Value::Kind::scalar && value.kind != Value::Kind::null)
          throw Error("{}: found {}, expected a value; choices of several keys need names", place, value.found());
        const std::string text = value.kind == Value::Kind::null ? "null" : value.scalar;
        choices.push_back({checked_name(fmt::format("{}_{}", last, text), place),
                           value.origin,
                           "",
                           {Entry{axis.key, value.origin, value}}});
      }
    }
    if (choices.empty())
      throw Error("{}: axes.{}: found {}, expected named choices or a list of values", axis.origin, axis.key,
                  axis.value.kind == Value::Kind::list ? "an empty list" : axis.value.found());
    return choices;
  }

  // Every combination of the axes' choices; the last axis varies fastest.
  std::vector<Choice> read_variants() {
    std::vector<Choice> variants{Choice{}};
    const Entry* axes = root_.find("axes");
    if (!axes) return variants;
    for (const Entry& axis : keys_of(axes->value, "axes")) {
      axes_.push_back(axis.key);
      std::vector<Choice> product;
      for (const Choice& variant : variants)
        for (const Choice& choice : read_axis(axis)) {
          Choice both = variant;
          if (!both.name.empty()) both.name += '-';
          both.name += choice.name;
          both.parts.push_back(choice.name);
          both.origin = choice.origin;
          both.keys.insert(both.keys.end(), choice.keys.begin(), choice.keys.end());
          product.push_back(std::move(both));
        }
      variants = std::move(product);
    }
    return variants;
  }

  static const std::vector<Value>& items_of(const Entry& entry, const std::string& key, const char* expected) {
    if (entry.value.kind != Value::Kind::list || entry.value.items.empty())
      throw Error("{}: {}: found {}, expected {}", entry.origin, key,
                  entry.value.kind == Value::Kind::list ? "an empty list" : entry.value.found(), expected);
    return entry.value.items;
  }

  static std::vector<uint64_t> read_seeds(const Entry& entry, const std::string& key = "seeds") {
    std::vector<uint64_t> seeds;
    for (const Value& item : items_of(entry, key, "a list of integers")) {
      const uint64_t seed = integer_of(item, fmt::format("{}: {}", item.origin, key), 0);
      if (std::find(seeds.begin(), seeds.end(), seed) != seeds.end())
        throw Error("{}: {}: found {} twice, expected each seed once", item.origin, key, seed);
      seeds.push_back(seed);
    }
    return seeds;
  }

  // A number in (0, most], or with `most_too` false in (0, most).
  static double share_of(const Value& value, const std::string& key, double most, bool most_too) {
    const std::optional<double> number =
        value.kind == Value::Kind::scalar && !value.quoted ? parse_number(value.scalar) : std::nullopt;
    if (!number || !(*number > 0) || *number > most || (!most_too && *number == most))
      throw Error("{}: {}: found {}, expected a number above 0{}", value.origin, key, value.found(),
                  std::isinf(most) ? "" : fmt::format(" and {} {}", most_too ? "at most" : "below", most));
    return *number;
  }

  TunePlan read_tune(const Entry& entry) {
    if (entry.value.kind != Value::Kind::section)
      throw Error("{}: tune: found {}, expected a section with key and values", entry.origin, entry.value.found());
    Value section = entry.value;
    check_keys(section, "tune.", {"key", "values", "per", "seeds", "rungs", "keep", "schedule"});
    TunePlan tune;
    const Entry* key = section.find("key");
    if (!key || key->value.kind != Value::Kind::scalar || key->value.scalar.empty())
      throw Error("{}: tune.key: found {}, expected a key like train.optimizer.lr", key ? key->origin : entry.origin,
                  key ? key->value.found() : "nothing");
    tune.key = key->value.scalar;
    if (tune.key.starts_with("run.") || tune.key == "train.num_steps")
      throw Error("{}: tune.key: found {}, expected a key that a shorter run can tell about", key->origin, tune.key);
    const Entry* values = section.find("values");
    if (!values) throw Error("{}: tune.values: missing, expected a list of two values or more", entry.origin);
    for (const Value& value : items_of(*values, "tune.values", "a list of two values or more")) add_value(tune, value);
    if (tune.values.size() < 2) throw Error("{}: tune.values: found one value, expected two or more", values->origin);
    const Entry* seeds = section.find("seeds");
    tune.seeds = seeds ? read_seeds(*seeds, "tune.seeds") : std::vector<uint64_t>{1001};
    tune.rungs = {0.25, 0.5, 1.0};
    if (const Entry* rungs = section.find("rungs")) {
      tune.rungs.clear();
      for (const Value& rung : items_of(*rungs, "tune.rungs", "a list of shares of train.num_steps")) {
        tune.rungs.push_back(share_of(rung, "tune.rungs", 1, /*most_too=*/true));
        if (tune.rungs.size() > 1 && !(tune.rungs.back() > tune.rungs[tune.rungs.size() - 2]))
          throw Error("{}: tune.rungs: found {}, expected more than the one before", rung.origin, rung.scalar);
      }
    }
    if (const Entry* keep = section.find("keep")) tune.keep = share_of(keep->value, "tune.keep", 1, /*most_too=*/false);
    return tune;
  }

  void add_value(TunePlan& tune, const Value& value) {
    if (value.kind != Value::Kind::scalar)
      throw Error("{}: tune.values: found {}, expected a value", value.origin, value.found());
    for (const Value& other : values_) {
      const std::optional<double> one = parse_number(other.scalar), two = parse_number(value.scalar);
      if (other.scalar == value.scalar || (one && two && *one == *two))
        throw Error("{}: tune.values: found {} twice, expected each value once", value.origin, value.scalar);
    }
    tune.values.push_back(checked_name(value.scalar, value.origin + ": tune.values"));
    values_.push_back(value);
  }

  // What hangs on the runs.
  void finish_tune(SweepPlan& plan, Value section) {
    TunePlan& tune = *plan.tune;
    tune.cells = read_cells(plan, section, "tune");
    const auto plateau = [](const Config& config) {  // the learning rate does not hang on the length
      const LrScheduleConfig& lr = config.train.lr_schedule;
      return lr.name == LrScheduleName::constant || (lr.name == LrScheduleName::wsd && lr.decay_steps == 0);
    };
    const bool all_plateau = std::all_of(plan.runs.begin(), plan.runs.end(), [&](const PlannedRun& run) {
      return std::all_of(run.candidates.begin(), run.candidates.end(), plateau);
    });
    tune.schedule = all_plateau ? RungSchedule::continued : RungSchedule::shortened;
    const Entry* schedule = section.find("schedule");
    if (schedule) {
      const std::string& name = schedule->value.scalar;
      if (name != "shortened" && name != "continued")
        throw Error("{}: tune.schedule: found {}, expected shortened or continued", schedule->origin,
                    schedule->value.found());
      tune.schedule = name == "continued" ? RungSchedule::continued : RungSchedule::shortened;
    }
    for (const PlannedRun& run : plan.runs)
      for (const Config& config : run.candidates) check_rungs(tune, config, section, schedule);
  }

  static void check_rungs(const TunePlan& tune, const Config& config, const Value& section, const Entry* schedule) {
    const TrainConfig& train = config.train;
    if (config.data.validation.path.empty())
      throw Error("{}: tune: found no data.validation in run {}, expected one: values are compared by validation loss",
                  section.origin, config.run.name);
    int64_t before = 0;
    for (const double rung : tune.rungs) {
      const int64_t steps = rung_steps(config, rung);
      if (steps <= before)
        throw Error("{}: tune.rungs: found two rungs at step {} of run {}, expected rungs further apart",
                    section.origin, steps, config.run.name);
      before = steps;
      if (tune.schedule != RungSchedule::continued || steps == train.num_steps) continue;
      const LrScheduleConfig& lr = train.lr_schedule;
      if (lr.name == LrScheduleName::cosine || tune.key.starts_with("train.lr_schedule."))
        throw Error(
            "{}: tune.schedule: found continued with {}, expected shortened: its rates hang on the run's length",
            schedule ? schedule->origin : section.origin,
            lr.name == LrScheduleName::cosine ? "the cosine schedule" : tune.key);
      if (steps < lr.warmup_steps)
        throw Error("{}: tune.rungs: found a rung at step {} of run {}, expected none inside its {} steps of warm-up",
                    section.origin, steps, config.run.name, lr.warmup_steps);
      if (lr.name == LrScheduleName::wsd && steps > train.num_steps - lr.decay_steps)
        throw Error(
            "{}: tune.rungs: found a rung at step {} of run {}, expected none inside its decay, which begins after {}",
            section.origin, steps, config.run.name, train.num_steps - lr.decay_steps);
    }
  }

  EarlyStop read_early_stop(const SweepPlan& plan, const Entry& entry) {
    if (entry.value.kind != Value::Kind::section)
      throw Error("{}: early_stop: found {}, expected a section with a margin", entry.origin, entry.value.found());
    Value section = entry.value;
    check_keys(section, "early_stop.", {"margin", "after", "per"});
    EarlyStop stop;
    const Entry* margin = section.find("margin");
    if (!margin)
      throw Error("{}: early_stop.margin: missing, expected a difference of validation losses", entry.origin);
    stop.margin = share_of(margin->value, "early_stop.margin", std::numeric_limits<double>::infinity(), true);
    if (const Entry* after = section.find("after")) stop.after = share_of(after->value, "early_stop.after", 1, false);
    stop.cells = read_cells(plan, section, "early_stop");
    for (const PlannedRun& run : plan.runs)
      if (run.config.data.validation.path.empty() || run.config.data.validation.interval == 0)
        throw Error(
            "{}: early_stop: found {} in run {}, expected validations on the way: they tell which run is hopeless",
            entry.origin,
            run.config.data.validation.path.empty() ? "no data.validation" : "data.validation.interval: 0",
            run.id.name);
    return stop;
  }

  // The runs by what `per` names: the ladder and all axes when it is not given.
  std::vector<SweepCell> read_cells(const SweepPlan& plan, Value& section, const std::string& name) {
    std::vector<std::string> names = {"ladder"};
    names.insert(names.end(), axes_.begin(), axes_.end());
    std::set<std::string> per(names.begin(), names.end());
    if (const Entry* entry = section.find("per")) {
      if (entry->value.kind != Value::Kind::list)
        throw Error("{}: {}.per: found {}, expected a list of axes, and ladder", entry->origin, name,
                    entry->value.found());
      per.clear();
      for (const Value& item : entry->value.items) {
        if (std::find(names.begin(), names.end(), item.scalar) == names.end())
          throw Error("{}: {}.per: found {}, expected some of {}", item.origin, name, item.found(),
                      fmt::join(names, ", "));
        per.insert(item.scalar);
      }
    }
    std::vector<SweepCell> cells;
    for (size_t i = 0; i < plan.runs.size(); ++i) {
      std::vector<std::string> parts;
      if (per.contains("ladder") && !plan.runs[i].id.size.empty()) parts.push_back(plan.runs[i].id.size);
      for (size_t axis = 0; axis < axes_.size(); ++axis)
        if (per.contains(axes_[axis])) parts.push_back(parts_[i][axis]);
      const std::string cell = parts.empty() ? "all" : fmt::format("{}", fmt::join(parts, "-"));
      const auto same =
          std::find_if(cells.begin(), cells.end(), [&](const SweepCell& other) { return other.name == cell; });
      if (same == cells.end())
        cells.push_back({cell, {i}});
      else
        same->runs.push_back(i);
    }
    return cells;
  }

  const Value& experiment(const std::string& file, const std::string& place) {
    const fs::path path = fs::path(file).is_absolute() ? fs::path(file) : fs::path(name_).parent_path() / file;
    const std::string key = path.lexically_normal().string();
    auto found = experiments_.find(key);
    if (found == experiments_.end()) {
      if (!fs::is_regular_file(path)) throw Error("{}: {}: no such file, expected an experiment", place, key);
      found = experiments_.emplace(key, schema::load_tree(key)).first;
    }
    return found->second;
  }

  void add_run(SweepPlan& plan, const Choice& size, const Choice& variant, uint64_t seed) {
    PlannedRun run;
    run.id.size = size.name;
    run.id.variant = variant.name;
    run.id.seed = seed;
    std::vector<std::string> parts;
    for (const std::string& part : {size.name, variant.name})
      if (!part.empty()) parts.push_back(part);
    parts.push_back(fmt::format("s{}", seed));
    run.id.name = fmt::format("{}", fmt::join(parts, "-"));
    if (!names_.insert(run.id.name).second)
      throw Error("{}: found two runs named {}, expected other names of sizes or choices", variant.origin, run.id.name);

    const std::string file = size.file.empty() ? text("base") : size.file;
    Value root = experiment(file, size.file.empty() ? place("base") : size.origin + ": ladder." + size.name);
    const std::vector<Entry>* const in_order[] = {&set_, &size.keys, &variant.keys};
    for (const std::vector<Entry>* keys : in_order)
      for (const Entry& entry : *keys) {
        if (entry.key == "run.name" || entry.key == "run.output_dir" || entry.key == "run.seed")
          throw Error("{}: {}: is the sweep's own, expected another key (seeds are listed under seeds)", entry.origin,
                      entry.key);
        if (plan.tune && entry.key == plan.tune->key && keys != &set_)
          throw Error("{}: {}: is what tune chooses, expected it there only", entry.origin, entry.key);
        schema::replace_key(root, entry.key, entry.value, entry.origin);
      }
    own_key(root, "run.name", run.id.name);
    own_key(root, "run.output_dir", (plan.folder / run.id.name).string());
    own_key(root, "run.seed", fmt::format("{}", seed));
    for (const Value& value : values_) {
      Value tuned = root;
      schema::replace_key(tuned, plan.tune->key, value, value.origin);
      run.candidates.push_back(decode(std::move(tuned), value.origin, run.id.name));
    }
    const std::string& origin = variant.origin.empty() ? name_ : variant.origin;
    run.awaits_tuning = !run.candidates.empty();
    run.config = run.candidates.empty() ? decode(std::move(root), origin, run.id.name) : run.candidates.front();
    plan.runs.push_back(std::move(run));
    parts_.push_back(variant.parts);
  }

  Config decode(Value root, const std::string& origin, const std::string& run) const {
    Config config = decode_config(std::move(root), name_);
    try {
      model::update_rules(config);
    } catch (const Error& failure) {
      throw Error("{}: run {}: {}", origin, run, failure.what());
    }
    return config;
  }

  void own_key(Value& root, const char* key, const std::string& value) const {
    Value scalar;
    scalar.kind = Value::Kind::scalar;
    scalar.origin = name_;
    scalar.scalar = value;
    schema::replace_key(root, key, std::move(scalar), name_);
  }

  std::string name_;
  Value root_;
  std::vector<Entry> set_;
  std::vector<std::string> axes_;
  std::vector<Value> values_;  // of tune
  std::set<std::string> names_;
  std::vector<std::vector<std::string>> parts_;  // [run][axis]
  std::map<std::string, Value> experiments_;     // by path
};

}  // namespace

int64_t rung_steps(const Config& config, double share) {
  return std::max<int64_t>(1, std::llround(share * static_cast<double>(config.train.num_steps)));
}

std::optional<double> parse_number(const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool is_number = error == std::errc() && end == text.data() + text.size() && std::isfinite(number);
  return is_number ? std::optional(number) : std::nullopt;
}

SweepData SweepPlan::data() const {
  SweepData data;
  data.folder = folder;
  data.name = name;
  for (const PlannedRun& run : runs) data.runs.push_back(run.id);
  return data;
}

SweepPlan load_sweep(const fs::path& file) {
  return parse_sweep(read_config_text(file.string()), file.string());
}

SweepPlan parse_sweep(const std::string& yaml, const std::string& name) {
  return Reader(yaml, name).read();
}

}  // namespace lamina::study
