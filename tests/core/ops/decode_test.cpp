#include "core/ops/decode/decode.h"

#include <algorithm>
#include <numeric>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/attention/attention.h"
#include "core/ops/kda/kda.h"
#include "core/ops/short_conv/short_conv.h"
#include "tests/support/op_test.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

double tolerance_of(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 2e-5 : 0.02;
}

double difference(const TensorView& a, const TensorView& b) {
  double largest = 0;
  for (int64_t n = 0; n < a.num_elements(); ++n)
    largest = std::max(largest, std::abs(test::get(a, n) - test::get(b, n)) / (1 + std::abs(test::get(b, n))));
  return largest;
}

TensorView token(const TensorView& all, int64_t t) {  // [batch, T, ...] as [batch, ...]
  return all.select(1, t);
}

// A whole sequence token by token, in the fastest implementation, against the operation that has them all, in the reference.
TEST(ShortConvStep, TokenByTokenEqualsTheWholeSequence) {
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const int64_t taps : {1, 2, 4, 5})
      for (const int64_t channels : {1, 7, 48, 6000}) {
        const int64_t batch = 3, tokens = 7;
        const Tensor x = test::normal(dtype, {batch, tokens, channels}, 1);
        const Tensor weight = test::normal(accumulation_dtype(dtype), {channels, taps}, 2);
        const Tensor expected = test::poisoned(dtype, {batch, tokens, channels});
        const Tensor y = test::poisoned(dtype, {batch, tokens, channels});
        short_conv_forward(context.reference, {x, weight, {}, expected});
        std::vector<Tensor> memory;
        std::vector<TensorView> tails;
        for (int64_t b = 0; b < batch; ++b) memory.push_back(test::zeros(dtype, {taps - 1, channels}));
        for (const Tensor& tail : memory) tails.push_back(tail);
        for (int64_t t = 0; t < tokens; ++t)
          short_conv_step(context.fastest, {token(x, t), weight, tails, token(y, t)});
        EXPECT_LT(difference(y, expected), tolerance_of(dtype)) << name_of(dtype) << " " << taps << " " << channels;
        for (int64_t b = 0; b < batch; ++b)
          for (int64_t i = 0; i + 1 < taps; ++i)
            EXPECT_EQ(test::values(tails[static_cast<size_t>(b)].select(0, i)),
                      test::values(x->select(0, b).select(0, tokens - taps + 1 + i)));
      }
}

TEST(KdaStep, TokenByTokenEqualsTheWholeSequence) {
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const auto& [d_k, d_v] : {std::pair<int64_t, int64_t>{16, 16}, {5, 7}, {128, 128}, {64, 80}, {200, 33}}) {
      const int64_t batch = 2, tokens = 9, heads = 3;
      const DType acc = accumulation_dtype(dtype);
      const Tensor q = test::normal(dtype, {batch, tokens, heads, d_k}, 1);
      const Tensor k = test::normal(dtype, {batch, tokens, heads, d_k}, 2, 1 / std::sqrt(static_cast<double>(d_k)));
      const Tensor v = test::normal(dtype, {batch, tokens, heads, d_v}, 3);
      const Tensor g = test::normal(acc, {batch, tokens, heads, d_k}, 4);
      for (int64_t n = 0; n < g->num_elements(); ++n) test::set(g, n, n % 7 == 0 ? -50 : -std::abs(test::get(g, n)));
      const Tensor beta = test::normal(acc, {batch, tokens, heads}, 5);
      for (int64_t n = 0; n < beta->num_elements(); ++n) test::set(beta, n, 1 / (1 + std::exp(-test::get(beta, n))));
      const Tensor initial = test::normal(acc, {batch, heads, d_k, d_v}, 6);
      const Tensor states = test::normal(acc, {batch, heads, d_k, d_v}, 6);
      const Tensor expected = test::poisoned(dtype, v->shape), final_state = test::poisoned(acc, initial->shape);
      const Tensor o = test::poisoned(dtype, v->shape);
      kda_forward(context.reference, {q, k, v, g, beta, 0.3, {}, initial, expected, final_state});
      const std::vector<TensorView> own = {states->select(0, 1), states->select(0, 0)};  // in any place
      const auto swapped = [&](const TensorView& all, int64_t t) {                       // the batch's rows backwards
        TensorView view = token(all, t);
        view.data = static_cast<char*>(view.data) + view.stride(0) * size_of(view.dtype);
        view.strides[0] = -view.strides[0];
        return view;
      };
      for (int64_t t = 0; t < tokens; ++t)
        kda_step(context.fastest, {swapped(q, t), swapped(k, t), swapped(v, t), swapped(g, t), swapped(beta, t), 0.3,
                                   own, swapped(o, t)});
      EXPECT_LT(difference(o, expected), tolerance_of(dtype)) << name_of(dtype) << " " << d_k << " " << d_v;
      EXPECT_LT(difference(states, final_state), tolerance_of(dtype)) << name_of(dtype) << " " << d_k << " " << d_v;
    }
}

