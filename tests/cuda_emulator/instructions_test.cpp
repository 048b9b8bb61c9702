// Tensor cores, ldmatrix, cp.async, bf16 and the small functions.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "core/ops/gpu/device_math.h"
#include "emulator_test.h"

namespace {

using lamina::cuda::launch;
using lamina::ops::cuda::pack_bf16;
using lamina_emulator_test::failure_of;
using lamina_emulator_test::OnDevice;

// a: 16 x 16, b: 16 x 8, d: 16 x 8, all row by row; fragments as PTX lays them out.
__global__ void multiply_bf16(const float* a, const float* b, float* d) {
  const int group = static_cast<int>(threadIdx.x) / 4, pair = static_cast<int>(threadIdx.x) % 4;
  const auto a_at = [&](int row, int column) { return pack_bf16(a[row * 16 + column], a[row * 16 + column + 1]); };
  const auto b_at = [&](int row) { return pack_bf16(b[row * 8 + group], b[(row + 1) * 8 + group]); };
  const uint32_t af[4] = {a_at(group, 2 * pair), a_at(group + 8, 2 * pair), a_at(group, 2 * pair + 8),
                          a_at(group + 8, 2 * pair + 8)};
  const uint32_t bf[2] = {b_at(2 * pair), b_at(2 * pair + 8)};
  float c[4] = {1, 2, 3, 4};
  lamina::cuda::mma_bf16(c, af, bf);
  d[group * 8 + 2 * pair] = c[0] - 1;
  d[group * 8 + 2 * pair + 1] = c[1] - 2;
  d[(group + 8) * 8 + 2 * pair] = c[2] - 3;
  d[(group + 8) * 8 + 2 * pair + 1] = c[3] - 4;
}

// a: 16 x 8, b: 8 x 8.
__global__ void multiply_tf32(const float* a, const float* b, float* d, bool rounded) {
  const int group = static_cast<int>(threadIdx.x) / 4, pair = static_cast<int>(threadIdx.x) % 4;
  const auto bits = [&](float x) { return rounded ? lamina::cuda::to_tf32(x) : __float_as_uint(x); };
  const uint32_t af[4] = {bits(a[group * 8 + pair]), bits(a[(group + 8) * 8 + pair]), bits(a[group * 8 + pair + 4]),
                          bits(a[(group + 8) * 8 + pair + 4])};
  const uint32_t bf[2] = {bits(b[pair * 8 + group]), bits(b[(pair + 4) * 8 + group])};
  float c[4] = {};
  lamina::cuda::mma_tf32(c, af, bf);
  d[group * 8 + 2 * pair] = c[0];
  d[group * 8 + 2 * pair + 1] = c[1];
  d[(group + 8) * 8 + 2 * pair] = c[2];
  d[(group + 8) * 8 + 2 * pair + 1] = c[3];
}

std::vector<float> small_integers(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(static_cast<int>(random() % 31) - 15);
  return values;
}

std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b, int depth) {
  std::vector<float> d(16 * 8);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < depth; ++k) d[i * 8 + j] += a[i * depth + k] * b[k * 8 + j];
  return d;
}

TEST(Instructions, TensorCores) {
  const std::vector<float> a = small_integers(16 * 16, 1), b = small_integers(16 * 8, 2);
  const OnDevice<float> da(a), db(b), d(16 * 8);
  launch(multiply_bf16, dim3(1), dim3(32), 0, nullptr, da.data(), db.data(), d.data());
  EXPECT_EQ(d.values(), product(a, b, 16));
  const std::vector<float> a8(a.begin(), a.begin() + 128), b8(b.begin(), b.begin() + 64);
  launch(multiply_tf32, dim3(1), dim3(32), 0, nullptr, da.data(), db.data(), d.data(), false);
  EXPECT_EQ(d.values(), product(a8, b8, 8));
}

TEST(Instructions, Tf32HasTenBits) {
  const float eps = 1.0f / 1024;
  std::vector<float> a(16 * 8), b(8 * 8);
  for (int k = 0; k < 8; ++k) b[k * 8] = 1;
  a[0] = 1 + eps + 0.75f * eps;  // truncated, or rounded, to ten bits of the mantissa
  a[8] = 1 + 0.5f * eps;
  const OnDevice<float> da(a), db(b), d(16 * 8);
  launch(multiply_tf32, dim3(1), dim3(32), 0, nullptr, da.data(), db.data(), d.data(), false);
  EXPECT_EQ(d.values()[0], 1 + eps);
  EXPECT_EQ(d.values()[8], 1.0f);
  launch(multiply_tf32, dim3(1), dim3(32), 0, nullptr, da.data(), db.data(), d.data(), true);
  EXPECT_EQ(d.values()[0], 1 + 2 * eps);
  EXPECT_EQ(d.values()[8], 1 + eps);
}

__global__ void load_matrices(uint32_t* plain, uint32_t* transposed) {
  __shared__ __align__(16) uint16_t matrices[32][8];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) matrices[lane][i] = static_cast<uint16_t>(100 * lane + i);
  __syncwarp();
  uint32_t r[4];
  lamina::cuda::ldmatrix_x4(r, matrices[lane]);
  for (int m = 0; m < 4; ++m) plain[lane * 4 + m] = r[m];
  lamina::cuda::ldmatrix_x4_trans(r, matrices[lane]);
  for (int m = 0; m < 4; ++m) transposed[lane * 4 + m] = r[m];
}

