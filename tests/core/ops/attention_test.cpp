#include "core/ops/attention/attention.h"

#include <functional>
#include <limits>
#include <thread>

#include "core/device/cpu/parallel_for.h"
#include "tests/support/op_test.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

struct Size {
  int64_t batch, tokens, heads, d_qk, d_v;
};

// Textbook attention in double, with the whole T x T: what forward and backward must equal.
struct Textbook {
  std::vector<double> o, lse, dq, dk, dv;
};

Textbook textbook(const Size& size, const TensorView& q, const TensorView& k, const TensorView& v,
                  const TensorView& d_o, double scale) {
  const auto [batch, tokens, heads, d_qk, d_v] = size;
  const auto n_qk = static_cast<size_t>(batch * tokens * heads * d_qk),
             n_v = static_cast<size_t>(batch * tokens * heads * d_v);
  const auto qs = test::values(q), ks = test::values(k), vs = test::values(v);
  const auto dos = d_o ? test::values(d_o) : std::vector<double>(n_v, 0.0);
  Textbook out{std::vector<double>(n_v), std::vector<double>(static_cast<size_t>(batch * heads * tokens)),
               std::vector<double>(n_qk), std::vector<double>(n_qk), std::vector<double>(n_v)};
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto at = [&, b_ = b, h_ = h](int64_t t, int64_t width) {
        return static_cast<size_t>(((b_ * size.tokens + t) * size.heads + h_) * width);
      };
      for (int64_t i = 0; i < tokens; ++i) {
        const auto keys = static_cast<size_t>(i + 1);
        std::vector<double> p(keys), dp(keys);
        double largest = -1e300, total = 0, mean = 0;
        for (int64_t j = 0; j <= i; ++j) {
          double s = 0;
          for (int64_t d = 0; d < d_qk; ++d)
            s += qs[at(i, d_qk) + static_cast<size_t>(d)] * ks[at(j, d_qk) + static_cast<size_t>(d)];
          p[static_cast<size_t>(j)] = scale * s;
          largest = std::max(largest, scale * s);
        }
        for (double& x : p) total += x = std::exp(x - largest);
        out.lse[static_cast<size_t>((b * heads + h) * tokens + i)] = largest + std::log(total);
        for (int64_t j = 0; j <= i; ++j) {
          const auto jj = static_cast<size_t>(j);
          p[jj] /= total;
          for (size_t d = 0; d < static_cast<size_t>(d_v); ++d) {
            out.o[at(i, d_v) + d] += p[jj] * vs[at(j, d_v) + d];
            out.dv[at(j, d_v) + d] += p[jj] * dos[at(i, d_v) + d];
            dp[jj] += dos[at(i, d_v) + d] * vs[at(j, d_v) + d];
          }
          mean += p[jj] * dp[jj];
        }
        for (int64_t j = 0; j <= i; ++j) {
          const double ds = scale * p[static_cast<size_t>(j)] * (dp[static_cast<size_t>(j)] - mean);
          for (size_t d = 0; d < static_cast<size_t>(d_qk); ++d) {
            out.dq[at(i, d_qk) + d] += ds * ks[at(j, d_qk) + d];
            out.dk[at(j, d_qk) + d] += ds * qs[at(i, d_qk) + d];
          }
        }
      }
    }
  }
  return out;
}

// Relative to the largest element, or to 0.1 where all are smaller: inputs are of order one, and with a single token the exact
// gradients of q and k are zero.
double error_against(const TensorView& got, const std::vector<double>& want) {
  double difference = 0, size = 0.1;
  for (int64_t n = 0; n < got.num_elements(); ++n) {
    const double d = std::abs(test::get(got, n) - want[static_cast<size_t>(n)]);
    if (std::isnan(d)) return d;
    difference = std::max(difference, d);
    size = std::max(size, std::abs(want[static_cast<size_t>(n)]));
  }
  return difference / size;
}

