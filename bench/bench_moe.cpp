// What the grouped products of a mixture of experts reach of one dense product of the same FLOPs, measured in turn; and the rates
// of what stands around them: routing, sorting, gathering and combining rows. `of_dense` is the ratio, `GFLOP/s` the grouped rate.
// Rows are spread `even`ly, or `uneven`ly (a quarter of the experts has none, the others one to three parts), or one `hot` expert
// has half of them.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/experts/experts.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/router/router.h"

namespace lamina {
namespace {

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

enum class Spread { even, uneven, hot };
enum class Direction { forward, input_gradient, weight_gradient };

std::vector<int32_t> offsets_of(Spread spread, int64_t experts, int64_t rows_per_expert) {
  std::vector<double> parts(static_cast<size_t>(experts), 1.0);
  for (size_t e = 0; e < parts.size(); ++e) {
    if (spread == Spread::uneven) parts[e] = static_cast<double>(e % 4);
    if (spread == Spread::hot && e == parts.size() / 2) parts[e] = static_cast<double>(experts - 1);
  }
  double total = 0, sum = 0;
  for (const double part : parts) total += part;
  std::vector<int32_t> offsets = {0};
  for (const double part : parts) {
    sum += part;
    offsets.push_back(static_cast<int32_t>(sum / total * static_cast<double>(experts * rows_per_expert) + 0.5));
  }
  return offsets;
}

double seconds_of(auto&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Layer {
  int64_t experts, in, out;
};
constexpr std::array<Layer, 5> layers = {
    {{16, 256, 128}, {16, 512, 256}, {64, 512, 256}, {32, 512, 512}, {32, 512, 1024}}};

// The dense product has all rows and one expert's matrix.
void grouped(benchmark::State& state) {
  const DType dtype = state.range(0) == 16 ? DType::bf16 : DType::f32;
  const auto [experts, in, out] = layers[static_cast<size_t>(state.range(1))];
  const auto direction = static_cast<Direction>(state.range(2));
  const auto spread = static_cast<Spread>(state.range(4));
  cpu::set_num_threads(static_cast<int>(state.range(5)));
  const std::vector<int32_t> offsets = offsets_of(spread, experts, state.range(3));
  const int64_t rows = offsets.back();
  const Tensor offsets_view = make(DType::i32, {experts + 1});
  std::copy(offsets.begin(), offsets.end(), offsets_view.view.as<int32_t>());
  const ops::ExpertRows expert_rows{offsets_view.view};
  const Tensor x = make(dtype, {rows, in}), y = make(dtype, {rows, out}), w = make(dtype, {experts * out, in}),
               dw = make(DType::f32, {experts * out, in});
  std::vector<TensorView> weights, dweights;
  for (int64_t e = 0; e < experts; ++e) {
    weights.push_back(w.view.slice(0, e * out, (e + 1) * out));
    dweights.push_back(dw.view.slice(0, e * out, (e + 1) * out));
  }
  Context context;
  const auto one_dense = [&] {
    if (direction == Direction::forward) return ops::linear(context.ctx, x.view, weights[0], y.view);
    if (direction == Direction::weight_gradient)
      return ops::linear_weight_gradient(context.ctx, y.view, x.view, dweights[0]);
    ops::linear_input_gradient(context.ctx, y.view, weights[0], x.view, ops::GradMode::overwrite);
  };
  const auto all_experts = [&] {
    if (direction == Direction::forward)
      return ops::grouped_linear(context.ctx, {x.view, weights, expert_rows, y.view});
    if (direction == Direction::weight_gradient)
      return ops::grouped_linear_weight_gradient(context.ctx, {y.view, x.view, expert_rows, dweights});
    ops::grouped_linear_input_gradient(context.ctx, {y.view, weights, expert_rows, x.view});
  };
  one_dense();
  all_experts();
  double dense = 1e30, best = 1e30;
  for (auto _ : state) {
    dense = std::min(dense, seconds_of(one_dense));
    const double seconds = seconds_of(all_experts);
    best = std::min(best, seconds);
    state.SetIterationTime(seconds);
  }
  const double flops = 2.0 * static_cast<double>(rows * in) * static_cast<double>(out);
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["of_dense"] = dense / best;
  constexpr std::array directions = {"forward", "dgrad", "wgrad"};
  constexpr std::array spreads = {"even", "uneven", "hot"};
  state.SetLabel(fmt::format("{} {} experts {} -> {} {}", directions[static_cast<size_t>(direction)], experts, in, out,
                             spreads[static_cast<size_t>(spread)]));
}
BENCHMARK(grouped)
    ->ArgNames({"bits", "layer", "direction", "rows", "spread", "threads"})
    ->ArgsProduct({{32, 16}, {0, 1, 2, 3, 4}, {0, 1, 2}, {64, 256}, {0}, {1, 2}})
    ->ArgsProduct({{32, 16}, {1, 3}, {0, 1, 2}, {64}, {1, 2}, {2}})
    ->UseManualTime()
    ->MinTime(0.1);

// All that is done to rows between the router's product and the experts', of 4096 tokens of hidden 512, and back.
void dispatch_rows(benchmark::State& state) {
  const DType dtype = state.range(0) == 16 ? DType::bf16 : DType::f32;
  const int64_t experts = state.range(1), k = state.range(2), tokens = 4096, dim = 512;
  cpu::set_num_threads(static_cast<int>(state.range(3)));
  Context context;
  const Tensor logits = make(DType::f32, {tokens, experts}), bias = make(DType::f32, {experts}),
               scores = make(DType::f32, {tokens, experts}), weights = make(DType::f32, {tokens, k}),
               fractions = make(DType::f32, {2, experts}), balance = make(DType::f32, {2}),
               chosen = make(DType::i32, {tokens, k}), position = make(DType::i32, {tokens, k}),
               offsets = make(DType::i32, {experts + 1}), row_of = make(DType::i32, {tokens * k}),
               pair_weight = make(DType::f32, {tokens * k}), x = make(dtype, {tokens, dim}),
               pairs = make(dtype, {tokens * k, dim}), y = make(dtype, {tokens, dim}),
               d_logits = make(dtype, {tokens, experts});
  std::array<double, 5> best;
  best.fill(1e30);
  for (auto _ : state) {
    const std::array<double, 5> seconds = {
        seconds_of([&] {
          ops::router_forward(context.ctx, {logits.view, bias.view, 1.0, true, scores.view, chosen.view, weights.view,
                                            fractions.view, balance.view});
        }),
        seconds_of([&] {
          ops::group_rows(context.ctx,
                          {chosen.view, weights.view, offsets.view, row_of.view, position.view, pair_weight.view});
        }),
        seconds_of([&] {
          ops::gather_rows(context.ctx, {x.view, row_of.view, pairs.view});
        }),
        seconds_of([&] {
          ops::combine_rows(context.ctx, {pairs.view, position.view, y.view});
        }),
        seconds_of([&] {
          ops::router_backward(
              context.ctx, {scores.view, chosen.view, 1.0, true, weights.view, fractions.view, 1e-4, d_logits.view});
        })};
    for (size_t i = 0; i < best.size(); ++i) best[i] = std::min(best[i], seconds[i]);
  }
  constexpr std::array names = {"route_us", "group_us", "gather_us", "combine_us", "route_back_us"};
  for (size_t i = 0; i < best.size(); ++i) state.counters[names[i]] = best[i] * 1e6;
}
BENCHMARK(dispatch_rows)
    ->ArgNames({"bits", "experts", "k", "threads"})
    ->ArgsProduct({{32, 16}, {16, 64, 256}, {2, 8}, {1, 2}})
    ->UseRealTime()
    ->MinTime(0.1);

}  // namespace
}  // namespace lamina

BENCHMARK_MAIN();