TEST(Instructions, LdMatrix) {
  const OnDevice<uint32_t> plain(128), transposed(128);
  launch(load_matrices, dim3(1), dim3(32), 0, nullptr, plain.data(), transposed.data());
  const std::vector<uint32_t> p = plain.values(), t = transposed.values();
  const auto element = [](uint32_t m, uint32_t row, uint32_t column) { return 100 * (8 * m + row) + column; };
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t row = lane / 4, column = 2 * (lane % 4);
      EXPECT_EQ(p[lane * 4 + m], element(m, row, column) | (element(m, row, column + 1) << 16));
      EXPECT_EQ(t[lane * 4 + m], element(m, column, row) | (element(m, column + 1, row) << 16));
    }
}

__global__ void copy_asynchronously(const float4* in, float4* out, int groups_waited_for) {
  LAMINA_DYNAMIC_SHARED(float4, shared);
  const int t = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 3; ++group) {
    lamina::cuda::cp_async_16(&shared[group * 32 + t], &in[group * 32 + t], t == 7 ? 4 : t == 8 ? 0 : 16);
    lamina::cuda::cp_async_commit();
  }
  if (groups_waited_for == 1) lamina::cuda::cp_async_wait<2>();
  if (groups_waited_for == 3) lamina::cuda::cp_async_wait<0>();
  __syncthreads();
  for (int group = 0; group < 3; ++group) out[group * 32 + t] = shared[group * 32 + (t + 1) % 32];
}

TEST(Instructions, AsynchronousCopiesArriveWhenWaitedFor) {
  std::vector<float4> given(96);
  for (size_t i = 0; i < given.size(); ++i) {
    const auto x = static_cast<float>(4 * i);
    given[i] = {x, x + 1, x + 2, x + 3};
  }
  const OnDevice<float4> in(given), out(96);
  for (const int waited : {0, 1, 3}) {
    launch(copy_asynchronously, dim3(1), dim3(32), 96 * sizeof(float4), nullptr, in.data(), out.data(), waited);
    const std::vector<float4> values = out.values();
    for (int i = 0; i < 96; ++i) {
      const int from = i / 32 * 32 + (i + 1) % 32, lane = from % 32;
      const float4 got = values[i];
      if (i / 32 >= waited) {
        EXPECT_TRUE(std::isnan(got.x) && std::isnan(got.w));
        continue;
      }
      EXPECT_EQ(got.x, lane == 8 ? 0.0f : static_cast<float>(4 * from));
      EXPECT_EQ(got.w, lane == 7 || lane == 8 ? 0.0f : static_cast<float>(4 * from + 3));
    }
  }
}

__global__ void copy_misaligned(const float* in) {
  __shared__ __align__(16) float shared[8];
  lamina::cuda::cp_async_16(shared, in + 1);
}

TEST(Instructions, AsynchronousCopiesMustBeAligned) {
  const OnDevice<float> in(8);
  EXPECT_NE(failure_of(copy_misaligned, dim3(1), dim3(1), 0, nullptr, in.data()).find("not a multiple of 16"),
            std::string::npos);
}

TEST(Instructions, Bf16) {
  const auto bits = [](float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); };
  EXPECT_EQ(bits(1.0f), 0x3f80);
  EXPECT_EQ(bits(1.0f + 1.0f / 256), 0x3f80);  // halfway, to even
  EXPECT_EQ(bits(1.0f + 3.0f / 256), 0x3f82);  // halfway, to even
  EXPECT_EQ(bits(1.0f + 1.001f / 256), 0x3f81);
  EXPECT_EQ(bits(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(__bfloat162float(__float2bfloat16(std::nanf("")))));
  EXPECT_TRUE(std::isnan(__bfloat162float(__float2bfloat16(__uint_as_float(0x7f800001u)))));
  for (unsigned i = 0; i < 0x10000; ++i) {
    const __nv_bfloat16 x = __ushort_as_bfloat16(static_cast<unsigned short>(i));
    if (std::isnan(__bfloat162float(x))) continue;
    EXPECT_EQ(bits(__bfloat162float(x)), i);
  }
  const __nv_bfloat162 two = __floats2bfloat162_rn(1.5f, -2.0f);
  EXPECT_EQ(__low2float(two), 1.5f);
  EXPECT_EQ(__high2float(two), -2.0f);
  EXPECT_EQ(__bfloat1622float2(two).y, -2.0f);
  EXPECT_EQ(pack_bf16(1.0f, 2.0f), 0x40003f80u);
}

TEST(Instructions, SmallFunctions) {
  EXPECT_EQ(__popc(0xf0f0u), 8);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__mul24(-3, 5), -15);
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rn(3.5f), 4);
  EXPECT_EQ(__brev(1), 0x80000000u);
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x5410u), 0x55441100u);
  EXPECT_EQ(__byte_perm(0x33221180u, 0u, 0x3218u), 0x332211ffu);
  EXPECT_EQ(max(3, 4u), 4u);
  EXPECT_EQ(min(int64_t{-3}, 4), -3);
  EXPECT_FLOAT_EQ(__expf(1.0f), std::exp(1.0f));
  EXPECT_FLOAT_EQ(rsqrtf(4.0f), 0.5f);
  EXPECT_EQ(alignof(float4), 16u);
  EXPECT_EQ(sizeof(float3), 12u);
}

}  // namespace
