#pragma once

#include "core/ops/adamw.h"

namespace lamina::ops::ref {

void adamw(OpContext& ctx, const AdamW& args);

}  // namespace lamina::ops::ref
