#include "core/ops/kda/kda.h"

#include "core/device/cpu/parallel_for.h"
#include "core/ops/kda/implementations.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

enum class Decay { mild, softplus, bounded, extreme, zero };
enum class Keys { random, nearly_equal };  // the latter with beta near 1: the triangular system is ill-conditioned

struct Case {
  int64_t batch = 1, num_tokens = 1, heads = 1, d_k = 16, d_v = 16;
  Decay decay = Decay::mild;
  Keys keys = Keys::random;
  int64_t margin = 16;  // elements before a head in its wider row
};

double log_decay(Decay decay, double uniform, double normal) {
  switch (decay) {
    case Decay::mild:
      return -0.1 * uniform;
    case Decay::softplus:
      return -8 * std::log1p(std::exp(normal - 4));
    case Decay::bounded:
      return -5 / (1 + std::exp(-4 * normal));
    case Decay::extreme:
      return uniform < 0.2 ? -40 : -40 * std::pow(uniform, 4);
    case Decay::zero:
      return 0;
  }
  return 0;
}

// Operands with heads between wider rows: [batch, T, heads, width] out of [batch, T, heads + 1, width + margin].
class Heads {
 public:
  Heads(DType dtype, const Shape& shape, int64_t margin, uint64_t stream)
      : wide_(test::normal(dtype, {shape[0], shape[1], shape[2] + 1, shape[3] + margin}, stream)),
        view_(wide_->slice(2, 1, 1 + shape[2]).slice(3, margin, margin + shape[3])) {}
  operator const TensorView&() const { return view_; }
  const TensorView& view() const { return view_; }

 private:
  Tensor wide_;
  TensorView view_;
};

// Inputs, and outputs poisoned.
class Problem {
 public:
  Problem(DType dtype, const Case& c)
      : acc(accumulation_dtype(dtype)),
        key{c.batch, c.num_tokens, c.heads, c.d_k},
        value{c.batch, c.num_tokens, c.heads, c.d_v},
        states{c.batch, c.heads, c.d_k, c.d_v},
        q(dtype, key, c.margin, 1),
        k(dtype, key, c.margin, 2),
        v(dtype, value, c.margin, 3),
        g(acc, key, c.margin, 4),
        wide_beta(test::zeros(acc, {c.batch, c.num_tokens, c.heads + 3})),
        beta(wide_beta->slice(2, 2, 2 + c.heads)),
        initial(test::normal(acc, states, 5, 0.3)),
        d_o(dtype, value, c.margin, 6),
        d_final(test::normal(acc, states, 7, 0.3)),
        o(test::poisoned(dtype, value)),
        final_state(test::poisoned(acc, states)),
        dq(test::poisoned(dtype, key)),
        dk(test::poisoned(dtype, key)),
        dv(test::poisoned(dtype, value)),
        dg(test::poisoned(acc, key)),
        dbeta(test::poisoned(acc, {c.batch, c.num_tokens, c.heads})),
        d_initial(test::poisoned(acc, states)) {
    const CounterRng rng(7, static_cast<uint64_t>(c.num_tokens * 100 + c.d_k));
    if (c.keys == Keys::nearly_equal) {
      for (int64_t n = 0; n < k.view().num_elements(); ++n) {
        const double shared = rng.normal(static_cast<uint64_t>(n % c.d_k + n / (c.d_k * c.heads * c.num_tokens)));
        test::set(k, n, 0.1 * test::get(k, n) + shared);
      }
    }
    normalise(q);
    normalise(k);
    for (int64_t n = 0; n < g.view().num_elements(); ++n) {
      test::set(g, n, log_decay(c.decay, rng.uniform(static_cast<uint64_t>(n)), test::get(g, n)));
    }
    for (int64_t n = 0; n < beta.num_elements(); ++n) {
      const double logit = rng.normal(static_cast<uint64_t>(n) + 1000000);
      test::set(beta, n, c.keys == Keys::nearly_equal ? 0.999 : 1 / (1 + std::exp(-logit)));
    }
  }

