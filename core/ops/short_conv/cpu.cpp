#include "core/ops/short_conv/implementations.h"

#include <algorithm>

#include "core/ops/document_starts.h"
#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/short_conv/cpu.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/simd/sigmoid-inl.h"
#include "core/ops/simd/simd_rows-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_SHORT_CONV
#define LAMINA_CORE_OPS_CPU_SHORT_CONV
namespace lamina::ops::cpu {
namespace {

// A range of rows is done in one go, because at its end rows are computed twice; its sums still go part by part.
struct WeightSums {
  const PartialSums& sums;
  const RowParts& parts;
  float* of_row(int64_t row) const { return sums.of(row / parts.rows_per_part); }
};

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

template <class T>
HWY_INLINE T* token_row(const TensorView& view, int64_t batch, int64_t token) {
  return static_cast<T*>(view.data) + batch * view.stride(0) + token * view.stride(1);
}

// How many of the taps before a token's own reach into its document.
HWY_INLINE int64_t reach(const TensorView& starts, int64_t batch, int64_t token, int64_t taps) {
  return std::min(taps - 1, token - document_start(starts, batch, token));
}

// c of one vector of channels. `x` is the token's own row, `weight` [taps, stride] the taps of every channel.
template <class T, class Part>
HWY_INLINE V convolve(Part part, const T* x, int64_t step, const float* weight, int64_t stride, int64_t taps,
                      int64_t back) {
  V sum = hn::Zero(D());
  for (int64_t n = back; n >= 0; --n) {
    sum = hn::MulAdd(load(part, weight + (taps - 1 - n) * stride), load(part, x - n * step), sum);
  }
  return sum;
}

// Tokens [begin, end), counted through all sequences.
template <class T>
void forward_rows(const ShortConvForward& args, const float* weight, int64_t begin, int64_t end) {
  const int64_t num_tokens = args.x.size(1), taps = args.weight.size(1), stride = padded(args.x.size(2));
  for (int64_t n = begin; n < end; ++n) {
    const int64_t batch = n / num_tokens, t = n % num_tokens;
    const int64_t back = reach(args.document_starts, batch, t, taps), step = args.x.stride(1);
    const T* x = token_row<T>(args.x, batch, t);
    T* y = token_row<T>(args.y, batch, t);
    each_vector(static_cast<size_t>(args.x.size(2)), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V c = convolve(part, x + i, step, weight + i, stride, taps, back);
      store(part, hn::Mul(c, logistic(c)), y + i);
    });
  }
}

// dc of one token into `dc`; its part of the weights' gradient into `dweight` [taps, stride], when not null.
template <class T>
void convolution_gradient(const ShortConvBackward& args, const float* weight, int64_t batch, int64_t t, float* dc,
                          float* dweight) {
  const int64_t taps = args.weight.size(1), stride = padded(args.x.size(2)), step = args.x.stride(1);
  const int64_t back = reach(args.document_starts, batch, t, taps);
  const T *x = token_row<T>(args.x, batch, t), *dy = token_row<T>(args.dy, batch, t);
  const V one = hn::Set(D(), 1.0f);
  each_vector(static_cast<size_t>(args.x.size(2)), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    const V c = convolve(part, x + i, step, weight + i, stride, taps, back), s = logistic(c);
    const V slope = hn::MulAdd(hn::Mul(c, s), hn::Sub(one, s), s);  // s (1 + c (1 - s))
    const V d = hn::Mul(load(part, dy + i), slope);
    store(part, d, dc + i);
    if (dweight == nullptr) return;
    for (int64_t n = 0; n <= back; ++n) {
      float* sum = dweight + (taps - 1 - n) * stride + static_cast<int64_t>(i);
      store(part, hn::MulAdd(d, load(part, x + i - n * step), load(part, sum)), sum);
    }
  });
}