struct Latents {
  int64_t heads, d_nope, d_shared, d_v, rank;
};

// Keys and values made, and attention over them: o [heads, d_v] of the last token.
Tensor with_keys(TestContext& context, const Latents& c, const TensorView& q, const TensorView& kv_b,
                 const TensorView& latents, double scale) {
  const int64_t tokens = latents.size(0), d_qk = c.d_nope + c.d_shared;
  const Tensor k = test::zeros(DType::f64, {1, tokens, c.heads, d_qk});
  const Tensor v = test::zeros(DType::f64, {1, tokens, c.heads, c.d_v});
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < c.heads; ++h) {
      for (int64_t d = 0; d < c.d_nope + c.d_v; ++d) {
        double sum = 0;
        for (int64_t i = 0; i < c.rank; ++i)
          sum += test::get(kv_b, (h * (c.d_nope + c.d_v) + d) * c.rank + i) *
                 test::get(latents, t * (c.rank + c.d_shared) + i);
        if (d < c.d_nope)
          test::set(k, (t * c.heads + h) * d_qk + d, sum);
        else
          test::set(v, (t * c.heads + h) * c.d_v + d - c.d_nope, sum);
      }
      for (int64_t d = 0; d < c.d_shared; ++d)
        test::set(k, (t * c.heads + h) * d_qk + c.d_nope + d,
                  test::get(latents, t * (c.rank + c.d_shared) + c.rank + d));
    }
  const Tensor wide_q = test::zeros(DType::f64, {1, 1, c.heads, d_qk});
  for (int64_t n = 0; n < q.num_elements(); ++n) test::set(wide_q, n, test::get(q, n));
  Tensor o = test::poisoned(DType::f64, {1, 1, c.heads, c.d_v});
  const Tensor lse = test::poisoned(DType::f64, {1, c.heads, 1});
  attention_forward(context.reference, {wide_q, k, v, scale, o, lse});
  return o;
}

TEST(LatentAttention, EqualsAttentionOverKeysAndValues) {
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const Latents& c :
         {Latents{1, 4, 0, 3, 5}, Latents{3, 6, 4, 5, 10}, Latents{9, 16, 8, 16, 64}, Latents{2, 0, 4, 8, 16}}) {
      const std::vector<int64_t> lengths = {1, 70, 300, 2};
      const Tensor q = test::normal(dtype, {4, c.heads, c.d_nope + c.d_shared}, 1);
      const Tensor kv_b =
          test::normal(dtype, {c.heads * (c.d_nope + c.d_v), c.rank}, 2, 1 / std::sqrt(static_cast<double>(c.rank)));
      const Tensor o = test::poisoned(dtype, {4, c.heads, c.d_v});
      std::vector<Tensor> memory;
      std::vector<TensorView> latents;
      for (const int64_t length : lengths)
        memory.push_back(test::normal(dtype, {length, c.rank + c.d_shared}, 10 + static_cast<uint64_t>(length)));
      for (const Tensor& each : memory) latents.push_back(each);
      const double scale = 0.3;
      latent_attention(context.fastest, {q, kv_b, latents, scale, o});
      for (size_t s = 0; s < latents.size(); ++s) {
        const auto row = static_cast<int64_t>(s);
        const Tensor expected = with_keys(context, c, q->select(0, row), kv_b, latents[s], scale);
        EXPECT_LT(difference(o->select(0, row), expected->reshaped({c.heads, c.d_v})), tolerance_of(dtype))
            << name_of(dtype) << ", " << c.heads << " heads, " << lengths[s] << " tokens";
      }
    }
}

