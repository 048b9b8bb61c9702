#include "core/ops/hyper_connections/implementations.h"

#include <algorithm>
#include <cmath>

#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/hyper_connections/cpu.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

constexpr size_t most_projections = num_projections(max_streams), most_permutations = num_permutations(max_streams);

// What a token's coefficients are made of: the logits of all rows of W, and the softmax over the permutations.
struct HyperLogits {
  float logit[most_projections];
  float weight[most_permutations];
};

HWY_INLINE size_t hyper_gate_of(size_t row, size_t n) {
  return row < n ? 0 : row < 2 * n ? 1 : 2;
}

template <class Args>
HyperLogits hyper_logits(const Args& args, int64_t t, float rstd) {
  const size_t n = static_cast<size_t>(args.num_streams), m = static_cast<size_t>(args.projected.size(1));
  const float* z = row<float>(args.projected, t);
  const float* alpha = static_cast<const float*>(args.alpha.data);
  const float* bias = static_cast<const float*>(args.bias.data);
  HyperLogits out;
  for (size_t r = 0; r < m; ++r) out.logit[r] = alpha[hyper_gate_of(r, n)] * rstd * z[r] + bias[r];
  const float largest = *std::max_element(out.logit + 2 * n, out.logit + m);
  float sum = 0;
  for (size_t k = 2 * n; k < m; ++k) {
    out.weight[k - 2 * n] = std::exp(out.logit[k] - largest);
    sum += out.weight[k - 2 * n];
  }
  for (size_t k = 2 * n; k < m; ++k) out.weight[k - 2 * n] /= sum;
  return out;
}

inline float hyper_sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

template <class T>
void hyper_coefficients_of(const HyperCoefficientsForward& args, int64_t begin, int64_t end) {
  const size_t n = static_cast<size_t>(args.num_streams), width = static_cast<size_t>(args.streams.size(1));
  const auto all = permutations(args.num_streams);
  for (int64_t t = begin; t < end; ++t) {
    const T* x = row<T>(args.streams, t);
    V square[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(width, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
      const V v = load(part, x + i);
      square[k] = hn::MulAdd(v, v, square[k]);
    });
    const float mean_square = sum_of_lanes(square) / static_cast<float>(width);
    const float rstd = 1.0f / std::sqrt(mean_square + static_cast<float>(args.eps));
    static_cast<float*>(args.rstd.data)[t] = rstd;
    const HyperLogits made = hyper_logits(args, t, rstd);
    float* out = row<float>(args.coefficients, t);
    for (size_t j = 0; j < n; ++j) out[j] = hyper_sigmoid(made.logit[j]);
    for (size_t i = n; i < 2 * n; ++i) out[i] = 2.0f * hyper_sigmoid(made.logit[i]);
    float* mix = out + 2 * n;
    std::fill_n(mix, n * n, 0.0f);
    for (size_t k = 0; k < all.size(); ++k)
      for (size_t i = 0; i < n; ++i) mix[i * n + static_cast<size_t>(all[k][i])] += made.weight[k];
  }
}

// sums: of dbias [m], then of dalpha [3]; accumulate.
template <class T>
void hyper_coefficients_gradient(const HyperCoefficientsBackward& args, float* sums, int64_t begin, int64_t end) {
  const size_t n = static_cast<size_t>(args.num_streams), width = static_cast<size_t>(args.streams.size(1)),
               m = static_cast<size_t>(args.projected.size(1));
  const auto all = permutations(args.num_streams);
  const float* alpha = static_cast<const float*>(args.alpha.data);
  for (int64_t t = begin; t < end; ++t) {
    const float rstd = static_cast<const float*>(args.rstd.data)[t];
    const float* z = row<float>(args.projected, t);
    const float* c = row<float>(args.coefficients, t);
    const float* dc = row<float>(args.dcoefficients, t);
    const HyperLogits made = hyper_logits(args, t, rstd);
    float dlogit[most_projections];
    for (size_t j = 0; j < n; ++j) dlogit[j] = dc[j] * c[j] * (1.0f - c[j]);
    for (size_t i = n; i < 2 * n; ++i) dlogit[i] = dc[i] * c[i] * (1.0f - 0.5f * c[i]);
    float mean = 0;
    for (size_t k = 0; k < all.size(); ++k) {
      float dweight = 0;
      for (size_t i = 0; i < n; ++i) dweight += dc[2 * n + i * n + static_cast<size_t>(all[k][i])];
      dlogit[2 * n + k] = dweight;
      mean += made.weight[k] * dweight;
    }
    for (size_t k = 0; k < all.size(); ++k) dlogit[2 * n + k] = made.weight[k] * (dlogit[2 * n + k] - mean);
    float* dz = row<float>(args.dprojected, t);
    float z_dot_dz = 0;
    for (size_t r = 0; r < m; ++r) {
      const size_t gate = hyper_gate_of(r, n);
      sums[r] += dlogit[r];
      sums[m + gate] += dlogit[r] * rstd * z[r];
      dz[r] = alpha[gate] * rstd * dlogit[r];
      z_dot_dz += z[r] * dz[r];
    }
    const V factor = hn::Set(D(), -rstd * rstd / static_cast<float>(width) * z_dot_dz);
    const T* x = row<T>(args.streams, t);
    float* dx = row<float>(args.dstreams, t);
    each_vector(width, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      store(part, hn::MulAdd(factor, load(part, x + i), load(part, dx + i)), dx + i);
    });
  }
}

