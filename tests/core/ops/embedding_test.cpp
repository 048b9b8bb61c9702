#include "core/ops/embedding/embedding.h"

#include "core/device/cpu/parallel_for.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

Tensor tokens_of(int64_t count, int32_t vocab) {
  Tensor out(DType::i32, {count});
  const CounterRng rng(7, 1);
  for (int64_t t = 0; t < count; ++t) {
    out->as<int32_t>()[t] = static_cast<int32_t>(rng.below(static_cast<uint64_t>(t), static_cast<uint64_t>(vocab)));
  }
  return out;
}

TEST(Embedding, ForwardCopiesRows) {
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    for (const int64_t count : {1, 3, 130}) {
      const Tensor tokens = tokens_of(count, 11), table = test::normal(dtype, {11, 17}, 1),
                   y = test::poisoned(dtype, {count, 17});
      embedding_forward(context.fastest, {tokens, table, y});
      for (int64_t i = 0; i < count * 17; ++i) {
        EXPECT_EQ(test::get(y, i), test::get(table, tokens->as<int32_t>()[i / 17] * 17 + i % 17));
      }
    }
  }
}

TEST(Embedding, BackwardAddsInTokenOrderWhateverTheThreads) {
  TestContext context;
  const int before = lamina::cpu::num_threads();
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    for (const int64_t dim : {8, 17, 64, 200}) {
      const int64_t count = 700;
      const DType acc = accumulation_dtype(dtype);
      const Tensor tokens = tokens_of(count, 5), dy = test::normal(dtype, {count, dim}, 1);
      const Tensor want = test::normal(acc, {5, dim}, 2);
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t i = 0; i < dim; ++i) {  // one rounding per token, as an accumulation in acc does
          const int64_t at = tokens->as<int32_t>()[t] * dim + i;
          test::set(want, at, test::get(want, at) + test::get(dy, t * dim + i));
        }
      }
      for (const int threads : {1, 2, 3}) {
        lamina::cpu::set_num_threads(threads);
        const Tensor dtable = test::normal(acc, {5, dim}, 2);
        embedding_backward(context.fastest, {tokens, dy, dtable});
        EXPECT_EQ(test::values(dtable), test::values(want)) << name_of(dtype) << " " << dim << " " << threads;
      }
    }
  }
  lamina::cpu::set_num_threads(before);
}

TEST(Embedding, RowsOfWiderMatricesAndNoTokens) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const int64_t count = 40, dim = 24;
    const Tensor tokens = tokens_of(count, 9), wide = test::normal(dtype, {9, dim + 3}, 1),
                 y = test::poisoned(dtype, {count, dim + 8}), sums = test::normal(DType::f32, {9, dim + 3}, 2),
                 want = test::normal(DType::f32, {9, dim + 3}, 2), none = test::zeros(DType::i32, {0});
    const TensorView table = wide->slice(1, 1, dim + 1), rows = y->slice(1, 8, dim + 8);
    embedding_forward(context.fastest, {tokens, table, rows});
    for (int64_t i = 0; i < count * dim; ++i)
      EXPECT_EQ(test::get(rows, i), test::get(table, tokens->as<int32_t>()[i / dim] * dim + i % dim));
    embedding_backward(context.fastest, {tokens, rows, sums->slice(1, 1, dim + 1)});
    embedding_backward(context.reference, {tokens, rows, want->slice(1, 1, dim + 1)});
    EXPECT_EQ(test::values(sums), test::values(want));
    embedding_forward(context.fastest, {none, table, rows.slice(0, 0, 0)});
    embedding_backward(context.fastest, {none, rows.slice(0, 0, 0), sums->slice(1, 1, dim + 1)});
    EXPECT_EQ(test::values(sums), test::values(want));
  }
}

TEST(Embedding, RefusesWhatDoesNotFit) {
  TestContext context;
  const Tensor tokens = tokens_of(4, 5), table = test::zeros(DType::f32, {5, 8}), y = test::zeros(DType::f32, {4, 8});
  EXPECT_THROW(embedding_forward(context.fastest, {tokens, table, table}), InternalError);
  EXPECT_THROW(embedding_forward(context.fastest, {y, table, y}), InternalError);
  EXPECT_THROW(embedding_backward(context.fastest, {tokens, y, y->select(0, 0)}), InternalError);
  for (const int32_t bad : {-1, 5}) {
    tokens->as<int32_t>()[2] = bad;
    EXPECT_THROW(embedding_forward(context.fastest, {tokens, table, y}), InternalError);
    EXPECT_THROW(embedding_backward(context.fastest, {tokens, y, table}), InternalError);
  }
}

}  // namespace
}  // namespace lamina::ops