// The same by another order of the same sums, in double: W_k on the query's side, W_v behind. o [heads, d_v].
std::vector<double> without_keys(const Latents& c, const TensorView& q, const TensorView& kv_b,
                                 const TensorView& latents, double scale) {
  const std::vector<double> query = test::values(q), weight = test::values(kv_b), latent = test::values(latents);
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  const size_t width = size(c.rank + c.d_shared), d_kv = size(c.d_nope + c.d_v), tokens = size(latents.size(0));
  std::vector<double> out;
  for (size_t h = 0; h < size(c.heads); ++h) {
    const double* own = query.data() + h * size(c.d_nope + c.d_shared);
    const double* rows = weight.data() + h * d_kv * size(c.rank);
    std::vector<double> absorbed(width), logits(tokens), mean(size(c.rank));
    for (size_t d = 0; d < size(c.d_nope); ++d)
      for (size_t i = 0; i < size(c.rank); ++i) absorbed[i] += own[d] * rows[d * size(c.rank) + i];
    for (size_t d = 0; d < size(c.d_shared); ++d) absorbed[size(c.rank) + d] = own[size(c.d_nope) + d];
    for (size_t t = 0; t < tokens; ++t)
      logits[t] = scale * std::inner_product(absorbed.begin(), absorbed.end(), latent.data() + t * width, 0.0);
    const double largest = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (size_t t = 0; t < tokens; ++t) {
      const double p = std::exp(logits[t] - largest);
      total += p;
      for (size_t i = 0; i < mean.size(); ++i) mean[i] += p * latent[t * width + i];
    }
    for (size_t d = size(c.d_nope); d < d_kv; ++d)
      out.push_back(std::inner_product(mean.begin(), mean.end(), rows + d * size(c.rank), 0.0) / total);
  }
  return out;
}

// The shapes of a large model, contexts that are cut into parts and into so many that these grow, and latents of every width class.
TEST(LatentAttention, LargeShapesAndLongContexts) {
  struct Large {
    Latents shape;
    std::vector<int64_t> lengths;
  };
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Large& large : {Large{{32, 128, 64, 128, 512}, {1, 128, 129, 515}}, Large{{2, 4, 4, 4, 16}, {8300, 3}},
                               Large{{17, 8, 5, 8, 32}, {140}}, Large{{3, 8, 8, 8, 1000}, {130, 9}},
                               Large{{2, 4, 0, 4, 2302}, {131}}, Large{{2, 4, 0, 4, 1151}, {10}}}) {
      const Latents& c = large.shape;
      const auto sequences = static_cast<int64_t>(large.lengths.size());
      const Tensor q = test::normal(dtype, {sequences, c.heads, c.d_nope + c.d_shared}, 1);
      const Tensor kv_b =
          test::normal(dtype, {c.heads * (c.d_nope + c.d_v), c.rank}, 2, 1 / std::sqrt(static_cast<double>(c.rank)));
      const Tensor o = test::poisoned(dtype, {sequences, c.heads, c.d_v});
      std::vector<Tensor> memory;
      std::vector<TensorView> latents;
      for (const int64_t length : large.lengths)
        memory.push_back(test::normal(dtype, {length, c.rank + c.d_shared}, 10 + static_cast<uint64_t>(length)));
      for (const Tensor& each : memory) latents.push_back(each);
      const double scale = 1 / std::sqrt(static_cast<double>(c.d_nope + c.d_shared));
      latent_attention(context.fastest, {q, kv_b, latents, scale, o});
      for (int64_t s = 0; s < sequences; ++s) {
        const auto expected = without_keys(c, q->select(0, s), kv_b, latents[static_cast<size_t>(s)], scale);
        const auto found = test::values(o->select(0, s));
        double largest = 0;
        for (size_t n = 0; n < found.size(); ++n)
          largest = std::max(largest, std::abs(found[n] - expected[n]) / (1 + std::abs(expected[n])));
        EXPECT_LT(largest, tolerance_of(dtype))
            << name_of(dtype) << ", rank " << c.rank << ", " << large.lengths[static_cast<size_t>(s)] << " tokens";
      }
    }
}

