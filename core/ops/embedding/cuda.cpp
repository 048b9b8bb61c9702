#include "core/ops/embedding/implementations.h"

#include "core/device/cuda_device.h"
#include "core/ops/embedding/kernels.h"
#include "core/ops/gpu/operands.h"

namespace lamina::ops::cuda {

const char* embedding_forward_refuses(const EmbeddingForward& args) {
  return refuses_fp64({&args.table});
}
void embedding_forward(OpContext& ctx, const EmbeddingForward& args) {
  if (args.y.num_elements() == 0) return;
  launch_embedding_forward({args.table.dtype, args.tokens.as<int32_t>(), args.table.data, args.y.data,
                            args.table.stride(0), args.y.stride(0), args.tokens.size(0), args.table.size(1)},
                           stream_of(ctx));
}

const char* embedding_backward_refuses(const EmbeddingBackward& args) {
  return refuses_fp64({&args.dtable});
}
void embedding_backward(OpContext& ctx, const EmbeddingBackward& args) {
  const int64_t count = args.tokens.size(0), vocab = args.dtable.size(0);
  if (args.dy.num_elements() == 0) return;
  const auto take = [&](int64_t size) { return ctx.scratch.take(DType::i32, {size}).as<int32_t>(); };
  int32_t* const counts = take(vocab + 1);  // and the cursor
  const TokenPositionsParams positions{
      args.tokens.as<int32_t>(), counts, take(vocab), take(count), take(count), take(count), counts + vocab, count};
  lamina::cuda::fill_zero(counts, (vocab + 1) * size_of(DType::i32), ctx.stream);
  launch_token_positions(positions, stream_of(ctx));
  launch_embedding_backward({args.dy.dtype, positions, args.dy.data, args.dtable.as<float>(), args.dy.stride(0),
                             args.dtable.stride(0), args.dy.size(1)},
                            stream_of(ctx));
}

}  // namespace lamina::ops::cuda
