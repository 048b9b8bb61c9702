#include "core/ops/attn_res/attn_res.h"

#include <numeric>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/elementwise/elementwise.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Gradients through the softmax: a = exp(logit - lse) loses eps |logit - lse|, and <dh, v> - <dh, h> cancels. That is worth
// a sum this much longer.
constexpr int64_t softmax_depth = 4000;

// A query's gradient sums <dh, v> - <dh, h> over tokens; with a single source that is zero. These are the terms' sizes.
double size_of_query_terms(int64_t tokens, int64_t dim) {
  return std::sqrt(static_cast<double>(tokens * dim));
}

enum class Sum { none, partial, partial_and_delta };

struct Problem {
  DType dtype = DType::f64;
  int64_t tokens = 3, dim = 8;
  int n = 2, num_queries = 2;
  Sum sum = Sum::partial_and_delta;
  DType parameter_dtype = DType::f64;
  DType gradient_dtype = DType::f64;  // of dh and dpartial
  double query_size = 0.5;            // logits are of this size times sqrt(dim)
};

// One block's reads: n sources, Q queries, each query but the first with a partial sum of its own.
class Read {
 public:
  explicit Read(const Problem& problem) : p(problem), acc(accumulation_dtype(problem.dtype)) {
    const Shape rows{p.tokens, p.dim}, row{p.dim};
    const auto add = [](std::vector<Tensor>& list, Tensor tensor) { list.push_back(std::move(tensor)); };
    for (int j = 0; j < p.n; ++j) {
      add(source, test::normal(p.dtype, rows, 100 + static_cast<uint64_t>(j), 1.0 + j));
      add(dsource, test::poisoned(acc, rows));
    }
    for (int q = 0; q < p.num_queries; ++q) {
      const uint64_t stream = 200 + 10 * static_cast<uint64_t>(q);
      add(w, test::normal(p.parameter_dtype, row, stream, p.query_size));
      add(g, test::normal(p.parameter_dtype, row, stream + 1));
      add(norm_weight, test::normal(p.parameter_dtype, row, stream + 2));
      add(partial, test::normal(p.dtype, rows, stream + 3));
      add(delta, test::normal(p.dtype, rows, stream + 4));
      add(dy, test::normal(p.dtype, rows, stream + 5));
      for (auto* list : {&mean, &sum, &h, &y}) add(*list, test::poisoned(p.dtype, rows));
      for (auto* list : {&partial_rstd, &partial_logit, &lse_total, &h_rstd, &dh_dot_h}) {
        add(*list, test::poisoned(acc, {p.tokens}));
      }
      for (auto* list : {&dw, &dg, &dnorm_weight}) add(*list, test::zeros(acc, row));
      for (auto* list : {&dh, &dpartial}) add(*list, test::poisoned(p.gradient_dtype, rows));
    }
    sources = views(source), means = views(mean), lse_totals = views(lse_total), dhs = views(dh);
    dh_dot_hs = views(dh_dot_h), dsources = views(dsource);
    modes.assign(sources.size(), GradMode::overwrite);
    for (size_t q = 0; q < w.size(); ++q) {
      queries.push_back({g[q], w[q]});
      dqueries.push_back({dg[q], dw[q]});
    }
  }

  bool has_partial(size_t q) const { return p.sum != Sum::none && (q > 0 || w.size() == 1); }
  bool has_delta(size_t q) const { return has_partial(q) && p.sum == Sum::partial_and_delta; }

