#include "core/ops/elementwise/implementations.h"

#include <algorithm>
#include <type_traits>

#include "core/ops/rows.h"
#include "core/ops/sum_order.h"

namespace lamina::ops::ref {

void add(OpContext&, const Add& args) {
  const int64_t count = args.y.num_elements();
  visit_float(args.a.dtype, [&]<class A>(A) {
    visit_float(args.b.dtype, [&]<class B>(B) {
      visit_float(args.y.dtype, [&]<class Y>(Y) {
        using Sum = std::common_type_t<acc_t<A>, acc_t<B>, acc_t<Y>>;
        const A* a = args.a.as<A>();
        const B* b = args.b.as<B>();
        Y* y = args.y.as<Y>();
        for (int64_t i = 0; i < count; ++i) y[i] = round_to<Y>(static_cast<Sum>(a[i]) + static_cast<Sum>(b[i]));
      });
    });
  });
}

void cast(OpContext&, const Cast& args) {
  const int64_t count = args.y.num_elements();
  visit_float(args.x.dtype, [&]<class X>(X) {
    visit_float(args.y.dtype, [&]<class Y>(Y) {
      const X* x = args.x.as<X>();
      Y* y = args.y.as<Y>();
      for (int64_t i = 0; i < count; ++i) y[i] = round_to<Y>(static_cast<acc_t<X>>(x[i]));
    });
  });
}

namespace {

double square_sum(const TensorView& view) {
  const int64_t count = view.num_elements();
  double total = 0;
  visit_float(view.dtype, [&]<class T>(T) {
    const T* x = view.as<T>();
    for (int64_t begin = 0; begin < count; begin += sum_block) {
      double lanes[sum_lanes] = {};
      for (int64_t i = begin; i < std::min(count, begin + sum_block); ++i) {
        const double value = static_cast<double>(x[i]);
        lanes[(i - begin) % sum_lanes] += value * value;
      }
      total += add_lanes(lanes);
    }
  });
  return total;
}

}  // namespace

void sum_squares(OpContext&, const SumSquares& args) {
  for (size_t i = 0; i < args.xs.size(); ++i) args.results[i] = square_sum(args.xs[i]);
}

void fill(OpContext&, const Fill& args) {
  visit_float(args.x.dtype,
              [&]<class T>(T) { std::fill_n(args.x.as<T>(), args.x.num_elements(), round_to<T>(args.value)); });
}

void scale(OpContext&, const Scale& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) {
    visit_float(args.x.dtype, [&]<class T>(T) {
      T* x = args.x.as<T>();
      for (int64_t i = 0; i < args.x.num_elements(); ++i)
        x[i] = round_to<T>(static_cast<A>(args.factor) * static_cast<A>(x[i]));
    });
  });
}

}  // namespace lamina::ops::ref
