// What core/ops/hyper_connections chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/hyper_connections/hyper_connections.h"

namespace lamina::ops {

namespace ref {
void hyper_coefficients_forward(OpContext& ctx, const HyperCoefficientsForward& args);
void hyper_coefficients_backward(OpContext& ctx, const HyperCoefficientsBackward& args);
void hyper_read(OpContext& ctx, const HyperRead& args);
void hyper_write(OpContext& ctx, const HyperWrite& args);
void hyper_output_gradient(OpContext& ctx, const HyperOutputGradient& args);
void hyper_backward(OpContext& ctx, const HyperBackward& args);
void hyper_expand(OpContext& ctx, const HyperExpand& args);
void hyper_reduce(OpContext& ctx, const HyperReduce& args);
}  // namespace ref

namespace cpu {
const char* hyper_coefficients_forward_refuses(const HyperCoefficientsForward& args);
void hyper_coefficients_forward(OpContext& ctx, const HyperCoefficientsForward& args);
const char* hyper_coefficients_backward_refuses(const HyperCoefficientsBackward& args);
void hyper_coefficients_backward(OpContext& ctx, const HyperCoefficientsBackward& args);
const char* hyper_read_refuses(const HyperRead& args);
void hyper_read(OpContext& ctx, const HyperRead& args);
const char* hyper_write_refuses(const HyperWrite& args);
void hyper_write(OpContext& ctx, const HyperWrite& args);
const char* hyper_output_gradient_refuses(const HyperOutputGradient& args);
void hyper_output_gradient(OpContext& ctx, const HyperOutputGradient& args);
const char* hyper_backward_refuses(const HyperBackward& args);
void hyper_backward(OpContext& ctx, const HyperBackward& args);
const char* hyper_expand_refuses(const HyperExpand& args);
void hyper_expand(OpContext& ctx, const HyperExpand& args);
const char* hyper_reduce_refuses(const HyperReduce& args);
void hyper_reduce(OpContext& ctx, const HyperReduce& args);
}  // namespace cpu

}  // namespace lamina::ops