// Tokens [begin, end) of one sequence. The last `taps` rows of dc are kept, at their token modulo taps: dx of a token needs those
// of the next taps - 1. Behind the end they are computed by whoever needs them; only their own range counts for the weights.
template <class T>
void backward_tokens(const ShortConvBackward& args, const float* weight, const WeightSums& sums, float* kept,
                     int64_t batch, int64_t begin, int64_t end) {
  const int64_t num_tokens = args.x.size(1), taps = args.weight.size(1), stride = padded(args.x.size(2));
  for (int64_t t = begin; t < end + taps - 1; ++t) {
    if (t < num_tokens) {
      float* dweight = t < end ? sums.of_row(batch * num_tokens + t) : nullptr;
      convolution_gradient<T>(args, weight, batch, t, kept + t % taps * stride, dweight);
    }
    const int64_t to = t - taps + 1;
    if (to < begin) continue;
    int64_t last = to;  // that reads this token
    while (last < t && last + 1 < num_tokens && document_start(args.document_starts, batch, last + 1) <= to) ++last;
    T* dx = token_row<T>(args.dx, batch, to);
    each_vector(static_cast<size_t>(args.x.size(2)), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      V sum = hn::Zero(D());
      for (int64_t n = to; n <= last; ++n) {
        const int64_t at = static_cast<int64_t>(i);
        sum = hn::MulAdd(load(part, weight + (taps - 1 - (n - to)) * stride + at),
                         load(part, kept + n % taps * stride + at), sum);
      }
      store(part, sum, dx + i);
    });
  }
}

template <class T>
void backward_rows(const ShortConvBackward& args, const float* weight, const WeightSums& sums, float* kept,
                   int64_t begin, int64_t end) {
  const int64_t num_tokens = args.x.size(1);
  while (begin < end) {
    const int64_t batch = begin / num_tokens, stop = std::min(end, (batch + 1) * num_tokens);
    backward_tokens<T>(args, weight, sums, kept, batch, begin - batch * num_tokens, stop - batch * num_tokens);
    begin = stop;
  }
}

void conv_forward(const ShortConvForward& args, const float* weight, int64_t begin, int64_t end) {
  if (args.x.dtype == DType::bf16) return forward_rows<bf16>(args, weight, begin, end);
  forward_rows<float>(args, weight, begin, end);
}
void conv_backward(const ShortConvBackward& args, const float* weight, const WeightSums& sums, float* kept,
                   int64_t begin, int64_t end) {
  if (args.x.dtype == DType::bf16) return backward_rows<bf16>(args, weight, sums, kept, begin, end);
  backward_rows<float>(args, weight, sums, kept, begin, end);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(conv_forward);
HWY_EXPORT(conv_backward);

namespace {

// [channels, taps] to [taps, padded(channels)].
const float* by_taps(OpContext& ctx, const TensorView& weight) {
  const int64_t channels = weight.size(0), taps = weight.size(1);
  float* out = zeros(ctx, taps, channels);
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t i = 0; i < taps; ++i) out[i * padded(channels) + channel] = weight.as<float>()[channel * taps + i];
  }
  return out;
}

}  // namespace

const char* short_conv_forward_refuses(const ShortConvForward& args) {
  return refuses_f64(args.x);
}
const char* short_conv_backward_refuses(const ShortConvBackward& args) {
  return refuses_f64(args.x);
}

void short_conv_forward(OpContext& ctx, const ShortConvForward& args) {
  const float* weight = by_taps(ctx, args.weight);
  const auto run = HWY_DYNAMIC_DISPATCH(conv_forward);
  lamina::cpu::parallel_for(args.x.size(0) * args.x.size(1), row_grain(args.x.size(2)),
                            [&](int64_t begin, int64_t end) { run(args, weight, begin, end); });
}

void short_conv_backward(OpContext& ctx, const ShortConvBackward& args) {
  const int64_t rows = args.x.size(0) * args.x.size(1), channels = args.x.size(2), taps = args.weight.size(1);
  const float* weight = by_taps(ctx, args.weight);
  const RowParts parts(rows, channels);
  const PartialSums dweight(ctx, parts, taps, channels);
  const int threads = lamina::cpu::threads_for(parts.count, 1);
  float* kept = zeros(ctx, threads * taps, channels);
  const auto run = HWY_DYNAMIC_DISPATCH(conv_backward);
  lamina::cpu::parallel_parts(parts.count, threads, [&](int thread, int64_t first, int64_t last) {
    run(args, weight, {dweight, parts}, kept + thread * taps * padded(channels), parts.begin(first), parts.begin(last));
  });
  const float* total = dweight.add_up();
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t i = 0; i < taps; ++i) {
      args.dweight.as<float>()[channel * taps + i] += total[i * padded(channels) + channel];
    }
  }
}

}  // namespace lamina::ops::cpu
#endif
