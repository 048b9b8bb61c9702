// Phase 2: residual addition, online-softmax merge and PreNorm of one sublayer, a token's rows staying in the first-level
// cache throughout.
#include <algorithm>
#include <cmath>

#include "core/ops/attn_res/cpu_queries.h"
#include "core/ops/attn_res/implementations.h"
#define HWY_TARGET_INCLUDE "core/ops/attn_res/cpu_merge.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

HWY_INLINE float& statistic(const TensorView& v, int64_t t) {
  return static_cast<float*>(v.data)[t];
}

// p = partial + delta where delta is given; its rstd and logit; the merged log-sum-exp; returns the weight of p.
template <class T>
HWY_INLINE float weigh_partial(const AttnResMergeForward& args, const float* wg, int64_t t) {
  const size_t dim = static_cast<size_t>(args.mean.size(1));
  V square[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
  V dot[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
  const T* partial = row<T>(args.partial, t);
  if (args.delta) {
    const T* delta = row<T>(args.delta, t);
    T* sum = row<T>(args.partial_sum, t);
    each_vector_by_4(dim, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
      const V p = rounded<T>(hn::Add(load(part, partial + i), load(part, delta + i)));
      store(part, p, sum + i);
      square[k] = hn::MulAdd(p, p, square[k]);
      dot[k] = hn::MulAdd(p, hn::LoadU(D(), wg + i), dot[k]);
    });
  } else {
    each_vector_by_4(dim, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
      const V p = load(part, partial + i);
      square[k] = hn::MulAdd(p, p, square[k]);
      dot[k] = hn::MulAdd(p, hn::LoadU(D(), wg + i), dot[k]);
    });
  }
  const float mean_square = sum_of_lanes(square) / static_cast<float>(dim);
  const float rstd = 1.0f / std::sqrt(mean_square + static_cast<float>(args.eps));
  const float logit = rstd * sum_of_lanes(dot), lse = statistic(args.lse, t);
  statistic(args.partial_rstd, t) = rstd;
  statistic(args.partial_logit, t) = logit;
  // One exponential of a non-positive number serves both: e = exp(-|logit - lse|).
  const float e = std::exp(-std::abs(logit - lse));
  statistic(args.lse_total, t) = std::max(logit, lse) + std::log1p(e);
  return (logit >= lse ? 1.0f : e) / (1.0f + e);
}

template <class T>
void forward_rows(const AttnResMergeForward& args, const float* wg, const float* norm_weight, float* unrounded,
                  int64_t begin, int64_t end) {
  const size_t dim = static_cast<size_t>(args.mean.size(1));
  const TensorView& sum = args.delta ? args.partial_sum : args.partial;
  for (int64_t t = begin; t < end; ++t) {
    const T* mean = row<T>(args.mean, t);
    T* h = row<T>(args.h, t);
    V square[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    const auto keep = [&](size_t i, auto part, auto k, V value) LAMINA_VECTOR_BODY {
      store(part, value, h + i);
      hn::StoreU(value, D(), unrounded + i);
      square[k] = hn::MulAdd(value, value, square[k]);
    };
    if (args.partial) {
      const float weight = weigh_partial<T>(args, wg, t);
      const T* partial = row<T>(sum, t);
      const V a = hn::Set(D(), weight), b = hn::Set(D(), 1.0f - weight);
      each_vector_by_4(dim, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
        keep(i, part, k, hn::MulAdd(a, load(part, partial + i), hn::Mul(b, load(part, mean + i))));
      });
    } else {
      statistic(args.lse_total, t) = statistic(args.lse, t);
      each_vector_by_4(dim,
                       [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY { keep(i, part, k, load(part, mean + i)); });
    }
    const float mean_square = sum_of_lanes(square) / static_cast<float>(dim);
    const float rstd = 1.0f / std::sqrt(mean_square + static_cast<float>(args.norm_eps));
    statistic(args.h_rstd, t) = rstd;
    T* y = row<T>(args.y, t);
    const V scale = hn::Set(D(), rstd);
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V value = hn::LoadU(D(), unrounded + i);
      store(part, hn::Mul(hn::Mul(value, scale), hn::LoadU(D(), norm_weight + i)), y + i);
    });
  }
}

