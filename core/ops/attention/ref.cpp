#include "core/ops/attention/implementations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/ops/document_starts.h"

namespace lamina::ops::ref {
namespace {

// One head of one sequence: rows of a [batch, T, heads, width] view.
template <class T>
struct Rows {
  T* data;
  int64_t step;
  T* row(int64_t t) const { return data + t * step; }
};

template <class T>
Rows<T> rows_of(const TensorView& view, int64_t batch, int64_t head) {
  return {view.as<T>() + batch * view.stride(0) + head * view.stride(2), view.stride(1)};
}

template <class T>
acc_t<T> dot_of(const T* a, const T* b, int64_t width) {
  acc_t<T> sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += static_cast<acc_t<T>>(a[d]) * static_cast<acc_t<T>>(b[d]);
  return sum;
}

template <class T>
void forward_head(const AttentionForward& args, int64_t batch, int64_t head, acc_t<T>* probability, acc_t<T>* sum) {
  using Acc = acc_t<T>;
  const int64_t num_tokens = args.q.size(1), d_qk = args.q.size(3), d_v = args.v.size(3);
  const int64_t earlier = args.k.size(1) - num_tokens;
  const auto q = rows_of<T>(args.q, batch, head), k = rows_of<T>(args.k, batch, head);
  const auto v = rows_of<T>(args.v, batch, head), o = rows_of<T>(args.o, batch, head);
  Acc* lse = args.lse.as<Acc>() + (batch * args.q.size(2) + head) * num_tokens;
  const Acc scale = static_cast<Acc>(args.scale);
  Acc largest_of_all = -std::numeric_limits<Acc>::infinity();
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int64_t start = document_start(args.document_starts, batch, i), last = earlier + i;
    Acc largest = -std::numeric_limits<Acc>::infinity();
    for (int64_t j = start; j <= last; ++j) {
      probability[j] = scale * dot_of(q.row(i), k.row(j), d_qk);
      largest = std::max(largest, probability[j]);
    }
    Acc total = 0;
    for (int64_t j = start; j <= last; ++j) total += probability[j] = std::exp(probability[j] - largest);
    std::fill(sum, sum + d_v, Acc{0});
    for (int64_t j = start; j <= last; ++j) {
      for (int64_t d = 0; d < d_v; ++d) sum[d] += probability[j] * static_cast<Acc>(v.row(j)[d]);
    }
    for (int64_t d = 0; d < d_v; ++d) o.row(i)[d] = static_cast<T>(sum[d] / total);
    lse[i] = largest + std::log(total);
    largest_of_all = std::max(largest_of_all, largest);
  }
  if (args.max_logit) args.max_logit.as<Acc>()[batch * args.q.size(2) + head] = largest_of_all;
}

template <class T>
struct GradientSums {
  acc_t<T>*dq, *dk, *dv;  // [d_qk], [T, d_qk], [T, d_v]
};

// dS_ij = P_ij (dP_ij - D_i), dP_ij = <do_i, v_j>, D_i = <do_i, o_i>; dq_i = scale sum_j dS_ij k_j, dk_j = scale sum_i
// dS_ij q_i.
template <class T>
void backward_head(const AttentionBackward& args, int64_t batch, int64_t head, const GradientSums<T>& sums) {
  using Acc = acc_t<T>;
  const int64_t num_tokens = args.q.size(1), d_qk = args.q.size(3), d_v = args.v.size(3);
  const auto q = rows_of<T>(args.q, batch, head), k = rows_of<T>(args.k, batch, head);
  const auto v = rows_of<T>(args.v, batch, head), o = rows_of<T>(args.o, batch, head);
  const auto d_o = rows_of<T>(args.d_o, batch, head), dq = rows_of<T>(args.dq, batch, head);
  const auto dk = rows_of<T>(args.dk, batch, head), dv = rows_of<T>(args.dv, batch, head);
  const Acc* lse = args.lse.as<Acc>() + (batch * args.q.size(2) + head) * num_tokens;
  const Acc scale = static_cast<Acc>(args.scale);
  std::fill(sums.dk, sums.dk + num_tokens * d_qk, Acc{0});
  std::fill(sums.dv, sums.dv + num_tokens * d_v, Acc{0});
  for (int64_t i = 0; i < num_tokens; ++i) {
    const Acc delta = dot_of(d_o.row(i), o.row(i), d_v);
    std::fill(sums.dq, sums.dq + d_qk, Acc{0});
    for (int64_t j = document_start(args.document_starts, batch, i); j <= i; ++j) {
      const Acc p = std::exp(scale * dot_of(q.row(i), k.row(j), d_qk) - lse[i]);
      const Acc ds = scale * p * (dot_of(d_o.row(i), v.row(j), d_v) - delta);
      for (int64_t d = 0; d < d_qk; ++d) {
        sums.dq[d] += ds * static_cast<Acc>(k.row(j)[d]);
        sums.dk[j * d_qk + d] += ds * static_cast<Acc>(q.row(i)[d]);
      }
      for (int64_t d = 0; d < d_v; ++d) sums.dv[j * d_v + d] += p * static_cast<Acc>(d_o.row(i)[d]);
    }
    for (int64_t d = 0; d < d_qk; ++d) dq.row(i)[d] = static_cast<T>(sums.dq[d]);
  }
  for (int64_t j = 0; j < num_tokens; ++j) {
    for (int64_t d = 0; d < d_qk; ++d) dk.row(j)[d] = static_cast<T>(sums.dk[j * d_qk + d]);
    for (int64_t d = 0; d < d_v; ++d) dv.row(j)[d] = static_cast<T>(sums.dv[j * d_v + d]);
  }
}

template <class T>
void forward_typed(OpContext& ctx, const AttentionForward& args) {
  constexpr DType acc = dtype_of<acc_t<T>>::value;
  auto* probability = ctx.scratch.take(acc, {args.k.size(1)}).template as<acc_t<T>>();
  auto* sum = ctx.scratch.take(acc, {args.v.size(3)}).template as<acc_t<T>>();
  for (int64_t batch = 0; batch < args.q.size(0); ++batch) {
    for (int64_t head = 0; head < args.q.size(2); ++head) forward_head<T>(args, batch, head, probability, sum);
  }
}

template <class T>
void backward_typed(OpContext& ctx, const AttentionBackward& args) {
  constexpr DType acc = dtype_of<acc_t<T>>::value;
  const int64_t num_tokens = args.q.size(1), d_qk = args.q.size(3), d_v = args.v.size(3);
  const GradientSums<T> sums{ctx.scratch.take(acc, {d_qk}).template as<acc_t<T>>(),
                             ctx.scratch.take(acc, {num_tokens, d_qk}).template as<acc_t<T>>(),
                             ctx.scratch.take(acc, {num_tokens, d_v}).template as<acc_t<T>>()};
  for (int64_t batch = 0; batch < args.q.size(0); ++batch) {
    for (int64_t head = 0; head < args.q.size(2); ++head) backward_head<T>(args, batch, head, sums);
  }
}

template <class T>
void unpack_typed(const UnpackSharedKeys& args) {
  const int64_t heads = args.dk.size(1), d_nope = args.dk_nope.size(2), d_shared = args.dk_shared.size(1);
  for (int64_t t = 0; t < args.dk.size(0); ++t) {
    const T* dk = args.dk.as<T>() + t * args.dk.stride(0);
    for (int64_t h = 0; h < heads; ++h) {
      T* nope = args.dk_nope.as<T>() + t * args.dk_nope.stride(0) + h * args.dk_nope.stride(1);
      std::copy_n(dk + h * args.dk.stride(1), d_nope, nope);
    }
    for (int64_t d = 0; d < d_shared; ++d) {
      acc_t<T> sum = 0;
      for (int64_t h = 0; h < heads; ++h) sum += static_cast<acc_t<T>>(dk[h * args.dk.stride(1) + d_nope + d]);
      args.dk_shared.as<T>()[t * args.dk_shared.stride(0) + d] = static_cast<T>(sum);
    }
  }
}

}  // namespace

