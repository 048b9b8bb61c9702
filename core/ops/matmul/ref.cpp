#include "core/ops/matmul/implementations.h"

#include <algorithm>

#include "core/device/cpu/parallel_for.h"

namespace lamina::ops::ref {
namespace {

// One row of c, in strips of columns that fit a small accumulator. Every element is summed in the order of k.
template <class In, class Out>
void matmul_row(const Matmul& args, int64_t row) {
  using Acc = acc_t<In>;
  constexpr int64_t strip = 64;
  const int64_t num_columns = args.c.size(1), depth = args.a.size(1);
  const int64_t a_step = args.a.stride(1), b_row = args.b.stride(0), b_step = args.b.stride(1);
  const In* a = args.a.as<In>() + row * args.a.stride(0);
  const In* b = args.b.as<In>();
  Out* c = args.c.as<Out>() + row * args.c.stride(0);
  for (int64_t first = 0; first < num_columns; first += strip) {
    const int64_t width = std::min(strip, num_columns - first);
    Acc sum[strip] = {};
    if (b_step == 1) {
      for (int64_t k = 0; k < depth; ++k) {
        const Acc a_k = static_cast<Acc>(a[k * a_step]);
        for (int64_t j = 0; j < width; ++j) sum[j] += a_k * static_cast<Acc>(b[k * b_row + first + j]);
      }
    } else {
      for (int64_t j = 0; j < width; ++j) {
        for (int64_t k = 0; k < depth; ++k) {
          sum[j] += static_cast<Acc>(a[k * a_step]) * static_cast<Acc>(b[k * b_row + (first + j) * b_step]);
        }
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      Out& out = c[first + j];
      out = static_cast<Out>(args.mode == GradMode::accumulate ? static_cast<Acc>(out) + sum[j] : sum[j]);
    }
  }
}

template <class In, class Out>
void matmul_typed(const Matmul& args) {
  const int64_t row_work = std::max<int64_t>(1, args.c.size(1) * args.a.size(1));
  lamina::cpu::parallel_for(args.c.size(0), 1 + 32768 / row_work, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) matmul_row<In, Out>(args, row);
  });
}

}  // namespace

void matmul(OpContext&, const Matmul& args) {
  switch (args.a.dtype) {
    case DType::f64:
      return matmul_typed<double, double>(args);
    case DType::f32:
      return matmul_typed<float, float>(args);
    case DType::bf16:
      return args.c.dtype == DType::bf16 ? matmul_typed<bf16, bf16>(args) : matmul_typed<bf16, float>(args);
    case DType::i32:
      break;
  }
  LAMINA_CHECK(false, "matmul of {}", name_of(args.a.dtype));
}

}  // namespace lamina::ops::ref
