#include "core/ops/attn_res/implementations.h"

#include <algorithm>
#include <cmath>

#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

template <class A>
A& at(const TensorView& v, int64_t i, int64_t j) {
  return v.as<A>()[i * v.stride(0) + j * v.stride(1)];
}
template <class A>
A& at(const TensorView& v, int64_t i, int64_t j, int64_t k) {
  return v.as<A>()[i * v.stride(0) + j * v.stride(1) + k * v.stride(2)];
}

// to += factor * from
template <class A>
void add_scaled(Row<A>& to, A factor, const Row<A>& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += factor * from[i];
}

template <class A>
A rstd_of(const Row<A>& row, double eps) {
  return A(1) / std::sqrt(dot(row, row) / static_cast<A>(row.size()) + static_cast<A>(eps));
}

// w (.) g
template <class A>
Row<A> weighted_query(const AttnResQuery& query) {
  Row<A> out = load_vector<A>(query.query);
  const Row<A> g = load_vector<A>(query.norm_weight);
  for (size_t i = 0; i < out.size(); ++i) out[i] *= g[i];
  return out;
}

// From the gradient of w (.) g to those of w and of g.
template <class A>
void add_query_gradient(const AttnResQuery& query, const AttnResQueryGradient& dquery, const Row<A>& dwg) {
  const Row<A> w = load_vector<A>(query.query), g = load_vector<A>(query.norm_weight);
  for (size_t i = 0; i < dwg.size(); ++i) {
    dquery.query.as<A>()[i] += dwg[i] * g[i];
    dquery.norm_weight.as<A>()[i] += dwg[i] * w[i];
  }
}

template <class A>
void phase1_forward(const AttnResPhase1Forward& args) {
  const size_t n = args.sources.size(), num_queries = args.queries.size();
  std::vector<Row<A>> wg;
  for (const AttnResQuery& query : args.queries) wg.push_back(weighted_query<A>(query));
  for (int64_t t = 0; t < args.sources[0].size(0); ++t) {
    std::vector<Row<A>> v;
    for (size_t j = 0; j < n; ++j) {
      v.push_back(load_row<A>(args.sources[j], t));
      at<A>(args.rstd, static_cast<int64_t>(j), t) = rstd_of(v[j], args.eps);
    }
    for (size_t q = 0; q < num_queries; ++q) {
      std::vector<A> logit(n);
      for (size_t j = 0; j < n; ++j) {
        logit[j] = at<A>(args.rstd, static_cast<int64_t>(j), t) * dot(v[j], wg[q]);
        at<A>(args.logit, static_cast<int64_t>(q), static_cast<int64_t>(j), t) = logit[j];
      }
      const A largest = *std::max_element(logit.begin(), logit.end());
      A sum = 0;
      for (const A l : logit) sum += std::exp(l - largest);
      const A lse = largest + std::log(sum);
      at<A>(args.lse, static_cast<int64_t>(q), t) = lse;
      Row<A> mean(v[0].size());
      for (size_t j = 0; j < n; ++j) add_scaled(mean, std::exp(logit[j] - lse), v[j]);
      store_row(args.mean[q], t, mean);
    }
  }
}

// log(exp(a) + exp(b))
template <class A>
A log_add_exp(A a, A b) {
  return std::max(a, b) + std::log1p(std::exp(-std::abs(a - b)));
}

