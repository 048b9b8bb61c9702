#include "core/ops/matmul/single_thread_product.h"

#include <array>
#include <utility>

#include "core/ops/matmul/matmul.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using cpu::ProductShape;
using cpu::SingleThreadProduct;
using test::Tensor;
using test::TestContext;

// Both operands in both orders, inside wider matrices, in every way that the kernels can multiply.
TEST(SingleThreadProduct, EqualsTheMatmulInDouble) {
  TestContext context;
  const int64_t m = 37, k = 29;
  struct Kind {
    DType in, out;
    bool widened;
  };
  for (const auto& [in, out, widened] : {Kind{DType::f32, DType::f32, false}, Kind{DType::bf16, DType::bf16, false},
                                         Kind{DType::bf16, DType::f32, false}, Kind{DType::bf16, DType::bf16, true},
                                         Kind{DType::bf16, DType::f32, true}}) {
    for (const bool a_transposed : {false, true}) {
      for (const auto& [b_transposed, n] :
           std::array<std::pair<bool, int64_t>, 4>{{{false, 51}, {true, 51}, {false, 1}, {true, 1}}}) {
        const Tensor a_memory = test::normal(in, {a_transposed ? k : m, (a_transposed ? m : k) + 3}, 1),
                     b_memory = test::normal(in, {b_transposed ? n : k, (b_transposed ? k : n) + 5}, 2),
                     c_memory = test::poisoned(out, {m, n + 2});
        const TensorView a = a_memory.view().slice(1, 0, a_transposed ? m : k),
                         b = b_memory.view().slice(1, 0, b_transposed ? k : n), c = c_memory.view().slice(1, 0, n);
        const SingleThreadProduct product(
            {m, n, k, in, out, a_transposed, b_transposed, a.stride(0), b.stride(0), c.stride(0), widened});
        const Tensor scratch(DType::f32, {product.scratch_bytes() / 4 + 1});
        product.run(a.data, b.data, c.data, static_cast<char*>(scratch->data));
        test::Mirror mirror;
        const TensorView a64 = mirror(a), b64 = mirror(b);
        matmul(context.reference,
               {a_transposed ? a64.transposed() : a64, b_transposed ? b64.transposed() : b64, mirror(c)});
        EXPECT_MIRRORED(mirror, c, k, std::sqrt(static_cast<double>(k)));
        EXPECT_TRUE(std::isnan(test::element(c_memory, n)));
      }
    }
  }
}

TEST(SingleThreadProduct, AccumulatesInFloat32Only) {
  const Tensor a = test::normal(DType::f32, {3, 4}, 1), b = test::normal(DType::f32, {4, 5}, 2),
               once = test::zeros(DType::f32, {3, 5}), twice = test::zeros(DType::f32, {3, 5});
  const SingleThreadProduct product({3, 5, 4, DType::f32, DType::f32, false, false, 4, 5, 5});
  product.run(a->data, b->data, once->data, nullptr);
  product.run(a->data, b->data, twice->data, nullptr);
  product.run(a->data, b->data, twice->data, nullptr, true);
  for (int64_t i = 0; i < 15; ++i) EXPECT_EQ(test::get(twice, i), 2 * test::get(once, i));
  const SingleThreadProduct low({3, 5, 4, DType::bf16, DType::f32, false, false, 4, 5, 5, true});
  EXPECT_THROW(low.run(a->data, b->data, once->data, nullptr, true), InternalError);
}

TEST(SingleThreadProduct, IsKeptByShapeAndMoves) {
  const ProductShape shape{16, 16, 16, DType::bf16, DType::f32, false, false, 16, 16, 16};
  const SingleThreadProduct* kept = SingleThreadProduct::get(shape);
  EXPECT_EQ(kept, SingleThreadProduct::get(shape));
  ProductShape other = shape;
  other.b_transposed = true;
  EXPECT_NE(kept, SingleThreadProduct::get(other));
  const Tensor a = test::normal(DType::bf16, {16, 16}, 1), want = test::poisoned(DType::f32, {16, 16}),
               got = test::poisoned(DType::f32, {16, 16});
  SingleThreadProduct first(shape);
  const Tensor scratch(DType::f32, {first.scratch_bytes() / 4 + 1});
  first.run(a->data, a->data, want->data, static_cast<char*>(scratch->data));
  const SingleThreadProduct second = std::move(first);
  EXPECT_EQ(second.scratch_bytes(), kept->scratch_bytes());
  second.run(a->data, a->data, got->data, static_cast<char*>(scratch->data));
  EXPECT_EQ(test::values(got), test::values(want));
}

}  // namespace
}  // namespace lamina::ops
