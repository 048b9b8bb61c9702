// Parts of a tokenizer.json that several kinds of tokenizers are written with.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace lamina {

using OrderedJson = nlohmann::ordered_json;

struct Special {
  std::string text;
  int64_t id = 0;
};

inline OrderedJson special_token(const Special& token) {
  return {{"id", token.id},  {"content", token.text}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false},   {"special", true}};
}

// `begin`: the token before a text.
inline OrderedJson begins_with(const Special& begin) {
  const OrderedJson token = {{"SpecialToken", {{"id", begin.text}, {"type_id", 0}}}};
  const OrderedJson a = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                    b = {{"Sequence", {{"id", "B"}, {"type_id", 0}}}};
  return {{"type", "TemplateProcessing"},
          {"single", OrderedJson::array({token, a})},
          {"pair", OrderedJson::array({token, a, b})},
          {"special_tokens", {{begin.text, {{"id", begin.text}, {"ids", {begin.id}}, {"tokens", {begin.text}}}}}}};
}

}  // namespace lamina
