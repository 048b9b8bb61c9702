// Phase 1: one pass over the summaries for all queries of a block. A token's sources stay in the first-level cache
// between its dot products and its weighted sums, so every source row comes from memory once.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/attn_res/cpu_queries.h"
#include "core/ops/attn_res/implementations.h"
#define HWY_TARGET_INCLUDE "core/ops/attn_res/cpu_phase1.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

// Queries are served in groups of at most this many: their accumulators fit the registers.
constexpr size_t group = 4;

// dots[q][j] = <x_q, v_j> and squares[j] = <v_j, v_j> for J rows v and Q rows x (padded when they are parameters).
template <size_t J, size_t Q, class X, class T>
HWY_INLINE void dot_rows(const X* const* x, const T* const* v, size_t dim, float (&dots)[Q][J], float (&squares)[J]) {
  V dot[Q][J], square[J];
#pragma GCC unroll 4
  for (size_t j = 0; j < J; ++j) {
    square[j] = hn::Zero(D());
#pragma GCC unroll 4
    for (size_t q = 0; q < Q; ++q) dot[q][j] = hn::Zero(D());
  }
  each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    V value[J];
#pragma GCC unroll 4
    for (size_t j = 0; j < J; ++j) {
      value[j] = load(part, v[j] + i);
      square[j] = hn::MulAdd(value[j], value[j], square[j]);
    }
#pragma GCC unroll 4
    for (size_t q = 0; q < Q; ++q) {
      const V factor = load(part, x[q] + i);
#pragma GCC unroll 4
      for (size_t j = 0; j < J; ++j) dot[q][j] = hn::MulAdd(factor, value[j], dot[q][j]);
    }
  });
#pragma GCC unroll 4
  for (size_t j = 0; j < J; ++j) {
    squares[j] = sum_of_lanes(square[j]);
#pragma GCC unroll 4
    for (size_t q = 0; q < Q; ++q) dots[q][j] = sum_of_lanes(dot[q][j]);
  }
}

// body(j, dots of v_j with the Q rows, <v_j, v_j>) for every source, two at a time.
template <size_t Q, class X, class T, class Body>
HWY_INLINE void each_source(const X* const* x, const std::vector<const T*>& v, size_t dim, Body&& body) {
  size_t j = 0;
  for (; j + 2 <= v.size(); j += 2) {
    float dots[Q][2], squares[2];
    dot_rows<2, Q>(x, v.data() + j, dim, dots, squares);
    for (size_t k = 0; k < 2; ++k) {
      float column[Q];
      for (size_t q = 0; q < Q; ++q) column[q] = dots[q][k];
      body(j + k, column, squares[k]);
    }
  }
  if (j < v.size()) {
    float dots[Q][1], squares[1], column[Q];
    dot_rows<1, Q>(x, v.data() + j, dim, dots, squares);
    for (size_t q = 0; q < Q; ++q) column[q] = dots[q][0];
    body(j, column, squares[0]);
  }
}

HWY_INLINE void exp_in_place(std::vector<float>& values) {  // the size is padded
  for (size_t i = 0; i < values.size(); i += hn::Lanes(D())) {
    hn::StoreU(fast_exp(D(), hn::LoadU(D(), values.data() + i)), D(), values.data() + i);
  }
}

HWY_INLINE float* statistic(const TensorView& v, size_t i, size_t j) {  // row of v [., ., tokens]
  return static_cast<float*>(v.data) + static_cast<int64_t>(i) * v.stride(0) + static_cast<int64_t>(j) * v.stride(1);
}

// Softmax of Q queries' logits over n sources of one token: `weights` [Q, n] holds the logits and receives the weights.
template <size_t Q>
HWY_INLINE void softmax(std::vector<float>& weights, size_t n, float (&lse)[Q]) {
  for (size_t q = 0; q < Q; ++q) {
    float* row_begin = weights.data() + q * n;
    lse[q] = *std::max_element(row_begin, row_begin + n);
    for (size_t j = 0; j < n; ++j) row_begin[j] -= lse[q];
  }
  exp_in_place(weights);
  for (size_t q = 0; q < Q; ++q) {
    float* row_begin = weights.data() + q * n;
    float sum = 0;
    for (size_t j = 0; j < n; ++j) sum += row_begin[j];
    for (size_t j = 0; j < n; ++j) row_begin[j] /= sum;
    lse[q] += std::log(sum);
  }
}

