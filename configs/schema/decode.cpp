#include "configs/schema/decode.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "configs/schema/files.h"
#include "configs/schema/keys.h"
#include "configs/schema/nearest.h"
#include "configs/schema/reference.h"
#include "configs/schema/validate.h"
#include "configs/schema/value.h"
#include "core/base/error.h"

namespace lamina {
namespace schema {
namespace {

template <class T>
const char* type_name(const T*) {
  if constexpr (std::is_same_v<T, bool>)
    return "true or false";
  else if constexpr (std::is_integral_v<T>)
    return "an integer";
  else if constexpr (std::is_floating_point_v<T>)
    return "a number";
  else
    return "a text";
}
template <class T>
const char* type_name(const std::optional<T>*) {
  return type_name(static_cast<const T*>(nullptr));
}
template <class T>
const char* type_name(const std::vector<T>*) {
  return "a list";
}

template <class T>
constexpr bool is_vector = false;
template <class T>
constexpr bool is_vector<std::vector<T>> = true;

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// The names of the keys of one section, to judge unknown ones before anything is read.
struct NameCollector {
  std::vector<std::string> names;
  template <class T>
  void key(const char* name, T&, const Rule&, const char*) {
    names.emplace_back(name);
  }
  template <class T>
  void section(const char* name, T&, const char*) {
    names.emplace_back(name);
  }
  template <class T>
  void list(const char* name, T&, const Rule&, const char*) {
    names.emplace_back(name);
  }
};

class Reader {
 public:
  Reader(Value& section, std::string origin, std::string path, Given& given)
      : section_(section), origin_(std::move(origin)), path_(std::move(path)), given_(given) {}

  template <class T>
  void read(T& target) {
    if (section_.kind != Value::Kind::section && section_.kind != Value::Kind::null)
      throw Error("{}: {}found {}, expected a section of key: value lines", section_.origin,
                  path_.empty() ? "" : path_ + ": ", section_.found());
    NameCollector collector;
    describe(collector, target);
    for (const Entry& entry : section_.entries) refuse_unknown(entry, collector.names);
    describe(*this, target);
  }

  template <class T>
  void key(const char* name, T& field, const Rule& rule, const char*) {
    Entry* entry = section_.find(name);
    const std::string path = path_of(name);
    if (!entry) {
      if (rule.is_required) throw missing(path, type_name(&field), rule);
      return;
    }
    given_.origin_of[path] = entry->origin;
    const bool empty = entry->value.kind == Value::Kind::null;
    const std::string& origin = empty ? entry->origin : entry->value.origin;
    const T initial = field;
    const std::string place = fmt::format("{}: {}", origin, path);
    if constexpr (is_vector<T>) {
      for (size_t i = 0; i < entry->value.items.size(); ++i)
        given_.origin_of[fmt::format("{}[{}]", path, i)] = entry->value.items[i].origin;
      convert_items(entry->value, origin, path, rule, field);
    } else {
      convert(entry->value, place, rule, field);
    }
    if (rule.is_path && given_.expands_paths) {
      if constexpr (std::is_same_v<T, std::string>) field = expand_path(field, place);
      if constexpr (std::is_same_v<T, std::vector<std::string>>)
        for (std::string& item : field) item = expand_path(item, place);
    }
    if (field == initial) given_.at_default.insert(path);
  }

  template <class T>
  void section(const char* name, T& target, const char*) {
    Value absent;
    Entry* entry = section_.find(name);
    if (entry) given_.origin_of[path_of(name)] = entry->origin;
    Reader(entry ? entry->value : absent, entry ? entry->origin : origin_, path_of(name), given_).read(target);
  }

  template <class T>
  void list(const char* name, std::vector<T>& target, const Rule& rule, const char*) {
    Entry* entry = section_.find(name);
    const std::string path = path_of(name);
    if (!entry) {
      if (rule.is_required) throw missing(path, "a list", Rule());
      return;
    }
    if (entry->value.kind != Value::Kind::list || entry->value.items.empty())
      throw Error("{}: {}: found {}, expected a list with at least one item", entry->origin, path,
                  entry->value.kind == Value::Kind::list ? "an empty list" : entry->value.found());
    given_.origin_of[path] = entry->origin;
    for (size_t i = 0; i < entry->value.items.size(); ++i) {
      Value& item = entry->value.items[i];
      const std::string item_path = fmt::format("{}[{}]", path, i);
      given_.origin_of[item_path] = item.origin;
      Reader(item, item.origin, item_path, given_).read(target.emplace_back());
    }
  }