// Views as a model makes them: q, k and v side by side in one projection ([batch, T, heads * (2 d_qk + d_v)]) when
// fused.
struct Inputs {
  Tensor memory, keep_k, keep_v;
  TensorView q, k, v;
};

Inputs make_inputs(DType dtype, const Size& size, bool fused, double magnitude) {
  const auto [batch, tokens, heads, d_qk, d_v] = size;
  if (!fused) {
    Inputs out{Tensor(dtype, {batch, tokens, heads, d_qk}),
               Tensor(dtype, {batch, tokens, heads, d_qk}),
               Tensor(dtype, {batch, tokens, heads, d_v}),
               {},
               {},
               {}};
    out.q = out.memory, out.k = out.keep_k, out.v = out.keep_v;
    test::fill_normal(out.q, 1, magnitude);
    test::fill_normal(out.k, 2, magnitude);
    test::fill_normal(out.v, 3);
    return out;
  }
  const int64_t width = 2 * d_qk + d_v;
  Inputs out{Tensor(dtype, {batch, tokens, heads, width}), Tensor(dtype, {1}), Tensor(dtype, {1}), {}, {}, {}};
  out.q = out.memory.view().slice(3, 0, d_qk);
  out.k = out.memory.view().slice(3, d_qk, 2 * d_qk);
  out.v = out.memory.view().slice(3, 2 * d_qk, width);
  test::fill_normal(out.q, 1, magnitude);
  test::fill_normal(out.k, 2, magnitude);
  test::fill_normal(out.v, 3);
  return out;
}

// tolerance: of o and the gradients, relative to their largest element.
void check(OpContext& ctx, DType dtype, const Size& size, bool fused, double magnitude, double tolerance,
           double lse_tolerance, double sign = 1.0) {
  SCOPED_TRACE(fmt::format("{} batch {}, T {}, heads {}, d_qk {}, d_v {}, fused {}", name_of(dtype), size.batch,
                           size.tokens, size.heads, size.d_qk, size.d_v, fused));
  const auto [batch, tokens, heads, d_qk, d_v] = size;
  const double scale = sign / std::sqrt(static_cast<double>(d_qk));
  const Inputs in = make_inputs(dtype, size, fused, magnitude);
  const Tensor d_o = test::normal(dtype, {batch, tokens, heads, d_v}, 4);
  const Textbook want = textbook(size, in.q, in.k, in.v, d_o, scale);
  Tensor o = test::poisoned(dtype, {batch, tokens, heads, d_v});
  Tensor lse = test::poisoned(accumulation_dtype(dtype), {batch, heads, tokens});
  attention_forward(ctx, {in.q, in.k, in.v, scale, o, lse});
  EXPECT_LE(error_against(o, want.o), tolerance);
  EXPECT_LE(error_against(lse, want.lse), lse_tolerance);
  Inputs grad = make_inputs(dtype, size, fused, 1.0);
  test::poison(grad.q);
  test::poison(grad.k);
  test::poison(grad.v);
  attention_backward(ctx, {in.q, in.k, in.v, scale, o, lse, d_o, grad.q, grad.k, grad.v});
  EXPECT_LE(error_against(grad.q, want.dq), tolerance);
  EXPECT_LE(error_against(grad.k, want.dk), tolerance);
  EXPECT_LE(error_against(grad.v, want.dv), tolerance);
}

const std::vector<Size> sizes = {{1, 1, 1, 4, 4},      {2, 3, 2, 5, 3},    {1, 17, 3, 24, 16},
                                 {2, 64, 1, 32, 32},   {1, 65, 2, 96, 64}, {1, 130, 2, 40, 72},
                                 {3, 63, 1, 192, 128}, {1, 200, 1, 7, 1},  {1, 333, 3, 48, 32}};

TEST(Attention, ReferenceInDoubleEqualsTheTextbook) {
  TestContext test;
  for (const Size& size : sizes) {
    for (bool fused : {false, true}) check(test.fastest, DType::f64, size, fused, 1.0, 1e-13, 1e-14);
  }
}

