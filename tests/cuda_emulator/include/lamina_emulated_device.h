// The language of kernels and the functions that every kernel has without asking, for the host's compiler.
#pragma once

#include <math.h>

#include <atomic>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>  // before __noinline__ becomes a macro, which this header of libstdc++ has another use for
#include <source_location>
#include <type_traits>

#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// All threads of a block are fibers of one thread of the host. Alignment goes before it, or is written with __align__ behind it.
#define __shared__ static thread_local

// Those of the fiber that runs.
extern __thread uint3 threadIdx;
extern __thread uint3 blockIdx;
extern __thread dim3 blockDim;
extern __thread dim3 gridDim;
constexpr int warpSize = 32;

namespace lamina_emulator {

using Where = const std::source_location&;
#define LAMINA_EMULATOR_HERE const std::source_location& where = std::source_location::current()

// Returns when all threads of the warp that `mask` names and that have not returned have called it with the same name and mask
// at the same place of the source. The last one runs `combine` on the operands of all; `arrived` tells which of them there are.
using Combine = void (*)(void* const* operands, unsigned arrived);
void meet_in_warp(const char* name, unsigned mask, void* operand, Combine combine, Where where);
void meet_whole_warp(const char* name, void* operand, Combine combine,
                     Where where);  // an error when threads are missing
struct Votes {
  int all, any, count;
};
Votes meet_in_block(const char* name, int predicate, Where where);
[[noreturn]] void fail_in_kernel(const char* what, Where where);
unsigned lane();
void* dynamic_shared();

struct Shuffled {
  uint64_t value;
  int source;  // lane
};
void combine_shuffled(void* const* operands, unsigned arrived);
struct Vote {
  uint32_t value;
  uint32_t result;
};
void combine_sync(void* const* operands, unsigned arrived);
void combine_ballot(void* const* operands, unsigned arrived);
void combine_sum(void* const* operands, unsigned arrived);
void combine_and(void* const* operands, unsigned arrived);
void combine_or(void* const* operands, unsigned arrived);
void combine_xor(void* const* operands, unsigned arrived);
void combine_max(void* const* operands, unsigned arrived);
void combine_min(void* const* operands, unsigned arrived);
void combine_max_signed(void* const* operands, unsigned arrived);
void combine_min_signed(void* const* operands, unsigned arrived);

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Shuffled operand{0, source};
  std::memcpy(&operand.value, &value, sizeof(T));
  meet_in_warp(name, mask, &operand, combine_shuffled, where);
  std::memcpy(&value, &operand.value, sizeof(T));
  return value;
}
inline void check_width(int width, Where where) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail_in_kernel("a shuffle's width is a power of two up to 32", where);
}
inline uint32_t vote(const char* name, unsigned mask, uint32_t value, Combine combine, Where where) {
  Vote operand{value, 0};
  meet_in_warp(name, mask, &operand, combine, where);
  return operand.result;
}

}  // namespace lamina_emulator