void attention_forward(OpContext& ctx, const AttentionForward& args) {
  switch (args.q.dtype) {
    case DType::f64:
      return forward_typed<double>(ctx, args);
    case DType::f32:
      return forward_typed<float>(ctx, args);
    case DType::bf16:
      return forward_typed<bf16>(ctx, args);
    case DType::i32:
      break;
  }
  LAMINA_CHECK(false, "attention in {}", name_of(args.q.dtype));
}

void attention_backward(OpContext& ctx, const AttentionBackward& args) {
  switch (args.q.dtype) {
    case DType::f64:
      return backward_typed<double>(ctx, args);
    case DType::f32:
      return backward_typed<float>(ctx, args);
    case DType::bf16:
      return backward_typed<bf16>(ctx, args);
    case DType::i32:
      break;
  }
  LAMINA_CHECK(false, "attention in {}", name_of(args.q.dtype));
}

void pack_shared_keys(OpContext&, const PackSharedKeys& args) {
  const int64_t item = size_of(args.k.dtype), d_nope = args.k_nope.size(2), d_shared = args.k_shared.size(1);
  const auto at = [item](const TensorView& view, int64_t offset) {
    return static_cast<char*>(view.data) + offset * item;
  };
  for (int64_t t = 0; t < args.k.size(0); ++t) {
    for (int64_t h = 0; h < args.k.size(1); ++h) {
      const int64_t row = t * args.k.stride(0) + h * args.k.stride(1);
      const int64_t nope = t * args.k_nope.stride(0) + h * args.k_nope.stride(1);
      std::memcpy(at(args.k, row), at(args.k_nope, nope), static_cast<size_t>(d_nope * item));
      std::memcpy(at(args.k, row + d_nope), at(args.k_shared, t * args.k_shared.stride(0)),
                  static_cast<size_t>(d_shared * item));
    }
  }
}

void unpack_shared_keys(OpContext&, const UnpackSharedKeys& args) {
  switch (args.dk.dtype) {
    case DType::f64:
      return unpack_typed<double>(args);
    case DType::f32:
      return unpack_typed<float>(args);
    case DType::bf16:
      return unpack_typed<bf16>(args);
    case DType::i32:
      break;
  }
  LAMINA_CHECK(false, "keys in {}", name_of(args.dk.dtype));
}

}  // namespace lamina::ops::ref