  KdaForward forward() const { return {q, k, v, g, beta, scale, starts, initial, o, final_state}; }
  KdaBackward backward() const {
    return {q, k, v, g, beta, scale, starts, initial, d_o, d_final, dq, dk, dv, dg, dbeta, d_initial};
  }
  std::vector<std::pair<const char*, TensorView>> results() const {
    return {{"o", o},         {"final_state", final_state},  {"dq", dq}, {"dk", dk}, {"dv", dv}, {"dg", dg},
            {"dbeta", dbeta}, {"d_initial_state", d_initial}};
  }

  DType acc;
  Shape key, value, states;
  double scale = 0.4;
  TensorView starts;
  Heads q, k, v, g;
  Tensor wide_beta;
  TensorView beta;
  Tensor initial;
  Heads d_o;
  Tensor d_final, o, final_state, dq, dk, dv, dg, dbeta, d_initial;

 private:
  static void normalise(const TensorView& rows) {
    const int64_t width = rows.size(3);
    for (int64_t row = 0; row < rows.num_elements() / std::max<int64_t>(1, width); ++row) {
      double square = 0;
      for (int64_t i = 0; i < width; ++i) square += std::pow(test::get(rows, row * width + i), 2);
      for (int64_t i = 0; i < width; ++i) {
        test::set(rows, row * width + i, test::get(rows, row * width + i) / std::sqrt(square));
      }
    }
  }
};

KdaForward mirrored(test::Mirror& m, const KdaForward& a) {
  return {m(a.q), m(a.k),          m(a.v), m(a.g), m(a.beta), a.scale, a.document_starts, m(a.initial_state),
          m(a.o), m(a.final_state)};
}
KdaBackward mirrored(test::Mirror& m, const KdaBackward& a) {
  return {m(a.q),
          m(a.k),
          m(a.v),
          m(a.g),
          m(a.beta),
          a.scale,
          a.document_starts,
          m(a.initial_state),
          m(a.d_o),
          m(a.d_final_state),
          m(a.dq),
          m(a.dk),
          m(a.dv),
          m(a.dg),
          m(a.dbeta),
          m(a.d_initial_state)};
}

// ||got - want|| / ||want||, NaN where anything is.
double rms_error(const TensorView& got, const TensorView& want) {
  double difference = 0, size = 1e-60;
  for (int64_t n = 0; n < want.num_elements(); ++n) {
    difference += std::pow(test::get(got, n) - test::get(want, n), 2);
    size += std::pow(test::get(want, n), 2);
  }
  return std::sqrt(difference / size);
}

TEST(Kda, ReferenceIsTheRecurrence) {
  // One head, two keys, two values: the formula of kda.h as matrices.
  TestContext context;
  Case c;
  c.num_tokens = 3, c.d_k = 2, c.d_v = 2;
  const Problem p(DType::f64, c);
  kda_forward(context.fastest, p.forward());
  double s[2][2];
  for (int64_t i = 0; i < 4; ++i) s[i / 2][i % 2] = test::get(p.initial, i);
  for (int64_t t = 0; t < 3; ++t) {
    const double k[2] = {test::get(p.k, 2 * t), test::get(p.k, 2 * t + 1)}, beta = test::get(p.beta, t);
    double next[2][2] = {};
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        for (int l = 0; l < 2; ++l) {
          next[i][j] += ((i == l ? 1 : 0) - beta * k[i] * k[l]) * std::exp(test::get(p.g, 2 * t + l)) * s[l][j];
        }
        next[i][j] += beta * k[i] * test::get(p.v, 2 * t + j);
      }
    }
    std::copy_n(&next[0][0], 4, &s[0][0]);
    for (int j = 0; j < 2; ++j) {
      const double want = p.scale * (s[0][j] * test::get(p.q, 2 * t) + s[1][j] * test::get(p.q, 2 * t + 1));
      EXPECT_NEAR(test::get(p.o, 2 * t + j), want, 1e-14);
    }
  }
  for (int64_t i = 0; i < 4; ++i) EXPECT_NEAR(test::get(p.final_state, i), s[i / 2][i % 2], 1e-14);
}

