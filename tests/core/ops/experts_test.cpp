#include "core/ops/experts/experts.h"

#include "core/device/cpu/parallel_for.h"
#include "core/ops/matmul/matmul.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

struct Grouped {
  Tensor on_device;
  std::vector<int64_t> offsets;
  Tensor row_of, position, pair_weight;
  Grouped(DType acc, int64_t rows, int64_t k, int64_t experts)
      : on_device(DType::i32, {experts + 1}),
        offsets(static_cast<size_t>(experts) + 1, -9),
        row_of(DType::i32, {rows * k}),
        position(DType::i32, {rows, k}),
        pair_weight(test::poisoned(acc, {rows * k})) {
    test::fill(on_device, -9);
    test::fill(row_of, -9);
    test::fill(position, -9);
  }
  GroupRows args(const TensorView& chosen, const TensorView& weights) {
    return {chosen, weights, on_device, row_of, position, pair_weight, offsets};
  }
};

// Offsets as an operation takes them.
class Rows {
 public:
  explicit Rows(const std::vector<int64_t>& offsets)
      : on_host_(offsets), on_device_(DType::i32, {static_cast<int64_t>(offsets.size())}) {
    for (size_t e = 0; e < offsets.size(); ++e)
      test::set(on_device_, static_cast<int64_t>(e), static_cast<double>(offsets[e]));
  }
  operator ExpertRows() const { return {on_device_, on_host_}; }
  ExpertRows known_to_device_only() const { return {on_device_}; }

 private:
  std::vector<int64_t> on_host_;
  Tensor on_device_;
};

Tensor random_choice(int64_t rows, int64_t k, int64_t experts, bool absent, uint64_t stream) {
  Tensor chosen(DType::i32, {rows, k});
  const CounterRng rng(11, stream);
  for (int64_t n = 0; n < rows * k; ++n) {
    const auto least = absent ? -1.0 : 0.0;
    test::set(chosen, n,
              std::floor(least + rng.uniform(static_cast<uint64_t>(n)) * (static_cast<double>(experts) - least)));
  }
  return chosen;
}

TEST(GroupRows, SortsByExpertThenByRow) {
  TestContext test;
  for (const DType acc : {DType::f32, DType::f64}) {
    for (const int64_t experts : {1, 4, 37}) {
      for (const int64_t rows : {0, 1, 50}) {
        const int64_t k = 3;
        const Tensor chosen = random_choice(rows, k, experts, true, 5), weights = test::normal(acc, {rows, k}, 6);
        Grouped out(acc, rows, k, experts);
        group_rows(test.fastest, out.args(chosen, weights));
        int64_t pair = 0;
        for (int64_t e = 0; e < experts; ++e) {
          EXPECT_EQ(out.offsets[static_cast<size_t>(e)], pair);
          for (int64_t n = 0; n < rows * k; ++n) {
            if (test::get(chosen, n) != static_cast<double>(e)) continue;
            EXPECT_EQ(test::get(out.row_of, pair), static_cast<double>(n / k));
            EXPECT_EQ(test::get(out.pair_weight, pair), test::get(weights, n));
            EXPECT_EQ(test::get(out.position, n), static_cast<double>(pair));
            ++pair;
          }
        }
        EXPECT_EQ(out.offsets.back(), pair);
        EXPECT_EQ(test::values(out.on_device), std::vector<double>(out.offsets.begin(), out.offsets.end()));
        for (int64_t n = 0; n < rows * k; ++n) {
          if (test::get(chosen, n) < 0) {
            EXPECT_EQ(test::get(out.position, n), -1);
          }
        }
        for (int64_t n = pair; n < rows * k; ++n) EXPECT_EQ(test::get(out.row_of, n), -9);
      }
    }
  }
}

