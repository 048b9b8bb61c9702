// The lines of a text file, of any length, from the last to the first. Reads only what is asked for, not the whole file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace lamina::io {

struct Line {
  int64_t begin = 0;  // bytes from the file's beginning
  std::string text;   // without its end
};

class LinesFromEnd {
 public:
  explicit LinesFromEnd(const std::filesystem::path& path);  // Error when it can't be opened
  ~LinesFromEnd();
  LinesFromEnd(const LinesFromEnd&) = delete;
  LinesFromEnd& operator=(const LinesFromEnd&) = delete;

  // The next line before those given so far; absent at the file's beginning. What stands behind the last line's end is no line: it is
  // being written, or was when its writer died.
  std::optional<Line> next();

 private:
  bool read_block();  // puts the block before it in front of text_; false at the file's beginning

  std::filesystem::path path_;
  int fd_ = -1;
  int64_t begin_ = 0;  // of text_ in the file
  std::string text_;   // not given yet; ends with a line's end, once one was found
  int64_t block_bytes_ = 0;
};

}  // namespace lamina::io