TEST(Kda, ReferenceBackwardMatchesFiniteDifferences) {
  TestContext context;
  Case c;
  c.batch = 2, c.num_tokens = 6, c.heads = 2, c.d_k = 3, c.d_v = 2, c.decay = Decay::softplus;
  Problem p(DType::f64, c);
  const Tensor starts = test::zeros(DType::i32, {2, 6});
  for (int64_t t = 4; t < 6; ++t) test::set(starts, t, 4);  // in the first sequence
  p.starts = starts;
  const auto loss = [&] {
    kda_forward(context.reference, p.forward());
    double sum = 0;
    for (int64_t i = 0; i < p.o->num_elements(); ++i) sum += test::get(p.o, i) * test::get(p.d_o, i);
    for (int64_t i = 0; i < p.final_state->num_elements(); ++i) {
      sum += test::get(p.final_state, i) * test::get(p.d_final, i);
    }
    return sum;
  };
  kda_backward(context.reference, p.backward());
  const auto compare = [&](const TensorView& input, const TensorView& gradient) {
    for (int64_t i = 0; i < input.num_elements(); ++i) {
      const double before = test::get(input, i), step = 1e-3;
      const auto at = [&](double shift) {
        test::set(input, i, before + shift);
        const double value = loss();
        test::set(input, i, before);
        return value;
      };
      const double want = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
      EXPECT_NEAR(test::get(gradient, i), want, 1e-9 * (1 + std::abs(want))) << input.to_string() << " " << i;
    }
  };
  compare(p.q, p.dq);
  compare(p.k, p.dk);
  compare(p.v, p.dv);
  compare(p.g, p.dg);
  compare(p.beta, p.dbeta);
  compare(p.initial, p.d_initial);
}

// Both directions of `p` by the fastest version, against float64.
void expect_close(const Problem& p, double bound, const std::string& what) {
  TestContext context;
  test::Mirror m;
  kda_forward(context.reference, mirrored(m, p.forward()));
  kda_forward(context.fastest, p.forward());
  kda_backward(context.reference, mirrored(m, p.backward()));
  kda_backward(context.fastest, p.backward());
  for (const auto& [name, view] : p.results()) {
    if (view.num_elements() == 0) continue;
    EXPECT_LE(rms_error(view, m(view)), bound) << name << " " << what;
  }
}

double bound_of(DType dtype, Keys keys) {
  if (dtype == DType::f32) return 2e-5;
  return keys == Keys::nearly_equal ? 2e-2 : 1e-2;
}

TEST(Kda, FastestMatchesFloat64InEveryRegime) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Decay decay : {Decay::mild, Decay::softplus, Decay::bounded, Decay::extreme, Decay::zero}) {
      for (const Keys keys : {Keys::random, Keys::nearly_equal}) {
        for (const int64_t num_tokens : {1, 63, 64, 65, 200}) {
          const Case c{1, num_tokens, 1, 32, 48, decay, keys};
          expect_close(Problem(dtype, c), bound_of(dtype, keys),
                       fmt::format("{} decay {} keys {} tokens {}", name_of(dtype), static_cast<int>(decay),
                                   static_cast<int>(keys), num_tokens));
        }
      }
    }
  }
}

TEST(Kda, FastestMatchesFloat64ForEveryShape) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [d_k, d_v] : {std::pair{16, 16}, {16, 80}, {48, 32}, {64, 16}, {80, 112}, {128, 128}}) {
      const Case c{2, 77, 3, d_k, d_v, Decay::softplus, Keys::random};
      expect_close(Problem(dtype, c), bound_of(dtype, c.keys), fmt::format("{} {} {}", name_of(dtype), d_k, d_v));
    }
  }
}