  AttnResPhase1Forward phase1() const { return {sources, queries, eps, means, rstd, logit, lse}; }
  AttnResMergeForward merge(size_t q) const {
    AttnResMergeForward args;
    args.mean = mean[q], args.lse = lse->select(0, static_cast<int64_t>(q));
    if (has_partial(q)) args.partial = partial[q];
    if (has_delta(q)) args.delta = delta[q], args.partial_sum = sum[q];
    args.query = queries[q], args.eps = eps, args.norm_weight = norm_weight[q], args.norm_eps = norm_eps;
    args.h = h[q], args.y = y[q], args.lse_total = lse_total[q], args.h_rstd = h_rstd[q];
    if (has_partial(q)) args.partial_rstd = partial_rstd[q], args.partial_logit = partial_logit[q];
    return args;
  }
  AttnResMergeBackward merge_backward(size_t q) const {
    AttnResMergeBackward args;
    args.h = h[q], args.h_rstd = h_rstd[q], args.norm_weight = norm_weight[q], args.dy = dy[q];
    args.query = queries[q], args.dh = dh[q], args.dh_dot_h = dh_dot_h[q], args.dnorm_weight = dnorm_weight[q];
    if (has_partial(q)) {
      args.partial = has_delta(q) ? sum[q] : partial[q];
      args.partial_rstd = partial_rstd[q], args.partial_logit = partial_logit[q], args.lse_total = lse_total[q];
      args.dpartial = dpartial[q], args.dpartial_mode = GradMode::overwrite, args.dquery = dqueries[q];
    }
    return args;
  }
  AttnResPhase1Backward phase1_backward() const {
    return {sources, queries, rstd, logit, lse_totals, dhs, dh_dot_hs, dsources, modes, dqueries};
  }

  void forward(OpContext& ctx) const {
    attn_res_phase1_forward(ctx, phase1());
    for (size_t q = 0; q < w.size(); ++q) attn_res_merge_forward(ctx, merge(q));
  }
  void backward(OpContext& ctx) const {
    for (size_t q = 0; q < w.size(); ++q) attn_res_merge_backward(ctx, merge_backward(q));
    attn_res_phase1_backward(ctx, phase1_backward());
  }

  static std::vector<TensorView> views(const std::vector<Tensor>& tensors) { return {tensors.begin(), tensors.end()}; }

  Problem p;
  DType acc;
  double eps = 1e-5, norm_eps = 1e-6;
  std::vector<Tensor> source, dsource, w, g, norm_weight, partial, delta, dy, mean, sum, h, y, partial_rstd,
      partial_logit, lse_total, h_rstd, dh_dot_h, dw, dg, dnorm_weight, dh, dpartial;
  Tensor rstd = test::poisoned(acc, {p.n, p.tokens}), logit = test::poisoned(acc, {p.num_queries, p.n, p.tokens}),
         lse = test::poisoned(acc, {p.num_queries, p.tokens});
  std::vector<TensorView> sources, means, lse_totals, dhs, dh_dot_hs, dsources;
  std::vector<GradMode> modes;
  std::vector<AttnResQuery> queries;
  std::vector<AttnResQueryGradient> dqueries;
};

std::vector<double> row_of(const TensorView& v, int64_t t) {
  const double* begin = v.as<double>() + t * v.size(1);
  return {begin, begin + v.size(1)};
}

// The read as the paper writes it: one softmax over all sources of token t, then the PreNorm. Float64.
struct Textbook {
  std::vector<double> h, y, weights;
  double lse = 0;
};
Textbook textbook_read(const Read& read, size_t q, int64_t t) {
  const size_t dim = static_cast<size_t>(read.p.dim);
  std::vector<std::vector<double>> v;
  for (const Tensor& source : read.source) v.push_back(row_of(source, t));
  if (read.has_partial(q)) v.push_back(row_of(read.partial[q], t));
  if (read.has_delta(q)) {
    const auto delta = row_of(read.delta[q], t);
    for (size_t i = 0; i < dim; ++i) v.back()[i] += delta[i];
  }
  const double *w = read.w[q]->as<double>(), *g = read.g[q]->as<double>();
  Textbook out{std::vector<double>(dim), std::vector<double>(dim), {}, 0};
  double denominator = 0;
  for (const auto& key : v) {
    double square = 0, product = 0;
    for (size_t i = 0; i < dim; ++i) square += key[i] * key[i];
    for (size_t i = 0; i < dim; ++i)
      product += w[i] * (g[i] * key[i] / std::sqrt(square / static_cast<double>(dim) + read.eps));
    out.weights.push_back(std::exp(product));
    denominator += out.weights.back();
  }
  out.lse = std::log(denominator);
  double square = 0;
  for (size_t j = 0; j < v.size(); ++j) {
    out.weights[j] /= denominator;
    for (size_t i = 0; i < dim; ++i) out.h[i] += out.weights[j] * v[j][i];
  }
  for (const double x : out.h) square += x * x;
  for (size_t i = 0; i < dim; ++i) {
    out.y[i] =
        read.norm_weight[q]->as<double>()[i] * out.h[i] / std::sqrt(square / static_cast<double>(dim) + read.norm_eps);
  }
  return out;
}

