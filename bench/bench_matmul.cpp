// The machine's matrix rate, and what attention and the fused cross-entropy reach of it. Shapes: a hidden-512 model with 2048
// tokens. Arguments end in the number of threads. Counters: GFLOP/s, and for the fused operations `of_matmul`, the ratio to the
// best fp32 or bf16 matrix rate that this program measured with as many threads.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <vector>

#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/attention/attention.h"
#include "core/ops/cross_entropy/cross_entropy.h"
#include "core/ops/matmul/matmul.h"

namespace lamina {
namespace {

constexpr int64_t num_tokens = 2048;

struct Tensor {
  Buffer bytes;
  TensorView view;
};

Tensor make(DType dtype, const Shape& shape) {
  Tensor out{Buffer(shape.num_elements() * size_of(dtype), Device{}, nullptr, "bench"), {}};
  out.view = TensorView(out.bytes.data(), dtype, shape);
  const CounterRng rng(1, static_cast<uint64_t>(shape.num_elements()));
  for (int64_t n = 0; n < shape.num_elements(); ++n) {
    const double value = rng.uniform(static_cast<uint64_t>(n)) - 0.5;
    if (dtype == DType::bf16)
      out.view.as<bf16>()[n] = bf16(static_cast<float>(value));
    else if (dtype == DType::f32)
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

enum class Direction { forward, input_gradient, weight_gradient };

// The three products of one linear layer [in -> out].
class Linear {
 public:
  Linear(DType dtype, int64_t in, int64_t out)
      : x_(make(dtype, {num_tokens, in})),
        w_(make(dtype, {out, in})),
        y_(make(dtype, {num_tokens, out})),
        dw_(make(DType::f32, {out, in})),
        flops_(2.0 * static_cast<double>(num_tokens * in * out)) {}

  void run(Direction direction) {
    switch (direction) {
      case Direction::forward:
        return ops::linear(context_.ctx, x_.view, w_.view, y_.view);
      case Direction::input_gradient:
        return ops::linear_input_gradient(context_.ctx, y_.view, w_.view, x_.view, ops::GradMode::overwrite);
      case Direction::weight_gradient:
        return ops::linear_weight_gradient(context_.ctx, y_.view, x_.view, dw_.view);
    }
  }
  double flops() const { return flops_; }

 private:
  Context context_;
  Tensor x_, w_, y_, dw_;
  double flops_;
};

constexpr std::array<std::array<int64_t, 2>, 4> layers = {{{512, 512}, {512, 2048}, {2048, 512}, {512, 8192}}};

template <class Body>
double best_seconds(Body&& body, int repetitions) {
  double best = 1e30;
  body();
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// The denominator of every ratio: the best rate over the layers and directions, FLOP/s.
double matmul_rate(DType dtype, int threads) {
  static std::array<std::array<double, 9>, 2> known{};
  double& rate = known[dtype == DType::bf16 ? 1 : 0][static_cast<size_t>(std::min(threads, 8))];
  if (rate > 0) return rate;
  for (const auto& [in, out] : layers) {
    Linear layer(dtype, in, out);
    for (Direction direction : {Direction::forward, Direction::input_gradient, Direction::weight_gradient}) {
      rate = std::max(rate, layer.flops() / best_seconds([&] { layer.run(direction); }, 7));
    }
  }
  return rate;
}

void report(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

// Best of the iterations as a ratio: interruptions by other programs are not the kernel's.
template <class Body>
void run_ratio(benchmark::State& state, double flops, double rate, Body&& body) {
  double best = 1e30;
  body();
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  report(state, flops);
  state.counters["of_matmul"] = flops / best / rate;
}

DType dtype_of_argument(int64_t argument) {
  return argument == 16 ? DType::bf16 : DType::f32;
}

void linear_layer(benchmark::State& state) {
  const auto& [in, out] = layers[static_cast<size_t>(state.range(1))];
  cpu::set_num_threads(static_cast<int>(state.range(3)));
  Linear layer(dtype_of_argument(state.range(0)), in, out);
  const auto direction = static_cast<Direction>(state.range(2));
  layer.run(direction);
  for (auto _ : state) layer.run(direction);
  report(state, layer.flops());
  constexpr std::array names = {"forward", "dgrad", "wgrad"};
  state.SetLabel(fmt::format("{} {} -> {}", names[static_cast<size_t>(direction)], in, out));
}
BENCHMARK(linear_layer)
    ->ArgNames({"bits", "layer", "direction", "threads"})
    ->ArgsProduct({{32, 16}, {0, 1, 2, 3}, {0, 1, 2}, {1, 2}})
    ->UseRealTime()
    ->MinTime(0.1);

// 8 heads, d_qk 96, d_v 64. The causal half of the scores counts; backward has five products where forward has two.
void attention(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state.range(0));
  const int64_t seq_len = state.range(1), batch = num_tokens / seq_len, heads = 8, d_qk = 96, d_v = 64;
  const bool backward = state.range(2) != 0;
  cpu::set_num_threads(static_cast<int>(state.range(3)));
  Context context;
  const Tensor q = make(dtype, {batch, seq_len, heads, d_qk}), k = make(dtype, {batch, seq_len, heads, d_qk});
  const Tensor v = make(dtype, {batch, seq_len, heads, d_v}), d_o = make(dtype, {batch, seq_len, heads, d_v});
  const Tensor o = make(dtype, {batch, seq_len, heads, d_v}), lse = make(DType::f32, {batch, heads, seq_len});
  const Tensor dq = make(dtype, q.view.shape), dk = make(dtype, k.view.shape), dv = make(dtype, v.view.shape);
  const double scale = 1.0 / std::sqrt(static_cast<double>(d_qk));
  const double scores = static_cast<double>(batch * heads * seq_len) * static_cast<double>(seq_len) / 2;
  const auto forward = [&] { ops::attention_forward(context.ctx, {q.view, k.view, v.view, scale, o.view, lse.view}); };
  forward();
  // The kernel works in fp32 whatever the inputs, so fp32 is what it is held against.
  const double rate = matmul_rate(DType::f32, static_cast<int>(state.range(3)));
  if (!backward) return run_ratio(state, scores * 2.0 * static_cast<double>(d_qk + d_v), rate, forward);
  run_ratio(state, scores * 2.0 * static_cast<double>(3 * d_qk + 2 * d_v), rate, [&] {
    ops::attention_backward(context.ctx,
                            {q.view, k.view, v.view, scale, o.view, lse.view, d_o.view, dq.view, dk.view, dv.view});
  });
}
BENCHMARK(attention)
    ->ArgNames({"bits", "seq_len", "backward", "threads"})
    ->ArgsProduct({{32, 16}, {512, 2048}, {0, 1}, {1, 2}})
    ->UseRealTime()
    ->MinTime(0.2);

// Forward and both gradients: three products.
void cross_entropy(benchmark::State& state) {
  const DType dtype = dtype_of_argument(state.range(0));
  const int64_t vocab = state.range(1), dim = 512;
  cpu::set_num_threads(static_cast<int>(state.range(2)));
  Context context;
  const Tensor x = make(dtype, {num_tokens, dim}), weight = make(dtype, {vocab, dim}),
               dx = make(dtype, {num_tokens, dim});
  const Tensor dweight = make(DType::f32, {vocab, dim}), loss = make(DType::f32, {num_tokens});
  const Tensor targets = make(DType::i32, {num_tokens});
  for (int64_t t = 0; t < num_tokens; ++t) targets.view.as<int32_t>()[t] = static_cast<int32_t>(t % vocab);
  const double flops = 6.0 * static_cast<double>(num_tokens * dim) * static_cast<double>(vocab);
  run_ratio(state, flops, matmul_rate(dtype, static_cast<int>(state.range(2))), [&] {
    ops::linear_cross_entropy(context.ctx,
                              {x.view, weight.view, targets.view, loss.view, 1.0 / num_tokens, dx.view, dweight.view});
  });
}
BENCHMARK(cross_entropy)
    ->ArgNames({"bits", "vocab", "threads"})
    ->ArgsProduct({{32, 16}, {8192, 50257}, {1, 2}})
    ->UseRealTime()
    ->MinTime(0.2);

}  // namespace
}  // namespace lamina

BENCHMARK_MAIN();