TEST(Kda, OtherHeadSizesAreTheReferences) {
  const Case whole{1, 5, 2, 16, 32}, key{1, 5, 2, 24, 32}, value{1, 5, 2, 16, 9};
  EXPECT_EQ(cpu::kda_forward_refuses(Problem(DType::bf16, whole).forward()), nullptr);
  EXPECT_EQ(cpu::kda_backward_refuses(Problem(DType::f32, whole).backward()), nullptr);
  EXPECT_NE(cpu::kda_forward_refuses(Problem(DType::f64, whole).forward()), nullptr);
  EXPECT_NE(cpu::kda_backward_refuses(Problem(DType::f64, whole).backward()), nullptr);
  for (const Case& c : {key, value}) {
    const Problem p(DType::f32, c);
    EXPECT_NE(cpu::kda_forward_refuses(p.forward()), nullptr);
    EXPECT_NE(cpu::kda_backward_refuses(p.backward()), nullptr);
    expect_close(p, bound_of(DType::f32, c.keys), "not a multiple of 16");
  }
}

TEST(Kda, OddAndWideHeadsMatchFloat64) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [d_k, d_v] : {std::pair{1, 1}, {37, 9}, {250, 144}, {256, 256}}) {
      const Case c{1, 70, 1, d_k, d_v, Decay::softplus, Keys::random};
      expect_close(Problem(dtype, c), bound_of(dtype, c.keys), fmt::format("{} {} {}", name_of(dtype), d_k, d_v));
    }
  }
}

// Whole states forgotten from one token to the next, and tokens that write nothing or everything.
TEST(Kda, ExtremesOfGatesStayFinite) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Case c{1, 130, 2, 32, 32, Decay::zero, Keys::random};
    const Problem p(dtype, c);
    for (int64_t n = 0; n < p.g.view().num_elements(); n += 3) test::set(p.g, n, n % 2 == 0 ? -1000 : -0.5);
    for (int64_t n = 0; n < p.beta.num_elements(); n += 2) test::set(p.beta, n, n % 4 == 0 ? 0 : 1);
    expect_close(p, bound_of(dtype, c.keys), std::string(name_of(dtype)));
  }
}

// Longer than what backward keeps the chunks of: 128 of them.
TEST(Kda, BackwardOfLongSequencesGoesSpanBySpan) {
  const Case c{1, 3 * 128 * 64 + 70, 1, 16, 16, Decay::mild, Keys::random};
  expect_close(Problem(DType::f32, c), bound_of(DType::f32, c.keys), "long");
}

TEST(Kda, OptionalStatesAreZeroOrNotWanted) {
  const std::pair<DType, Case> cases[] = {{DType::f32, {2, 70, 2, 16, 32}}, {DType::bf16, {1, 200, 1, 128, 128}}};
  for (const auto& [dtype, c] : cases) {
    const Problem with(dtype, c), without(dtype, c);
    TestContext context;
    test::fill(with.initial, 0);
    test::fill(with.d_final, 0);
    kda_forward(context.fastest, with.forward());
    kda_backward(context.fastest, with.backward());
    KdaForward forward = without.forward();
    forward.initial_state = forward.final_state = {};
    kda_forward(context.fastest, forward);
    KdaBackward backward = without.backward();
    backward.initial_state = backward.d_final_state = backward.d_initial_state = {};
    kda_backward(context.fastest, backward);
    EXPECT_EQ(test::values(with.o), test::values(without.o));
    EXPECT_EQ(test::values(with.dq), test::values(without.dq));
    EXPECT_EQ(test::values(with.dk), test::values(without.dk));
    EXPECT_EQ(test::values(with.dv), test::values(without.dv));
    EXPECT_EQ(test::values(with.dg), test::values(without.dg));
    EXPECT_EQ(test::values(with.dbeta), test::values(without.dbeta));
  }
}

// Of one sequence: each token's first token of its document.
Tensor starts_of(const std::vector<int64_t>& cuts) {
  Tensor starts = test::zeros(DType::i32, {1, cuts.back()});
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    for (int64_t t = cuts[i]; t < cuts[i + 1]; ++t) test::set(starts, t, static_cast<double>(cuts[i]));
  }
  return starts;
}

