#include "core/ops/optimizer/adamw.h"

#include "core/ops/optimizer/implementations.h"
#include "core/ops/simd/instruction_set.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

struct State {
  State(DType acc, DType param_dtype, int64_t count)
      : master(test::normal(acc, {count}, 1)),
        grad(test::normal(acc, {count}, 2)),
        m(test::zeros(acc, {count})),
        v(test::zeros(acc, {count})),
        param(test::poisoned(param_dtype, {count})) {}
  AdamW args(int64_t step, bool with_param) const {
    AdamW out{master, grad, m, v, {}, step};
    if (with_param) out.param = param;
    out.lr = 1e-2, out.beta1 = 0.8, out.beta2 = 0.9, out.eps = 1e-6, out.weight_decay = 0.3, out.grad_scale = 0.7;
    return out;
  }
  Tensor master, grad, m, v, param;
};

TEST(AdamW, ReferenceIsTheFormula) {
  TestContext context;
  const State state(DType::f64, DType::f64, 5);
  auto w = test::values(state.master);
  std::vector<double> m(5), v(5);
  for (int64_t step = 1; step <= 4; ++step) {
    adamw(context.fastest, state.args(step, true));
    for (size_t i = 0; i < 5; ++i) {
      const double g = 0.7 * test::get(state.grad, static_cast<int64_t>(i));
      m[i] = 0.8 * m[i] + 0.2 * g;
      v[i] = 0.9 * v[i] + 0.1 * g * g;
      const double corrected_m = m[i] / (1 - std::pow(0.8, step)), corrected_v = v[i] / (1 - std::pow(0.9, step));
      w[i] = w[i] * (1 - 1e-2 * 0.3) - 1e-2 * corrected_m / (std::sqrt(corrected_v) + 1e-6);
      const int64_t at = static_cast<int64_t>(i);
      EXPECT_NEAR(test::get(state.master, at), w[i], 1e-14);
      EXPECT_NEAR(test::get(state.m, at), m[i], 1e-15);
      EXPECT_NEAR(test::get(state.v, at), v[i], 1e-15);
      EXPECT_EQ(test::get(state.param, at), test::get(state.master, at));
    }
  }
}

// ref's fma() rounds once. So do the kernels where the processor has it; elsewhere a product and a sum round twice, each by
// 2^-24 of the operands, which the steps bring down from about 0.1 to any smaller value.
void expect_same(const std::vector<double>& fast, const std::vector<double>& slow) {
  if (std::string_view(cpu::instruction_set_name()).starts_with("AVX")) {
    EXPECT_EQ(fast, slow);
    return;
  }
  ASSERT_EQ(fast.size(), slow.size());
  for (size_t i = 0; i < fast.size(); ++i) EXPECT_NEAR(fast[i], slow[i], 0x1p-21 * (std::abs(slow[i]) + 0.1)) << i;
}

TEST(AdamW, FastestGivesTheReferencesBits) {
  TestContext context;
  for (const DType param : {DType::f32, DType::bf16}) {
    for (const int64_t count : {1, 15, 64, 1003, 70001}) {
      for (const bool with_param : {true, false}) {
        const State fast(DType::f32, param, count), slow(DType::f32, param, count);
        for (int64_t step = 1; step <= 3; ++step) {
          adamw(context.fastest, fast.args(step, with_param));
          adamw(context.reference, slow.args(step, with_param));
        }
        expect_same(test::values(fast.master), test::values(slow.master));
        expect_same(test::values(fast.m), test::values(slow.m));
        expect_same(test::values(fast.v), test::values(slow.v));
        if (!with_param) continue;
        for (int64_t i = 0; i < count; ++i) {
          const float master = fast.master->as<float>()[i];
          EXPECT_EQ(test::get(fast.param, i), param == DType::f32 ? master : static_cast<float>(bf16(master)));
        }
      }
    }
  }
}

TEST(AdamW, RefusesWhatDoesNotFit) {
  TestContext context;
  const State state(DType::f32, DType::bf16, 5), other(DType::f64, DType::f64, 5), longer(DType::f32, DType::f32, 6);
  const auto fails = [&](auto change) {
    AdamW args = state.args(1, true);
    change(args);
    EXPECT_THROW(adamw(context.fastest, args), InternalError);
  };
  fails([](AdamW& args) { args.step = 0; });
  fails([&](AdamW& args) { args.grad = other.grad; });
  fails([&](AdamW& args) { args.m = longer.m; });
  fails([&](AdamW& args) { args.v = {}; });
  fails([&](AdamW& args) { args.param = other.param; });
  fails([&](AdamW& args) { args.master = state.param; });
  EXPECT_NE(cpu::adamw_refuses(other.args(1, false)), nullptr);
  EXPECT_EQ(cpu::adamw_refuses(state.args(1, true)), nullptr);
}

}  // namespace
}  // namespace lamina::ops
