#include "core/ops/matmul/matmul.h"

#include "core/ops/gpu/register.h"
#include "core/ops/matmul/implementations.h"

namespace lamina::ops {
namespace {

// One unit stride, and the other at least as long as a line: overlapping lines (broadcasting) are no operand.
bool is_lines(int64_t num_lines, int64_t length, int64_t line_stride, int64_t unit_stride) {
  return (unit_stride == 1 || length <= 1) && (num_lines <= 1 || line_stride >= length);
}

bool is_matrix(const TensorView& view) {
  if (view.rank() != 2) return false;
  return is_lines(view.size(0), view.size(1), view.stride(0), view.stride(1)) ||
         is_lines(view.size(1), view.size(0), view.stride(1), view.stride(0));
}

void validate(const Matmul& args) {
  const TensorView &a = args.a, &b = args.b, &c = args.c;
  const auto given = [](const TensorView& view) { return view.data != nullptr || view.num_elements() == 0; };
  LAMINA_CHECK(given(a) && given(b) && given(c), "a {}, b {}, c {}", a.to_string(), b.to_string(), c.to_string());
  LAMINA_CHECK(is_matrix(a), "a {}, strides {}", a.to_string(), a.strides.to_string());
  LAMINA_CHECK(is_matrix(b), "b {}, strides {}", b.to_string(), b.strides.to_string());
  LAMINA_CHECK(c.rank() == 2 && is_lines(c.size(0), c.size(1), c.stride(0), c.stride(1)), "c {}, strides {}",
               c.to_string(), c.strides.to_string());
  LAMINA_CHECK(a.size(1) == b.size(0) && a.size(0) == c.size(0) && b.size(1) == c.size(1), "{} x {} into {}",
               a.to_string(), b.to_string(), c.to_string());
  LAMINA_CHECK(a.dtype == b.dtype && a.dtype != DType::i32, "{} x {}", a.to_string(), b.to_string());
  LAMINA_CHECK(c.dtype == a.dtype || c.dtype == accumulation_dtype(a.dtype), "{} x {} into {}", a.to_string(),
               b.to_string(), c.to_string());
}

constexpr Implementation<Matmul> matmul_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(matmul)  //
    {"cpu", cpu::matmul_refuses, cpu::matmul},
    {"ref", nullptr, ref::matmul},
};

}  // namespace

void matmul(OpContext& ctx, const Matmul& args) {
  validate(args);
  dispatch<Matmul>(ctx, "matmul", matmul_implementations, args);
}

}  // namespace lamina::ops
