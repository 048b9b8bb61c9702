#include "core/ops/optimizer/muon.h"

#include "core/ops/optimizer/implementations.h"
#include "core/ops/simd/instruction_set.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

constexpr int64_t counts[] = {1, 15, 64, 1003};

// ref's fma() rounds once; where the processor has none, a product and a sum round twice.
void expect_same(const TensorView& fast, const TensorView& slow) {
  if (std::string_view(cpu::instruction_set_name()).starts_with("AVX")) {
    EXPECT_EQ(test::values(fast), test::values(slow));
    return;
  }
  for (int64_t i = 0; i < slow.num_elements(); ++i)
    EXPECT_NEAR(test::get(fast, i), test::get(slow, i), 0x1p-21 * (std::abs(test::get(slow, i)) + 1.0)) << i;
}

TEST(Muon, ReferenceIsTheFormula) {
  TestContext context;
  const Tensor grad = test::normal(DType::f64, {7}, 1), buffer = test::normal(DType::f64, {7}, 2),
               out = test::poisoned(DType::f64, {7}), master = test::normal(DType::f64, {7}, 3),
               param = test::poisoned(DType::f64, {7});
  const auto g = test::values(grad), b = test::values(buffer), w = test::values(master);
  muon_momentum(context.reference, {grad, buffer, out, 0.9, 0.5});
  muon_apply(context.reference, {out, master, param, 1e-2, 0.3, 2.0});
  for (size_t i = 0; i < 7; ++i) {
    const double moved = 0.9 * b[i] + 0.5 * g[i], update = 0.5 * g[i] + 0.9 * moved;
    const auto at = static_cast<int64_t>(i);
    EXPECT_NEAR(test::get(buffer, at), moved, 1e-14);
    EXPECT_NEAR(test::get(out, at), update, 1e-14);
    EXPECT_NEAR(test::get(master, at), w[i] * (1 - 1e-2 * 0.3) - 1e-2 * 2.0 * update, 1e-14);
    EXPECT_EQ(test::get(param, at), test::get(master, at));
  }
}

TEST(Muon, FastestGivesTheReferencesBits) {
  TestContext context;
  for (const int64_t count : counts) {
    const Tensor grad = test::normal(DType::f32, {count}, 1), fast_buffer = test::normal(DType::f32, {count}, 2),
                 slow_buffer = test::normal(DType::f32, {count}, 2), fast = test::poisoned(DType::f32, {count}),
                 slow = test::poisoned(DType::f32, {count});
    muon_momentum(context.fastest, {grad, fast_buffer, fast, 0.95, 0.7});
    muon_momentum(context.reference, {grad, slow_buffer, slow, 0.95, 0.7});
    expect_same(fast_buffer, slow_buffer);
    expect_same(fast, slow);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Tensor fast_master = test::normal(DType::f32, {count}, 3),
                   slow_master = test::normal(DType::f32, {count}, 3), param = test::poisoned(dtype, {count});
      muon_apply(context.fastest, {slow, fast_master, param, 1e-2, 0.3, 2.0});
      muon_apply(context.reference, {slow, slow_master, {}, 1e-2, 0.3, 2.0});
      expect_same(fast_master, slow_master);
      for (int64_t i = 0; i < count; ++i) {
        const float master = fast_master->as<float>()[i];
        EXPECT_EQ(test::get(param, i), dtype == DType::f32 ? master : static_cast<float>(bf16(master)));
      }
      muon_apply(context.fastest, {slow, fast_master, {}, 1e-2, 0.3, 2.0});
      muon_apply(context.reference, {slow, slow_master, {}, 1e-2, 0.3, 2.0});
      expect_same(fast_master, slow_master);
    }
  }
}

// Shards of a flat array begin anywhere.
TEST(Muon, AnyAlignment) {
  TestContext context;
  const Tensor update = test::normal(DType::f32, {40}, 1), fast = test::normal(DType::f32, {41}, 2),
               slow = test::normal(DType::f32, {41}, 2), param = test::poisoned(DType::bf16, {43});
  for (OpContext* ctx : {&context.fastest, &context.reference}) {
    const TensorView master = ctx == &context.fastest ? fast : slow;
    muon_apply(*ctx, {update, master.slice(0, 1, 41), param->slice(0, 3, 43), 1e-2, 0.3, 2.0});
  }
  expect_same(fast, slow);
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(test::get(param, i)));
}

TEST(Muon, RefusesWhatDoesNotFit) {
  TestContext context;
  const Tensor x = test::zeros(DType::f32, {4}), longer = test::zeros(DType::f32, {5}),
               wide = test::zeros(DType::f64, {4}), matrix = test::zeros(DType::f32, {2, 2});
  EXPECT_NO_THROW(muon_momentum(context.fastest, {x, x, x}));
  EXPECT_THROW(muon_momentum(context.fastest, {x, longer, x}), InternalError);
  EXPECT_THROW(muon_momentum(context.fastest, {x, x, wide}), InternalError);
  EXPECT_THROW(muon_momentum(context.fastest, {matrix, matrix, matrix}), InternalError);
  EXPECT_THROW(muon_apply(context.fastest, {longer, x, {}}), InternalError);
  EXPECT_THROW(muon_apply(context.fastest, {x, x, wide}), InternalError);
  EXPECT_THROW(muon_apply(context.fastest, {x, {}, {}}), InternalError);
  EXPECT_NE(cpu::muon_momentum_refuses({wide, wide, wide}), nullptr);
  EXPECT_EQ(cpu::muon_apply_refuses({x, x, {}}), nullptr);
}

}  // namespace
}  // namespace lamina::ops
