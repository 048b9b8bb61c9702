#pragma once

#include "core/ops/hyper_connections.h"

namespace lamina::ops::ref {

void hyper_coefficients_forward(OpContext& ctx, const HyperCoefficientsForward& args);
void hyper_coefficients_backward(OpContext& ctx, const HyperCoefficientsBackward& args);
void hyper_read(OpContext& ctx, const HyperRead& args);
void hyper_write(OpContext& ctx, const HyperWrite& args);
void hyper_output_gradient(OpContext& ctx, const HyperOutputGradient& args);
void hyper_backward(OpContext& ctx, const HyperBackward& args);
void hyper_expand(OpContext& ctx, const HyperExpand& args);
void hyper_reduce(OpContext& ctx, const HyperReduce& args);

}  // namespace lamina::ops::ref
