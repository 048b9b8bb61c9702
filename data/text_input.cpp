#include "data/text_input.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/input_stream.h"
#include "data/content.h"
#include "data/json_records.h"
#include "data/utf8.h"

namespace lamina {

namespace fs = std::filesystem;

namespace {

constexpr size_t block_bytes = size_t{1} << 20;
constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";  // some programs begin UTF-8 with it; no part of the text

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

class PlainText final : public DocumentSplitter {
 public:
  PlainText(const std::string& name, const TextFormat& format, const DocumentSink& sink, TextCounts& counts)
      : splitter_(format.document_separator, sink), filter_([&](std::string_view text, int64_t offset) {
          if (!format.replace_invalid_utf8)
            throw Error("{}: found {} at offset {}, expected text in UTF-8; --invalid-utf8 replace puts U+FFFD there",
                        name, describe_utf8_fault(text), offset);
          ++counts.num_replaced;
        }) {}

  void feed(std::string_view block) override { filter_.feed(block, out_); }
  void finish() override {
    filter_.finish(out_);
    splitter_.finish();
  }

 private:
  SeparatorSplitter splitter_;
  Utf8Filter filter_;
  Utf8Filter::Output out_ = [this](std::string_view text) {
    if (std::exchange(at_begin_, false) && text.starts_with(byte_order_mark))
      text.remove_prefix(byte_order_mark.size());
    if (!text.empty()) splitter_.feed(text);
  };
  bool at_begin_ = true;
};

// Reads until `block` is full or the file ends: a pipe gives less at once.
size_t read_full(io::InputStream& stream, std::string& block) {
  size_t size = 0;
  while (size < block.size()) {
    const size_t count = stream.read(block.data() + size, block.size() - size);
    if (count == 0) break;
    size += count;
  }
  return size;
}

}  // namespace

TextCounts& TextCounts::operator+=(const TextCounts& other) {
  num_replaced += other.num_replaced;
  if (num_skipped == 0) first_skipped = other.first_skipped;
  num_skipped += other.num_skipped;
  return *this;
}

TextCounts read_documents(const fs::path& path, const TextFormat& format, const DocumentSink& sink) {
  const std::string name = io::describe_input(path);
  io::InputStream stream(path);
  std::string block(content_head_bytes, '\0');
  size_t size = read_full(stream, block);
  const Content content = identify_content(path, std::string_view(block).substr(0, size), format.format);
  TextCounts counts;
  std::unique_ptr<DocumentSplitter> splitter;
  if (content == Content::text) splitter = std::make_unique<PlainText>(name, format, sink, counts);
  if (content == Content::json_lines) splitter = make_json_lines(name, format, sink, counts);
  if (content == Content::json_array) splitter = make_json_array(name, format, sink, counts);
  splitter->feed(std::string_view(block).substr(0, size));
  if (sink.progress) sink.progress(stream.file_bytes_read());
  block.resize(block_bytes);
  while ((size = stream.read(block.data(), block.size())) > 0) {
    splitter->feed(std::string_view(block).substr(0, size));
    if (sink.progress) sink.progress(stream.file_bytes_read());
  }
  splitter->finish();
  if (sink.progress) sink.progress(stream.file_bytes_read());
  return counts;
}

int64_t check_inputs(const std::vector<std::string>& inputs, const TextFormat& format) {
  if (inputs.empty()) throw Error("no input files");
  check_content_format(format.format);
  if (std::count(inputs.begin(), inputs.end(), io::standard_input) > 1)
    throw Error("standard input (-) is named twice");
  int64_t total = 0;
  std::string head(content_head_bytes, '\0');
  for (const std::string& input : inputs) {
    if (input == io::standard_input) continue;
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) throw Error("{}: no such file", input);
    if (fs::is_directory(status)) throw Error("{}: found a folder, expected a file", input);
    if (::access(input.c_str(), R_OK) != 0) throw Error("{}: can't open: {}", input, io::describe_errno(errno));
    if (!fs::is_regular_file(status)) continue;
    total += static_cast<int64_t>(fs::file_size(input, error));
    // The last of many files should be refused now, and not after hours.
    io::InputStream stream(input);
    const size_t size = read_full(stream, head);
    identify_content(input, std::string_view(head).substr(0, size), format.format);
  }
  return total;
}

}  // namespace lamina
