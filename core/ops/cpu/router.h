#pragma once

#include "core/ops/router.h"

namespace lamina::ops::cpu {

const char* refuses(const RouterForward& args);
void router_forward(OpContext& ctx, const RouterForward& args);
const char* refuses(const RouterBackward& args);
void router_backward(OpContext& ctx, const RouterBackward& args);

}  // namespace lamina::ops::cpu