template <class T, size_t n>
struct HyperReadRows {
  static void run(const HyperRead& args, int64_t begin, int64_t end) {
    const size_t dim = static_cast<size_t>(args.h.size(1));
    for (int64_t t = begin; t < end; ++t) {
      const T* x = row<T>(args.streams, t);
      const float* pre = row<float>(args.coefficients, t);
      T* h = row<T>(args.h, t);
      each_vector(dim, [&](size_t d, auto part) LAMINA_VECTOR_BODY {
        V sum = hn::Mul(hn::Set(D(), pre[0]), load(part, x + d));
        for (size_t j = 1; j < n; ++j) sum = hn::MulAdd(hn::Set(D(), pre[j]), load(part, x + j * dim + d), sum);
        store(part, sum, h + d);
      });
    }
  }
};

template <class T, size_t n>
struct HyperWriteRows {
  static void run(const HyperWrite& args, int64_t begin, int64_t end) {
    const size_t dim = static_cast<size_t>(args.output.size(1));
    for (int64_t t = begin; t < end; ++t) {
      const T* x = row<T>(args.streams, t);
      const T* y = row<T>(args.output, t);
      const float* post = row<float>(args.coefficients, t) + n;
      const float* mix = post + n;
      T* next = row<T>(args.next, t);
      each_vector(dim, [&](size_t d, auto part) LAMINA_VECTOR_BODY {
        const V output = load(part, y + d);
        V stream[n];
        for (size_t j = 0; j < n; ++j) stream[j] = load(part, x + j * dim + d);
        for (size_t i = 0; i < n; ++i) {
          V sum = hn::Mul(hn::Set(D(), post[i]), output);
          for (size_t j = 0; j < n; ++j) sum = hn::MulAdd(hn::Set(D(), mix[i * n + j]), stream[j], sum);
          store(part, sum, next + i * dim + d);
        }
      });
    }
  }
};

// T: of dy; gradients of streams are fp32.
template <class T, size_t n>
struct HyperOutputGradientRows {
  static void run(const HyperOutputGradient& args, int64_t begin, int64_t end) {
    const size_t dim = static_cast<size_t>(args.dy.size(1));
    for (int64_t t = begin; t < end; ++t) {
      const float* dnext = row<float>(args.dnext, t);
      const float* post = row<float>(args.coefficients, t) + n;
      T* dy = row<T>(args.dy, t);
      each_vector(dim, [&](size_t d, auto part) LAMINA_VECTOR_BODY {
        V sum = hn::Mul(hn::Set(D(), post[0]), load(part, dnext + d));
        for (size_t i = 1; i < n; ++i) sum = hn::MulAdd(hn::Set(D(), post[i]), load(part, dnext + i * dim + d), sum);
        store(part, sum, dy + d);
      });
    }
  }
};