TEST(Attention, ReferenceInFloat) {
  TestContext test;
  for (const Size& size : {sizes[2], sizes[4]}) {
    check(test.reference, DType::f32, size, true, 1.0, 5e-6, 1e-6);
    check(test.reference, DType::bf16, size, true, 1.0, 0x1p-6, 1e-6);
  }
}

// fp32: sums of T products with eps 2^-23. bf16: inputs are exact, outputs and o (inside D) rounded to 2^-9.
TEST(Attention, FastestInFloat) {
  TestContext test;
  for (const Size& size : sizes) {
    for (bool fused : {false, true}) check(test.fastest, DType::f32, size, fused, 1.0, 1e-5, 1e-6);
  }
}
TEST(Attention, FastestInBf16) {
  TestContext test;
  for (const Size& size : sizes) {
    for (bool fused : {false, true}) check(test.fastest, DType::bf16, size, fused, 1.0, 0x1p-6, 1e-6);
  }
}

// One head for each width that a kernel may be written for, over several tiles, and one wider than all; scales of either sign.
TEST(Attention, WideHeads) {
  TestContext test;
  const std::vector<Size> wide = {
      {1, 150, 2, 192, 128}, {1, 140, 1, 128, 128}, {1, 100, 1, 64, 40}, {1, 90, 1, 256, 200}, {1, 70, 1, 264, 16}};
  for (const Size& size : wide) {
    for (double sign : {1.0, -1.0}) check(test.fastest, DType::bf16, size, sign < 0, 1.0, 0x1p-6, 1e-6, sign);
  }
  // Blocks take many tiles in turn.
  for (const Size& size : {Size{1, 320, 1, 192, 128}, Size{1, 411, 1, 64, 64}, Size{1, 411, 1, 256, 256}})
    check(test.fastest, DType::bf16, size, false, 1.0, 0x1p-6, 1e-6);
  check(test.fastest, DType::f32, {1, 66, 1, 264, 136}, true, 1.0, 1e-5, 1e-6, -1.0);
  check(test.fastest, DType::bf16, {1, 40, 1, 16, 16}, false, 1.0, 0x1p-6, 1e-6, 0.0);
}

// Logits of some hundreds: an unguarded exp overflows, and most probabilities vanish.
TEST(Attention, LargeLogits) {
  TestContext test;
  for (const Size& size : {Size{1, 100, 2, 24, 16}, Size{1, 257, 1, 64, 32}}) {
    check(test.fastest, DType::f64, size, false, 10.0, 1e-11, 1e-13);
    check(test.fastest, DType::f32, size, false, 5.5, 1e-3,
          1e-5);  // logits ~ 30 sqrt(d): |error| of a logit ~ 30 * 2^-22
    check(test.fastest, DType::f32, size, false, 30.0, 3e-2, 1e-5);
  }
}

TEST(Attention, EqualKeysGiveTheMean) {
  TestContext test;
  for (DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    Tensor q = test::normal(dtype, {1, 70, 1, 8}, 1), k = test::zeros(dtype, {1, 70, 1, 8}),
           v = test::zeros(dtype, {1, 70, 1, 4});
    for (int64_t t = 0; t < 70; ++t) {
      for (int64_t d = 0; d < 4; ++d) test::set(v, t * 4 + d, static_cast<double>(t + d));
    }
    Tensor o = test::poisoned(dtype, {1, 70, 1, 4}), lse = test::poisoned(accumulation_dtype(dtype), {1, 1, 70});
    attention_forward(test.fastest, {q, k, v, 0.5, o, lse});
    for (int64_t t = 0; t < 70; ++t) {
      EXPECT_NEAR(test::get(o, t * 4 + 1), static_cast<double>(t) / 2 + 1, 36 * test::epsilon_of(dtype));
      EXPECT_NEAR(test::get(lse, t), std::log(static_cast<double>(t + 1)), 1e-6);
    }
  }
}

