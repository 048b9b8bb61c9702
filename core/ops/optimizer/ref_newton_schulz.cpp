#include "core/ops/optimizer/implementations.h"

#include <algorithm>
#include <cmath>

#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

template <class A>
struct Matrix {
  int64_t rows, cols;
  std::vector<A> data;
  Matrix(int64_t num_rows, int64_t num_cols)
      : rows(num_rows), cols(num_cols), data(static_cast<size_t>(num_rows * num_cols)) {}
  A& at(int64_t r, int64_t c) { return data[static_cast<size_t>(r * cols + c)]; }
  const A& at(int64_t r, int64_t c) const { return data[static_cast<size_t>(r * cols + c)]; }
};

// What a product reads.
template <class A>
Matrix<A> operand(const Matrix<A>& m, DType products) {
  Matrix<A> out = m;
  if (products == DType::bf16) {
    for (A& value : out.data) value = static_cast<A>(round_to<bf16>(value));
  }
  return out;
}

// alpha a b + beta addend
template <class A>
Matrix<A> product(const Matrix<A>& a, const Matrix<A>& b, A alpha, const Matrix<A>& addend, A beta) {
  Matrix<A> out(a.rows, b.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t k = 0; k < a.cols; ++k) {
      for (int64_t c = 0; c < b.cols; ++c) out.at(r, c) += a.at(r, k) * b.at(k, c);
    }
    for (int64_t c = 0; c < b.cols; ++c) out.at(r, c) = alpha * out.at(r, c) + beta * addend.at(r, c);
  }
  return out;
}

template <class A>
Matrix<A> transposed(const Matrix<A>& m) {
  Matrix<A> out(m.cols, m.rows);
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c) out.at(c, r) = m.at(r, c);
  }
  return out;
}

template <class A>
void orthogonalise(const NewtonSchulz& args, A* data) {
  const A a = A(3.4445), b = A(-4.7750), c = A(2.0315);
  Matrix<A> x(args.x.size(1), args.x.size(2));
  std::copy_n(data, x.data.size(), x.data.begin());
  const bool tall = x.rows > x.cols;
  if (tall) x = transposed(x);
  A norm = 0;
  for (const A value : x.data) norm += value * value;
  norm = std::sqrt(norm) + A(1e-7);
  for (A& value : x.data) value /= norm;
  const Matrix<A> nothing(x.rows, x.rows);
  for (int step = 0; step < args.num_steps; ++step) {
    const Matrix<A> left = operand(x, args.products);
    const Matrix<A> gram = product(left, transposed(left), A(1), nothing, A(0));
    const Matrix<A> square = operand(gram, args.products);
    const Matrix<A> polynomial = operand(product(square, square, c, gram, b), args.products);
    x = product(polynomial, left, A(1), x, a);
  }
  if (tall) x = transposed(x);
  std::copy_n(x.data.begin(), x.data.size(), data);
}

}  // namespace

void newton_schulz(OpContext&, const NewtonSchulz& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) {
    for (int64_t n = 0; n < args.x.size(0); ++n) {
      orthogonalise<A>(args, args.x.as<A>() + n * args.x.size(1) * args.x.size(2));
    }
  });
}

}  // namespace lamina::ops::ref
