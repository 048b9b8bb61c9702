// Streams, events, copies, memory and its protection, errors.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>

#include "core/base/error.h"
#include "core/device/buffer.h"
#include "core/device/cuda/nap.h"
#include "core/device/cuda_device.h"
#include "core/device/staging_pool.h"
#include "core/device/stream.h"
#include "emulator_test.h"
#include "lamina_emulator_counts.h"

namespace {

using lamina::cuda::launch;
using lamina_emulator_test::failure_of;
using lamina_emulator_test::OnDevice;

// Kernels are launched for the first time while others wait for the host here.
const bool loads_eagerly = setenv("CUDA_MODULE_LOADING", "EAGER", 1) == 0;

// Holds a stream until the host lets it go; `gate` is pinned memory.
__global__ void wait_for_gate(const int* gate) {
  while (__atomic_load_n(gate, __ATOMIC_ACQUIRE) == 0) {
  }
}
__global__ void add_one(float* x) {
  x[threadIdx.x] += 1.0f;
}

class Gate {
 public:
  Gate() {
    EXPECT_EQ(cudaMallocHost(&open_, sizeof(int)), cudaSuccess);
    *open_ = 0;
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() { EXPECT_EQ(cudaFreeHost(open_), cudaSuccess); }
  void hold(cudaStream_t stream) { launch(wait_for_gate, dim3(1), dim3(1), 0, stream, open_); }
  void open() { __atomic_store_n(open_, 1, __ATOMIC_RELEASE); }

 private:
  int* open_ = nullptr;
};

class TwoStreams : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(cudaStreamCreateWithFlags(&first_, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithPriority(&second_, cudaStreamNonBlocking, -1), cudaSuccess);
  }
  void TearDown() override {
    EXPECT_EQ(cudaStreamDestroy(first_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(second_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(second_), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
  cudaStream_t first_ = nullptr, second_ = nullptr;
};

TEST_F(TwoStreams, AreOrderedByEventsOnly) {
  cudaEvent_t event;
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  for (const bool with_event : {false, true}) {
    const OnDevice<float> x(std::vector<float>(8)), y(8);
    Gate gate;
    gate.hold(first_);
    launch(add_one, dim3(1), dim3(8), 0, first_, x.data());
    EXPECT_EQ(cudaEventRecord(event, first_), cudaSuccess);
    if (with_event) {
      EXPECT_EQ(cudaStreamWaitEvent(second_, event, 0), cudaSuccess);
    }
    EXPECT_EQ(cudaMemcpyAsync(y.data(), x.data(), 8 * sizeof(float), cudaMemcpyDeviceToDevice, second_), cudaSuccess);
    EXPECT_EQ(cudaStreamQuery(first_), cudaErrorNotReady);
    EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
    if (with_event) {
      EXPECT_EQ(cudaStreamQuery(second_), cudaErrorNotReady);
    } else {
      EXPECT_EQ(cudaStreamSynchronize(second_), cudaSuccess);
    }
    gate.open();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
    EXPECT_EQ(y.values(), std::vector<float>(8, with_event ? 1.0f : 0.0f));
  }
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_F(TwoStreams, PinnedCopiesAreReallyAsynchronous) {
  float* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 4 * sizeof(float)), cudaSuccess);
  std::fill(pinned, pinned + 4, 1.0f);
  const OnDevice<float> x(4);
  Gate gate;
  gate.hold(first_);
  EXPECT_EQ(cudaMemcpyAsync(x.data(), pinned, 4 * sizeof(float), cudaMemcpyHostToDevice, first_), cudaSuccess);
  std::fill(pinned, pinned + 4, 2.0f);  // too early: the copy has not read it
  gate.open();
  EXPECT_EQ(cudaStreamSynchronize(first_), cudaSuccess);
  EXPECT_EQ(x.values(), std::vector<float>(4, 2.0f));
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST_F(TwoStreams, PageableCopiesWait) {
  Gate gate;
  gate.hold(first_);
  const OnDevice<float> x(std::vector<float>(4, 3.0f));
  std::vector<float> host(4);
  std::atomic<bool> returned = false;
  std::thread copier([&] {
    EXPECT_EQ(cudaMemcpyAsync(host.data(), x.data(), 4 * sizeof(float), cudaMemcpyDefault, first_), cudaSuccess);
    returned = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(returned);
  gate.open();
  copier.join();
  EXPECT_EQ(host, std::vector<float>(4, 3.0f));
}

// As does cudaFreeHost.
TEST_F(TwoStreams, FreesWaitForAllStreams) {
  float *device = nullptr, *pinned = nullptr;
  ASSERT_EQ(cudaMalloc(&device, 16), cudaSuccess);
  ASSERT_EQ(cudaMallocHost(&pinned, 16), cudaSuccess);
  for (const bool of_host : {false, true}) {
    Gate gate;
    gate.hold(second_);
    std::atomic<bool> returned = false;
    std::thread freer([&] {
      EXPECT_EQ(of_host ? cudaFreeHost(pinned) : cudaFree(device), cudaSuccess);
      returned = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(returned);
    gate.open();
    freer.join();
  }
}

TEST_F(TwoStreams, DefaultStreamWaitsForStreamsThatBlockIt) {
  cudaStream_t blocking;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  const OnDevice<float> x(std::vector<float>(4)), y(4);
  Gate gate, other;
  other.hold(first_);
  gate.hold(blocking);
  launch(add_one, dim3(1), dim3(4), 0, blocking, x.data());
  EXPECT_EQ(cudaMemcpyAsync(y.data(), x.data(), 16, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(nullptr), cudaErrorNotReady);
  gate.open();
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);  // not held up by the stream that does not block
  other.open();
  EXPECT_EQ(y.values(), std::vector<float>(4, 1.0f));
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
}

TEST_F(TwoStreams, EventsTellTime) {
  cudaEvent_t before, after, without;
  ASSERT_EQ(cudaEventCreate(&before), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&after), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&without, cudaEventDisableTiming), cudaSuccess);
  Gate gate;
  cudaEventRecord(before, first_);
  gate.hold(first_);
  cudaEventRecord(after, first_);
  float milliseconds = 0;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, before, after), cudaErrorNotReady);
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  gate.open();
  EXPECT_EQ(cudaEventSynchronize(after), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, before, after), cudaSuccess);
  EXPECT_GT(milliseconds, 1.0f);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, before, without), cudaErrorInvalidResourceHandle);
  cudaGetLastError();
  for (const cudaEvent_t event : {before, after, without}) EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST(Memory, IsPoisonedAtFirst) {
  const OnDevice<float> x(1000);
  for (const float value : x.values()) EXPECT_TRUE(std::isnan(value));
  EXPECT_EQ(cudaMemset(x.data(), 0, 4000), cudaSuccess);
  EXPECT_EQ(x.values(), std::vector<float>(1000));
}

TEST(Memory, CopiesRows) {
  std::vector<int> given(5 * 7);
  std::iota(given.begin(), given.end(), 0);
  const OnDevice<int> x(given), y(std::vector<int>(4 * 3, -1));
  EXPECT_EQ(cudaMemcpy2DAsync(y.data(), 3 * 4, x.data() + 2, 7 * 4, 2 * 4, 4, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(y.values(), (std::vector<int>{2, 3, -1, 9, 10, -1, 16, 17, -1, 23, 24, -1}));
  EXPECT_EQ(cudaMemcpy2DAsync(y.data(), 4, x.data(), 28, 8, 4, cudaMemcpyDeviceToDevice), cudaErrorInvalidPitchValue);
  cudaGetLastError();
}

TEST(Memory, CopiesAreChecked) {
  const OnDevice<float> x(16), y(16);
  std::vector<float> host(32);
  EXPECT_EQ(cudaMemcpy(host.data(), x.data(), 17 * 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(x.data() + 1, host.data(), 16 * 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(x.data(), host.data(), 16, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(x.data(), y.data(), 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(x.data(), 0, 65), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(x.data() + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(host.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(Memory, IsReusedAndCounted) {
  size_t before = 0, during = 0, after = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
  std::vector<void*> blocks(6);
  for (size_t i = 0; i < blocks.size(); ++i) ASSERT_EQ(cudaMalloc(&blocks[i], 10000 * (i + 1)), cudaSuccess);
  cudaMemGetInfo(&during, &total);
  EXPECT_GE(before - during, 210000u);
  for (const size_t i : {1, 3, 2}) EXPECT_EQ(cudaFree(blocks[i]), cudaSuccess);
  void* again = nullptr;
  ASSERT_EQ(cudaMalloc(&again, 80000), cudaSuccess);  // what three freed neighbours make together
  EXPECT_EQ(again, blocks[1]);
  for (void* const block : {blocks[0], again, blocks[4], blocks[5]}) EXPECT_EQ(cudaFree(block), cudaSuccess);
  cudaMemGetInfo(&after, &total);
  EXPECT_EQ(after, before);
  EXPECT_EQ(cudaMalloc(&again, total), cudaErrorMemoryAllocation);
  cudaGetLastError();
}

TEST(Memory, KnowsWhatPointersAre) {
  const OnDevice<float> x(1);
  float* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 4), cudaSuccess);
  float host = 0;
  cudaPointerAttributes attributes;
  EXPECT_EQ(cudaPointerGetAttributes(&attributes, x.data()), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  cudaPointerGetAttributes(&attributes, pinned);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  cudaPointerGetAttributes(&attributes, &host);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  cudaFreeHost(pinned);
}

__global__ void write_at(float* x, int at) {
  x[at] = 1.0f;
}

TEST(Memory, WritesBehindAnAllocationAreFound) {
  float* x = nullptr;
  ASSERT_EQ(cudaMalloc(&x, 10 * sizeof(float)), cudaSuccess);
  launch(write_at, dim3(1), dim3(1), 0, nullptr, x, 10);
  EXPECT_EQ(cudaFree(x), cudaErrorIllegalAddress);
  EXPECT_STREQ(cudaGetErrorString(cudaErrorIllegalAddress),
               "something wrote behind an allocation of 40 bytes of GPU 0, at offset 40");
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
}

TEST(MemoryDeathTest, HostCannotTouchDeviceMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const OnDevice<float> x(std::vector<float>(100));
        const OnDevice<float> y(std::vector<float>(50));
        cudaDeviceSynchronize();
        const float value = *static_cast<volatile float*>(x.data() + 3);
        std::printf("%f\n", static_cast<double>(value));
      },
      "host code touched device memory at 0x[0-9a-f]+ \\(device memory of GPU 0: allocation of 400 bytes, offset "
      "12\\)");
}

TEST(MemoryDeathTest, KernelsCannotTouchWhatIsNotThere) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        launch(write_at, dim3(1), dim3(1), 0, nullptr, static_cast<float*>(nullptr), 5);
        cudaDeviceSynchronize();
      },
      "thread \\(0,0,0\\) of block \\(0,0,0\\) of kernel .*write_at.*: (illegal|a misaligned)");
  EXPECT_DEATH(
      {
        const OnDevice<float> x(4);
        launch(write_at, dim3(1), dim3(1), 0, nullptr, x.data(), 1 << 20);
        cudaDeviceSynchronize();
      },
      "write_at.*: illegal access at .*that is not allocated");
}

__global__ void read_pack(const float* x, float* out) {
  const float4 four = *reinterpret_cast<const float4*>(x + 1);
  out[0] = four.x;
}

TEST(MemoryDeathTest, MisalignedAccessesEnd) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const OnDevice<float> x(8);
        launch(read_pack, dim3(1), dim3(1), 0, nullptr, x.data(), x.data());
        cudaDeviceSynchronize();
      },
      "read_pack.*: a misaligned access|load of misaligned address");  // or the sanitizer tells
}

__global__ void fail_once() {
  __trap();
}

TEST(Errors, StayUntilReset) {
  const OnDevice<float> x(std::vector<float>(4));
  Gate gate;  // until both have been launched
  gate.hold(nullptr);
  launch(fail_once, dim3(1), dim3(1), 0, nullptr);
  launch(add_one, dim3(1), dim3(4), 0, nullptr, x.data());
  gate.open();
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  EXPECT_EQ(cudaStreamQuery(nullptr), cudaErrorLaunchFailure);
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, 1), cudaErrorLaunchFailure);
  EXPECT_THROW(launch(add_one, dim3(1), dim3(4), 0, nullptr, x.data()), lamina::Error);
  EXPECT_NE(std::string(cudaGetErrorString(cudaErrorLaunchFailure)).find("fail_once"), std::string::npos);
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_STREQ(cudaGetErrorString(cudaErrorLaunchFailure), "unspecified launch failure");
  EXPECT_EQ(x.values(), std::vector<float>(4));  // what came after the failure was not done
}

TEST(Devices, AreLikeAnH200) {
  int count = 0, value = 0;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 1);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
  cudaGetLastError();
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), cudaSuccess);
  EXPECT_EQ(value, 227 << 10);
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, add_one, 256, 0), cudaSuccess);
  EXPECT_EQ(value, 2);
  EXPECT_EQ(cudaFuncSetAttribute(add_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10),
            cudaErrorInvalidValue);
  cudaGetLastError();
}