TEST(Attention, BackwardEqualsFiniteDifferences) {
  TestContext test;
  const Size size{2, 9, 2, 6, 4};
  const double scale = 0.4, h = 1e-6;
  const Inputs in = make_inputs(DType::f64, size, true, 1.0);
  const Tensor d_o = test::normal(DType::f64, {2, 9, 2, 4}, 4);
  Tensor o = test::poisoned(DType::f64, {2, 9, 2, 4}), lse = test::poisoned(DType::f64, {2, 2, 9});
  const auto objective = [&] {
    attention_forward(test.fastest, {in.q, in.k, in.v, scale, o, lse});
    double sum = 0;
    for (int64_t n = 0; n < o->num_elements(); ++n) sum += test::get(o, n) * test::get(d_o, n);
    return sum;
  };
  objective();
  Inputs grad = make_inputs(DType::f64, size, false, 1.0);
  attention_backward(test.fastest, {in.q, in.k, in.v, scale, o, lse, d_o, grad.q, grad.k, grad.v});
  const std::vector<std::pair<TensorView, TensorView>> pairs = {{in.q, grad.q}, {in.k, grad.k}, {in.v, grad.v}};
  for (const auto& [x, dx] : pairs) {
    for (int64_t n = 0; n < x.num_elements(); n += 7) {
      const double value = test::get(x, n);
      test::set(x, n, value + h);
      const double above = objective();
      test::set(x, n, value - h);
      const double below = objective();
      test::set(x, n, value);
      EXPECT_NEAR(test::get(dx, n), (above - below) / (2 * h), 1e-8);
    }
  }
}

// Sequences of packed documents, given the documents' lengths.
Tensor starts_of(int64_t batch, const std::vector<int64_t>& lengths) {
  int64_t tokens = 0;
  for (int64_t length : lengths) tokens += length;
  Tensor starts(DType::i32, {batch, tokens});
  int64_t first = 0;
  for (int64_t length : lengths) {
    for (int64_t t = first; t < first + length; ++t) {
      for (int64_t b = 0; b < batch; ++b) test::set(starts, b * tokens + t, static_cast<double>(first));
    }
    first += length;
  }
  return starts;
}

// The largest difference between packed documents and each one on its own, of everything that forward and backward return.
double packed_against_separate(OpContext& ctx, DType dtype, int64_t heads, const std::vector<int64_t>& lengths,
                               int64_t d_qk = 24, int64_t d_v = 20) {
  const Tensor starts = starts_of(2, lengths);
  const int64_t tokens = starts->size(1);
  const Size size{2, tokens, heads, d_qk, d_v};
  const double scale = 0.3;
  const Inputs in = make_inputs(dtype, size, true, 1.0);
  const Tensor d_o = test::normal(dtype, {2, tokens, heads, d_v}, 4), o = test::poisoned(dtype, d_o->shape),
               lse = test::poisoned(accumulation_dtype(dtype), {2, heads, tokens}),
               most = test::poisoned(accumulation_dtype(dtype), {2, heads});
  Inputs grad = make_inputs(dtype, size, true, 1.0);
  for (const TensorView& view : {grad.q, grad.k, grad.v}) test::poison(view);
  attention_forward(ctx, {in.q, in.k, in.v, scale, o, lse, starts, most});
  attention_backward(ctx, {in.q, in.k, in.v, scale, o, lse, d_o, grad.q, grad.k, grad.v, starts});
  double worst = 0;
  const auto compare = [&](const TensorView& packed, const TensorView& separate) {
    for (int64_t n = 0; n < packed.num_elements(); ++n) {
      const double d = std::abs(test::get(packed, n) - test::get(separate, n));
      worst = d <= worst ? worst : d;  // NaN stays
    }
  };
  Tensor largest(most->dtype, most->shape);
  test::fill(largest, -1e30);
  int64_t first = 0;
  for (int64_t length : lengths) {
    const auto part = [&](const TensorView& view) { return view.slice(1, first, first + length); };
    const Tensor o1 = test::poisoned(dtype, {2, length, heads, d_v}),
                 lse1 = test::poisoned(lse->dtype, {2, heads, length}), most1 = test::poisoned(lse->dtype, {2, heads});
    const Tensor dq = test::poisoned(dtype, {2, length, heads, d_qk}), dk = test::poisoned(dtype, dq->shape),
                 dv = test::poisoned(dtype, o1->shape);
    attention_forward(ctx, {part(in.q), part(in.k), part(in.v), scale, o1, lse1, {}, most1});
    attention_backward(ctx, {part(in.q), part(in.k), part(in.v), scale, part(o), lse1, part(d_o), dq, dk, dv});
    compare(part(o), o1);
    compare(lse.view().slice(2, first, first + length), lse1);
    compare(part(grad.q), dq);
    compare(part(grad.k), dk);
    compare(part(grad.v), dv);
    for (int64_t n = 0; n < most1->num_elements(); ++n) {
      test::set(largest, n, std::max(test::get(largest, n), test::get(most1, n)));
    }
    first += length;
  }
  // The largest logit does not depend on the order of sums over keys.
  EXPECT_EQ(test::values(most), test::values(largest));
  return worst;
}

