#include "parallel/comm/reduce.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

namespace lamina::comm {
namespace {

TEST(Reduce, Bf16SumsInFloatAndRoundsOnce) {
  // 1 + 2^-8 is a tie that rounds back to 1; only a sum that is rounded at the end sees both halves.
  const bf16 one(1.0f), half_ulp(0x1p-8f);
  bf16 out;
  const std::array<const void*, 3> sources{&one, &half_ulp, &half_ulp};
  reduce_in_order(ReduceOp::sum, DType::bf16, sources, &out, 1);
  EXPECT_EQ(static_cast<float>(out), 1.0f + 0x1p-7f);
}

TEST(Reduce, SumsGoFromLeftToRight) {
  const float large = 0x1p24f, one = 1.0f, minus_large = -0x1p24f;
  float out = 0;
  const std::array<const void*, 3> absorbed{&large, &one, &minus_large};
  reduce_in_order(ReduceOp::sum, DType::f32, absorbed, &out, 1);
  EXPECT_EQ(out, 0.0f);
  const std::array<const void*, 3> kept{&large, &minus_large, &one};
  reduce_in_order(ReduceOp::sum, DType::f32, kept, &out, 1);
  EXPECT_EQ(out, 1.0f);
}

TEST(Reduce, NanWinsMaximaAndMinima) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float a[2] = {nan, 1.0f}, b[2] = {2.0f, nan}, c[2] = {3.0f, 4.0f};
  const std::array<const void*, 3> sources{a, b, c};
  for (ReduceOp op : {ReduceOp::max, ReduceOp::min}) {
    float out[2] = {0, 0};
    reduce_in_order(op, DType::f32, sources, out, 2);
    EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[1]));
  }
}

TEST(Reduce, IntegerSumsWrapAround) {
  const int32_t big = std::numeric_limits<int32_t>::max(), one = 1, back = -1;
  int32_t out = 0;
  const std::array<const void*, 2> over{&big, &one};
  reduce_in_order(ReduceOp::sum, DType::i32, over, &out, 1);
  EXPECT_EQ(out, std::numeric_limits<int32_t>::min());
  const std::array<const void*, 3> there_and_back{&big, &one, &back};
  reduce_in_order(ReduceOp::sum, DType::i32, there_and_back, &out, 1);
  EXPECT_EQ(out, big);
}

TEST(Reduce, OneSourceIsCopiedAsItIs) {
  // Every bit, also of a NaN.
  const uint32_t bits = 0x7fa12345u;
  uint32_t out = 0;
  const std::array<const void*, 1> sources{&bits};
  reduce_in_order(ReduceOp::sum, DType::f32, sources, &out, 1);
  EXPECT_EQ(out, bits);
}

TEST(Reduce, NoSourceIsABug) {
  float out = 0;
  EXPECT_THROW(reduce_in_order(ReduceOp::sum, DType::f32, {}, &out, 1), InternalError);
}

}  // namespace
}  // namespace lamina::comm
