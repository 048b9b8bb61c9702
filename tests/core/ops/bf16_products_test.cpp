// Under DNNL_MAX_CPU_ISA these run as on an older processor, too (tests/CMakeLists.txt).
#include "core/ops/bf16_products.h"

#include <cstdlib>

#include "core/ops/experts/experts.h"
#include "core/ops/matmul/matmul.h"
#include "tests/support/op_test.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

TEST(Bf16Products, AreNamedByTheirNativeClasses) {
  EXPECT_EQ(to_text(Bf16Products()), "single_row,dense,weight_gradient,tile,expert_gradient");
  EXPECT_EQ(to_text(Bf16Products::through_fp32()), "none");
  for (int bits = 0; bits < 1 << num_product_classes; ++bits) {
    Bf16Products products;
    for (size_t i = 0; i < products.native.size(); ++i) products.native[i] = ((bits >> i) & 1) != 0;
    EXPECT_EQ(parse_bf16_products(to_text(products)), products);
  }
  for (const char* wrong : {"", "dense,", "rows", "dense tile", "none,dense"})
    EXPECT_THROW(parse_bf16_products(wrong), Error) << wrong;
}

// What was measured with one thread of: Zen 4; an Emerald Rapids without AMX, where a single row wins; and a tie.
TEST(Bf16Products, AreNativeWhereTheyWinByATenth) {
  const auto ratios = [](std::array<double, num_product_classes> native) {
    Bf16Timings timings;
    for (size_t i = 0; i < timings.size(); ++i) timings[i] = {native[i] * 3e-4, 3e-4};
    return to_text(quicker_products(timings));
  };
  EXPECT_EQ(ratios({0.35, 0.47, 0.52, 0.44, 0.50}), to_text(Bf16Products()));
  EXPECT_EQ(ratios({0.55, 1.9, 1.9, 1.9, 1.9}), "single_row");
  EXPECT_EQ(ratios({1, 1, 1, 1, 1}), "none");
  EXPECT_EQ(ratios({0.89, 0.91, 0.89, 0.91, 0.89}), "single_row,weight_gradient,expert_gradient");
  EXPECT_EQ(to_text(quicker_products({})), "none") << "nothing native, nothing measured";
}

TEST(Bf16Products, AreMeasuredOnceWhereThereAreNativeOnes) {
  const Bf16Timings& timings = bf16_timings();
  EXPECT_EQ(&timings, &bf16_timings());
  for (const Bf16Timing& timing : timings) {
    EXPECT_EQ(timing.native > 0, has_native_bf16_products());
    EXPECT_EQ(timing.through_fp32 > 0, has_native_bf16_products());
    EXPECT_LT(timing.native, 1);
  }
}

TEST(Bf16Products, AreNotThereBelowTheLimit) {
  const char* limit = std::getenv("DNNL_MAX_CPU_ISA");
  if (!limit || !*limit) GTEST_SKIP() << "DNNL_MAX_CPU_ISA is not set";
  EXPECT_FALSE(has_native_bf16_products()) << limit;
}

// Through fp32, a sum in fp32 has the bits of the product of the same values in fp32: so it is known which way it went. Without
// native products that is so in every context.
class WayOfProducts : public testing::Test {
 protected:
  void expect_fp32(OpContext& ctx) {
    for (const auto& [m, n, k, a_transposed] :
         {std::tuple{1, 96, 200, false}, std::tuple{70, 96, 200, false}, std::tuple{70, 96, 200, true}}) {
      SCOPED_TRACE(fmt::format("[{}, {}, {}], transposed {}", m, n, k, a_transposed));
      const Shape shape = a_transposed ? Shape{k, m} : Shape{m, k};
      const Tensor a = test::normal(DType::bf16, shape, 1), b = test::normal(DType::bf16, {k, n}, 2);
      const Tensor wide_a = test::to(DType::f32, a), wide_b = test::to(DType::f32, b);
      const Tensor got = test::poisoned(DType::f32, {m, n}), want = test::poisoned(DType::f32, {m, n});
      const auto left = [&](const Tensor& x) { return a_transposed ? x.view().transposed() : x.view(); };
      matmul(ctx, {left(a), b, got});
      matmul(ctx, {left(wide_a), wide_b, want});
      EXPECT_EQ(test::values(got), test::values(want));
    }
    const Tensor offsets = test::zeros(DType::i32, {2});
    test::set(offsets, 1, 40);
    const ExpertRows rows{offsets};
    const Tensor dy = test::normal(DType::bf16, {40, 48}, 3), x = test::normal(DType::bf16, {40, 70}, 4);
    const Tensor wide_dy = test::to(DType::f32, dy), wide_x = test::to(DType::f32, x);
    const Tensor got = test::zeros(DType::f32, {48, 70}), want = test::zeros(DType::f32, {48, 70});
    const std::vector<TensorView> got_views = {got}, want_views = {want};
    grouped_linear_weight_gradient(ctx, {dy, x, rows, got_views});
    grouped_linear_weight_gradient(ctx, {wide_dy, wide_x, rows, want_views});
    EXPECT_EQ(test::values(got), test::values(want));
  }
  TestContext context;
};

TEST_F(WayOfProducts, IsThroughFp32WhereTheContextSaysSo) {
  expect_fp32(context.through_fp32);
}
TEST_F(WayOfProducts, IsThroughFp32WhereThereAreNoNativeOnes) {
  if (has_native_bf16_products()) GTEST_SKIP() << product_processor();
  expect_fp32(context.fastest);
}

}  // namespace
}  // namespace lamina::ops