double textbook_loss(const Read& read) {
  double loss = 0;
  for (size_t q = 0; q < read.w.size(); ++q) {
    for (int64_t t = 0; t < read.p.tokens; ++t) {
      const auto y = textbook_read(read, q, t).y, dy = row_of(read.dy[q], t);
      loss += std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
    }
  }
  return loss;
}

// Five-point differences of the textbook loss in every element of `x` against `gradient`.
void expect_gradient(const Read& read, const TensorView& x, const TensorView& gradient, const char* what) {
  const double step = 1e-3;
  double largest = 1e-3, difference = 0;
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    double& value = x.as<double>()[i];
    const double before = value;
    const auto at = [&](double shift) {
      value = before + shift;
      const double loss = textbook_loss(read);
      value = before;
      return loss;
    };
    const double want = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
    const double got = gradient.as<double>()[i];
    ASSERT_FALSE(std::isnan(got)) << what;
    difference = std::max(difference, std::abs(got - want));
    largest = std::max(largest, std::abs(want));
  }
  EXPECT_LE(difference / largest, 2e-8) << what << ", n " << read.p.n << ", Q " << read.p.num_queries;
}

void check_forward_against_textbook(const Read& read) {
  for (size_t q = 0; q < read.w.size(); ++q) {
    for (int64_t t = 0; t < read.p.tokens; ++t) {
      const Textbook want = textbook_read(read, q, t);
      const auto h = row_of(read.h[q], t), y = row_of(read.y[q], t);
      for (size_t i = 0; i < h.size(); ++i) {
        EXPECT_NEAR(h[i], want.h[i], 2e-14 * (1 + std::abs(want.h[i])));
        EXPECT_NEAR(y[i], want.y[i], 2e-14 * (1 + std::abs(want.y[i])));
      }
      EXPECT_NEAR(read.lse_total[q]->as<double>()[t], want.lse, 2e-14 * (1 + std::abs(want.lse)));
    }
  }
}

TEST(AttnRes, ReferenceIsTheTextbookSoftmaxForwardAndBackward) {
  TestContext context;
  for (const Sum sum : {Sum::none, Sum::partial, Sum::partial_and_delta}) {
    for (int n = 1; n <= 6; ++n) {
      for (int num_queries = 1; num_queries <= 5; ++num_queries) {
        const Read read({DType::f64, 2, n % 2 == 1 ? 5 : 8, n, num_queries, sum});
        read.forward(context.reference);
        check_forward_against_textbook(read);
        read.backward(context.reference);
        if (n + num_queries > 6 && n != 6) continue;  // differences in every element are slow
        for (size_t j = 0; j < read.source.size(); ++j)
          expect_gradient(read, read.source[j], read.dsource[j], "source");
        for (size_t q = 0; q < read.w.size(); ++q) {
          expect_gradient(read, read.w[q], read.dw[q], "query");
          expect_gradient(read, read.g[q], read.dg[q], "query norm");
          expect_gradient(read, read.norm_weight[q], read.dnorm_weight[q], "PreNorm");
          if (read.has_partial(q)) expect_gradient(read, read.partial[q], read.dpartial[q], "partial");
          if (read.has_delta(q)) expect_gradient(read, read.delta[q], read.dpartial[q], "delta");
        }
      }
    }
  }
}

void check_phase1_forward(TestContext& context, const Read& read) {
  test::Mirror m;
  const auto args = read.phase1();
  std::vector<AttnResQuery> queries;
  for (const auto& query : args.queries) queries.push_back({m(query.norm_weight), m(query.query)});
  const auto sources = m(args.sources), means = m(args.mean);
  attn_res_phase1_forward(context.reference,
                          {sources, queries, args.eps, means, m(args.rstd), m(args.logit), m(args.lse)});
  attn_res_phase1_forward(context.fastest, args);
  for (const TensorView& mean : args.mean) EXPECT_MIRRORED(m, mean, read.p.dim);
  for (const TensorView& statistic : {args.rstd, args.logit, args.lse}) EXPECT_MIRRORED(m, statistic, read.p.dim);
}

