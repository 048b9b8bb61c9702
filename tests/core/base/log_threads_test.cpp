// Ranks that are threads of one process share the log.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
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

void log_before_and_after(const std::filesystem::path& folder) {
  log::info("before");
  log::add_file(folder / "first.txt");
  log::add_file(folder / "second.txt");
  log::info("after");
  log::flush();
  const auto text = [&](const char* name) {
    std::stringstream out;
    out << std::ifstream(folder / name).rdbuf();
    return out.str();
  };
  const std::string first = text("first.txt"), second = text("second.txt");
  const bool right = first.find(" I before\n") < first.find(" I after\n") && first.ends_with(" I after\n") &&
                     second.find("before") == std::string::npos && second.ends_with(" I after\n");
  std::fprintf(stderr, "first: %s second: %s", first.c_str(), second.c_str());
  std::_Exit(right ? 0 : 1);
}

// A process of its own: which file is the first is a fact of the whole process.
TEST(LogDeathTest, TheFirstFileBeginsWithWhatWasLoggedBefore) {
  const auto folder = std::filesystem::temp_directory_path() / "lamina-log-early-test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(log_before_and_after(folder), ::testing::ExitedWithCode(0), "before");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace lamina
