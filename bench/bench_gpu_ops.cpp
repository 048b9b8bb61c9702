// Operations on a GPU against their limits in the same run: bytes moved at least over copy bandwidth, or FLOPs over the rate of a
// large bf16 product. Shapes are those of Kimi Linear 48B: hidden 2,304, 32 heads, 4,096 tokens.
//   bench_gpu_ops [--tokens N] [--only attn_res|rows|attention|kda|experts|head|optimizer] [--bits] [--small]
//     --bits    no times: each operation three times from the same operands; its results must be finite, written, and the same bits
//     --small   sizes that also an emulated device gets through
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "bench/gpu_support.h"
#include "core/ops/attention/attention.h"
#include "core/ops/attn_res/attn_res.h"
#include "core/ops/cross_entropy/cross_entropy.h"
#include "core/ops/decode/decode.h"
#include "core/ops/embedding/embedding.h"
#include "core/ops/experts/experts.h"
#include "core/ops/kda/kda.h"
#include "core/ops/optimizer/adamw.h"
#include "core/ops/optimizer/newton_schulz.h"
#include "core/ops/rms_norm/rms_norm.h"
#include "core/ops/router/router.h"
#include "core/ops/short_conv/short_conv.h"
#include "core/ops/swiglu/swiglu.h"

namespace lamina {
namespace {

using bench::Gpu;
using ops::GradMode;
using Views = std::vector<TensorView>;

struct Sizes {
  int64_t tokens = 4096, hidden = 2304, heads = 32, head = 128, d_qk = 192, d_v = 128, experts = 32, width = 1024;
  int64_t sources = 10, queries = 6, all_experts = 256, vocab = 163840;
};

struct Limits {
  double bandwidth, flops;
};

// What each operation is put to: timed against the limits, or without limits run again and again and its bits compared.
class Bench {
 public:
  Bench(Gpu& gpu, std::optional<Limits> limits) : gpu_(gpu), limits_(limits) {
    if (limits_)
      std::printf("%-34s %10s %12s %10s %12s %10s\n", "operation", "ms", "GB/s", "of copy", "TFLOP/s", "of matmul");
  }

  // Seconds, 0 without limits. `results`: all that it writes.
  double operator()(const char* name, double bytes, double flops, const Views& results,
                    const std::function<void()>& call) {
    if (!limits_) {
      const std::string fault = compare(results, call);
      std::printf("%-34s %s\n", name, fault.empty() ? "the same bits" : ("FAULT: " + fault).c_str());
      std::fflush(stdout);
      num_faults_ += fault.empty() ? 0 : 1;
      return 0;
    }
    const double seconds = gpu_.seconds(call);
    std::printf("%-34s %10.3f %12.0f %10.2f %12.1f %10.2f\n", name, 1e3 * seconds, bytes / seconds / 1e9,
                bytes / seconds / limits_->bandwidth, flops / seconds / 1e12, flops / seconds / limits_->flops);
    std::fflush(stdout);
    return seconds;
  }
  bool is_timed() const { return limits_.has_value(); }
  int num_faults() const { return num_faults_; }

 private:
  // From zeros: some results accumulate.
  std::vector<std::vector<char>> run(const Views& results, const std::function<void()>& call) {
    for (const TensorView& view : results) cuda::fill_zero(view.data, view.num_bytes(), gpu_.ctx().stream);
    call();
    std::vector<std::vector<char>> bytes;
    for (const TensorView& view : results) {
      const HostCopy copy(view, gpu_.ctx().stream);
      const auto* const begin = static_cast<const char*>(copy->data);
      bytes.emplace_back(begin, begin + view.num_bytes());
    }
    return bytes;
  }
  std::string compare(const Views& results, const std::function<void()>& call) {
    std::vector<std::vector<char>> first = run(results, call);
    for (size_t r = 0; r < results.size(); ++r) {
      const TensorView host{first[r].data(), results[r].dtype, results[r].shape};
      if (const auto where = first_non_finite(host))
        return fmt::format("element {} of result {} is not finite", *where, r);
      if (std::all_of(first[r].begin(), first[r].end(), [](char byte) { return byte == 0; }))
        return fmt::format("result {} was not written", r);
    }
    for (int again = 2; again <= 3; ++again) {
      const std::vector<std::vector<char>> bytes = run(results, call);
      for (size_t r = 0; r < results.size(); ++r) {
        if (bytes[r] == first[r]) continue;
        const int64_t size = size_of(results[r].dtype), count = results[r].num_elements();
        int64_t num_different = 0, where = -1;
        for (int64_t i = 0; i < count; ++i) {
          if (std::memcmp(first[r].data() + i * size, bytes[r].data() + i * size, static_cast<size_t>(size)) == 0)
            continue;
          if (num_different++ == 0) where = i;
        }
        return fmt::format("run {} differs from the first in {} of {} elements of result {}, from element {} on", again,
                           num_different, count, r, where);
      }
    }
    return "";
  }

