// What waiting costs. A process of its own: its main() comes first, as that of a command.
#include "core/device/cpu/waiting.h"

#include <gtest/gtest.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "core/device/cpu/parallel_for.h"

namespace lamina {
namespace {

int argument_count = 0;
char** arguments = nullptr;

double process_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Two threads: the library itself spins less when it has more threads than there are cores.
// The cheapest of many counts: on a quiet machine a spin of the library's own length takes 7 ms each time; a busy one adds to some.
// Between two loops the thread that starts them sleeps; what the process computes meanwhile is the other threads' spinning.
TEST(Waiting, OfThreadsForALoopCostsLittle) {
  cpu::set_num_threads(2);
  const auto loop = [] { cpu::parallel_for(64, 1, [](int64_t, int64_t) {}); };
  loop();
  double least = 1;
  for (int gap = 0; gap < 20; ++gap) {
    loop();
    const double before = process_cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    least = std::min(least, process_cpu_seconds() - before);
  }
  EXPECT_LT(least, 2e-3) << "CPU seconds in the cheapest gap";
}

// And at the end of a loop the threads that are done wait for the last one.
TEST(Waiting, OfThreadsForOneAnotherCostsLittle) {
  cpu::set_num_threads(2);
  cpu::parallel_for(64, 1, [](int64_t, int64_t) {});
  double least = 1;
  for (int i = 0; i < 20; ++i) {
    const double before = process_cpu_seconds();
    cpu::parallel_for(2, 1, [](int64_t begin, int64_t) {
      if (begin == 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    });
    least = std::min(least, process_cpu_seconds() - before);
  }
  EXPECT_LT(least, 2e-3) << "CPU seconds of the cheapest loop";
}

TEST(Waiting, LeavesTheProcessAsItWas) {
  ASSERT_STREQ(std::getenv("GOMP_SPINCOUNT"), "4000");
  EXPECT_EQ(std::to_string(getpid()), std::getenv("LAMINA_TEST_PID")) << "another process";
  ASSERT_EQ(argument_count, 3);
  EXPECT_STREQ(arguments[1], "an argument");
  EXPECT_STREQ(arguments[2], "");
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  setenv("LAMINA_TEST_PID", std::to_string(getpid()).c_str(), 0);
  lamina::cpu::shorten_spins(argv);
  lamina::argument_count = argc;
  lamina::arguments = argv;
  int one = 1;
  ::testing::InitGoogleTest(&one, argv);
  return RUN_ALL_TESTS();
}
