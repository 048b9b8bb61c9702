// Exchanges between ranks that are threads.
#include <nccl.h>

#include <chrono>
#include <functional>
#include <numeric>
#include <thread>

#include "core/device/cuda/kernel.h"
#include "emulator_test.h"

namespace {

using lamina_emulator_test::OnDevice;

struct Rank {
  int rank, num_ranks;
  ncclComm_t comm;
  cudaStream_t stream;
};

void on_ranks(int num_ranks, const std::function<void(Rank&)>& body) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r)
    threads.emplace_back([&, r] {
      Rank rank{r, num_ranks, nullptr, nullptr};
      ASSERT_EQ(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking), cudaSuccess);
      ASSERT_EQ(ncclCommInitRank(&rank.comm, num_ranks, id, r), ncclSuccess);
      body(rank);
      if (rank.comm != nullptr) {
        EXPECT_EQ(ncclCommDestroy(rank.comm), ncclSuccess);
      }
      EXPECT_EQ(cudaStreamDestroy(rank.stream), cudaSuccess);
    });
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> counted(size_t count, float from) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), from);
  return values;
}

TEST(Nccl, ReducesGathersAndBroadcasts) {
  on_ranks(3, [](Rank& me) {
    const auto own = static_cast<float>(me.rank);
    const OnDevice<float> x(counted(6, 10 * own)), sum(6), largest(6), part(2), all(18), copy(6);
    EXPECT_EQ(ncclAllReduce(x.data(), sum.data(), 6, ncclFloat32, ncclSum, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclAllReduce(x.data(), largest.data(), 6, ncclFloat32, ncclMax, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclReduceScatter(x.data(), part.data(), 2, ncclFloat32, ncclSum, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclAllGather(x.data(), all.data(), 6, ncclFloat32, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclBroadcast(x.data(), copy.data(), 6, ncclFloat32, 1, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(me.stream), cudaSuccess);
    std::vector<float> expected(6), gathered;
    for (int i = 0; i < 6; ++i) expected[i] = 30.0f + 3.0f * static_cast<float>(i);
    for (int r = 0; r < 3; ++r) {
      const std::vector<float> one = counted(6, 10.0f * static_cast<float>(r));
      gathered.insert(gathered.end(), one.begin(), one.end());
    }
    EXPECT_EQ(sum.values(), expected);
    EXPECT_EQ(largest.values(), counted(6, 20));
    EXPECT_EQ(part.values(), std::vector<float>(expected.begin() + 2 * me.rank, expected.begin() + 2 * me.rank + 2));
    EXPECT_EQ(all.values(), gathered);
    EXPECT_EQ(copy.values(), counted(6, 10));
  });
}

TEST(Nccl, OtherTypesAndInPlace) {
  on_ranks(2, [](Rank& me) {
    const OnDevice<__nv_bfloat16> x(std::vector<__nv_bfloat16>{256.0f, me.rank == 0 ? 2.0f : 1.0f});
    const OnDevice<int> y(std::vector<int>{1 + me.rank, -me.rank});
    const OnDevice<double> z(std::vector<double>{0.5, 0.25});
    const OnDevice<float> parts(counted(4, static_cast<float>(100 * me.rank)));
    EXPECT_EQ(ncclAllReduce(x.data(), x.data(), 2, ncclBfloat16, ncclSum, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclAllReduce(y.data(), y.data(), 2, ncclInt32, ncclMin, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclAllReduce(z.data(), z.data(), 2, ncclFloat64, ncclSum, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclAllGather(parts.data() + 2 * me.rank, parts.data(), 2, ncclFloat32, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(me.stream), cudaSuccess);
    EXPECT_EQ(__bfloat162float(x.values()[0]), 512.0f);
    EXPECT_EQ(__bfloat162float(x.values()[1]), 3.0f);
    EXPECT_EQ(y.values(), (std::vector<int>{1, -1}));
    EXPECT_EQ(z.values(), (std::vector<double>{1.0, 0.5}));
    EXPECT_EQ(parts.values(), (std::vector<float>{0, 1, 102, 103}));
    float* const nothing = nullptr;
    EXPECT_EQ(ncclAllReduce(nothing, nothing, 0, ncclFloat32, ncclSum, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclAllReduce(nothing, nothing, 1, ncclFloat32, ncclSum, me.comm, me.stream), ncclInvalidArgument);
  });
}

TEST(Nccl, GroupsLetEverybodySendAtOnce) {
  on_ranks(3, [](Rank& me) {
    const int next = (me.rank + 1) % 3, before = (me.rank + 2) % 3;
    const OnDevice<float> x(counted(4, static_cast<float>(me.rank))), y(4), z(1);
    EXPECT_EQ(ncclGroupStart(), ncclSuccess);
    EXPECT_EQ(ncclSend(x.data(), 4, ncclFloat32, next, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclSend(x.data() + 3, 1, ncclFloat32, next, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclRecv(y.data(), 4, ncclFloat32, before, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclRecv(z.data(), 1, ncclFloat32, before, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(ncclGroupEnd(), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(me.stream), cudaSuccess);
    EXPECT_EQ(y.values(), counted(4, static_cast<float>(before)));
    EXPECT_EQ(z.values()[0], static_cast<float>(before + 3));
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);
  });
}

TEST(Nccl, OperationsWaitForTheirPeersAndAbortEndsThat) {
  on_ranks(2, [](Rank& me) {
    const OnDevice<float> x(std::vector<float>(1));
    if (me.rank == 0) {
      EXPECT_EQ(ncclRecv(x.data(), 1, ncclFloat32, 1, me.comm, me.stream), ncclSuccess);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      EXPECT_EQ(cudaStreamQuery(me.stream), cudaErrorNotReady);
      ncclResult_t state = ncclSuccess;
      while (state == ncclSuccess) ASSERT_EQ(ncclCommGetAsyncError(me.comm, &state), ncclSuccess);
      EXPECT_EQ(state, ncclRemoteError);
      EXPECT_EQ(cudaStreamQuery(me.stream), cudaErrorNotReady);
    }
    EXPECT_EQ(ncclCommAbort(me.comm), ncclSuccess);
    me.comm = nullptr;
    EXPECT_EQ(cudaStreamSynchronize(me.stream), cudaSuccess);
  });
}

TEST(Nccl, DisagreementIsAnErrorOfTheDevice) {
  on_ranks(2, [](Rank& me) {
    float* x = nullptr;
    ASSERT_EQ(cudaMalloc(&x, 16), cudaSuccess);
    EXPECT_EQ(ncclAllReduce(x, x, me.rank == 0 ? 2 : 3, ncclFloat32, ncclSum, me.comm, me.stream), ncclSuccess);
    EXPECT_EQ(cudaStreamSynchronize(me.stream), cudaErrorLaunchFailure);
    cudaFree(x);
  });
  EXPECT_NE(
      std::string(cudaGetErrorString(cudaErrorLaunchFailure)).find("rank 0 is in ncclAllReduce of 8 bytes, but rank 1"),
      std::string::npos);
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
}

// Making a communicator waits for what its device does, as a receive whose message has not been sent.
TEST(Nccl, CommunicatorsWaitForTheirDevice) {
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  on_ranks(2, [&](Rank& me) {
    const OnDevice<int> x(std::vector<int>{me.rank});
    if (me.rank == 0) {
      EXPECT_EQ(ncclRecv(x.data(), 1, ncclInt32, 1, me.comm, me.stream), ncclSuccess);
    }
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t late = nullptr;
    EXPECT_EQ(ncclCommInitRankConfig(&late, 2, id, me.rank, &config), ncclInProgress);
    ncclResult_t state = ncclInProgress;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (int asked = 0; asked < 3; ++asked) {
      EXPECT_EQ(ncclCommGetAsyncError(late, &state), ncclSuccess);
      if (me.rank == 0) {
        EXPECT_EQ(state, ncclInProgress);
      }
    }
    if (me.rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      EXPECT_EQ(ncclSend(x.data(), 1, ncclInt32, 0, me.comm, me.stream), ncclSuccess);
    }
    for (state = ncclInProgress; state == ncclInProgress;) EXPECT_EQ(ncclCommGetAsyncError(late, &state), ncclSuccess);
    EXPECT_EQ(state, ncclSuccess);
    EXPECT_EQ(ncclCommDestroy(late), ncclSuccess);
  });
}

TEST(Nccl, CommunicatorsThatDoNotBlockMustBeAsked) {
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const auto ready = [](ncclComm_t comm) {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) EXPECT_EQ(ncclCommGetAsyncError(comm, &state), ncclSuccess);
    return state == ncclSuccess;
  };
  ncclComm_t first = nullptr, second = nullptr;
  EXPECT_EQ(ncclCommInitRankConfig(&first, 2, id, 0, &config), ncclInProgress);
  ncclResult_t state = ncclSuccess;
  EXPECT_EQ(ncclCommGetAsyncError(first, &state), ncclSuccess);
  EXPECT_EQ(state, ncclInProgress);
  EXPECT_EQ(ncclCommInitRankConfig(&second, 2, id, 0, &config), ncclInvalidUsage);
  EXPECT_EQ(ncclCommInitRankConfig(&second, 2, id, 1, &config), ncclInProgress);
  ASSERT_TRUE(ready(first) && ready(second));
  cudaStream_t other;
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  const OnDevice<int> x(std::vector<int>{7}), y(1);
  EXPECT_EQ(ncclSend(x.data(), 1, ncclInt32, 1, first, nullptr), ncclInProgress);
  EXPECT_EQ(ncclSend(x.data(), 1, ncclInt32, 1, first, nullptr), ncclInvalidArgument);  // not asked yet
  EXPECT_EQ(ncclRecv(y.data(), 1, ncclInt32, 0, second, other), ncclInProgress);
  EXPECT_TRUE(ready(first) && ready(second));
  EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  EXPECT_EQ(y.values()[0], 7);
  for (const ncclComm_t comm : {first, second}) {
    EXPECT_EQ(ncclCommFinalize(comm), ncclInProgress);
    EXPECT_TRUE(ready(comm));
    EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
  }
  EXPECT_EQ(cudaStreamDestroy(other), cudaSuccess);
}

}  // namespace
