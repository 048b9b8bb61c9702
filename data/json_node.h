// A place in a JSON document that knows its path, for messages: "FILE: model.vocab: found .., expected ..".
#pragma once

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace lamina {

// Error naming the byte where `text` is no JSON, or that it isn't an object.
inline nlohmann::json parse_json_object(std::string_view text, const std::string& origin) {
  nlohmann::json value;
  try {
    value = nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    throw Error("{}: not JSON, from byte {} on", origin, error.byte);
  }
  if (!value.is_object()) throw Error("{}: found {}, expected an object", origin, value.type_name());
  return value;
}

class JsonNode {
 public:
  JsonNode(const nlohmann::json& value, std::string origin, std::string path = "")
      : value_(value), origin_(std::move(origin)), path_(std::move(path)) {}

  // `what` follows the place, as in "FILE: model.type: found X, expected Y".
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("{}: {}{}{}", origin_, path_, path_.empty() ? "" : ": ", what);
  }
  std::string place() const { return path_.empty() ? origin_ : origin_ + ": " + path_; }
  const nlohmann::json& value() const { return value_; }

  // Absent keys are null.
  JsonNode operator[](const std::string& key) const {
    static const nlohmann::json null;
    if (!value_.is_object()) fail(found("an object"));
    const auto at = value_.find(key);
    return {at == value_.end() ? null : *at, origin_, path_.empty() ? key : path_ + "." + key};
  }
  // Of this object or list, where the caller has it at hand.
  JsonNode child(const std::string& name, const nlohmann::json& value) const { return {value, origin_, path_ + name}; }
  std::vector<JsonNode> elements() const {
    if (!value_.is_array()) fail(found("a list"));
    std::vector<JsonNode> all;
    for (size_t i = 0; i < value_.size(); ++i) all.emplace_back(value_[i], origin_, fmt::format("{}[{}]", path_, i));
    return all;
  }
  bool is_null() const { return value_.is_null(); }
  std::string text() const {
    if (!value_.is_string()) fail(found("a text"));
    return value_.get<std::string>();
  }
  bool boolean() const {
    if (!value_.is_boolean()) fail(found("true or false"));
    return value_.get<bool>();
  }
  bool boolean(bool otherwise) const { return is_null() ? otherwise : boolean(); }
  int32_t token_id() const {
    constexpr int64_t limit = 1 << 24;
    if (!value_.is_number_integer()) fail(found("a token id"));
    if (value_ < 0 || value_ >= limit)
      fail(fmt::format("found {}, expected a token id below {}", value_.dump(), limit));
    return value_.get<int32_t>();
  }
  // Error naming the first key that isn't one of these: nothing is passed over unread.
  void only(std::initializer_list<std::string_view> keys) const {
    if (!value_.is_object()) fail(found("an object"));
    for (const auto& [key, ignored] : value_.items())
      if (std::find(keys.begin(), keys.end(), key) == keys.end())
        fail(fmt::format("unknown key {}, expected {}", quoted(key), fmt::join(keys, ", ")));
  }
  std::string found(const std::string& expected) const {
    if (value_.is_string()) return fmt::format("found {}, expected {}", quoted(value_.get<std::string>()), expected);
    const bool is_short = value_.is_number() || value_.is_boolean();
    return fmt::format("found {}, expected {}", is_short ? value_.dump() : value_.type_name(), expected);
  }
  // One line, and short enough for a message.
  static std::string quoted(const std::string& text) {
    std::string out = nlohmann::json(text.substr(0, 60)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    return text.size() > 60 ? out + ".." : out;
  }

 private:
  const nlohmann::json& value_;
  std::string origin_, path_;
};

}  // namespace lamina