// The reference sums in the order of keys: packing changes nothing. So do the kernels where documents begin at whole tiles
// (64 tokens); elsewhere a document's keys fall into other tiles, and sums differ by rounding.
TEST(Attention, PackedDocumentsEqualSeparateRuns) {
  TestContext test;
  const std::vector<std::vector<int64_t>> any = {{5}, {3, 4}, {1, 1, 1}, {40, 30, 70, 60}, {63, 2, 130}, {200, 7}};
  const int threads = cpu::num_threads();
  for (int count : {1, 2}) {
    cpu::set_num_threads(count);
    for (const auto& lengths : any) {
      EXPECT_EQ(packed_against_separate(test.reference, DType::f64, 3, lengths), 0.0);
      EXPECT_LE(packed_against_separate(test.fastest, DType::f32, 3, lengths), 3e-5);
      EXPECT_LE(packed_against_separate(test.fastest, DType::bf16, 3, lengths), 0.1);  // gradients up to 8
    }
  }
  for (int count : {1, 3}) {
    cpu::set_num_threads(count);
    for (DType dtype : {DType::f32, DType::bf16}) {
      EXPECT_EQ(packed_against_separate(test.fastest, dtype, 3, {64, 128, 30}), 0.0);
      EXPECT_EQ(packed_against_separate(test.fastest, dtype, 1, {192, 64}), 0.0);
      EXPECT_EQ(packed_against_separate(test.fastest, dtype, 1, {64, 30}, 192, 128), 0.0);
    }
  }
  EXPECT_LE(packed_against_separate(test.fastest, DType::bf16, 1, {40, 90, 5, 20}, 192, 128), 0.1);
  cpu::set_num_threads(threads);
}

// Heads that don't divide evenly among the threads are shared, tile by tile.
TEST(Attention, TheSameBitsAtAnyNumberOfThreads) {
  TestContext test;
  const int before = cpu::num_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t heads : {1, 3, 5}) {
      for (const auto& lengths : std::vector<std::vector<int64_t>>{{330}, {64, 100, 166}, {1, 300, 29}}) {
        const Tensor starts = starts_of(1, lengths);
        const Size size{1, 330, heads, 32, 16};
        const Inputs in = make_inputs(dtype, size, true, 1.0);
        const Tensor d_o = test::normal(dtype, {1, 330, heads, 16}, 4);
        std::vector<double> one;
        for (const int threads : {1, 2, 3, 4, 7, 7}) {
          cpu::set_num_threads(threads);
          const Tensor o = test::poisoned(dtype, d_o->shape), lse = test::poisoned(DType::f32, {1, heads, 330});
          Inputs grad = make_inputs(dtype, size, false, 1.0);
          for (const TensorView& view : {grad.q, grad.k, grad.v}) test::poison(view);
          attention_forward(test.fastest, {in.q, in.k, in.v, 0.2, o, lse, starts});
          attention_backward(test.fastest, {in.q, in.k, in.v, 0.2, o, lse, d_o, grad.q, grad.k, grad.v, starts});
          auto all = test::values(o);
          for (const TensorView& view : {lse.view(), grad.q, grad.k, grad.v}) {
            const auto more = test::values(view);
            all.insert(all.end(), more.begin(), more.end());
          }
          if (threads == 1) one = all;
          EXPECT_TRUE(all == one) << name_of(dtype) << ", " << heads << " heads, " << threads << " threads";
        }
      }
    }
  }
  cpu::set_num_threads(before);
}

