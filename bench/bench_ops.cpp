// The memory-bound operations against a plain copy with the same threads, measured in turns in the same run. `best_GB/s`
// counts every operand once, in the fastest iteration; `of_copy` is that over the copy's best rate (other processes only
// ever add time). hidden_size 512, 2048 tokens.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "core/base/rng.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/attn_res/attn_res.h"
#include "core/ops/elementwise/elementwise.h"
#include "core/ops/embedding/embedding.h"
#include "core/ops/optimizer/adamw.h"
#include "core/ops/rms_norm/rms_norm.h"
#include "core/ops/swiglu/swiglu.h"

namespace lamina::ops {
namespace {

constexpr int64_t tokens = 2048, dim = 512, num_queries = 4;

// Operands of one case and the bytes they hold.
class Bench {
 public:
  explicit Bench(DType compute) : dtype(compute) {}

  TensorView tensor(DType element, const Shape& shape) {
    buffers_.emplace_back(shape.num_elements() * size_of(element), Device{}, nullptr, "bench");
    const TensorView view(buffers_.back().data(), element, shape);
    const CounterRng rng(1, buffers_.size());
    for (int64_t i = 0; i < view.num_elements(); ++i) {
      const float value = static_cast<float>(rng.uniform(static_cast<uint64_t>(i))) - 0.5f;
      if (element == DType::bf16) view.as<bf16>()[i] = bf16(value);
      if (element == DType::f32) view.as<float>()[i] = value;
      if (element == DType::i32)
        view.as<int32_t>()[i] = static_cast<int32_t>(static_cast<float>(tokens) * (value + 0.5f));
    }
    return view;
  }
  TensorView rows() { return tensor(dtype, {tokens, dim}); }
  TensorView rows32() { return tensor(DType::f32, {tokens, dim}); }
  TensorView vector(int64_t count) { return tensor(DType::f32, {count}); }
  std::vector<TensorView> many(int64_t count, DType element, const Shape& shape) {
    std::vector<TensorView> out;
    for (int64_t i = 0; i < count; ++i) out.push_back(tensor(element, shape));
    return out;
  }
  std::vector<AttnResQuery> queries(int64_t count) {
    std::vector<AttnResQuery> out;
    for (int64_t i = 0; i < count; ++i) out.push_back({vector(dim), vector(dim)});
    return out;
  }

  DType dtype;
  Stream stream;
  Arena scratch{Device{}, nullptr, "bench"};
  RefusalLog refusals;
  OpContext ctx{stream, scratch, refusals, Backend::fastest};

 private:
  std::deque<Buffer> buffers_;
};

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// `bytes`: what the operation must read and write at least once. A copy that moves as much runs between its iterations.
void report(benchmark::State& state, int64_t bytes, const std::function<void()>& op) {
  Buffer from(bytes / 2, Device{}, nullptr, "bench"), to(bytes / 2, Device{}, nullptr, "bench");
  const auto copy = [&] {
    lamina::cpu::parallel_for(bytes / 2, 1 << 16, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(to.data()) + begin, static_cast<const char*>(from.data()) + begin,
                  static_cast<size_t>(end - begin));
    });
  };
  op();
  copy();
  double op_seconds = 1e30, copy_seconds = 1e30;
  for (auto _ : state) {
    const double seconds = seconds_of(op);
    state.SetIterationTime(seconds);
    op_seconds = std::min(op_seconds, seconds);
    copy_seconds = std::min(copy_seconds, seconds_of(copy));
  }
  state.counters["best_us"] = op_seconds * 1e6;
  state.counters["best_GB/s"] = static_cast<double>(bytes) / op_seconds * 1e-9;
  state.counters["of_copy"] = copy_seconds / op_seconds;
}

using Case = void (*)(benchmark::State&, Bench&);

