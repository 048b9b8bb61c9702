// Documents out of text files, streamed: FILE, FILE.gz, FILE.zst, and the same with .jsonl before that ending.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace lamina {

struct TextFormat {
  std::string text_key = "text";   // of each .jsonl record; a record is a document
  std::string document_separator;  // between the documents of a plain text; empty: a file is a document
};

struct DocumentSink {
  std::function<void(std::string_view)> text;  // more of the open document
  std::function<void()> end_document;
  std::function<void(int64_t)> progress;  // bytes of this file read so far, as it lies on the disk; may be empty
};

// Memory use is a block, or for .jsonl the longest record. Throws Error naming the file, and for .jsonl the line.
void read_documents(const std::filesystem::path& path, const TextFormat& format, const DocumentSink& sink);

// Every input must be a readable regular file (or a pipe). Returns the sum of their sizes. Throws Error.
int64_t check_inputs(const std::vector<std::string>& inputs);

}  // namespace lamina