// Rows inside wider matrices; the exact copy, and the sum against float64.
TEST(GatherAndCombineRows, MatchTheFormulaAndAreAdjoint) {
  TestContext test;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    for (OpContext* ctx : {&test.fastest, &test.reference}) {
      for (const int64_t dim : {1, 7, 16, 100}) {
        for (const int64_t k : {0, 1, 3}) {
          const int64_t tokens = 23, experts = 5;
          const Tensor memory = test::normal(dtype, {tokens, dim + 5}, 1),
                       wide = test::poisoned(dtype, {tokens, dim + 3});
          const TensorView x = memory.view().slice(1, 2, 2 + dim), back = wide.view().slice(1, 1, 1 + dim);
          const Tensor chosen = random_choice(tokens, k, experts, true, 5),
                       weights = test::normal(DType::f32, {tokens, k}, 6);
          Grouped g(DType::f32, tokens, k, experts);
          group_rows(*ctx, g.args(chosen, weights));
          const int64_t pairs = g.offsets.back();
          const Tensor y = test::poisoned(dtype, {pairs, dim});
          gather_rows(*ctx, {x, g.row_of.view().slice(0, 0, pairs), y});
          for (int64_t n = 0; n < pairs * dim; ++n) {
            const auto row = static_cast<int64_t>(test::get(g.row_of, n / dim));
            ASSERT_EQ(test::get(y, n), test::get(x, row * dim + n % dim));
          }
          combine_rows(*ctx, {y, g.position, back});
          for (int64_t n = 0; n < tokens * dim; ++n) {
            double sum = 0;
            for (int64_t j = 0; j < k; ++j) {
              if (test::get(g.position, n / dim * k + j) >= 0) sum += test::get(x, n);
            }
            ASSERT_NEAR(test::get(back, n), sum, 2 * test::epsilon_of(dtype) * std::abs(sum));
          }
          EXPECT_TRUE(std::isnan(test::element(wide, 0)));  // beside the view: untouched
          if (dim > 1) {
            const auto once = test::values(back);
            combine_rows(*ctx, {y, g.position, back, GradMode::accumulate});
            for (int64_t n = 0; n < tokens * dim; ++n) {
              const double want = 2 * once[static_cast<size_t>(n)];
              ASSERT_NEAR(test::get(back, n), want, 2 * test::epsilon_of(dtype) * std::abs(want));
            }
          }
        }
      }
    }
  }
}

TEST(CombineRows, RoundsOnceAndInTheOrderOfTheSlots) {
  TestContext test;
  // bf16: 256 + 1 + 1 is 258; rounding after each sum would leave 256. And 1e8 + 1 - 1e8 in fp32 depends on the order.
  for (OpContext* ctx : {&test.fastest, &test.reference}) {
    const Tensor x = test::zeros(DType::bf16, {3, 2}), y = test::poisoned(DType::bf16, {1, 2}),
                 wide = test::poisoned(DType::f32, {1, 2}), position = test::zeros(DType::i32, {1, 3});
    for (int64_t r = 0; r < 3; ++r) {
      test::set(x, 2 * r, r == 0 ? 256 : 1);
      test::set(x, 2 * r + 1, r == 0 ? 0x1p30 : r == 1 ? 1 : -0x1p30);
      test::set(position, r, static_cast<double>(r));
    }
    combine_rows(*ctx, {x, position, y});
    EXPECT_EQ(test::values(y), (std::vector<double>{258, 0}));
    combine_rows(*ctx, {x, position, wide});
    EXPECT_EQ(test::values(wide), (std::vector<double>{258, 0}));
    test::set(position, 1, 2);
    test::set(position, 2, 1);
    combine_rows(*ctx, {x, position, wide});
    EXPECT_EQ(test::values(wide), (std::vector<double>{258, 1}));
  }
}

// One call of each grouped product, and the same on float64 mirrors by the reference.
struct Products {
  int64_t in, out;
  std::vector<int64_t> offsets;
};

int64_t rows_of(const Products& p) {
  return p.offsets.back();
}

