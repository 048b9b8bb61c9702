#pragma once

#include "core/ops/router.h"

namespace lamina::ops::cuda {

// Limit: bytes. The scores are read and written once per direction; the choice itself stays in shared memory.
const char* router_forward_refuses(const RouterForward& args);
void router_forward(OpContext& ctx, const RouterForward& args);
const char* router_backward_refuses(const RouterBackward& args);
void router_backward(OpContext& ctx, const RouterBackward& args);
const char* router_observe_refuses(const RouterObserve& args);
void router_observe(OpContext& ctx, const RouterObserve& args);

}  // namespace lamina::ops::cuda