void merge_forward(const AttnResMergeForward& args, const float* wg, const float* norm_weight, float* unrounded,
                   int64_t begin, int64_t end) {
  if (args.mean.dtype == DType::bf16) return forward_rows<bf16>(args, wg, norm_weight, unrounded, begin, end);
  forward_rows<float>(args, wg, norm_weight, unrounded, begin, end);
}

// The inner products of one token that every factor of its gradients follows from. With x = dy (.) norm_weight:
//   dh = rstd x - projection h,  so  <dh, h> and <dh, p> need no second pass.
struct MergeDots {
  float x_h, h_h, x_p, h_p;
};
template <class T, bool with_partial>
HWY_INLINE MergeDots merge_dots(const T* dy, const T* h, const T* p, const float* norm_weight, size_t dim) {
  V x_h[2], h_h[2], x_p[2], h_p[2];
  for (auto* sum : {&x_h, &h_h, &x_p, &h_p}) (*sum)[0] = (*sum)[1] = hn::Zero(D());
  each_vector_by_4(dim, [&](size_t i, auto part, auto lane) LAMINA_VECTOR_BODY {
    constexpr size_t k = decltype(lane)::value % 2;
    const V x = hn::Mul(load(part, dy + i), hn::LoadU(D(), norm_weight + i)), value = load(part, h + i);
    x_h[k] = hn::MulAdd(x, value, x_h[k]);
    h_h[k] = hn::MulAdd(value, value, h_h[k]);
    if constexpr (with_partial) {
      const V sum = load(part, p + i);
      x_p[k] = hn::MulAdd(x, sum, x_p[k]);
      h_p[k] = hn::MulAdd(value, sum, h_p[k]);
    }
  });
  const auto total = [](const V(&sum)[2]) LAMINA_VECTOR_BODY { return sum_of_lanes(hn::Add(sum[0], sum[1])); };
  return {total(x_h), total(h_h), with_partial ? total(x_p) : 0.0f, with_partial ? total(h_p) : 0.0f};
}

template <class T, class H, class P, bool with_partial>
void backward_rows(const AttnResMergeBackward& args, const MergeVectors& vectors, int64_t begin, int64_t end) {
  const size_t dim = static_cast<size_t>(args.h.size(1));
  const float inverse_dim = 1.0f / static_cast<float>(dim);
  const bool accumulate = args.dpartial_mode == GradMode::accumulate;
  const float* norm_weight = vectors.norm_weight;
  for (int64_t t = begin; t < end; ++t) {
    const T* h = row<T>(args.h, t);
    const T* dy = row<T>(args.dy, t);
    const T* p = with_partial ? row<T>(args.partial, t) : nullptr;
    H* dh = row<H>(args.dh, t);
    P* dp = with_partial ? row<P>(args.dpartial, t) : nullptr;
    const MergeDots dots = merge_dots<T, with_partial>(dy, h, p, norm_weight, dim);
    const float h_rstd = statistic(args.h_rstd, t), projection = dots.x_h * h_rstd * h_rstd * h_rstd * inverse_dim;
    const float dh_dot_h = h_rstd * dots.x_h - projection * dots.h_h;
    statistic(args.dh_dot_h, t) = dh_dot_h;
    float weight = 0, s_rstd = 0, s_p = 0;
    if constexpr (with_partial) {
      const float logit = statistic(args.partial_logit, t), rstd = statistic(args.partial_rstd, t);
      weight = std::exp(logit - statistic(args.lse_total, t));
      const float s = weight * (h_rstd * dots.x_p - projection * dots.h_p - dh_dot_h);
      s_rstd = s * rstd;
      s_p = s * logit * rstd * rstd * inverse_dim;
    }
    const V scale = hn::Set(D(), h_rstd), project = hn::Set(D(), projection), a = hn::Set(D(), weight),
            of_query = hn::Set(D(), s_rstd), of_partial = hn::Set(D(), s_p);
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V value = load(part, h + i);
      const V scaled = hn::Mul(load(part, dy + i), scale);
      float* dnorm = vectors.dnorm_weight + i;
      hn::StoreU(hn::MulAdd(scaled, value, hn::LoadU(D(), dnorm)), D(), dnorm);
      const V gradient = hn::NegMulAdd(project, value, hn::Mul(scaled, hn::LoadU(D(), norm_weight + i)));
      store(part, gradient, dh + i);
      if constexpr (with_partial) {
        const V sum = load(part, p + i);
        float* dwg = vectors.dwg + i;
        hn::StoreU(hn::MulAdd(of_query, sum, hn::LoadU(D(), dwg)), D(), dwg);
        V out = accumulate ? load(part, dp + i) : hn::Zero(D());
        out = hn::MulAdd(a, gradient, out);
        out = hn::MulAdd(of_query, hn::LoadU(D(), vectors.wg + i), out);
        store(part, hn::NegMulAdd(of_partial, sum, out), dp + i);
      }
    });
  }
}

