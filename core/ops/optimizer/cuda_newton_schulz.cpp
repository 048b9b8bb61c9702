#include "core/ops/optimizer/implementations.h"

#include <algorithm>

#include "core/device/cuda_device.h"
#include "core/ops/elementwise/kernels.h"
#include "core/ops/gpu/operands.h"
#include "core/ops/matmul/blas.h"
#include "core/ops/optimizer/newton_schulz_kernels.h"

namespace lamina::ops::cuda {
namespace {

constexpr float quintic_a = 3.4445f, quintic_b = -4.7750f, quintic_c = 2.0315f;

// Some matrices in fp32, and as the products read them.
class Iteration {
 public:
  Iteration(OpContext& ctx, const NewtonSchulz& args, int64_t count)
      : ctx_(ctx),
        count_(count),
        rows_(args.x.size(1)),
        columns_(args.x.size(2)),
        side_(std::min(rows_, columns_)),
        products_(args.products),
        operand_(take(products_, rows_, columns_)),
        gram_(take(DType::f32, side_, side_)),
        square_(take(products_, side_, side_)),
        polynomial_(take(products_, side_, side_)),
        partial_(ctx.scratch.take(DType::f32, {count, normalise_partials(rows_ * columns_)})) {}

  // x -> out, which may be x: [count, rows, columns]
  void run(const float* x, float* out, int num_steps) {
    launch_normalise({x, out, operand_.data, products_, partial_.as<float>(), count_, rows_ * columns_},
                     stream_of(ctx_));
    const TensorView result(out, DType::f32, operand_.shape);
    for (int step = 0; step < num_steps; ++step) {
      if (step > 0) round(result, operand_);
      multiply_each(wide() ? matrix(operand_) : matrix(operand_).transposed(),
                    wide() ? matrix(operand_).transposed() : matrix(operand_), gram_, 1.0f, 0.0f);
      round(gram_, square_);
      multiply_each(matrix(square_), matrix(square_), gram_, quintic_c, quintic_b);
      round(gram_, polynomial_);
      multiply_each(wide() ? matrix(polynomial_) : matrix(operand_),
                    wide() ? matrix(operand_) : matrix(polynomial_).transposed(), result, 1.0f, quintic_a);
    }
  }

 private:
  bool wide() const { return rows_ <= columns_; }
  TensorView take(DType dtype, int64_t rows, int64_t columns) {
    return ctx_.scratch.take(dtype, {count_, rows, columns});
  }
  static TensorView matrix(const TensorView& batch) { return batch.select(0, 0); }
  static int64_t step_of(const TensorView& m) { return m.size(0) * m.size(1); }

  void multiply_each(const TensorView& a, const TensorView& b, const TensorView& c, float alpha, float beta) {
    const TensorView out = matrix(c);
    multiply(ctx_.stream, {a, b, out, alpha, beta, count_, step_of(a), step_of(b), step_of(out)});
  }
  void round(const TensorView& from, const TensorView& to) {
    launch_cast({{from.data, from.dtype}, {to.data, to.dtype}, from.num_elements()}, stream_of(ctx_));
  }

  OpContext& ctx_;
  int64_t count_, rows_, columns_, side_;
  DType products_;
  TensorView operand_, gram_, square_, polynomial_, partial_;
};

}  // namespace

const char* newton_schulz_refuses(const NewtonSchulz& args) {
  return refuses_fp64({&args.x});
}

void newton_schulz(OpContext& ctx, const NewtonSchulz& args) {
  const int64_t batch = args.x.size(0), size = args.x.size(1) * args.x.size(2);
  const int64_t together = matrices_per_call(std::min(args.x.size(1), args.x.size(2)));
  Iteration iteration(ctx, args, together);
  auto* const x = args.x.as<float>();
  int64_t first = 0;
  for (; first + together <= batch; first += together)
    iteration.run(x + first * size, x + first * size, args.num_steps);
  if (first == batch) return;
  const TensorView padded = ctx.scratch.take(DType::f32, {together, size});
  const int64_t bytes = (batch - first) * size * size_of(DType::f32);
  lamina::cuda::fill_zero(padded.data, padded.num_bytes(), ctx.stream);
  lamina::cuda::copy(padded.data, x + first * size, bytes, ctx.stream);
  iteration.run(padded.as<float>(), padded.as<float>(), args.num_steps);
  lamina::cuda::copy(x + first * size, padded.data, bytes, ctx.stream);
}

}  // namespace lamina::ops::cuda
