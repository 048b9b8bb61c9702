#pragma once

#include "core/ops/router.h"

namespace lamina::ops::ref {

void router_forward(OpContext& ctx, const RouterForward& args);
void router_backward(OpContext& ctx, const RouterBackward& args);
void router_observe(OpContext& ctx, const RouterObserve& args);

}  // namespace lamina::ops::ref