template <class T, size_t n>
struct HyperBackwardRows {
  static void run(const HyperBackward& args, int64_t begin, int64_t end) {
    const size_t dim = static_cast<size_t>(args.output.size(1));
    for (int64_t t = begin; t < end; ++t) {
      const T* x = row<T>(args.streams, t);
      const T* y = row<T>(args.output, t);
      const float* dh = row<float>(args.dh, t);
      const float* pre = row<float>(args.coefficients, t);
      const float* mix = pre + 2 * n;
      float* dx = row<float>(args.dstreams, t);
      V dpre[n], dpost[n], dmix[n * n];
      for (size_t j = 0; j < n; ++j) dpre[j] = dpost[j] = hn::Zero(D());
      for (size_t e = 0; e < n * n; ++e) dmix[e] = hn::Zero(D());
      each_vector(dim, [&](size_t d, auto part) LAMINA_VECTOR_BODY {
        const V of_h = load(part, dh + d), output = load(part, y + d);
        V dnext[n], stream[n];
        for (size_t i = 0; i < n; ++i) {
          dnext[i] = load(part, dx + i * dim + d);
          stream[i] = load(part, x + i * dim + d);
        }
        for (size_t j = 0; j < n; ++j) {
          dpre[j] = hn::MulAdd(of_h, stream[j], dpre[j]);
          dpost[j] = hn::MulAdd(dnext[j], output, dpost[j]);
          V sum = hn::Mul(hn::Set(D(), pre[j]), of_h);
          for (size_t i = 0; i < n; ++i) {
            sum = hn::MulAdd(hn::Set(D(), mix[i * n + j]), dnext[i], sum);
            dmix[i * n + j] = hn::MulAdd(dnext[i], hn::Sub(stream[j], stream[i]), dmix[i * n + j]);
          }
          store(part, sum, dx + j * dim + d);
        }
      });
      float* dc = row<float>(args.dcoefficients, t);
      for (size_t j = 0; j < n; ++j) {
        dc[j] = sum_of_lanes(dpre[j]);
        dc[n + j] = sum_of_lanes(dpost[j]);
      }
      for (size_t e = 0; e < n * n; ++e) dc[2 * n + e] = sum_of_lanes(dmix[e]);
    }
  }
};

template <template <class, size_t> class Rows, class T, class Args>
void hyper_by_streams(const Args& args, int64_t begin, int64_t end) {
  if (args.num_streams == 2) return Rows<T, 2>::run(args, begin, end);
  if (args.num_streams == 3) return Rows<T, 3>::run(args, begin, end);
  Rows<T, 4>::run(args, begin, end);
}

template <template <class, size_t> class Rows, class Args>
void hyper_rows(const Args& args, DType dtype, int64_t begin, int64_t end) {
  if (dtype == DType::bf16) return hyper_by_streams<Rows, bf16>(args, begin, end);
  hyper_by_streams<Rows, float>(args, begin, end);
}

template <class T>
void hyper_expand_of(const HyperExpand& args, int64_t begin, int64_t end) {
  const size_t dim = static_cast<size_t>(args.row.size(1)), width = static_cast<size_t>(args.streams.size(1));
  const V factor = hn::Set(D(), static_cast<float>(args.factor));
  for (int64_t t = begin; t < end; ++t) {
    const T* from = row<T>(args.row, t);
    T* x = row<T>(args.streams, t);
    each_vector(dim, [&](size_t d, auto part) LAMINA_VECTOR_BODY {
      const V v = hn::Mul(factor, load(part, from + d));
      for (size_t j = d; j < width; j += dim) store(part, v, x + j);
    });
  }
}

template <class T>
void hyper_reduce_of(const HyperReduce& args, int64_t begin, int64_t end) {
  const size_t dim = static_cast<size_t>(args.row.size(1)), width = static_cast<size_t>(args.streams.size(1));
  const V factor = hn::Set(D(), static_cast<float>(args.factor));
  for (int64_t t = begin; t < end; ++t) {
    const T* x = row<T>(args.streams, t);
    T* to = row<T>(args.row, t);
    each_vector(dim, [&](size_t d, auto part) LAMINA_VECTOR_BODY {
      V sum = load(part, x + d);
      for (size_t j = d + dim; j < width; j += dim) sum = hn::Add(sum, load(part, x + j));
      store(part, hn::Mul(factor, sum), to + d);
    });
  }
}

