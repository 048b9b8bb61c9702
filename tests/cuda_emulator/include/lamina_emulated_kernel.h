// What core/device/cuda/ptx.h gives to kernels, emulated: the same names, signatures and meaning.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <source_location>
#include <tuple>

#include "core/device/cuda/check.h"
#include "core/device/cuda/shared_memory.h"

#define LAMINA_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(::lamina_emulator::dynamic_shared())

namespace lamina_emulator {

// Refuses what the hardware would refuse, else puts the launch into the stream; `body` is one thread's work.
cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   std::function<void()> body);

// How often the threads of the block that ran last met, in the last launch of a kernel whose name contains `name`; 0: none.
// Blocks run one after another, so that block is as one that found no room beside the others and another's kernel: what it does
// comes on top of the others' time.
uint64_t barriers_of_late_block(const char* name);

struct MatrixProduct {
  float (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};
void combine_mma_bf16(void* const* operands, unsigned arrived);
void combine_mma_tf32(void* const* operands, unsigned arrived);
struct MatrixLoad {
  uint32_t (*r)[4];
  const void* row;
};
void combine_ldmatrix(void* const* operands, unsigned arrived);
void combine_ldmatrix_trans(void* const* operands, unsigned arrived);
void check_shared_row(const void* row, Where where);
void copy_later(void* shared, const void* global, int valid_bytes, Where where);
void commit_copies();
void wait_for_copies(int allowed_groups);

}  // namespace lamina_emulator

namespace lamina::cuda {

constexpr size_t parameter_limit = 32764;  // bytes of a kernel's parameters

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= parameter_limit);
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > default_shared_limit) raise_shared_limit(reinterpret_cast<const void*>(kernel));
  check(::lamina_emulator::launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream,
                                  [kernel, parameters = std::tuple<Parameters...>(static_cast<Parameters>(
                                               arguments)...)] { std::apply(kernel, parameters); }),
        "launch of a kernel");
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], LAMINA_EMULATOR_HERE) {
  ::lamina_emulator::MatrixProduct operand{&d, &a, &b};
  ::lamina_emulator::meet_whole_warp("mma_bf16", &operand, ::lamina_emulator::combine_mma_bf16, where);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], LAMINA_EMULATOR_HERE) {
  ::lamina_emulator::MatrixProduct operand{&d, &a, &b};
  ::lamina_emulator::meet_whole_warp("mma_tf32", &operand, ::lamina_emulator::combine_mma_tf32, where);
}
inline uint32_t to_tf32(float x) {  // to nearest, ties away from zero
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & ~0x1fffu;
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, LAMINA_EMULATOR_HERE) {
  ::lamina_emulator::check_shared_row(shared_row, where);
  ::lamina_emulator::MatrixLoad operand{&r, shared_row};
  ::lamina_emulator::meet_whole_warp("ldmatrix_x4", &operand, ::lamina_emulator::combine_ldmatrix, where);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row, LAMINA_EMULATOR_HERE) {
  ::lamina_emulator::check_shared_row(shared_row, where);
  ::lamina_emulator::MatrixLoad operand{&r, shared_row};
  ::lamina_emulator::meet_whole_warp("ldmatrix_x4_trans", &operand, ::lamina_emulator::combine_ldmatrix_trans, where);
}
inline void cp_async_16(void* shared, const void* global, int valid_bytes = 16, LAMINA_EMULATOR_HERE) {
  ::lamina_emulator::copy_later(shared, global, valid_bytes, where);
}
inline void cp_async_commit() {
  ::lamina_emulator::commit_copies();
}
template <int allowed_groups>
void cp_async_wait() {
  static_assert(allowed_groups >= 0);
  ::lamina_emulator::wait_for_copies(allowed_groups);
}

}  // namespace lamina::cuda
