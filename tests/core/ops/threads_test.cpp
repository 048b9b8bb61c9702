// The same bits at any number of threads, of every operation that is our own; oneDNN's products are the one exception (see
// Matmul's tests). More threads than cores are no obstacle. Attention, depth attention, embeddings, experts, the router, the
// recurrence of KDA, Newton-Schulz and sums of squares have such tests of their own.
#include <functional>
#include <optional>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/hyper_connections/hyper_connections.h"
#include "core/ops/kda/kda.h"
#include "core/ops/optimizer/adamw.h"
#include "core/ops/optimizer/muon.h"
#include "core/ops/rms_norm/rms_norm.h"
#include "core/ops/short_conv/short_conv.h"
#include "core/ops/swiglu/swiglu.h"
#include "tests/support/op_test.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Rows enough for each of seven threads to get some, and for parts of unequal size; dims that make no whole vector.
constexpr int64_t num_tokens = 1403, num_heads = 3, head_dim = 37;

using Results = std::vector<std::vector<double>>;

Results values_of(std::initializer_list<TensorView> tensors) {
  Results out;
  for (const TensorView& tensor : tensors) out.push_back(test::values(tensor));
  return out;
}

void expect_same_at_any_number_of_threads(const std::function<Results(TestContext&)>& run) {
  const int before = cpu::num_threads();
  TestContext context;
  cpu::set_num_threads(1);
  const Results one = run(context);
  for (const std::vector<double>& values : one) {
    for (const double value : values) ASSERT_TRUE(std::isfinite(value));
  }
  for (const int threads : {2, 3, 4, 7}) {
    cpu::set_num_threads(threads);
    EXPECT_TRUE(run(context) == one) << threads << " threads";
  }
  cpu::set_num_threads(before);
}

class Threads : public testing::TestWithParam<DType> {};

TEST_P(Threads, RmsNorm) {
  const DType dtype = GetParam(), acc = accumulation_dtype(dtype);
  const Shape shape{num_tokens, 200};
  const Tensor x = test::normal(dtype, shape, 1), delta = test::normal(dtype, shape, 2),
               weight = test::normal(dtype, {200}, 3), dy = test::normal(dtype, shape, 4);
  expect_same_at_any_number_of_threads([&](TestContext& context) {
    const Tensor sum = test::poisoned(dtype, shape), y = test::poisoned(dtype, shape),
                 rstd = test::poisoned(acc, {num_tokens}), dx = test::poisoned(dtype, shape),
                 dweight = test::zeros(acc, {200}), again = test::poisoned(dtype, shape);
    test::fill(dweight, 0.5);
    rms_norm_forward(context.fastest, {x, weight, 1e-5, y, rstd, delta, sum});
    rms_norm_backward(context.fastest, {sum, weight, rstd, dy, dx, GradMode::overwrite, dweight});
    rms_norm_apply(context.fastest, {sum, weight, rstd, again});
    return values_of({y, rstd, sum, dx, dweight, again});
  });
}

TEST_P(Threads, HyperConnections) {
  const DType dtype = GetParam(), acc = accumulation_dtype(dtype);
  const int64_t n = 4, dim = 50;
  const Tensor x = test::normal(dtype, {num_tokens, n * dim}, 1), y = test::normal(dtype, {num_tokens, dim}, 2),
               z = test::normal(acc, {num_tokens, num_projections(n)}, 3), alpha = test::normal(acc, {3}, 4),
               bias = test::normal(acc, {num_projections(n)}, 5), dh = test::normal(acc, {num_tokens, dim}, 6);
  expect_same_at_any_number_of_threads([&](TestContext& context) {
    const Tensor rstd = test::poisoned(acc, {num_tokens}), h = test::poisoned(dtype, {num_tokens, dim}),
                 c = test::poisoned(acc, {num_tokens, num_coefficients(n)}), next = test::poisoned(dtype, x->shape),
                 d = test::normal(acc, x->shape, 7), dc = test::poisoned(acc, c->shape),
                 dy = test::poisoned(dtype, y->shape), dz = test::poisoned(acc, z->shape),
                 dalpha = test::zeros(acc, {3}), dbias = test::zeros(acc, bias->shape),
                 sum = test::poisoned(dtype, y->shape);
    hyper_coefficients_forward(context.fastest, {x, z, alpha, bias, n, 1e-5, rstd, c});
    hyper_read(context.fastest, {x, c, n, h});
    hyper_write(context.fastest, {x, c, n, y, next});
    hyper_output_gradient(context.fastest, {d, c, n, dy});
    hyper_backward(context.fastest, {x, c, n, y, dh, d, dc});
    hyper_coefficients_backward(context.fastest, {x, z, alpha, bias, n, rstd, c, dc, dz, d, dalpha, dbias});
    hyper_reduce(context.fastest, {next, 0.25, sum});
    return values_of({rstd, c, h, next, dy, d, dc, dz, dalpha, dbias, sum});
  });
}

TEST_P(Threads, ShortConv) {
  const DType dtype = GetParam(), acc = accumulation_dtype(dtype);
  const Shape shape{3, 467, 100};
  const Tensor x = test::normal(dtype, shape, 1), weight = test::normal(acc, {100, 4}, 2),
               dy = test::normal(dtype, shape, 3);
  const Tensor starts(DType::i32, {3, 467});
  for (int64_t n = 0; n < 3 * 467; ++n) starts->as<int32_t>()[n] = n % 467 < 130 ? 0 : 130;
  for (const TensorView& document_starts : {TensorView(), starts.view()}) {
    expect_same_at_any_number_of_threads([&](TestContext& context) {
      const Tensor y = test::poisoned(dtype, shape), dx = test::poisoned(dtype, shape),
                   dweight = test::zeros(acc, {100, 4});
      test::fill(dweight, 0.5);
      short_conv_forward(context.fastest, {x, weight, document_starts, y});
      short_conv_backward(context.fastest, {x, weight, document_starts, dy, dx, dweight});
      return values_of({y, dx, dweight});
    });
  }
}

