#include "core/ops/experts/implementations.h"

#include <algorithm>

#include "core/ops/matmul/implementations.h"
#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

// A counting sort: stable, so an expert's pairs stay in the order of their rows.
template <class A>
void group(const GroupRows& args) {
  const int64_t num_pairs = args.chosen.num_elements(), k = args.chosen.size(1);
  const int32_t* chosen = args.chosen.as<int32_t>();
  const std::span offsets(args.offsets.as<int32_t>(), static_cast<size_t>(args.offsets.size(0)));
  std::fill(offsets.begin(), offsets.end(), 0);
  for (int64_t n = 0; n < num_pairs; ++n) {
    if (chosen[n] >= 0) ++offsets[static_cast<size_t>(chosen[n]) + 1];
  }
  for (size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
  std::vector<int32_t> next(offsets.begin(), offsets.end() - 1);
  for (int64_t n = 0; n < num_pairs; ++n) {
    int32_t& position = args.position.as<int32_t>()[n];
    position = -1;
    if (chosen[n] < 0) continue;
    const int32_t pair = next[static_cast<size_t>(chosen[n])]++;
    position = pair;
    args.row_of.as<int32_t>()[pair] = static_cast<int32_t>(n / k);
    args.pair_weight.as<A>()[pair] = args.weights.as<A>()[n];
  }
}

template <class A>
void combine(const CombineRows& args) {
  const int64_t k = args.position.size(1);
  for (int64_t t = 0; t < args.y.size(0); ++t) {
    Row<A> sum(static_cast<size_t>(args.y.size(1)));
    for (int64_t j = 0; j < k; ++j) {
      const int32_t position = args.position.as<int32_t>()[t * k + j];
      if (position < 0) continue;
      const Row<A> x = load_row<A>(args.x, position);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
    }
    store_row(args.y, t, sum, args.mode);
  }
}

// Calls body(expert, begin, end) for every expert with rows.
template <class Body>
void for_experts(const ExpertRows& rows, Body&& body) {
  const int32_t* offsets = rows.offsets.as<int32_t>();
  for (int64_t e = 0; e + 1 < rows.offsets.size(0); ++e) {
    if (offsets[e] < offsets[e + 1]) body(static_cast<size_t>(e), offsets[e], offsets[e + 1]);
  }
}

}  // namespace

void group_rows(OpContext&, const GroupRows& args) {
  visit_acc(args.weights.dtype, [&]<class A>(A) { group<A>(args); });
}

void gather_rows(OpContext&, const GatherRows& args) {
  visit_float(args.x.dtype, [&]<class T>(T) {
    for (int64_t r = 0; r < args.y.size(0); ++r) {
      const T* from = args.x.as<T>() + args.index.as<int32_t>()[r] * args.x.stride(0);
      std::copy_n(from, args.x.size(1), args.y.as<T>() + r * args.y.stride(0));
    }
  });
}

void combine_rows(OpContext&, const CombineRows& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) { combine<A>(args); });
}

void grouped_linear(OpContext& ctx, const GroupedLinear& args) {
  for_experts(args.rows, [&](size_t e, int64_t begin, int64_t end) {
    ref::matmul(ctx, Matmul{args.x.slice(0, begin, end), args.weights[e].transposed(), args.y.slice(0, begin, end)});
  });
}

void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args) {
  for_experts(args.rows, [&](size_t e, int64_t begin, int64_t end) {
    ref::matmul(ctx, Matmul{args.dy.slice(0, begin, end), args.weights[e], args.dx.slice(0, begin, end)});
  });
}

void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args) {
  for_experts(args.rows, [&](size_t e, int64_t begin, int64_t end) {
    ref::matmul(ctx, Matmul{args.dy.slice(0, begin, end).transposed(), args.x.slice(0, begin, end), args.dweights[e],
                            GradMode::accumulate});
  });
}

}  // namespace lamina::ops::ref
