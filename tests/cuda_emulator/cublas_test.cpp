// Products of matrices.
#include <cublas_v2.h>

#include <cmath>
#include <limits>
#include <random>

#include "core/device/cuda/kernel.h"
#include "emulator_test.h"

namespace {

using lamina_emulator_test::OnDevice;

class Cublas : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS); }
  void TearDown() override { EXPECT_EQ(cublasDestroy(handle_), CUBLAS_STATUS_SUCCESS); }

  cublasStatus_t multiply(cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const float* a, int lda,
                          const float* b, int ldb, float beta, float* c, int ldc,
                          cublasComputeType_t compute = CUBLAS_COMPUTE_32F) {
    const float alpha = 1;
    return cublasGemmEx(handle_, ta, tb, m, n, k, &alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, &beta, c, CUDA_R_32F,
                        ldc, compute, CUBLAS_GEMM_DEFAULT);
  }
  cublasHandle_t handle_ = nullptr;
};

std::vector<float> small_integers(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(static_cast<int>(random() % 9) - 4);
  return values;
}

template <class T>
std::vector<T> as(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// Every transposition, odd sizes, leading dimensions with room, against plain loops; integers, so that every order of sums agrees.
template <class In, class Out>
void test_layouts(cublasHandle_t handle, cudaDataType in, cudaDataType out) {
  const int m = 37, n = 19, k = 23;
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const float beta : {0.0f, 2.0f}) {
        const int lda = (ta ? k : m) + 3, ldb = (tb ? n : k) + 1, ldc = m + 2;
        const std::vector<float> a = small_integers(static_cast<size_t>(lda * (ta ? m : k)), 1);
        const std::vector<float> b = small_integers(static_cast<size_t>(ldb * (tb ? k : n)), 2);
        std::vector<float> c = beta == 0 ? std::vector<float>(static_cast<size_t>(ldc * n), nan)
                                         : small_integers(static_cast<size_t>(ldc * n), 3);
        const OnDevice<In> da(as<In>(a)), db(as<In>(b));
        const OnDevice<Out> dc(as<Out>(c));
        const float alpha = 0.5f;
        ASSERT_EQ(cublasGemmEx(handle, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, m, n, k, &alpha,
                               da.data(), in, lda, db.data(), in, ldb, &beta, dc.data(), out, ldc, CUBLAS_COMPUTE_32F,
                               CUBLAS_GEMM_DEFAULT),
                  CUBLAS_STATUS_SUCCESS);
        const std::vector<Out> got = dc.values();
        for (int j = 0; j < n; ++j)
          for (int i = 0; i < m; ++i) {
            float sum = 0;
            for (int p = 0; p < k; ++p) sum += a[ta ? i * lda + p : p * lda + i] * b[tb ? p * ldb + j : j * ldb + p];
            const float expected = alpha * sum + (beta == 0 ? 0 : beta * c[j * ldc + i]);
            ASSERT_EQ(static_cast<float>(got[j * ldc + i]), static_cast<float>(Out(expected)));
          }
        for (int j = 0; j < n - 1; ++j)
          if (beta == 0) {
            ASSERT_TRUE(std::isnan(static_cast<float>(got[j * ldc + m])));  // the room is untouched
          }
      }
}

TEST_F(Cublas, Layouts) {
  test_layouts<float, float>(handle_, CUDA_R_32F, CUDA_R_32F);
  test_layouts<__nv_bfloat16, __nv_bfloat16>(handle_, CUDA_R_16BF, CUDA_R_16BF);
  test_layouts<__nv_bfloat16, float>(handle_, CUDA_R_16BF, CUDA_R_32F);
}

TEST_F(Cublas, Tf32IsLessExact) {
  const float fine = 1 + 1.0f / 65536;
  const OnDevice<float> a(std::vector<float>{fine}), b(std::vector<float>{1.0f}), c(1);
  const auto product = [&](cublasComputeType_t compute) {
    EXPECT_EQ(multiply(CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, a.data(), 1, b.data(), 1, 0, c.data(), 1, compute),
              CUBLAS_STATUS_SUCCESS);
    return c.values()[0];
  };
  EXPECT_EQ(product(CUBLAS_COMPUTE_32F), fine);
  EXPECT_EQ(product(CUBLAS_COMPUTE_32F_FAST_TF32), 1.0f);
  EXPECT_EQ(cublasSetMathMode(handle_, CUBLAS_TF32_TENSOR_OP_MATH), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(CUBLAS_COMPUTE_32F), 1.0f);
  EXPECT_EQ(product(CUBLAS_COMPUTE_32F_PEDANTIC), fine);
}