TEST_P(Threads, KdaGate) {
  const DType dtype = GetParam(), acc = accumulation_dtype(dtype);
  const Shape shape{num_tokens, num_heads, head_dim}, per_head{num_tokens, num_heads};
  const Tensor f = test::normal(dtype, shape, 1), dt_bias = test::normal(acc, {num_heads, head_dim}, 2),
               a_log = test::normal(acc, {num_heads}, 3), beta_logits = test::normal(dtype, per_head, 4);
  const Tensor dg = test::normal(acc, shape, 5), dbeta = test::normal(acc, per_head, 6);
  for (const std::optional<double> bound : {std::optional<double>(), std::optional<double>(-5.0)}) {
    expect_same_at_any_number_of_threads([&](TestContext& context) {
      const Tensor g = test::poisoned(acc, shape), beta = test::poisoned(acc, per_head);
      const Tensor df = test::poisoned(dtype, shape), dlogits = test::poisoned(dtype, per_head);
      const Tensor d_dt_bias = test::zeros(acc, {num_heads, head_dim}), d_a_log = test::zeros(acc, {num_heads});
      test::fill(d_dt_bias, 0.5);
      test::fill(d_a_log, 0.5);
      kda_gate_forward(context.fastest, {f, dt_bias, a_log, bound, beta_logits, g, beta});
      kda_gate_backward(context.fastest, {f, dt_bias, a_log, bound, beta, dg, dbeta, df, dlogits, d_dt_bias, d_a_log});
      return values_of({g, beta, df, dlogits, d_dt_bias, d_a_log});
    });
  }
}

TEST_P(Threads, NormsOfHeads) {
  const DType dtype = GetParam(), acc = accumulation_dtype(dtype);
  const Shape shape{num_tokens, num_heads, head_dim}, per_head{num_tokens, num_heads};
  const Tensor o = test::normal(dtype, shape, 1), gate = test::normal(dtype, shape, 2),
               weight = test::normal(acc, {head_dim}, 3), dy = test::normal(dtype, shape, 4);
  expect_same_at_any_number_of_threads([&](TestContext& context) {
    const Tensor y = test::poisoned(dtype, shape), rstd = test::poisoned(acc, per_head),
                 d_o = test::poisoned(dtype, shape), dgate = test::poisoned(dtype, shape),
                 dweight = test::zeros(acc, {head_dim}), again = test::poisoned(dtype, shape),
                 unit = test::poisoned(dtype, shape), unit_rstd = test::poisoned(acc, per_head),
                 dx = test::poisoned(dtype, shape);
    test::fill(dweight, 0.5);
    gated_rms_norm_forward(context.fastest, {o, weight, gate, 1e-5, y, rstd});
    gated_rms_norm_backward(context.fastest, {o, weight, gate, rstd, dy, d_o, dgate, dweight, again});
    l2_norm_forward(context.fastest, {o, 1e-6, unit, unit_rstd});
    l2_norm_backward(context.fastest, {unit, unit_rstd, dy, dx});
    return values_of({y, rstd, d_o, dgate, dweight, again, unit, unit_rstd, dx});
  });
}

TEST_P(Threads, Swiglu) {
  const DType dtype = GetParam(), acc = accumulation_dtype(dtype);
  const int64_t width = 150;
  const Tensor gate_up = test::normal(dtype, {num_tokens, 2 * width}, 1),
               dy = test::normal(dtype, {num_tokens, width}, 2), weight = test::normal(acc, {num_tokens}, 3);
  expect_same_at_any_number_of_threads([&](TestContext& context) {
    const Tensor y = test::poisoned(dtype, {num_tokens, width}), again = test::poisoned(dtype, {num_tokens, width}),
                 dgate_up = test::poisoned(dtype, {num_tokens, 2 * width}), dweight = test::poisoned(acc, {num_tokens});
    swiglu_forward(context.fastest, {gate_up, y, weight});
    swiglu_backward(context.fastest, {gate_up, dy, dgate_up, again, weight, dweight});
    return values_of({y, dgate_up, again, dweight});
  });
}

// Elementwise: where the threads' ranges meet must not show.
TEST_P(Threads, Optimizers) {
  const DType dtype = GetParam(), acc = accumulation_dtype(dtype);
  const int64_t count = 150'001;
  const Tensor grad = test::normal(acc, {count}, 1);
  expect_same_at_any_number_of_threads([&](TestContext& context) {
    const Tensor master = test::normal(acc, {count}, 2), m = test::normal(acc, {count}, 3),
                 param = test::poisoned(dtype, {count}), v = test::zeros(acc, {count});
    test::fill(v, 0.25);
    adamw(context.fastest, {master, grad, m, v, param, 3, 1e-3});
    const Tensor buffer = test::normal(acc, {count}, 4), out = test::poisoned(acc, {count});
    muon_momentum(context.fastest, {grad, buffer, out});
    const Tensor applied = test::normal(acc, {count}, 5), low = test::poisoned(dtype, {count});
    muon_apply(context.fastest, {out, applied, low, 1e-3});
    return values_of({master, m, v, param, buffer, out, applied, low});
  });
}

INSTANTIATE_TEST_SUITE_P(DTypes, Threads, testing::Values(DType::f32, DType::bf16, DType::f64),
                         [](const auto& given) { return std::string(name_of(given.param)); });

}  // namespace
}  // namespace lamina::ops
