// Ranks that are threads of one process share the log.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/base/log.h"

namespace lamina {
namespace {

TEST(Log, FilesAreAddedWhileOthersWrite) {
  const auto folder = std::filesystem::temp_directory_path() / "lamina-log-threads-test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 4; ++rank)
    threads.emplace_back([&folder, rank] {
      for (int i = 0; i < 50; ++i) {
        if (i % 10 == 0) log::add_file(folder / fmt::format("log-{}-{}.txt", rank, i));
        log::debug("line {} of thread {}.", i, rank);  // to files only
      }
    });
  for (std::thread& thread : threads) thread.join();
  log::flush();
  for (int rank = 0; rank < 4; ++rank) {
    std::stringstream text;
    text << std::ifstream(folder / fmt::format("log-{}-0.txt", rank)).rdbuf();
    for (int i = 0; i < 50; ++i)
      EXPECT_NE(text.str().find(fmt::format("line {} of thread {}.\n", i, rank)), std::string::npos) << i;
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace lamina
