#pragma once

#include "core/ops/adamw.h"

namespace lamina::ops::cuda {

const char* adamw_refuses(const AdamW& args);
void adamw(OpContext& ctx, const AdamW& args);

}  // namespace lamina::ops::cuda
