#include "core/ops/short_conv/implementations.h"

#include <algorithm>
#include <cmath>

#include "core/ops/document_starts.h"
#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

template <class T>
T* position(const TensorView& view, int64_t row, int64_t t) {
  return view.as<T>() + row * view.stride(0) + t * view.stride(1);
}

// c[t], for one channel.
template <class T>
acc_t<T> convolved(const TensorView& x, const TensorView& weight, const TensorView& starts, int64_t row, int64_t t,
                   int64_t channel) {
  using A = acc_t<T>;
  const int64_t taps = weight.size(1), first = document_start(starts, row, t);
  const A* w = weight.as<A>() + channel * taps;
  A sum = 0;
  for (int64_t i = 0; i < taps; ++i) {
    const int64_t from = t - taps + 1 + i;
    if (from >= first) sum += w[i] * static_cast<A>(position<T>(x, row, from)[channel]);
  }
  return sum;
}

template <class T>
void forward(const ShortConvForward& args) {
  using A = acc_t<T>;
  for (int64_t row = 0; row < args.x.size(0); ++row) {
    for (int64_t t = 0; t < args.x.size(1); ++t) {
      for (int64_t channel = 0; channel < args.x.size(2); ++channel) {
        const A c = convolved<T>(args.x, args.weight, args.document_starts, row, t, channel);
        position<T>(args.y, row, t)[channel] = round_to<T>(c / (A(1) + std::exp(-c)));
      }
    }
  }
}

// One channel of one sequence; dx is summed in acc before it is rounded.
template <class T>
void backward_channel(const ShortConvBackward& args, int64_t row, int64_t channel, Row<acc_t<T>>& dx) {
  using A = acc_t<T>;
  const int64_t num_tokens = args.x.size(1), taps = args.weight.size(1);
  const A* w = args.weight.as<A>() + channel * taps;
  A* dw = args.dweight.as<A>() + channel * taps;
  std::fill(dx.begin(), dx.end(), A(0));
  for (int64_t t = 0; t < num_tokens; ++t) {
    const A c = convolved<T>(args.x, args.weight, args.document_starts, row, t, channel);
    const A sigmoid = A(1) / (A(1) + std::exp(-c));
    const A dc = static_cast<A>(position<T>(args.dy, row, t)[channel]) * sigmoid * (A(1) + c * (A(1) - sigmoid));
    const int64_t first = document_start(args.document_starts, row, t);
    for (int64_t i = 0; i < taps; ++i) {
      const int64_t from = t - taps + 1 + i;
      if (from < first) continue;
      dx[static_cast<size_t>(from)] += w[i] * dc;
      dw[i] += dc * static_cast<A>(position<T>(args.x, row, from)[channel]);
    }
  }
  for (int64_t t = 0; t < num_tokens; ++t)
    position<T>(args.dx, row, t)[channel] = round_to<T>(dx[static_cast<size_t>(t)]);
}

}  // namespace

void short_conv_forward(OpContext&, const ShortConvForward& args) {
  visit_float(args.x.dtype, [&]<class T>(T) { forward<T>(args); });
}

void short_conv_backward(OpContext&, const ShortConvBackward& args) {
  visit_float(args.x.dtype, [&]<class T>(T) {
    Row<acc_t<T>> dx(static_cast<size_t>(args.x.size(1)));
    for (int64_t row = 0; row < args.x.size(0); ++row) {
      for (int64_t channel = 0; channel < args.x.size(2); ++channel) backward_channel<T>(args, row, channel, dx);
    }
  });
}

}  // namespace lamina::ops::ref