inline void __syncthreads(LAMINA_EMULATOR_HERE) {
  lamina_emulator::meet_in_block("__syncthreads", 0, where);
}
inline int __syncthreads_or(int predicate, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::meet_in_block("__syncthreads_or", predicate, where).any;
}
inline int __syncthreads_and(int predicate, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::meet_in_block("__syncthreads_and", predicate, where).all;
}
inline int __syncthreads_count(int predicate, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::meet_in_block("__syncthreads_count", predicate, where).count;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, LAMINA_EMULATOR_HERE) {
  lamina_emulator::meet_in_warp("__syncwarp", mask, nullptr, lamina_emulator::combine_sync, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, LAMINA_EMULATOR_HERE) {
  lamina_emulator::check_width(width, where);
  const int self = static_cast<int>(lamina_emulator::lane());
  return lamina_emulator::shuffle("__shfl_sync", mask, value, (self & ~(width - 1)) | (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, LAMINA_EMULATOR_HERE) {
  lamina_emulator::check_width(width, where);
  const int self = static_cast<int>(lamina_emulator::lane()), source = self ^ lanes;
  // A later group's lane is out of reach; an earlier group's is not.
  const bool reachable = source <= (self | (width - 1));
  return lamina_emulator::shuffle("__shfl_xor_sync", mask, value, reachable ? source : self, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, LAMINA_EMULATOR_HERE) {
  lamina_emulator::check_width(width, where);
  const int self = static_cast<int>(lamina_emulator::lane()), source = self - static_cast<int>(lanes);
  return lamina_emulator::shuffle("__shfl_up_sync", mask, value, source >= (self & ~(width - 1)) ? source : self,
                                  where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, LAMINA_EMULATOR_HERE) {
  lamina_emulator::check_width(width, where);
  const int self = static_cast<int>(lamina_emulator::lane()), source = self + static_cast<int>(lanes);
  return lamina_emulator::shuffle("__shfl_down_sync", mask, value, source <= (self | (width - 1)) ? source : self,
                                  where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::vote("__ballot_sync", mask, predicate != 0, lamina_emulator::combine_ballot, where);
}
inline int __any_sync(unsigned mask, int predicate, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::vote("__any_sync", mask, predicate != 0, lamina_emulator::combine_or, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::vote("__all_sync", mask, predicate != 0, lamina_emulator::combine_and, where) != 0;
}
#define LAMINA_EMULATOR_REDUCTION(name, combine_unsigned, combine_signed)                                          \
  inline unsigned name(unsigned mask, unsigned value, LAMINA_EMULATOR_HERE) {                                      \
    return lamina_emulator::vote(#name, mask, value, lamina_emulator::combine_unsigned, where);                    \
  }                                                                                                                \
  inline int name(unsigned mask, int value, LAMINA_EMULATOR_HERE) {                                                \
    return static_cast<int>(                                                                                       \
        lamina_emulator::vote(#name, mask, static_cast<uint32_t>(value), lamina_emulator::combine_signed, where)); \
  }
LAMINA_EMULATOR_REDUCTION(__reduce_add_sync, combine_sum, combine_sum)
LAMINA_EMULATOR_REDUCTION(__reduce_max_sync, combine_max, combine_max_signed)
LAMINA_EMULATOR_REDUCTION(__reduce_min_sync, combine_min, combine_min_signed)
#undef LAMINA_EMULATOR_REDUCTION
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::vote("__reduce_and_sync", mask, value, lamina_emulator::combine_and, where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::vote("__reduce_or_sync", mask, value, lamina_emulator::combine_or, where);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, LAMINA_EMULATOR_HERE) {
  return lamina_emulator::vote("__reduce_xor_sync", mask, value, lamina_emulator::combine_xor, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(LAMINA_EMULATOR_HERE) {
  lamina_emulator::fail_in_kernel("__trap()", where);
}

template <class T>
requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long> ||
         std::is_same_v<T, float> || std::is_same_v<T, double>) T atomicAdd(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_add(value);
}
template <class T>
requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>) T atomicSub(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_sub(value);
}
template <class T>
requires(std::is_integral_v<T> && sizeof(T) >= 4) T atomicMax(T* address, std::type_identity_t<T> value) {
  std::atomic_ref<T> at(*address);
  T old = at.load();
  while (old < value && !at.compare_exchange_weak(old, value)) {
  }
  return old;
}
template <class T>
requires(std::is_integral_v<T> && sizeof(T) >= 4) T atomicMin(T* address, std::type_identity_t<T> value) {
  std::atomic_ref<T> at(*address);
  T old = at.load();
  while (value < old && !at.compare_exchange_weak(old, value)) {
  }
  return old;
}
template <class T>
requires(sizeof(T) >= 4) T atomicExch(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).exchange(value);
}
template <class T>
requires(std::is_integral_v<T>) T
    atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, desired);
  return expected;
}
template <class T>
requires(std::is_integral_v<T> && sizeof(T) >= 4) T atomicOr(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_or(value);
}
template <class T>
requires(std::is_integral_v<T> && sizeof(T) >= 4) T atomicAnd(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_and(value);
}
template <class T>
requires(std::is_integral_v<T> && sizeof(T) >= 4) T atomicXor(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_xor(value);
}

#define LAMINA_EMULATOR_LOAD(name) \
  template <class T>               \
  T name(const T* address) {       \
    return *address;               \
  }
#define LAMINA_EMULATOR_STORE(name)                      \
  template <class T>                                     \
  void name(T* address, std::type_identity_t<T> value) { \
    *address = value;                                    \
  }
LAMINA_EMULATOR_LOAD(__ldg)
LAMINA_EMULATOR_LOAD(__ldcg)
LAMINA_EMULATOR_LOAD(__ldca)
LAMINA_EMULATOR_LOAD(__ldcs)
LAMINA_EMULATOR_LOAD(__ldlu)
LAMINA_EMULATOR_LOAD(__ldcv)
LAMINA_EMULATOR_STORE(__stcs)
LAMINA_EMULATOR_STORE(__stcg)
LAMINA_EMULATOR_STORE(__stwb)
LAMINA_EMULATOR_STORE(__stwt)
#undef LAMINA_EMULATOR_LOAD
#undef LAMINA_EMULATOR_STORE

template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

namespace lamina_emulator {
inline float exp_fast(float x) {
  return ::expf(x);
}
inline float log_fast(float x) {
  return ::logf(x);
}
inline float pow_fast(float x, float y) {
  return ::powf(x, y);
}
}  // namespace lamina_emulator
// The C library declares functions of these names for itself.
#define __expf ::lamina_emulator::exp_fast
#define __logf ::lamina_emulator::log_fast
#define __powf ::lamina_emulator::pow_fast

inline float rsqrtf(float x) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
constexpr float __fdividef(float a, float b) {
  return a / b;
}
constexpr float __fdiv_rn(float a, float b) {
  return a / b;
}
constexpr float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __frsqrt_rn(float x) {
  return rsqrtf(x);
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
constexpr float __fmul_rn(float a, float b) {
  return a * b;
}
constexpr float __fadd_rn(float a, float b) {
  return a + b;
}
constexpr float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
constexpr float __saturatef(float x) {
  return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

constexpr float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
constexpr float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
constexpr int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
constexpr unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
constexpr long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
constexpr double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}
inline int __float2int_rn(float x) {
  return static_cast<int>(std::nearbyint(x));
}
inline int __float2int_rz(float x) {
  return static_cast<int>(x);
}
inline int __float2int_rd(float x) {
  return static_cast<int>(std::floor(x));
}
inline int __float2int_ru(float x) {
  return static_cast<int>(std::ceil(x));
}
inline unsigned __float2uint_rn(float x) {
  return static_cast<unsigned>(std::nearbyint(x));
}
constexpr float __int2float_rn(int x) {
  return static_cast<float>(x);
}
constexpr float __uint2float_rn(unsigned x) {
  return static_cast<float>(x);
}
constexpr int __popc(unsigned x) {
  return std::popcount(x);
}
constexpr int __popcll(unsigned long long x) {
  return std::popcount(x);
}
constexpr int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
constexpr int __ffsll(long long x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1;
}
constexpr int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
constexpr int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
constexpr unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= ((x >> i) & 1u) << (31 - i);
  return reversed;
}
constexpr int __mul24(int a, int b) {
  const auto low = [](int x) { return static_cast<long long>(static_cast<int>(static_cast<unsigned>(x) << 8) >> 8); };
  return static_cast<int>(static_cast<unsigned long long>(low(a) * low(b)));
}
constexpr unsigned __umul24(unsigned a, unsigned b) {
  return (a & 0xffffffu) * (b & 0xffffffu);
}
constexpr int __mulhi(int a, int b) {
  return static_cast<int>((static_cast<long long>(a) * b) >> 32);
}
constexpr unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}
constexpr unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = (static_cast<unsigned long long>(b) << 32) | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = (selector >> (4 * i)) & 0xf;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (choice & 7))) & 0xff;
    if ((choice & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;  // its sign
    result |= byte << (8 * i);
  }
  return result;
}
