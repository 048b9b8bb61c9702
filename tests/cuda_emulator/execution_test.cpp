// Threads, blocks, barriers, warps and shared memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <set>

#include "core/ops/gpu/device_math.h"
#include "emulator_test.h"

namespace {

using lamina::cuda::launch;
using lamina_emulator_test::failure_of;
using lamina_emulator_test::OnDevice;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

__global__ void write_indices(int* out, int nx, int ny) {
  const int x = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
            y = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
  const int z = static_cast<int>(blockIdx.z * blockDim.z + threadIdx.z);
  if (x < nx && y < ny) out[(z * ny + y) * nx + x] = 100 * x + 10 * y + z;
}

TEST(Execution, RunsEveryThreadOfEveryBlockOnce) {
  const int nx = 13, ny = 7, nz = 6;
  const OnDevice<int> out(nx * ny * nz);
  launch(write_indices, dim3(4, 3, 3), dim3(4, 3, 2), 0, nullptr, out.data(), nx, ny);
  const std::vector<int> values = out.values();
  for (int z = 0; z < nz; ++z)
    for (int y = 0; y < ny; ++y)
      for (int x = 0; x < nx; ++x) EXPECT_EQ(values[(z * ny + y) * nx + x], 100 * x + 10 * y + z);
}

__global__ void reverse(float* values, bool with_barrier) {
  __shared__ float kept[256];
  kept[threadIdx.x] = values[blockIdx.x * 256 + threadIdx.x];
  if (with_barrier) __syncthreads();
  values[blockIdx.x * 256 + threadIdx.x] = kept[255 - threadIdx.x];
}

TEST(Execution, BarrierOrdersAndItsAbsenceShows) {
  std::vector<float> given(1024);
  std::iota(given.begin(), given.end(), 0.0f);
  std::vector<float> expected = given;
  for (int block = 0; block < 4; ++block)
    std::reverse(expected.begin() + 256 * block, expected.begin() + 256 * (block + 1));
  const OnDevice<float> with(given), without(given);
  launch(reverse, dim3(4), dim3(256), 0, nullptr, with.data(), true);
  EXPECT_EQ(with.values(), expected);
  launch(reverse, dim3(4), dim3(256), 0, nullptr, without.data(), false);
  EXPECT_NE(without.values(), expected);
}

__global__ void sum_blocks(const float* x, float* sums) {
  __shared__ float scratch[33];
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float first = lamina::ops::cuda::block_sum(x[i], scratch);
  const float second = lamina::ops::cuda::block_sum(2 * x[i], scratch);
  sums[i] = first + second;
}

TEST(Execution, BlockSumOfDeviceMath) {
  for (const unsigned threads : {32u, 64u, 256u, 1024u}) {
    std::vector<float> x(3 * threads);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7);
    const OnDevice<float> in(x), out(x.size());
    launch(sum_blocks, dim3(3), dim3(threads), 0, nullptr, in.data(), out.data());
    const std::vector<float> sums = out.values();
    for (unsigned block = 0; block < 3; ++block) {
      const float expected = 3 * std::accumulate(x.begin() + block * threads, x.begin() + (block + 1) * threads, 0.0f);
      for (unsigned i = 0; i < threads; ++i) EXPECT_EQ(sums[block * threads + i], expected);
    }
  }
}

__global__ void vote_in_block(int* out) {
  const int x = static_cast<int>(threadIdx.x);
  const int any = __syncthreads_or(x == 5), all = __syncthreads_and(x < 90), count = __syncthreads_count(x % 3 == 0);
  const int none = __syncthreads_or(x > 1000), not_all = __syncthreads_and(x != 7);
  out[x] = (any != 0) + 2 * (all != 0) + 4 * (none != 0) + 8 * (not_all != 0) + 16 * count;
}

TEST(Execution, BarriersThatCount) {
  const OnDevice<int> out(90);
  launch(vote_in_block, dim3(1), dim3(90), 0, nullptr, out.data());
  EXPECT_EQ(out.values(), std::vector<int>(90, 1 + 2 + 16 * 30));
}

__global__ void leave_early(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  const unsigned ballot = __ballot_sync(0xffffffffu, threadIdx.x % 2 == 0);
  out[threadIdx.x] = static_cast<int>(ballot);
}

TEST(Execution, ThreadsThatReturnedAreNotWaitedFor) {
  const OnDevice<int> out(40);
  launch(leave_early, dim3(1), dim3(96), 0, nullptr, out.data());
  std::vector<int> expected(40, 0x55555555);
  std::fill(expected.begin() + 32, expected.end(), 0x55);
  EXPECT_EQ(out.values(), expected);
}

__global__ void dynamic(float* out, int count) {
  LAMINA_DYNAMIC_SHARED(float, shared);
  if (threadIdx.x == 0) shared[0] = 1.0f;
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
  if (count > 0 && threadIdx.x == 1) shared[count] = 0.0f;
}

