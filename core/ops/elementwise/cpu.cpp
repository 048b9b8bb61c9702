#include "core/ops/elementwise/implementations.h"

#include <numeric>

#include "core/ops/rows.h"
#include "core/ops/simd/parameters.h"
#include "core/ops/sum_order.h"
#define HWY_TARGET_INCLUDE "core/ops/elementwise/cpu.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

template <class A, class B, class Y>
void add_elements(const Add& args, int64_t begin, int64_t end) {
  const A* a = static_cast<const A*>(args.a.data) + begin;
  const B* b = static_cast<const B*>(args.b.data) + begin;
  Y* y = static_cast<Y*>(args.y.data) + begin;
  each_vector(static_cast<size_t>(end - begin), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    store(part, hn::Add(load(part, a + i), load(part, b + i)), y + i);
  });
}
template <class A, class B>
void add_to(const Add& args, int64_t begin, int64_t end) {
  if (args.y.dtype == DType::bf16) return add_elements<A, B, bf16>(args, begin, end);
  add_elements<A, B, float>(args, begin, end);
}
template <class A>
void add_from(const Add& args, int64_t begin, int64_t end) {
  if (args.b.dtype == DType::bf16) return add_to<A, bf16>(args, begin, end);
  add_to<A, float>(args, begin, end);
}
void add_range(const Add& args, int64_t begin, int64_t end) {
  if (args.a.dtype == DType::bf16) return add_from<bf16>(args, begin, end);
  add_from<float>(args, begin, end);
}

template <class X, class Y>
void cast_elements(const Cast& args, int64_t begin, int64_t end) {
  const X* x = static_cast<const X*>(args.x.data) + begin;
  Y* y = static_cast<Y*>(args.y.data) + begin;
  each_vector(static_cast<size_t>(end - begin),
              [&](size_t i, auto part) LAMINA_VECTOR_BODY { store(part, load(part, x + i), y + i); });
}
void cast_range(const Cast& args, int64_t begin, int64_t end) {
  if (args.x.dtype == DType::bf16) {
    if (args.y.dtype == DType::bf16) return cast_elements<bf16, bf16>(args, begin, end);
    return cast_elements<bf16, float>(args, begin, end);
  }
  if (args.y.dtype == DType::bf16) return cast_elements<float, bf16>(args, begin, end);
  cast_elements<float, float>(args, begin, end);
}

// The block's sum of squares in the order of core/ops/sum_order.h: lane l of the order is lane l % Lanes of accumulator
// l / Lanes.
template <class T>
double block_sum(const T* x, int64_t count) {
  const hn::CappedTag<double, 8> wide;
  const hn::Rebind<float, decltype(wide)> narrow;
  constexpr size_t max_lanes = hn::MaxLanes(wide), num_sums = sum_lanes / max_lanes;
  HWY_ALIGN double lanes[sum_lanes];
  hn::Vec<decltype(wide)> sums[num_sums];
  for (size_t k = 0; k < num_sums; ++k) sums[k] = hn::Zero(wide);
  int64_t i = 0;
  for (; i + sum_lanes <= count; i += sum_lanes) {
#pragma GCC unroll 32
    for (size_t k = 0; k < num_sums; ++k) {
      const auto value = hn::PromoteTo(wide, load(narrow, x + i + k * max_lanes));
      sums[k] = hn::MulAdd(value, value, sums[k]);
    }
  }
  for (size_t k = 0; k < num_sums; ++k) hn::Store(sums[k], wide, lanes + k * max_lanes);
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    const double value = static_cast<double>(x[i]);
    lanes[lane] += value * value;
  }
  return add_lanes(lanes);
}

// The sums of blocks [begin, end).
void square_blocks(const TensorView& x, double* sums, int64_t begin, int64_t end) {
  const int64_t count = x.num_elements();
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * sum_block, size = std::min(sum_block, count - first);
    sums[block] = x.dtype == DType::bf16 ? block_sum(static_cast<const bf16*>(x.data) + first, size)
                                         : block_sum(static_cast<const float*>(x.data) + first, size);
  }
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(add_range);
HWY_EXPORT(cast_range);
HWY_EXPORT(square_blocks);

const char* add_refuses(const Add& args) {
  for (const TensorView* operand : {&args.a, &args.b, &args.y}) {
    if (const char* reason = refuses_f64(*operand)) return reason;
  }
  return nullptr;
}
const char* cast_refuses(const Cast& args) {
  const char* reason = refuses_f64(args.x);
  return reason != nullptr ? reason : refuses_f64(args.y);
}
const char* sum_squares_refuses(const SumSquares& args) {
  for (const TensorView& x : args.xs) {
    if (const char* reason = refuses_f64(x)) return reason;
  }
  return nullptr;
}
const char* fill_refuses(const Fill& args) {
  return refuses_f64(args.x);
}

void add(OpContext&, const Add& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(add_range);
  lamina::cpu::parallel_for(args.y.num_elements(), elements_per_thread,
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void cast(OpContext&, const Cast& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(cast_range);
  lamina::cpu::parallel_for(args.y.num_elements(), elements_per_thread,
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void sum_squares(OpContext& ctx, const SumSquares& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(square_blocks);
  for (size_t i = 0; i < args.xs.size(); ++i) {
    const ArenaScope scope(ctx.scratch);
    const TensorView& x = args.xs[i];
    const int64_t num_blocks = num_sum_blocks(x.num_elements());
    double* sums = ctx.scratch.take(DType::f64, {num_blocks}).as<double>();
    lamina::cpu::parallel_for(num_blocks, 2, [&](int64_t begin, int64_t end) { run(x, sums, begin, end); });
    args.results[i] = std::accumulate(sums, sums + num_blocks, 0.0);
  }
}

void fill(OpContext&, const Fill& args) {
  lamina::cpu::parallel_for(args.x.num_elements(), elements_per_thread, [&](int64_t begin, int64_t end) {
    if (args.x.dtype == DType::bf16) {
      std::fill(args.x.as<bf16>() + begin, args.x.as<bf16>() + end, ref::round_to<bf16>(args.value));
    } else {
      std::fill(args.x.as<float>() + begin, args.x.as<float>() + end, static_cast<float>(args.value));
    }
  });
}

}  // namespace lamina::ops::cpu
#endif
