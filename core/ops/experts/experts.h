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
  TensorView chosen;       // [rows, k] i32, contiguous; -1: no expert of this rank
  TensorView weights;      // [rows, k] acc, contiguous
  TensorView offsets;      // [experts + 1] i32, contiguous; written
  TensorView row_of;       // [rows * k] i32; as many are written as there are pairs: all where no choice is -1
  TensorView position;     // [rows, k] i32, contiguous: the pair's index, or -1
  TensorView pair_weight;  // [rows * k] acc; written as row_of is
  std::span<int64_t> host_offsets = {};  // where not empty: the offsets, for which the host waits for a GPU
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

// The rows of expert e are [offsets[e], offsets[e + 1]).
struct ExpertRows {
  TensorView offsets;                  // [experts + 1] i32, contiguous, from 0 to the number of rows
  std::span<const int64_t> host = {};  // the same; empty: on a GPU only the device knows them, see needs_host_offsets()
};

// Whether the products of this dtype need ExpertRows::host where ctx computes: a GPU's in fp32 do, since cuBLAS makes them and takes
// sizes from the host. A GPU's in bf16 do without; where they have it, they choose cuBLAS's grouped product.
bool needs_host_offsets(const OpContext& ctx, DType dtype);

// For the rows r of expert e:   y[r] = x[r] w_e^T
struct GroupedLinear {
  TensorView x;                         // [rows, in], rows contiguous
  std::span<const TensorView> weights;  // [experts] of [out, in], contiguous
  ExpertRows rows;
  TensorView y;  // [rows, out]
};
void grouped_linear(OpContext& ctx, const GroupedLinear& args);

struct GroupedLinearInputGradient {  // dx[r] = dy[r] w_e; overwritten
  TensorView dy;                     // [rows, out]
  std::span<const TensorView> weights;
  ExpertRows rows;
  TensorView dx;  // [rows, in]
};
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args);

struct GroupedLinearWeightGradient {  // dw_e += sum over the expert's rows of dy[r]^T x[r]
  TensorView dy, x;
  ExpertRows rows;
  std::span<const TensorView> dweights;  // [experts] of [out, in] acc, contiguous
};
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args);

}  // namespace lamina::ops
