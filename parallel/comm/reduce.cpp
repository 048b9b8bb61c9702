#include "parallel/comm/reduce.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/base/error.h"

namespace lamina::comm {

namespace {

// Small enough that the partial results stay in the first-level cache.
constexpr int64_t block_size = 2048;

struct Sum {
  template <class A>
  static A combine(A a, A b) {
    return a + b;
  }
};
struct Max {
  template <class A>
  static A combine(A a, A b) {
    return (a > b || a != a) ? a : b;
  }
};
struct Min {
  template <class A>
  static A combine(A a, A b) {
    return (a < b || a != a) ? a : b;
  }
};

// A is the type in which partial results are kept.
template <class Op, class T, class A>
void reduce_as(std::span<const void* const> sources, void* out, int64_t count) {
  std::array<A, block_size> partial;
  T* const result = static_cast<T*>(out);
  for (int64_t begin = 0; begin < count; begin += block_size) {
    const int64_t length = std::min(block_size, count - begin);
    const T* const first = static_cast<const T*>(sources[0]) + begin;
    for (int64_t i = 0; i < length; ++i) partial[static_cast<size_t>(i)] = static_cast<A>(first[i]);
    for (size_t s = 1; s < sources.size(); ++s) {
      const T* const source = static_cast<const T*>(sources[s]) + begin;
      for (int64_t i = 0; i < length; ++i) {
        A& value = partial[static_cast<size_t>(i)];
        value = Op::combine(value, static_cast<A>(source[i]));
      }
    }
    for (int64_t i = 0; i < length; ++i) result[begin + i] = static_cast<T>(partial[static_cast<size_t>(i)]);
  }
}

template <class T, class A>
void reduce_typed(ReduceOp op, std::span<const void* const> sources, void* out, int64_t count) {
  switch (op) {
    case ReduceOp::sum:
      return reduce_as<Sum, T, A>(sources, out, count);
    case ReduceOp::max:
      return reduce_as<Max, T, A>(sources, out, count);
    case ReduceOp::min:
      return reduce_as<Min, T, A>(sources, out, count);
  }
}

}  // namespace

void reduce_in_order(ReduceOp op, DType dtype, std::span<const void* const> sources, void* out, int64_t count) {
  LAMINA_CHECK(!sources.empty());
  if (count == 0) return;
  if (sources.size() == 1) {
    if (out != sources[0]) std::memmove(out, sources[0], static_cast<size_t>(count * size_of(dtype)));
    return;
  }
  switch (dtype) {
    case DType::bf16:
      return reduce_typed<bf16, float>(op, sources, out, count);
    case DType::f32:
      return reduce_typed<float, float>(op, sources, out, count);
    case DType::f64:
      return reduce_typed<double, double>(op, sources, out, count);
    // int64 partial sums: exact, and narrowing them wraps without undefined behaviour.
    case DType::i32:
      return reduce_typed<int32_t, int64_t>(op, sources, out, count);
  }
}

}  // namespace lamina::comm
