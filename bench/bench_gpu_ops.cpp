// Operations on a GPU against their limits in the same run: bytes moved at least over copy bandwidth, or FLOPs over the rate of a
// large bf16 product. Shapes are those of Kimi Linear 48B: hidden 2,304, 32 heads, 4,096 tokens.
//   bench_gpu_ops [--tokens N] [--small]     --small: sizes that also an emulated device gets through
#include <cstdlib>
#include <string>

#include "bench/gpu_support.h"
#include "core/ops/attention.h"
#include "core/ops/attn_res.h"
#include "core/ops/experts.h"
#include "core/ops/kda.h"
#include "core/ops/rms_norm.h"

namespace lamina {
namespace {

using bench::Gpu;
using ops::GradMode;

struct Sizes {
  int64_t tokens = 4096, hidden = 2304, heads = 32, head = 128, d_qk = 192, d_v = 128, experts = 32, width = 1024;
  int64_t sources = 10, queries = 6;
};

struct Limits {
  double bandwidth, flops;
};

void header() {
  std::printf("%-34s %10s %12s %10s %12s %10s\n", "operation", "ms", "GB/s", "of copy", "TFLOP/s", "of matmul");
}
void row(const char* name, double seconds, double bytes, double flops, const Limits& limits) {
  std::printf("%-34s %10.3f %12.0f %10.2f %12.1f %10.2f\n", name, 1e3 * seconds, bytes / seconds / 1e9,
              bytes / seconds / limits.bandwidth, flops / seconds / 1e12, flops / seconds / limits.flops);
  std::fflush(stdout);
}

// The read of a block's queries over `sources` summaries, and the merge with the open sum before each sublayer.
void attn_res(Gpu& gpu, const Sizes& s, const Limits& limits) {
  const auto n = static_cast<size_t>(s.sources), Q = static_cast<size_t>(s.queries);
  const Shape rows{s.tokens, s.hidden};
  std::vector<TensorView> sources, means, dsources, dh, lse_total, dots;
  std::vector<ops::AttnResQuery> queries;
  std::vector<ops::AttnResQueryGradient> dqueries;
  for (size_t j = 0; j < n; ++j) {
    sources.push_back(gpu.make(DType::bf16, rows, -1, 1));
    dsources.push_back(gpu.make(DType::f32, rows, -1, 1));
  }
  const TensorView rstd = gpu.room(DType::f32, {s.sources, s.tokens});
  const TensorView logit = gpu.room(DType::f32, {s.queries, s.sources, s.tokens});
  const TensorView lse = gpu.room(DType::f32, {s.queries, s.tokens});
  for (size_t q = 0; q < Q; ++q) {
    queries.push_back({gpu.make(DType::f32, {s.hidden}, 0.5, 1.5), gpu.make(DType::f32, {s.hidden}, -0.1, 0.1)});
    dqueries.push_back({gpu.make(DType::f32, {s.hidden}, 0, 0), gpu.make(DType::f32, {s.hidden}, 0, 0)});
    means.push_back(gpu.room(DType::bf16, rows));
    dh.push_back(gpu.make(DType::bf16, rows, -1, 1));
    dots.push_back(gpu.make(DType::f32, {s.tokens}, -1, 1));
    lse_total.push_back(lse.select(0, static_cast<int64_t>(q)));
  }
  const double row_bytes = static_cast<double>(s.tokens * s.hidden);
  const auto sn = static_cast<double>(s.sources), sq = static_cast<double>(s.queries);
  row("AttnRes read, forward", gpu.seconds([&] {
    attn_res_phase1_forward(gpu.ctx(), {sources, queries, 1e-5, means, rstd, logit, lse});
  }),
      2 * row_bytes * (sn + sq), 0, limits);
  const std::vector<GradMode> modes(n, GradMode::accumulate);
  row("AttnRes read, backward", gpu.seconds([&] {
    attn_res_phase1_backward(gpu.ctx(),
                             {sources, queries, rstd, logit, lse_total, dh, dots, dsources, modes, dqueries});
  }),
      row_bytes * (2 * sn + 2 * sq + 8 * sn), 0, limits);
  ops::AttnResMergeForward merge;
  merge.mean = means[0];
  merge.lse = lse_total[0];
  merge.partial = sources[0];
  merge.delta = sources[1];
  merge.partial_sum = gpu.room(DType::bf16, rows);
  merge.query = queries[0];
  merge.norm_weight = queries[0].norm_weight;
  merge.h = gpu.room(DType::bf16, rows);
  merge.y = gpu.room(DType::bf16, rows);
  merge.partial_rstd = gpu.room(DType::f32, {s.tokens});
  merge.partial_logit = gpu.room(DType::f32, {s.tokens});
  merge.lse_total = gpu.room(DType::f32, {s.tokens});
  merge.h_rstd = gpu.room(DType::f32, {s.tokens});
  row("AttnRes merge + PreNorm, forward", gpu.seconds([&] { attn_res_merge_forward(gpu.ctx(), merge); }),
      2 * row_bytes * 6, 0, limits);
  const TensorView x = sources[0], weight = queries[0].norm_weight, norm_rstd = merge.h_rstd;
  row("RMSNorm, forward", gpu.seconds([&] {
    rms_norm_forward(gpu.ctx(), {x, weight, 1e-5, merge.y, norm_rstd, {}, {}});
  }),
      2 * row_bytes * 2, 0, limits);
  gpu.forget();
}

void attention(Gpu& gpu, const Sizes& s, const Limits& limits) {
  const Shape key{1, s.tokens, s.heads, s.d_qk}, value{1, s.tokens, s.heads, s.d_v};
  const TensorView q = gpu.make(DType::bf16, key, -1, 1), k = gpu.make(DType::bf16, key, -1, 1),
                   v = gpu.make(DType::bf16, value, -1, 1), o = gpu.room(DType::bf16, value),
                   lse = gpu.room(DType::f32, {1, s.heads, s.tokens}), d_o = gpu.make(DType::bf16, value, -1, 1),
                   dq = gpu.room(DType::bf16, key), dk = gpu.room(DType::bf16, key), dv = gpu.room(DType::bf16, value);
  const double pairs = static_cast<double>(s.tokens) * static_cast<double>(s.tokens) / 2;
  const double flops = 2 * pairs * static_cast<double>(s.heads * (s.d_qk + s.d_v));
  const double scale = 1 / 13.856;
  row("attention 192 / 128, forward", gpu.seconds([&] {
    attention_forward(gpu.ctx(), {q, k, v, scale, o, lse});
  }),
      0, flops, limits);
  const double backward = 2 * pairs * static_cast<double>(s.heads * (3 * s.d_qk + 2 * s.d_v));
  row("attention 192 / 128, backward", gpu.seconds([&] {
    attention_backward(gpu.ctx(), {q, k, v, scale, o, lse, d_o, dq, dk, dv});
  }),
      0, backward, limits);
  gpu.forget();
}

void kda(Gpu& gpu, const Sizes& s, const Limits& limits) {
  const Shape shape{1, s.tokens, s.heads, s.head};
  const TensorView q = gpu.make(DType::bf16, shape, -0.1, 0.1), k = gpu.make(DType::bf16, shape, -0.1, 0.1),
                   v = gpu.make(DType::bf16, shape, -1, 1), g = gpu.make(DType::f32, shape, -0.2, 0),
                   beta = gpu.make(DType::f32, {1, s.tokens, s.heads}, 0, 1), o = gpu.room(DType::bf16, shape),
                   d_o = gpu.make(DType::bf16, shape, -1, 1), dq = gpu.room(DType::bf16, shape),
                   dk = gpu.room(DType::bf16, shape), dv = gpu.room(DType::bf16, shape),
                   dg = gpu.room(DType::f32, shape), dbeta = gpu.room(DType::f32, {1, s.tokens, s.heads});
  const auto d = static_cast<double>(s.head);
  const double flops = static_cast<double>(s.tokens * s.heads) * (6 * d * d + 3 * 64 * d + 64 * 64);
  const double io = static_cast<double>(s.tokens * s.heads * s.head);
  const double forward = gpu.seconds([&] { kda_forward(gpu.ctx(), {q, k, v, g, beta, 0.0884, {}, {}, o, {}}); });
  const double backward = gpu.seconds([&] {
    kda_backward(gpu.ctx(), {q, k, v, g, beta, 0.0884, {}, {}, d_o, {}, dq, dk, dv, dg, dbeta, {}});
  });
  row("KDA, forward", forward, io * 12, flops, limits);
  row("KDA, backward", backward, io * 24, 2 * flops, limits);
  std::printf("kda_forward_backward_ms %.4f\n", 1e3 * (forward + backward));
  gpu.forget();
}

void experts(Gpu& gpu, const Sizes& s, const Limits& limits) {
  const int64_t rows = s.tokens * 8;
  const TensorView x = gpu.make(DType::bf16, {rows, s.hidden}, -1, 1), y = gpu.room(DType::bf16, {rows, 2 * s.width}),
                   dx = gpu.room(DType::bf16, {rows, s.hidden});
  std::vector<TensorView> weights, gradients;
  std::vector<int64_t> offsets = {0};
  for (int64_t e = 0; e < s.experts; ++e) {
    weights.push_back(gpu.make(DType::bf16, {2 * s.width, s.hidden}, -1, 1));
    gradients.push_back(gpu.room(DType::f32, {2 * s.width, s.hidden}));
    // Uneven, as a router's are: from half to one and a half of the mean.
    offsets.push_back(e + 1 == s.experts ? rows
                                         : offsets.back() + rows / s.experts / 2 + (rows / s.experts) * e / s.experts);
  }
  const double flops = 4.0 * static_cast<double>(rows) * static_cast<double>(s.hidden * s.width);
  row("experts' products, forward", gpu.seconds([&] {
    grouped_linear(gpu.ctx(), {x, weights, offsets, y});
  }),
      0, flops, limits);
  row("experts' products, input gradient", gpu.seconds([&] {
    grouped_linear_input_gradient(gpu.ctx(), {y, weights, offsets, dx});
  }),
      0, flops, limits);
  row("experts' products, weight gradient", gpu.seconds([&] {
    grouped_linear_weight_gradient(gpu.ctx(), {y, x, offsets, gradients});
  }),
      0, flops, limits);
  gpu.forget();
}

void run(const Sizes& s, bool small) {
  Gpu gpu;
  const cuda::DeviceInfo info = cuda::device_info(0);
  const Limits limits{gpu.copy_bandwidth(small ? 1 << 16 : int64_t{1} << 30), gpu.matmul_rate(small ? 64 : 8192)};
  gpu.forget();
  std::printf("%s: copy %.0f GB/s, bf16 product %.0f TFLOP/s; %lld tokens, hidden %lld, %lld sources, %lld queries\n",
              info.name.c_str(), limits.bandwidth / 1e9, limits.flops / 1e12, static_cast<long long>(s.tokens),
              static_cast<long long>(s.hidden), static_cast<long long>(s.sources), static_cast<long long>(s.queries));
  header();
  attn_res(gpu, s, limits);
  attention(gpu, s, limits);
  kda(gpu, s, limits);
  experts(gpu, s, limits);
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  lamina::Sizes sizes;
  bool small = false;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--small") {
      small = true;
      sizes = {64, 48, 2, 16, 24, 16, 2, 16, 3, 2};
    } else if (option == "--tokens" && i + 1 < argc) {
      sizes.tokens = std::atoll(argv[++i]);
    } else {
      std::fprintf(stderr, "unknown option %s, expected --tokens N or --small\n", argv[i]);
      return 1;
    }
  }
  if (const std::string why = lamina::cuda::why_none(); !why.empty()) {
    std::fprintf(stderr, "bench_gpu_ops: %s\n", why.c_str());
    return 1;
  }
  lamina::run(sizes, small);
  return 0;
}
