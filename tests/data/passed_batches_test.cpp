#include "data/passed_batches.h"

#include <gmock/gmock.h>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace lamina {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string refusal(const std::string& text) {
  try {
    parse_step_ranges(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(StepRanges, AreReadAndJoined) {
  EXPECT_THAT(parse_step_ranges(""), ElementsAre());
  EXPECT_THAT(parse_step_ranges(" 7 "), ElementsAre(StepRange{7, 7}));
  EXPECT_THAT(parse_step_ranges("1230-1240,1300"), ElementsAre(StepRange{1230, 1240}, StepRange{1300, 1300}));
  EXPECT_THAT(parse_step_ranges("9, 3 - 5, 6-7,4"), ElementsAre(StepRange{3, 7}, StepRange{9, 9}));
  EXPECT_EQ(to_text(parse_step_ranges("9, 3 - 5, 6-7,4")), "3-7, 9");
  EXPECT_EQ(to_text({}), "");
  for (const char* wrong : {"0", "-3", "5-4", "3-", "x", "3,", ",", "1 2", "1.5", "99999999999999999999"})
    EXPECT_THAT(refusal(wrong), HasSubstr("expected steps from 1")) << wrong;
}

// Against the plain list of what is left.
TEST(PassedBatches, StepsTakeTheRestInOrder) {
  const CounterRng rng(3, 1);
  for (uint64_t trial = 0; trial < 50; ++trial) {
    PassedBatches passed;
    std::vector<bool> is_passed(200, false);
    for (uint64_t i = 0; i < 6; ++i) {
      const auto first = static_cast<int64_t>(1 + rng.bits(2 * (6 * trial + i)) % 80);
      const auto last = first + static_cast<int64_t>(rng.bits(2 * (6 * trial + i) + 1) % 7);
      passed.add(StepRange{first, last});
      for (int64_t b = first; b <= last; ++b) is_passed[static_cast<size_t>(b)] = true;
    }
    int64_t step = 0;
    for (int64_t batch = 1; batch < 200; ++batch) {
      if (!is_passed[static_cast<size_t>(batch)]) {
        EXPECT_EQ(passed.batch_of(++step), batch);
      }
    }
    EXPECT_EQ(passed.batch_of(0), 0);
    for (const int64_t end : {1, 17, 60, 300}) {
      const PassedBatches part = passed.before(end);
      for (int64_t batch = 1; batch < 200; ++batch) {
        bool within = false;
        for (const StepRange& range : part.ranges()) within = within || (range.first <= batch && batch <= range.last);
        EXPECT_EQ(within, is_passed[static_cast<size_t>(batch)] && batch < end);
      }
    }
  }
}

}  // namespace
}  // namespace lamina
