#include "data/text_input.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/input_stream.h"

namespace lamina {

namespace fs = std::filesystem;

namespace {

constexpr size_t block_bytes = size_t{1} << 20;

bool is_jsonl(const fs::path& path) {
  const fs::path extension = path.extension();
  const fs::path inner = extension == ".gz" || extension == ".zst" ? path.stem() : path.filename();
  return inner.extension() == ".jsonl";
}

// Cuts a stream of plain text at a separator, which may lie across two blocks.
class SeparatorSplitter {
 public:
  SeparatorSplitter(const std::string& separator, const DocumentSink& sink) : separator_(separator), sink_(sink) {}

  void feed(std::string_view block) {
    if (separator_.empty()) return sink_.text(block);
    held_.append(block);
    size_t begin = 0;
    for (size_t at; (at = held_.find(separator_, begin)) != std::string::npos; begin = at + separator_.size()) {
      emit(std::string_view(held_).substr(begin, at - begin));
      sink_.end_document();
    }
    // The last bytes may be the beginning of a separator.
    const size_t keep = std::min(held_.size() - begin, separator_.size() - 1);
    emit(std::string_view(held_).substr(begin, held_.size() - begin - keep));
    held_.erase(0, held_.size() - keep);
  }

  void finish() {
    emit(held_);
    sink_.end_document();
  }

 private:
  void emit(std::string_view text) {
    if (!text.empty()) sink_.text(text);
  }

  const std::string& separator_;
  const DocumentSink& sink_;
  std::string held_;
};

// One line of the library's message: it begins with a code and a position that mean nothing to the reader of the file.
std::string json_reason(const nlohmann::json::exception& error) {
  std::string text = error.what();
  if (const size_t at = text.find("] "); at != std::string::npos) text.erase(0, at + 2);
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  return text.substr(0, 200);
}

class JsonLines {
 public:
  JsonLines(const fs::path& path, const std::string& key, const DocumentSink& sink)
      : path_(path), key_(key), sink_(sink) {}

  void feed(std::string_view block) {
    for (size_t end; (end = block.find('\n')) != std::string_view::npos; block.remove_prefix(end + 1)) {
      held_.append(block.substr(0, end));
      record();
    }
    held_.append(block);
  }

  void finish() { record(); }

 private:
  void record() {
    ++line_;
    if (held_.find_first_not_of(" \t\r") != std::string::npos) {
      nlohmann::json value;
      try {
        value = nlohmann::json::parse(held_);
      } catch (const nlohmann::json::exception& error) {
        throw Error("{}:{}: not valid JSON: {}", path_.string(), line_, json_reason(error));
      }
      if (!value.is_object())
        throw Error("{}:{}: found {}, expected an object with the key \"{}\"", path_.string(), line_, value.type_name(),
                    key_);
      const auto text = value.find(key_);
      if (text == value.end()) throw Error("{}:{}: no key \"{}\"{}", path_.string(), line_, key_, keys_of(value));
      if (!text->is_string())
        throw Error("{}:{}: found {} under \"{}\", expected a string", path_.string(), line_, text->type_name(), key_);
      const auto& document = text->get_ref<const std::string&>();
      if (!document.empty()) sink_.text(document);
      sink_.end_document();
    }
    held_.clear();
  }

  static std::string keys_of(const nlohmann::json& object) {
    std::string keys;
    for (const auto& [key, value] : object.items()) {
      if (keys.size() > 100) break;
      keys += (keys.empty() ? "; found " : ", ") + nlohmann::json(key).dump(-1, ' ', true);
    }
    return keys;
  }

  const fs::path& path_;
  const std::string& key_;
  const DocumentSink& sink_;
  std::string held_;
  int64_t line_ = 0;
};

template <class Splitter>
void pump(const fs::path& path, Splitter splitter, const DocumentSink& sink) {
  io::InputStream stream(path);
  std::vector<char> block(block_bytes);
  while (const size_t count = stream.read(block.data(), block.size())) {
    splitter.feed(std::string_view(block.data(), count));
    if (sink.progress) sink.progress(stream.file_bytes_read());
  }
  splitter.finish();
  if (sink.progress) sink.progress(stream.file_bytes_read());
}

}  // namespace

void read_documents(const fs::path& path, const TextFormat& format, const DocumentSink& sink) {
  if (is_jsonl(path)) {
    pump(path, JsonLines(path, format.text_key, sink), sink);
  } else {
    pump(path, SeparatorSplitter(format.document_separator, sink), sink);
  }
}

int64_t check_inputs(const std::vector<std::string>& inputs) {
  if (inputs.empty()) throw Error("no input files");
  int64_t total = 0;
  for (const std::string& input : inputs) {
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) throw Error("{}: no such file", input);
    if (fs::is_directory(status)) throw Error("{}: found a folder, expected a file", input);
    if (::access(input.c_str(), R_OK) != 0) throw Error("{}: can't open: {}", input, io::describe_errno(errno));
    if (fs::is_regular_file(status)) total += static_cast<int64_t>(fs::file_size(input, error));
  }
  return total;
}

}  // namespace lamina
