// The numerics of scaling_law.h: least squares over a handful of points, and Student's distribution. Pure functions; the only
// user of Eigen is scaling_solver.cpp.
#pragma once

#include <span>
#include <vector>

namespace lamina::study {

// y over x, weight w of each. Weights: the number of seeds behind a mean.
struct WeightedPoint {
  double x = 0, y = 0, weight = 1;
};

// y = c0 + c1 x (+ c2 x^2): weighted least squares by QR. Points with different x: degree + 1 at least.
std::vector<double> polynomial_fit(std::span<const WeightedPoint> points, int degree);

// log L = log(E + B exp(-alpha (x - centre))), with x = log C: B = A exp(-alpha centre).
struct IrreducibleFit {
  double e = 0, alpha = 0, log_a = 0;
  double condition = 0;  // of the Jacobian with columns of unit length: smallest singular value over largest
  double e_error = 0;    // standard error of E, from the residuals
};

// Levenberg-Marquardt over E = p^2, log B, log alpha, from several starting points, the best of them. `nearby`: start only from
// there (resamples). Points: x = log C, y = log L; four different x at least.
IrreducibleFit irreducible_fit(std::span<const WeightedPoint> points, const IrreducibleFit* nearby = nullptr);

// t with P(T <= t) = p; any real number of degrees of freedom from 1 on; p in [0.5, 1).
double student_quantile(double p, double degrees);

}  // namespace lamina::study