 private:
  std::string path_of(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

  Error missing(const std::string& path, const std::string& type, const Rule& rule) const {
    const std::string range = rule.range();
    return Error("{}: {}: required key is missing, expected {}{}", origin_, path, type,
                 range.empty() ? "" : " " + range);
  }

  void refuse_unknown(const Entry& entry, const std::vector<std::string>& names) const {
    for (const std::string& name : names)
      if (name == entry.key) return;
    std::string hint = "expected one of " + join(names);
    if (const auto near = nearest_name(entry.key, names)) {
      hint = "did you mean " + *near + "?";
    } else if (const std::string elsewhere = given_.is_config ? path_ending_in(entry.key) : ""; !elsewhere.empty()) {
      hint = "did you mean " + elsewhere + "?";
    }
    throw Error("{}: {}: unknown key, {}", entry.origin, path_of(entry.key), hint);
  }

  // The right word in the wrong section: "train.optimizer" for "optimizer".
  static std::string path_ending_in(const std::string& word) {
    for (const std::string& key : configuration_keys()) {
      for (size_t end = key.find('.'); end != std::string::npos; end = key.find('.', end + 1)) {
        const std::string section = key.substr(0, end);
        if (section.ends_with("." + word)) return section;
      }
      if (key.ends_with("." + word)) return key;
    }
    return "";
  }

  static const std::string& plain(const Value& value, const std::string& place, const char* expected) {
    if (value.kind != Value::Kind::scalar || value.quoted)
      throw Error("{}: found {}, expected {}", place, value.found(), expected);
    return value.scalar;
  }

  static void check_range(double number, const Value& value, const std::string& place, const Rule& rule) {
    if (!rule.allows(number)) throw Error("{}: found {}, expected {}", place, value.scalar, rule.range());
  }

  static void convert(const Value& value, const std::string& place, const Rule&, bool& field) {
    const std::string& text = plain(value, place, "true or false");
    if (text != "true" && text != "false") throw Error("{}: found '{}', expected true or false", place, text);
    field = text == "true";
  }

  static void convert(const Value& value, const std::string& place, const Rule&, std::string& field) {
    if (value.kind != Value::Kind::scalar)
      throw Error("{}: found {}, expected a text{}", place, value.found(),
                  value.kind == Value::Kind::null ? " (\"\" is the empty one)" : "");
    field = value.scalar;
  }

  // 1e3 and 2.5e6 are integers too, as long as a double holds every integer of their size.
  template <class T>
  static bool convert_whole(const char* begin, const char* end, T& field) {
    double number = 0;
    const auto [stop, code] = std::from_chars(begin, end, number);
    if (code != std::errc() || stop != end || std::abs(number) > 0x1p53 || number != std::floor(number)) return false;
    if (number < static_cast<double>(std::numeric_limits<T>::min()) ||
        number > static_cast<double>(std::numeric_limits<T>::max()))
      return false;
    field = static_cast<T>(number);
    return true;
  }

  template <class T>
  requires std::is_integral_v<T>
  static void convert(const Value& value, const std::string& place, const Rule& rule, T& field) {
    const std::string& text = plain(value, place, "an integer");
    const char* begin = text.data() + (text.size() > 1 && text[0] == '+' && text[1] != '-' ? 1 : 0);
    const char* end = text.data() + text.size();
    const bool negative = std::is_unsigned_v<T> && begin != end && *begin == '-';
    int64_t as_signed = 0;  // tells "-1" for an unsigned key from "abc"
    if (negative && std::from_chars(begin, end, as_signed).ptr == end)
      throw Error("{}: found {}, expected at least 0", place, text);
    const auto [stop, code] = std::from_chars(begin, end, field);
    if (code == std::errc::result_out_of_range && stop == end) {
      if (*begin == '-') throw Error("{}: found {}, expected at least {}", place, text, std::numeric_limits<T>::min());
      throw Error("{}: found {}, expected at most {}", place, text, std::numeric_limits<T>::max());
    }
    if ((code != std::errc() || stop != end) && !convert_whole(begin, end, field))
      throw Error("{}: found '{}', expected an integer", place, text);
    check_range(static_cast<double>(field), value, place, rule);
  }

  static void convert(const Value& value, const std::string& place, const Rule& rule, double& field) {
    const std::string& text = plain(value, place, "a number");
    const char* begin = text.data() + (text.size() > 1 && text[0] == '+' && text[1] != '-' ? 1 : 0);
    const auto [stop, code] = std::from_chars(begin, text.data() + text.size(), field);
    if (code == std::errc::result_out_of_range)
      throw Error("{}: found {}, expected a number that fits a double", place, text);
    if (code != std::errc() || stop != text.data() + text.size() || !std::isfinite(field))
      throw Error("{}: found '{}', expected a number", place, text);
    check_range(field, value, place, rule);
  }

  template <class T>
  static void convert(const Value& value, const std::string& place, const Rule& rule, std::optional<T>& field) {
    if (value.kind == Value::Kind::null) {
      field.reset();
      return;
    }
    convert(value, place, rule, field.emplace());
  }

  // A list of numbers or names; or the word for the empty one.
  template <class T>
  static void convert_items(const Value& value, const std::string& origin, const std::string& path, const Rule& rule,
                            std::vector<T>& field) {
    const bool is_word =
        value.kind == Value::Kind::scalar && !rule.empty_word.empty() && value.scalar == rule.empty_word;
    if (!is_word && (value.kind != Value::Kind::list || value.items.empty()))
      throw Error("{}: {}: found {}, expected {}a list with at least one item", origin, path,
                  value.kind == Value::Kind::list ? "an empty list" : value.found(),
                  rule.empty_word.empty() ? "" : rule.empty_word + " or ");
    field.clear();
    for (size_t i = 0; i < value.items.size(); ++i)
      convert(value.items[i], fmt::format("{}: {}[{}]", value.items[i].origin, path, i), rule, field.emplace_back());
  }

  template <class E>
  requires std::is_enum_v<E>
  static void convert(const Value& value, const std::string& place, const Rule&, E& field) {
    std::vector<std::string> names;
    for (const auto& [name, item] : enum_names<E>::value) {
      if (value.kind == Value::Kind::scalar && value.scalar == name) {
        field = item;
        return;
      }
      names.emplace_back(name);
    }
    const auto near = value.kind == Value::Kind::scalar ? nearest_name(value.scalar, names) : std::nullopt;
    const std::string expected = names.size() == 1 ? names.front() : "one of " + join(names);
    throw Error("{}: found {}, expected {}{}", place, value.found(), expected,
                near ? "; did you mean " + *near + "?" : "");
  }

  Value& section_;
  std::string origin_;
  std::string path_;
  Given& given_;
};

}  // namespace
}  // namespace schema

namespace {

// What was found may span lines (a missing quote or colon does that); the message may not.
template <class Body>
auto in_one_line(Body&& body) {
  try {
    return body();
  } catch (const Error& failure) {
    std::string message = failure.what();
    std::replace_if(
        message.begin(), message.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
    throw Error(message);
  }
}

Config decode(schema::Value& root, const std::string& name, bool expands_paths) {
  Config config;
  schema::Given given{name, {}, expands_paths, {}};
  schema::Reader(root, name, "", given).read(config);
  schema::validate(config, given);
  schema::derive_defaults(config);
  return config;
}

}  // namespace

Config decode_config(schema::Value root, const std::string& name) {
  return in_one_line([&] { return decode(root, name, /*expands_paths=*/true); });
}

Config parse_config(const std::string& yaml, const std::string& name, std::span<const std::string> overrides) {
  return in_one_line([&] {
    schema::Value root = schema::parse_yaml(yaml, name);
    for (const std::string& text : overrides) schema::apply_override(root, text);
    return decode(root, name, /*expands_paths=*/false);
  });
}

std::string read_config_text(const std::string& path) {
  if (std::filesystem::is_directory(path)) throw Error("{}: found a folder, expected a configuration file", path);
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("{}: can't open the configuration: {}", path, std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) throw Error("{}: can't read the configuration: {}", path, std::strerror(errno));
  return text.str();
}

Config load_config(const std::string& path, std::span<const std::string> overrides) {
  return in_one_line([&] {
    schema::Value root = schema::load_tree(path);
    for (const std::string& text : overrides) schema::apply_override(root, text);
    return decode(root, path, /*expands_paths=*/true);
  });
}

namespace {

// A figure says what it rests on, and a share is one.
struct FigureCheck {
  const schema::Given& given;
  std::string path = {};
  bool is_share = false;

