// AdamW (arXiv 1711.05101): takes every tensor, and those that an optimizer of matrices leaves.
#pragma once

#include "model/optimizers/optimizer.h"

namespace lamina::model {

const Optimizer& adamw_optimizer();

}  // namespace lamina::model
