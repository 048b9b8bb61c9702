#include "configs/schema/files.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <utility>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"

namespace lamina::schema {
namespace {

namespace fs = std::filesystem;

void merge(Value& into, Value from) {
  if (into.kind != Value::Kind::section || from.kind != Value::Kind::section) {
    into = std::move(from);
    return;
  }
  for (Entry& entry : from.entries) {
    if (entry.value.kind == Value::Kind::null) {
      std::erase_if(into.entries, [&](const Entry& known) { return known.key == entry.key; });
    } else if (Entry* known = into.find(entry.key)) {
      known->origin = entry.origin;
      merge(known->value, std::move(entry.value));
    } else {
      into.entries.push_back(std::move(entry));
    }
  }
}

std::vector<std::pair<std::string, std::string>> included_files(const Entry& include) {  // name, place
  const auto name = [&](const Value& value) {
    if (value.kind != Value::Kind::scalar || value.scalar.empty())
      throw Error("{}: include: found {}, expected a file or a list of files", value.origin, value.found());
    return std::pair{value.scalar, value.origin + ": include"};
  };
  if (include.value.kind != Value::Kind::list) return {name(include.value)};
  std::vector<std::pair<std::string, std::string>> files;
  for (const Value& item : include.value.items) files.push_back(name(item));
  return files;
}

Value load(const std::string& path, std::vector<std::string>& chain) {
  Value root = parse_yaml(read_config_text(path), path);
  const Entry* include = root.find("include");
  if (!include) return root;
  chain.push_back(fs::weakly_canonical(path).string());
  Value joined;
  for (const auto& [name, place] : included_files(*include)) {
    const fs::path expanded = expand_path(name, place);
    const fs::path file = expanded.is_absolute() ? expanded : fs::path(path).parent_path() / expanded;
    if (std::find(chain.begin(), chain.end(), fs::weakly_canonical(file).string()) != chain.end())
      throw Error("{}: found {}, which includes this file", place, name);
    if (!fs::is_regular_file(file)) throw Error("{}: {}: no such file, expected a configuration", place, file.string());
    merge(joined, load(file.string(), chain));
  }
  chain.pop_back();
  std::erase_if(root.entries, [](const Entry& entry) { return entry.key == "include"; });
  if (root.entries.empty()) root.kind = Value::Kind::section;
  joined.origin = root.origin;
  merge(joined, std::move(root));
  return joined;
}

}  // namespace

Value load_tree(const std::string& path) {
  std::vector<std::string> chain;
  return load(path, chain);
}

std::string expand_path(const std::string& text, const std::string& place) {
  const auto variable = [&](const std::string& name) {
    const char* value = std::getenv(name.c_str());
    if (!value || !*value) throw Error("{}: found {}, and the environment variable {} is not set", place, text, name);
    return std::string(value);
  };
  std::string path;
  size_t i = 0;
  if (text.starts_with("~")) {
    if (text.size() > 1 && text[1] != '/')
      throw Error("{}: found {}, expected ~/ (the home folder of another user is written out)", place, text);
    path = variable("HOME");
    i = 1;
  }
  while (i < text.size()) {
    if (text[i] != '$') {
      path += text[i++];
      continue;
    }
    const bool braced = text.compare(i + 1, 1, "{") == 0;
    const size_t begin = i + (braced ? 2 : 1);
    size_t end = begin;
    while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_')) ++end;
    if (!braced && text.compare(begin, 1, "$") == 0) {
      path += '$';
      i = begin + 1;
      continue;
    }
    if (end == begin || (braced && text.compare(end, 1, "}") != 0))
      throw Error("{}: found {}, expected $NAME or ${{NAME}} after a dollar ($$ is a dollar itself)", place, text);
    path += variable(text.substr(begin, end - begin));
    i = end + (braced ? 1 : 0);
  }
  return path;
}

}  // namespace lamina::schema
