// MLA's keys put together and taken apart, and tensors of attention copied to where 16-byte accesses can reach them.
//
// Limit: bytes moved; every element is read and written once, 16 bytes an access where the layout allows it (the
// key's shared part is read once for all heads from L1). The sum over heads has a thread for every 8 columns of a
// token, and 8 loads under way.
#include "core/ops/attention/kernels.h"
#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {
namespace {

constexpr int num_threads = 256;

template <class T, int width>
__global__ void __launch_bounds__(num_threads) pack_keys(const SharedKeysParams p) {
  using Piece = Pack<T, width>;
  const int64_t token = blockIdx.x;
  const int nope = p.d_nope / width, pieces = nope + p.d_shared / width;
  const auto* from = static_cast<const T*>(p.nope) + token * p.nope_token;
  const auto* shared = static_cast<const T*>(p.shared) + token * p.shared_token;
  auto* k = static_cast<T*>(p.k) + token * p.k_token;
  for (int n = static_cast<int>(threadIdx.x); n < p.heads * pieces; n += num_threads) {
    const int head = n / pieces, piece = n % pieces;
    const T* source = piece < nope ? from + head * p.nope_head + piece * width : shared + (piece - nope) * width;
    *reinterpret_cast<Piece*>(k + head * p.k_head + piece * width) = *reinterpret_cast<const Piece*>(source);
  }
}

template <class T, int width>
__global__ void __launch_bounds__(num_threads) unpack_nope(const SharedKeysParams p) {
  using Piece = Pack<T, width>;
  const int64_t token = blockIdx.x;
  const int pieces = p.d_nope / width;
  const auto* k = static_cast<const T*>(p.k) + token * p.k_token;
  auto* to = static_cast<T*>(p.nope) + token * p.nope_token;
  for (int n = static_cast<int>(threadIdx.x); n < p.heads * pieces; n += num_threads) {
    const int head = n / pieces, column = n % pieces * width;
    *reinterpret_cast<Piece*>(to + head * p.nope_head + column) =
        *reinterpret_cast<const Piece*>(k + head * p.k_head + column);
  }
}

template <class T, int width>
__global__ void __launch_bounds__(num_threads) sum_shared(const SharedKeysParams p) {
  using Piece = Pack<T, width>;
  const int pieces = p.d_shared / width;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * num_threads + threadIdx.x, token = n / pieces;
  if (token >= p.tokens) return;
  const int64_t column = n % pieces * width;
  const auto* k = static_cast<const T*>(p.k) + token * p.k_token + p.d_nope + column;
  float sums[width] = {};
#pragma unroll 8
  for (int head = 0; head < p.heads; ++head) {
    const auto piece = *reinterpret_cast<const Piece*>(k + head * p.k_head);
#pragma unroll
    for (int e = 0; e < width; ++e) sums[e] += to_float(piece.at[e]);
  }
  Piece out;
#pragma unroll
  for (int e = 0; e < width; ++e) out.at[e] = from_float<T>(sums[e]);
  *reinterpret_cast<Piece*>(static_cast<T*>(p.shared) + token * p.shared_token + column) = out;
}

template <class T, int width>
void pack_typed(const SharedKeysParams& p, cudaStream_t stream) {
  if (p.heads * (p.d_nope + p.d_shared) == 0) return;
  launch(pack_keys<T, width>, dim3(static_cast<unsigned>(p.tokens)), dim3(num_threads), 0, stream, p);
}

template <class T, int width>
void unpack_typed(const SharedKeysParams& p, cudaStream_t stream) {
  if (p.heads * p.d_nope > 0)
    launch(unpack_nope<T, width>, dim3(static_cast<unsigned>(p.tokens)), dim3(num_threads), 0, stream, p);
  const int64_t pieces = p.tokens * (p.d_shared / width);
  launch(sum_shared<T, width>, dim3(blocks_for(pieces, num_threads)), dim3(num_threads), 0, stream, p);
}

// 16 bytes' worth of elements, or one.
template <class T>
bool in_packs(const SharedKeysParams& p) {
  return pack_width(sizeof(T), {p.nope, p.shared, p.k},
                    {p.nope_token, p.nope_head, p.shared_token, p.k_token, p.k_head, p.d_nope, p.d_shared}) > 1;
}

// One element a thread: layouts that need this are rare.
__global__ void __launch_bounds__(num_threads)
    copy_tensor(const AttentionTensor from, const AttentionTensor to, int64_t count, int tokens, int heads,
                int from_width, int to_width) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * num_threads + threadIdx.x;
  if (n >= count) return;
  const int64_t d = n % to_width, head = n / to_width % heads, token = n / to_width / heads % tokens,
                batch = n / to_width / heads / tokens;
  const auto* source =
      static_cast<const __nv_bfloat16*>(from.data) + batch * from.batch + token * from.token + head * from.head;
  auto* destination = static_cast<__nv_bfloat16*>(to.data) + batch * to.batch + token * to.token + head * to.head;
  destination[d] = d < from_width ? source[d] : __float2bfloat16_rn(0.0f);
}

}  // namespace

void launch_pack_shared_keys(const SharedKeysParams& p, cudaStream_t stream) {
  using Bf16 = __nv_bfloat16;
  if (p.bf16) return in_packs<Bf16>(p) ? pack_typed<Bf16, 8>(p, stream) : pack_typed<Bf16, 1>(p, stream);
  in_packs<float>(p) ? pack_typed<float, 4>(p, stream) : pack_typed<float, 1>(p, stream);
}

void launch_unpack_shared_keys(const SharedKeysParams& p, cudaStream_t stream) {
  using Bf16 = __nv_bfloat16;
  if (p.bf16) return in_packs<Bf16>(p) ? unpack_typed<Bf16, 8>(p, stream) : unpack_typed<Bf16, 1>(p, stream);
  in_packs<float>(p) ? unpack_typed<float, 4>(p, stream) : unpack_typed<float, 1>(p, stream);
}

void launch_attention_copy(const AttentionTensor& from, const AttentionTensor& to, const AttentionParams& p,
                           int from_width, int to_width, cudaStream_t stream) {
  const int64_t count = int64_t{p.batch} * p.tokens * p.heads * to_width;
  launch(copy_tensor, dim3(blocks_for(count, num_threads)), dim3(num_threads), 0, stream, from, to, count, p.tokens,
         p.heads, from_width, to_width);
}

}  // namespace lamina::ops::cuda
