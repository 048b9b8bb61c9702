#include "core/ops/attention/implementations.h"

#include <limits>

#include "core/ops/attention/kernels.h"

namespace lamina::ops::cuda {
namespace {

const char* refuses(const TensorView& view) {
  if (view.dtype == DType::f64) return "fp64 runs on the CPU";
  if (view.rank() == 4 && (view.size(0) > 65535 || view.size(2) > 65535)) return "more than 65,535 sequences or heads";
  if (view.rank() == 4 && view.size(1) > std::numeric_limits<int>::max() - attention_tile)
    return "2^31 tokens in a sequence";
  return nullptr;
}

cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

AttentionTensor tensor_of(const TensorView& view) {
  AttentionTensor out{view.data, view.stride(0), view.stride(1), view.stride(2), false};
  const int64_t width = 16 / size_of(view.dtype);
  out.packs = reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.size(3) % width == 0;
  for (int axis = 0; axis < 3; ++axis)
    out.packs = out.packs && (view.size(axis) <= 1 || view.stride(axis) % width == 0);
  return out;
}

AttentionParams params_of(const TensorView& q, const TensorView& v, double scale, const TensorView& lse,
                          const TensorView& document_starts) {
  AttentionParams p;
  p.batch = static_cast<int>(q.size(0)), p.tokens = static_cast<int>(q.size(1)), p.heads = static_cast<int>(q.size(2));
  p.d_qk = static_cast<int>(q.size(3)), p.d_v = static_cast<int>(v.size(3));
  p.keys = static_cast<int>(v.size(1));
  p.tiles = attention_num_tiles(p.tokens);
  p.scale = static_cast<float>(scale);
  p.bf16 = q.dtype == DType::bf16;
  p.lse = lse.as<float>();
  if (document_starts) p.document_starts = document_starts.as<int32_t>();
  return p;
}

bool on_tensor_cores(const AttentionParams& p) {
  return p.bf16 && p.d_qk <= attention_widest_tensor && p.d_v <= attention_widest_tensor;
}

// The tensor-core kernels move 16 bytes at once. What is laid out otherwise takes the way over copies in scratch
// memory, whose rows are longer by zeros.
class Packed {
 public:
  Packed(OpContext& ctx, const AttentionParams& p) : ctx_(ctx), p_(p) {}

  static int width_of(int width) { return (width + 7) / 8 * 8; }

  void read(AttentionTensor& tensor, int width, int tokens) {
    if (tensor.packs) return;
    const AttentionTensor to = take(width, tokens);
    AttentionParams rows = p_;
    rows.tokens = tokens;
    launch_attention_copy(tensor, to, rows, width, width_of(width), stream_of(ctx_));
    tensor = to;
  }
  // Returns where the result shall go in the end; `write` brings it there.
  AttentionTensor redirect(AttentionTensor& tensor, int width) {
    const AttentionTensor original = tensor;
    if (!tensor.packs) tensor = take(width, p_.tokens);
    return original;
  }
  void write(const AttentionTensor& tensor, const AttentionTensor& original, int width) {
    if (!original.packs) launch_attention_copy(tensor, original, p_, width_of(width), width, stream_of(ctx_));
  }