// Of a logit whose terms don't happen to cancel: its root mean square over keys of random signs, which have size one.
double size_of_logit(const AttnResQuery& query) {
  double square = 0;
  for (int64_t i = 0; i < query.query.num_elements(); ++i)
    square += std::pow(test::get(query.query, i) * test::get(query.norm_weight, i), 2);
  return std::sqrt(square);
}

void check_merge_forward(TestContext& context, const AttnResMergeForward& args) {
  test::Mirror m;
  AttnResMergeForward want = args;
  if (args.delta) {  // statistics are those of the rounded sum
    attn_res_merge_forward(context.reference, args);
    want.partial = args.partial_sum;
    want.delta = want.partial_sum = TensorView();
    test::Mirror added;
    add(context.reference, {added(args.partial), added(args.delta), added(args.partial_sum)});
    EXPECT_LE(added.error(args.partial_sum), test::tolerance(args.partial.dtype, 1));
    for (const TensorView& out : {args.h, args.y, args.partial_rstd, args.partial_logit, args.lse_total, args.h_rstd}) {
      test::poison(out);
    }
  }
  for (TensorView* view :
       {&want.mean, &want.lse, &want.partial, &want.query.norm_weight, &want.query.query, &want.norm_weight, &want.h,
        &want.y, &want.partial_rstd, &want.partial_logit, &want.lse_total, &want.h_rstd}) {
    *view = m(*view);
  }
  attn_res_merge_forward(context.reference, want);
  if (args.delta) test::poison(args.partial_sum);
  attn_res_merge_forward(context.fastest, args);
  if (args.delta) {
    EXPECT_MIRRORED(m, args.partial_sum, 1);
  }
  const int64_t dim = args.h.size(1);
  for (const TensorView& out : {args.h, args.y, args.lse_total, args.h_rstd}) EXPECT_MIRRORED(m, out, dim);
  if (args.partial) {
    EXPECT_MIRRORED(m, args.partial_rstd, dim);
    EXPECT_MIRRORED(m, args.partial_logit, dim, size_of_logit(args.query));
  }
}

void check_merge_backward(TestContext& context, const AttnResMergeBackward& args) {
  test::Mirror m;
  AttnResMergeBackward want = args;
  for (TensorView* view :
       {&want.h, &want.h_rstd, &want.norm_weight, &want.dy, &want.partial, &want.partial_rstd, &want.partial_logit,
        &want.lse_total, &want.query.norm_weight, &want.query.query, &want.dh, &want.dh_dot_h, &want.dpartial,
        &want.dnorm_weight, &want.dquery.norm_weight, &want.dquery.query}) {
    *view = m(*view);
  }
  attn_res_merge_backward(context.reference, want);
  attn_res_merge_backward(context.fastest, args);
  const int64_t tokens = args.h.size(0), dim = args.h.size(1);
  EXPECT_MIRRORED(m, args.dh, dim);
  EXPECT_MIRRORED(m, args.dnorm_weight, tokens + dim);
  // <dh, h> nearly vanishes (h / |h| is what the PreNorm lets through), so its error is that of |dh| |h|, not its own.
  for (int64_t t = 0; t < tokens; ++t) {
    double dh = 0, h = 0;
    for (int64_t i = 0; i < dim; ++i) {
      dh += std::pow(test::get(want.dh, t * dim + i), 2);
      h += std::pow(test::get(want.h, t * dim + i), 2);
    }
    const double bound = (std::sqrt(dh * h) + 1) * test::epsilon_of(DType::f32) * 16;
    EXPECT_NEAR(test::get(args.dh_dot_h, t), test::get(want.dh_dot_h, t), bound);
  }
  if (!args.partial) return;
  const double terms = size_of_query_terms(tokens, dim);
  const int64_t depth = softmax_depth + 2 * dim;  // through s, the difference of two sums over dim
  EXPECT_MIRRORED(m, args.dpartial, depth);
  EXPECT_MIRRORED(m, args.dquery.query, depth, terms);
  EXPECT_MIRRORED(m, args.dquery.norm_weight, depth, terms);
}