std::vector<Products> all_products() {
  return {
      {8, 16, {0, 64, 128}},                   // balanced
      {17, 5, {0, 0, 3, 3, 3, 10, 11}},        // empty experts, odd sizes
      {33, 70, {0, 0, 0, 300, 300, 301}},      // a hot one
      {64, 48, {0, 1, 2, 3, 4, 5, 6, 7}},      // one row each
      {128, 96, {0, 63, 128, 193, 259, 260}},  // around tiles
      {1, 1, {0, 5, 9}},
      {130, 258, {0, 37}},  // one expert
      {20, 24, {0, 0, 0}},  // nothing at all
      {96, 200, {0, 17, 17, 150, 151, 700}},
  };
}

class GroupedCase {
 public:
  GroupedCase(DType dtype, const Products& p)
      : p_(p),
        rows_(p.offsets),
        x_memory_(test::normal(dtype, {rows_of(p), p.in + 3}, 1)),
        dy_memory_(test::normal(dtype, {rows_of(p), p.out + 2}, 2)),
        y_memory_(test::poisoned(dtype, {rows_of(p), p.out + 1})),
        dx_memory_(test::poisoned(dtype, {rows_of(p), p.in + 4})),
        x(x_memory_.view().slice(1, 1, 1 + p.in)),
        dy(dy_memory_.view().slice(1, 2, 2 + p.out)),
        y(y_memory_.view().slice(1, 0, p.out)),
        dx(dx_memory_.view().slice(1, 3, 3 + p.in)) {
    for (size_t e = 0; e + 1 < p.offsets.size(); ++e) {
      owned_.push_back(test::normal(dtype, {p.out, p.in}, 10 + e));
      weights.push_back(owned_.back());
      owned_.push_back(test::normal(accumulation_dtype(dtype), {p.out, p.in}, 50 + e));
      dweights.push_back(owned_.back());
    }
  }
  void run(OpContext& ctx) const {
    grouped_linear(ctx, {x, weights, rows_, y});
    grouped_linear_input_gradient(ctx, {dy, weights, rows_, dx});
    for (int i = 0; i < 2; ++i) grouped_linear_weight_gradient(ctx, {dy, x, rows_, dweights});
  }
  std::vector<double> results() const {
    std::vector<double> all = test::values(y);
    const auto append = [&](const TensorView& view) {
      for (const double value : test::values(view)) all.push_back(value);
    };
    append(dx);
    for (const TensorView& dw : dweights) append(dw);
    return all;
  }
  bool guards_untouched() const {
    for (int64_t r = 0; r < rows_of(p_); ++r) {
      if (!std::isnan(test::get(y_memory_, r * (p_.out + 1) + p_.out))) return false;
      for (int64_t i = 0; i < 3; ++i) {
        if (!std::isnan(test::get(dx_memory_, r * (p_.in + 4) + i))) return false;
      }
    }
    return true;
  }

 private:
  Products p_;
  Rows rows_;
  std::vector<Tensor> owned_;
  Tensor x_memory_, dy_memory_, y_memory_, dx_memory_;

 public:
  TensorView x, dy, y, dx;
  std::vector<TensorView> weights, dweights;
};

// The reference in double against the sums written out.
TEST(GroupedProducts, ReferenceIsTheFormula) {
  TestContext test;
  const Products p{5, 4, {0, 2, 2, 5}};
  const GroupedCase c(DType::f64, p);
  std::vector<std::vector<double>> before;
  for (const TensorView& dw : c.dweights) before.push_back(test::values(dw));
  c.run(test.fastest);
  for (int64_t r = 0; r < 5; ++r) {
    const size_t e = r < 2 ? 0 : 2;
    for (int64_t o = 0; o < 4; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < 5; ++i) sum += test::get(c.x, r * 5 + i) * test::get(c.weights[e], o * 5 + i);
      EXPECT_NEAR(test::get(c.y, r * 4 + o), sum, 1e-14);
    }
    for (int64_t i = 0; i < 5; ++i) {
      double sum = 0;
      for (int64_t o = 0; o < 4; ++o) sum += test::get(c.dy, r * 4 + o) * test::get(c.weights[e], o * 5 + i);
      EXPECT_NEAR(test::get(c.dx, r * 5 + i), sum, 1e-14);
    }
  }
  for (size_t e = 0; e < 3; ++e) {
    for (int64_t n = 0; n < 20; ++n) {
      double sum = before[e][static_cast<size_t>(n)];
      for (int64_t r = p.offsets[e]; r < p.offsets[e + 1]; ++r) {
        sum += 2 * test::get(c.dy, r * 4 + n / 5) * test::get(c.x, r * 5 + n % 5);
      }
      EXPECT_NEAR(test::get(c.dweights[e], n), sum, 1e-14);
    }
  }
}