// A document's logits must not be disturbed by a neighbour's, however large.
TEST(Attention, ANeighbourWithHugeLogitsChangesNothing) {
  TestContext test;
  const Tensor starts = starts_of(1, {37, 50});
  for (DType dtype : {DType::f32, DType::f64}) {
    const Tensor k = test::normal(dtype, {1, 87, 1, 8}, 1), v = test::normal(dtype, {1, 87, 1, 8}, 2),
                 d_o = test::normal(dtype, {1, 87, 1, 8}, 3);
    for (int64_t n = 0; n < 37 * 8; ++n) test::set(k, n, 1e6 * test::get(k, n));
    const Tensor o = test::poisoned(dtype, {1, 87, 1, 8}), lse = test::poisoned(dtype, {1, 1, 87}),
                 most = test::poisoned(dtype, {1, 1});
    const Tensor dq = test::poisoned(dtype, k->shape), dk = test::poisoned(dtype, k->shape),
                 dv = test::poisoned(dtype, k->shape);
    attention_forward(test.fastest, {k, k, v, 1.0, o, lse, starts, most});
    attention_backward(test.fastest, {k, k, v, 1.0, o, lse, d_o, dq, dk, dv, starts});
    EXPECT_GT(test::get(most, 0), 1e12);
    for (int64_t n = 37 * 8; n < 87 * 8; ++n) {
      for (const TensorView& view : {o.view(), dq.view(), dk.view(), dv.view()}) {
        ASSERT_LE(std::abs(test::get(view, n)), 1e4);  // NaN and infinity fail
      }
    }
  }
}

TEST(Attention, LargestLogit) {
  TestContext test;
  for (DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const Size size{2, 150, 3, 12, 8};
    const Inputs in = make_inputs(dtype, size, false, 1.0);
    const Tensor o = test::poisoned(dtype, {2, 150, 3, 8}),
                 lse = test::poisoned(accumulation_dtype(dtype), {2, 3, 150}),
                 most = test::poisoned(accumulation_dtype(dtype), {2, 3});
    attention_forward(test.fastest, {in.q, in.k, in.v, -0.7, o, lse, {}, most});
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 3; ++h) {
        double want = -1e300;
        for (int64_t i = 0; i < 150; ++i) {
          for (int64_t j = 0; j <= i; ++j) {
            double sum = 0;
            for (int64_t d = 0; d < 12; ++d) {
              sum +=
                  test::get(in.q, ((b * 150 + i) * 3 + h) * 12 + d) * test::get(in.k, ((b * 150 + j) * 3 + h) * 12 + d);
            }
            want = std::max(want, -0.7 * sum);
          }
        }
        EXPECT_NEAR(test::get(most, b * 3 + h), want, 64 * test::epsilon_of(accumulation_dtype(dtype)) * want);
      }
    }
    const Tensor no_lse(lse->dtype, {2, 3, 0});
    const TensorView none = in.q.slice(1, 0, 0), no_value = in.v.slice(1, 0, 0);
    attention_forward(test.fastest, {none, none, no_value, 1.0, no_value, no_lse, {}, most});
    for (double value : test::values(most)) EXPECT_EQ(value, -std::numeric_limits<double>::infinity());
  }
}

