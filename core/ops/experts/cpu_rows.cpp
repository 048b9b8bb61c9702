#include <cstring>

#include "core/ops/experts/implementations.h"
#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/experts/cpu_rows.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

// A strip of columns at a time: its sum stays in registers over the slots.
template <class X, class Y>
void combine_tokens(const CombineRows& args, int64_t begin, int64_t end) {
  const int64_t k = args.position.size(1);
  const auto dim = static_cast<size_t>(args.y.size(1));
  const bool accumulate = args.mode == GradMode::accumulate;
  for (int64_t t = begin; t < end; ++t) {
    const int32_t* position = static_cast<const int32_t*>(args.position.data) + t * k;
    Y* y = row<Y>(args.y, t);
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      V sum = hn::Zero(D());
      for (int64_t j = 0; j < k; ++j) {
        if (position[j] >= 0) sum = hn::Add(sum, load(part, row<X>(args.x, position[j]) + i));
      }
      if (accumulate) sum = hn::Add(load(part, y + i), sum);
      store(part, sum, y + i);
    });
  }
}

template <class X>
void combine_from(const CombineRows& args, int64_t begin, int64_t end) {
  if (args.y.dtype == DType::bf16) return combine_tokens<X, bf16>(args, begin, end);
  combine_tokens<X, float>(args, begin, end);
}

void combine(const CombineRows& args, int64_t begin, int64_t end) {
  if (args.x.dtype == DType::bf16) return combine_from<bf16>(args, begin, end);
  combine_from<float>(args, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(combine);

const char* gather_rows_refuses(const GatherRows&) {
  return nullptr;
}
const char* combine_rows_refuses(const CombineRows& args) {
  return refuses_f64(args.x);
}

void gather_rows(OpContext&, const GatherRows& args) {
  const int64_t item = size_of(args.x.dtype), line = args.x.size(1) * item;
  if (line == 0) return;
  const auto* x = static_cast<const char*>(args.x.data);
  auto* y = static_cast<char*>(args.y.data);
  const auto* index = static_cast<const int32_t*>(args.index.data);
  lamina::cpu::parallel_for(args.y.size(0), row_grain(args.x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(y + r * args.y.stride(0) * item, x + index[r] * args.x.stride(0) * item, static_cast<size_t>(line));
    }
  });
}

void combine_rows(OpContext&, const CombineRows& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(combine);
  const int64_t work = args.y.size(1) * (1 + args.position.size(1));
  lamina::cpu::parallel_for(args.y.size(0), row_grain(work),
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

}  // namespace lamina::ops::cpu
#endif