// More sequences than a launch takes: each as if alone.
TEST(Decode, ManySequencesEqualEachAlone) {
  TestContext context;
  const int64_t sequences = 70, heads = 2, width = 8, rank = 6, taps = 4;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = test::normal(dtype, {sequences, heads * width}, 1),
                 taps_weight = test::normal(DType::f32, {heads * width, taps}, 2);
    const Tensor rows = test::normal(dtype, {sequences, heads, width}, 3),
                 beta = test::normal(DType::f32, {sequences, heads}, 4);
    const Tensor g = test::zeros(DType::f32, {sequences, heads, width}),
                 kv_b = test::normal(dtype, {heads * 2 * width, rank}, 5);
    test::fill(g, -0.1);
    // What the three operations give for sequences [begin, end), and leave in their memory.
    const auto run = [&](int64_t begin, int64_t end) {
      std::vector<Tensor> tails, states, latents;
      std::vector<TensorView> tail_views, state_views, latent_views;
      for (int64_t s = begin; s < end; ++s) {
        const auto stream = static_cast<uint64_t>(100 + s);
        tails.push_back(test::normal(dtype, {taps - 1, heads * width}, stream));
        states.push_back(test::normal(DType::f32, {heads, width, width}, stream));
        latents.push_back(test::normal(dtype, {1 + s % 3, rank}, stream));
      }
      for (size_t i = 0; i < tails.size(); ++i) {
        tail_views.push_back(tails[i]);
        state_views.push_back(states[i]);
        latent_views.push_back(latents[i]);
      }
      const auto part = [&](const TensorView& all) { return all.slice(0, begin, end); };
      const Tensor y = test::poisoned(dtype, {end - begin, heads * width});
      const Tensor o = test::poisoned(dtype, {end - begin, heads, width}), attended = test::poisoned(dtype, o->shape);
      short_conv_step(context.fastest, {part(x), taps_weight, tail_views, y});
      kda_step(context.fastest, {part(rows), part(rows), part(rows), part(g), part(beta), 0.5, state_views, o});
      latent_attention(context.fastest, {part(rows), kv_b, latent_views, 0.5, attended});
      std::vector<double> all;
      for (int64_t s = 0; s < end - begin; ++s) {
        const auto i = static_cast<size_t>(s);
        for (const TensorView& view :
             {y->select(0, s), o->select(0, s), attended->select(0, s), tail_views[i], state_views[i]})
          for (const double value : test::values(view)) all.push_back(value);
      }
      return all;
    };
    const std::vector<double> together = run(0, sequences);
    std::vector<double> alone;
    for (int64_t s = 0; s < sequences; ++s)
      for (const double value : run(s, s + 1)) alone.push_back(value);
    ASSERT_EQ(together.size(), alone.size());
    for (size_t n = 0; n < alone.size(); ++n)
      ASSERT_NEAR(together[n], alone[n], tolerance_of(dtype) * (1 + std::abs(alone[n]))) << n;
  }
}

TEST(CopyRows, CopiesEveryRowAndNothingElse) {
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {7, 5}, {3, 512}, {40, 64}}) {
      std::vector<Tensor> sources, targets;
      std::vector<TensorView> from, to;
      for (int64_t i = 0; i < 35; ++i) {  // of different sizes, within wider rows
        const int64_t own = 1 + (rows + i) % rows;
        sources.push_back(test::normal(dtype, {own, columns + 8}, static_cast<uint64_t>(i)));
        targets.push_back(test::zeros(dtype, {own, columns + 16}));
      }
      for (size_t i = 0; i < sources.size(); ++i) {
        from.push_back(sources[i]->slice(1, 0, columns));
        to.push_back(targets[i]->slice(1, 8, 8 + columns));
      }
      copy_rows(context.fastest, {from, to});
      for (size_t i = 0; i < sources.size(); ++i)
        for (int64_t row = 0; row < from[i].size(0); ++row)
          for (int64_t column = 0; column < columns + 16; ++column) {
            const bool is_inside = column >= 8 && column < 8 + columns;
            const double expected = is_inside ? test::get(from[i], row * columns + column - 8) : 0;
            ASSERT_EQ(test::get(targets[i], row * (columns + 16) + column), expected)
                << i << " " << row << " " << column;
          }
    }
}

