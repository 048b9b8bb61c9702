#include <algorithm>

#include "core/base/error.h"
#include "model/optimizers/adamw.h"
#include "model/optimizers/muon.h"
#include "model/optimizers/optimizer.h"

namespace lamina::model {

std::span<const Optimizer* const> optimizers() {
  static const std::vector<const Optimizer*> all = {
      &adamw_optimizer(),
      &muon_optimizer(),
  };
  return all;
}

const Optimizer& optimizer_of(OptimizerName name) {
  const auto all = optimizers();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Optimizer* o) { return o->facts().name == name; });
  LAMINA_CHECK(found != all.end(), "optimizer {} is not in the list", static_cast<int>(name));
  return **found;
}

const Optimizer& optimizer_of_the_rest(OptimizerName name) {
  const Optimizer& optimizer = optimizer_of(name);
  return optimizer.facts().matrices_only ? adamw_optimizer() : optimizer;
}

std::pair<int64_t, int64_t> rows_and_columns(const Shape& shape) {
  return {shape[0], shape.num_elements() / shape[0]};
}

double Optimizer::state_bytes(double accumulation) const {
  double bytes = 0;
  for (const StateTensor& tensor : facts_.state)
    bytes += tensor.dtype ? static_cast<double>(size_of(*tensor.dtype)) : accumulation;
  return bytes;
}

double Optimizer::flops(int64_t /*rows*/, int64_t /*columns*/) const {
  return 0;
}

}  // namespace lamina::model
