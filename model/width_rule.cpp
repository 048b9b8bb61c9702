#include "model/width_rule.h"

#include <algorithm>
#include <cmath>

namespace lamina::model {

WidthFactors width_factors(const ModelConfig& config, const ParameterSpec& spec) {
  if (!config.mup_base_width || !(spec.wide_in || spec.wide_out)) return {};
  const double r = static_cast<double>(config.hidden_size) / static_cast<double>(*config.mup_base_width);
  const auto out = static_cast<double>(spec.shape[0]), in = static_cast<double>(spec.shape[1]);
  const double base_out = spec.wide_out ? out / r : out, base_in = spec.wide_in ? in / r : in;
  // An orthogonal matrix of size [out, in] has a spectral norm of one; sqrt(out / in) is the one that is wanted.
  const double wanted = std::sqrt(out / in * base_in / base_out);
  const double longer = std::sqrt(std::max(base_out, base_in) / std::max(out, in));
  WidthFactors factors;
  factors.init = !spec.wide_in ? 1 : spec.wide_out ? 1 / std::sqrt(r) : 1 / r;
  factors.elementwise = spec.wide_in ? 1 / r : 1;
  factors.orthogonal = wanted * longer;
  return factors;
}

}  // namespace lamina::model