 private:
  AttentionTensor take(int width, int tokens) {
    return tensor_of(ctx_.scratch.take(DType::bf16, {p_.batch, tokens, p_.heads, width_of(width)}));
  }
  OpContext& ctx_;
  const AttentionParams& p_;
};

void forward_on_tensor_cores(OpContext& ctx, const AttentionParams& args) {
  AttentionParams p = args;
  Packed packed(ctx, args);
  packed.read(p.q, args.d_qk, args.tokens);
  packed.read(p.k, args.d_qk, args.keys);
  packed.read(p.v, args.d_v, args.keys);
  const AttentionTensor o = packed.redirect(p.o, args.d_v);
  p.d_qk = Packed::width_of(args.d_qk), p.d_v = Packed::width_of(args.d_v);
  launch_attention_forward_tensor(p, stream_of(ctx));
  packed.write(p.o, o, args.d_v);
}

void backward_on_tensor_cores(OpContext& ctx, const AttentionParams& args) {
  AttentionParams p = args;
  Packed packed(ctx, args);
  packed.read(p.q, args.d_qk, args.tokens);
  packed.read(p.k, args.d_qk, args.tokens);
  packed.read(p.v, args.d_v, args.tokens);
  packed.read(p.d_o, args.d_v, args.tokens);
  const AttentionTensor dq = packed.redirect(p.dq, args.d_qk), dk = packed.redirect(p.dk, args.d_qk),
                        dv = packed.redirect(p.dv, args.d_v);
  p.d_qk = Packed::width_of(args.d_qk), p.d_v = Packed::width_of(args.d_v);
  launch_attention_backward_tensor(p, stream_of(ctx));
  packed.write(p.dq, dq, args.d_qk);
  packed.write(p.dk, dk, args.d_qk);
  packed.write(p.dv, dv, args.d_v);
}

SharedKeysParams keys_of(const TensorView& nope, const TensorView& shared, const TensorView& k) {
  SharedKeysParams p;
  p.nope = nope.data, p.shared = shared.data, p.k = k.data;
  p.nope_token = nope.stride(0), p.nope_head = nope.stride(1), p.shared_token = shared.stride(0);
  p.k_token = k.stride(0), p.k_head = k.stride(1);
  p.tokens = k.size(0), p.heads = static_cast<int>(k.size(1));
  p.d_nope = static_cast<int>(nope.size(2)), p.d_shared = static_cast<int>(shared.size(1));
  p.bf16 = k.dtype == DType::bf16;
  return p;
}

}  // namespace

const char* attention_forward_refuses(const AttentionForward& args) {
  const char* reason = refuses(args.q);
  return reason == nullptr ? refuses(args.k) : reason;
}

void attention_forward(OpContext& ctx, const AttentionForward& args) {
  AttentionParams p = params_of(args.q, args.v, args.scale, args.lse, args.document_starts);
  p.q = tensor_of(args.q), p.k = tensor_of(args.k), p.v = tensor_of(args.v), p.o = tensor_of(args.o);
  if (args.max_logit) {
    p.max_logit = args.max_logit.as<float>();
    p.tile_max = ctx.scratch.take(DType::f32, {p.batch, p.heads, p.tiles}).as<float>();
  }
  if (p.tokens > 0) {
    on_tensor_cores(p) ? forward_on_tensor_cores(ctx, p) : launch_attention_forward_plain(p, stream_of(ctx));
  }
  if (p.max_logit != nullptr) launch_attention_max_logit(p, stream_of(ctx));
}

const char* attention_backward_refuses(const AttentionBackward& args) {
  return refuses(args.q);
}

void attention_backward(OpContext& ctx, const AttentionBackward& args) {
  AttentionParams p = params_of(args.q, args.v, args.scale, args.lse, args.document_starts);
  if (p.tokens == 0) return;
  p.q = tensor_of(args.q), p.k = tensor_of(args.k), p.v = tensor_of(args.v), p.o = tensor_of(args.o);
  p.d_o = tensor_of(args.d_o), p.dq = tensor_of(args.dq), p.dk = tensor_of(args.dk), p.dv = tensor_of(args.dv);
  const Shape rows{p.batch, p.heads, int64_t{p.tiles} * attention_tile};
  p.lse2 = ctx.scratch.take(DType::f32, rows).as<float>();
  p.delta = ctx.scratch.take(DType::f32, rows).as<float>();
  launch_attention_statistics(p, stream_of(ctx));
  on_tensor_cores(p) ? backward_on_tensor_cores(ctx, p) : launch_attention_backward_plain(p, stream_of(ctx));
}

const char* pack_shared_keys_refuses(const PackSharedKeys& args) {
  return refuses(args.k);
}

void pack_shared_keys(OpContext& ctx, const PackSharedKeys& args) {
  launch_pack_shared_keys(keys_of(args.k_nope, args.k_shared, args.k), stream_of(ctx));
}

const char* unpack_shared_keys_refuses(const UnpackSharedKeys& args) {
  return refuses(args.dk);
}

void unpack_shared_keys(OpContext& ctx, const UnpackSharedKeys& args) {
  launch_unpack_shared_keys(keys_of(args.dk_nope, args.dk_shared, args.dk), stream_of(ctx));
}

}  // namespace lamina::ops::cuda