void hyper_coefficients_rows(const HyperCoefficientsForward& args, int64_t begin, int64_t end) {
  if (args.streams.dtype == DType::bf16) return hyper_coefficients_of<bf16>(args, begin, end);
  hyper_coefficients_of<float>(args, begin, end);
}
void hyper_coefficients_gradient_rows(const HyperCoefficientsBackward& args, float* sums, int64_t begin, int64_t end) {
  if (args.streams.dtype == DType::bf16) return hyper_coefficients_gradient<bf16>(args, sums, begin, end);
  hyper_coefficients_gradient<float>(args, sums, begin, end);
}
void hyper_read_rows(const HyperRead& args, int64_t begin, int64_t end) {
  hyper_rows<HyperReadRows>(args, args.h.dtype, begin, end);
}
void hyper_write_rows(const HyperWrite& args, int64_t begin, int64_t end) {
  hyper_rows<HyperWriteRows>(args, args.next.dtype, begin, end);
}
void hyper_output_gradient_rows(const HyperOutputGradient& args, int64_t begin, int64_t end) {
  hyper_rows<HyperOutputGradientRows>(args, args.dy.dtype, begin, end);
}
void hyper_backward_rows(const HyperBackward& args, int64_t begin, int64_t end) {
  hyper_rows<HyperBackwardRows>(args, args.streams.dtype, begin, end);
}
void hyper_expand_rows(const HyperExpand& args, int64_t begin, int64_t end) {
  if (args.row.dtype == DType::bf16) return hyper_expand_of<bf16>(args, begin, end);
  hyper_expand_of<float>(args, begin, end);
}
void hyper_reduce_rows(const HyperReduce& args, int64_t begin, int64_t end) {
  if (args.row.dtype == DType::bf16) return hyper_reduce_of<bf16>(args, begin, end);
  hyper_reduce_of<float>(args, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(hyper_coefficients_rows);
HWY_EXPORT(hyper_coefficients_gradient_rows);
HWY_EXPORT(hyper_read_rows);
HWY_EXPORT(hyper_write_rows);
HWY_EXPORT(hyper_output_gradient_rows);
HWY_EXPORT(hyper_backward_rows);
HWY_EXPORT(hyper_expand_rows);
HWY_EXPORT(hyper_reduce_rows);

namespace {

// width: elements of a row.
template <class Run, class Args>
void over_rows(Run run, const Args& args, int64_t tokens, int64_t width) {
  lamina::cpu::parallel_for(tokens, row_grain(width), [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

}  // namespace

const char* hyper_coefficients_forward_refuses(const HyperCoefficientsForward& args) {
  return refuses_f64(args.streams);
}
void hyper_coefficients_forward(OpContext&, const HyperCoefficientsForward& args) {
  over_rows(HWY_DYNAMIC_DISPATCH(hyper_coefficients_rows), args, args.streams.size(0), args.streams.size(1));
}

const char* hyper_coefficients_backward_refuses(const HyperCoefficientsBackward& args) {
  return refuses_f64(args.streams);
}
void hyper_coefficients_backward(OpContext& ctx, const HyperCoefficientsBackward& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(hyper_coefficients_gradient_rows);
  const int64_t m = args.projected.size(1);
  const RowParts parts(args.streams.size(0), args.streams.size(1));
  const PartialSums sums(ctx, parts, 1, m + 3);
  parts.for_each([&](int64_t part, int64_t begin, int64_t end) { run(args, sums.of(part), begin, end); });
  const float* totals = sums.add_up();
  for (int64_t r = 0; r < m; ++r) args.dbias.as<float>()[r] += totals[r];
  for (int64_t gate = 0; gate < 3; ++gate) args.dalpha.as<float>()[gate] += totals[m + gate];
}

const char* hyper_read_refuses(const HyperRead& args) {
  return refuses_f64(args.h);
}
void hyper_read(OpContext&, const HyperRead& args) {
  over_rows(HWY_DYNAMIC_DISPATCH(hyper_read_rows), args, args.streams.size(0), args.streams.size(1));
}

const char* hyper_write_refuses(const HyperWrite& args) {
  return refuses_f64(args.next);
}
void hyper_write(OpContext&, const HyperWrite& args) {
  over_rows(HWY_DYNAMIC_DISPATCH(hyper_write_rows), args, args.next.size(0), args.next.size(1));
}

const char* hyper_output_gradient_refuses(const HyperOutputGradient& args) {
  return refuses_f64(args.dnext);
}
void hyper_output_gradient(OpContext&, const HyperOutputGradient& args) {
  over_rows(HWY_DYNAMIC_DISPATCH(hyper_output_gradient_rows), args, args.dnext.size(0), args.dnext.size(1));
}

const char* hyper_backward_refuses(const HyperBackward& args) {
  return refuses_f64(args.streams);
}
void hyper_backward(OpContext&, const HyperBackward& args) {
  over_rows(HWY_DYNAMIC_DISPATCH(hyper_backward_rows), args, args.streams.size(0), args.streams.size(1));
}

const char* hyper_expand_refuses(const HyperExpand& args) {
  return refuses_f64(args.row);
}
void hyper_expand(OpContext&, const HyperExpand& args) {
  over_rows(HWY_DYNAMIC_DISPATCH(hyper_expand_rows), args, args.row.size(0), args.streams.size(1));
}

const char* hyper_reduce_refuses(const HyperReduce& args) {
  return refuses_f64(args.row);
}
void hyper_reduce(OpContext&, const HyperReduce& args) {
  over_rows(HWY_DYNAMIC_DISPATCH(hyper_reduce_rows), args, args.row.size(0), args.streams.size(1));
}

}  // namespace lamina::ops::cpu
#endif
