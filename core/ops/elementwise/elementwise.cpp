#include "core/ops/elementwise/elementwise.h"

#include "core/ops/elementwise/implementations.h"
#include "core/ops/gpu/register.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_flat(const TensorView& v, std::string_view what, int64_t count) {
  expect_compute_dtype(v, what);
  expect_contiguous(v, what);
  LAMINA_CHECK(v.num_elements() == count, "{} is {}, expected {} elements", what, v.to_string(), count);
  LAMINA_CHECK(!v.empty() || count == 0, "{} is missing", what);
}

}  // namespace

void add(OpContext& ctx, const Add& args) {
  static constexpr Implementation<Add> list[] = {LAMINA_CUDA_IMPLEMENTATION(add)  //
                                                 {"cpu", cpu::add_refuses, cpu::add},
                                                 {"ref", nullptr, ref::add}};
  const int64_t count = args.y.num_elements();
  expect_flat(args.a, "a", count);
  expect_flat(args.b, "b", count);
  expect_flat(args.y, "y", count);
  dispatch<Add>(ctx, "add", list, args);
}

void cast(OpContext& ctx, const Cast& args) {
  static constexpr Implementation<Cast> list[] = {LAMINA_CUDA_IMPLEMENTATION(cast)  //
                                                  {"cpu", cpu::cast_refuses, cpu::cast},
                                                  {"ref", nullptr, ref::cast}};
  const int64_t count = args.y.num_elements();
  expect_flat(args.x, "x", count);
  expect_flat(args.y, "y", count);
  dispatch<Cast>(ctx, "cast", list, args);
}

void sum_squares(OpContext& ctx, const SumSquares& args) {
  static constexpr Implementation<SumSquares> list[] = {LAMINA_CUDA_IMPLEMENTATION(sum_squares)  //
                                                        {"cpu", cpu::sum_squares_refuses, cpu::sum_squares},
                                                        {"ref", nullptr, ref::sum_squares}};
  LAMINA_CHECK(args.xs.size() == args.results.size(), "{} results for {} tensors", args.results.size(), args.xs.size());
  for (const TensorView& x : args.xs) expect_flat(x, "x", x.num_elements());
  dispatch<SumSquares>(ctx, "sum_squares", list, args);
}

void fill(OpContext& ctx, const Fill& args) {
  static constexpr Implementation<Fill> list[] = {LAMINA_CUDA_IMPLEMENTATION(fill)  //
                                                  {"cpu", cpu::fill_refuses, cpu::fill},
                                                  {"ref", nullptr, ref::fill}};
  expect_flat(args.x, "x", args.x.num_elements());
  dispatch<Fill>(ctx, "fill", list, args);
}

void scale(OpContext& ctx, const Scale& args) {
  // A pass over a few rows now and then.
  static constexpr Implementation<Scale> list[] = {LAMINA_CUDA_IMPLEMENTATION(scale)  //
                                                   {"ref", nullptr, ref::scale}};
  expect_compute_dtype(args.x, "x");
  expect_contiguous(args.x, "x");
  dispatch<Scale>(ctx, "scale", list, args);
}

}  // namespace lamina::ops