void expect_float64s(OpContext& ctx, DType dtype) {
  TestContext test;
  for (const Products& p : all_products()) {
    SCOPED_TRACE(fmt::format("{} [{} -> {}], {} rows", name_of(dtype), p.in, p.out, rows_of(p)));
    const GroupedCase c(dtype, p);
    test::Mirror m;
    const auto weights = m(c.weights), dweights = m(c.dweights);
    const Rows experts(p.offsets);
    if (rows_of(p) > 0) {
      grouped_linear(test.reference, {m(c.x), weights, experts, m(c.y)});
      grouped_linear_input_gradient(test.reference, {m(c.dy), weights, experts, m(c.dx)});
      for (int i = 0; i < 2; ++i) {
        grouped_linear_weight_gradient(test.reference, {m(c.dy), m(c.x), experts, dweights});
      }
    }
    c.run(ctx);
    if (rows_of(p) > 0) {
      EXPECT_MIRRORED(m, c.y, p.in, std::sqrt(static_cast<double>(p.in)));
      EXPECT_MIRRORED(m, c.dx, p.out, std::sqrt(static_cast<double>(p.out)));
    }
    for (size_t e = 0; e < c.dweights.size(); ++e) {
      const int64_t rows = p.offsets[e + 1] - p.offsets[e];
      EXPECT_MIRRORED(m, c.dweights[e], 2 * rows, 2 * std::sqrt(static_cast<double>(rows)));
    }
    EXPECT_TRUE(c.guards_untouched());
  }
}

TEST(GroupedProducts, FastestMatchesFloat64) {
  TestContext test;
  expect_float64s(test.fastest, DType::f32);
  expect_float64s(test.fastest, DType::bf16);
}
TEST(GroupedProducts, ThroughFp32MatchesFloat64) {
  TestContext test;
  expect_float64s(test.through_fp32, DType::bf16);
}