// Queries of the last tokens only: the same rows as in the whole.
TEST(Attention, LastQueriesEqualTheWhole) {
  struct Case {
    int64_t tokens, heads, d_qk, d_v;
    std::vector<int64_t> queries;
  };
  std::vector<Case> cases = {{300, 1, 192, 128, {1, 70, 299}}, {150, 1, 300, 16, {40}}};
  for (const int64_t tokens : {5, 64, 130, 200})
    cases.push_back({tokens, 3, 12, 7, {1, 3, tokens - 64, tokens - 1, tokens}});
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const auto& [tokens, heads, d_qk, d_v, all_queries] : cases) {
      const int64_t batch = 2;
      const double scale = 1.4 / std::sqrt(static_cast<double>(d_qk));
      const Tensor q = test::normal(dtype, {batch, tokens, heads, d_qk}, 1);
      const Tensor k = test::normal(dtype, {batch, tokens, heads, d_qk}, 2);
      const Tensor v = test::normal(dtype, {batch, tokens, heads, d_v}, 3);
      const Tensor whole = test::poisoned(dtype, {batch, tokens, heads, d_v});
      const Tensor lse = test::poisoned(accumulation_dtype(dtype), {batch, heads, tokens});
      attention_forward(context.reference, {q, k, v, scale, whole, lse});
      for (const int64_t queries : all_queries) {
        if (queries < 1 || queries > tokens) continue;
        for (OpContext* ctx : {&context.reference, &context.fastest}) {
          const Tensor o = test::poisoned(dtype, {batch, queries, heads, d_v});
          const Tensor own_lse = test::poisoned(accumulation_dtype(dtype), {batch, heads, queries});
          attention_forward(*ctx, {q->slice(1, tokens - queries, tokens), k, v, scale, o, own_lse});
          // Logits lose eps sqrt(d_qk): 2e-6 is for 12 terms.
          const double terms = std::sqrt(static_cast<double>(d_qk) / 12);
          const double tolerance = dtype == DType::f64 ? 1e-13 : dtype == DType::f32 ? 2e-6 * terms : 1e-2;
          const TensorView last = whole->slice(1, tokens - queries, tokens),
                           last_lse = lse->slice(2, tokens - queries, tokens);
          for (int64_t n = 0; n < o->num_elements(); ++n)
            ASSERT_NEAR(test::get(o, n), test::get(last, n), tolerance * std::max(1.0, std::abs(test::get(last, n))))
                << tokens << " " << queries << " " << n;
          for (int64_t n = 0; n < own_lse->num_elements(); ++n)
            ASSERT_NEAR(test::get(own_lse, n), test::get(last_lse, n), dtype == DType::f64 ? 1e-13 : 1e-5);
        }
      }
    }
}

TEST(Attention, RefusesDocumentsThatOverlap) {
  TestContext test;
  const Tensor q(DType::f32, {1, 4, 2, 8}), o(DType::f32, {1, 4, 2, 8}), lse(DType::f32, {1, 2, 4}),
      most(DType::f32, {1, 2}), starts(DType::i32, {1, 4});
  test::fill_normal(q, 1);
  const auto run = [&](std::vector<int> values, const TensorView& largest) {
    for (int64_t t = 0; t < 4; ++t) test::set(starts, t, values[static_cast<size_t>(t)]);
    attention_forward(test.fastest, {q, q, q, 1.0, o, lse, starts, largest});
  };
  EXPECT_NO_THROW(run({0, 0, 2, 3}, most));
  EXPECT_THROW(run({0, 0, 3, 3}, most), InternalError);  // begins after its token
  EXPECT_THROW(run({0, 1, 0, 3}, most), InternalError);  // goes back
  EXPECT_THROW(run({-1, 0, 0, 3}, most), InternalError);
  EXPECT_THROW(run({0, 0, 0, 0}, lse), InternalError);
  EXPECT_THROW(attention_forward(test.fastest, {q, q, q, 1.0, o, lse, lse}), InternalError);
}