// Bit for bit: a document's chunks begin at its own first token.
TEST(Kda, PackedDocumentsAreSeparateRuns) {
  TestContext context;
  const std::vector<int64_t> cuts = {0, 30, 31, 160, 224};
  const Case c{1, cuts.back(), 2, 16, 32, Decay::softplus, Keys::random};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Problem packed(dtype, c);
    const Problem apart(dtype, c);
    const Tensor starts = starts_of(cuts);
    packed.starts = starts;
    kda_forward(context.fastest, packed.forward());
    kda_backward(context.fastest, packed.backward());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const bool first = i == 0, last = i + 2 == cuts.size();
      const auto part = [&](const TensorView& view) { return view.slice(1, cuts[i], cuts[i + 1]); };
      const Problem& p = apart;
      kda_forward(context.fastest, {part(p.q),
                                    part(p.k),
                                    part(p.v),
                                    part(p.g),
                                    part(p.beta),
                                    p.scale,
                                    {},
                                    first ? p.initial.view() : TensorView(),
                                    part(p.o),
                                    last ? p.final_state.view() : TensorView()});
      kda_backward(context.fastest, {part(p.q),
                                     part(p.k),
                                     part(p.v),
                                     part(p.g),
                                     part(p.beta),
                                     p.scale,
                                     {},
                                     first ? p.initial.view() : TensorView(),
                                     part(p.d_o),
                                     last ? p.d_final.view() : TensorView(),
                                     part(p.dq),
                                     part(p.dk),
                                     part(p.dv),
                                     part(p.dg),
                                     part(p.dbeta),
                                     first ? p.d_initial.view() : TensorView()});
    }
    EXPECT_EQ(test::values(packed.o), test::values(apart.o));
    EXPECT_EQ(test::values(packed.final_state), test::values(apart.final_state));
    EXPECT_EQ(test::values(packed.dq), test::values(apart.dq));
    EXPECT_EQ(test::values(packed.dk), test::values(apart.dk));
    EXPECT_EQ(test::values(packed.dv), test::values(apart.dv));
    EXPECT_EQ(test::values(packed.dg), test::values(apart.dg));
    EXPECT_EQ(test::values(packed.dbeta), test::values(apart.dbeta));
    EXPECT_EQ(test::values(packed.d_initial), test::values(apart.d_initial));
    expect_close(packed, bound_of(dtype, c.keys), "packed");
  }
}

// The heads that GPUs have kernels of their own for, and lengths at which those bring chunks to places that were used before: from
// the third chunk on.
TEST(Kda, ManyChunksOfHeadsOf128) {
  for (const int64_t num_tokens : {129, 192, 200, 256, 500}) {
    const Case c{1, num_tokens, 1, 128, 128, Decay::softplus, Keys::random};
    expect_close(Problem(DType::bf16, c), bound_of(DType::bf16, c.keys), fmt::format("{} tokens", num_tokens));
  }
}

TEST(Kda, ManyChunksOfHeadsOf128InDocuments) {
  const std::vector<int64_t> cuts = {0, 150, 151, 360, 500};
  const Case c{1, cuts.back(), 1, 128, 128, Decay::mild, Keys::random};
  Problem p(DType::bf16, c);
  const Tensor starts = starts_of(cuts);
  p.starts = starts;
  expect_close(p, bound_of(DType::bf16, c.keys), "packed");
}

// The general kernels take what those for 128 columns do not: rows that start anywhere.
TEST(Kda, HeadsOf128AreAsInTheGeneralKernels) {
  TestContext context;
  const std::vector<int64_t> cuts = {0, 200, 330};
  Case c{1, cuts.back(), 1, 128, 128, Decay::bounded, Keys::random};
  Problem aligned(DType::bf16, c);
  c.margin = 1;
  Problem odd(DType::bf16, c);
  const std::pair<const Heads*, const Heads*> inputs[] = {
      {&aligned.q, &odd.q}, {&aligned.k, &odd.k}, {&aligned.v, &odd.v}, {&aligned.g, &odd.g}, {&aligned.d_o, &odd.d_o}};
  for (const auto& [from, to] : inputs) {
    for (int64_t n = 0; n < from->view().num_elements(); ++n) test::set(*to, n, test::get(*from, n));
  }
  const Tensor starts = starts_of(cuts);
  aligned.starts = odd.starts = starts;
  for (const Problem* p : {&aligned, &odd}) {
    kda_forward(context.fastest, p->forward());
    kda_backward(context.fastest, p->backward());
  }
  // The same sums in the same order; only the compiler's choice of fused multiply-adds may differ.
  const auto got = aligned.results(), want = odd.results();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_LE(rms_error(got[i].second, want[i].second), 2e-3) << got[i].first;
}