void check_phase1_backward(TestContext& context, const Read& read) {
  test::Mirror m;
  const auto args = read.phase1_backward();
  std::vector<AttnResQuery> queries;
  std::vector<AttnResQueryGradient> dqueries;
  for (const auto& query : args.queries) queries.push_back({m(query.norm_weight), m(query.query)});
  for (const auto& dquery : args.dqueries) dqueries.push_back({m(dquery.norm_weight), m(dquery.query)});
  const auto sources = m(args.sources), lse = m(args.lse_total), dh = m(args.dh), dot = m(args.dh_dot_h),
             dsources = m(args.dsources);
  attn_res_phase1_backward(context.reference, {sources, queries, m(args.rstd), m(args.logit), lse, dh, dot, dsources,
                                               args.dsource_modes, dqueries});
  attn_res_phase1_backward(context.fastest, args);
  const int64_t depth = softmax_depth + 2 * read.p.dim;  // through s, the difference of two sums over dim
  for (const TensorView& dsource : args.dsources) EXPECT_MIRRORED(m, dsource, depth);
  const double terms = size_of_query_terms(read.p.tokens, read.p.dim);
  for (const auto& dquery : args.dqueries) {
    EXPECT_MIRRORED(m, dquery.query, depth, terms);
    EXPECT_MIRRORED(m, dquery.norm_weight, depth, terms);
  }
}

void check_parity(const Problem& problem) {
  SCOPED_TRACE(fmt::format("{} tokens {} dim {} n {} Q {} sum {} parameters {} gradients {}", name_of(problem.dtype),
                           problem.tokens, problem.dim, problem.n, problem.num_queries, static_cast<int>(problem.sum),
                           name_of(problem.parameter_dtype), name_of(problem.gradient_dtype)));
  TestContext context;
  Read read(problem);
  for (size_t j = 0; j < read.modes.size(); j += 2) {  // both modes in one call
    read.modes[j] = GradMode::accumulate;
    test::fill_normal(read.dsource[j], 900 + j);
  }
  check_phase1_forward(context, read);
  for (size_t q = 0; q < read.w.size(); ++q) check_merge_forward(context, read.merge(q));
  for (size_t q = 0; q < read.w.size(); ++q) {
    check_merge_backward(context, read.merge_backward(q));
    auto again = read.merge_backward(q);
    again.dpartial_mode = GradMode::accumulate;
    check_merge_backward(context, again);
  }
  check_phase1_backward(context, read);
  check_phase1_backward(context, read);
}

TEST(AttnRes, FastestMatchesFloat64) {
  uint64_t index = 0;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t dim : {8, 17, 64, 200}) {
      for (const int64_t tokens : {1, 3, 64, 130}) {
        for (const Sum sum : {Sum::none, Sum::partial, Sum::partial_and_delta}) {
          const int n = 1 + static_cast<int>(index % 6), num_queries = 1 + static_cast<int>(index % 5);
          const DType parameters = index % 2 == 0 ? DType::f32 : dtype, gradients = index % 3 == 0 ? DType::f32 : dtype;
          check_parity({dtype, tokens, dim, n, num_queries, sum, parameters, gradients});
          ++index;
        }
      }
    }
  }
}

TEST(AttnRes, FastestMatchesFloat64ForEveryCountOfSourcesAndQueries) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (int n = 1; n <= 6; ++n) {
      for (int num_queries = 1; num_queries <= 5; ++num_queries) {
        check_parity({dtype, 5, 37, n, num_queries, Sum::partial_and_delta, DType::f32, DType::f32});
      }
    }
  }
}

TEST(AttnRes, ManySourcesAndQueries) {
  check_parity({DType::f32, 7, 40, 61, 9, Sum::partial, DType::f32, DType::f32});
}

// Widths at which kernels change their ways of holding a row, with as many sources and queries as blocks of the paper have.
TEST(AttnRes, WideRows) {
  const auto f32 = DType::f32, bf16 = DType::bf16;
  check_parity({bf16, 5, 304, 10, 6, Sum::partial_and_delta, f32, bf16});
  check_parity({bf16, 3, 1168, 16, 8, Sum::partial, bf16, bf16});
  check_parity({bf16, 2, 2624, 9, 11, Sum::partial, f32, bf16});
  check_parity({bf16, 1, 4000, 3, 2, Sum::partial, f32, bf16});
  check_parity({bf16, 2, 2304, 19, 1, Sum::none, f32, f32});
  for (const DType dtype : {f32, bf16}) {
    check_parity({dtype, 2, 4104, 3, 2, Sum::partial_and_delta, f32, f32});
    check_parity({dtype, 1, 4099, 5, 3, Sum::partial, f32, dtype});
  }
}

