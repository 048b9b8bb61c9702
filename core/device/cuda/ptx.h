// Instructions that CUDA C++ doesn't offer, and launching. Included by kernel.h; the emulator has the same functions.
#pragma once

#define LAMINA_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char lamina_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(lamina_dynamic_shared)

namespace lamina::cuda {

// Asynchronous; throws when the launch itself is refused.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > default_shared_limit) raise_shared_limit(reinterpret_cast<const void*>(kernel));
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), "launch of a kernel");
}

// d += a b on a warp's tensor cores, m16n8k16, bf16 operands, fp32 sums. With group = lane / 4 and pair = lane % 4, the
// fragments of PTX's mma.m16n8k16: a[0] rows group, a[1] rows group + 8, columns 2 pair, 2 pair + 1; a[2], a[3] the same 8
// columns on. b[0] rows 2 pair, 2 pair + 1 of column group, b[1] 8 rows on. d[0], d[1] row group, columns 2 pair, 2 pair + 1;
// d[2], d[3] row group + 8. The lower half of a register holds the lower index.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with m16n8k8 and TF32 operands, given as the bits of fp32 values of which 10 bits of the mantissa are used:
// a[0] row group, column pair; a[1] row group + 8; a[2], a[3] the same at column pair + 4; b[0] row pair of column group, b[1] row
// pair + 4.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ uint32_t to_tf32(float x) {  // rounded to nearest
  uint32_t bits;
  asm volatile("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return bits;
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address (16 bytes, aligned) of row l % 8 of matrix
// l / 8; r[m] receives elements 2 (lane % 4) and the next of row lane / 4 of matrix m, or of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// 16 bytes from global to shared memory (both aligned to 16) without passing registers; of the source only `valid_bytes` are
// read, the rest of the destination becomes zero. Complete for the issuing thread after cp_async_wait.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int valid_bytes = 16) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(valid_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int allowed_groups>  // that may still be under way
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(allowed_groups) : "memory");
}

}  // namespace lamina::cuda