TEST(Execution, DynamicSharedMemoryIsPoisonedAndGuarded) {
  const OnDevice<float> out(2 * 64);
  launch(dynamic, dim3(2), dim3(64), 64 * sizeof(float), nullptr, out.data(), 0);
  const std::vector<float> values = out.values();
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(values[i]), i % 64 != 0);
  const std::string text = failure_of(dynamic, dim3(2), dim3(64), 64 * sizeof(float), nullptr, out.data(), 66);
  EXPECT_TRUE(contains(text, "behind the 256 bytes of dynamic shared memory, at offset 264")) << text;
}

template <int n>
__global__ void read_unwritten(float* out) {
  __shared__ float first[n];
  __shared__ __align__(16) float second[2][n];
  out[blockIdx.x * n + threadIdx.x] = threadIdx.x % 2 == 0 ? first[threadIdx.x] : second[1][threadIdx.x];
  first[threadIdx.x] = second[1][threadIdx.x] = 1.0f;
}

TEST(Execution, SharedVariablesArePoisonedForEveryBlock) {
  const OnDevice<float> out(std::vector<float>(3 * 32));
  launch(read_unwritten<32>, dim3(3), dim3(32), 0, nullptr, out.data());
  for (const float value : out.values()) EXPECT_TRUE(std::isnan(value));
}

__global__ void diverge(int* out) {
  if (threadIdx.x < 48) __syncthreads();
  if (threadIdx.x == 50) __shfl_sync(0xffffffffu, 1, 0);
  if (threadIdx.x >= 60) return;
  if (threadIdx.x >= 48) __syncwarp(0x0fff0000u);
  out[threadIdx.x] = 1;
}

TEST(Execution, TellsWhoWaitsWhere) {
  const OnDevice<int> out(64);
  const std::string text = failure_of(diverge, dim3(1), dim3(64), 0, nullptr, out.data());
  EXPECT_TRUE(contains(text, "block (0,0,0) of kernel (anonymous namespace)::diverge(int*) is stuck")) << text;
  EXPECT_TRUE(contains(text, "48 threads, the first (0,0,0), wait in __syncthreads at ")) << text;
  EXPECT_TRUE(contains(text, "1 threads, the first (50,0,0), wait in __shfl_sync with mask 0xffffffff at ")) << text;
  EXPECT_TRUE(contains(text, "11 threads, the first (48,0,0), wait in __syncwarp with mask 0x0fff0000 at ")) << text;
  EXPECT_TRUE(contains(text, "4 have returned")) << text;
  EXPECT_EQ(failure_of(leave_early, dim3(1), dim3(64), 0, nullptr, out.data()), "");  // well again
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void two_kinds() {
  if (threadIdx.x % 2 == 0) {
    __shfl_sync(0xffffffffu, 1, 0);
  } else {
    __any_sync(0xffffffffu, 1);
  }
}
__global__ void not_in_mask() {
  __syncwarp(0xfffffffeu);
}
__global__ void odd_width() {
  __shfl_sync(0xffffffffu, 1, 0, 12);
}
__global__ void trap() {
  if (threadIdx.x == 3) __trap();
}
__global__ void part_of_warp(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 31) lamina::cuda::mma_bf16(d, a, b);
  if (threadIdx.x == 0) out[0] = d[0];
}

TEST(Execution, RefusesWhatIsUndefined) {
  const OnDevice<float> out(1);
  EXPECT_TRUE(contains(failure_of(two_barriers, dim3(1), dim3(64), 0, nullptr),
                       "but other threads of the block are in __syncthreads"));
  EXPECT_TRUE(contains(failure_of(two_kinds, dim3(1), dim3(32), 0, nullptr),
                       "but others of the warp that its mask names are in __"));
  EXPECT_TRUE(
      contains(failure_of(not_in_mask, dim3(1), dim3(32), 0, nullptr), "by a thread that its mask does not name"));
  EXPECT_TRUE(contains(failure_of(odd_width, dim3(1), dim3(32), 0, nullptr), "width"));
  EXPECT_TRUE(contains(failure_of(trap, dim3(1), dim3(32), 0, nullptr), "thread (3,0,0) of block (0,0,0) of kernel"));
  EXPECT_TRUE(contains(failure_of(part_of_warp, dim3(1), dim3(32), 0, nullptr, out.data()), "needs all 32"));
  EXPECT_TRUE(contains(failure_of(part_of_warp, dim3(1), dim3(31), 0, nullptr, out.data()), "needs all 32 threads"));
}

