#include "core/ops/router/implementations.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/router/cpu.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_ROUTER
#define LAMINA_CORE_OPS_CPU_ROUTER
namespace lamina::ops::cpu {
namespace {

// One thread's rows, and what the balance loss needs of every token.
struct RouterWork {
  float *biased, *best;  // [experts], [k]
  int32_t* unbiased;     // [tokens, k] or null: the choice without the bias
  float* inverse_total;  // [tokens] or null: 1 / sum of the scores
};

constexpr int64_t balance_block = 64;  // experts per piece of work

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

// The k largest, best first, ties to the lower index, by insertion: a value that doesn't beat the k-th so far is passed over, a
// vector at a time. A NaN beats nothing.
void select(const float* values, size_t count, size_t k, float* best, int32_t* chosen) {
  const auto insert = [&](size_t filled, float value, size_t index) {
    size_t at = filled;
    for (; at > 0 && best[at - 1] < value; --at) {
      if (at < k) {
        best[at] = best[at - 1];
        chosen[at] = chosen[at - 1];
      }
    }
    best[at] = value;
    chosen[at] = static_cast<int32_t>(index);
  };
  for (size_t i = 0; i < k; ++i) {
    insert(i, std::isnan(values[i]) ? -std::numeric_limits<float>::infinity() : values[i], i);
  }
  const size_t lanes = hn::Lanes(D());
  size_t i = k;
  for (; i < count; i += lanes) {
    const size_t end = std::min(count, i + lanes);
    if (end == i + lanes && hn::AllFalse(D(), hn::Gt(hn::LoadU(D(), values + i), hn::Set(D(), best[k - 1])))) {
      continue;
    }
    for (size_t j = i; j < end; ++j) {
      if (values[j] > best[k - 1]) insert(k, values[j], j);
    }
  }
}

void route(const RouterForward& args, const RouterWork& work, int64_t begin, int64_t end) {
  const auto experts = static_cast<size_t>(args.scores.size(1)), k = static_cast<size_t>(args.chosen.size(1));
  const auto* bias = static_cast<const float*>(args.bias.data);
  const V one = hn::Set(D(), 1.0f), largest = hn::Set(D(), 87.0f);
  for (int64_t t = begin; t < end; ++t) {
    const float* logits = row<float>(args.logits, t);
    float* scores = row<float>(args.scores, t);
    V total = hn::Zero(D());
    each_vector(experts, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V z = load(part, logits + i);
      const V s = hn::Div(one, hn::Add(one, fast_exp(D(), hn::Min(largest, hn::Neg(z)))));
      store(part, s, scores + i);
      store(part, hn::Add(s, load(part, bias + i)), work.biased + i);
    });
    int32_t* chosen = row<int32_t>(args.chosen, t);
    float* weights = row<float>(args.weights, t);
    select(work.biased, experts, k, work.best, chosen);
    float sum = 1e-20f;
    for (size_t j = 0; j < k; ++j) sum += weights[j] = scores[chosen[j]];
    const float factor = static_cast<float>(args.scaling) / (args.renormalize ? sum : 1.0f);
    for (size_t j = 0; j < k; ++j) weights[j] *= factor;
    if (work.unbiased == nullptr) continue;
    select(scores, experts, k, work.best, work.unbiased + t * static_cast<int64_t>(k));
    each_vector(experts,
                [&](size_t i, auto part) LAMINA_VECTOR_BODY { total = hn::Add(total, load(part, scores + i)); });
    work.inverse_total[t] = 1.0f / sum_of_lanes(total);
  }
}

// sum_t s_ti / sum_j s_tj of a block of experts of one sequence, times f_i, into `terms`.
void balance_terms(const RouterForward& args, const float* inverse_total, int64_t sequence, int64_t block,
                   float* terms) {
  const int64_t num_tokens = args.scores.size(0) / args.fractions.size(0), first = block * balance_block;
  const auto count = static_cast<size_t>(std::min(balance_block, args.scores.size(1) - first));
  const float* fractions = row<float>(args.fractions, sequence) + first;
  each_vector(count, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    V share = hn::Zero(D());
    for (int64_t t = sequence * num_tokens; t < (sequence + 1) * num_tokens; ++t) {
      share = hn::MulAdd(load(part, row<float>(args.scores, t) + first + i), hn::Set(D(), inverse_total[t]), share);
    }
    const V mean = hn::Mul(share, hn::Set(D(), 1.0f / static_cast<float>(num_tokens)));
    store(part, hn::Mul(load(part, fractions + i), mean), terms + first + i);
  });
}

