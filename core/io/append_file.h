// A file that only grows. When append() returns, the operating system has everything that was written: what a process has
// logged is in the file however the process ends.
#pragma once

#include <filesystem>
#include <string_view>

namespace lamina::io {

// Move-only. Without a path (or moved from) it writes nothing.
class AppendFile {
 public:
  enum class Mode { extend, create };  // create: Error when there is such a file

  AppendFile() = default;
  explicit AppendFile(const std::filesystem::path& path, Mode mode = Mode::extend);  // Error when it can't be opened
  ~AppendFile();
  AppendFile(AppendFile&& other) noexcept;
  AppendFile& operator=(AppendFile&& other) noexcept;

  void append(std::string_view bytes);  // Error, on a full disk too
  bool is_open() const { return fd_ >= 0; }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace lamina::io
