// w (.) g of each query as padded fp32 vectors, and the way back from its gradient.
#pragma once

#include "core/ops/attn_res/attn_res.h"
#include "core/ops/simd/parameters.h"

namespace lamina::ops::cpu {

// What the merge's backward reads, and what it adds to for one part of the tokens; [padded(dim)] each.
struct MergeVectors {
  const float* wg;
  const float* norm_weight;
  float* dnorm_weight;
  float* dwg;
};

inline const float* weighted_queries(OpContext& ctx, std::span<const AttnResQuery> queries) {
  const int64_t dim = queries[0].query.size(0);
  float* out = zeros(ctx, static_cast<int64_t>(queries.size()), dim);
  for (size_t q = 0; q < queries.size(); ++q) {
    float* vector = out + static_cast<int64_t>(q) * padded(dim);
    for (int64_t i = 0; i < dim; ++i) {
      vector[i] = element_of(queries[q].query, i) * element_of(queries[q].norm_weight, i);
    }
  }
  return out;
}

// `gradient` is that of w (.) g.
inline void add_query_gradient(const AttnResQuery& query, const AttnResQueryGradient& dquery, const float* gradient) {
  for (int64_t i = 0; i < query.query.size(0); ++i) {
    dquery.query.as<float>()[i] += gradient[i] * element_of(query.norm_weight, i);
    dquery.norm_weight.as<float>()[i] += gradient[i] * element_of(query.query, i);
  }
}

}  // namespace lamina::ops::cpu