// Rows and matrices that start at multiples of 16 bytes, as a model's do: other ways of reading than for GroupedCase's slices.
// Widths around the tiles, and a last part of 16 bytes that is cut.
TEST(GroupedProducts, AlignedOperands) {
  TestContext test;
  struct Case {
    int64_t in, out, stride_in, stride_out;
    std::vector<int64_t> offsets;
  };
  for (const Case& p : {Case{72, 136, 80, 136, {0, 5, 5, 150, 278}}, Case{128, 64, 128, 64, {0, 128, 256}},
                        Case{40, 24, 40, 32, {0, 0, 31, 31}}, Case{13, 21, 16, 24, {0, 9, 70}}}) {
    const Rows known(p.offsets);
    for (const auto& [dtype, out, host_knows] :
         {std::tuple{DType::bf16, DType::bf16, true}, std::tuple{DType::bf16, DType::bf16, false},
          std::tuple{DType::bf16, DType::f32, false}, std::tuple{DType::f32, DType::f32, true}}) {
      SCOPED_TRACE(fmt::format("{} to {} [{} -> {}], host {}", name_of(dtype), name_of(out), p.in, p.out, host_knows));
      const int64_t rows = p.offsets.back();
      const ExpertRows experts = host_knows ? known : known.known_to_device_only();
      const Tensor x_rows = test::normal(dtype, {rows, p.stride_in}, 1),
                   dy_rows = test::normal(dtype, {rows, p.stride_out}, 2),
                   y_rows = test::poisoned(out, {rows, p.stride_out}),
                   dx_rows = test::poisoned(out, {rows, p.stride_in});
      const TensorView x = x_rows.view().slice(1, 0, p.in), dy = dy_rows.view().slice(1, 0, p.out),
                       y = y_rows.view().slice(1, 0, p.out), dx = dx_rows.view().slice(1, 0, p.in);
      std::vector<Tensor> owned;
      std::vector<TensorView> weights, dweights;
      for (size_t e = 0; e + 1 < p.offsets.size(); ++e) {
        owned.push_back(test::normal(dtype, {p.out, p.in}, 10 + e));
        weights.push_back(owned.back());
        owned.push_back(test::normal(accumulation_dtype(dtype), {p.out, p.in}, 1000 + e));
        dweights.push_back(owned.back());
      }
      test::Mirror m;
      const auto weights64 = m(weights), dweights64 = m(dweights);
      grouped_linear(test.reference, {m(x), weights64, experts, m(y)});
      grouped_linear_input_gradient(test.reference, {m(dy), weights64, experts, m(dx)});
      grouped_linear_weight_gradient(test.reference, {m(dy), m(x), experts, dweights64});
      grouped_linear(test.fastest, {x, weights, experts, y});
      grouped_linear_input_gradient(test.fastest, {dy, weights, experts, dx});
      grouped_linear_weight_gradient(test.fastest, {dy, x, experts, dweights});
      EXPECT_MIRRORED(m, y, p.in, std::sqrt(static_cast<double>(p.in)));
      EXPECT_MIRRORED(m, dx, p.out, std::sqrt(static_cast<double>(p.out)));
      for (size_t e = 0; e < dweights.size(); ++e) {
        const int64_t count = p.offsets[e + 1] - p.offsets[e];
        EXPECT_MIRRORED(m, dweights[e], count, std::sqrt(static_cast<double>(count)));
      }
      for (int64_t n = 0; n < rows * p.stride_out; ++n) {
        if (n % p.stride_out >= p.out) {
          ASSERT_TRUE(std::isnan(test::get(y_rows, n)));
        }
      }
    }
  }
}

// More experts than one launch may take; every third has no rows. Three matrices take turns.
TEST(GroupedProducts, ManyExperts) {
  TestContext test;
  std::vector<int64_t> offsets = {0};
  for (int64_t e = 0; e < 300; ++e) offsets.push_back(offsets.back() + e % 3);
  const int64_t rows = offsets.back(), in = 24, out = 16;
  const Rows known(offsets);
  for (const auto& [result, experts] : {std::pair<DType, ExpertRows>{DType::bf16, known},
                                        {DType::bf16, known.known_to_device_only()},
                                        {DType::f32, known}}) {
    const Tensor x = test::normal(DType::bf16, {rows, in}, 1), dy = test::normal(DType::bf16, {rows, out}, 2),
                 y = test::poisoned(result, {rows, out}), dx = test::poisoned(result, {rows, in});
    std::vector<Tensor> owned;
    std::vector<TensorView> weights;
    for (uint64_t i = 0; i < 3; ++i) owned.push_back(test::normal(DType::bf16, {out, in}, 10 + i));
    for (size_t e = 0; e + 1 < offsets.size(); ++e) weights.push_back(owned[e / 3 % 3]);
    test::Mirror m;
    const auto weights64 = m(weights);
    grouped_linear(test.reference, {m(x), weights64, experts, m(y)});
    grouped_linear_input_gradient(test.reference, {m(dy), weights64, experts, m(dx)});
    grouped_linear(test.fastest, {x, weights, experts, y});
    grouped_linear_input_gradient(test.fastest, {dy, weights, experts, dx});
    EXPECT_MIRRORED(m, y, in, std::sqrt(static_cast<double>(in)));
    EXPECT_MIRRORED(m, dx, out, std::sqrt(static_cast<double>(out)));
  }
}