template <class T, class H>
void backward_to(const AttnResMergeBackward& args, const MergeVectors& vectors, int64_t begin, int64_t end) {
  if (!args.partial) return backward_rows<T, H, float, false>(args, vectors, begin, end);
  if (args.dpartial.dtype == DType::f32) return backward_rows<T, H, float, true>(args, vectors, begin, end);
  backward_rows<T, H, bf16, true>(args, vectors, begin, end);
}

void merge_backward(const AttnResMergeBackward& args, const MergeVectors& vectors, int64_t begin, int64_t end) {
  if (args.h.dtype == DType::f32) return backward_to<float, float>(args, vectors, begin, end);
  if (args.dh.dtype == DType::f32) return backward_to<bf16, float>(args, vectors, begin, end);
  backward_to<bf16, bf16>(args, vectors, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(merge_forward);
HWY_EXPORT(merge_backward);

const char* attn_res_merge_forward_refuses(const AttnResMergeForward& args) {
  return refuses_f64(args.mean);
}
const char* attn_res_merge_backward_refuses(const AttnResMergeBackward& args) {
  return refuses_f64(args.h);
}

void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args) {
  const int64_t tokens = args.mean.size(0), dim = args.mean.size(1);
  const float* wg = weighted_queries(ctx, {&args.query, 1});
  const float* norm_weight = as_floats(ctx, args.norm_weight);
  const int threads = lamina::cpu::threads_for(tokens, row_grain(dim));
  float* unrounded = zeros(ctx, threads, dim);
  const auto run = HWY_DYNAMIC_DISPATCH(merge_forward);
  lamina::cpu::parallel_parts(tokens, threads, [&](int thread, int64_t begin, int64_t end) {
    run(args, wg, norm_weight, unrounded + thread * padded(dim), begin, end);
  });
}

void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args) {
  const int64_t tokens = args.h.size(0), dim = args.h.size(1);
  const float* wg = weighted_queries(ctx, {&args.query, 1});
  const float* norm_weight = as_floats(ctx, args.norm_weight);
  const RowParts parts(tokens, dim);
  const PartialSums sums(ctx, parts, 2, dim);
  const auto run = HWY_DYNAMIC_DISPATCH(merge_backward);
  parts.for_each([&](int64_t part, int64_t begin, int64_t end) {
    float* of_part = sums.of(part);
    run(args, {wg, norm_weight, of_part, of_part + padded(dim)}, begin, end);
  });
  const float* total = sums.add_up();
  for (int64_t i = 0; i < dim; ++i) args.dnorm_weight.as<float>()[i] += total[i];
  if (args.partial) add_query_gradient(args.query, args.dquery, total + padded(dim));
}

}  // namespace lamina::ops::cpu
#endif
