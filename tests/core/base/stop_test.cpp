#include "core/base/stop.h"

#include <gtest/gtest.h>

#include <csignal>

namespace lamina {
namespace {

class Stop : public testing::Test {
 protected:
  void SetUp() override { stop::reset(); }
  void TearDown() override {
    stop::reset();
    std::signal(SIGTERM, SIG_DFL);
    std::signal(SIGUSR1, SIG_DFL);
  }
};

TEST_F(Stop, NothingIsRequestedAtFirst) {
  stop::catch_signals();
  EXPECT_FALSE(stop::requested());
  EXPECT_EQ(stop::reason(), "");
  EXPECT_NO_THROW(stop::check());
}

TEST_F(Stop, SignalsSetTheRequestAndTheFirstIsNamed) {
  stop::catch_signals();
  std::raise(SIGUSR1);
  EXPECT_TRUE(stop::requested());
  std::raise(SIGTERM);  // neither another signal nor a repeated one ends the process
  std::raise(SIGTERM);
  EXPECT_EQ(stop::reason(), "SIGUSR1");
  stop::reset();
  std::raise(SIGTERM);
  EXPECT_EQ(stop::reason(), "SIGTERM");
}

TEST_F(Stop, CheckThrowsTheReason) {
  stop::request("train.max_minutes");
  stop::request("another");
  try {
    stop::check();
    FAIL() << "expected Stopped";
  } catch (const Stopped& stopped) {
    EXPECT_STREQ(stopped.what(), "train.max_minutes");
  }
}

TEST(StopDeathTest, WithoutAHandlerASignalEndsTheProcess) {
  EXPECT_EXIT(std::raise(SIGTERM), testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace lamina
