#include "trainer/peak_rate.h"

#include <gtest/gtest.h>

#include <chrono>

namespace lamina {
namespace {

TEST(PeakRate, IsARateInAShortTime) {
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::fp64}) {
    const auto begin = std::chrono::steady_clock::now();
    Stream stream;
    const double gflops = measure_peak_gflops(precision, stream);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    // A hundredth of a slow core under a sanitizer, and more than any processor has.
    EXPECT_GT(gflops, 1e-3);
    EXPECT_LT(gflops, 1e6);
    EXPECT_LT(seconds, 5) << "0.3 s on an idle machine";
  }
}

}  // namespace
}  // namespace lamina
