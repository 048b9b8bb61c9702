#include "data/json_records.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/error.h"
#include "data/utf8.h"

namespace lamina {

namespace {

using nlohmann::json;

constexpr std::string_view json_blanks = " \t\r\n";

// One line of the library's message: it begins with a code and a position that mean nothing to the reader of the file.
std::string json_reason(const json::exception& error) {
  std::string text = error.what();
  if (const size_t at = text.find("] "); at != std::string::npos) text.erase(0, at + 2);
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  return text.substr(0, 200);
}

std::string quoted(const std::string& text) {
  return json(text).dump(-1, ' ', true);
}

std::string keys_of(const json& object) {
  std::string keys;
  for (const auto& [key, value] : object.items()) {
    if (keys.size() > 100) break;
    keys += (keys.empty() ? "; found " : ", ") + quoted(key);
  }
  return keys;
}

// Escapes of halves of characters, such as \ud83d without \ude00: programs that cut strings write them.
std::string without_lone_surrogates(std::string_view text, int64_t& num_replaced) {
  const auto surrogate_at = [&](size_t at) -> unsigned {
    if (at + 6 > text.size() || text[at] != '\\' || text[at + 1] != 'u') return 0;
    unsigned code = 0;
    for (const char c : text.substr(at + 2, 4)) {
      const unsigned digit = c >= '0' && c <= '9'                     ? c - '0'
                             : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                                      : 99;
      if (digit == 99) return 0;
      code = code * 16 + digit;
    }
    return code >= 0xD800 && code <= 0xDFFF ? code : 0;
  };
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const unsigned code = surrogate_at(at), next = code != 0 ? surrogate_at(at + 6) : 0;
    if (code != 0 && code < 0xDC00 && next >= 0xDC00) {
      result += text.substr(at, 12);
      at += 12;
    } else if (code != 0) {
      result += "\\ufffd";
      ++num_replaced;
      at += 6;
    } else {
      const size_t length = text[at] == '\\' && at + 1 < text.size() ? 2 : 1;
      result += text.substr(at, length);
      at += length;
    }
  }
  return result;
}

// What both forms do with a record.
class Records : public DocumentSplitter {
 public:
  Records(const std::string& name, const TextFormat& format, const DocumentSink& sink, TextCounts& counts)
      : name_(name), format_(format), sink_(sink), counts_(counts) {}

 protected:
  // `where`: the place for people; `offset`: of the record's first byte.
  void record(const std::string& raw, const std::string& where, int64_t offset) {
    std::string document;
    try {
      document = text_of(raw, where, offset);
    } catch (const Error& error) {
      if (!format_.skip_bad_records) throw;
      if (counts_.num_skipped++ == 0) counts_.first_skipped = error.what();
      return;
    }
    if (!document.empty()) sink_.text(document);
    sink_.end_document();
  }

  const std::string& name_;
  const TextFormat& format_;
  const DocumentSink& sink_;
  TextCounts& counts_;

 private:
  std::string text_of(const std::string& raw, const std::string& where, int64_t offset) {
    int64_t num_replaced = 0;
    const json record = parse(raw, where, offset, num_replaced);
    const json& text = find_text(record, where);
    if (!text.is_string())
      throw Error("{}: found {} under \"{}\", expected a string", where, text.type_name(), format_.text_key);
    const auto& document = text.get_ref<const std::string&>();
    if (document.find('\0') == std::string::npos) {
      counts_.num_replaced += num_replaced;
      return document;
    }
    if (!format_.replace_invalid_utf8)
      throw Error("{}: found the character U+0000 under \"{}\"; --invalid-utf8 replace puts U+FFFD there", where,
                  format_.text_key);
    std::string repaired = repair_utf8(document, num_replaced);
    counts_.num_replaced += num_replaced;
    return repaired;
  }

  json parse(const std::string& raw, const std::string& where, int64_t offset, int64_t& num_replaced) const {
    if (const size_t at = valid_utf8(raw); at < raw.size()) {
      if (!format_.replace_invalid_utf8)
        throw Error("{}: found {} at offset {}, expected JSON in UTF-8; --invalid-utf8 replace puts U+FFFD there",
                    where, describe_utf8_fault(std::string_view(raw).substr(at)), offset + static_cast<int64_t>(at));
      return parse(repair_utf8(raw, num_replaced), where, offset, num_replaced);
    }
    try {
      return json::parse(raw);
    } catch (const json::exception& error) {
      if (format_.replace_invalid_utf8) {
        int64_t num_lone = 0;
        const std::string repaired = without_lone_surrogates(raw, num_lone);
        num_replaced += num_lone;
        if (num_lone > 0) return parse(repaired, where, offset, num_replaced);
      }
      throw Error("{}: not valid JSON: {}", where, json_reason(error));
    }
  }

