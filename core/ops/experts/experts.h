// Rows of tokens in the order of their experts, and products of each expert's rows with that expert's matrix. Dropless: an
// expert has as many rows as chose it, possibly none; nothing is padded to a capacity.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/ops/op.h"

namespace lamina::ops {

// (row, slot) pairs sorted by expert, then by row: pair p is row row_of[p]; pairs [offsets[e], offsets[e + 1]) are expert e's.
struct GroupRows {
  TensorView chosen;           // [rows, k] i32, contiguous; -1: no expert of this rank
  TensorView weights;          // [rows, k] acc, contiguous
  std::span<int64_t> offsets;  // [experts + 1]; written
  TensorView row_of;           // [rows * k] i32; the first offsets.back() are written
  TensorView position;         // [rows, k] i32, contiguous: the pair's index, or -1
  TensorView pair_weight;      // [rows * k] acc; the first offsets.back() are written
  bool knows_offsets = false;  // they were found for the same choices before: the host need not wait for a GPU
};
void group_rows(OpContext& ctx, const GroupRows& args);

// y[r] = x[index[r]]
struct GatherRows {
  TensorView x;      // [n, dim], rows contiguous (any row stride)
  TensorView index;  // [rows] i32
  TensorView y;      // [rows, dim]
};
void gather_rows(OpContext& ctx, const GatherRows& args);

// y[t] = or += the sum over j of x[position[t, j]], in the order of j, in acc, rounded once; -1 counts as zero. The adjoint of
// gather_rows by position, and the other way round.
struct CombineRows {
  TensorView x;         // [rows, dim], rows contiguous
  TensorView position;  // [tokens, k] i32, contiguous
  TensorView y;         // [tokens, dim]
  GradMode mode = GradMode::overwrite;
};
void combine_rows(OpContext& ctx, const CombineRows& args);

// For the rows r of expert e, [offsets[e], offsets[e + 1]):   y[r] = x[r] w_e^T
struct GroupedLinear {
  TensorView x;                         // [rows, in], rows contiguous
  std::span<const TensorView> weights;  // [experts] of [out, in], contiguous
  std::span<const int64_t> offsets;     // [experts + 1], from 0 to rows
  TensorView y;                         // [rows, out]
};
void grouped_linear(OpContext& ctx, const GroupedLinear& args);

struct GroupedLinearInputGradient {  // dx[r] = dy[r] w_e; overwritten
  TensorView dy;                     // [rows, out]
  std::span<const TensorView> weights;
  std::span<const int64_t> offsets;
  TensorView dx;  // [rows, in]
};
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args);

struct GroupedLinearWeightGradient {  // dw_e += sum over the expert's rows of dy[r]^T x[r]
  TensorView dy, x;
  std::span<const int64_t> offsets;
  std::span<const TensorView> dweights;  // [experts] of [out, in] acc, contiguous
};
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args);

}  // namespace lamina::ops
