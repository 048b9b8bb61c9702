#include "core/ops/matmul/bf16_outer_products.h"

#include "core/ops/matmul/matmul.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Around the kernel's blocks (8 rows, 32 columns, pairs and chunks of 256 in depth), inside wider matrices. Where the processor
// has no such kernel, callers do without it, and it must say so.
TEST(Bf16OuterProducts, AddTheMatmulInDouble) {
  TestContext context;
  for (const int64_t depth : {1, 2, 63, 256, 257, 700}) {
    for (const auto& [rows, columns] :
         {std::pair<int64_t, int64_t>{8, 32}, {1, 1}, {7, 31}, {9, 33}, {40, 64}, {17, 100}}) {
      const Tensor a_memory = test::normal(DType::bf16, {depth, rows + 3}, 1),
                   b_memory = test::normal(DType::bf16, {depth, columns + 1}, 2),
                   c_memory = test::normal(DType::f32, {rows, columns + 5}, 3);
      const TensorView a = a_memory.view().slice(1, 2, 2 + rows), b = b_memory.view().slice(1, 1, 1 + columns),
                       c = c_memory.view().slice(1, 4, 4 + columns);
      const Tensor before = test::to(DType::f32, c_memory);
      const cpu::Bf16OuterProducts args{a.as<bf16>(), b.as<bf16>(), c.as<float>(), depth,      rows,
                                        columns,      a.stride(0),  b.stride(0),   c.stride(0)};
      const Tensor scratch(DType::f32, {cpu::scratch_bytes(args) / 4});
      auto* bytes = static_cast<char*>(scratch->data);
      if (!cpu::has_bf16_outer_products()) {
        EXPECT_THROW(cpu::add_outer_products(args, bytes), InternalError);
        continue;
      }
      test::Mirror mirror;
      matmul(context.reference, {mirror(a).transposed(), mirror(b), mirror(c), GradMode::accumulate});
      cpu::add_outer_products(args, bytes);
      EXPECT_MIRRORED(mirror, c, depth, std::sqrt(static_cast<double>(depth)));
      for (int64_t r = 0; r < rows; ++r) {
        for (const int64_t beside : {int64_t{3}, columns + 4}) {
          const int64_t at = r * (columns + 5) + beside;
          EXPECT_EQ(test::get(c_memory, at), test::get(before, at));
        }
      }
    }
  }
}

}  // namespace
}  // namespace lamina::ops
