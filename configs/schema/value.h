// A YAML document as plain data, each node with the place it came from, so that a message can name it. The only user of
// yaml-cpp is value.cpp.
#pragma once

#include <string>
#include <vector>

namespace lamina::schema {

struct Entry;

struct Value {
  enum class Kind { null, scalar, list, section };

  Kind kind = Kind::null;
  std::string origin;  // "file.yaml:12", or "command line: key.path=value"
  std::string scalar;
  bool quoted = false;         // a quoted scalar is a text, never a number
  std::vector<Value> items;    // of a list
  std::vector<Entry> entries;  // of a section, in the order of the file

  Entry* find(const std::string& key);
  std::string found() const;  // how a message calls this value: 'abc', a list, a section, nothing
};

struct Entry {
  std::string key;
  std::string origin;  // of the key; the value may begin on a later line
  Value value;
};

// Throws Error on a syntax error, a duplicate key, or more than one document. `name` stands for the file in messages.
Value parse_yaml(const std::string& text, const std::string& name);

// Replaces the key that `key_path` ("key.path") names by `value`; null removes it. `origin` is what messages name.
void replace_key(Value& root, const std::string& key_path, Value value, const std::string& origin);

// "key.path=value" replaces one key ("list.0.key" reaches into a list); the value null removes it.
void apply_override(Value& root, const std::string& text);

}  // namespace lamina::schema
