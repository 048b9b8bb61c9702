#pragma once

#include "core/ops/router.h"

namespace lamina::ops::ref {

void router_forward(OpContext& ctx, const RouterForward& args);
void router_backward(OpContext& ctx, const RouterBackward& args);

}  // namespace lamina::ops::ref