// Logits that differ by thousands, in a context of several parts, the largest first, last or in the middle.
TEST(LatentAttention, FollowsTheLargestLogit) {
  TestContext context;
  const int64_t tokens = 1100, rank = 16;
  for (const int64_t largest : {0, 500, 1099}) {
    const Tensor latents = test::normal(DType::f32, {tokens, rank}, 3);
    for (int64_t i = 0; i < rank; ++i) test::set(latents, largest * rank + i, i == 0 ? 3000 : i);
    const Tensor kv_b = test::zeros(DType::f32, {2 * rank, rank});  // the identity, as key and as value
    for (int64_t i = 0; i < rank; ++i) {
      test::set(kv_b, i * rank + i, 1);
      test::set(kv_b, (rank + i) * rank + i, 1);
    }
    const Tensor q = test::zeros(DType::f32, {1, 1, rank}), o = test::poisoned(DType::f32, {1, 1, rank});
    test::set(q, 0, 1);
    const std::vector<TensorView> all = {latents};
    latent_attention(context.fastest, {q, kv_b, all, 1.0, o});
    EXPECT_EQ(test::values(o), test::values(latents->slice(0, largest, largest + 1)));
  }
}

TEST(Decode, TheSameBitsAtAnyNumberOfThreads) {
  const int before = cpu::num_threads();
  std::vector<std::vector<double>> found;
  for (const int threads : {1, 2, 3, 7}) {
    cpu::set_num_threads(threads);
    TestContext context;
    const Latents c{5, 16, 8, 16, 96};
    const Tensor q = test::normal(DType::f32, {2, c.heads, c.d_nope + c.d_shared}, 1);
    const Tensor kv_b = test::normal(DType::f32, {c.heads * (c.d_nope + c.d_v), c.rank}, 2, 0.1);
    const Tensor a = test::normal(DType::f32, {3000, c.rank + c.d_shared}, 3);
    const Tensor b = test::normal(DType::f32, {900, c.rank + c.d_shared}, 4);
    const Tensor o = test::poisoned(DType::f32, {2, c.heads, c.d_v});
    const std::vector<TensorView> latents = {a, b};
    latent_attention(context.fastest, {q, kv_b, latents, 0.2, o});
    std::vector<double> all = test::values(o);
    const Tensor states = test::normal(DType::f32, {8, 128, 128}, 5), g = test::zeros(DType::f32, {1, 8, 128});
    const Tensor row = test::normal(DType::f32, {1, 8, 128}, 6), beta = test::zeros(DType::f32, {1, 8});
    test::fill(beta, 0.5);
    const Tensor out = test::poisoned(DType::f32, {1, 8, 128});
    const std::vector<TensorView> one = {states};
    kda_step(context.fastest, {row, row, row, g, beta, 1.0, one, out});
    for (const Tensor* each : {&states, &out})
      for (const double value : test::values(*each)) all.push_back(value);
    found.push_back(all);
  }
  cpu::set_num_threads(before);
  for (const auto& each : found) EXPECT_EQ(each, found.front());
}

TEST(Decode, RefusesMemoryOfOtherSequences) {
  TestContext context;
  const Tensor q = test::normal(DType::f32, {2, 1, 4}, 1), kv_b = test::normal(DType::f32, {8, 3}, 2);
  const Tensor latents = test::normal(DType::f32, {5, 3}, 3), o = test::poisoned(DType::f32, {2, 1, 4});
  const std::vector<TensorView> one = {latents}, wide = {latents, test::normal(DType::f32, {5, 4}, 4)};
  EXPECT_THROW(latent_attention(context.fastest, {q, kv_b, one, 1.0, o}), InternalError);
  EXPECT_THROW(latent_attention(context.fastest, {q, kv_b, wide, 1.0, o}), InternalError);
  const Tensor x = test::normal(DType::f32, {1, 3}, 5), weight = test::normal(DType::f32, {3, 4}, 6);
  const std::vector<TensorView> tails = {test::zeros(DType::f32, {2, 3})};
  EXPECT_THROW(short_conv_step(context.fastest, {x, weight, tails, x}), InternalError);
  EXPECT_THROW(copy_rows(context.fastest, {tails, {}}), InternalError);
}

}  // namespace
}  // namespace lamina::ops
