// The CUDA implementation's place in an operation's list; nothing in a build without CUDA. The comma belongs to it:
//   static constexpr Implementation<X> list[] = {LAMINA_CUDA_IMPLEMENTATION(x) {"cpu", ...}, {"ref", ...}};
#pragma once

#include "core/ops/op.h"

#if defined(LAMINA_CUDA_OFFLOADED)
// For the tests of operations: operands stay on the host and travel around every call.
#include "tests/support/offloaded.h"
#define LAMINA_CUDA_IMPLEMENTATION(op) {"cuda", cuda::op##_refuses, test::run_offloaded<&cuda::op>},
#elif defined(LAMINA_CUDA)
#define LAMINA_CUDA_IMPLEMENTATION(op) {"cuda", cuda::op##_refuses, cuda::op, ::lamina::DeviceKind::cuda},
#else
#define LAMINA_CUDA_IMPLEMENTATION(op)
#endif