// The shape of a 48B model. Also run on an emulated GPU of one multiprocessor, where a block has all tokens: enough to bring rows to
// each of its two to four places for them twice.
TEST(AttnRes, RowsOf2304) {
  check_parity({DType::bf16, 9, 2304, 10, 6, Sum::partial_and_delta, DType::f32, DType::bf16});
}

// The least and the most that kernels on tensor cores take. Smaller queries: exp would magnify the rounding of sums this long.
TEST(AttnRes, RowsOf1024And4096) {
  for (const int sources : {3, 16}) {
    check_parity({DType::bf16, 9, 1024, sources, 6, Sum::partial, DType::f32, DType::bf16, 0.1});
    check_parity({DType::bf16, 5, 4096, sources, 2, Sum::partial, DType::f32, DType::bf16, 0.1});
  }
}

// More tokens than a GPU has places for blocks, so that each has several.
TEST(AttnRes, ManyTokens) {
  check_parity({DType::bf16, 1201, 32, 9, 2, Sum::partial_and_delta, DType::f32, DType::bf16});
  check_parity({DType::f32, 1201, 12, 3, 3, Sum::partial_and_delta, DType::f32, DType::f32});
}

TEST(AttnRes, ZeroQueriesGiveThePlainMean) {
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Read read({dtype, 4, 17, 3, 2, Sum::partial, dtype, dtype});
    for (const Tensor& w : read.w) test::fill(w, 0.0);
    read.forward(context.fastest);
    for (int64_t i = 0; i < read.h[0]->num_elements(); ++i) {
      double sum = 0;
      for (const Tensor& source : read.source) sum += test::get(source, i);
      EXPECT_NEAR(test::get(read.h[0], i), sum / 3, 8 * test::epsilon_of(dtype) * 6);
      EXPECT_NEAR(test::get(read.h[1], i), (sum + test::get(read.partial[1], i)) / 4, 8 * test::epsilon_of(dtype) * 6);
    }
  }
}

// Logits far apart (exp would overflow in fp32) must not give infinities.
TEST(AttnRes, LargeLogits) {
  TestContext context;
  const Read read({DType::f32, 4, 64, 3, 2, Sum::partial, DType::f32, DType::f32});
  for (const Tensor& w : read.w) test::fill_normal(w, 5, 100.0);
  read.forward(context.fastest);
  read.backward(context.fastest);
  for (const auto* list : {&read.h, &read.y, &read.dh}) {
    for (const Tensor& tensor : *list) {
      for (const double value : test::values(tensor)) EXPECT_TRUE(std::isfinite(value));
    }
  }
}

TEST(AttnRes, PartialSumMayBePartialOrDelta) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Read read({dtype, 3, 33, 2, 2, Sum::partial_and_delta, DType::f32, DType::f32});
    read.forward(context.fastest);
    const auto want = test::values(read.y[1]), sum = test::values(read.sum[1]);
    const auto partial = test::values(read.partial[1]);
    for (const bool into_partial : {true, false}) {
      auto args = read.merge(1);
      args.partial_sum = into_partial ? args.partial : args.delta;
      test::poison(args.y);
      attn_res_merge_forward(context.fastest, args);
      EXPECT_EQ(test::values(args.y), want);
      EXPECT_EQ(test::values(args.partial_sum), sum);
      for (size_t i = 0; i < partial.size(); ++i) test::set(read.partial[1], static_cast<int64_t>(i), partial[i]);
    }
  }
}