__global__ void does_nothing() {}

int shared_limit_of(void (*kernel)()) {
  cudaFuncAttributes attributes{};
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, kernel), cudaSuccess);
  return attributes.maxDynamicSharedSizeBytes;
}

TEST(SharedMemory, IsLimitedPerKernel) {
  EXPECT_EQ(shared_limit_of(does_nothing), 48 << 10);
  launch(does_nothing, dim3(1), dim3(1), 48 << 10, nullptr);
  EXPECT_EQ(shared_limit_of(does_nothing), 48 << 10);
  for (const size_t bytes : {60 << 10, 200 << 10, 60 << 10}) {  // by ranks that are threads
    std::thread([bytes] { launch(does_nothing, dim3(1), dim3(1), bytes, nullptr); }).join();
    EXPECT_EQ(shared_limit_of(does_nothing), 227 << 10);
  }
  const auto limit_to = [](int bytes) {
    EXPECT_EQ(cudaFuncSetAttribute(does_nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), cudaSuccess);
  };
  launch(does_nothing, dim3(1), dim3(1), 60 << 10, nullptr);  // a thread raises the limit once
  limit_to(60 << 10);
  launch(does_nothing, dim3(1), dim3(1), 60 << 10, nullptr);
  EXPECT_THROW(launch(does_nothing, dim3(1), dim3(1), 61 << 10, nullptr), lamina::Error);
  limit_to(227 << 10);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// core/device/cuda_device.h on top of all that.
TEST(CudaDevice, KnowsItsDevice) {
  EXPECT_TRUE(lamina::cuda::is_built());
  EXPECT_EQ(lamina::cuda::num_devices(), 1);
  EXPECT_EQ(lamina::cuda::why_none(), "");
  const lamina::cuda::DeviceInfo info = lamina::cuda::device_info(0);
  EXPECT_EQ(info.name, "emulated device");
  EXPECT_EQ(info.major, 9);
  EXPECT_EQ(info.num_multiprocessors, 132);
  EXPECT_EQ(info.bus_id, "0000:1B:00.0");
  EXPECT_GT(info.free_bytes, 0);
  EXPECT_EQ(lamina::cuda::runtime_version(), 13000);
  EXPECT_THROW(lamina::cuda::require_device(1), lamina::Error);
  EXPECT_THROW(lamina::cuda::require_device(-1), lamina::Error);
}

TEST(CudaDevice, TellsWhatDidNotFit) {
  try {
    lamina::cuda::allocate(0, int64_t{100} << 30, "activations");
    FAIL();
  } catch (const lamina::Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find("out of memory on GPU 0: 100.0 GiB for activations, "), 0u) << text;
    EXPECT_NE(text.find(" of 64.0 GiB free"), std::string::npos) << text;
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(lamina::cuda::allocate(0, 0, "nothing"), nullptr);
}

TEST(CudaDevice, StreamsAndEvents) {
  lamina::Stream stream({lamina::DeviceKind::cuda, 0}), other({lamina::DeviceKind::cuda, 0});
  auto* const x = static_cast<float*>(lamina::cuda::allocate(0, 16, "a test"));
  auto* const host = static_cast<float*>(lamina::cuda::allocate_pinned(0, 16, "a test"));
  lamina::cuda::fill_zero(x, 16, stream);
  Gate gate;
  const auto raw = static_cast<cudaStream_t>(stream.state()->handle());
  lamina::Event begun, done;
  begun.record(stream);
  gate.hold(raw);
  launch(add_one, dim3(1), dim3(4), 0, raw, x);
  done.record(stream);
  EXPECT_FALSE(done.reached());
  done.hold(other);
  lamina::cuda::copy(host, x, 16, other);
  gate.open();
  other.synchronize();
  EXPECT_TRUE(done.reached());
  EXPECT_GE(done.seconds_since(begun), 0.0);
  EXPECT_EQ(host[3], 1.0f);
  lamina::Event moved = std::move(done);
  EXPECT_TRUE(moved.reached());
  lamina::cuda::deallocate_pinned(0, host);
  lamina::cuda::deallocate(0, x);
}

TEST(CudaDevice, WaitingCanBeGivenUp) {
  lamina::Stream stream({lamina::DeviceKind::cuda, 0});
  Gate gate;
  gate.hold(static_cast<cudaStream_t>(stream.state()->handle()));
  stream.set_watch([] { throw lamina::Error("a peer has gone"); });
  EXPECT_THROW(stream.synchronize(), lamina::Error);
  gate.open();
  stream.set_watch(nullptr);
  stream.synchronize();
}

TEST(CudaDevice, WaitingForAnEventCanBeGivenUp) {
  lamina::Stream stream({lamina::DeviceKind::cuda, 0});
  lamina::Event before, after;
  before.record(stream);
  Gate gate;
  gate.hold(static_cast<cudaStream_t>(stream.state()->handle()));
  after.record(stream);
  before.wait(stream);  // what comes later is no matter
  stream.set_watch([] { throw lamina::Error("a peer has gone"); });
  EXPECT_THROW(after.wait(stream), lamina::Error);
  EXPECT_EQ(stream.num_waits(), 0);
  gate.open();
  stream.set_watch(nullptr);
  after.wait(stream);
  EXPECT_TRUE(after.reached());
  stream.synchronize();
  EXPECT_EQ(stream.num_waits(), 1);
}

TEST(Counts, TellWhatHoldsUpTheHost) {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  float *x = nullptr, *pinned = nullptr, pageable[4] = {};
  ASSERT_EQ(cudaMalloc(&x, sizeof(pageable)), cudaSuccess);
  ASSERT_EQ(cudaMallocHost(&pinned, sizeof(pageable)), cudaSuccess);
  const lamina_emulator::Counts before = lamina_emulator::counts();
  const auto blocking_calls = [&] { return lamina_emulator::counts().blocking_calls - before.blocking_calls; };
  for (int i = 0; i < 2; ++i) launch(add_one, dim3(1), dim3(4), 0, stream, x);
  EXPECT_EQ(cudaMemcpyAsync(pinned, x, sizeof(pageable), cudaMemcpyDefault, stream), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(x, 0, sizeof(pageable), stream), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  while (cudaEventQuery(event) != cudaSuccess) std::this_thread::yield();
  EXPECT_EQ(blocking_calls(), 0u);
  EXPECT_EQ(lamina_emulator::counts().launches - before.launches, 2u);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(pageable, x, sizeof(pageable), cudaMemcpyDefault, stream), cudaSuccess);
  EXPECT_EQ(blocking_calls(), 4u);
  EXPECT_EQ(cudaFree(x), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(blocking_calls(), 6u);
  EXPECT_EQ(lamina_emulator::counts().launches - before.launches, 2u);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

// Linux makes 50 to 100 microseconds of the shortest sleep.
TEST(CudaDevice, ShortWaitsDoNotSleep) {
  using std::chrono::microseconds;
  for (const int waited : {0, 1, 50, 199}) EXPECT_EQ(lamina::cuda::nap_after(microseconds(waited)).count(), 0);
  for (const int waited : {200, 1000, 1000000}) EXPECT_GT(lamina::cuda::nap_after(microseconds(waited)).count(), 0);
}

// A piece whose copy still runs is not given away again: others are made, up to the limit, then the oldest is waited for.
TEST(CudaDevice, StagingMemoryComesBackWithItsCopy) {
  lamina::Stream stream({lamina::DeviceKind::cuda, 0});
  const OnDevice<float> x(4);
  const auto pool = std::make_shared<lamina::StagingPool>(nullptr, "test", lamina::StagingPool::Limits{1 << 20, 2});
  void *first = nullptr, *second = nullptr;
  Gate gate;
  gate.hold(static_cast<cudaStream_t>(stream.state()->handle()));
  for (void** data : {&first, &second}) {
    lamina::Staging piece(pool, 16, stream);
    *data = piece.data();
    static_cast<float*>(piece.data())[3] = data == &first ? 1.0f : 2.0f;
    piece.copy(x.data(), piece.data(), 16, stream);
  }
  EXPECT_NE(first, second);
  stream.set_watch([&] { gate.open(); });
  lamina::Staging third(pool, 16, stream);
  EXPECT_EQ(third.data(), first);
  stream.set_watch(nullptr);
  stream.synchronize();
  EXPECT_EQ(x.values()[3], 2.0f);
  const lamina::Staging fourth(pool, 16, stream);
  EXPECT_EQ(fourth.data(), second);
}

TEST(CudaDevice, WorkThatFailedIsReportedWhereItIsWaitedFor) {
  lamina::Stream stream({lamina::DeviceKind::cuda, 0});
  launch(fail_once, dim3(1), dim3(1), 0, static_cast<cudaStream_t>(stream.state()->handle()));
  try {
    stream.synchronize();
    FAIL();
  } catch (const lamina::Error& error) {
    EXPECT_NE(std::string(error.what()).find("fail_once"), std::string::npos) << error.what();
  }
  EXPECT_EQ(cudaDeviceReset(), cudaSuccess);
}

// Another number of devices needs another process.
int with_two_devices() {
  if (lamina::cuda::num_devices() != 2) return 1;
  float *x = nullptr, *y = nullptr;
  cudaStream_t first, second;
  cudaMalloc(&x, 16);
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaSetDevice(1);
  cudaMalloc(&y, 16);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaMemsetAsync(y, 0, 16, second);
  launch(add_one, dim3(1), dim3(4), 0, second, y);
  cudaStreamSynchronize(second);
  cudaMemcpyAsync(x, y, 16, cudaMemcpyDefault, second);
  std::vector<float> values(4);
  cudaMemcpyAsync(values.data(), x, 16, cudaMemcpyDefault, second);
  if (values != std::vector<float>(4, 1.0f)) return 2;
  try {
    launch(add_one, dim3(1), dim3(4), 0, first, x);  // the other device's stream
    return 3;
  } catch (const lamina::Error&) {
  }
  std::fprintf(stderr, "up to here\n");
  launch(add_one, dim3(1), dim3(4), 0, second, x);  // the other device's memory
  cudaDeviceSynchronize();
  return 4;
}

TEST(DevicesDeathTest, KeepTheirMemoryApart) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        setenv("LAMINA_EMULATOR_DEVICES", "2", 1);
        std::exit(with_two_devices());
      },
      "up to here\n.*add_one.*: illegal access at .*device memory of GPU 0");
}

