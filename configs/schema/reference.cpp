#include "configs/schema/reference.h"

#include "configs/schema/keys.h"
#include "core/base/error.h"

namespace lamina {
namespace schema {

bool Rule::allows(double value) const {
  if (min && (min_open ? value <= *min : value < *min)) return false;
  return !max || !(max_open ? value >= *max : value > *max);
}

std::string Rule::range() const {
  std::string text;
  if (min) text = fmt::format("{} {}", min_open ? "above" : "at least", *min);
  if (max) text += fmt::format("{}{} {}", min ? " and " : "", max_open ? "below" : "at most", *max);
  return text;
}

namespace {

class KeyCollector {
 public:
  explicit KeyCollector(std::string path, std::vector<std::string>& keys) : path_(std::move(path)), keys_(keys) {}
  template <class T>
  void key(const char* name, T&, const Rule&, const char*) {
    keys_.push_back(path_ + name);
  }
  template <class T>
  void section(const char* name, T& target, const char*) {
    KeyCollector inner(path_ + name + ".", keys_);
    describe(inner, target);
  }
  template <class T>
  void list(const char* name, std::vector<T>&, const Rule&, const char*) {
    T item;
    KeyCollector inner(path_ + name + "[].", keys_);
    describe(inner, item);
  }

 private:
  std::string path_;
  std::vector<std::string>& keys_;
};

// One section's table; the sections inside it follow as tables of their own.
class Documenter {
 public:
  explicit Documenter(std::string path) : path_(std::move(path)) {}

  template <class T>
  void key(const char* name, const T& field, const Rule& rule, const char* meaning) {
    const std::string standard = rule.is_required ? "required" : default_of(field, rule);
    rows_ += fmt::format("| `{}` | {} | {} | {} |\n", name, valid(field, rule), standard, meaning);
  }

  template <class T>
  void section(const char* name, T& target, const char* meaning) {
    below(path_of(name), name, target, meaning);
  }

  template <class T>
  void list(const char* name, std::vector<T>&, const Rule& rule, const char* meaning) {
    T item;
    rows_ += fmt::format("| `{}` | list of sections | {} | See `{}[]` below. |\n", name,
                         rule.is_required ? "required" : "empty", path_of(name));
    below(path_of(name) + "[]", name, item, meaning);
  }

  std::string page() const {
    const std::string header = "| key | value | default | meaning |\n|---|---|---|---|\n";
    return (rows_.empty() ? "" : header + rows_ + "\n") + below_;
  }

 private:
  std::string path_of(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

  template <class T>
  void below(const std::string& path, const char*, T& target, const char* meaning) {
    Documenter inner(path);
    describe(inner, target);
    below_ += fmt::format("{} `{}`\n\n{}\n\n{}", path_.empty() ? "##" : "###", path, meaning, inner.page());
  }

  template <class T>
  static std::string valid(const T&, const Rule& rule) {
    if constexpr (std::is_enum_v<T>) {
      std::string names;
      for (const auto& [name, item] : enum_names<T>::value)
        names += fmt::format("{}`{}`", names.empty() ? "" : ", ", name);
      return names;
    } else if constexpr (std::is_same_v<T, bool>) {
      return "`true`, `false`";
    } else {
      const std::string range = rule.range();
      const char* type = std::is_integral_v<T> ? "integer" : std::is_floating_point_v<T> ? "number" : "text";
      return range.empty() ? type : fmt::format("{}, {}", type, range);
    }
  }
  template <class T>
  static std::string valid(const std::optional<T>&, const Rule& rule) {
    return valid(T(), rule);
  }
  template <class T>
  static std::string valid(const std::vector<T>&, const Rule& rule) {
    return (rule.empty_word.empty() ? "" : "`" + rule.empty_word + "`, or ") + "a list, each " + valid(T(), rule);
  }

  template <class T>
  static std::string default_of(const T& field, const Rule& rule) {
    if (rule.default_text.starts_with("required")) return rule.default_text;
    if (!rule.default_text.empty()) return "`" + rule.default_text + "`";
    if constexpr (std::is_enum_v<T>) {
      for (const auto& [name, item] : enum_names<T>::value)
        if (item == field) return fmt::format("`{}`", name);
      return "?";
    } else if constexpr (std::is_same_v<T, std::string>) {
      return field.empty() ? "empty" : "`" + field + "`";
    } else {
      return fmt::format("`{}`", field);
    }
  }
  template <class T>
  static std::string default_of(const std::optional<T>& field, const Rule& rule) {
    return field || !rule.default_text.empty() ? default_of(field.value_or(T()), rule) : "absent";
  }
  template <class T>
  static std::string default_of(const std::vector<T>&, const Rule& rule) {
    return rule.empty_word.empty() ? "absent" : "`" + rule.empty_word + "`";
  }

  std::string path_, rows_, below_;
};

}  // namespace
}  // namespace schema

std::string configuration_reference() {
  Config config;
  schema::Documenter documenter("");
  schema::describe(documenter, config);
  return "# Configuration\n\n"
         "An experiment is one YAML file. Every key is listed here with its range and default; `configs/tiny.yaml` is "
         "a complete\n"
         "example. An unknown key, a wrong type, a value out of range, or a key that would have no effect (unless it "
         "stands "
         "at its\n"
         "default) is an error that names the file and the line. `lamina check CONFIG.yaml` finds everything that can "
         "be wrong without running.\n\n"
         "On the command line, `key.path=value` replaces one key (`train.num_steps=100`, `data.train.0.weight=2`), "
         "and\n"
         "`key.path=null` removes it, so that its default holds. Values are YAML, lists included:\n"
         "`'data.train=[{path: data/english}]'`.\n\n"
         "`include: base.yaml`, or a list of files, at the top of a file takes over their contents; paths are relative "
         "to the file.\n"
         "Sections are merged key by key; a later file overrides an earlier one, and the including file overrides "
         "both. A key without\na value removes it. In paths `~/`, `$NAME` and `${NAME}` stand for the home folder and "
         "environment\n"
         "variables, `$$` for a dollar. A whole number may be written `1e6`.\n\n"
         "`global_batch_size = micro_batch_size x data-parallel ranks x number of micro-batches`; the last factor "
         "follows from the\n"
         "others. `ranks = pipeline x data`; `rank = pipeline rank x data + data-parallel rank`.\n\n" +
         documenter.page();
}

std::vector<std::string> configuration_keys() {
  Config config;
  std::vector<std::string> keys;
  schema::KeyCollector collector("", keys);
  schema::describe(collector, config);
  return keys;
}

}  // namespace lamina