TEST_F(Cublas, Batches) {
  const int m = 5, n = 6, k = 7, batch = 3;
  const std::vector<float> a = small_integers(m * k * batch, 4), b = small_integers(k * n * batch, 5);
  const OnDevice<float> da(a), db(b), strided(m * n * batch), listed(m * n * batch), grouped(m * n * batch);
  const float alpha = 1, beta = 0;
  ASSERT_EQ(cublasGemmStridedBatchedEx(handle_, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &alpha, da.data(), CUDA_R_32F, m,
                                       m * k, db.data(), CUDA_R_32F, k, k * n, &beta, strided.data(), CUDA_R_32F, m,
                                       m * n, batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
            CUBLAS_STATUS_SUCCESS);
  std::vector<void*> pa, pb, pc, pg;
  for (int i = 0; i < batch; ++i) {
    pa.push_back(da.data() + i * m * k);
    pb.push_back(db.data() + i * k * n);
    pc.push_back(listed.data() + i * m * n);
    pg.push_back(grouped.data() + i * m * n);
  }
  const OnDevice<void*> la(pa), lb(pb), lc(pc), lg(pg);
  ASSERT_EQ(cublasGemmBatchedEx(handle_, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &alpha, la.data(), CUDA_R_32F, m, lb.data(),
                                CUDA_R_32F, k, &beta, lc.data(), CUDA_R_32F, m, batch, CUBLAS_COMPUTE_32F,
                                CUBLAS_GEMM_DEFAULT),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(listed.values(), strided.values());
  // Two groups; the second one's products have one column.
  const std::vector<cublasOperation_t> plain(2, CUBLAS_OP_N);
  const int ms[] = {m, m}, ns[] = {n, 1}, ks[] = {k, k}, sizes[] = {2, 1};
  const float alphas[] = {1, 2}, betas[] = {0, 0};
  const auto grouped_product = [&](cudaDataType out) {
    return cublasGemmGroupedBatchedEx(handle_, plain.data(), plain.data(), ms, ns, ks, alphas, la.data(), CUDA_R_32F,
                                      ms, lb.data(), CUDA_R_32F, ks, betas, lg.data(), out, ms, 2, sizes,
                                      CUBLAS_COMPUTE_32F);
  };
  ASSERT_EQ(grouped_product(CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(grouped_product(CUDA_R_16BF), CUBLAS_STATUS_NOT_SUPPORTED);
  const std::vector<float> got = grouped.values(), expected = strided.values();
  for (int i = 0; i < 2 * m * n; ++i) EXPECT_EQ(got[i], expected[i]);
  for (int i = 0; i < m; ++i) EXPECT_EQ(got[2 * m * n + i], 2 * expected[2 * m * n + i]);
  for (int i = 2 * m * n + m; i < 3 * m * n; ++i) EXPECT_TRUE(std::isnan(got[i]));
}

TEST_F(Cublas, RefusesWhatTheLibraryRefuses) {
  const OnDevice<float> x(64);
  const auto status = [&](int m, int n, int k, int lda, int ldb, int ldc) {
    return multiply(CUBLAS_OP_N, CUBLAS_OP_T, m, n, k, x.data(), lda, x.data(), ldb, 0, x.data(), ldc);
  };
  EXPECT_EQ(status(4, 2, 3, 3, 2, 4), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(status(4, 2, 3, 4, 1, 4), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(status(4, 2, 3, 4, 2, 3), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(status(-1, 2, 3, 4, 2, 4), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(status(0, 0, 0, 1, 1, 1), CUBLAS_STATUS_SUCCESS);
  const float one = 1;
  EXPECT_EQ(cublasGemmEx(handle_, CUBLAS_OP_N, CUBLAS_OP_N, 1, 1, 1, &one, x.data(), CUDA_R_32F, 1, x.data(),
                         CUDA_R_16BF, 1, &one, x.data(), CUDA_R_32F, 1, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
            CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(cublasSetWorkspace(handle_, x.data() + 1, 16), CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(Cublas, OperandsMustBeInTheirMemory) {
  const OnDevice<float> x(std::vector<float>(63)), y(64);
  EXPECT_EQ(multiply(CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, x.data(), 8, y.data(), 8, 0, y.data(), 8),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  EXPECT_NE(std::string(cudaGetErrorString(cudaErrorIllegalAddress)).find("operand A of 256 bytes"), std::string::npos);
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
}

}  // namespace
