// The log: the only global state. Rank 0 writes to the console, every rank may write to a file.
// A line of rank 3 of 8 begins with "[rank 3]"; with a single rank there is no prefix.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <utility>

namespace lamina::log {

enum class Level { debug, info, warning, error };

struct Options {
  int rank = 0;
  int world_size = 1;
  Level level = Level::info;
};

// Rank 0 shows info and above on stderr; the others show warnings and above.
void configure(const Options& options);

// Also append to this file from now on (the run folder's log.txt): everything from rank 0, warnings and errors from the
// others, so that the file says which rank failed and why. The first file also receives what was logged before. Throws Error when it can't be opened.
void add_file(const std::filesystem::path& path);

void write(Level level, const std::string& message);
void flush();

template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::warning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace lamina::log
