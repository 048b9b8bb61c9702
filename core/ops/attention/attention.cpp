#include "core/ops/attention/attention.h"

#include "core/ops/attention/implementations.h"
#include "core/ops/document_starts.h"
#include "core/ops/gpu/register.h"

namespace lamina::ops {
namespace {

bool unit_last(const TensorView& view) {
  return view.stride(-1) == 1 || view.size(-1) <= 1;
}

// A [batch, tokens, heads, width] view beside q.
void check_heads(const char* name, const TensorView& view, const TensorView& q, int64_t tokens, int64_t width) {
  LAMINA_CHECK(view && view.rank() == 4 && view.dtype == q.dtype && view.dtype != DType::i32 && unit_last(view),
               "{}: {}, strides {}", name, view.to_string(), view.strides.to_string());
  LAMINA_CHECK(
      view.size(0) == q.size(0) && view.size(1) == tokens && view.size(2) == q.size(2) && view.size(3) == width,
      "{}: {} beside q {}, {} tokens, width {}", name, view.to_string(), q.to_string(), tokens, width);
}

void check_lse(const TensorView& lse, const TensorView& q) {
  LAMINA_CHECK(lse && lse.dtype == accumulation_dtype(q.dtype) && lse.is_contiguous() &&
                   lse.shape == (Shape{q.size(0), q.size(2), q.size(1)}),
               "lse {} beside q {}", lse.to_string(), q.to_string());
}

void validate(const AttentionForward& args) {
  LAMINA_CHECK(args.q.rank() == 4 && args.v.rank() == 4, "q {}, v {}", args.q.to_string(), args.v.to_string());
  const int64_t tokens = args.q.size(1), num_keys = args.v.size(1), d_qk = args.q.size(3), d_v = args.v.size(3);
  LAMINA_CHECK(num_keys == tokens || (num_keys > tokens && !args.document_starts), "{} queries of {} keys", tokens,
               num_keys);
  check_heads("q", args.q, args.q, tokens, d_qk);
  check_heads("k", args.k, args.q, num_keys, d_qk);
  check_heads("v", args.v, args.q, num_keys, d_v);
  check_heads("o", args.o, args.q, tokens, d_v);
  check_lse(args.lse, args.q);
  check_document_starts(args.document_starts, args.q.size(0), args.q.size(1));
  LAMINA_CHECK(!args.max_logit || (args.max_logit.dtype == args.lse.dtype && args.max_logit.is_contiguous() &&
                                   args.max_logit.shape == (Shape{args.q.size(0), args.q.size(2)})),
               "max_logit {} beside q {}", args.max_logit.to_string(), args.q.to_string());
}

void validate(const AttentionBackward& args) {
  validate(AttentionForward{args.q, args.k, args.v, args.scale, args.o, args.lse, args.document_starts});
  const int64_t tokens = args.q.size(1), d_qk = args.q.size(3), d_v = args.v.size(3);
  LAMINA_CHECK(args.v.size(1) == tokens, "{} queries of {} keys", tokens, args.v.size(1));
  check_heads("d_o", args.d_o, args.q, tokens, d_v);
  check_heads("dq", args.dq, args.q, tokens, d_qk);
  check_heads("dk", args.dk, args.q, tokens, d_qk);
  check_heads("dv", args.dv, args.q, tokens, d_v);
}

void check_shared_keys(const TensorView& nope, const TensorView& shared, const TensorView& k) {
  LAMINA_CHECK(nope.rank() == 3 && shared.rank() == 2 && k.rank() == 3 && unit_last(nope) && unit_last(shared) &&
                   unit_last(k) && nope.dtype == k.dtype && shared.dtype == k.dtype && k.dtype != DType::i32 &&
                   nope.size(0) == k.size(0) && shared.size(0) == k.size(0) && nope.size(1) == k.size(1) &&
                   nope.size(2) + shared.size(1) == k.size(2),
               "k_nope {}, k_shared {}, k {}", nope.to_string(), shared.to_string(), k.to_string());
}

constexpr Implementation<AttentionForward> attention_forward_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(attention_forward){"cpu", cpu::attention_forward_refuses, cpu::attention_forward},
    {"ref", nullptr, ref::attention_forward},
};
constexpr Implementation<AttentionBackward> attention_backward_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(attention_backward){"cpu", cpu::attention_backward_refuses, cpu::attention_backward},
    {"ref", nullptr, ref::attention_backward},
};
constexpr Implementation<PackSharedKeys> pack_shared_keys_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(pack_shared_keys){"ref", nullptr, ref::pack_shared_keys},
};
constexpr Implementation<UnpackSharedKeys> unpack_shared_keys_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(unpack_shared_keys){"ref", nullptr, ref::unpack_shared_keys},
};

}  // namespace

void attention_forward(OpContext& ctx, const AttentionForward& args) {
  validate(args);
  dispatch<AttentionForward>(ctx, "attention_forward", attention_forward_implementations, args);
}

void attention_backward(OpContext& ctx, const AttentionBackward& args) {
  validate(args);
  dispatch<AttentionBackward>(ctx, "attention_backward", attention_backward_implementations, args);
}

void pack_shared_keys(OpContext& ctx, const PackSharedKeys& args) {
  check_shared_keys(args.k_nope, args.k_shared, args.k);
  dispatch<PackSharedKeys>(ctx, "pack_shared_keys", pack_shared_keys_implementations, args);
}

void unpack_shared_keys(OpContext& ctx, const UnpackSharedKeys& args) {
  check_shared_keys(args.dk_nope, args.dk_shared, args.dk);
  dispatch<UnpackSharedKeys>(ctx, "unpack_shared_keys", unpack_shared_keys_implementations, args);
}

}  // namespace lamina::ops