  // Under the key, or where its dots lead.
  const json& find_text(const json& record, const std::string& where) const {
    const std::string& key = format_.text_key;
    if (!record.is_object())
      throw Error("{}: found {}, expected an object with the key \"{}\"", where, record.type_name(), key);
    if (const auto found = record.find(key); found != record.end()) return *found;
    const json* at = &record;
    for (size_t begin = 0; begin <= key.size();) {
      const size_t end = std::min(key.find('.', begin), key.size());
      if (!at->is_object())
        throw Error("{}: found {} under \"{}\", expected an object", where, at->type_name(), key.substr(0, begin - 1));
      const auto found = at->find(key.substr(begin, end - begin));
      if (found == at->end()) throw Error("{}: no key \"{}\"{}", where, key.substr(0, end), keys_of(*at));
      at = &*found;
      begin = end + 1;
    }
    return *at;
  }
};

class JsonLines final : public Records {
 public:
  using Records::Records;

  void feed(std::string_view block) override {
    for (size_t end; (end = block.find('\n')) != std::string_view::npos; block.remove_prefix(end + 1)) {
      held_.append(block.substr(0, end));
      line();
    }
    held_.append(block);
  }

  void finish() override { line(); }

 private:
  void line() {
    ++line_;
    if (held_.find_first_not_of(json_blanks) != std::string::npos)
      record(held_, fmt::format("{}:{}", name_, line_), offset_);
    offset_ += static_cast<int64_t>(held_.size()) + 1;
    held_.clear();
  }

  std::string held_;
  int64_t line_ = 0, offset_ = 0;
};

// Cuts an array at the commas between its elements; what an element is, its parser says.
class JsonArray final : public Records {
 public:
  using Records::Records;

  void feed(std::string_view block) override {
    for (const char c : block) {
      if (place_ == Place::inside)
        take(c);
      else if (json_blanks.find(c) == std::string_view::npos)
        outside(c);
      ++offset_;
      line_ += c == '\n';
    }
  }

  void finish() override {
    if (place_ != Place::after) throw Error("{}: the JSON array has no end; the file is truncated", name_);
  }

 private:
  enum class Place { before, inside, after };

  void outside(char c) {
    if (offset_ < 3 && c == "\xef\xbb\xbf"[offset_]) return;  // a byte order mark
    if (place_ == Place::after) throw Error("{}:{}: found more after the end of the JSON array", name_, line_);
    if (c != '[') throw Error("{}:{}: found no \"[\", expected a JSON array", name_, line_);
    place_ = Place::inside;
  }

  void take(char c) {
    if (in_string_) {
      in_string_ = is_escaped_ || c != '"';
      is_escaped_ = !is_escaped_ && c == '\\';
    } else if (depth_ == 0 && (c == ',' || c == ']')) {
      element(c == ']');
      return;
    } else {
      in_string_ = c == '"';
      if (c == '{' || c == '[') ++depth_;
      if (c == '}' || c == ']') --depth_;
      if (depth_ < 0) throw Error("{}:{}: found a \"}}\" too many", name_, line_);
    }
    if (held_.empty()) {
      if (json_blanks.find(c) != std::string_view::npos) return;
      first_line_ = line_;
      first_offset_ = offset_;
    }
    held_.push_back(c);
  }

  void element(bool is_last) {
    if (is_last) place_ = Place::after;
    if (held_.empty() && is_last && num_elements_ == 0) return;
    ++num_elements_;
    if (held_.empty()) throw Error("{}:{}: found nothing for record {} of the JSON array", name_, line_, num_elements_);
    record(held_, fmt::format("{}:{}: record {}", name_, first_line_, num_elements_), first_offset_);
    held_.clear();
  }

  Place place_ = Place::before;
  bool in_string_ = false, is_escaped_ = false;
  int64_t depth_ = 0, num_elements_ = 0;
  std::string held_;  // of the element
  int64_t line_ = 1, offset_ = 0, first_line_ = 1, first_offset_ = 0;
};

}  // namespace

std::unique_ptr<DocumentSplitter> make_json_lines(const std::string& name, const TextFormat& format,
                                                  const DocumentSink& sink, TextCounts& counts) {
  return std::make_unique<JsonLines>(name, format, sink, counts);
}

std::unique_ptr<DocumentSplitter> make_json_array(const std::string& name, const TextFormat& format,
                                                  const DocumentSink& sink, TextCounts& counts) {
  return std::make_unique<JsonArray>(name, format, sink, counts);
}

}  // namespace lamina
