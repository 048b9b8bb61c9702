// Manifold-constrained hyper-connections (mHC, arXiv 2512.24880) with a mixing matrix that is a convex combination of permutation
// matrices (mHC-lite, arXiv 2601.05732): doubly stochastic by construction, without Sinkhorn iterations.
//
// A token's residual state is n streams x_1 .. x_n of width dim, which lie one after the other: x [n dim]. Around a sublayer F
//   x'   = x rstd,  rstd = rsqrt(mean(x^2) + eps) over all n dim elements            (2512.24880, eq. 7)
//   pre  = sigmoid(alpha_pre W_pre x' + b_pre)       H_pre  [n]                       (eq. 8)
//   post = 2 sigmoid(alpha_post W_post x' + b_post)  H_post [n]
//   mix  = sum_k a_k P_k                             H_res  [n, n]                    (2601.05732)
//          a = softmax(alpha_res W_res x' + b_res)   [n!]
//   h    = sum_j pre_j x_j,  y = F(h)
//   x_i <- sum_j mix_ij x_j + post_i y                                                (2512.24880, eq. 3)
// P_k is the matrix of the k-th permutation in lexicographic order, which permutations() lists: P_k[i][j] = 1 where its entry i is j.
// W_pre, W_post and W_res are the rows, in this order, of one matrix W [m, n dim], m = 2 n + n!; b [m] likewise; alpha [3].
//
// The product z = W x is a matmul of its own; the norm's factor is applied to its result, as in the paper's kernels. All numbers per
// token in accumulation_dtype() ("acc"); n is 2, 3 or 4. Rows are contiguous, with any row stride.
#pragma once

#include <array>

#include "core/ops/op.h"

namespace lamina::ops {

constexpr int64_t max_streams = 4;
constexpr int64_t num_permutations(int64_t n) {
  return n <= 1 ? 1 : n * num_permutations(n - 1);
}
// m, the rows of W; and how many coefficients a token has: pre, post, the rows of mix.
constexpr int64_t num_projections(int64_t n) {
  return 2 * n + num_permutations(n);
}
constexpr int64_t num_coefficients(int64_t n) {
  return 2 * n + n * n;
}
using Permutation = std::array<int8_t, max_streams>;
std::span<const Permutation> permutations(int64_t n);  // of 0 .. n - 1, in lexicographic order

struct HyperCoefficientsForward {
  TensorView streams;       // x [tokens, n dim]
  TensorView projected;     // z [tokens, m] acc
  TensorView alpha;         // [3] acc
  TensorView bias;          // b [m] acc
  int64_t num_streams = 0;  // n
  double eps = 1e-5;
  TensorView rstd;          // [tokens] acc
  TensorView coefficients;  // [tokens, 2 n + n n] acc
};
void hyper_coefficients_forward(OpContext& ctx, const HyperCoefficientsForward& args);

// From the gradient of the coefficients to those of z, alpha and b; and what reaches x through rstd:
//   dlogit = through the sigmoids and the softmax;  dz = alpha rstd dlogit;  dx -= rstd^2 / (n dim) <z, dz> x
struct HyperCoefficientsBackward {
  TensorView streams, projected, alpha, bias;  // as in forward
  int64_t num_streams = 0;
  TensorView rstd, coefficients;  // from forward
  TensorView dcoefficients;       // [tokens, 2 n + n n] acc
  TensorView dprojected;          // [tokens, m] acc; written
  TensorView dstreams;            // [tokens, n dim] acc; accumulates
  TensorView dalpha, dbias;       // [3], [m] acc; accumulate
};
void hyper_coefficients_backward(OpContext& ctx, const HyperCoefficientsBackward& args);

struct HyperRead {  // h = sum_j pre_j x_j
  TensorView streams, coefficients;
  int64_t num_streams = 0;
  TensorView h;  // [tokens, dim], dtype of the streams
};
void hyper_read(OpContext& ctx, const HyperRead& args);

struct HyperWrite {  // next_i = sum_j mix_ij x_j + post_i y
  TensorView streams, coefficients;
  int64_t num_streams = 0;
  TensorView output;  // y [tokens, dim]
  TensorView next;    // [tokens, n dim], not `streams`
};
void hyper_write(OpContext& ctx, const HyperWrite& args);

struct HyperOutputGradient {  // dy = sum_i post_i dnext_i
  TensorView dnext;           // [tokens, n dim] acc
  TensorView coefficients;
  int64_t num_streams = 0;
  TensorView dy;  // [tokens, dim], compute dtype or acc
};
void hyper_output_gradient(OpContext& ctx, const HyperOutputGradient& args);

// Through the write and the read, except for y's share:
//   dx_j = sum_i mix_ij dnext_i + pre_j dh
//   dpre_j = <dh, x_j>, dpost_i = <dnext_i, y>, dmix_ij = <dnext_i, x_j - x_i>
// dmix is less by <dnext_i, x_i> in row i: each permutation takes one number of each row, so the softmax over them does not see it. Streams
// begin equal and the mixing near the identity, whose logit's gradient would otherwise be what is left of much larger numbers.
struct HyperBackward {
  TensorView streams, coefficients;
  int64_t num_streams = 0;
  TensorView output;         // y [tokens, dim]
  TensorView dh;             // [tokens, dim] acc
  TensorView dstreams;       // [tokens, n dim] acc: dnext, and then dx
  TensorView dcoefficients;  // [tokens, 2 n + n n] acc; written
};
void hyper_backward(OpContext& ctx, const HyperBackward& args);

struct HyperExpand {  // x_j = factor row, for all j
  TensorView row;     // [tokens, dim]
  double factor = 1;
  TensorView streams;  // [tokens, n dim], dtype of the row
};
void hyper_expand(OpContext& ctx, const HyperExpand& args);

struct HyperReduce {   // row = factor sum_j x_j
  TensorView streams;  // [tokens, n dim]
  double factor = 1;
  TensorView row;  // [tokens, dim], dtype of the streams
};
void hyper_reduce(OpContext& ctx, const HyperReduce& args);

}  // namespace lamina::ops