TEST(AttnRes, TheSameBitsAtAnyNumberOfThreads) {
  TestContext context;
  const int before = lamina::cpu::num_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Problem problem{dtype, 571, 200, 4, 5, Sum::partial_and_delta, DType::f32, DType::f32};
    const Read one(problem);
    for (const int threads : {1, 2, 3, 4, 7}) {
      lamina::cpu::set_num_threads(threads);
      const Read many(problem);
      const Read& read = threads == 1 ? one : many;
      read.forward(context.fastest);
      read.backward(context.fastest);
      const auto expect_equal = [&, count = threads](const std::vector<Tensor>& found,
                                                     const std::vector<Tensor>& want) {
        ASSERT_EQ(found.size(), want.size());
        for (size_t i = 0; i < want.size(); ++i) {
          EXPECT_TRUE(test::values(found[i]) == test::values(want[i])) << count << " threads, " << i;
        }
      };
      expect_equal(read.y, one.y);
      expect_equal(read.dsource, one.dsource);
      expect_equal(read.dw, one.dw);
      expect_equal(read.dg, one.dg);
      expect_equal(read.dnorm_weight, one.dnorm_weight);
    }
  }
  lamina::cpu::set_num_threads(before);
}

TEST(AttnRes, DepthWeightsAreTheMeanSoftmax) {
  TestContext context;
  const Read read({DType::f64, 3, 8, 4, 2, Sum::partial});
  read.forward(context.reference);
  std::vector<double> weights(5), want(5);
  double entropy = 0, largest = 0, want_entropy = 0, want_largest = 0;
  attn_res_depth_weights(context.fastest, {read.logit->select(0, 1), read.partial_logit[1], read.lse_total[1], weights,
                                           &entropy, &largest});
  for (int64_t t = 0; t < 3; ++t) {
    const auto at = textbook_read(read, 1, t).weights;
    for (size_t j = 0; j < 5; ++j) {
      want[j] += at[j] / 3;
      want_entropy -= at[j] * std::log(at[j]) / 3;
    }
    want_largest += *std::max_element(at.begin(), at.end()) / 3;
  }
  for (size_t j = 0; j < 5; ++j) EXPECT_NEAR(weights[j], want[j], 1e-14);
  EXPECT_NEAR(std::accumulate(weights.begin(), weights.end(), 0.0), 1.0, 1e-14);
  EXPECT_NEAR(entropy, want_entropy, 1e-14);
  EXPECT_NEAR(largest, want_largest, 1e-14);
  std::span<double> four = std::span(weights).first(4);
  attn_res_depth_weights(context.fastest, {read.logit->select(0, 0), {}, read.lse_total[0], four, &entropy, &largest});
  EXPECT_NEAR(std::accumulate(four.begin(), four.end(), 0.0), 1.0, 1e-14);
  EXPECT_THROW(attn_res_depth_weights(context.fastest,
                                      {read.logit->select(0, 0), {}, read.lse_total[0], weights, &entropy, &largest}),
               InternalError);
}

// The fastest implementation in fp32 against the softmax of its own statistics, in double.
TEST(AttnRes, DepthWeightsInSinglePrecision) {
  TestContext context;
  const int64_t tokens = 1500;
  const Read read({DType::f32, tokens, 24, 3, 1, Sum::partial, DType::f32, DType::f32});
  read.forward(context.reference);
  std::vector<double> weights(4), want(4);
  double entropy = 0, largest = 0, want_entropy = 0, want_largest = 0;
  attn_res_depth_weights(context.fastest, {read.logit->select(0, 0), read.partial_logit[0], read.lse_total[0], weights,
                                           &entropy, &largest});
  for (int64_t t = 0; t < tokens; ++t) {
    double most = 0;
    for (size_t j = 0; j < 4; ++j) {
      const double logit =
          j < 3 ? static_cast<double>(read.logit->select(0, 0).as<float>()[static_cast<int64_t>(j) * tokens + t])
                : static_cast<double>(TensorView(read.partial_logit[0]).as<float>()[t]);
      const double a = std::exp(logit - static_cast<double>(TensorView(read.lse_total[0]).as<float>()[t]));
      want[j] += a / static_cast<double>(tokens);
      want_entropy -= a * std::log(a) / static_cast<double>(tokens);
      most = std::max(most, a);
    }
    want_largest += most / static_cast<double>(tokens);
  }
  for (size_t j = 0; j < 4; ++j) EXPECT_NEAR(weights[j], want[j], 1e-6);
  EXPECT_NEAR(entropy, want_entropy, 1e-6);
  EXPECT_NEAR(largest, want_largest, 1e-6);
}