template <class T, size_t Q>
void forward_group(const AttnResPhase1Forward& args, const float* wg, size_t first, int64_t begin, int64_t end) {
  const size_t n = args.sources.size(), dim = static_cast<size_t>(args.sources[0].size(1));
  std::vector<const T*> v(n);
  std::vector<float> weights(static_cast<size_t>(padded(static_cast<int64_t>(Q * n))));
  const float* queries[Q];
  for (size_t q = 0; q < Q; ++q) {
    queries[q] = wg + static_cast<int64_t>(first + q) * padded(static_cast<int64_t>(dim));
  }
  for (int64_t t = begin; t < end; ++t) {
    for (size_t j = 0; j < n; ++j) v[j] = row<const T>(args.sources[j], t);
    each_source<Q>(queries, v, dim, [&](size_t j, const float* dots, float square) LAMINA_VECTOR_BODY {
      const float rstd = 1.0f / std::sqrt(square / static_cast<float>(dim) + static_cast<float>(args.eps));
      row<float>(args.rstd, static_cast<int64_t>(j))[t] = rstd;
      for (size_t q = 0; q < Q; ++q) {
        weights[q * n + j] = rstd * dots[q];
        statistic(args.logit, first + q, j)[t] = rstd * dots[q];
      }
    });
    float lse[Q];
    softmax<Q>(weights, n, lse);
    T* mean[Q];
    for (size_t q = 0; q < Q; ++q) {
      row<float>(args.lse, static_cast<int64_t>(first + q))[t] = lse[q];
      mean[q] = row<T>(args.mean[first + q], t);
    }
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      V sum[Q];
#pragma GCC unroll 4
      for (size_t q = 0; q < Q; ++q) sum[q] = hn::Zero(D());
      for (size_t j = 0; j < n; ++j) {
        const V value = load(part, v[j] + i);
#pragma GCC unroll 4
        for (size_t q = 0; q < Q; ++q) sum[q] = hn::MulAdd(hn::Set(D(), weights[q * n + j]), value, sum[q]);
      }
#pragma GCC unroll 4
      for (size_t q = 0; q < Q; ++q) store(part, sum[q], mean[q] + i);
    });
  }
}

template <class T>
void forward_groups(const AttnResPhase1Forward& args, const float* wg, int64_t begin, int64_t end) {
  for (size_t first = 0; first < args.queries.size(); first += group) {
    switch (std::min(group, args.queries.size() - first)) {
      case 1:
        forward_group<T, 1>(args, wg, first, begin, end);
        break;
      case 2:
        forward_group<T, 2>(args, wg, first, begin, end);
        break;
      case 3:
        forward_group<T, 3>(args, wg, first, begin, end);
        break;
      default:
        forward_group<T, 4>(args, wg, first, begin, end);
        break;
    }
  }
}

void phase1_forward(const AttnResPhase1Forward& args, const float* wg, int64_t begin, int64_t end) {
  if (args.sources[0].dtype == DType::bf16) return forward_groups<bf16>(args, wg, begin, end);
  forward_groups<float>(args, wg, begin, end);
}

// Per (query, source) of one token: a, and s * rstd; per source: the factor of v.
struct BackwardFactors {
  std::vector<float> a, b, c;
  BackwardFactors(size_t num_queries, size_t n)
      : a(static_cast<size_t>(padded(static_cast<int64_t>(num_queries * n)))), b(num_queries * n), c(n) {}
};

// One vector of one token: adds to dv_j of every source and to d(w.g) of Q queries.
template <size_t Q, class T, class G, class Part>
HWY_INLINE void backward_vector(Part part, size_t i, const BackwardFactors& f, const std::vector<const T*>& v,
                                const std::vector<float*>& dv, const std::vector<char>& accumulate, const G* const* dh,
                                const float* const* wg, float* const* dwg) {
  const size_t n = v.size();
  V gradient[Q], query[Q], dquery[Q];
#pragma GCC unroll 4
  for (size_t q = 0; q < Q; ++q) {
    gradient[q] = load(part, dh[q] + i);
    query[q] = hn::LoadU(D(), wg[q] + i);
    dquery[q] = hn::LoadU(D(), dwg[q] + i);
  }
  for (size_t j = 0; j < n; ++j) {
    const V value = load(part, v[j] + i);
    V sum = accumulate[j] ? load(part, dv[j] + i) : hn::Zero(D());
    sum = hn::NegMulAdd(hn::Set(D(), f.c[j]), value, sum);
#pragma GCC unroll 4
    for (size_t q = 0; q < Q; ++q) {
      const V b = hn::Set(D(), f.b[q * n + j]);
      sum = hn::MulAdd(hn::Set(D(), f.a[q * n + j]), gradient[q], sum);
      sum = hn::MulAdd(b, query[q], sum);
      dquery[q] = hn::MulAdd(b, value, dquery[q]);
    }
    store(part, sum, dv[j] + i);
  }
#pragma GCC unroll 4
  for (size_t q = 0; q < Q; ++q) hn::StoreU(dquery[q], D(), dwg[q] + i);
}