template <class A>
void merge_forward(const AttnResMergeForward& args) {
  const Row<A> wg = weighted_query<A>(args.query), norm_weight = load_vector<A>(args.norm_weight);
  const TensorView& partial_sum = args.delta ? args.partial_sum : args.partial;
  for (int64_t t = 0; t < args.mean.size(0); ++t) {
    Row<A> h = load_row<A>(args.mean, t);
    A lse = args.lse.as<A>()[t];
    if (args.partial) {
      if (args.delta) {
        Row<A> sum = load_row<A>(args.partial, t);
        add_scaled(sum, A(1), load_row<A>(args.delta, t));
        store_row(args.partial_sum, t, sum);
      }
      const Row<A> p = load_row<A>(partial_sum, t);  // what was stored, rounded: backward will read the same
      const A rstd = rstd_of(p, args.eps);
      const A logit = rstd * dot(p, wg);
      const A a = A(1) / (A(1) + std::exp(lse - logit));
      for (size_t i = 0; i < h.size(); ++i) h[i] = (A(1) - a) * h[i] + a * p[i];
      args.partial_rstd.as<A>()[t] = rstd;
      args.partial_logit.as<A>()[t] = logit;
      lse = log_add_exp(lse, logit);
    }
    args.lse_total.as<A>()[t] = lse;
    store_row(args.h, t, h);
    const A h_rstd = rstd_of(h, args.norm_eps);
    args.h_rstd.as<A>()[t] = h_rstd;
    for (size_t i = 0; i < h.size(); ++i) h[i] *= h_rstd * norm_weight[i];
    store_row(args.y, t, h);
  }
}

template <class A>
void merge_backward(const AttnResMergeBackward& args) {
  const Row<A> wg = weighted_query<A>(args.query), norm_weight = load_vector<A>(args.norm_weight);
  const A dim = static_cast<A>(args.h.size(1));
  Row<A> dwg(wg.size());
  for (int64_t t = 0; t < args.h.size(0); ++t) {
    const Row<A> h = load_row<A>(args.h, t);
    Row<A> dh = load_row<A>(args.dy, t);
    const A h_rstd = args.h_rstd.as<A>()[t];
    for (size_t i = 0; i < dh.size(); ++i) {
      args.dnorm_weight.as<A>()[i] += dh[i] * h[i] * h_rstd;
      dh[i] *= norm_weight[i];
    }
    const A projection = dot(dh, h) * h_rstd * h_rstd / dim;
    for (size_t i = 0; i < dh.size(); ++i) dh[i] = h_rstd * (dh[i] - projection * h[i]);
    store_row(args.dh, t, dh);
    const A dh_dot_h = dot(dh, h);
    args.dh_dot_h.as<A>()[t] = dh_dot_h;
    if (!args.partial) continue;
    const Row<A> p = load_row<A>(args.partial, t);
    const A rstd = args.partial_rstd.as<A>()[t], logit = args.partial_logit.as<A>()[t];
    const A a = std::exp(logit - args.lse_total.as<A>()[t]);
    const A s = a * (dot(dh, p) - dh_dot_h);
    Row<A> dp(p.size());
    add_scaled(dp, a, dh);
    add_scaled(dp, s * rstd, wg);
    add_scaled(dp, -s * logit * rstd * rstd / dim, p);
    store_row(args.dpartial, t, dp, args.dpartial_mode);
    add_scaled(dwg, s * rstd, p);
  }
  if (args.partial) add_query_gradient(args.query, args.dquery, dwg);
}

template <class A>
void phase1_backward(const AttnResPhase1Backward& args) {
  const size_t num_queries = args.queries.size();
  const A dim = static_cast<A>(args.sources[0].size(1));
  std::vector<Row<A>> wg, dwg;
  for (const AttnResQuery& query : args.queries) {
    wg.push_back(weighted_query<A>(query));
    dwg.emplace_back(wg[0].size());
  }
  for (int64_t t = 0; t < args.sources[0].size(0); ++t) {
    std::vector<Row<A>> dh;
    for (const TensorView& view : args.dh) dh.push_back(load_row<A>(view, t));
    for (size_t j = 0; j < args.sources.size(); ++j) {
      const int64_t source = static_cast<int64_t>(j);
      const Row<A> v = load_row<A>(args.sources[j], t);
      const A rstd = at<A>(args.rstd, source, t);
      Row<A> dv(v.size());
      for (size_t q = 0; q < num_queries; ++q) {
        const A logit = at<A>(args.logit, static_cast<int64_t>(q), source, t);
        const A a = std::exp(logit - args.lse_total[q].as<A>()[t]);
        const A s = a * (dot(dh[q], v) - args.dh_dot_h[q].as<A>()[t]);
        add_scaled(dv, a, dh[q]);
        add_scaled(dv, s * rstd, wg[q]);
        add_scaled(dv, -s * logit * rstd * rstd / dim, v);
        add_scaled(dwg[q], s * rstd, v);
      }
      store_row(args.dsources[j], t, dv, args.dsource_modes[j]);
    }
  }
  for (size_t q = 0; q < num_queries; ++q) add_query_gradient(args.queries[q], args.dqueries[q], dwg[q]);
}