// Of every third token; one source is zero, one is the double of another.
TEST(AttnRes, SourceCosinesAreMeansOverTokens) {
  TestContext context;
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const int64_t tokens = 10, dim = 37;
    std::vector<Tensor> sources;
    for (uint64_t i = 0; i < 4; ++i)
      sources.push_back(i == 2 ? test::zeros(dtype, {tokens, dim}) : test::normal(dtype, {tokens, dim}, 70 + i));
    for (int64_t i = 0; i < tokens * dim; ++i) set(sources[3], i, 2 * get(sources[0], i));
    const std::vector<TensorView> views(sources.begin(), sources.end());
    std::vector<double> cosines(6), want(6);
    attn_res_source_cosines(context.fastest, {views, 4, cosines});
    for (int64_t t = 0; t < tokens; t += 3) {
      size_t pair = 0;
      for (size_t i = 0; i < 4; ++i)
        for (size_t j = i + 1; j < 4; ++j, ++pair) {
          double dot = 0, a = 0, b = 0;
          for (int64_t d = 0; d < dim; ++d) {
            const double x = get(sources[i], t * dim + d), y = get(sources[j], t * dim + d);
            dot += x * y, a += x * x, b += y * y;
          }
          if (a > 0 && b > 0) want[pair] += dot / std::sqrt(a * b) / 4;
        }
    }
    for (size_t pair = 0; pair < 6; ++pair)
      EXPECT_NEAR(cosines[pair], want[pair], dtype == DType::f64 ? 1e-14 : 1e-6) << pair;
    EXPECT_NEAR(cosines[2], 1, 1e-6);  // (0, 3)
    EXPECT_EQ(cosines[1], 0);          // (0, 2)
  }
}

TEST(AttnRes, RefusesWhatDoesNotFit) {
  TestContext context;
  const Read read({DType::f32, 3, 8, 2, 2, Sum::partial_and_delta, DType::f32, DType::f32});
  const Tensor wrong = test::zeros(DType::f32, {3, 9});
  const auto phase1_fails = [&](auto change) {
    auto args = read.phase1();
    change(args);
    EXPECT_THROW(attn_res_phase1_forward(context.fastest, args), InternalError);
  };
  const std::vector<TensorView> mixed{read.source[0], wrong};
  phase1_fails([](auto& args) { args.sources = {}; });
  phase1_fails([](auto& args) { args.queries = {}; });
  phase1_fails([](auto& args) { args.mean = args.mean.first(1); });
  phase1_fails([&](auto& args) { args.sources = mixed; });
  phase1_fails([](auto& args) { args.rstd = {}; });
  phase1_fails([&](auto& args) { args.lse = args.logit; });
  const auto merge_fails = [&](auto change) {
    auto args = read.merge(1);
    change(args);
    EXPECT_THROW(attn_res_merge_forward(context.fastest, args), InternalError);
  };
  merge_fails([](auto& args) { args.partial_sum = {}; });
  merge_fails([](auto& args) { args.partial = {}; });
  merge_fails([](auto& args) { args.partial_rstd = {}; });
  merge_fails([&](auto& args) { args.h = wrong; });
  merge_fails([&](auto& args) { args.norm_weight = wrong; });
  const auto merge_backward_fails = [&](auto change) {
    auto args = read.merge_backward(1);
    change(args);
    EXPECT_THROW(attn_res_merge_backward(context.fastest, args), InternalError);
  };
  merge_backward_fails([](auto& args) { args.dpartial = {}; });
  merge_backward_fails([](auto& args) { args.dquery.query = {}; });
  merge_backward_fails([&](auto& args) { args.dy = wrong; });
  const auto phase1_backward_fails = [&](auto change) {
    auto args = read.phase1_backward();
    change(args);
    EXPECT_THROW(attn_res_phase1_backward(context.fastest, args), InternalError);
  };
  phase1_backward_fails([](auto& args) { args.dh = args.dh.first(1); });
  phase1_backward_fails([](auto& args) { args.dsource_modes = args.dsource_modes.first(1); });
  phase1_backward_fails([&](auto& args) { args.dsources = mixed; });
  phase1_backward_fails([](auto& args) { args.queries = {}; });
}

}  // namespace
}  // namespace lamina::ops