template <class T, class G, size_t Q>
void backward_group(const AttnResPhase1Backward& args, const float* wg, float* dwg, size_t first, int64_t begin,
                    int64_t end) {
  const size_t n = args.sources.size(), dim = static_cast<size_t>(args.sources[0].size(1));
  const float inverse_dim = 1.0f / static_cast<float>(dim);
  std::vector<const T*> v(n);
  std::vector<float*> dv(n);
  std::vector<char> accumulate(n);
  BackwardFactors f(Q, n);
  const float* query[Q];
  float* dquery[Q];
  const G* dh[Q];
  for (size_t j = 0; j < n; ++j) accumulate[j] = first > 0 || args.dsource_modes[j] == GradMode::accumulate;
  for (size_t q = 0; q < Q; ++q) {
    const int64_t offset = static_cast<int64_t>(first + q) * padded(static_cast<int64_t>(dim));
    query[q] = wg + offset;
    dquery[q] = dwg + offset;
  }
  for (int64_t t = begin; t < end; ++t) {
    for (size_t j = 0; j < n; ++j) {
      v[j] = row<const T>(args.sources[j], t);
      dv[j] = row<float>(args.dsources[j], t);
    }
    float dh_dot_h[Q], lse[Q];
    for (size_t q = 0; q < Q; ++q) {
      dh[q] = row<const G>(args.dh[first + q], t);
      dh_dot_h[q] = static_cast<const float*>(args.dh_dot_h[first + q].data)[t];
      lse[q] = static_cast<const float*>(args.lse_total[first + q].data)[t];
      for (size_t j = 0; j < n; ++j) f.a[q * n + j] = statistic(args.logit, first + q, j)[t] - lse[q];
    }
    exp_in_place(f.a);
    each_source<Q>(dh, v, dim, [&](size_t j, const float* dots, float) LAMINA_VECTOR_BODY {
      const float rstd = row<const float>(args.rstd, static_cast<int64_t>(j))[t];
      float sum = 0;
      for (size_t q = 0; q < Q; ++q) {
        const float s = f.a[q * n + j] * (dots[q] - dh_dot_h[q]);
        f.b[q * n + j] = s * rstd;
        sum += s * statistic(args.logit, first + q, j)[t];
      }
      f.c[j] = sum * rstd * rstd * inverse_dim;
    });
    each_vector(dim, [&](size_t i, auto part)
                         LAMINA_VECTOR_BODY { backward_vector<Q>(part, i, f, v, dv, accumulate, dh, query, dquery); });
  }
}

template <class T, class G>
void backward_groups(const AttnResPhase1Backward& args, const float* wg, float* dwg, int64_t begin, int64_t end) {
  for (size_t first = 0; first < args.queries.size(); first += group) {
    switch (std::min(group, args.queries.size() - first)) {
      case 1:
        backward_group<T, G, 1>(args, wg, dwg, first, begin, end);
        break;
      case 2:
        backward_group<T, G, 2>(args, wg, dwg, first, begin, end);
        break;
      case 3:
        backward_group<T, G, 3>(args, wg, dwg, first, begin, end);
        break;
      default:
        backward_group<T, G, 4>(args, wg, dwg, first, begin, end);
        break;
    }
  }
}

void phase1_backward(const AttnResPhase1Backward& args, const float* wg, float* dwg, int64_t begin, int64_t end) {
  if (args.sources[0].dtype == DType::f32) return backward_groups<float, float>(args, wg, dwg, begin, end);
  if (args.dh[0].dtype == DType::f32) return backward_groups<bf16, float>(args, wg, dwg, begin, end);
  backward_groups<bf16, bf16>(args, wg, dwg, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(phase1_forward);
HWY_EXPORT(phase1_backward);

const char* attn_res_phase1_forward_refuses(const AttnResPhase1Forward& args) {
  return refuses_f64(args.sources[0]);
}
const char* attn_res_phase1_backward_refuses(const AttnResPhase1Backward& args) {
  return refuses_f64(args.sources[0]);
}

void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args) {
  const float* wg = weighted_queries(ctx, args.queries);
  const auto run = HWY_DYNAMIC_DISPATCH(phase1_forward);
  lamina::cpu::parallel_for(args.sources[0].size(0), row_grain(args.sources[0].size(1)),
                            [&](int64_t begin, int64_t end) { run(args, wg, begin, end); });
}

void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args) {
  const int64_t tokens = args.sources[0].size(0), dim = args.sources[0].size(1);
  const int64_t num_queries = static_cast<int64_t>(args.queries.size());
  const float* wg = weighted_queries(ctx, args.queries);
  const RowParts parts(tokens, dim);
  const PartialSums dwg(ctx, parts, num_queries, dim);
  const auto run = HWY_DYNAMIC_DISPATCH(phase1_backward);
  parts.for_each([&](int64_t part, int64_t begin, int64_t end) { run(args, wg, dwg.of(part), begin, end); });
  const float* total = dwg.add_up();
  for (size_t q = 0; q < args.queries.size(); ++q) {
    add_query_gradient(args.queries[q], args.dqueries[q], total + static_cast<int64_t>(q) * padded(dim));
  }
}

}  // namespace lamina::ops::cpu
#endif