// All experts of a layer in one launch, with sums of 8 slices and more: each of the four places for slices is used twice.
TEST(GroupedProducts, SixtyFourExperts) {
  TestContext test;
  constexpr int64_t experts = 64, width = 256;
  std::vector<int64_t> offsets = {0};
  for (int64_t e = 0; e < experts; ++e) offsets.push_back(offsets.back() + (e == 5 ? 260 : e % 4));
  const Rows rows(offsets);
  const Tensor x = test::normal(DType::bf16, {offsets.back(), width}, 1),
               dy = test::normal(DType::bf16, {offsets.back(), width}, 2),
               y = test::poisoned(DType::f32, {offsets.back(), width}),
               dx = test::poisoned(DType::f32, {offsets.back(), width});
  std::vector<Tensor> owned;
  std::vector<TensorView> weights, dweights;
  for (uint64_t i = 0; i < 3; ++i) owned.push_back(test::normal(DType::bf16, {width, width}, 10 + i));
  for (int64_t e = 0; e < experts; ++e) {
    weights.push_back(owned[static_cast<size_t>(e % 3)]);
    dweights.push_back(owned.emplace_back(test::zeros(DType::f32, {width, width})));
  }
  test::Mirror m;
  const auto weights64 = m(weights), dweights64 = m(dweights);
  grouped_linear(test.reference, {m(x), weights64, rows, m(y)});
  grouped_linear_input_gradient(test.reference, {m(dy), weights64, rows, m(dx)});
  grouped_linear_weight_gradient(test.reference, {m(dy), m(x), rows, dweights64});
  grouped_linear(test.fastest, {x, weights, rows, y});
  grouped_linear_input_gradient(test.fastest, {dy, weights, rows, dx});
  grouped_linear_weight_gradient(test.fastest, {dy, x, rows, dweights});
  EXPECT_MIRRORED(m, y, width, std::sqrt(static_cast<double>(width)));
  EXPECT_MIRRORED(m, dx, width, std::sqrt(static_cast<double>(width)));
  for (size_t e = 0; e < dweights.size(); ++e) {
    const int64_t count = offsets[e + 1] - offsets[e];
    EXPECT_MIRRORED(m, dweights[e], count, std::sqrt(static_cast<double>(count)));
  }
}

// More rows than one unit of the sort's work, and experts whose rows come from all of them.
TEST(GroupRows, SortsManyRows) {
  TestContext test;
  const int64_t rows = 1500, k = 2;
  for (const int64_t experts : {3, 70, 9000}) {
    const Tensor chosen = random_choice(rows, k, experts, true, 8), weights = test::normal(DType::f32, {rows, k}, 6);
    Grouped out(DType::f32, rows, k, experts), want(DType::f32, rows, k, experts);
    group_rows(test.fastest, out.args(chosen, weights));
    group_rows(test.reference, want.args(chosen, weights));
    EXPECT_EQ(out.offsets, want.offsets);
    EXPECT_EQ(test::values(out.row_of), test::values(want.row_of));
    EXPECT_EQ(test::values(out.position), test::values(want.position));
    const int64_t pairs = want.offsets.back();
    EXPECT_EQ(test::values(out.pair_weight.view().slice(0, 0, pairs)),
              test::values(want.pair_weight.view().slice(0, 0, pairs)));
    Grouped unasked(DType::f32, rows, k, experts);
    const std::vector<int64_t> untouched = unasked.offsets;
    GroupRows args = unasked.args(chosen, weights);
    args.host_offsets = {};
    group_rows(test.fastest, args);
    EXPECT_EQ(unasked.offsets, untouched);
    EXPECT_EQ(test::values(unasked.on_device), test::values(want.on_device));
    EXPECT_EQ(test::values(unasked.row_of), test::values(want.row_of));
  }
}