TEST(Execution, RefusesLaunchesThatAreTooLarge) {
  const auto status = [](dim3 grid, dim3 block, size_t shared) {
    try {
      launch(trap, grid, block, shared, nullptr);
    } catch (const std::exception&) {
      return true;
    }
    return false;
  };
  EXPECT_TRUE(status(dim3(1), dim3(1025), 0));
  EXPECT_TRUE(status(dim3(1), dim3(1, 1, 65), 0));
  EXPECT_TRUE(status(dim3(1), dim3(0), 0));
  EXPECT_TRUE(status(dim3(0x80000000u), dim3(1), 0));
  EXPECT_TRUE(status(dim3(1, 65536), dim3(1), 0));
  EXPECT_TRUE(status(dim3(1, 1, 65536), dim3(1), 0));
  EXPECT_TRUE(status(dim3(1), dim3(1), (227 << 10) + 1));
  EXPECT_FALSE(status(dim3(0), dim3(1), 0));  // nothing to do
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

template <class T>
__global__ void shuffles(T* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T x = static_cast<T>(threadIdx.x + 1);
  T* const at = out + threadIdx.x * 8;
  at[0] = __shfl_sync(0xffffffffu, x, 5);
  at[1] = __shfl_sync(0xffffffffu, x, lane + 9, 8);
  at[2] = __shfl_xor_sync(0xffffffffu, x, 16);
  at[3] = __shfl_up_sync(0xffffffffu, x, 3);
  at[4] = __shfl_up_sync(0xffffffffu, x, 3, 8);
  at[5] = __shfl_down_sync(0xffffffffu, x, 3);
  at[6] = __shfl_down_sync(0xffffffffu, x, 3, 16);
  at[7] = lane < 10 ? __shfl_sync(0x3ffu, x, 20) : T{0};  // from a thread that does not take part
}

template <class T>
void test_shuffles() {
  const OnDevice<T> out(64 * 8);
  launch(shuffles<T>, dim3(1), dim3(64), 0, nullptr, out.data());
  const std::vector<T> values = out.values();
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32, base = t - lane;
    const auto from = [&](int source) { return static_cast<T>(base + source + 1); };
    const T* const at = &values[t * 8];
    EXPECT_EQ(at[0], from(5));
    EXPECT_EQ(at[1], from(lane / 8 * 8 + (lane + 9) % 8));
    EXPECT_EQ(at[2], from(lane ^ 16));
    EXPECT_EQ(at[3], from(lane >= 3 ? lane - 3 : lane));
    EXPECT_EQ(at[4], from(lane % 8 >= 3 ? lane - 3 : lane));
    EXPECT_EQ(at[5], from(lane < 29 ? lane + 3 : lane));
    EXPECT_EQ(at[6], from(lane % 16 < 13 ? lane + 3 : lane));
    T poison;
    std::memset(&poison, 0xff, sizeof(T));
    if (lane < 10) {
      EXPECT_EQ(std::memcmp(&at[7], &poison, sizeof(T)), 0);
    }
  }
}

TEST(Execution, Shuffles) {
  test_shuffles<int>();
  test_shuffles<unsigned>();
  test_shuffles<float>();
  test_shuffles<double>();
  test_shuffles<long long>();
}

__global__ void votes(unsigned* out) {
  const unsigned lane = threadIdx.x;
  if (lane < 12) {
    out[lane] = __ballot_sync(0xfffu, lane % 3 == 0);
    out[32 + lane] = static_cast<unsigned>(__any_sync(0xfffu, lane == 20) + 2 * __all_sync(0xfffu, lane < 12));
  } else {
    out[lane] = __reduce_add_sync(0xfffff000u, lane);
    out[32 + lane] = __reduce_max_sync(0xfffff000u, lane) +
                     static_cast<unsigned>(__reduce_max_sync(0xfffff000u, -static_cast<int>(lane)));
  }
}

TEST(Execution, PartsOfAWarpMeetApart) {
  const OnDevice<unsigned> out(64);
  launch(votes, dim3(1), dim3(32), 0, nullptr, out.data());
  const std::vector<unsigned> values = out.values();
  for (unsigned lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(values[lane], lane < 12 ? 0x249u : (12 + 31) * 20 / 2u);
    EXPECT_EQ(values[32 + lane], lane < 12 ? 2u : 31u - 12u);
  }
}

__global__ void count_atomically(int* out, float* sum, int* largest, unsigned* bits) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&out[0], 1);
  atomicAdd(sum, 0.5f);
  atomicMax(largest, i);
  atomicMin(largest + 1, -i);
  atomicOr(bits, 1u << (i % 32));
  for (int seen = out[1];;) {
    const int was = atomicCAS(&out[1], seen, seen + 2);
    if (was == seen) break;
    seen = was;
  }
  if (i == 0) atomicExch(&out[2], 77);
}

TEST(Execution, Atomics) {
  const OnDevice<int> out(std::vector<int>(3)), largest(std::vector<int>(2));
  const OnDevice<float> sum(std::vector<float>(1));
  const OnDevice<unsigned> bits(std::vector<unsigned>(1));
  launch(count_atomically, dim3(5), dim3(64), 0, nullptr, out.data(), sum.data(), largest.data(), bits.data());
  EXPECT_EQ(out.values(), (std::vector<int>{320, 640, 77}));
  EXPECT_EQ(sum.values()[0], 160.0f);
  EXPECT_EQ(largest.values(), (std::vector<int>{319, -319}));
  EXPECT_EQ(bits.values()[0], 0xffffffffu);
}

}  // namespace