// Every rank's threads begin with device 0 as the current one.
bool staging_memory_is_the_second_devices() {
  const auto current = [] {
    int device = -1;
    return cudaGetDevice(&device) == cudaSuccess ? device : -1;
  };
  const lamina::Device second{lamina::DeviceKind::cuda, 1};
  auto buffer = std::make_unique<lamina::Buffer>(lamina::Buffer::staging(64, second, nullptr, "test"));
  cudaPointerAttributes attributes{};
  bool right = cudaPointerGetAttributes(&attributes, buffer->data()) == cudaSuccess &&
               attributes.type == cudaMemoryTypeHost && attributes.device == 1;
  std::thread([&] {
    buffer.reset();
    right = right && current() == 1;
  }).join();
  return right;
}

TEST(DevicesDeathTest, PinnedMemoryIsOfTheRanksOwn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        setenv("LAMINA_EMULATOR_DEVICES", "2", 1);
        std::exit(staging_memory_is_the_second_devices() ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

// Of the program's environment; what the user has set stays.
bool settings_are_made() {
  unsetenv("CUDA_MODULE_LOADING");
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "7", 1);
  const lamina::Stream stream({lamina::DeviceKind::cuda, 0});
  const std::string loading = getenv("CUDA_MODULE_LOADING"), connections = getenv("CUDA_DEVICE_MAX_CONNECTIONS");
  return loading == "EAGER" && connections == "7";
}

TEST(DevicesDeathTest, SettingsOfRanksAreMadeWhereADeviceIsOpened) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::exit(settings_are_made() ? 0 : 1), testing::ExitedWithCode(0), "");
}