// Aligned rows of every pair of dtypes, wide enough for several loads of a thread.
TEST(GatherAndCombineRows, WideAlignedRows) {
  TestContext test;
  const int64_t rows = 9, tokens = 6, k = 6, dim = 1176;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const DType out : {DType::f32, DType::bf16}) {
      const Tensor x = test::normal(dtype, {rows, dim}, 1), index = test::zeros(DType::i32, {tokens}),
                   position = test::zeros(DType::i32, {tokens, k}), y = test::poisoned(dtype, {tokens, dim}),
                   sum = test::poisoned(out, {tokens, dim});
      for (int64_t t = 0; t < tokens; ++t) test::set(index, t, static_cast<double>(t * 5 % rows));
      for (int64_t n = 0; n < tokens * k; ++n) test::set(position, n, static_cast<double>(n * 7 % (rows + 1) - 1));
      gather_rows(test.fastest, {x, index, y});
      combine_rows(test.fastest, {x, position, sum});
      combine_rows(test.fastest, {x, position, sum, GradMode::accumulate});
      for (int64_t n = 0; n < tokens * dim; ++n) {
        const int64_t t = n / dim, column = n % dim;
        ASSERT_EQ(test::get(y, n), test::get(x, t * 5 % rows * dim + column));
        double want = 0, size = 0;
        for (int64_t j = 0; j < k; ++j) {
          const int64_t row = (t * k + j) * 7 % (rows + 1) - 1;
          if (row < 0) continue;
          want += test::get(x, row * dim + column);
          size += std::abs(test::get(x, row * dim + column));
        }
        // Rounded where it is stored first and where it is added to.
        const double eps = 2 * test::epsilon_of(out) + 8 * test::epsilon_of(DType::f32);
        ASSERT_NEAR(test::get(sum, n), 2 * want, eps * 2 * size) << name_of(dtype) << " to " << name_of(out);
      }
    }
  }
}

TEST(GroupedProducts, OutputsInFloat32OfBf16) {
  TestContext test;
  const Rows offsets({0, 70, 70, 101});
  const Tensor x = test::normal(DType::bf16, {101, 40}, 1), y = test::poisoned(DType::f32, {101, 24}),
               dx = test::poisoned(DType::f32, {101, 40}), w0 = test::normal(DType::bf16, {24, 40}, 2),
               w2 = test::normal(DType::bf16, {24, 40}, 3), dy = test::normal(DType::bf16, {101, 24}, 4);
  const std::vector<TensorView> weights = {w0, w0, w2};
  test::Mirror m;
  const auto weights64 = m(weights);
  grouped_linear(test.reference, {m(x), weights64, offsets, m(y)});
  grouped_linear_input_gradient(test.reference, {m(dy), weights64, offsets, m(dx)});
  grouped_linear(test.fastest, {x, weights, offsets, y});
  grouped_linear_input_gradient(test.fastest, {dy, weights, offsets, dx});
  EXPECT_MIRRORED(m, y, 40, std::sqrt(40.0));
  EXPECT_MIRRORED(m, dx, 24, std::sqrt(24.0));
}

// An expert's result depends neither on the other experts nor on the number of threads.
TEST(GroupedProducts, ThreadsAndNeighboursChangeNothing) {
  TestContext test;
  const int threads = cpu::num_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Products p{72, 136, {0, 5, 5, 400, 470}};
    std::vector<std::vector<double>> results;
    for (const int count : {1, 2, 3}) {
      cpu::set_num_threads(count);
      const GroupedCase c(dtype, p);
      c.run(test.fastest);
      results.push_back(c.results());
    }
    cpu::set_num_threads(threads);
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
    const GroupedCase all(dtype, p);
    all.run(test.fastest);
    const Tensor alone = test::poisoned(dtype, {395, 136});
    const Rows one({0, 395});
    grouped_linear(test.fastest, {all.x.slice(0, 5, 400), std::span(all.weights).subspan(2, 1), one, alone});
    EXPECT_EQ(test::values(alone), test::values(all.y.slice(0, 5, 400)));
  }
}

