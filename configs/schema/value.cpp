#include "configs/schema/value.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <set>

#include "core/base/error.h"

namespace lamina::schema {
namespace {

// Aliases make it possible to write a document that contains itself, or one that expands without end.
constexpr int max_depth = 32;
constexpr int max_nodes = 100000;

struct Converter {
  std::string name;
  bool with_lines;
  int num_nodes = 0;

  std::string place(const YAML::Mark& mark) const {
    return with_lines && !mark.is_null() ? fmt::format("{}:{}", name, mark.line + 1) : name;
  }

  Value convert(const YAML::Node& node, int depth) {
    Value value;
    value.origin = place(node.Mark());
    if (depth > max_depth)
      throw Error("{}: found more than {} levels, expected sections and keys", value.origin, max_depth);
    if (++num_nodes > max_nodes) throw Error("{}: found more than {} values", value.origin, max_nodes);
    switch (node.Type()) {
      case YAML::NodeType::Undefined:
      case YAML::NodeType::Null:
        break;
      case YAML::NodeType::Scalar:
        value.kind = Value::Kind::scalar;
        value.scalar = node.Scalar();
        value.quoted = node.Tag() == "!";
        break;
      case YAML::NodeType::Sequence:
        value.kind = Value::Kind::list;
        for (const YAML::Node& item : node) value.items.push_back(convert(item, depth + 1));
        break;
      case YAML::NodeType::Map:
        value.kind = Value::Kind::section;
        convert_entries(node, depth, value);
        break;
    }
    return value;
  }

  void convert_entries(const YAML::Node& node, int depth, Value& value) {
    for (const auto& pair : node) {
      const std::string origin = place(pair.first.Mark());
      if (!pair.first.IsScalar()) throw Error("{}: found a key that is not a name", origin);
      const std::string key = pair.first.Scalar();
      if (const Entry* first = value.find(key)) {
        const size_t colon = first->origin.rfind(':');
        throw Error("{}: {}: duplicate key{}", origin, key,
                    with_lines ? ", first on line " + first->origin.substr(colon + 1) : "");
      }
      value.entries.push_back({key, origin, convert(pair.second, depth + 1)});
    }
  }
};

Value parse(const std::string& text, const std::string& name, bool with_lines) {
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.empty()) {
      Value empty;
      empty.origin = name;
      return empty;
    }
    if (documents.size() > 1) throw Error("{}: found {} YAML documents, expected one", name, documents.size());
    return Converter{name, with_lines}.convert(documents.front(), 0);
  } catch (const YAML::Exception& failure) {
    const std::string place =
        with_lines && !failure.mark.is_null() ? fmt::format("{}:{}", name, failure.mark.line + 1) : name;
    throw Error("{}: YAML syntax: {}", place, failure.msg);
  }
}

std::vector<std::string> split_path(const std::string& path) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.', begin)) {
    parts.push_back(path.substr(begin, dot - begin));
    begin = dot + 1;
  }
  parts.push_back(path.substr(begin));
  return parts;
}

Value& list_item(Value& list, const std::string& part, const std::string& parent, const std::string& origin) {
  const bool digits = !part.empty() && part.size() < 9 && part.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || static_cast<size_t>(std::stoi(part)) >= list.items.size())
    throw Error("{}: {} is a list of {}; found '{}', expected an index from 0 to {}", origin, parent, list.items.size(),
                part, static_cast<int64_t>(list.items.size()) - 1);
  return list.items[static_cast<size_t>(std::stoi(part))];
}

}  // namespace

Entry* Value::find(const std::string& key) {
  const auto at = std::find_if(entries.begin(), entries.end(), [&](const Entry& entry) { return entry.key == key; });
  return at == entries.end() ? nullptr : &*at;
}

std::string Value::found() const {
  switch (kind) {
    case Kind::null:
      return "nothing";
    case Kind::scalar:
      return quoted ? fmt::format("the text \"{}\"", scalar) : fmt::format("'{}'", scalar);
    case Kind::list:
      return "a list";
    case Kind::section:
      return "a section";
  }
  return "?";
}

Value parse_yaml(const std::string& text, const std::string& name) {
  return parse(text, name, /*with_lines=*/true);
}

void apply_override(Value& root, const std::string& text) {
  const std::string origin = "command line: " + text;
  const size_t equals = text.find('=');
  const std::vector<std::string> parts = split_path(text.substr(0, equals));
  if (equals == std::string::npos || std::count(parts.begin(), parts.end(), "") > 0)
    throw Error("{}: found no key.path=value, expected one like train.num_steps=100", origin);
  replace_key(root, text.substr(0, equals), parse(text.substr(equals + 1), origin, /*with_lines=*/false), origin);
}

void replace_key(Value& root, const std::string& key_path, Value value, const std::string& origin) {
  const std::vector<std::string> parts = split_path(key_path);
  if (std::count(parts.begin(), parts.end(), "") > 0)
    throw Error("{}: found '{}', expected a key.path like train.num_steps", origin, key_path);
  Value* at = &root;
  std::string path;
  for (size_t i = 0; i < parts.size(); ++i) {
    const bool last = i + 1 == parts.size();
    if (at->kind == Value::Kind::list) {
      at = &list_item(*at, parts[i], path, origin);
    } else {
      if (at->kind == Value::Kind::null) at->kind = Value::Kind::section;
      if (at->kind != Value::Kind::section)
        throw Error("{}: {} is {}, expected a section to set {} in", origin, path, at->found(), parts[i]);
      Entry* entry = at->find(parts[i]);
      if (last && value.kind == Value::Kind::null) {
        std::erase_if(at->entries, [&](const Entry& candidate) { return candidate.key == parts[i]; });
        return;
      }
      if (!entry) {
        entry = &at->entries.emplace_back();
        entry->key = parts[i];
        entry->origin = entry->value.origin = origin;
      }
      if (last) entry->origin = origin;
      at = &entry->value;
    }
    path += (path.empty() ? "" : ".") + parts[i];
  }
  *at = std::move(value);
}

}  // namespace lamina::schema
