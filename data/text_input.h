// Documents out of text files, streamed: plain text, JSON lines and JSON arrays, as they are or compressed (core/io/input_stream.h). The
// content decides what a file is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

struct TextFormat {
  std::string format = "auto";     // auto, text, jsonl (a record a line) or json (one array of records)
  std::string text_key = "text";   // of each record, which is a document; a.b is b within a, unless there is a key a.b
  std::string document_separator;  // between the documents of a plain text; empty: a file is a document
  bool replace_invalid_utf8 = false;  // by U+FFFD, NUL too; otherwise an error
  bool skip_bad_records = false;      // records without a text; otherwise an error
};

struct DocumentSink {
  std::function<void(std::string_view)>
      text;  // more of the open document; valid UTF-8 without NUL, cut between characters
  std::function<void()> end_document;
  std::function<void(int64_t)> progress;  // bytes of this file read so far, as it lies on the disk; may be empty
};

// What was done to the text on its way.
struct TextCounts {
  int64_t num_replaced = 0;   // U+FFFD that were put in
  int64_t num_skipped = 0;    // bad records
  std::string first_skipped;  // why
  TextCounts& operator+=(const TextCounts& other);
};

// `path`: a file, a pipe, or "-" for standard input. Memory use is a block, or the longest record. Throws Error naming the file and the
// line or offset (of the decompressed text).
TextCounts read_documents(const std::filesystem::path& path, const TextFormat& format, const DocumentSink& sink);

// Every input must be a readable regular file of a kind that can be read, a pipe, or "-" (once). Returns the sum of the files' sizes.
// Throws Error.
int64_t check_inputs(const std::vector<std::string>& inputs, const TextFormat& format);

}  // namespace lamina
