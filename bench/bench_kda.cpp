// Kimi Delta Attention against the matrix rate of the same run: head size 128, 8 heads. FLOPs are those of the chunkwise form
// counted as dense tiles (chunks of C = 64 tokens, K = V = 128): 2 (3 C K V + 5 C^2 128) per chunk and head forward, and backward
// 2 (6 C K V + 8 C^2 128) and, for what it computes again, 2 (2 C K V + 2 C^2 128). Counters: GFLOP/s of the fastest iteration,
// `of_fp32` and `of_bf16` its ratio to the best fp32 and bf16 matrix rate with as many threads, and `ns/token`, which is flat
// where time is linear in the length.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/kda/kda.h"
#include "core/ops/matmul/matmul.h"

namespace lamina {
namespace {

constexpr int64_t heads = 8, dim = 128, chunk = 64;

struct Tensor {
  Buffer bytes;
  TensorView view;
};

// Uniform in [low, high).
Tensor make(DType dtype, const Shape& shape, double low, double high) {
  Tensor out{Buffer(shape.num_elements() * size_of(dtype), Device{}, nullptr, "bench"), {}};
  out.view = TensorView(out.bytes.data(), dtype, shape);
  const CounterRng rng(1, static_cast<uint64_t>(shape.num_elements()));
  for (int64_t n = 0; n < shape.num_elements(); ++n) {
    const double value = low + (high - low) * rng.uniform(static_cast<uint64_t>(n));
    if (dtype == DType::bf16)
      out.view.as<bf16>()[n] = bf16(static_cast<float>(value));
    else
      out.view.as<float>()[n] = static_cast<float>(value);
  }
  return out;
}

struct Context {
  Stream stream;
  Arena scratch{Device{}, nullptr, "bench"};
  ops::RefusalLog refusals;
  ops::OpContext ctx{stream, scratch, refusals};
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// FLOP/s of one large product, the best of a few now: other programs come and go.
class MatmulRate {
 public:
  explicit MatmulRate(DType dtype)
      : a_(make(dtype, {size, size}, -1, 1)),
        b_(make(dtype, {size, size}, -1, 1)),
        c_(make(dtype, {size, size}, 0, 1)) {
    ops::matmul(context_.ctx, {a_.view, b_.view, c_.view});
  }
  void measure() {
    const auto start = std::chrono::steady_clock::now();
    ops::matmul(context_.ctx, {a_.view, b_.view, c_.view});
    best_ = std::max(best_, 2.0 * size * size * size / seconds_since(start));
  }
  double best() const { return best_; }

 private:
  static constexpr int64_t size = 1024;
  Context context_;
  Tensor a_, b_, c_;
  double best_ = 0;
};

void kda(benchmark::State& state) {
  const DType dtype = state.range(0) == 16 ? DType::bf16 : DType::f32;
  const int64_t num_tokens = state.range(1);
  const bool backward = state.range(2) != 0;
  cpu::set_num_threads(static_cast<int>(state.range(3)));
  Context context;
  const Shape shape{1, num_tokens, heads, dim};
  const double length = std::sqrt(3.0 / dim);  // of rows about 1
  const Tensor q = make(dtype, shape, -length, length), k = make(dtype, shape, -length, length),
               v = make(dtype, shape, -1, 1), g = make(DType::f32, shape, -1, 0),
               beta = make(DType::f32, {1, num_tokens, heads}, 0, 1), d_o = make(dtype, shape, -1, 1),
               o = make(dtype, shape, 0, 1), dq = make(dtype, shape, 0, 1), dk = make(dtype, shape, 0, 1),
               dv = make(dtype, shape, 0, 1), dg = make(DType::f32, shape, 0, 1),
               dbeta = make(DType::f32, {1, num_tokens, heads}, 0, 1);
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  const auto run = [&] {
    if (backward) {
      ops::kda_backward(context.ctx, {q.view,
                                      k.view,
                                      v.view,
                                      g.view,
                                      beta.view,
                                      scale,
                                      {},
                                      {},
                                      d_o.view,
                                      {},
                                      dq.view,
                                      dk.view,
                                      dv.view,
                                      dg.view,
                                      dbeta.view,
                                      {}});
    } else {
      ops::kda_forward(context.ctx, {q.view, k.view, v.view, g.view, beta.view, scale, {}, {}, o.view, {}});
    }
  };
  std::array<MatmulRate, 2> rates = {MatmulRate(DType::f32), MatmulRate(DType::bf16)};
  double best = 1e30;
  run();
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const double seconds = seconds_since(start);
    best = std::min(best, seconds);
    state.SetIterationTime(seconds);
    for (MatmulRate& rate : rates) rate.measure();
  }
  constexpr double states = 2.0 * chunk * dim * dim, scores = 2.0 * chunk * chunk * dim;
  const double per_chunk = backward ? 8 * states + 10 * scores : 3 * states + 5 * scores;
  const double flops = per_chunk * static_cast<double>(heads * num_tokens) / chunk;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["of_fp32"] = flops / best / rates[0].best();
  state.counters["of_bf16"] = flops / best / rates[1].best();
  state.counters["ns/token"] = best * 1e9 / static_cast<double>(num_tokens);
}
BENCHMARK(kda)
    ->ArgNames({"bits", "tokens", "backward", "threads"})
    ->ArgsProduct({{32, 16}, {512, 1024, 2048, 4096, 8192}, {0, 1}, {1, 2}})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(0.5);

}  // namespace
}  // namespace lamina

BENCHMARK_MAIN();
