#include "core/device/cpu/parallel_for.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

namespace lamina::cpu {
namespace {

class ParallelFor : public ::testing::Test {
 protected:
  void SetUp() override { before_ = num_threads(); }
  void TearDown() override { set_num_threads(before_); }

 private:
  int before_ = 1;
};

std::set<std::pair<int64_t, int64_t>> ranges_of(int64_t count, int64_t grain) {
  std::mutex mutex;
  std::set<std::pair<int64_t, int64_t>> ranges;
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    const std::lock_guard lock(mutex);
    ranges.insert({begin, end});
  });
  return ranges;
}

TEST_F(ParallelFor, CoversEveryIndexOnce) {
  for (int threads : {1, 2, 3, 5}) {
    set_num_threads(threads);
    for (int64_t count : {0, 1, 2, 3, 7, 64, 1001}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      for (const auto& visit : visits) ASSERT_EQ(visit.load(), 1) << count << " on " << threads;
    }
  }
}

TEST_F(ParallelFor, PartitionDependsOnCountAndThreadsOnly) {
  set_num_threads(3);
  const auto first = ranges_of(100, 1);
  for (int repeat = 0; repeat < 20; ++repeat) ASSERT_EQ(ranges_of(100, 1), first);
  const std::set<std::pair<int64_t, int64_t>> expected{{0, 33}, {33, 66}, {66, 100}};
  EXPECT_EQ(first, expected);
}

TEST_F(ParallelFor, NothingToDoCallsNobody) {
  EXPECT_TRUE(ranges_of(0, 1).empty());
  EXPECT_TRUE(ranges_of(-5, 1).empty());
}

TEST_F(ParallelFor, SmallWorkStaysOnOneThread) {
  set_num_threads(4);
  EXPECT_EQ(threads_for(99, 100), 1);
  EXPECT_EQ(threads_for(200, 100), 2);
  EXPECT_EQ(threads_for(1'000'000, 100), 4);
  EXPECT_EQ(threads_for(3, 0), 3);  // a grain below one counts as one
  EXPECT_EQ(ranges_of(99, 100).size(), 1u);
}

TEST_F(ParallelFor, NestedLoopsDoNotMultiplyThreads) {
  set_num_threads(2);
  std::atomic<int> inner{0};
  std::atomic<int64_t> sum{0};
  parallel_for(2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      parallel_for(10, 1, [&](int64_t inner_begin, int64_t inner_end) {
        ++inner;
        sum += inner_end - inner_begin;
      });
  });
  EXPECT_EQ(inner.load(), 2);  // one piece each
  EXPECT_EQ(sum.load(), 20);
}

TEST_F(ParallelFor, AtLeastOneThread) {
  set_num_threads(0);
  EXPECT_EQ(num_threads(), 1);
  set_num_threads(-3);
  EXPECT_EQ(num_threads(), 1);
  set_num_threads(3);
  EXPECT_EQ(num_threads(), 3);
}

TEST_F(ParallelFor, RangesMeetWithoutGapsEvenForHugeCounts) {
  const int64_t huge = int64_t{1} << 55;
  for (int64_t count : {int64_t{1}, int64_t{10}, huge}) {
    int64_t end = 0;
    for (int part = 0; part < 7; ++part) {
      const Range range = range_of(count, part, 7);
      EXPECT_EQ(range.begin, end);
      EXPECT_GE(range.end, range.begin);
      end = range.end;
    }
    EXPECT_EQ(end, count);
  }
}

TEST_F(ParallelFor, PartsAreExactlyThoseAskedFor) {
  set_num_threads(2);
  for (int parts : {1, 2, 3, 8}) {
    std::vector<std::atomic<int>> calls(static_cast<size_t>(parts));
    std::vector<Range> ranges(static_cast<size_t>(parts));
    parallel_parts(5, parts, [&](int part, int64_t begin, int64_t end) {
      ++calls[static_cast<size_t>(part)];
      ranges[static_cast<size_t>(part)] = {begin, end};
    });
    for (int part = 0; part < parts; ++part) {
      const Range expected = range_of(5, part, parts);  // empty ones are called too: every partial result is written
      EXPECT_EQ(calls[static_cast<size_t>(part)].load(), 1);
      EXPECT_EQ(ranges[static_cast<size_t>(part)].begin, expected.begin);
      EXPECT_EQ(ranges[static_cast<size_t>(part)].end, expected.end);
    }
  }
}

// What reproducible partial sums rest on: the same parts, added in part order, give the same bits however often.
TEST_F(ParallelFor, PartialSumsInPartOrderRepeatBitForBit) {
  set_num_threads(3);
  std::vector<float> values(10'007);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 1.0f / static_cast<float>(i * 7919 % 10'007 + 1);
  const auto sum = [&] {
    std::vector<float> partial(3, 0.0f);
    parallel_parts(static_cast<int64_t>(values.size()), 3, [&](int part, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) partial[static_cast<size_t>(part)] += values[static_cast<size_t>(i)];
    });
    return partial[0] + partial[1] + partial[2];
  };
  const float first = sum();
  for (int repeat = 0; repeat < 20; ++repeat) ASSERT_EQ(sum(), first);
}

}  // namespace
}  // namespace lamina::cpu
