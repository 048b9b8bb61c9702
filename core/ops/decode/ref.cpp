// By definition: the convolution and the recurrence of a sequence of one token, and attention with every key and value made.
#include "core/ops/decode/implementations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/ops/kda/implementations.h"
#include "core/ops/kda/kda.h"
#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

// A row of a [sequences, heads, width] view as [1, 1, heads, width].
TensorView one_token(const TensorView& rows, int64_t sequence) {
  TensorView row = rows.slice(0, sequence, sequence + 1);
  if (rows.rank() == 3) {
    row.shape = {1, 1, rows.size(1), rows.size(2)};
    row.strides = {rows.stride(0), rows.stride(0), rows.stride(1), rows.stride(2)};
  } else {
    row.shape = {1, 1, rows.size(1)};
    row.strides = {rows.stride(0), rows.stride(0), rows.stride(1)};
  }
  return row;
}

template <class A>
Row<A> product(const TensorView& matrix, int64_t first_row, int64_t rows, const Row<A>& x) {
  Row<A> out;
  for (int64_t r = 0; r < rows; ++r) out.push_back(dot(load_row<A>(matrix, first_row + r), x));
  return out;
}

template <class A>
void attend(const LatentAttention& args, int64_t sequence) {
  const TensorView& latents = args.latents[static_cast<size_t>(sequence)];
  const int64_t heads = args.q.size(1), d_v = args.o.size(2), rank = args.kv_b.size(1), tokens = latents.size(0);
  const int64_t d_nope = args.kv_b.size(0) / heads - d_v;
  for (int64_t h = 0; h < heads; ++h) {
    const Row<A> q = load_row<A>(args.q.select(0, sequence), h);
    const int64_t first_row = h * (d_nope + d_v);
    Row<A> probability;
    std::vector<Row<A>> values;
    A largest = -std::numeric_limits<A>::infinity(), total = 0;
    for (int64_t j = 0; j < tokens; ++j) {
      const Row<A> latent = load_row<A>(latents, j), c(latent.begin(), latent.begin() + rank);
      Row<A> key = product(args.kv_b, first_row, d_nope, c);
      key.insert(key.end(), latent.begin() + rank, latent.end());
      values.push_back(product(args.kv_b, first_row + d_nope, d_v, c));
      probability.push_back(static_cast<A>(args.scale) * dot(q, key));
      largest = std::max(largest, probability.back());
    }
    for (A& p : probability) total += p = std::exp(p - largest);
    Row<A> o(static_cast<size_t>(d_v));
    for (size_t j = 0; j < values.size(); ++j)
      for (size_t d = 0; d < o.size(); ++d) o[d] += probability[j] / total * values[j][d];
    store_row(args.o.select(0, sequence), h, o);
  }
}

}  // namespace

void short_conv_step(OpContext&, const ShortConvStep& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) {
    const int64_t taps = args.weight.size(1);
    for (int64_t s = 0; s < args.x.size(0); ++s) {
      const TensorView& tail = args.tails[static_cast<size_t>(s)];
      std::vector<Row<A>> inputs;
      for (int64_t i = 0; i + 1 < taps; ++i) inputs.push_back(load_row<A>(tail, i));
      inputs.push_back(load_row<A>(args.x, s));
      Row<A> y;
      for (int64_t channel = 0; channel < args.x.size(1); ++channel) {
        const A* weight = args.weight.template as<A>() + channel * taps;
        A c = 0;
        for (size_t i = 0; i < inputs.size(); ++i) c += weight[i] * inputs[i][static_cast<size_t>(channel)];
        y.push_back(c * sigmoid(c));
      }
      store_row(args.y, s, y);
      for (int64_t i = 0; i + 1 < taps; ++i) store_row(tail, i, inputs[static_cast<size_t>(i + 1)]);
    }
  });
}

void kda_step(OpContext& ctx, const KdaStep& args) {
  for (int64_t s = 0; s < args.q.size(0); ++s) {
    const TensorView& state = args.states[static_cast<size_t>(s)];
    const TensorView batched = state.reshaped({1, state.size(0), state.size(1), state.size(2)});
    KdaForward forward{one_token(args.q, s),
                       one_token(args.k, s),
                       one_token(args.v, s),
                       one_token(args.g, s),
                       one_token(args.beta, s),
                       args.scale,
                       {},
                       batched,
                       one_token(args.o, s),
                       batched};
    ref::kda_forward(ctx, forward);
  }
}

void latent_attention(OpContext&, const LatentAttention& args) {
  visit_acc(args.q.dtype, [&]<class A>(A) {
    for (int64_t s = 0; s < args.q.size(0); ++s) attend<A>(args, s);
  });
}

void copy_rows(OpContext&, const CopyRows& args) {
  for (size_t i = 0; i < args.from.size(); ++i) {
    const TensorView &from = args.from[i], &to = args.to[i];
    const int64_t bytes = size_of(from.dtype);
    for (int64_t row = 0; row < from.size(0); ++row)
      std::memcpy(static_cast<char*>(to.data) + row * to.stride(0) * bytes,
                  static_cast<const char*>(from.data) + row * from.stride(0) * bytes,
                  static_cast<size_t>(from.size(1) * bytes));
  }
}

}  // namespace lamina::ops::ref