template <class A>
void depth_weights(const AttnResDepthWeights& args) {
  const int64_t n = args.logit.size(0), tokens = args.lse_total.size(0);
  std::fill(args.weights.begin(), args.weights.end(), 0.0);
  double entropy = 0, largest = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    A most = 0;
    for (size_t j = 0; j < args.weights.size(); ++j) {
      const auto source = static_cast<int64_t>(j);
      const A logit = source < n ? at<A>(args.logit, source, t) : args.partial_logit.as<A>()[t];
      const A log_weight = logit - args.lse_total.as<A>()[t], weight = std::exp(log_weight);
      args.weights[j] += static_cast<double>(weight);
      entropy -= static_cast<double>(weight * log_weight);
      most = std::max(most, weight);
    }
    largest += static_cast<double>(most);
  }
  const double mean = tokens == 0 ? 0.0 : 1.0 / static_cast<double>(tokens);
  for (double& weight : args.weights) weight *= mean;
  *args.entropy = entropy * mean;
  *args.largest_weight = largest * mean;
}

template <class A>
void source_cosines(const AttnResSourceCosines& args) {
  const int64_t tokens = args.sources[0].size(0),
                step = std::max<int64_t>(1, (tokens + args.num_tokens - 1) / args.num_tokens);
  std::fill(args.cosines.begin(), args.cosines.end(), 0.0);
  int64_t count = 0;
  for (int64_t t = 0; t < tokens; t += step, ++count) {
    std::vector<Row<A>> rows;
    for (const TensorView& source : args.sources) {
      Row<A>& row = rows.emplace_back(load_row<A>(source, t));
      const A norm = std::sqrt(dot(row, row));
      for (A& x : row) x = norm > 0 ? x / norm : A(0);
    }
    size_t pair = 0;
    for (size_t i = 0; i < rows.size(); ++i)
      for (size_t j = i + 1; j < rows.size(); ++j) args.cosines[pair++] += static_cast<double>(dot(rows[i], rows[j]));
  }
  for (double& cosine : args.cosines) cosine /= static_cast<double>(std::max<int64_t>(count, 1));
}

}  // namespace

void attn_res_phase1_forward(OpContext&, const AttnResPhase1Forward& args) {
  visit_acc(args.sources[0].dtype, [&]<class A>(A) { phase1_forward<A>(args); });
}
void attn_res_merge_forward(OpContext&, const AttnResMergeForward& args) {
  visit_acc(args.mean.dtype, [&]<class A>(A) { merge_forward<A>(args); });
}
void attn_res_merge_backward(OpContext&, const AttnResMergeBackward& args) {
  visit_acc(args.h.dtype, [&]<class A>(A) { merge_backward<A>(args); });
}
void attn_res_phase1_backward(OpContext&, const AttnResPhase1Backward& args) {
  visit_acc(args.sources[0].dtype, [&]<class A>(A) { phase1_backward<A>(args); });
}
void attn_res_depth_weights(OpContext&, const AttnResDepthWeights& args) {
  visit_acc(args.logit.dtype, [&]<class A>(A) { depth_weights<A>(args); });
}
void attn_res_source_cosines(OpContext&, const AttnResSourceCosines& args) {
  visit_acc(args.sources[0].dtype, [&]<class A>(A) { source_cosines<A>(args); });
}

}  // namespace lamina::ops::ref