  template <class T>
  void key(const char*, T&, const schema::Rule&, const char*) {}
  template <class T>
  void section(const char* name, T& target, const char*) {
    FigureCheck inside{given, path.empty() ? name : path + "." + name, is_share || std::is_same_v<T, DeviceShares>};
    if constexpr (std::is_same_v<T, DeviceFigure>)
      inside.check(target);
    else
      schema::describe(inside, target);
  }
  void check(const DeviceFigure& figure) const {
    if (figure.source.empty())
      throw Error("{}: found an empty text, expected where the figure is from", given.place(path + ".source"));
    if (!is_share) return;
    if (figure.value > 1)
      throw Error("{}: found {}, expected above 0 and at most 1", given.place(path + ".value"), figure.value);
    if (figure.basis == FigureBasis::datasheet)
      throw Error("{}: found datasheet, expected measured or assumed: no data sheet tells a share",
                  given.place(path + ".basis"));
  }
};

DeviceConfig decode_device(schema::Value root, const std::string& name) {
  DeviceConfig device;
  schema::Given given{name, {}, /*expands_paths=*/false, {}, /*is_config=*/false};
  schema::Reader(root, name, "", given).read(device);
  FigureCheck check{given};
  schema::describe(check, device);
  return device;
}

}  // namespace

DeviceConfig parse_device(const std::string& yaml, const std::string& name) {
  return in_one_line([&] { return decode_device(schema::parse_yaml(yaml, name), name); });
}

DeviceConfig load_device(const std::string& path) {
  return in_one_line([&] { return decode_device(schema::load_tree(path), path); });
}

}  // namespace lamina
