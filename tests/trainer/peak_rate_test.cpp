#include "trainer/step/peak_rate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "core/device/cpu/parallel_for.h"

namespace lamina {
namespace {

double measure(Precision precision, const ops::Bf16Products& products = {}) {
  Stream stream;
  return measure_peak_gflops(precision, stream, products);
}

TEST(PeakRate, IsARateInAShortTime) {
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::fp64}) {
    const auto begin = std::chrono::steady_clock::now();
    const double gflops = measure(precision);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    // A hundredth of a slow core under a sanitizer, and more than any processor has.
    EXPECT_GT(gflops, 1e-3);
    EXPECT_LT(gflops, 1e6);
    EXPECT_LT(seconds, 20) << "0.3 s on an idle machine";
  }
}

// Four programs to a core: a rate by the clock would be a fifth, or where threads wait for one another less than that.
TEST(PeakRate, IsThatOfTheThreadsAlone) {
  const double alone = measure(Precision::fp32);
  std::atomic<bool> over = false;
  std::vector<std::thread> others;
  for (unsigned i = 0; i < 4 * std::thread::hardware_concurrency(); ++i)
    others.emplace_back([&] {
      while (!over) continue;
    });
  const double crowded = measure(Precision::fp32);
  over = true;
  for (std::thread& other : others) other.join();
  EXPECT_GT(crowded, 0.5 * alone);
}

TEST(PeakRate, GrowsWithTheThreads) {
  const int before = cpu::num_threads();
  cpu::set_num_threads(1);
  const double one = measure(Precision::fp32);
  cpu::set_num_threads(3);
  EXPECT_GT(measure(Precision::fp32), 1.5 * one) << "as if each had a core";
  cpu::set_num_threads(before);
}

TEST(Mfu, IsNeverMoreThanOneWithoutAMark) {
  EXPECT_EQ(mfu_text(0.414, true), "MFU 41 %");
  EXPECT_EQ(mfu_text(1, true), "MFU 100 %");
  EXPECT_EQ(mfu_text(1.002, true), "MFU >100 % (peak measured too low)");
  EXPECT_EQ(mfu_text(17, true), "MFU >100 % (peak measured too low)");
  EXPECT_EQ(mfu_text(1.5, false), "MFU >100 % (logging.peak_gflops is too low)");
}

}  // namespace
}  // namespace lamina
