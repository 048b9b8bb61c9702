// Layouts and golden files for the tests of schedules.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "core/base/error.h"
#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

inline constexpr ScheduleName all_schedules[] = {ScheduleName::gpipe, ScheduleName::one_f_one_b,
                                                 ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble};

inline const char* name_of(ScheduleName name) {
  static constexpr const char* names[] = {"gpipe", "1f1b", "interleaved_1f1b", "zero_bubble"};
  return names[static_cast<size_t>(name)];
}

struct Layout {
  ScheduleName name;
  int num_ranks, chunks_per_rank, num_microbatches;
  int num_chunks() const { return num_ranks * chunks_per_rank; }
  Schedule make() const { return make_schedule(name, num_ranks, num_chunks(), num_microbatches); }
  std::string to_string() const {
    return fmt::format("{} {}x{}, {} micro-batches", name_of(name), num_ranks, chunks_per_rank, num_microbatches);
  }
};

// All that aren't refused, to 6 ranks, 4 chunks each, 13 micro-batches.
template <class Visit>
void for_each_small_layout(Visit&& visit) {
  for (const ScheduleName name : all_schedules)
    for (int num_ranks = 1; num_ranks <= 6; ++num_ranks)
      for (int v = 1; v <= (name == ScheduleName::one_f_one_b ? 1 : 4); ++v)
        for (int m = 1; m <= 13; ++m) visit(Layout{name, num_ranks, v, m});
}

// The message of the Error that `run` throws, "" when it throws none.
template <class Run>
std::string error_of(Run&& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Byte for byte; LAMINA_UPDATE_GOLDEN=1 rewrites the file.
inline void expect_golden(const std::string& file, const std::string& text) {
  const std::filesystem::path path = std::filesystem::path(LAMINA_SOURCE_DIR) / "tests/golden/pipeline" / file;
  if (const char* update = std::getenv("LAMINA_UPDATE_GOLDEN"); update && std::string(update) == "1") {
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return;
  }
  std::ifstream in(path, std::ios::binary);
  ASSERT_TRUE(in) << path << " is missing: run with LAMINA_UPDATE_GOLDEN=1";
  std::ostringstream expected;
  expected << in.rdbuf();
  EXPECT_EQ(text, expected.str()) << path;
}

}  // namespace lamina::pipeline
