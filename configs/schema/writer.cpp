#include <algorithm>

#include "configs/schema/decode.h"
#include "configs/schema/keys.h"
#include "core/base/error.h"

namespace lamina {
namespace schema {
namespace {

// The shortest digits that give the double back exactly, and a point before an exponent: YAML 1.1 readers, PyYAML among
// them, take "1e-05" for text.
std::string number_text(double number) {
  std::string text = fmt::format("{}", number);
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text.find('.') == std::string::npos) text.insert(exponent, ".0");
  return text;
}

bool is_plain(const std::string& text) {
  const auto safe = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '/' ||
           c == '.' || c == '-';
  };
  if (text.empty() || !std::all_of(text.begin(), text.end(), safe)) return false;
  // Anything that begins with a letter, '/' or "./" reads as a text, but for the spellings of null.
  const char first = text[0];
  const bool letter = (first >= 'a' && first <= 'z') || (first >= 'A' && first <= 'Z');
  return (letter || first == '/' || text.starts_with("./") || text.starts_with("../")) && text != "null" &&
         text != "Null" && text != "NULL";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\x{:02x}", static_cast<int>(c));
    else
      out += c;
  }
  return out + '"';
}

class Writer {
 public:
  Writer(std::string& out, std::string path, size_t indent, const std::vector<Unused>& unused)
      : out_(out), path_(std::move(path)), indent_(indent), unused_(unused) {}

  template <class T>
  void key(const char* name, const T& field, const Rule& rule, const char*) {
    const std::string path = path_ + name;
    const bool skipped = std::any_of(unused_.begin(), unused_.end(), [&](const Unused& u) { return u.key == path; });
    if (skipped || is_absent(field, rule)) return;
    const std::string text = text_of(field);
    line(fmt::format("{}: {}", name, text.empty() ? rule.empty_word : text));
  }

  template <class T>
  void section(const char* name, T& target, const char*) {
    // A section whose keys have all been left out is left out too: "name:" alone would read as nothing.
    std::string body;
    Writer inner(body, path_ + name + ".", indent_ + 2, unused_);
    describe(inner, target);
    if (body.empty()) return;
    line(fmt::format("{}:", name));
    out_ += body;
  }

  template <class T>
  void list(const char* name, std::vector<T>& target, const Rule&, const char*) {
    if (target.empty()) return;
    line(fmt::format("{}:", name));
    for (T& item : target) {
      std::string body;
      Writer inner(body, path_ + name + "[].", indent_ + 4, unused_);
      describe(inner, item);
      body[indent_ + 2] = '-';
      out_ += body;
    }
  }

 private:
  void line(const std::string& text) { out_ += std::string(indent_, ' ') + text + "\n"; }

  template <class T>
  static bool is_absent(const T&, const Rule&) {
    return false;
  }
  template <class T>
  static bool is_absent(const std::optional<T>& field, const Rule&) {
    return !field.has_value();
  }
  template <class T>
  static bool is_absent(const std::vector<T>& field, const Rule& rule) {
    return field.empty() && rule.empty_word.empty();
  }

  static std::string text_of(const std::string& field) { return is_plain(field) ? field : quoted(field); }
  template <class T>
  static std::string text_of(const std::optional<T>& field) {
    return text_of(*field);
  }
  template <class T>
  static std::string text_of(const std::vector<T>& field) {
    std::string text;
    for (const T& item : field) text += (text.empty() ? "" : ", ") + text_of(item);
    return text.empty() ? "" : "[" + text + "]";
  }
  template <class T>
  static std::string text_of(const T& field) {
    if constexpr (std::is_enum_v<T>) {
      for (const auto& [name, item] : enum_names<T>::value)
        if (item == field) return name;
      return "?";
    } else if constexpr (std::is_floating_point_v<T>) {
      return number_text(field);
    } else {
      return fmt::format("{}", field);
    }
  }

  std::string& out_;
  std::string path_;
  size_t indent_;
  const std::vector<Unused>& unused_;
};

}  // namespace
}  // namespace schema

std::string to_yaml(const Config& config) {
  Config copy = config;  // describe() hands out mutable fields
  std::string out;
  const std::vector<schema::Unused> unused = schema::unused_keys(config);
  schema::Writer writer(out, "", 0, unused);
  schema::describe(writer, copy);
  return out;
}

namespace {

template <class E>
std::string enum_name(E value) {
  for (const auto& [name, item] : schema::enum_names<E>::value)
    if (item == value) return name;
  LAMINA_CHECK(false, "value {}", static_cast<int>(value));
  return {};
}

}  // namespace

std::string name_of(OptimizerName optimizer) {
  return enum_name(optimizer);
}
std::string name_of(ScheduleName schedule) {
  return enum_name(schedule);
}
std::string name_of(BlockTransport transport) {
  return enum_name(transport);
}
std::string name_of(Recompute recompute) {
  return enum_name(recompute);
}
std::string name_of(Residual residual) {
  return enum_name(residual);
}
std::string name_of(FigureBasis basis) {
  return enum_name(basis);
}
std::string name_of(OnSpike action) {
  return enum_name(action);
}

}  // namespace lamina