bool lazy_loading_waits() {
  unsetenv("CUDA_MODULE_LOADING");
  cudaStream_t first, second;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  const OnDevice<float> x(std::vector<float>(4));
  Gate gate;
  gate.hold(first);
  std::atomic<bool> launched = false;
  std::thread launcher([&] {
    launch(add_one, dim3(1), dim3(4), 0, second, x.data());
    launched = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const bool waited = !launched;
  gate.open();
  launcher.join();
  cudaDeviceSynchronize();
  return waited;
}

TEST(DevicesDeathTest, LazyLoadingWaits) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::exit(lazy_loading_waits() ? 0 : 1), testing::ExitedWithCode(0), "");
}

bool pageable_copies_are_refused() {
  setenv("LAMINA_EMULATOR_PAGEABLE", "0", 1);
  float *x = nullptr, *pinned = nullptr, pageable[4] = {};
  cudaMalloc(&x, 16);
  cudaMallocHost(&pinned, 16);
  return cudaMemcpyAsync(x, pageable, 16, cudaMemcpyDefault) == cudaErrorInvalidValue &&
         cudaMemcpyAsync(x, pinned, 16, cudaMemcpyDefault) == cudaSuccess;
}

TEST(DevicesDeathTest, PageableCopiesCanBeRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::exit(pageable_copies_are_refused() ? 0 : 1), testing::ExitedWithCode(0),
              "a copy of 16 bytes from or to pageable memory");
}

TEST(DevicesDeathTest, NoneIsSaidSo) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        setenv("LAMINA_EMULATOR_DEVICES", "0", 1);
        std::fprintf(stderr, "%d: %s\n", lamina::cuda::num_devices(), lamina::cuda::why_none().c_str());
        try {
          lamina::Stream stream({lamina::DeviceKind::cuda, 0});
        } catch (const lamina::Error& error) {
          std::exit(error.what() == lamina::cuda::why_none() ? 0 : 1);
        }
        std::exit(2);
      },
      testing::ExitedWithCode(0), "0: no NVIDIA driver was found");
}

}  // namespace