TEST(GroupedProducts, AnEmptyExpertKeepsItsGradient) {
  TestContext test;
  const GroupedCase c(DType::f32, {16, 16, {0, 9, 9, 20}});
  const auto before = test::values(c.dweights[1]);
  c.run(test.fastest);
  EXPECT_EQ(test::values(c.dweights[1]), before);
}

TEST(Experts, RefuseWhatDoesNotFit) {
  TestContext test;
  const GroupedCase c(DType::f32, {6, 4, {0, 2, 5}});
  const Rows good({0, 2, 5}), falling({0, 6, 5}), short_by_one({0, 2, 4}), late({1, 2, 5}), three({0, 2, 3, 5});
  EXPECT_NO_THROW(grouped_linear(test.fastest, {c.x, c.weights, good, c.y}));
  for (const auto* offsets : {&falling, &short_by_one, &late, &three}) {
    EXPECT_THROW(grouped_linear(test.fastest, {c.x, c.weights, *offsets, c.y}), InternalError);
    EXPECT_THROW(grouped_linear_input_gradient(test.fastest, {c.dy, c.weights, *offsets, c.dx}), InternalError);
    EXPECT_THROW(grouped_linear_weight_gradient(test.fastest, {c.dy, c.x, *offsets, c.dweights}), InternalError);
  }
  const std::vector<int64_t> other = {0, 3, 4};
  EXPECT_THROW(grouped_linear(test.fastest, {c.x, c.weights, {ExpertRows(good).offsets, other}, c.y}), InternalError);
  EXPECT_THROW(grouped_linear(test.fastest, {c.x, c.weights, good, c.dx}), InternalError);
  EXPECT_THROW(grouped_linear(test.fastest, {c.dy, c.weights, good, c.y}), InternalError);
  const Tensor dw16 = test::zeros(DType::bf16, {4, 6});
  const std::vector<TensorView> low = {dw16, dw16};
  EXPECT_THROW(grouped_linear_weight_gradient(test.fastest, {c.dy, c.x, good, low}), InternalError);
  const std::vector<TensorView> across = {c.weights[0].transposed(), c.weights[1].transposed()};
  EXPECT_THROW(grouped_linear(test.fastest, {c.x, across, good, c.y}), InternalError);

  const Tensor index = test::zeros(DType::i32, {3}), y(DType::f32, {3, 6}), position(DType::i32, {5, 1});
  test::fill(index, 4);
  EXPECT_NO_THROW(gather_rows(test.fastest, {c.x, index, y}));
  test::set(index, 1, 5);
  EXPECT_THROW(gather_rows(test.fastest, {c.x, index, y}), InternalError);
  test::set(index, 1, -1);
  EXPECT_THROW(gather_rows(test.fastest, {c.x, index, y}), InternalError);
  EXPECT_THROW(gather_rows(test.fastest, {c.x, index, c.y}), InternalError);
  test::fill(position, -1);
  const Tensor sum(DType::f32, {5, 6});
  EXPECT_NO_THROW(combine_rows(test.fastest, {y, position, sum}));
  test::set(position, 4, 3);
  EXPECT_THROW(combine_rows(test.fastest, {y, position, sum}), InternalError);
  EXPECT_THROW(combine_rows(test.fastest, {y, position, c.y}), InternalError);

  const Tensor chosen(DType::i32, {2, 2}), weights = test::normal(DType::f32, {2, 2}, 1);
  test::fill(chosen, 1);
  Grouped g(DType::f32, 2, 2, 2);
  EXPECT_NO_THROW(group_rows(test.fastest, g.args(chosen, weights)));
  test::set(chosen, 3, 2);
  EXPECT_THROW(group_rows(test.fastest, g.args(chosen, weights)), InternalError);
  test::set(chosen, 3, -2);
  EXPECT_THROW(group_rows(test.fastest, g.args(chosen, weights)), InternalError);
}

}  // namespace
}  // namespace lamina::ops
