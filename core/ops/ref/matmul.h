#pragma once

#include "core/ops/matmul.h"

namespace lamina::ops::ref {

void matmul(OpContext& ctx, const Matmul& args);

}  // namespace lamina::ops::ref
