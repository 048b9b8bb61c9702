// What core/ops/router chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/router/router.h"

namespace lamina::ops {

namespace ref {
void router_forward(OpContext& ctx, const RouterForward& args);
void router_backward(OpContext& ctx, const RouterBackward& args);
void router_observe(OpContext& ctx, const RouterObserve& args);
}  // namespace ref

namespace cpu {
const char* router_forward_refuses(const RouterForward& args);
void router_forward(OpContext& ctx, const RouterForward& args);
const char* router_backward_refuses(const RouterBackward& args);
void router_backward(OpContext& ctx, const RouterBackward& args);
}  // namespace cpu

namespace cuda {
// Limit: bytes. The scores are read and written once per direction; the choice itself stays in shared memory.
const char* router_forward_refuses(const RouterForward& args);
void router_forward(OpContext& ctx, const RouterForward& args);
const char* router_backward_refuses(const RouterBackward& args);
void router_backward(OpContext& ctx, const RouterBackward& args);
const char* router_observe_refuses(const RouterObserve& args);
void router_observe(OpContext& ctx, const RouterObserve& args);
}  // namespace cuda

}  // namespace lamina::ops