TEST(Attention, RefusesShapesThatDisagree) {
  TestContext test;
  Tensor q(DType::f32, {1, 4, 2, 8}), k(DType::f32, {1, 4, 2, 8}), v(DType::f32, {1, 4, 2, 6}),
      o(DType::f32, {1, 4, 2, 6});
  Tensor lse(DType::f32, {1, 2, 4}), short_k(DType::f32, {1, 3, 2, 8}), low(DType::bf16, {1, 4, 2, 6}),
      bad_lse(DType::f32, {1, 4, 2});
  EXPECT_NO_THROW(attention_forward(test.fastest, {q, k, v, 1.0, o, lse}));
  EXPECT_THROW(attention_forward(test.fastest, {q, short_k, v, 1.0, o, lse}), InternalError);
  EXPECT_THROW(attention_forward(test.fastest, {q, k, low, 1.0, o, lse}), InternalError);
  EXPECT_THROW(attention_forward(test.fastest, {q, k, v, 1.0, o, bad_lse}), InternalError);
  EXPECT_THROW(attention_forward(test.fastest, {q, k, v, 1.0, q, lse}), InternalError);
  EXPECT_THROW(attention_forward(test.fastest, {q, k.view().transposed(), v, 1.0, o, lse}), InternalError);
  EXPECT_THROW(attention_backward(test.fastest, {q, k, v, 1.0, o, lse, o, q, k, k}), InternalError);
}

TEST(SharedKeys, PackAndItsAdjoint) {
  TestContext test;
  for (DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    for (OpContext* ctx : {&test.fastest, &test.reference}) {
      const int64_t tokens = 37, heads = 3, d_nope = 9, d_shared = 5, width = d_nope + d_shared;
      // Both parts sit inside wider projections.
      Tensor nope_memory = test::normal(dtype, {tokens, heads, d_nope + 4}, 1),
             shared_memory = test::normal(dtype, {tokens, 11}, 2);
      const TensorView nope = nope_memory.view().slice(2, 2, 2 + d_nope), shared = shared_memory.view().slice(1, 6, 11);
      Tensor k = test::poisoned(dtype, {tokens, heads, width});
      pack_shared_keys(*ctx, {nope, shared, k});
      for (int64_t n = 0; n < k->num_elements(); ++n) {
        const int64_t d = n % width, h = n / width % heads, t = n / width / heads;
        const double want =
            d < d_nope ? test::get(nope, (t * heads + h) * d_nope + d) : test::get(shared, t * d_shared + d - d_nope);
        ASSERT_EQ(test::get(k, n), want);
      }
      Tensor dnope_memory = test::poisoned(dtype, {tokens, heads, d_nope + 4}),
             dshared_memory = test::poisoned(dtype, {tokens, 11});
      const TensorView dnope = dnope_memory.view().slice(2, 2, 2 + d_nope),
                       dshared = dshared_memory.view().slice(1, 6, 11);
      unpack_shared_keys(*ctx, {k, dnope, dshared});
      for (int64_t n = 0; n < dnope.num_elements(); ++n) ASSERT_EQ(test::get(dnope, n), test::get(nope, n));
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t d = 0; d < d_shared; ++d) {
          const double want = static_cast<double>(heads) * test::get(shared, t * d_shared + d);
          ASSERT_NEAR(test::get(dshared, t * d_shared + d), want, 2 * test::epsilon_of(dtype) * std::abs(want));
        }
      }
      EXPECT_TRUE(std::isnan(test::element(dshared_memory, 0)));  // beside the view: untouched
    }
  }
  Tensor nope(DType::f32, {4, 2, 3}), shared(DType::f32, {4, 2}), k(DType::f32, {4, 2, 6});
  EXPECT_THROW(pack_shared_keys(test.fastest, {nope, shared, k}), InternalError);
  EXPECT_THROW(unpack_shared_keys(test.fastest, {k, nope, shared}), InternalError);
}

}  // namespace
}  // namespace lamina::ops
