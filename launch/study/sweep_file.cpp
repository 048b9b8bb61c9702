#include "launch/study/sweep_file.h"

#include <fmt/ranges.h>

#include <algorithm>
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

// Keys that stand together under a name: a size of the ladder, a choice of an axis.
struct Choice {
  std::string name;
  std::string origin;
  std::string file;         // an experiment file in place of the base; of sizes only
  std::vector<Entry> keys;  // "key.path" and its value
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
    const std::vector<uint64_t> seeds = read_seeds();
    for (const Choice& size : sizes)
      for (const Choice& variant : variants)
        for (const uint64_t seed : seeds) add_run(plan, size, variant, seed);
    return plan;
  }

 private:
  void check_keys() const {
    static const std::vector<std::string> known = {"name",   "output_dir", "base",  "set",
                                                   "ladder", "axes",       "seeds", "ranks"};
    if (root_.kind != Value::Kind::section)
      throw Error("{}: found {}, expected a sweep's sections", name_, root_.found());
    for (const Entry& entry : root_.entries) {
      if (std::find(known.begin(), known.end(), entry.key) != known.end()) continue;
      const auto near = nearest_name(entry.key, known);
      throw Error("{}: {}: unknown key, {}", entry.origin, entry.key,
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
      std::vector<Choice> product;
      for (const Choice& variant : variants)
        for (const Choice& choice : read_axis(axis)) {
          Choice both = variant;
          if (!both.name.empty()) both.name += '-';
          both.name += choice.name;
          both.origin = choice.origin;
          both.keys.insert(both.keys.end(), choice.keys.begin(), choice.keys.end());
          product.push_back(std::move(both));
        }
      variants = std::move(product);
    }
    return variants;
  }

  std::vector<uint64_t> read_seeds() {
    const Entry* entry = root_.find("seeds");
    if (!entry) return {1};
    if (entry->value.kind != Value::Kind::list || entry->value.items.empty())
      throw Error("{}: seeds: found {}, expected a list of integers", entry->origin,
                  entry->value.kind == Value::Kind::list ? "an empty list" : entry->value.found());
    std::vector<uint64_t> seeds;
    for (const Value& item : entry->value.items) {
      const uint64_t seed = integer_of(item, item.origin + ": seeds", 0);
      if (std::find(seeds.begin(), seeds.end(), seed) != seeds.end())
        throw Error("{}: seeds: found {} twice, expected each seed once", item.origin, seed);
      seeds.push_back(seed);
    }
    return seeds;
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
        schema::replace_key(root, entry.key, entry.value, entry.origin);
      }
    own_key(root, "run.name", run.id.name);
    own_key(root, "run.output_dir", (plan.folder / run.id.name).string());
    own_key(root, "run.seed", fmt::format("{}", seed));
    run.config = decode_config(std::move(root), name_);
    try {
      model::update_rules(run.config);
    } catch (const Error& failure) {
      throw Error("{}: run {}: {}", variant.origin.empty() ? name_ : variant.origin, run.id.name, failure.what());
    }
    plan.runs.push_back(std::move(run));
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
  std::set<std::string> names_;
  std::map<std::string, Value> experiments_;  // by path
};

}  // namespace

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
