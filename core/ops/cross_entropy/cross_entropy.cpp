#include "core/ops/cross_entropy/cross_entropy.h"

#include <algorithm>

#include "core/ops/cross_entropy/implementations.h"
#include "core/ops/cross_entropy/softmax_cross_entropy.h"
#include "core/ops/gpu/register.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void validate(const LinearCrossEntropy& args) {
  const TensorView &x = args.x, &weight = args.weight;
  const DType acc = accumulation_dtype(x.dtype);
  LAMINA_CHECK(x.rank() == 2 && weight.rank() == 2 && x.dtype == weight.dtype && x.dtype != DType::i32 &&
                   x.size(1) == weight.size(1) && weight.size(0) > 0,
               "x {}, weight {}", x.to_string(), weight.to_string());
  LAMINA_CHECK(
      args.targets.dtype == DType::i32 && args.targets.is_contiguous() && args.targets.shape == (Shape{x.size(0)}),
      "targets {} for x {}", args.targets.to_string(), x.to_string());
  LAMINA_CHECK(
      args.token_loss.dtype == acc && args.token_loss.is_contiguous() && args.token_loss.shape == (Shape{x.size(0)}),
      "token_loss {} for x {}", args.token_loss.to_string(), x.to_string());
  LAMINA_CHECK(args.dx.empty() == args.dweight.empty(), "dx and dweight go together");
  if (args.dx) {
    LAMINA_CHECK(same_layout(args.dx, x), "dx {} for x {}", args.dx.to_string(), x.to_string());
    LAMINA_CHECK(args.dweight.dtype == acc && args.dweight.shape == weight.shape, "dweight {} for weight {}",
                 args.dweight.to_string(), weight.to_string());
  }
  if (!is_readable(args.targets)) return;
  const int32_t* targets = args.targets.as<int32_t>();
  for (int64_t t = 0; t < x.size(0); ++t) {
    LAMINA_CHECK(targets[t] >= 0 && targets[t] < weight.size(0), "target {} of token {} with a vocabulary of {}",
                 targets[t], t, weight.size(0));
  }
}

constexpr Implementation<SoftmaxCrossEntropy> cross_entropy_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(softmax_cross_entropy)  //
    {"cpu", cpu::softmax_cross_entropy_refuses, cpu::softmax_cross_entropy},
    {"ref", nullptr, ref::softmax_cross_entropy},
};

}  // namespace

// With a large vocabulary a piece of few tokens would spend its time on the weight. On a CPU its logits should also stay in the last
// cache; a GPU's is too small for them, and its products want many tokens.
int64_t cross_entropy_piece(int64_t num_tokens, int64_t vocab, DType acc, DeviceKind device) {
  const int64_t logits_bytes = int64_t{device == DeviceKind::cuda ? 256 : 16} << 20;
  constexpr int64_t fewest_tokens = 256;
  const int64_t fits = std::max(fewest_tokens, logits_bytes / (vocab * size_of(acc)));
  const int64_t num_pieces = (num_tokens + fits - 1) / fits;
  return num_pieces == 0 ? 1 : (num_tokens + num_pieces - 1) / num_pieces;
}

void linear_cross_entropy(OpContext& ctx, const LinearCrossEntropy& args) {
  validate(args);
  const ArenaScope scope(ctx.scratch);
  const DType acc = accumulation_dtype(args.x.dtype);
  const int64_t num_tokens = args.x.size(0), vocab = args.weight.size(0);
  const int64_t piece = cross_entropy_piece(num_tokens, vocab, acc, ctx.stream.device().kind);
  const TensorView all_logits = ctx.scratch.take(acc, {piece, vocab});
  TensorView all_dlogits;
  if (args.dx) all_dlogits = args.x.dtype == acc ? all_logits : ctx.scratch.take(args.x.dtype, {piece, vocab});
  for (int64_t begin = 0; begin < num_tokens; begin += piece) {
    const int64_t end = std::min(begin + piece, num_tokens);
    const TensorView x = args.x.slice(0, begin, end);
    const TensorView logits = all_logits.slice(0, 0, end - begin);
    linear(ctx, x, args.weight, logits);
    const TensorView dlogits = args.dx ? all_dlogits.slice(0, 0, end - begin) : TensorView();
    dispatch<SoftmaxCrossEntropy>(
        ctx, "softmax_cross_entropy", cross_entropy_implementations,
        {logits, args.targets.slice(0, begin, end), args.token_loss.slice(0, begin, end), args.grad_scale, dlogits});
    if (!args.dx) continue;
    linear_input_gradient(ctx, dlogits, args.weight, args.dx.slice(0, begin, end), GradMode::overwrite);
    linear_weight_gradient(ctx, dlogits, x, args.dweight);
  }
}

}  // namespace lamina::ops
