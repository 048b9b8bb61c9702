#include "launch/study/scaling_solver.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <unsupported/Eigen/NonLinearOptimization>
#include <unsupported/Eigen/SpecialFunctions>

#include "core/base/error.h"

namespace lamina::study {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

// Parameters p: E = p0^2, B = exp(p1), alpha = exp(p2). Residuals in log L, x measured from its mean: so B and alpha are nearly
// independent of each other.
struct Residuals {
  std::span<const WeightedPoint> points;
  double centre = 0;

  int inputs() const { return 3; }
  int values() const { return static_cast<int>(points.size()); }
  int operator()(const VectorXd& p, VectorXd& residuals) const {
    for (int i = 0; i < values(); ++i) {
      const WeightedPoint& point = points[static_cast<size_t>(i)];
      const double power = std::exp(p[1] - std::exp(p[2]) * (point.x - centre));
      residuals[i] = std::sqrt(point.weight) * (std::log(p[0] * p[0] + power) - point.y);
    }
    return residuals.allFinite() ? 0 : -1;
  }
  int df(const VectorXd& p, MatrixXd& jacobian) const {
    for (int i = 0; i < values(); ++i) {
      const WeightedPoint& point = points[static_cast<size_t>(i)];
      const double alpha = std::exp(p[2]), x = point.x - centre;
      const double power = std::exp(p[1] - alpha * x);
      const double scale = std::sqrt(point.weight) / (p[0] * p[0] + power);
      jacobian.row(i) << scale * 2 * p[0], scale * power, -scale * power * alpha * x;
    }
    return 0;
  }
};

struct Minimum {
  VectorXd p;
  double sum_of_squares = std::numeric_limits<double>::infinity();
};

Minimum minimise(Residuals& residuals, const VectorXd& start, double tolerance, int most_evaluations) {
  Eigen::LevenbergMarquardt<Residuals> solver(residuals);
  solver.parameters.ftol = solver.parameters.xtol = tolerance;
  solver.parameters.gtol = 0;
  solver.parameters.maxfev = most_evaluations;
  Minimum minimum{start};
  solver.minimize(minimum.p);
  VectorXd rest(residuals.values());
  if (minimum.p.allFinite() && residuals(minimum.p, rest) == 0) minimum.sum_of_squares = rest.squaredNorm();
  return minimum;
}

// With E taken as known, log(L - E) is a line over x.
VectorXd start_at(std::span<const WeightedPoint> points, double centre, double e) {
  std::vector<WeightedPoint> line(points.begin(), points.end());
  for (WeightedPoint& point : line) {
    point.x -= centre;
    point.y = std::log(std::exp(point.y) - e);
  }
  const std::vector<double> c = polynomial_fit(line, 1);
  return Eigen::Vector3d(std::sqrt(e), c[0], std::log(std::max(-c[1], 1e-3)));
}

}  // namespace

std::vector<double> polynomial_fit(std::span<const WeightedPoint> points, int degree) {
  LAMINA_CHECK(static_cast<int>(points.size()) > degree, "{} points, degree {}", points.size(), degree);
  const auto rows = static_cast<Eigen::Index>(points.size());
  MatrixXd matrix(rows, degree + 1);
  VectorXd values(rows);
  // Powers of x - mean: log C is far from zero, where powers of x itself look alike.
  double mean = 0;
  for (const WeightedPoint& point : points) mean += point.x / static_cast<double>(points.size());
  for (Eigen::Index i = 0; i < rows; ++i) {
    const WeightedPoint& point = points[static_cast<size_t>(i)];
    double power = std::sqrt(point.weight);
    values[i] = power * point.y;
    for (int k = 0; k <= degree; ++k, power *= point.x - mean) matrix(i, k) = power;
  }
  const VectorXd c = matrix.colPivHouseholderQr().solve(values);
  if (degree == 1) return {c[0] - c[1] * mean, c[1]};
  LAMINA_CHECK(degree == 2, "degree {}", degree);
  return {c[0] - c[1] * mean + c[2] * mean * mean, c[1] - 2 * c[2] * mean, c[2]};
}

IrreducibleFit irreducible_fit(std::span<const WeightedPoint> points, const IrreducibleFit* nearby) {
  LAMINA_CHECK(points.size() >= 4, "{} points", points.size());
  Residuals residuals{points};
  double lowest = std::numeric_limits<double>::infinity();
  for (const WeightedPoint& point : points) {
    residuals.centre += point.x / static_cast<double>(points.size());
    lowest = std::min(lowest, std::exp(point.y));
  }
  std::vector<VectorXd> starts;
  if (nearby) {
    // At E = 0 the derivative by p is zero: from there nothing would move.
    starts.emplace_back(Eigen::Vector3d(std::sqrt(std::max(nearby->e, 0.01 * lowest)),
                                        nearby->log_a - nearby->alpha * residuals.centre, std::log(nearby->alpha)));
  } else {
    for (const double share : {0.02, 0.3, 0.6, 0.9})
      starts.push_back(start_at(points, residuals.centre, share * lowest));
  }
  Minimum best;
  for (const VectorXd& start : starts) {
    Minimum minimum = nearby ? minimise(residuals, start, 1e-10, 100) : minimise(residuals, start, 1e-15, 500);
    if (minimum.sum_of_squares < best.sum_of_squares) best = std::move(minimum);
  }
  IrreducibleFit fit;
  if (!std::isfinite(best.sum_of_squares)) {
    fit.e = fit.alpha = fit.log_a = fit.e_error = std::numeric_limits<double>::quiet_NaN();
    return fit;
  }
  fit.e = best.p[0] * best.p[0];
  fit.alpha = std::exp(best.p[2]);
  fit.log_a = best.p[1] + fit.alpha * residuals.centre;
  if (nearby) return fit;  // a resample: nobody asks for its errors

  MatrixXd jacobian(residuals.values(), 3);
  residuals.df(best.p, jacobian);
  for (int i = 0; i < residuals.values(); ++i) {  // by E itself: by p it is zero at E = 0
    const WeightedPoint& point = points[static_cast<size_t>(i)];
    jacobian(i, 0) = std::sqrt(point.weight) / (fit.e + std::exp(best.p[1] - fit.alpha * (point.x - residuals.centre)));
  }
  const VectorXd lengths = jacobian.colwise().norm().cwiseMax(std::numeric_limits<double>::min());
  const Eigen::JacobiSVD<MatrixXd> svd(jacobian * lengths.cwiseInverse().asDiagonal(), Eigen::ComputeThinV);
  fit.condition = svd.singularValues()[2] / svd.singularValues()[0];
  const auto degrees = static_cast<double>(points.size()) - 3;
  const double variance =
      (svd.matrixV().row(0).transpose().array() / svd.singularValues().array()).matrix().squaredNorm() /
      (lengths[0] * lengths[0]);
  fit.e_error = std::sqrt(variance * best.sum_of_squares / degrees);
  return fit;
}

double student_quantile(double p, double degrees) {
  LAMINA_CHECK(p >= 0.5 && p < 1 && degrees >= 1, "p {}, {} degrees of freedom", p, degrees);
  const auto below = [&](double t) {
    return 1 - 0.5 * Eigen::numext::betainc(degrees / 2, 0.5, degrees / (degrees + t * t));
  };
  double low = 0, high = 1;
  while (below(high) < p) high *= 2;
  for (int i = 0; i < 100; ++i) {
    const double middle = 0.5 * (low + high);
    (below(middle) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

}  // namespace lamina::study
