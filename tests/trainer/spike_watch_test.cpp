#include "trainer/record/spike_watch.h"

#include <gmock/gmock.h>

#include <cmath>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/io/file.h"
#include "tests/trainer/checkpoint_support.h"
#include "trainer/record/spike_log.h"

namespace lamina {
namespace {

using namespace testing_checkpoint;
using testing::HasSubstr;

constexpr double infinity = std::numeric_limits<double>::infinity();

// A loss that falls, with noise of a known deviation.
double falling(int64_t step, double deviation) {
  return 3.0 - 0.001 * static_cast<double>(step) + deviation * CounterRng(7, 0).normal(static_cast<uint64_t>(step));
}

TEST(SpikeWatch, MeasuresDeviationsOfTheNoise) {
  SpikeWatch watch(10);
  for (int64_t step = 0; step < 300; ++step) {
    EXPECT_EQ(watch.judge(falling(step, 0.1), 1.0), std::nullopt) << step;
    watch.accept(falling(step, 0.1), 1.0);
  }
  // The estimate from 127 differences strays by a fifth at most, with room.
  EXPECT_EQ(watch.judge(2.7 + 0.7, 1.0), std::nullopt);
  EXPECT_NE(watch.judge(2.7 + 1.4, 1.0), std::nullopt);
  EXPECT_EQ(watch.judge(0.1, 1.0), std::nullopt) << "falling is no spike";
}

TEST(SpikeWatch, SaysHowFarAndFromWhat) {
  SpikeWatch watch(10);
  for (int step = 0; step < 40; ++step) watch.accept(2, step % 2 == 0 ? 1 : 1.2);
  EXPECT_EQ(watch.judge(2.19, 1), std::nullopt);  // the least deviation is a hundredth of the median
  EXPECT_EQ(watch.judge(2.3, 1), "loss 2.3 is 15.0 deviations above 2, the median of 16 steps");
  // 1.1, and 1.4826 * 0.2 / sqrt(2) = 0.20967
  EXPECT_EQ(watch.judge(2, 3.19), std::nullopt);
  EXPECT_EQ(watch.judge(2, 3.3), "gradient norm 3.3 is 10.5 deviations above 1.1, the median of 16 steps");
}

TEST(SpikeWatch, JudgesFiniteNumbersLater) {
  SpikeWatch watch(10), only_infinite(0);
  for (int64_t step = 0; step < SpikeWatch::min_steps; ++step) {
    EXPECT_EQ(watch.judge(1e6, 1e6), std::nullopt);
    for (const auto& [loss, norm] : {std::pair{NAN, 1.0}, {1.0, infinity}, {-infinity, 1.0}})
      EXPECT_THAT(watch.judge(loss, norm).value_or(""), HasSubstr("expected finite numbers"));
    watch.accept(1, 1);
    only_infinite.accept(1, 1);
  }
  EXPECT_NE(watch.judge(1e6, 1), std::nullopt);
  EXPECT_EQ(only_infinite.judge(1e6, 1), std::nullopt);
  EXPECT_NE(only_infinite.judge(1e6, NAN), std::nullopt);
}

TEST(SpikeWatch, IsRestoredToTheBit) {
  SpikeWatch watch(3), other(3);
  for (int64_t step = 0; step < 200; ++step) watch.accept(falling(step, 0.1), std::exp(falling(step, 0.3)));
  other.accept(1, 1);
  other.restore(watch.to_text());
  EXPECT_EQ(other.to_text(), watch.to_text());
  for (int64_t step = 200; step < 400; ++step) {
    EXPECT_EQ(watch.judge(falling(step, 0.5), 10), other.judge(falling(step, 0.5), 10));
    watch.accept(falling(step, 0.1), 10);
    other.accept(falling(step, 0.1), 10);
  }
  for (const char* wrong : {"x", "1", "1 2 3\n", "nan 1\n", "1 x\n"})
    EXPECT_THROW(other.restore(wrong), Error) << wrong;
}

class SpikeLogTest : public testing::Test {
 protected:
  SpikeLog read() { return SpikeLog(path_, *self_); }
  TemporaryFolder folder_;
  fs::path path_ = folder_.path() / "spikes.jsonl";
  std::unique_ptr<comm::Communicator> self_ = comm::make_self_communicator();
};

TEST_F(SpikeLogTest, KeepsWhatWasPassedOver) {
  SpikeLog log = read();
  log.add({5, 5, OnSpike::warn, {}, "loss \"9\""}, true);
  log.add({7, 7, OnSpike::skip, {{7, 7}}, "a"}, true);
  log.add({9, 10, OnSpike::rewind, {{4, 10}}, "b"}, true);
  log.add({8, 14, OnSpike::skip, {{14, 14}}, "not written"}, false);
  EXPECT_EQ(to_text(log.passed().ranges()), "4-10, 14");
  io::write_file_atomically(path_, io::read_file(path_) + "{\"step\": 11, \"ba");  // killed while it wrote
  SpikeLog again = read();
  EXPECT_EQ(to_text(again.passed().ranges()), "4-10");
  EXPECT_EQ(again.num_recent(11, 128), 2);
  EXPECT_EQ(again.num_recent(11, 3), 1);
  EXPECT_EQ(again.num_recent(10, 128), 1);  // what comes later doesn't count
  again.begin_writing(4);                   // step 5 comes again
  EXPECT_EQ(io::read_file(path_),
            "{\"step\": 7, \"batch\": 7, \"action\": \"skip\", \"passed\": \"7\", \"reason\": \"a\"}\n"
            "{\"step\": 9, \"batch\": 10, \"action\": \"rewind\", \"passed\": \"4-10\", \"reason\": \"b\"}\n");
}

TEST_F(SpikeLogTest, RefusesOtherFiles) {
  for (const char* line :
       {"{}\n", "x\n", "{\"step\": 1, \"batch\": 1, \"action\": \"jump\", \"passed\": \"\", \"reason\": \"\"}\n",
        "{\"step\": 1, \"batch\": 1, \"action\": \"skip\", \"passed\": \"3-1\", \"reason\": \"\"}\n"}) {
    io::write_file_atomically(path_, line);
    EXPECT_THAT(message_of([&] { read(); }), HasSubstr("spikes.jsonl:1: found `")) << line;
  }
}

}  // namespace
}  // namespace lamina
