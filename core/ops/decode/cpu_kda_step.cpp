// One token of the recurrence. With S~ = Diag(exp g) S and r = beta (v - S~^T k):
//   o = scale (S~^T q + <k, q> r),   S' = S~ + k r^T
// so that one pass over the state gives both sums of S~ and a second one brings it up to date.
#include <algorithm>
#include <vector>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/decode/implementations.h"
#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/decode/cpu_kda_step.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/simd/simd_rows-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_KDA_STEP
#define LAMINA_CORE_OPS_CPU_KDA_STEP
namespace lamina::ops::cpu {
namespace {

// Of one head, a thread's own: per channel of the key.
struct StepWork {
  float *decay, *k, *decayed_k, *decayed_q;  // [padded(K)]
};

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

template <class T>
HWY_INLINE T* head_of(const TensorView& view, int64_t sequence, int64_t head) {
  return static_cast<T*>(view.data) + sequence * view.stride(0) + head * view.stride(1);
}

// `Count` vectors of the state's columns from `column` on.
template <size_t Count, class T, class Part>
HWY_INLINE void step_columns(Part part, const StepWork& work, size_t d_k, size_t d_v, float beta, float k_dot_q,
                             float scale, float* state, const T* v, T* o) {
  const size_t lanes = hn::Lanes(D());
  V by_k[Count], by_q[Count];
  for (size_t c = 0; c < Count; ++c) by_k[c] = by_q[c] = hn::Zero(D());
  for (size_t i = 0; i < d_k; ++i) {
    const V k = hn::Set(D(), work.decayed_k[i]), q = hn::Set(D(), work.decayed_q[i]);
    for (size_t c = 0; c < Count; ++c) {
      const V s = load(part, state + i * d_v + c * lanes);
      by_k[c] = hn::MulAdd(k, s, by_k[c]);
      by_q[c] = hn::MulAdd(q, s, by_q[c]);
    }
  }
  V written[Count];
  for (size_t c = 0; c < Count; ++c) {
    written[c] = hn::Mul(hn::Set(D(), beta), hn::Sub(load(part, v + c * lanes), by_k[c]));
    const V sum = hn::MulAdd(hn::Set(D(), k_dot_q), written[c], by_q[c]);
    store(part, hn::Mul(hn::Set(D(), scale), sum), o + c * lanes);
  }
  for (size_t i = 0; i < d_k; ++i) {
    const V decay = hn::Set(D(), work.decay[i]), k = hn::Set(D(), work.k[i]);
    for (size_t c = 0; c < Count; ++c) {
      float* at = state + i * d_v + c * lanes;
      store(part, hn::MulAdd(k, written[c], hn::Mul(decay, load(part, at))), at);
    }
  }
}

template <class T>
void step_head(const KdaStep& args, const StepWork& work, int64_t sequence, int64_t head) {
  const size_t d_k = static_cast<size_t>(args.q.size(2)), d_v = static_cast<size_t>(args.v.size(2));
  const T *q = head_of<T>(args.q, sequence, head), *k = head_of<T>(args.k, sequence, head);
  const float* g = head_of<float>(args.g, sequence, head);
  V dot = hn::Zero(D());
  each_vector(d_k, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    const V decay = fast_exp(D(), load(part, g + i)), key = load(part, k + i), query = load(part, q + i);
    dot = hn::MulAdd(key, query, dot);
    store(part, decay, work.decay + i);
    store(part, key, work.k + i);
    store(part, hn::Mul(decay, key), work.decayed_k + i);
    store(part, hn::Mul(decay, query), work.decayed_q + i);
  });
  const float k_dot_q = sum_of_lanes(dot), beta = *head_of<float>(args.beta, sequence, head);
  const auto scale = static_cast<float>(args.scale);
  float* state = args.states[static_cast<size_t>(sequence)].as<float>() + static_cast<size_t>(head) * d_k * d_v;
  const T* v = head_of<T>(args.v, sequence, head);
  T* o = head_of<T>(args.o, sequence, head);
  const size_t lanes = hn::Lanes(D());
  size_t j = 0;
  for (; j + 4 * lanes <= d_v; j += 4 * lanes)
    step_columns<4>(Full{}, work, d_k, d_v, beta, k_dot_q, scale, state + j, v + j, o + j);
  for (; j + lanes <= d_v; j += lanes)
    step_columns<1>(Full{}, work, d_k, d_v, beta, k_dot_q, scale, state + j, v + j, o + j);
  if (j < d_v) step_columns<1>(Tail{d_v - j}, work, d_k, d_v, beta, k_dot_q, scale, state + j, v + j, o + j);
}

void step(const KdaStep& args, const StepWork& work, int64_t sequence, int64_t head) {
  if (args.q.dtype == DType::bf16) return step_head<bf16>(args, work, sequence, head);
  step_head<float>(args, work, sequence, head);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(step);

const char* kda_step_refuses(const KdaStep& args) {
  return refuses_f64(args.q);
}

void kda_step(OpContext& ctx, const KdaStep& args) {
  const int64_t heads = args.q.size(1), count = args.q.size(0) * heads, d_k = args.q.size(2);
  const int threads =
      lamina::cpu::threads_for(count, 1 + elements_per_thread / std::max<int64_t>(1, d_k * args.v.size(2)));
  std::vector<StepWork> work;
  for (int thread = 0; thread < threads; ++thread) {
    const auto take = [&] { return ctx.scratch.take(DType::f32, {padded(d_k)}).as<float>(); };
    work.push_back({take(), take(), take(), take()});
  }
  const auto run = HWY_DYNAMIC_DISPATCH(step);
  lamina::cpu::parallel_parts(count, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) run(args, work[static_cast<size_t>(thread)], n / heads, n % heads);
  });
}

}  // namespace lamina::ops::cpu
#endif