void rms_norm_forward_case(benchmark::State& state, Bench& b) {
  const RmsNormForward args{b.rows(), b.vector(dim), 1e-5, b.rows(), b.vector(tokens), {}, {}};
  report(state, 2 * args.x.num_bytes(), [&] { rms_norm_forward(b.ctx, args); });
}
void rms_norm_backward_case(benchmark::State& state, Bench& b) {
  const RmsNormBackward args{b.rows(), b.vector(dim),       b.vector(tokens), b.rows(),
                             b.rows(), GradMode::overwrite, b.vector(dim)};
  report(state, 3 * args.x.num_bytes(), [&] { rms_norm_backward(b.ctx, args); });
}
void swiglu_forward_case(benchmark::State& state, Bench& b) {
  const SwigluForward args{b.tensor(b.dtype, {tokens, 2 * dim}), b.rows()};
  report(state, 3 * args.y.num_bytes(), [&] { swiglu_forward(b.ctx, args); });
}
void swiglu_backward_case(benchmark::State& state, Bench& b) {
  const SwigluBackward args{b.tensor(b.dtype, {tokens, 2 * dim}), b.rows(), b.tensor(b.dtype, {tokens, 2 * dim}), {}};
  report(state, 5 * args.dy.num_bytes(), [&] { swiglu_backward(b.ctx, args); });
}
void embedding_forward_case(benchmark::State& state, Bench& b) {
  const EmbeddingForward args{b.tensor(DType::i32, {tokens}), b.rows(), b.rows()};
  report(state, 2 * args.y.num_bytes(), [&] { embedding_forward(b.ctx, args); });
}
void embedding_backward_case(benchmark::State& state, Bench& b) {
  const EmbeddingBackward args{b.tensor(DType::i32, {tokens}), b.rows(), b.rows32()};
  report(state, args.dy.num_bytes() + 2 * args.dtable.num_bytes(), [&] { embedding_backward(b.ctx, args); });
}
void adamw_case(benchmark::State& state, Bench& b) {
  const int64_t count = tokens * dim;
  const TensorView v = b.vector(count);
  fill(b.ctx, {v, 1.0});
  AdamW args{b.vector(count), b.vector(count), b.vector(count), v, b.tensor(b.dtype, {count})};
  args.lr = 1e-3;
  report(state, 7 * args.master.num_bytes() + args.param.num_bytes(), [&] { adamw(b.ctx, args); });
}
void add_case(benchmark::State& state, Bench& b) {
  const Add args{b.rows(), b.rows(), b.rows()};
  report(state, 3 * args.y.num_bytes(), [&] { add(b.ctx, args); });
}
void cast_case(benchmark::State& state, Bench& b) {
  const Cast args{b.rows32(), b.rows()};
  report(state, args.x.num_bytes() + args.y.num_bytes(), [&] { cast(b.ctx, args); });
}
void sum_squares_case(benchmark::State& state, Bench& b) {
  double sum = 0;
  const TensorView x = b.rows();
  report(state, x.num_bytes(), [&] { sum = sum_squares(b.ctx, x); });
  benchmark::DoNotOptimize(sum);
}

