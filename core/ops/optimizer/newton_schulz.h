// Orthogonalisation of Muon's updates (arXiv 2502.16982; reference.newton_schulz): five steps of the quintic Newton-Schulz
// iteration, each matrix on its own, of the shorter side's Gram matrix:
//   X = X / (|X|_F + 1e-7);   A = X X^T;   X = a X + (b A + c A A) X,   (a, b, c) = (3.4445, -4.7750, 2.0315)
#pragma once

#include <algorithm>

#include "core/ops/op.h"

namespace lamina::ops {

struct NewtonSchulz {
  TensorView x;    // [batch, rows, columns] acc, contiguous; overwritten with the orthogonalised matrices
  DType products;  // dtype of the products' operands: bf16 or acc; sums are in acc
  int num_steps = 5;
};
void newton_schulz(OpContext& ctx, const NewtonSchulz& args);

// On a GPU: matrices of this shorter side whose products are one call, so that small ones fill it. A function of the shape only, and the
// last call is as large as the others: cuBLAS chooses kernels by the number of matrices, and a matrix' result must not depend on its
// company.
constexpr int64_t matrices_per_call(int64_t side) {
  constexpr int64_t multiprocessors = 132, tile = 128, most = 4;
  const int64_t tiles = (side + tile - 1) / tile;
  return std::clamp<int64_t>(multiprocessors / (tiles * tiles), 1, most);
}

}  // namespace lamina::ops
