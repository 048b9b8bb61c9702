#include "core/ops/kda/kda.h"

#include "core/ops/document_starts.h"
#include "core/ops/gpu/register.h"
#include "core/ops/kda/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_state(const TensorView& state, const char* what, DType acc, const Shape& shape) {
  if (state.empty()) return;
  expect(state, what, acc, shape);
  expect_contiguous(state, what);
}

struct Shapes {
  Shape key, value, scalar, state;
};

// Of the operands that both directions read.
template <class Args>
Shapes validate_inputs(const Args& args) {
  LAMINA_CHECK(args.q.rank() == 4 && args.v.rank() == 4, "q {}, v {}", args.q.to_string(), args.v.to_string());
  const int64_t batch = args.q.size(0), num_tokens = args.q.size(1), heads = args.q.size(2);
  const int64_t d_k = args.q.size(3), d_v = args.v.size(3);
  const Shapes shapes{{batch, num_tokens, heads, d_k},
                      {batch, num_tokens, heads, d_v},
                      {batch, num_tokens, heads},
                      {batch, heads, d_k, d_v}};
  const DType dtype = args.q.dtype, acc = accumulation_dtype(dtype);
  expect_compute_dtype(args.q, "q");
  expect_shape(args.q, "q", shapes.key);
  expect(args.k, "k", dtype, shapes.key);
  expect(args.v, "v", dtype, shapes.value);
  expect(args.g, "g", acc, shapes.key);
  expect(args.beta, "beta", acc, shapes.scalar);
  check_document_starts(args.document_starts, batch, num_tokens);
  expect_state(args.initial_state, "initial_state", acc, shapes.state);
  return shapes;
}

constexpr Implementation<KdaForward> kda_forward_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(kda_forward){"cpu", cpu::kda_forward_refuses, cpu::kda_forward},
    {"ref", nullptr, ref::kda_forward}};
constexpr Implementation<KdaBackward> kda_backward_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(kda_backward){"cpu", cpu::kda_backward_refuses, cpu::kda_backward},
    {"ref", nullptr, ref::kda_backward}};

}  // namespace

void kda_forward(OpContext& ctx, const KdaForward& args) {
  const Shapes shapes = validate_inputs(args);
  expect(args.o, "o", args.q.dtype, shapes.value);
  expect_state(args.final_state, "final_state", accumulation_dtype(args.q.dtype), shapes.state);
  dispatch<KdaForward>(ctx, "kda_forward", kda_forward_implementations, args);
}

void kda_backward(OpContext& ctx, const KdaBackward& args) {
  const Shapes shapes = validate_inputs(args);
  const DType dtype = args.q.dtype, acc = accumulation_dtype(dtype);
  expect(args.d_o, "d_o", dtype, shapes.value);
  expect_state(args.d_final_state, "d_final_state", acc, shapes.state);
  expect(args.dq, "dq", dtype, shapes.key);
  expect(args.dk, "dk", dtype, shapes.key);
  expect(args.dv, "dv", dtype, shapes.value);
  expect(args.dg, "dg", acc, shapes.key);
  expect(args.dbeta, "dbeta", acc, shapes.scalar);
  expect_state(args.d_initial_state, "d_initial_state", acc, shapes.state);
  dispatch<KdaBackward>(ctx, "kda_backward", kda_backward_implementations, args);
}

}  // namespace lamina::ops