void attn_res_phase1_forward_case(benchmark::State& state, Bench& b) {
  const int64_t n = state.range(0);
  const auto sources = b.many(n, b.dtype, {tokens, dim}), means = b.many(num_queries, b.dtype, {tokens, dim});
  const auto queries = b.queries(num_queries);
  const AttnResPhase1Forward args{sources,
                                  queries,
                                  1e-5,
                                  means,
                                  b.tensor(DType::f32, {n, tokens}),
                                  b.tensor(DType::f32, {num_queries, n, tokens}),
                                  b.tensor(DType::f32, {num_queries, tokens})};
  report(state, (n + num_queries) * means[0].num_bytes(), [&] { attn_res_phase1_forward(b.ctx, args); });
}
void attn_res_phase1_backward_case(benchmark::State& state, Bench& b) {
  const int64_t n = state.range(0);
  const auto sources = b.many(n, b.dtype, {tokens, dim}), dh = b.many(num_queries, b.dtype, {tokens, dim});
  const auto lse = b.many(num_queries, DType::f32, {tokens}), dot = b.many(num_queries, DType::f32, {tokens});
  const auto dsources = b.many(n, DType::f32, {tokens, dim});
  const auto queries = b.queries(num_queries);
  std::vector<AttnResQueryGradient> dqueries;
  for (int64_t q = 0; q < num_queries; ++q) dqueries.push_back({b.vector(dim), b.vector(dim)});
  const std::vector<GradMode> modes(static_cast<size_t>(n), GradMode::accumulate);
  const AttnResPhase1Backward args{sources,
                                   queries,
                                   b.tensor(DType::f32, {n, tokens}),
                                   b.tensor(DType::f32, {num_queries, n, tokens}),
                                   lse,
                                   dh,
                                   dot,
                                   dsources,
                                   modes,
                                   dqueries};
  report(state, n * sources[0].num_bytes() + num_queries * dh[0].num_bytes() + 2 * n * dsources[0].num_bytes(),
         [&] { attn_res_phase1_backward(b.ctx, args); });
}
void attn_res_merge_forward_case(benchmark::State& state, Bench& b) {
  AttnResMergeForward args;
  args.mean = b.rows(), args.partial = b.rows(), args.delta = b.rows(), args.partial_sum = b.rows();
  args.h = b.rows(), args.y = b.rows(), args.lse = b.vector(tokens), args.query = {b.vector(dim), b.vector(dim)};
  args.norm_weight = b.vector(dim), args.partial_rstd = b.vector(tokens), args.partial_logit = b.vector(tokens);
  args.lse_total = b.vector(tokens), args.h_rstd = b.vector(tokens);
  report(state, 6 * args.h.num_bytes(), [&] { attn_res_merge_forward(b.ctx, args); });
}
void attn_res_merge_backward_case(benchmark::State& state, Bench& b) {
  AttnResMergeBackward args;
  args.h = b.rows(), args.dy = b.rows(), args.partial = b.rows(), args.dh = b.rows(), args.dpartial = b.rows32();
  args.h_rstd = b.vector(tokens), args.norm_weight = b.vector(dim), args.partial_rstd = b.vector(tokens);
  args.partial_logit = b.vector(tokens), args.lse_total = b.vector(tokens), args.dh_dot_h = b.vector(tokens);
  args.query = {b.vector(dim), b.vector(dim)}, args.dquery = {b.vector(dim), b.vector(dim)};
  args.dnorm_weight = b.vector(dim);
  report(state, 4 * args.h.num_bytes() + 2 * args.dpartial.num_bytes(), [&] { attn_res_merge_backward(b.ctx, args); });
}

void add_benchmark(const char* name, Case run, std::vector<int64_t> sizes = {}) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    auto* registered = benchmark::RegisterBenchmark(fmt::format("{}/{}", name, name_of(dtype)).c_str(),
                                                    [run, dtype](benchmark::State& state) {
                                                      Bench bench(dtype);
                                                      run(state, bench);
                                                    });
    registered->UseManualTime()->Unit(benchmark::kMicrosecond);
    for (const int64_t size : sizes) registered->Arg(size);
  }
}

}  // namespace
}  // namespace lamina::ops

int main(int argc, char** argv) {
  using namespace lamina::ops;
  add_benchmark("attn_res_phase1_forward", attn_res_phase1_forward_case, {4, 5});
  add_benchmark("attn_res_phase1_backward", attn_res_phase1_backward_case, {4, 5});
  add_benchmark("attn_res_merge_forward", attn_res_merge_forward_case);
  add_benchmark("attn_res_merge_backward", attn_res_merge_backward_case);
  add_benchmark("rms_norm_forward", rms_norm_forward_case);
  add_benchmark("rms_norm_backward", rms_norm_backward_case);
  add_benchmark("swiglu_forward", swiglu_forward_case);
  add_benchmark("swiglu_backward", swiglu_backward_case);
  add_benchmark("embedding_forward", embedding_forward_case);
  add_benchmark("embedding_backward", embedding_backward_case);
  add_benchmark("adamw", adamw_case);
  add_benchmark("add", add_case);
  add_benchmark("cast_from_fp32", cast_case);
  add_benchmark("sum_squares", sum_squares_case);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
