#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/rng.h"
#include "core/base/shape.h"

namespace lamina {
namespace {

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(static_cast<float>(bf16(1.0f)), 1.0f);
  EXPECT_EQ(static_cast<float>(bf16(1.0f + 0x1p-8f)), 1.0f);                // a tie: to even
  EXPECT_EQ(static_cast<float>(bf16(1.0f + 3 * 0x1p-8f)), 1.0f + 0x1p-6f);  // a tie: to even, upwards
  EXPECT_EQ(static_cast<float>(bf16(1.0f + 0x1p-8f + 0x1p-20f)), 1.0f + 0x1p-7f);
  EXPECT_TRUE(std::isinf(static_cast<float>(bf16(std::numeric_limits<float>::max()))));
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(static_cast<float>(bf16(-0.0f)), 0.0f);
}

TEST(Error, CheckNamesTheExpressionAndTheValues) {
  const int found = 3;
  try {
    LAMINA_CHECK(found == 4, "found {}", found);
    FAIL() << "the check passed";
  } catch (const InternalError& failure) {
    const std::string message = failure.what();
    EXPECT_NE(message.find("found == 4"), std::string::npos) << message;
    EXPECT_NE(message.find("found 3"), std::string::npos) << message;
  }
  EXPECT_NO_THROW(LAMINA_CHECK(found == 3));
}

TEST(Shape, CountsAndCompares) {
  const Shape a{2, 3, 4};
  EXPECT_EQ(a.num_elements(), 24);
  EXPECT_EQ(a[-1], 4);
  EXPECT_EQ(a.to_string(), "[2, 3, 4]");
  EXPECT_TRUE(a == (Shape{2, 3, 4}));
  EXPECT_FALSE(a == (Shape{2, 3}));
  EXPECT_FALSE(a == (Shape{2, 3, 5}));
  EXPECT_EQ(Shape().num_elements(), 1);
  EXPECT_THROW((Shape{1, 2, 3, 4, 5, 6}), InternalError);
}

// Known answers of Philox4x32-10, from the Random123 distribution's kat_vectors.
TEST(Rng, PhiloxKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Rng, IsAFunctionOfSeedStreamAndIndex) {
  const CounterRng a(1, "x"), b(1, "x"), c(2, "x"), d(1, "y");
  EXPECT_EQ(a.bits(7), b.bits(7));
  EXPECT_NE(a.bits(7), a.bits(8));
  EXPECT_NE(a.bits(7), c.bits(7));
  EXPECT_NE(a.bits(7), d.bits(7));
}

TEST(Rng, MomentsOfTheNormal) {
  const CounterRng rng(3, "normal");
  const int n = 100000;
  double sum = 0, square = 0, fourth = 0;
  for (int i = 0; i < n; ++i) {
    const double x = rng.normal(static_cast<uint64_t>(i));
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  EXPECT_NEAR(sum / n, 0.0, 5 / std::sqrt(n));  // five standard errors
  EXPECT_NEAR(square / n, 1.0, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth / n, 3.0, 5 * std::sqrt(96.0 / n));
}

TEST(Rng, BelowStaysBelow) {
  const CounterRng rng(4, 9);
  std::array<int, 7> count{};
  for (uint64_t i = 0; i < 7000; ++i) ++count[rng.below(i, 7)];
  for (int c : count) EXPECT_NEAR(c, 1000, 150);
}

TEST(Hash, StreamingEqualsWhole) {
  StreamingHash hash;
  hash.update("abc", 3);
  StreamingHash moved = std::move(hash);
  moved.update("def", 3);
  EXPECT_EQ(moved.digest(), hash64("abcdef"));
  EXPECT_NE(moved.digest(), hash64("abcdeg"));
  EXPECT_EQ(hash_to_hex(0xabcull), "0000000000000abc");
}

}  // namespace
}  // namespace lamina