template <class G>
void route_back(const RouterBackward& args, float* ds, int64_t begin, int64_t end) {
  const int64_t k = args.chosen.size(1), tokens = args.scores.size(0);
  const auto experts = static_cast<size_t>(args.scores.size(1));
  const int64_t num_tokens = args.fractions ? tokens / args.fractions.size(0) : 1;
  const V one = hn::Set(D(), 1.0f);
  for (int64_t t = begin; t < end; ++t) {
    const float* scores = row<float>(args.scores, t);
    const float* d_weights = row<float>(args.d_weights, t);
    const int32_t* chosen = row<int32_t>(args.chosen, t);
    if (args.fractions) {
      const float* fractions = row<float>(args.fractions, t / num_tokens);
      V total = hn::Zero(D()), product = hn::Zero(D());
      each_vector(experts, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
        const V s = load(part, scores + i);
        total = hn::Add(total, s);
        product = hn::MulAdd(load(part, fractions + i), s, product);
      });
      const float sum = sum_of_lanes(total);
      const V mean = hn::Set(D(), sum_of_lanes(product) / sum);
      const V scale = hn::Set(D(), static_cast<float>(args.balance_scale) / (static_cast<float>(num_tokens) * sum));
      each_vector(experts, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
        store(part, hn::Mul(scale, hn::Sub(load(part, fractions + i), mean)), ds + i);
      });
    } else {
      std::fill_n(ds, experts, 0.0f);
    }
    float sum = 1e-20f, projection = 0;
    for (int64_t j = 0; j < k; ++j) {
      sum += scores[chosen[j]];
      projection += d_weights[j] * scores[chosen[j]];
    }
    const float factor = static_cast<float>(args.scaling) / (args.renormalize ? sum : 1.0f);
    const float shift = args.renormalize ? projection / sum : 0.0f;
    for (int64_t j = 0; j < k; ++j) ds[chosen[j]] += factor * (d_weights[j] - shift);
    G* d_logits = row<G>(args.d_logits, t);
    each_vector(experts, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V s = load(part, scores + i);
      store(part, hn::Mul(load(part, ds + i), hn::Mul(s, hn::Sub(one, s))), d_logits + i);
    });
  }
}

void route_backward(const RouterBackward& args, float* ds, int64_t begin, int64_t end) {
  if (args.d_logits.dtype == DType::bf16) return route_back<bf16>(args, ds, begin, end);
  route_back<float>(args, ds, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(route);
HWY_EXPORT(balance_terms);
HWY_EXPORT(route_backward);

namespace {

// f, then the balance: counts are whole numbers and terms are added in the order of experts, whatever the number of threads.
void balance(OpContext& ctx, const RouterForward& args, const RouterWork& work) {
  const int64_t sequences = args.fractions.size(0), experts = args.scores.size(1), k = args.chosen.size(1);
  const int64_t num_tokens = args.scores.size(0) / sequences, blocks = (experts + balance_block - 1) / balance_block;
  float* terms = zeros(ctx, sequences, experts);
  auto* fractions = args.fractions.as<float>();
  const float unit = static_cast<float>(experts) / (static_cast<float>(k) * static_cast<float>(num_tokens));
  const auto run = HWY_DYNAMIC_DISPATCH(balance_terms);
  lamina::cpu::parallel_for(sequences, row_grain(num_tokens * k), [&](int64_t begin, int64_t end) {
    for (int64_t sequence = begin; sequence < end; ++sequence) {
      float* own = fractions + sequence * experts;
      std::fill_n(own, experts, 0.0f);
      const int32_t* chosen = work.unbiased + sequence * num_tokens * k;
      for (int64_t n = 0; n < num_tokens * k; ++n) own[chosen[n]] += 1.0f;
      for (int64_t i = 0; i < experts; ++i) own[i] *= unit;
    }
  });
  lamina::cpu::parallel_for(sequences * blocks, row_grain(num_tokens * balance_block), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t sequence = piece / blocks;
      run(args, work.inverse_total, sequence, piece % blocks, terms + sequence * padded(experts));
    }
  });
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const float* own = terms + sequence * padded(experts);
    float sum = 0;
    for (int64_t i = 0; i < experts; ++i) sum += own[i];
    args.balance.as<float>()[sequence] = sum;
  }
}

}  // namespace

const char* router_forward_refuses(const RouterForward& args) {
  return refuses_f64(args.scores);
}
const char* router_backward_refuses(const RouterBackward& args) {
  return refuses_f64(args.scores);
}

void router_forward(OpContext& ctx, const RouterForward& args) {
  const int64_t tokens = args.scores.size(0), experts = args.scores.size(1), k = args.chosen.size(1);
  const int threads = lamina::cpu::threads_for(tokens, row_grain(experts));
  float* biased = zeros(ctx, threads, experts);
  float* best = zeros(ctx, threads, k);
  RouterWork work{};
  if (args.fractions) {
    work.unbiased = ctx.scratch.take(DType::i32, {tokens, k}).as<int32_t>();
    work.inverse_total = ctx.scratch.take(DType::f32, {tokens}).as<float>();
  }
  const auto run = HWY_DYNAMIC_DISPATCH(route);
  lamina::cpu::parallel_parts(tokens, threads, [&](int thread, int64_t begin, int64_t end) {
    RouterWork own = work;
    own.biased = biased + thread * padded(experts);
    own.best = best + thread * padded(k);
    run(args, own, begin, end);
  });
  if (args.fractions) balance(ctx, args, work);
}

void router_backward(OpContext& ctx, const RouterBackward& args) {
  const int64_t tokens = args.scores.size(0), experts = args.scores.size(1);
  const int threads = lamina::cpu::threads_for(tokens, row_grain(experts));
  float* ds = zeros(ctx, threads, experts);
  const auto run = HWY_DYNAMIC_DISPATCH(route_backward);
  lamina::cpu::parallel_parts(tokens, threads, [&](int thread, int64_t begin, int64_t end) {
    run(args, ds + thread * padded(experts), begin, end);
  });
}

}  // namespace lamina::ops::cpu
#endif