TEST(Kda, ResultsDoNotDependOnTheNumberOfThreads) {
  const Case c{2, 130, 3, 16, 16, Decay::bounded, Keys::random};
  const Problem one(DType::f32, c), three(DType::f32, c);
  TestContext context;
  const int before = lamina::cpu::num_threads();
  lamina::cpu::set_num_threads(1);
  kda_forward(context.fastest, one.forward());
  kda_backward(context.fastest, one.backward());
  lamina::cpu::set_num_threads(3);
  kda_forward(context.fastest, three.forward());
  kda_backward(context.fastest, three.backward());
  lamina::cpu::set_num_threads(before);
  EXPECT_EQ(test::values(one.o), test::values(three.o));
  EXPECT_EQ(test::values(one.dg), test::values(three.dg));
  EXPECT_EQ(test::values(one.dk), test::values(three.dk));
}

TEST(Kda, NothingToDo) {
  TestContext context;
  for (const Backend backend : {Backend::fastest, Backend::reference}) {
    OpContext& ctx = backend == Backend::fastest ? context.fastest : context.reference;
    Case c;
    c.num_tokens = 0, c.heads = 2;
    const Problem p(DType::f32, c);  // the state passes through
    kda_forward(ctx, p.forward());
    EXPECT_EQ(test::values(p.final_state), test::values(p.initial));
    kda_backward(ctx, p.backward());
    EXPECT_EQ(test::values(p.d_initial), test::values(p.d_final));
    c.num_tokens = 3, c.batch = 0;
    const Problem none(DType::f32, c);
    kda_forward(ctx, none.forward());
    kda_backward(ctx, none.backward());
  }
}

TEST(Kda, RefusesWhatDoesNotFit) {
  TestContext context;
  const Case c{1, 5, 2, 16, 32, Decay::mild, Keys::random};
  const Problem p(DType::f32, c);
  const Tensor wrong = test::zeros(DType::f32, {1, 5, 2, 24}), bf = test::zeros(DType::bf16, p.key),
               starts = test::zeros(DType::i32, {1, 5}), short_starts = test::zeros(DType::i32, {1, 4});
  const auto forward = [&](auto&& change) {
    KdaForward args = p.forward();
    change(args);
    EXPECT_THROW(kda_forward(context.fastest, args), InternalError);
  };
  forward([&](KdaForward& a) { a.k = wrong; });
  forward([&](KdaForward& a) { a.v = p.beta; });
  forward([&](KdaForward& a) { a.v = bf; });
  forward([&](KdaForward& a) { a.g = bf; });
  forward([&](KdaForward& a) { a.beta = {}; });
  forward([&](KdaForward& a) { a.o = wrong; });
  forward([&](KdaForward& a) { a.initial_state = wrong; });
  forward([&](KdaForward& a) { a.final_state = p.final_state->transposed(); });
  forward([&](KdaForward& a) { a.document_starts = short_starts; });
  test::set(starts, 2, 1);
  forward([&](KdaForward& a) { a.document_starts = starts; });
  const auto backward = [&](auto&& change) {
    KdaBackward args = p.backward();
    change(args);
    EXPECT_THROW(kda_backward(context.fastest, args), InternalError);
  };
  backward([&](KdaBackward& a) { a.d_o = wrong; });
  backward([&](KdaBackward& a) { a.dq = wrong; });
  backward([&](KdaBackward& a) { a.dk = bf; });
  backward([&](KdaBackward& a) { a.dv = wrong; });
  backward([&](KdaBackward& a) { a.dg = bf; });
  backward([&](KdaBackward& a) { a.dbeta = {}; });
  backward([&](KdaBackward& a) { a.d_final_state = wrong; });
  backward([&](KdaBackward& a) { a.d_initial_state = wrong; });
}

}  // namespace
}  // namespace lamina::ops