  Gpu& gpu_;
  std::optional<Limits> limits_;
  int num_faults_ = 0;
};

Views operator+(Views all, const Views& more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

// The read of a block's queries over `sources` summaries, and the merge with the open sum before each sublayer.
void attn_res(Gpu& gpu, const Sizes& s, Bench& bench) {
  const auto n = static_cast<size_t>(s.sources), Q = static_cast<size_t>(s.queries);
  const Shape rows{s.tokens, s.hidden};
  Views sources, means, dsources, dh, lse_total, dots, dvectors;
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
    dvectors.push_back(dqueries.back().norm_weight);
    dvectors.push_back(dqueries.back().query);
    means.push_back(gpu.room(DType::bf16, rows));
    dh.push_back(gpu.make(DType::bf16, rows, -1, 1));
    dots.push_back(gpu.make(DType::f32, {s.tokens}, -1, 1));
    lse_total.push_back(lse.select(0, static_cast<int64_t>(q)));
  }
  const double row_bytes = static_cast<double>(s.tokens * s.hidden);
  const auto sn = static_cast<double>(s.sources), sq = static_cast<double>(s.queries);
  bench("AttnRes read, forward", 2 * row_bytes * (sn + sq), 0, means + Views{rstd, logit, lse}, [&] {
    attn_res_phase1_forward(gpu.ctx(), {sources, queries, 1e-5, means, rstd, logit, lse});
  });
  const std::vector<GradMode> modes(n, GradMode::accumulate);
  bench("AttnRes read, backward", row_bytes * (2 * sn + 2 * sq + 8 * sn), 0, dsources + dvectors, [&] {
    attn_res_phase1_backward(gpu.ctx(),
                             {sources, queries, rstd, logit, lse_total, dh, dots, dsources, modes, dqueries});
  });
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
  bench("AttnRes merge + PreNorm, forward", 2 * row_bytes * 6, 0,
        {merge.partial_sum, merge.h, merge.y, merge.partial_rstd, merge.partial_logit, merge.lse_total, merge.h_rstd},
        [&] { attn_res_merge_forward(gpu.ctx(), merge); });
  ops::AttnResMergeBackward back;
  back.h = merge.h;
  back.h_rstd = merge.h_rstd;
  back.norm_weight = merge.norm_weight;
  back.dy = dh[0];
  back.partial = merge.partial_sum;
  back.partial_rstd = merge.partial_rstd;
  back.partial_logit = merge.partial_logit;
  back.lse_total = merge.lse_total;
  back.query = queries[0];
  back.dh = gpu.room(DType::bf16, rows);
  back.dh_dot_h = gpu.room(DType::f32, {s.tokens});
  back.dpartial = gpu.make(DType::f32, rows, 0, 0);
  back.dnorm_weight = gpu.make(DType::f32, {s.hidden}, 0, 0);
  back.dquery = dqueries[0];
  bench("AttnRes merge + PreNorm, backward", 2 * row_bytes * 4 + 8 * row_bytes, 0,
        {back.dh, back.dh_dot_h, back.dpartial, back.dnorm_weight, back.dquery.norm_weight, back.dquery.query},
        [&] { attn_res_merge_backward(gpu.ctx(), back); });
  gpu.forget();
}

// What works row by row.
void rows(Gpu& gpu, const Sizes& s, Bench& bench) {
  const Shape shape{s.tokens, s.hidden};
  const double row_bytes = static_cast<double>(s.tokens * s.hidden);
  const TensorView x = gpu.make(DType::bf16, shape, -1, 1), weight = gpu.make(DType::f32, {s.hidden}, 0.5, 1.5),
                   y = gpu.room(DType::bf16, shape), rstd = gpu.room(DType::f32, {s.tokens}),
                   dy = gpu.make(DType::bf16, shape, -1, 1), dx = gpu.room(DType::bf16, shape),
                   dweight = gpu.make(DType::f32, {s.hidden}, 0, 0);
  bench("RMSNorm, forward", 2 * row_bytes * 2, 0, {y, rstd}, [&] {
    rms_norm_forward(gpu.ctx(), {x, weight, 1e-5, y, rstd, {}, {}});
  });
  bench("RMSNorm, backward", 2 * row_bytes * 3, 0, {dx, dweight}, [&] {
    rms_norm_backward(gpu.ctx(), {x, weight, rstd, dy, dx, GradMode::overwrite, dweight});
  });
  const double width_bytes = static_cast<double>(s.tokens * 4 * s.width);
  const TensorView gate_up = gpu.make(DType::bf16, {s.tokens, 8 * s.width}, -2, 2),
                   dgate_up = gpu.room(DType::bf16, {s.tokens, 8 * s.width}),
                   inner = gpu.room(DType::bf16, {s.tokens, 4 * s.width}),
                   dinner = gpu.make(DType::bf16, {s.tokens, 4 * s.width}, -1, 1);
  bench("SwiGLU, forward", 2 * width_bytes * 3, 0, {inner}, [&] { swiglu_forward(gpu.ctx(), {gate_up, inner}); });
  bench("SwiGLU, backward", 2 * width_bytes * 5, 0, {dgate_up}, [&] {
    swiglu_backward(gpu.ctx(), {gate_up, dinner, dgate_up, {}});
  });
  const Shape channels{1, s.tokens, s.heads * s.head};
  const double channel_bytes = static_cast<double>(s.tokens * s.heads * s.head);
  const TensorView cx = gpu.make(DType::bf16, channels, -1, 1),
                   taps = gpu.make(DType::f32, {s.heads * s.head, 4}, -0.5, 0.5), cy = gpu.room(DType::bf16, channels),
                   dcy = gpu.make(DType::bf16, channels, -1, 1), dcx = gpu.room(DType::bf16, channels),
                   dtaps = gpu.make(DType::f32, {s.heads * s.head, 4}, 0, 0);
  bench("short convolution, forward", 2 * channel_bytes * 2, 0, {cy}, [&] {
    short_conv_forward(gpu.ctx(), {cx, taps, {}, cy});
  });
  bench("short convolution, backward", 2 * channel_bytes * 3, 0, {dcx, dtaps}, [&] {
    short_conv_backward(gpu.ctx(), {cx, taps, {}, dcy, dcx, dtaps});
  });
  gpu.forget();
}

void attention(Gpu& gpu, const Sizes& s, Bench& bench) {
  const Shape key{1, s.tokens, s.heads, s.d_qk}, value{1, s.tokens, s.heads, s.d_v};
  const TensorView q = gpu.make(DType::bf16, key, -1, 1), k = gpu.make(DType::bf16, key, -1, 1),
                   v = gpu.make(DType::bf16, value, -1, 1), o = gpu.room(DType::bf16, value),
                   lse = gpu.room(DType::f32, {1, s.heads, s.tokens}), d_o = gpu.make(DType::bf16, value, -1, 1),
                   dq = gpu.room(DType::bf16, key), dk = gpu.room(DType::bf16, key), dv = gpu.room(DType::bf16, value);
  const double pairs = static_cast<double>(s.tokens) * static_cast<double>(s.tokens) / 2;
  const double flops = 2 * pairs * static_cast<double>(s.heads * (s.d_qk + s.d_v));
  const double scale = 1 / std::sqrt(static_cast<double>(s.d_qk));
  const double forward = bench("attention 192 / 128, forward", 0, flops, {o, lse}, [&] {
    attention_forward(gpu.ctx(), {q, k, v, scale, o, lse});
  });
  const double backward_flops = 2 * pairs * static_cast<double>(s.heads * (3 * s.d_qk + 2 * s.d_v));
  const double backward = bench("attention 192 / 128, backward", 0, backward_flops, {dq, dk, dv}, [&] {
    attention_backward(gpu.ctx(), {q, k, v, scale, o, lse, d_o, dq, dk, dv});
  });
  if (bench.is_timed()) std::printf("attention_forward_backward_ms %.4f\n", 1e3 * (forward + backward));
  gpu.forget();
}

void kda(Gpu& gpu, const Sizes& s, Bench& bench) {
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
  const double forward = bench("KDA, forward", io * 12, flops, {o}, [&] {
    kda_forward(gpu.ctx(), {q, k, v, g, beta, 0.0884, {}, {}, o, {}});
  });
  const double backward = bench("KDA, backward", io * 24, 2 * flops, {dq, dk, dv, dg, dbeta}, [&] {
    kda_backward(gpu.ctx(), {q, k, v, g, beta, 0.0884, {}, {}, d_o, {}, dq, dk, dv, dg, dbeta, {}});
  });
  if (bench.is_timed()) std::printf("kda_forward_backward_ms %.4f\n", 1e3 * (forward + backward));

  // Around it in the layer.
  const Shape flat{s.tokens, s.heads, s.head}, per_head{s.tokens, s.heads};
  const auto flat_view = [&](const TensorView& view) { return view.reshaped(flat); };
  const TensorView x = flat_view(v), dy = flat_view(d_o), y = flat_view(o), dx = flat_view(dq), dgate = flat_view(dk),
                   rstd = gpu.room(DType::f32, per_head), weight = gpu.make(DType::f32, {s.head}, 0.5, 1.5),
                   dweight = gpu.make(DType::f32, {s.head}, 0, 0);
  bench("L2 norm of heads, forward", io * 4, 0, {y, rstd}, [&] { l2_norm_forward(gpu.ctx(), {x, 1e-6, y, rstd}); });
  bench("L2 norm of heads, backward", io * 6, 0, {dx}, [&] { l2_norm_backward(gpu.ctx(), {y, rstd, dy, dx}); });
  bench("gated RMSNorm of heads, forward", io * 6, 0, {y, rstd}, [&] {
    gated_rms_norm_forward(gpu.ctx(), {x, weight, flat_view(q), 1e-5, y, rstd});
  });
  bench("gated RMSNorm of heads, backward", io * 10, 0, {dx, dgate, dweight}, [&] {
    gated_rms_norm_backward(gpu.ctx(), {x, weight, flat_view(q), rstd, dy, dx, dgate, dweight, {}});
  });
  const TensorView bias = gpu.make(DType::f32, {s.heads, s.head}, -1, 1),
                   a_log = gpu.make(DType::f32, {s.heads}, -1, 1), logits = gpu.make(DType::bf16, per_head, -1, 1),
                   decay = flat_view(dg), strength = dbeta.reshaped(per_head),
                   dlogits = gpu.room(DType::bf16, per_head), dbias = gpu.make(DType::f32, {s.heads, s.head}, 0, 0),
                   da_log = gpu.make(DType::f32, {s.heads}, 0, 0);
  bench("KDA gate, forward", io * 6, 0, {decay, strength}, [&] {
    kda_gate_forward(gpu.ctx(), {x, bias, a_log, {}, logits, decay, strength});
  });
  bench("KDA gate, backward", io * 8, 0, {dx, dlogits, dbias, da_log}, [&] {
    kda_gate_backward(
        gpu.ctx(), {x, bias, a_log, {}, strength, flat_view(g), beta.reshaped(per_head), dx, dlogits, dbias, da_log});
  });
  gpu.forget();
}

// One more token of one sequence and of 32, behind contexts of `tokens`.
void steps(Gpu& gpu, const Sizes& s, Bench& bench) {
  const int64_t rank = 4 * s.head, d_nope = s.head, d_shared = s.d_qk - s.head;
  for (const int64_t sequences : {1, 32}) {
    const auto rows = [&](DType dtype, int64_t width) { return gpu.make(dtype, {sequences, s.heads, width}, -0.1, 0); };
    Views states, latents;
    for (int64_t n = 0; n < sequences; ++n) {
      states.push_back(gpu.make(DType::f32, {s.heads, s.head, s.head}, -1, 1));
      latents.push_back(gpu.make(DType::bf16, {s.tokens, rank + d_shared}, -1, 1));
    }
    const TensorView k = rows(DType::bf16, s.head), g = rows(DType::f32, s.head), o = rows(DType::bf16, s.head);
    const TensorView beta = gpu.make(DType::f32, {sequences, s.heads}, 0, 1);
    const auto each = static_cast<double>(sequences * s.heads * s.head);
    bench(sequences == 1 ? "KDA, one token" : "KDA, one token of 32", each * static_cast<double>(8 * s.head), 0,
          states + Views{o}, [&] {
            kda_step(gpu.ctx(), {k, k, k, g, beta, 0.0884, states, o});
          });
    const TensorView q = rows(DType::bf16, s.d_qk), values = rows(DType::bf16, s.d_v),
                     kv_b = gpu.make(DType::bf16, {s.heads * (d_nope + s.d_v), rank}, -0.1, 0.1);
    bench(sequences == 1 ? "latent attention, one token" : "latent attention, one token of 32",
          static_cast<double>(kv_b.num_bytes() + sequences * latents.front().num_bytes()), 0, {values}, [&] {
            latent_attention(gpu.ctx(), {q, kv_b, latents, 0.0722, values});
          });
    gpu.forget();
  }
}

void experts(Gpu& gpu, const Sizes& s, Bench& bench) {
  const TensorView scores = gpu.room(DType::f32, {s.tokens, s.all_experts}),
                   router_logits = gpu.make(DType::f32, {s.tokens, s.all_experts}, -2, 2),
                   bias = gpu.make(DType::f32, {s.all_experts}, -0.1, 0.1),
                   chosen = gpu.room(DType::i32, {s.tokens, std::min<int64_t>(8, s.all_experts)}),
                   weights_of = gpu.room(DType::f32, chosen.shape);
  bench("router, forward", 8.0 * static_cast<double>(s.tokens * s.all_experts), 0, {scores, chosen, weights_of}, [&] {
    router_forward(gpu.ctx(), {router_logits, bias, 2.446, true, scores, chosen, weights_of, {}, {}});
  });
  const int64_t rows = s.tokens * 8;
  const TensorView x = gpu.make(DType::bf16, {rows, s.hidden}, -1, 1),
                   y = gpu.make(DType::bf16, {rows, 2 * s.width}, -1, 1), dx = gpu.room(DType::bf16, {rows, s.hidden});
  Views weights, gradients;
  std::vector<int64_t> on_host = {0};
  for (int64_t e = 0; e < s.experts; ++e) {
    weights.push_back(gpu.make(DType::bf16, {2 * s.width, s.hidden}, -1, 1));
    gradients.push_back(gpu.make(DType::f32, {2 * s.width, s.hidden}, 0, 0));
    // Uneven, as a router's are: from half to one and a half of the mean.
    on_host.push_back(e + 1 == s.experts ? rows
                                         : on_host.back() + rows / s.experts / 2 + (rows / s.experts) * e / s.experts);
  }
  const std::vector<int32_t> offsets(on_host.begin(), on_host.end());
  const TensorView on_device = gpu.room(DType::i32, {s.experts + 1});
  upload(offsets.data(), on_device, gpu.ctx().stream);
  const double flops = 4.0 * static_cast<double>(rows) * static_cast<double>(s.hidden * s.width);
  // As one rank trains, and as expert ranks do, whose hosts know the numbers of rows.
  const auto products = [&](const char* gradient, const char* forward, const ops::ExpertRows& experts) {
    bench(gradient, 0, flops, {dx}, [&] { grouped_linear_input_gradient(gpu.ctx(), {y, weights, experts, dx}); });
    bench(forward, 0, flops, {y}, [&] { grouped_linear(gpu.ctx(), {x, weights, experts, y}); });
  };
  bench("experts' products, weight gradient", 0, flops, gradients, [&] {
    grouped_linear_weight_gradient(gpu.ctx(), {y, x, {on_device}, gradients});
  });
  products("experts' products, input gradient", "experts' products, forward", {on_device});
  products("the same by cuBLAS, input gradient", "the same by cuBLAS, forward", {on_device, on_host});
  gpu.forget();
}

void head(Gpu& gpu, const Sizes& s, Bench& bench) {
  const TensorView x = gpu.make(DType::bf16, {s.tokens, s.hidden}, -1, 1),
                   weight = gpu.make(DType::bf16, {s.vocab, s.hidden}, -0.05, 0.05),
                   targets = gpu.make(DType::i32, {s.tokens}, 0, static_cast<double>(s.vocab)),
                   loss = gpu.room(DType::f32, {s.tokens}), dx = gpu.room(DType::bf16, {s.tokens, s.hidden}),
                   row = gpu.room(DType::bf16, {s.tokens, s.hidden}),
                   dweight = gpu.make(DType::f32, {s.vocab, s.hidden}, 0, 0);
  const double flops = 6.0 * static_cast<double>(s.tokens) * static_cast<double>(s.hidden * s.vocab);
  bench("head and loss, both passes", 0, flops, {loss, dx, dweight}, [&] {
    linear_cross_entropy(gpu.ctx(), {x, weight, targets, loss, 1 / static_cast<double>(s.tokens), dx, dweight});
  });
  const double row_bytes = static_cast<double>(s.tokens * s.hidden);
  bench("embedding, forward", row_bytes * 4, 0, {row}, [&] { embedding_forward(gpu.ctx(), {targets, weight, row}); });
  bench("embedding, backward", row_bytes * 10, 0, {dweight}, [&] {
    embedding_backward(gpu.ctx(), {targets, x, dweight});
  });
  gpu.forget();
}

void optimizer(Gpu& gpu, const Sizes& s, Bench& bench) {
  const int64_t rows = s.hidden, columns = 4 * s.width, count = rows * columns;
  const TensorView master = gpu.make(DType::f32, {count}, -1, 1), grad = gpu.make(DType::f32, {count}, -1, 1),
                   m = gpu.make(DType::f32, {count}, 0, 0), v = gpu.make(DType::f32, {count}, 0, 0),
                   param = gpu.room(DType::bf16, {count});
  ops::AdamW update{master, grad, m, v, param};
  update.lr = 1e-3;
  bench("AdamW", 30.0 * static_cast<double>(count), 0, {master, m, v, param}, [&] { adamw(gpu.ctx(), update); });
  const TensorView x = gpu.room(DType::f32, {1, rows, columns});
  const auto shorter = static_cast<double>(std::min(rows, columns)),
             longer = static_cast<double>(std::max(rows, columns));
  bench("Newton-Schulz, 5 iterations", 0, 5 * (4 * shorter * shorter * longer + 2 * shorter * shorter * shorter), {x},
        [&] {
          copy_bytes(x.data, grad.data, x.num_bytes(), gpu.ctx().stream);
          newton_schulz(gpu.ctx(), {x, DType::bf16});
        });
  gpu.forget();
}

struct Options {
  Sizes sizes;
  std::string only;
  bool bits = false, small = false;
};

constexpr struct {
  const char* name;
  void (*run)(Gpu&, const Sizes&, Bench&);
} groups[] = {{"attn_res", attn_res}, {"rows", rows},       {"attention", attention}, {"kda", kda},
              {"steps", steps},       {"experts", experts}, {"head", head},           {"optimizer", optimizer}};

int run(const Options& options) {
  const Sizes& s = options.sizes;
  Gpu gpu;
  std::optional<Limits> limits;
  std::printf("%s: %lld tokens, hidden %lld, %lld sources, %lld queries\n", cuda::device_info(0).name.c_str(),
              static_cast<long long>(s.tokens), static_cast<long long>(s.hidden), static_cast<long long>(s.sources),
              static_cast<long long>(s.queries));
  if (!options.bits) {
    limits = Limits{gpu.copy_bandwidth(options.small ? 1 << 16 : int64_t{1} << 30),
                    gpu.matmul_rate(options.small ? 64 : 8192)};
    gpu.forget();
    std::printf("copy %.0f GB/s, bf16 product %.0f TFLOP/s\n", limits->bandwidth / 1e9, limits->flops / 1e12);
  }
  Bench bench(gpu, limits);
  for (const auto& group : groups)
    if (options.only.empty() || options.only == group.name) group.run(gpu, s, bench);
  return bench.num_faults() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  lamina::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const bool has_value = i + 1 < argc;
    if (option == "--small") {
      options.small = true;
      options.sizes = {64, 48, 2, 16, 24, 16, 2, 16, 3, 2, 8, 64};
    } else if (option == "--bits") {
      options.bits = true;
    } else if (option == "--tokens" && has_value && std::atoll(argv[i + 1]) > 0) {
      options.sizes.tokens = std::atoll(argv[++i]);
    } else if (option == "--only" && has_value &&
               std::any_of(std::begin(lamina::groups), std::end(lamina::groups),
                           [&](const auto& group) { return std::string(argv[i + 1]) == group.name; })) {
      options.only = argv[++i];
    } else {
      std::fprintf(stderr,
                   "bench_gpu_ops: found '%s', expected --tokens N, --only attn_res, rows, attention, kda, experts, "
                   "head or optimizer, --bits or --small\n",
                   argv[i]);
      return 1;
    }
  }
  if (const std::string why = lamina::cuda::why_none(); !why.empty()) {
    std::fprintf(stderr, "bench_gpu_ops: %s\n", why.c_str());
    return 1;
  }
  return lamina::run(options);
}
