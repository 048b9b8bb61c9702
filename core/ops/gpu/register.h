// The CUDA implementation's place in an operation's list; nothing in a build without CUDA. The comma belongs to it:
//   static constexpr Implementation<X> list[] = {LAMINA_CUDA_IMPLEMENTATION(x) {"cpu", ...}, {"ref", ...}};
// Where an operation has several on CUDA, the others have names of their own, and the function's name says which it is:
//   {LAMINA_CUDA_VARIANT("cublas", x_cublas) LAMINA_CUDA_IMPLEMENTATION(x) {"cpu", ...}, {"ref", ...}};
#pragma once

#include "core/ops/op.h"

#if defined(LAMINA_CUDA_OFFLOADED)
// For the tests of operations, which name the header: operands stay on the host and travel around every call.
#include LAMINA_CUDA_OFFLOADED
#define LAMINA_CUDA_VARIANT(name, op) {name, cuda::op##_refuses, test::run_offloaded<&cuda::op>},
#elif defined(LAMINA_CUDA)
#define LAMINA_CUDA_VARIANT(name, op) {name, cuda::op##_refuses, cuda::op, ::lamina::DeviceKind::cuda},
#else
#define LAMINA_CUDA_VARIANT(name, op)
#endif
#define LAMINA_CUDA_IMPLEMENTATION(op) LAMINA_CUDA_VARIANT("cuda", op)
